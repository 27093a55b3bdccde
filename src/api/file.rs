//! Files at offsets.
#![forbid(unsafe_code)]

use super::offload::offload;
use crate::buf::Payload;
use crate::driver::completion::Done;
use crate::driver::op::{Fsync, Op, ReadAt, WriteAt};
use crate::driver::{Descriptor, FdRef};
use crate::error::Error;
use crate::shard::{Core, EndpointId, Waiter};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::Poll;

/// A file, read and written at offsets. On the ring the kernel does the work; else threads that may block.
pub struct File {
    core: Rc<Core>,
    fd: Option<FdRef>,
}

impl File {
    /// Opens a file for reading.
    ///
    /// # Errors
    ///
    /// As [`std::fs::File::open`].
    pub async fn open(path: impl AsRef<Path>) -> io::Result<File> {
        File::open_as(path.as_ref().to_owned(), false).await
    }

    /// Opens a file for writing, making or emptying it.
    ///
    /// # Errors
    ///
    /// As [`std::fs::File::create`].
    pub async fn create(path: impl AsRef<Path>) -> io::Result<File> {
        File::open_as(path.as_ref().to_owned(), true).await
    }

    /// Takes a file of the standard library into the current shard.
    ///
    /// # Errors
    ///
    /// If no shard runs here.
    pub fn from_std(file: std::fs::File) -> io::Result<File> {
        File::adopt(Core::required()?, file.into())
    }

    async fn open_as(path: PathBuf, create: bool) -> io::Result<File> {
        let core = Core::required()?;
        let host = core.config.host.clone();
        File::adopt(core, offload(move || host.open_file(&path, create)).await??)
    }

    fn adopt(core: Rc<Core>, descriptor: Descriptor) -> io::Result<File> {
        let fd = core.with(|state| state.engine.driver.adopt(descriptor))??;
        Ok(File { core, fd: Some(fd) })
    }

    fn fd(&self) -> FdRef {
        self.fd.as_ref().expect("an open file has its descriptor").clone()
    }

    /// Reads at most `len` bytes at `offset`; fewer at the end of the file.
    ///
    /// Dropping the future lets the read end by itself; its buffer stays alive until then.
    ///
    /// # Errors
    ///
    /// As [`std::os::unix::fs::FileExt::read_at`]; `WouldBlock` if too many operations are in flight.
    pub async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let (read, buffer) = self.read_into_at(offset, Vec::with_capacity(len)).await;
        read.map(|_| buffer)
    }

    /// Appends bytes at `offset` to `buffer`, up to its capacity, and gives it back with their number.
    ///
    /// Dropping the future lets the read end by itself, with the buffer.
    pub async fn read_into_at(&self, offset: u64, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        match run(&self.core, ReadAt { file: self.fd(), buffer, offset }).await {
            Ok(Done::Filled(read, buffer)) => (read.map_err(Into::into), buffer),
            Ok(_) => (Err(Error::Closed.into()), Vec::new()),
            Err((error, Some(Op::ReadAt(op)))) => (Err(error), op.buffer),
            Err((error, _)) => (Err(error), Vec::new()),
        }
    }

    /// Writes bytes at `offset`; tells how many were written.
    ///
    /// Dropping the future lets the write end by itself.
    ///
    /// # Errors
    ///
    /// As [`std::os::unix::fs::FileExt::write_at`].
    pub async fn write_at(&self, offset: u64, payload: impl Into<Payload>) -> io::Result<usize> {
        Ok(self.write_some(offset, payload.into()).await?.0)
    }

    /// Writes all bytes at `offset`.
    ///
    /// # Errors
    ///
    /// As [`write_at`](Self::write_at); `WriteZero` if the file takes no more.
    pub async fn write_all_at(&self, mut offset: u64, payload: impl Into<Payload>) -> io::Result<()> {
        let mut payload = payload.into();
        while !payload.is_empty() {
            let (written, back) = self.write_some(offset, payload).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            payload = back;
            payload.advance(written);
            offset += written as u64;
        }
        Ok(())
    }

    async fn write_some(&self, offset: u64, payload: Payload) -> io::Result<(usize, Payload)> {
        match run(&self.core, WriteAt { file: self.fd(), payload, offset }).await {
            Ok(Done::Sent(written, payload)) => Ok((written?, payload)),
            Ok(_) => Err(Error::Closed.into()),
            Err((error, _)) => Err(error),
        }
    }

    /// Waits until the content and the metadata are on the device.
    ///
    /// # Errors
    ///
    /// As [`std::fs::File::sync_all`].
    pub async fn sync_all(&self) -> io::Result<()> {
        self.sync(false).await
    }

    /// Waits until the content is on the device.
    ///
    /// # Errors
    ///
    /// As [`std::fs::File::sync_data`].
    pub async fn sync_data(&self) -> io::Result<()> {
        self.sync(true).await
    }

    async fn sync(&self, data_only: bool) -> io::Result<()> {
        match run(&self.core, Fsync { file: self.fd(), data_only }).await {
            Ok(Done::Ended(ended)) => Ok(ended?),
            Ok(_) => Err(Error::Closed.into()),
            Err((error, _)) => Err(error),
        }
    }

    /// The length and other metadata.
    ///
    /// # Errors
    ///
    /// As [`std::fs::File::metadata`].
    pub async fn metadata(&self) -> io::Result<std::fs::Metadata> {
        let fd = self.fd();
        if fd.descriptor().is_simulated() {
            let text = "a simulated file has no metadata of the system; ask for its len";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let file = fd.descriptor().to_file()?;
        offload(move || file.metadata()).await?
    }

    /// How many bytes the file has. Does not wait for writes in flight.
    ///
    /// # Errors
    ///
    /// If the system does not tell.
    pub fn len(&self) -> io::Result<u64> {
        self.fd().descriptor().length()
    }

    /// Whether the file has no bytes, as [`len`](Self::len).
    ///
    /// # Errors
    ///
    /// If the system does not tell.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        // Operations in flight keep the descriptor until they have ended.
        let _ = self.core.with(|state| state.engine.driver.retire(fd));
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").finish_non_exhaustive()
    }
}

/// An operation that a future waits for; dropping the future abandons it.
struct Waiting<'a> {
    core: &'a Core,
    id: EndpointId,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let _ = self.core.with(|state| state.abandon_single(self.id));
    }
}

/// Runs one operation to its end. Dropping the future abandons it: it is cancelled, and what it owns is given
/// back when it has ended.
pub(crate) async fn run(core: &Core, op: impl Into<Op>) -> Result<Done, (io::Error, Option<Op>)> {
    let op = op.into();
    let id = match core.with(|state| state.start_single(op)) {
        Ok(Ok(id)) => id,
        Ok(Err(full)) => {
            let error = io::Error::new(io::ErrorKind::WouldBlock, full.to_string());
            return Err((error, Some(full.0)));
        }
        Err(error) => return Err((error.into(), None)),
    };
    let waiting = Waiting { core, id };
    poll_fn(|context| {
        let waiter = || Waiter::Future(context.waker().clone());
        match waiting.core.with(|state| state.single_outcome(id, waiter)) {
            Ok(Ok(Some(done))) => Poll::Ready(Ok(done)),
            Ok(Ok(None)) => Poll::Pending,
            Ok(Err(error)) | Err(error) => Poll::Ready(Err((error.into(), None))),
        }
    })
    .await
}

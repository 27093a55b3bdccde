//! The files of each host, in memory, and what a crash leaves of them.
//!
//! What was written since the last sync can be undone, step by step from the last one, so that a crash may leave any
//! prefix of it. A name that was made, taken away or changed is safe once its file was synced, as on the usual file
//! systems; directories are not simulated, so every parent exists.

#![forbid(unsafe_code)]

use super::core::HostId;
use super::random::Random;
use super::socket::{Family, Thing, Told};
use super::{DescriptorId, Fault, Outcome, World};
use crate::driver::sys::os::libc;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OpenOptions {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) append: bool,
    pub(crate) create: bool,
    pub(crate) create_new: bool,
    pub(crate) truncate: bool,
}

/// An open file.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: u64,
    options: OpenOptions,
}

/// The files of a host.
#[derive(Debug, Default)]
pub(super) struct FileSystem {
    entries: BTreeMap<PathBuf, Entry>,
    bodies: BTreeMap<u64, Body>,
    next_file: u64,
    /// What became of names since their files were synced, the oldest first.
    changes: Vec<Change>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    File(u64),
    Socket(DescriptorId),
}

#[derive(Debug, Default)]
struct Body {
    bytes: Vec<u8>,
    /// How to undo what was done since the last sync, the oldest first.
    undo: Vec<Undo>,
    opens: usize,
}

/// What a write or a change of the length replaced.
#[derive(Debug)]
struct Undo {
    offset: usize,
    replaced: Vec<u8>,
    length: usize,
}

#[derive(Debug)]
enum Change {
    Made { path: PathBuf, file: u64 },
    Removed { path: PathBuf, file: u64 },
    Renamed { from: PathBuf, to: PathBuf, file: u64, replaced: Option<Entry> },
}

/// The path that the name of a Unix socket is.
pub(super) fn path_of(name: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(name))
}

impl World {
    pub(crate) fn open_file(
        &mut self,
        host: HostId,
        path: &Path,
        options: OpenOptions,
    ) -> Outcome<DescriptorId> {
        self.may_open(host)?;
        self.may_fail(host)?;
        let file = self.core.host_mut(host).files.open(path, options)?;
        let thing = Thing::File(OpenFile { file, options });
        let id = self.open_new(host, Family::Unix, thing, true);
        self.core.note(host, format_args!("#{} open {}", id.0, path.display()));
        Ok(id)
    }

    pub(crate) fn read_at(&mut self, id: DescriptorId, into: &mut [u8], offset: u64) -> Outcome<usize> {
        let (host, file, options) = self.file(id)?;
        if !options.read {
            return Err(libc::EBADF);
        }
        self.may_fail(host)?;
        let most = self.part(host, into.len());
        let count = self.body(host, file)?.read(&mut into[..most], offset);
        self.note_at(id, format_args!("read {count} at {offset}"));
        Ok(count)
    }

    pub(crate) fn write_at(&mut self, id: DescriptorId, bytes: &[u8], offset: u64) -> Outcome<usize> {
        let (host, file, options) = self.file(id)?;
        if !options.write && !options.append {
            return Err(libc::EBADF);
        }
        self.may_fail(host)?;
        let most = self.part(host, bytes.len());
        let body = self.body(host, file)?;
        // Linux appends even if an offset is given.
        let offset = if options.append { body.bytes.len() as u64 } else { offset };
        let result = body.write(&bytes[..most], offset);
        self.note_at(id, format_args!("write {} at {offset}", Told(&result)));
        result
    }

    /// Makes what was written safe from a crash, and the name of the file, too.
    pub(crate) fn sync(&mut self, id: DescriptorId) -> Outcome<()> {
        let (host, file, _) = self.file(id)?;
        self.may_fail(host)?;
        self.body(host, file)?.undo.clear();
        self.core.host_mut(host).files.changes.retain(|change| change.file() != file);
        self.note_at(id, format_args!("sync"));
        Ok(())
    }

    pub(crate) fn length(&mut self, id: DescriptorId) -> Outcome<u64> {
        let (host, file, _) = self.file(id)?;
        self.may_fail(host)?;
        Ok(self.body(host, file)?.bytes.len() as u64)
    }

    pub(crate) fn set_length(&mut self, id: DescriptorId, length: u64) -> Outcome<()> {
        let (host, file, options) = self.file(id)?;
        if !options.write && !options.append {
            return Err(libc::EINVAL);
        }
        self.may_fail(host)?;
        let length = usize::try_from(length).map_err(|_| libc::EFBIG)?;
        self.body(host, file)?.set_length(length);
        self.note_at(id, format_args!("length {length}"));
        Ok(())
    }

    /// Takes a name away, also that of a Unix socket.
    pub(crate) fn remove(&mut self, host: HostId, path: &Path) -> Outcome<()> {
        self.may_fail(host)?;
        self.core.host_mut(host).files.remove(path)?;
        self.core.note(host, format_args!("remove {}", path.display()));
        Ok(())
    }

    pub(crate) fn rename(&mut self, host: HostId, from: &Path, to: &Path) -> Outcome<()> {
        self.may_fail(host)?;
        self.core.host_mut(host).files.rename(from, to)?;
        self.core.note(host, format_args!("rename {} to {}", from.display(), to.display()));
        Ok(())
    }

    /// What is in a file now, for tests to look at.
    pub(crate) fn file_bytes(&self, host: HostId, path: &Path) -> Option<&[u8]> {
        let files = &self.core.host(host).files;
        match files.entries.get(path)? {
            Entry::File(file) => Some(&files.bodies.get(file)?.bytes),
            Entry::Socket(_) => None,
        }
    }

    pub(super) fn file_close(&mut self, host: HostId, open: OpenFile) {
        let files = &mut self.core.host_mut(host).files;
        if let Some(body) = files.bodies.get_mut(&open.file) {
            body.opens -= 1;
        }
        files.forget_unused(open.file);
    }

    /// What a crash does to the files: nothing, or to some it takes what was not synced.
    pub(super) fn crash_files(&mut self, host: HostId) {
        let mut files = std::mem::take(&mut self.core.host_mut(host).files);
        for (number, body) in &mut files.bodies {
            body.opens = 0;
            if !body.undo.is_empty() && self.core.roll(host, Fault::UnsyncedLoss) {
                body.lose(&mut self.core.random);
                let length = body.bytes.len();
                self.core.mark(host, format_args!("file {number} is left with {length} bytes"));
            }
            body.undo.clear();
        }
        if !files.changes.is_empty() && self.core.roll(host, Fault::UnsyncedLoss) {
            let kept = self.core.random.between(0..=files.changes.len() as u64) as usize;
            files.undo_changes(kept);
        }
        files.changes.clear();
        let named: Vec<u64> = files.bodies.keys().copied().collect();
        named.into_iter().for_each(|file| files.forget_unused(file));
        self.core.host_mut(host).files = files;
    }

    fn file(&self, id: DescriptorId) -> Outcome<(HostId, u64, OpenOptions)> {
        let open = self.open(id)?;
        match &open.thing {
            Thing::File(file) => Ok((open.host, file.file, file.options)),
            _ => Err(libc::EINVAL),
        }
    }

    fn body(&mut self, host: HostId, file: u64) -> Outcome<&mut Body> {
        self.core.host_mut(host).files.bodies.get_mut(&file).ok_or(libc::EBADF)
    }

    fn may_fail(&mut self, host: HostId) -> Outcome<()> {
        let failed = !self.core.host(host).up || self.core.roll(host, Fault::FileError);
        if failed { Err(libc::EIO) } else { Ok(()) }
    }

    /// How much of a transfer is done.
    fn part(&mut self, host: HostId, length: usize) -> usize {
        if length > 1 && self.core.roll(host, Fault::ShortFile) {
            return self.core.random.between(1..=length as u64 - 1) as usize;
        }
        length
    }
}

impl FileSystem {
    /// Makes the name of a socket; false if there is something of that name.
    pub(super) fn add_socket(&mut self, path: PathBuf, id: DescriptorId) -> bool {
        if self.entries.contains_key(&path) {
            return false;
        }
        self.entries.insert(path, Entry::Socket(id));
        true
    }

    pub(super) fn socket_at(&self, path: &Path) -> Outcome<DescriptorId> {
        match self.entries.get(path) {
            None => Err(libc::ENOENT),
            Some(Entry::File(_)) => Err(libc::ECONNREFUSED),
            Some(Entry::Socket(id)) => Ok(*id),
        }
    }

    fn open(&mut self, path: &Path, options: OpenOptions) -> Outcome<u64> {
        let writes = options.write || options.append;
        let wrong = (options.create || options.create_new || options.truncate) && !writes;
        if wrong || !(options.read || writes) {
            return Err(libc::EINVAL);
        }
        let file = match self.entries.get(path) {
            Some(_) if options.create_new => return Err(libc::EEXIST),
            Some(Entry::Socket(_)) => return Err(libc::ENXIO),
            Some(Entry::File(file)) => *file,
            None if options.create || options.create_new => self.make(path),
            None => return Err(libc::ENOENT),
        };
        let body = self.bodies.entry(file).or_default();
        body.opens += 1;
        if options.truncate && !body.bytes.is_empty() {
            body.set_length(0);
        }
        Ok(file)
    }

    fn make(&mut self, path: &Path) -> u64 {
        let file = self.next_file;
        self.next_file += 1;
        self.entries.insert(path.into(), Entry::File(file));
        self.changes.push(Change::Made { path: path.into(), file });
        file
    }

    fn remove(&mut self, path: &Path) -> Outcome<()> {
        if let Entry::File(file) = self.entries.remove(path).ok_or(libc::ENOENT)? {
            self.changes.push(Change::Removed { path: path.into(), file });
            self.forget_unused(file);
        }
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Outcome<()> {
        let entry = *self.entries.get(from).ok_or(libc::ENOENT)?;
        if from == to {
            return Ok(());
        }
        self.entries.remove(from);
        let replaced = self.entries.insert(to.into(), entry);
        if let Entry::File(file) = entry {
            self.changes.push(Change::Renamed { from: from.into(), to: to.into(), file, replaced });
        }
        if let Some(Entry::File(file)) = replaced {
            self.forget_unused(file);
        }
        Ok(())
    }

    /// Undoes what became of names, except for the oldest changes.
    fn undo_changes(&mut self, kept: usize) {
        while self.changes.len() > kept {
            match self.changes.pop() {
                Some(Change::Made { path, file }) => {
                    if self.entries.get(&path) == Some(&Entry::File(file)) {
                        self.entries.remove(&path);
                    }
                }
                Some(Change::Removed { path, file }) => {
                    self.entries.entry(path).or_insert(Entry::File(file));
                }
                Some(Change::Renamed { from, to, file, replaced }) => {
                    if self.entries.get(&to) != Some(&Entry::File(file)) {
                        continue;
                    }
                    self.entries.remove(&to);
                    if let Some(replaced) = replaced {
                        self.entries.insert(to, replaced);
                    }
                    self.entries.entry(from).or_insert(Entry::File(file));
                }
                None => return,
            }
        }
    }

    /// Forgets the bytes of a file that has no name, is not open and cannot come back by a crash.
    fn forget_unused(&mut self, file: u64) {
        let Some(body) = self.bodies.get(&file) else { return };
        let named = self.entries.values().any(|entry| *entry == Entry::File(file));
        let returns = self.changes.iter().any(|change| change.brings_back(file));
        if body.opens == 0 && !named && !returns {
            self.bodies.remove(&file);
        }
    }
}

impl Change {
    fn file(&self) -> u64 {
        match self {
            Change::Made { file, .. } | Change::Removed { file, .. } | Change::Renamed { file, .. } => *file,
        }
    }

    fn brings_back(&self, lost: u64) -> bool {
        match self {
            Change::Made { .. } => false,
            Change::Removed { file, .. } => *file == lost,
            Change::Renamed { replaced, .. } => *replaced == Some(Entry::File(lost)),
        }
    }
}

impl Body {
    fn read(&self, into: &mut [u8], offset: u64) -> usize {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        let count = into.len().min(self.bytes.len() - start);
        into[..count].copy_from_slice(&self.bytes[start..start + count]);
        count
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> Outcome<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let offset = usize::try_from(offset).map_err(|_| libc::EFBIG)?;
        let end = offset.checked_add(bytes.len()).ok_or(libc::EFBIG)?;
        let length = self.bytes.len();
        let replaced = self.bytes[offset.min(length)..end.min(length)].to_vec();
        self.undo.push(Undo { offset, replaced, length });
        self.put(offset, bytes);
        Ok(bytes.len())
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset..end].copy_from_slice(bytes);
    }

    fn set_length(&mut self, length: usize) {
        let before = self.bytes.len();
        let replaced = self.bytes[length.min(before)..].to_vec();
        self.undo.push(Undo { offset: length.min(before), replaced, length: before });
        self.bytes.resize(length, 0);
    }

    /// Undoes the last steps, and the last of those only in part.
    fn lose(&mut self, random: &mut Random) {
        let kept = random.below(self.undo.len() as u64) as usize;
        while self.undo.len() > kept {
            let Some(undo) = self.undo.pop() else { return };
            let torn: Vec<u8> = self.bytes.get(undo.offset..).unwrap_or(&[]).to_vec();
            self.bytes.resize(undo.length, 0);
            if !undo.replaced.is_empty() {
                self.put(undo.offset, &undo.replaced);
            }
            let grew = undo.offset == undo.length && !torn.is_empty();
            if self.undo.len() == kept && grew {
                let part = random.between(0..=torn.len() as u64) as usize;
                self.put(undo.offset, &torn[..part]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Faults;
    use super::super::testing::Pair;
    use super::*;

    const BOTH: OpenOptions = OpenOptions {
        read: true,
        write: true,
        create: true,
        append: false,
        create_new: false,
        truncate: false,
    };

    fn quiet() -> Pair {
        Pair::new(1, Faults::none())
    }

    fn path(name: &str) -> &Path {
        Path::new(name)
    }

    fn open(pair: &mut Pair, name: &str) -> DescriptorId {
        pair.world.open_file(pair.a, path(name), BOTH).unwrap()
    }

    #[test]
    fn files_are_read_and_written_at_any_place() {
        let mut pair = quiet();
        let id = open(&mut pair, "/f");
        assert_eq!(pair.world.write_at(id, b"abc", 5), Ok(3));
        assert_eq!(pair.world.length(id), Ok(8));
        let mut buffer = [1; 10];
        assert_eq!(pair.world.read_at(id, &mut buffer, 4), Ok(4));
        assert_eq!(&buffer[..4], b"\0abc");
        assert_eq!(pair.world.read_at(id, &mut buffer, 100), Ok(0));
        pair.world.set_length(id, 6).unwrap();
        assert_eq!(pair.world.file_bytes(pair.a, path("/f")), Some(&b"\0\0\0\0\0a"[..]));
        let more = OpenOptions { append: true, ..OpenOptions::default() };
        let more = pair.world.open_file(pair.a, path("/f"), more).unwrap();
        assert_eq!(pair.world.write_at(more, b"z", 0), Ok(1));
        assert_eq!(pair.world.read_at(more, &mut buffer, 0), Err(libc::EBADF));
        assert_eq!(pair.world.length(id), Ok(7));
    }

    #[test]
    fn names_come_and_go_as_on_linux() {
        let mut pair = quiet();
        let reading = OpenOptions { read: true, ..OpenOptions::default() };
        assert_eq!(pair.world.open_file(pair.a, path("/f"), reading), Err(libc::ENOENT));
        let id = open(&mut pair, "/f");
        let new = OpenOptions { create_new: true, ..BOTH };
        assert_eq!(pair.world.open_file(pair.a, path("/f"), new), Err(libc::EEXIST));
        pair.world.write_at(id, b"x", 0).unwrap();
        pair.world.rename(pair.a, path("/f"), path("/g")).unwrap();
        assert_eq!(pair.world.rename(pair.a, path("/f"), path("/g")), Err(libc::ENOENT));
        pair.world.remove(pair.a, path("/g")).unwrap();
        assert_eq!(pair.world.remove(pair.a, path("/g")), Err(libc::ENOENT));
        // An open file stays until it is closed.
        assert_eq!(pair.world.read_at(id, &mut [0; 4], 0), Ok(1));
        pair.world.close(id).unwrap();
        assert_eq!(pair.world.descriptors_open(pair.a), 0);
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_a_prefix_of_the_rest() {
        let mut lengths = Vec::new();
        for seed in 0..200 {
            let mut pair = Pair::new(seed, Faults::none().with(Fault::UnsyncedLoss, 1.0));
            let id = open(&mut pair, "/f");
            let bytes: Vec<u8> = (0..100).collect();
            pair.world.write_at(id, &bytes[..40], 0).unwrap();
            pair.world.sync(id).unwrap();
            for start in (40..100).step_by(10) {
                pair.world.write_at(id, &bytes[start..start + 10], start as u64).unwrap();
            }
            pair.world.crash(pair.a);
            assert_eq!(pair.world.read_at(id, &mut [0; 4], 0), Err(libc::EBADF));
            pair.world.restart(pair.a);
            let left = pair.world.file_bytes(pair.a, path("/f")).unwrap();
            assert!(left.len() >= 40 && bytes.starts_with(left), "seed {seed}: {left:?}");
            lengths.push(left.len());
        }
        assert!(lengths.contains(&40));
        assert!(lengths.iter().any(|length| *length > 80));
        assert!(lengths.iter().any(|length| length % 10 != 0), "none was torn");
    }

    #[test]
    fn an_overwritten_file_comes_back_as_it_was() {
        for seed in 0..50 {
            let mut pair = Pair::new(seed, Faults::none().with(Fault::UnsyncedLoss, 1.0));
            let id = open(&mut pair, "/f");
            pair.world.write_at(id, b"old contents", 0).unwrap();
            pair.world.sync(id).unwrap();
            pair.world.write_at(id, b"new and longer contents", 0).unwrap();
            pair.world.crash(pair.a);
            let left = pair.world.file_bytes(pair.a, path("/f")).unwrap();
            assert_eq!(left, b"old contents");
        }
    }

    #[test]
    fn a_name_is_safe_after_a_sync_and_at_risk_before() {
        let mut lost = 0;
        for seed in 0..100 {
            let mut pair = Pair::new(seed, Faults::none().with(Fault::UnsyncedLoss, 1.0));
            let (safe, _) = (open(&mut pair, "/safe"), open(&mut pair, "/risky"));
            pair.world.write_at(safe, b"x", 0).unwrap();
            pair.world.sync(safe).unwrap();
            let target = open(&mut pair, "/target");
            pair.world.write_at(target, b"target", 0).unwrap();
            pair.world.sync(target).unwrap();
            pair.world.rename(pair.a, path("/safe"), path("/target")).unwrap();
            pair.world.crash(pair.a);
            let renamed = pair.world.file_bytes(pair.a, path("/safe")).is_none();
            let expected: &[u8] = if renamed { b"x" } else { b"target" };
            assert_eq!(pair.world.file_bytes(pair.a, path("/target")), Some(expected), "seed {seed}");
            lost += u32::from(pair.world.file_bytes(pair.a, path("/risky")).is_none());
        }
        assert!((10..90).contains(&lost), "{lost}");
    }

    #[test]
    fn a_crash_takes_nothing_without_the_fault() {
        let mut pair = quiet();
        let id = open(&mut pair, "/f");
        pair.world.write_at(id, b"unsynced", 0).unwrap();
        pair.world.crash(pair.a);
        assert_eq!(pair.world.open_file(pair.a, path("/f"), BOTH), Err(libc::EIO));
        assert_eq!(pair.world.file_bytes(pair.a, path("/f")), Some(&b"unsynced"[..]));
    }

    #[test]
    fn faults_make_transfers_short_or_fail() {
        let faults = Faults::none().with(Fault::ShortFile, 0.5).with(Fault::FileError, 0.2);
        let mut pair = Pair::new(1, faults.only_on(Fault::FileError, "b"));
        let id = open(&mut pair, "/f");
        let counts: Vec<usize> = (0..50).map(|_| pair.world.write_at(id, &[0; 100], 0).unwrap()).collect();
        assert!(counts.contains(&100) && counts.iter().any(|count| *count < 100));
        let failed = (0..50).filter(|_| pair.world.open_file(pair.b, path("/f"), BOTH) == Err(libc::EIO));
        assert!((3..25).contains(&failed.count()));
    }
}

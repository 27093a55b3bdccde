//! The one system call that has no safe form: a TUN device, which hands a network's packets to this program.
#![allow(unsafe_code)]

use nix::libc;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// Makes a device of this name in the network namespace of the calling thread. A read gives one packet and a write
/// takes one; neither blocks. The device goes away with the file.
pub(crate) fn open(name: &str) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all zeros are a valid request: an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero and ends the name.
    let room = request.ifr_name.len() - 1;
    for (place, byte) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the file is open, and the request is what TUNSETIFF reads and writes; it outlives the call.
    unsafe { call::set_interface(file.as_raw_fd(), &request) }?;
    Ok(file)
}

mod call {
    #![allow(missing_docs, unreachable_pub, reason = "the macro decides")]
    use nix::libc;
    // TUNSETIFF, whose number claims a size that it does not have.
    nix::ioctl_write_ptr_bad!(
        set_interface,
        nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
        libc::ifreq
    );
}

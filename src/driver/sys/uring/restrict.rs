//! A hardened ring: it takes only what this backend asks of it.
//!
//! The ring is made disabled, and everything is registered on it that it needs. Then the kernel is told what it shall
//! take from then on, and the ring is enabled, which cannot be undone: all else ends with `EACCES`, whoever puts it
//! into the ring. Who enables it is its single issuer, so that happens on the shard's thread.
#![forbid(unsafe_code)]

use crate::report::{Capabilities, Capability};
use io_uring::register::Restriction;
use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode};
use std::io;

/// What the operations of this backend are encoded as. `Nop` is not among them: it is for tests, and the wait makes it.
const OPERATIONS: [(u8, &str); 13] = [
    (opcode::Accept::CODE, "accept"),
    (opcode::Connect::CODE, "connect"),
    (opcode::Recv::CODE, "recv"),
    (opcode::RecvMsg::CODE, "recvmsg"),
    (opcode::Send::CODE, "send"),
    (opcode::SendMsg::CODE, "sendmsg"),
    (opcode::PollAdd::CODE, "poll"),
    (opcode::Timeout::CODE, "timeout"),
    (opcode::AsyncCancel::CODE, "cancel"),
    (opcode::Read::CODE, "read"),
    (opcode::Write::CODE, "write"),
    (opcode::Fsync::CODE, "fsync"),
    (opcode::SendZc::CODE, "send-zc"),
];

/// `IORING_REGISTER_*`: what comes later than the set-up. The buffers for datagrams are shared when the first such socket is
/// opened, and what was registered is taken back at the end.
const REGISTRATIONS: [(u8, &str); 3] =
    [(UNREGISTER_RING_FDS, "unregister-ring-fds"), (22, "register-pbuf-ring"), (23, "unregister-pbuf-ring")];
const UNREGISTER_RING_FDS: u8 = 21;

/// The only flag that our entries have.
const FLAGS: (Flags, &str) = (Flags::BUFFER_SELECT, "buffer-select");

/// Restricts a disabled ring to what it needs, enables it, and says what it takes.
pub(super) fn restrict(ring: &IoUring, capabilities: Capabilities) -> io::Result<String> {
    let (operations, registrations) = (operations(capabilities), registrations(capabilities));
    let mut rules = vec![Restriction::sqe_flags_allowed(FLAGS.0.bits())];
    rules.extend(operations.iter().map(|(code, _)| Restriction::sqe_op(*code)));
    rules.extend(registrations.iter().map(|(code, _)| Restriction::register_op(*code)));
    let submitter = ring.submitter();
    submitter.register_restrictions(&mut rules).map_err(|error| unsupported(&error))?;
    submitter.register_enable_rings()?;
    let names = |named: &[(u8, &'static str)]| {
        let names: Vec<_> = named.iter().map(|(_, name)| *name).collect();
        if names.is_empty() { "nothing".to_owned() } else { names.join(" ") }
    };
    Ok(format!(
        "takes {}, with the flag {}; registers {}; refuses all else with EACCES",
        names(&operations),
        FLAGS.1,
        names(&registrations)
    ))
}

fn operations(capabilities: Capabilities) -> Vec<(u8, &'static str)> {
    let is_used = |code| code != opcode::SendZc::CODE || capabilities.has(Capability::ZeroCopySend);
    OPERATIONS.into_iter().filter(|(code, _)| is_used(*code)).collect()
}

fn registrations(capabilities: Capabilities) -> Vec<(u8, &'static str)> {
    let is_used = |(code, _): &(u8, _)| {
        let needs =
            if *code == UNREGISTER_RING_FDS { Capability::RegisteredRing } else { Capability::BufferRing };
        capabilities.has(needs)
    };
    REGISTRATIONS.into_iter().filter(is_used).collect()
}

/// Without the number of the error, for which there is other advice.
fn unsupported(error: &io::Error) -> io::Error {
    let text = format!("Config::hardened: this kernel refuses to restrict a ring ({error})");
    io::Error::new(io::ErrorKind::Unsupported, text)
}

#[cfg(test)]
mod tests {
    use super::super::Uring;
    use crate::config::Config;
    use io_uring::squeue::{Entry, Flags};
    use io_uring::types::Fd;
    use io_uring::{Probe, opcode};
    use nix::libc;
    use std::ops::{Deref, DerefMut};
    use std::time::Duration;

    /// A ring that gives its buffers back at its end, as that of a driver does.
    struct Ring(Uring);

    impl Deref for Ring {
        type Target = Uring;

        fn deref(&self) -> &Uring {
            &self.0
        }
    }

    impl DerefMut for Ring {
        fn deref_mut(&mut self) -> &mut Uring {
            &mut self.0
        }
    }

    impl Drop for Ring {
        fn drop(&mut self) {
            self.0.release();
        }
    }

    /// A ring, or `None` where there is none.
    fn ring(hardened: bool) -> Option<Ring> {
        match Uring::new(&Config::new().hardened(hardened), "for a test") {
            Ok((ring, report)) => {
                assert_eq!(report.hardened.is_some(), hardened, "{report}");
                Some(Ring(ring))
            }
            Err(refusal) => {
                eprintln!("NOT COVERED: restricted rings ({})", refusal.error);
                None
            }
        }
    }

    /// What the kernel answers to an entry.
    fn result_of(ring: &mut Uring, entry: Entry) -> i32 {
        ring.push(entry.user_data(7));
        ring.enter(true, Some(Duration::from_secs(20))).expect("the ring is entered");
        let completion = ring.ring.completion().next().expect("a completion");
        assert_eq!(completion.user_data(), 7);
        completion.result()
    }

    #[test]
    fn a_hardened_ring_refuses_what_the_backend_never_asks_for() {
        let root = Fd(libc::AT_FDCWD);
        let entries = || {
            [
                ("nop", opcode::Nop::new().build()),
                ("openat", opcode::OpenAt::new(root, c"/".as_ptr()).flags(libc::O_PATH).build()),
                // An operation that is allowed, with a flag that is not.
                ("linked", opcode::AsyncCancel::new(99).build().flags(Flags::IO_LINK)),
            ]
        };
        let (Some(mut hardened), Some(mut plain)) = (ring(true), ring(false)) else { return };
        for ((name, refused), (_, taken)) in entries().into_iter().zip(entries()) {
            assert_eq!(result_of(&mut hardened, refused), -libc::EACCES, "{name}");
            let result = result_of(&mut plain, taken);
            assert!(
                result >= 0 || result == -libc::ENOENT,
                "{name} on a ring that is not hardened: {result}"
            );
        }
        assert_eq!(result_of(&mut hardened, opcode::AsyncCancel::new(99).build()), -libc::ENOENT);
    }

    #[test]
    fn a_hardened_ring_registers_no_more_than_it_needs() {
        let (Some(hardened), Some(plain)) = (ring(true), ring(false)) else { return };
        let probe = |ring: &Ring| ring.ring.submitter().register_probe(&mut Probe::new());
        assert_eq!(probe(&hardened).unwrap_err().raw_os_error(), Some(libc::EACCES));
        assert!(probe(&plain).is_ok());
    }
}

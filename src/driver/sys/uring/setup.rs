//! Setting a ring up from what the kernel has and the limit of locked memory allows.
#![forbid(unsafe_code)]

use crate::config::Config;
use crate::driver::sys::BUFFER_GROUP;
use crate::driver::sys::uring_bufs::BufferRing;
use crate::report::{Capabilities, Capability};
use io_uring::{IoUring, opcode};
use nix::libc;
use std::io;
use std::time::{Duration, Instant};

const ENTRIES_DEFAULT: u32 = 1024;
const ENTRIES_MIN: u32 = 32;
/// The kernel gives locked memory back late; so long we ask again.
const LOCKED_MEMORY_PATIENCE: Duration = Duration::from_secs(2);

/// The sets of set-up flags to try, best first.
const FLAG_SETS: [&[Capability]; 6] = {
    use Capability::*;
    [
        &[SingleIssuer, DeferTaskrun, SubmitAll, NoSqArray],
        &[SingleIssuer, DeferTaskrun, SubmitAll],
        &[SingleIssuer, CoopTaskrun, SubmitAll],
        &[CoopTaskrun, SubmitAll],
        &[SubmitAll],
        &[],
    ]
};

/// A ring with the buffers for streams, if they can be shared.
pub(super) struct Built {
    pub(super) ring: IoUring,
    pub(super) streams: Option<BufferRing>,
    pub(super) capabilities: Capabilities,
    pub(super) lowered: Vec<(Capability, String)>,
}

/// Sets up a ring, stepping down from what the kernel refuses and halving it while locked memory is short.
pub(super) fn build(config: &Config, ladder: &mut Vec<String>) -> io::Result<Built> {
    let mut entries = if config.ring_entries == 0 { ENTRIES_DEFAULT } else { config.ring_entries.max(1) };
    let mut sets = FLAG_SETS.iter();
    let mut set = sets.next().copied().unwrap_or(&[]);
    let give_up = Instant::now() + LOCKED_MEMORY_PATIENCE;
    loop {
        let flags = usable(set, config);
        let outcome = try_build(entries, flags, config);
        ladder.push(match &outcome {
            Ok(_) => format!("{entries} entries with {flags}: ok"),
            Err(error) => format!("{entries} entries with {flags}: {error}"),
        });
        match outcome {
            Ok(built) => return Ok(built),
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                if entries > ENTRIES_MIN {
                    entries /= 2;
                } else if Instant::now() < give_up {
                    ladder.pop();
                    std::thread::sleep(Duration::from_millis(50));
                } else {
                    return Err(error);
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => match sets.next() {
                Some(next) => set = next,
                None => return Err(error),
            },
            Err(error) => return Err(error),
        }
    }
}

fn usable(set: &[Capability], config: &Config) -> Capabilities {
    let polling = config.submission_polling.is_some();
    let mut flags = Capabilities::default();
    for flag in set {
        let clashes = polling && matches!(flag, Capability::DeferTaskrun | Capability::CoopTaskrun);
        if !clashes && !config.without.has(*flag) {
            flags.insert(*flag);
        }
    }
    // Deferred completion work needs a single issuer.
    if !flags.has(Capability::SingleIssuer) {
        flags.remove(Capability::DeferTaskrun);
    }
    flags
}

fn try_build(entries: u32, flags: Capabilities, config: &Config) -> io::Result<Built> {
    let ring = try_ring(entries, flags, config)?;
    let mut built = Built { ring, streams: None, capabilities: flags, lowered: Vec::new() };
    share_buffers(&mut built, config)?;
    Ok(built)
}

fn try_ring(entries: u32, flags: Capabilities, config: &Config) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    if config.hardened {
        builder.setup_r_disabled();
    }
    builder.dontfork().setup_clamp().setup_cqsize(entries.saturating_mul(4));
    if let Some(idle) = config.submission_polling {
        builder.setup_sqpoll(u32::try_from(idle.as_millis()).unwrap_or(u32::MAX));
    }
    if flags.has(Capability::DeferTaskrun) || flags.has(Capability::CoopTaskrun) {
        // Work that waits for us then shows in the ring, where looking costs no call. As old as `CoopTaskrun`.
        builder.setup_taskrun_flag();
    }
    for flag in flags.iter() {
        match flag {
            Capability::SingleIssuer => builder.setup_single_issuer(),
            Capability::DeferTaskrun => builder.setup_defer_taskrun().setup_taskrun_flag(),
            Capability::CoopTaskrun => builder.setup_coop_taskrun(),
            Capability::SubmitAll => builder.setup_submit_all(),
            Capability::NoSqArray => builder.setup_no_sqarray(),
            _ => &mut builder,
        };
    }
    builder.build(entries)
}

/// Checks that the kernel has what cannot be emulated, and asks it for what can.
pub(super) fn require(
    ring: &IoUring,
    config: &Config,
    capabilities: &mut Capabilities,
    lowered: &mut Vec<(Capability, String)>,
) -> io::Result<()> {
    let params = ring.params();
    if !(params.is_feature_ext_arg() && params.is_feature_fast_poll() && params.is_feature_nodrop()) {
        return Err(unsupported(
            "io_uring of this kernel is too old (Linux 5.11 is the first that could do)",
        ));
    }
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Accept::CODE,
        opcode::Connect::CODE,
        opcode::Recv::CODE,
        opcode::RecvMsg::CODE,
        opcode::Send::CODE,
        opcode::SendMsg::CODE,
        opcode::PollAdd::CODE,
        opcode::AsyncCancel::CODE,
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Fsync::CODE,
        opcode::Nop::CODE,
    ];
    if let Some(code) = needed.iter().find(|code| !probe.is_supported(**code)) {
        return Err(unsupported(&format!("io_uring of this kernel lacks operation {code}")));
    }
    // A probe knows operations only, but the multishot receives came with the send without a copy.
    use Capability::{MultishotReceive, MultishotReceiveMessage, ZeroCopySend};
    for capability in [MultishotReceive, MultishotReceiveMessage, ZeroCopySend] {
        if config.without.has(capability) {
            continue;
        }
        if probe.is_supported(opcode::SendZc::CODE) {
            capabilities.insert(capability);
        } else {
            lowered.push((capability, "the kernel lacks it".into()));
        }
    }
    Ok(())
}

/// Shares buffers for streams, if the kernel can and they are allowed. An error is a lack of locked memory, which a smaller
/// ring may leave.
fn share_buffers(built: &mut Built, config: &Config) -> io::Result<()> {
    let allowed = |capability| !config.without.has(capability);
    let (whole, (cut, _)) = (config.limits.buffers, config.limits.cut_buffers());
    let ways = [(Capability::IncrementalBuffers, whole, true), (Capability::BufferRing, cut, false)];
    for (capability, count, incremental) in ways {
        if !allowed(capability) || !allowed(Capability::BufferRing) {
            continue;
        }
        match BufferRing::register(&built.ring, BUFFER_GROUP, count, incremental) {
            Ok(made) => {
                built.capabilities.insert(Capability::BufferRing);
                built.capabilities.insert(capability);
                built.streams = Some(made);
                return Ok(());
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => return Err(error),
            Err(error) => built.lowered.push((capability, error.to_string())),
        }
    }
    Ok(())
}

fn unsupported(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// The error with what to do about it.
pub(super) fn advise(error: &io::Error) -> io::Error {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "refused with EPERM: a seccomp filter (allow io_uring_setup, io_uring_enter and io_uring_register in \
             the container's profile) or the sysctl kernel.io_uring_disabled"
        }
        Some(libc::ENOSYS) => {
            "refused with ENOSYS: the kernel is built without io_uring or older than 5.1, or a seccomp filter \
             hides it (allow io_uring_setup, io_uring_enter and io_uring_register)"
        }
        Some(libc::ENOMEM) => {
            "refused with ENOMEM: too little locked memory; raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=) or \
             use fewer shards or ring entries"
        }
        Some(libc::EMFILE | libc::ENFILE) => "refused: out of descriptors; raise RLIMIT_NOFILE",
        _ => return io::Error::new(error.kind(), error.to_string()),
    };
    io::Error::new(error.kind(), advice)
}

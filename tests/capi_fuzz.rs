//! The C ABI called in random order with good and bad arguments: nothing crashes, errors are returned.
//!
//! `ANABRANCH_FUZZ_CALLS` says how many calls, `ANABRANCH_FUZZ_SEED` which ones; `scripts/fuzz_capi.sh` makes ten
//! million.
#![cfg(feature = "capi")]
#![allow(unsafe_code, reason = "the functions of the ABI take pointers")]

mod common;

use anabranch::capi::completion::*;
use anabranch::capi::opensocket::*;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering};

/// Chance from a seed (xorshift).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }

    /// An id that lives, lived, or never will.
    fn id(&mut self, last: i32) -> i32 {
        match self.below(10) {
            0 => self.next() as i32,
            1 => self.one_of(&[0, -1, i32::MIN, i32::MAX]),
            _ => last - self.below(60) as i32,
        }
    }
}

const HOSTS: [&CStr; 6] = [c"127.0.0.1", c"", c"::1", c"127.0.0.1", c"256.0.0.1.invalid", c"\xff\xfe"];
const ADDRESSES: [&CStr; 5] = [c"127.0.0.1:0", c"[::1]:0", c"127.0.0.1:1", c"nonsense", c""];

fn host(chance: &mut Chance) -> *const c_char {
    // Names go to the resolver, which is slow, so they are rare.
    match chance.below(400) {
        0 => std::ptr::null(),
        n @ 1..=20 => HOSTS[(n % 4) as usize].as_ptr(),
        21 => HOSTS[4].as_ptr(),
        22 => HOSTS[5].as_ptr(),
        _ => HOSTS[0].as_ptr(),
    }
}

fn address(chance: &mut Chance) -> *const c_char {
    if chance.below(20) == 0 { std::ptr::null() } else { chance.one_of(&ADDRESSES).as_ptr() }
}

/// Sees each event to its end, and calls from inside now and then.
unsafe extern "C" fn on_message(user: *mut c_void, message: *const Message) {
    static SEEN: AtomicU64 = AtomicU64::new(1);
    let mut chance = Chance(SEEN.fetch_add(1, Ordering::Relaxed) ^ 0x9e37_79b9_7f4a_7c15);
    let os = user as usize as u64;
    // SAFETY: the message and what it points to live as long as this call.
    let (message, bytes) = unsafe {
        let message = &*message;
        let len = if message.data.is_null() { 0 } else { message.size };
        (
            message,
            std::slice::from_raw_parts(if len == 0 { [].as_ptr() } else { message.data.cast::<u8>() }, len),
        )
    };
    assert!((0..=6).contains(&message.kind));
    if matches!(message.kind, 2..=4) {
        assert_eq!(bytes.last(), Some(&0), "a text has its end");
    }
    match (message.kind, chance.below(4)) {
        (3, 0..=2) => drop(anabranch_os_start(os, 2, message.ud)),
        // SAFETY: the bytes live as long as this call.
        (0, 0) => unsafe {
            anabranch_os_send(os, message.fd, bytes.as_ptr().cast(), bytes.len() as c_int);
        },
        (0, 1) => drop(anabranch_os_close(os, 2, message.fd)),
        (2, 0) => drop(anabranch_os_shutdown(os, 3, message.fd)),
        _ => {}
    }
}

unsafe extern "C" {
    fn free(memory: *mut c_void);
}

/// The same, which owns what it gets.
unsafe extern "C" fn on_message_owned(user: *mut c_void, message: *const Message) {
    // SAFETY: as there; what is at `data` is ours from now on, and came from `malloc` (or is null).
    unsafe {
        on_message(user, message);
        free((*message).data.cast_mut().cast());
    }
}

/// One call of the event facade.
fn call_os(chance: &mut Chance, all: &mut Vec<u64>, last: &mut i32) {
    let os = match chance.below(30) {
        0 => chance.next(),
        _ => all.last().copied().unwrap_or(0),
    };
    let (id, uid, data) = (chance.id(*last), chance.below(5) as usize, [7_u8; 20_000]);
    let size = chance.one_of(&[0, 1, 10, 3000, 20_000, -1]);
    let blob = chance.one_of(&[[1_u8; 19], [2; 19], [0; 19], [77; 19]]);
    let port = chance.one_of(&[0, 0, 0, 1, -1, 70_000]);
    let mut room: [MaybeUninit<Information>; 8] = [const { MaybeUninit::uninit() }; 8];
    let mut text = [0; 16];
    let len = chance.one_of(&[0, 1, 5, 16]);
    // SAFETY: pointers are null or point to locals of the length that is told.
    let made = unsafe {
        match chance.below(18) {
            0 => anabranch_os_listen(os, uid, host(chance), port, chance.below(20) as i32 - 3),
            1 | 2 => anabranch_os_connect(os, uid, host(chance), port),
            3 => anabranch_os_udp(os, uid, host(chance), 0),
            4 => anabranch_os_bind(os, uid, chance.one_of(&[-1, i32::MIN, i32::MAX])),
            5 | 6 => anabranch_os_start(os, uid, id).min(0),
            7 | 8 => anabranch_os_close(os, uid, id).min(0),
            9 => anabranch_os_shutdown(os, uid, id).min(0),
            10 => anabranch_os_nodelay(os, id),
            11 => anabranch_os_send(os, id, data.as_ptr().cast(), size),
            12 => anabranch_os_send_low(os, id, data.as_ptr().cast(), size),
            13 => anabranch_os_udp_connect(os, id, host(chance), 9),
            14 => anabranch_os_udp_send(os, id, blob.as_ptr().cast(), data.as_ptr().cast(), size),
            15 => anabranch_os_udp_address(blob.as_ptr().cast(), text.as_mut_ptr(), len),
            16 => anabranch_os_socket_info(os, room.as_mut_ptr().cast(), 8).min(0) as c_int,
            _ => anabranch_os_send(os, id, std::ptr::null(), size),
        }
    };
    assert!(made >= -1);
    *last = (*last).max(made);
    // Instances end, some of them at once, and others begin.
    if chance.below(5_000) == 0 || all.is_empty() {
        all.drain(..).for_each(|os| assert_eq!(anabranch_os_free(os), 0));
        assert_eq!(anabranch_os_free(chance.next()), -1);
        let os = anabranch_os_new_with(1 + chance.below(2) as c_int, backend(chance));
        assert_ne!(os, 0);
        if chance.below(10) > 0 {
            // SAFETY: the callback takes a number.
            let ran = unsafe {
                match chance.below(2) {
                    0 => anabranch_os_run(os, Some(on_message), os as usize as *mut c_void),
                    _ => anabranch_os_run_owning(os, Some(on_message_owned), os as usize as *mut c_void),
                }
            };
            assert_eq!(ran, 0);
        }
        *last = 0;
        all.push(os);
    }
    // As many sockets as a process may have are soon open.
    if *last > 0 && last.unsigned_abs() % 97 == 0 {
        (1..*last).rev().take(150).for_each(|id| {
            anabranch_os_shutdown(os, 1, id);
        });
    }
}

fn backend(chance: &mut Chance) -> c_int {
    if common::has_uring() { chance.below(3) as c_int } else { 2 }
}

/// One call of the completion API.
fn call_shard(chance: &mut Chance, all: &mut Vec<u64>, endpoints: &mut Vec<u64>) {
    let shard = if chance.below(30) == 0 { chance.next() } else { all.last().copied().unwrap_or(0) };
    let endpoint = match chance.below(10) {
        0 => chance.next(),
        _ => endpoints.get(chance.below(40) as usize).copied().unwrap_or(0),
    };
    let (tag, size) = (chance.next(), chance.one_of(&[0, 1, 3000]));
    let (data, mut made, mut text) = ([7_u8; 3000], 0, [0; 30]);
    let how = chance.below(4) as c_int;
    let mut outcomes: [MaybeUninit<Outcome>; 16] = [const { MaybeUninit::uninit() }; 16];
    let where_to = if chance.below(20) == 0 { std::ptr::null_mut() } else { &raw mut made };
    // SAFETY: pointers are null or point to locals of the length that is told.
    let result = unsafe {
        match chance.below(15) {
            0 => anabranch_listen(shard, address(chance), where_to),
            1 => anabranch_connect(shard, address(chance), tag, where_to),
            2 => anabranch_bind_udp(shard, address(chance), where_to),
            3 => anabranch_local_address(shard, endpoint, text.as_mut_ptr(), size.min(30)),
            4 => anabranch_accept(shard, endpoint, tag, how),
            5 => anabranch_recv(shard, endpoint, tag, how),
            6 => anabranch_recv_from(shard, endpoint, tag, how),
            7 => anabranch_send(shard, endpoint, data.as_ptr().cast(), size, tag),
            8 => anabranch_send_to(shard, endpoint, address(chance), data.as_ptr().cast(), size, tag),
            9 => anabranch_shutdown(shard, endpoint, how, tag),
            10 => anabranch_close(shard, endpoint, how, tag),
            11 => anabranch_timeout(shard, chance.below(3), tag),
            12 => anabranch_shard_wake(shard),
            _ => anabranch_poll(shard, 0, outcomes.as_mut_ptr().cast(), chance.below(17) as usize) as c_int,
        }
    };
    assert!(result >= -1);
    if made != 0 {
        endpoints.insert(0, made);
    }
    if endpoints.len() > 100 {
        for endpoint in endpoints.drain(40..) {
            anabranch_close(shard, endpoint, 2, 0);
        }
    }
    if chance.below(20_000) == 0 || all.is_empty() {
        all.drain(..).for_each(|shard| assert_eq!(anabranch_shard_free(shard), 0));
        assert_eq!(anabranch_shard_free(chance.next()), -1);
        endpoints.clear();
        all.push(anabranch_shard_new(backend(chance)));
        assert_ne!(all[0], 0);
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

#[test]
fn random_calls_return_errors_and_crash_nothing() {
    let (calls, seed) = (number("ANABRANCH_FUZZ_CALLS", 40_000), number("ANABRANCH_FUZZ_SEED", 1));
    let mut chance = Chance(seed | 1);
    let (mut instances, mut last) = (Vec::new(), 0);
    let (mut shards, mut endpoints) = (Vec::new(), Vec::new());
    for _ in 0..calls {
        match chance.below(2) {
            0 => call_os(&mut chance, &mut instances, &mut last),
            _ => call_shard(&mut chance, &mut shards, &mut endpoints),
        }
    }
    instances.into_iter().for_each(|os| assert_eq!(anabranch_os_free(os), 0));
    shards.into_iter().for_each(|shard| assert_eq!(anabranch_shard_free(shard), 0));
    println!("{calls} calls with seed {seed}");
}

#[test]
fn a_shard_of_another_thread_is_refused() {
    let shard = anabranch_shard_new(2);
    let elsewhere = std::thread::spawn(move || {
        assert_eq!(anabranch_shard_wake(shard), 0, "but it may be woken");
        let refused = (anabranch_timeout(shard, 1, 1), anabranch_shard_free(shard));
        (refused, std::io::Error::last_os_error().raw_os_error())
    });
    assert_eq!(elsewhere.join().unwrap(), ((-1, -1), Some(nix::libc::EBADF)));
    assert_eq!(anabranch_shard_free(shard), 0);
    assert_eq!(anabranch_shard_free(shard), -1);
}

//! The system calls that servers and load share, each behind a safe function.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_len(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Raises the limit of open descriptors to the hard limit and tells it.
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid pointer to a limit that lives on this stack.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
    }
    limit.rlim_cur
}

/// Puts the calling process on one core, and, if it may, ahead of everything that is scheduled normally.
pub fn settle_on(core: usize, fifo: bool) -> bool {
    // SAFETY: the set and the parameters are plain data on this stack; zero is a valid value of both.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
        let mut parameters: libc::sched_param = std::mem::zeroed();
        parameters.sched_priority = 1;
        fifo && libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) == 0
    }
}

/// Whether this user may ask for real-time scheduling.
pub fn may_use_fifo() -> bool {
    std::thread::spawn(|| {
        // SAFETY: zero is a valid value of the parameters, which are plain data on this stack. Only this thread changes.
        unsafe {
            let mut parameters: libc::sched_param = std::mem::zeroed();
            parameters.sched_priority = 1;
            libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) == 0
        }
    })
    .join()
    .unwrap_or(false)
}

/// Ends the calling process when the one that started it ends, and in any case after `seconds`.
pub fn end_with_parent(seconds: u32) {
    // SAFETY: neither call takes a pointer.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::alarm(seconds);
    }
}

/// CPU time of the calling thread.
pub fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a value on this stack.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Receives into `buffer`.
pub fn recv(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of a slice that is borrowed for the call.
    check_len(unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0) })
}

/// Sends as much of `bytes` as there is room for.
pub fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of a slice that is borrowed for the call.
    check_len(unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) })
}

/// Accepts a connection in non-blocking mode.
pub fn accept(fd: RawFd) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no address is asked for; the descriptor is new and belongs to nobody else.
    unsafe {
        let accepted = check(libc::accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), flags))?;
        Ok(OwnedFd::from_raw_fd(accepted))
    }
}

/// Sets an integer option.
pub fn set_option(fd: RawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the pointer is to an integer of the length that is given.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length) }).map(drop)
}

/// Lets the kernel hand several datagrams of one sender over in one piece.
pub fn set_receive_offload(fd: RawFd) -> io::Result<()> {
    set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// A listener with a long queue, without Nagle's delay for what it accepts.
pub fn listener(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Bytes of the socket buffers of UDP sockets; the kernel may cap it.
const UDP_SOCKET_BYTES: usize = 4 << 20;

/// A UDP socket with large buffers.
pub fn udp_socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::DGRAM, None)?;
    let _ = socket.set_recv_buffer_size(UDP_SOCKET_BYTES);
    let _ = socket.set_send_buffer_size(UDP_SOCKET_BYTES);
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Begins to connect, from an address of the loopback network that the caller chooses.
pub fn begin_connect(to: SocketAddr, from: Option<std::net::Ipv4Addr>) -> io::Result<socket2::Socket> {
    const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(from) = from {
        set_option(socket.as_raw_fd(), libc::SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)?;
        socket.bind(&SocketAddr::new(from.into(), 0).into())?;
    }
    match socket.connect(&to.into()) {
        Ok(()) => Ok(socket),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

pub const READ: u32 = libc::EPOLLIN as u32;
pub const WRITE: u32 = libc::EPOLLOUT as u32;
pub const EDGE: u32 = libc::EPOLLET as u32;

/// An epoll instance.
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: the descriptor is new and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        Ok(Epoll { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; 1024] })
    }

    pub fn add(&self, fd: RawFd, token: u64, events: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: the pointer is to a value on this stack.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) }).map(drop)
    }

    /// Waits for at most `timeout_ms` (-1: for ever). How many there are; [`Epoll::event`] tells each.
    pub fn wait(&mut self, timeout_ms: i32) -> io::Result<usize> {
        let (events, room) = (self.events.as_mut_ptr(), self.events.len() as i32);
        // SAFETY: the pointer and the length are those of the vector of events.
        match check(unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events, room, timeout_ms) }) {
            Ok(count) => Ok(count as usize),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// The token and the readiness of an event of the last wait.
    pub fn event(&self, at: usize) -> (u64, u32) {
        let event = self.events[at];
        (event.u64, event.events)
    }
}

/// Room for several datagrams with their addresses, for `recvmmsg` and `sendmmsg`.
pub struct Batch {
    headers: Vec<libc::mmsghdr>,
    parts: Vec<libc::iovec>,
    addresses: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    bytes: Vec<u8>,
    bytes_each: usize,
}

/// Room for one control message with an integer.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 32]);

impl Batch {
    /// Room for `count` pieces of `bytes_each` bytes.
    pub fn new(count: usize, bytes_each: usize) -> Batch {
        // SAFETY: zero is a valid value of these plain structures.
        let (header, address) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        Batch {
            headers: vec![header; count],
            parts: vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; count],
            addresses: vec![address; count],
            controls: vec![Control([0; 32]); count],
            bytes: vec![0; count * bytes_each],
            bytes_each,
        }
    }

    fn aim(&mut self, at: usize, len: usize) {
        self.parts[at].iov_base = self.bytes[at * self.bytes_each..].as_mut_ptr().cast();
        self.parts[at].iov_len = len;
        let header = &mut self.headers[at].msg_hdr;
        header.msg_iov = &raw mut self.parts[at];
        header.msg_iovlen = 1;
        header.msg_flags = 0;
    }

    /// Receives as many as there are, up to the room.
    pub fn recv(&mut self, fd: RawFd) -> io::Result<usize> {
        for at in 0..self.headers.len() {
            self.aim(at, self.bytes_each);
            let header = &mut self.headers[at].msg_hdr;
            header.msg_name = (&raw mut self.addresses[at]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_control = (&raw mut self.controls[at]).cast();
            header.msg_controllen = size_of::<Control>();
        }
        let (headers, count) = (self.headers.as_mut_ptr(), self.headers.len() as u32);
        // SAFETY: each header points to parts, bytes, address and control of this batch, which is borrowed.
        check(unsafe { libc::recvmmsg(fd, headers, count, libc::MSG_DONTWAIT, std::ptr::null_mut()) })
            .map(|n| n as usize)
    }

    /// The bytes of a received piece.
    pub fn piece(&self, at: usize) -> &[u8] {
        &self.bytes[at * self.bytes_each..][..self.headers[at].msg_len as usize]
    }

    /// The length of the datagrams of which a received piece consists.
    pub fn segment_len(&self, at: usize) -> usize {
        let header = &self.headers[at].msg_hdr;
        // SAFETY: the header was filled by the last receive and its control memory belongs to this batch.
        unsafe {
            let control = libc::CMSG_FIRSTHDR(header);
            if !control.is_null()
                && (*control).cmsg_level == libc::SOL_UDP
                && (*control).cmsg_type == libc::UDP_GRO
            {
                return libc::CMSG_DATA(control).cast::<i32>().read_unaligned() as usize;
            }
        }
        self.headers[at].msg_len as usize
    }

    /// Sends the first `count` received pieces back to where they came from, cut as they were. How many left.
    pub fn send_back(&mut self, fd: RawFd, count: usize) -> io::Result<usize> {
        for at in 0..count {
            let (len, segment) = (self.headers[at].msg_len as usize, self.segment_len(at));
            self.aim(at, len);
            self.cut(at, if segment < len { segment as u16 } else { 0 });
        }
        self.send_first(fd, count)
    }

    /// Puts bytes into a piece, to be cut into datagrams of `segment` bytes (0: not at all).
    pub fn fill(&mut self, at: usize, len: usize, segment: u16, write: impl FnOnce(&mut [u8])) {
        write(&mut self.bytes[at * self.bytes_each..][..len]);
        self.aim(at, len);
        self.headers[at].msg_hdr.msg_name = std::ptr::null_mut();
        self.headers[at].msg_hdr.msg_namelen = 0;
        self.cut(at, segment);
    }

    fn cut(&mut self, at: usize, segment: u16) {
        let header = &mut self.headers[at].msg_hdr;
        if segment == 0 {
            header.msg_control = std::ptr::null_mut();
            header.msg_controllen = 0;
            return;
        }
        header.msg_control = (&raw mut self.controls[at]).cast();
        // SAFETY: the control memory has room for one header and an integer.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(2) as usize;
            let control = libc::CMSG_FIRSTHDR(header);
            (*control).cmsg_level = libc::SOL_UDP;
            (*control).cmsg_type = libc::UDP_SEGMENT;
            (*control).cmsg_len = libc::CMSG_LEN(2) as usize;
            libc::CMSG_DATA(control).cast::<u16>().write_unaligned(segment);
        }
    }

    /// Sends the first `count` pieces as they were filled. How many left.
    pub fn send_first(&mut self, fd: RawFd, count: usize) -> io::Result<usize> {
        // SAFETY: each header points to parts, bytes, address and control of this batch, which is borrowed.
        check(unsafe { libc::sendmmsg(fd, self.headers.as_mut_ptr(), count as u32, libc::MSG_DONTWAIT) })
            .map(|n| n as usize)
    }
}

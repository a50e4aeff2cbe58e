//! What usher sets on its TCP sockets: when silence is an end, and what the kernel may hold for each.
//!
//! One table of timers, a row per leg. On Linux TCP_USER_TIMEOUT, where it is set, decides alone
//! (`tcp_keepalive_timer`, `tcp_probe_timer`, `tcp_retransmit_timer`): keepalive ends a connection at the first
//! probe that is due after so long without a packet from the peer, provided that at least one was sent before,
//! whatever TCP_KEEPCNT says; what was sent and not acknowledged, and a window that stays at zero although the
//! peer acknowledges each probe (RFC 9293 section 3.8.6.1 would wait without limit), end it after the same
//! time. So it has to be longer than the probes that may be lost and than the pauses of a live peer.
//! TCP_KEEPCNT says the same to systems that count.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

/// When the silence of a peer is the end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// After this long without a packet the peer is probed (TCP_KEEPIDLE).
    pub idle: Duration,
    /// Between probes that are not answered (TCP_KEEPINTVL).
    pub interval: Duration,
    /// This many unanswered probes end it, where the system counts (TCP_KEEPCNT).
    pub probes: u32,
    /// The longest without an acknowledgement, or with a window of zero (TCP_USER_TIMEOUT).
    pub user_timeout: Duration,
}

/// A client's connection. Probed below the five minutes of common NAT boxes and no more often, which wakes
/// phones. It survives six lost probes and ten minutes in which its client does not read; a client that is
/// gone is noticed 11 minutes after its last packet, or after what it did not acknowledge.
pub const CLIENT: Timers = Timers {
    idle: Duration::from_secs(240),
    interval: Duration::from_secs(60),
    probes: 7,
    user_timeout: Duration::from_secs(650),
};

/// A connection to a mail server: a session ends with either of its legs, so that both bear the same.
pub const BACKEND: Timers = CLIENT;

/// A connection to a directory server, that of the watch included: it survives three lost probes, and a
/// server that is gone is noticed after 13 s, so that no login meets a pooled connection that died long ago
/// and no change waits for one. Operations have deadlines of their own (`attempt_timeout`).
pub const DIRECTORY: Timers = Timers {
    idle: Duration::from_secs(5),
    interval: Duration::from_secs(2),
    probes: 4,
    user_timeout: Duration::from_secs(12),
};

impl Timers {
    /// Sets them.
    ///
    /// # Errors
    /// The first option that the system refuses.
    pub fn set<'a>(&self, socket: impl Into<SockRef<'a>>) -> io::Result<()> {
        let socket = socket.into();
        let keepalive = TcpKeepalive::new().with_time(self.idle).with_interval(self.interval);
        socket.set_tcp_keepalive(&keepalive.with_retries(self.probes))?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(self.user_timeout))?;
        Ok(())
    }
}

/// What the kernel may hold for a connection that a client has not logged in on: bytes that came and were
/// not read. It doubles it, for its own bookkeeping.
const UNREAD_BEFORE_LOGIN: usize = 8 * 1024;
/// The same of a session, either leg: the receive window. 256 KiB at 20 ms are 100 Mbit/s for each session.
/// Without a bound Linux lets it grow to tcp_rmem's 6 MiB and more, which a sender fills while the other
/// side does not read. The system cuts it to net.core.rmem_max.
const UNREAD: usize = 256 * 1024;
/// Bytes that were written and not sent yet, before a login and in a session (TCP_NOTSENT_LOWAT): what is on
/// its way comes on top. The kernel wakes the writer at half of it, so that a small one costs CPU: with 128 KiB a
/// GiB took 8 % more, with this 5 %; with 512 KiB a session that does not read takes more than 1 MiB.
const UNSENT_BEFORE_LOGIN: u32 = 8 * 1024;
const UNSENT: u32 = 384 * 1024;

/// Sets what every mail connection wants: no waiting for a full segment, an end to silence, and bounds on
/// what the kernel holds. A socket that listens hands its options on to what it accepts; so it must have
/// the window of a session, as the scale of windows is agreed upon with the first packet (RFC 7323).
///
/// # Errors
/// The first option that the system refuses.
pub fn tune<'a>(socket: impl Into<SockRef<'a>>, timers: &Timers) -> io::Result<()> {
    let socket = socket.into();
    socket.set_tcp_nodelay(true)?;
    hold(&socket, UNREAD, UNSENT)?;
    timers.set(socket)
}

/// Until the login the kernel holds little of what a client sends and does not wait for.
pub fn before_login<'a>(socket: impl Into<SockRef<'a>>) {
    // What cannot be set costs memory, not the login.
    let _ = hold(&socket.into(), UNREAD_BEFORE_LOGIN, UNSENT_BEFORE_LOGIN);
}

/// A session has what every relayed connection has.
pub fn after_login<'a>(socket: impl Into<SockRef<'a>>) {
    let _ = hold(&socket.into(), UNREAD, UNSENT);
}

/// Whether less than half of what may wait unsent does (TCP_NOTSENT_LOWAT), or the connection is over.
///
/// # Errors
/// The system's.
pub fn is_writable(socket: impl AsFd) -> io::Result<bool> {
    let mut asked = [PollFd::new(&socket, PollFlags::OUT)];
    Ok(poll(&mut asked, Some(&Timespec::default()))? > 0)
}

/// What a relay runs over.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Whether the connection is over, by a reset or a timer, whatever is still to be read from it.
    fn is_broken(&self) -> bool;
}

impl Transport for TcpStream {
    fn is_broken(&self) -> bool {
        let mut asked = [PollFd::new(self, PollFlags::empty())];
        let told = poll(&mut asked, Some(&Timespec::default()));
        let [asked] = asked;
        told.is_ok_and(|told| told > 0) && asked.revents().intersects(PollFlags::ERR | PollFlags::HUP)
    }
}

fn hold(socket: &SockRef<'_>, unread: usize, unsent: u32) -> io::Result<()> {
    socket.set_recv_buffer_size(unread)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(unsent)?;
    #[cfg(not(target_os = "linux"))]
    let _ = unsent;
    Ok(())
}

/// The backlog of connections; the system lowers it to its own limit.
const BACKLOG: i32 = 4096;

/// Listens at an address. An IPv6 wildcard takes IPv4 too, whatever the system's default
/// (net.ipv6.bindv6only), unless `only_v6` leaves it to another socket.
///
/// # Errors
/// The system's reason: the address is in use, is not local, or the port needs a capability.
pub fn listen(address: SocketAddr, only_v6: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    // A restart must not wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Refuses a socket that accepts no connections (SO_ACCEPTCONN, socket(7)): a service manager may have opened it for
/// datagrams.
///
/// # Errors
/// It does not listen.
pub fn require_listening<'a>(socket: impl Into<SockRef<'a>>) -> io::Result<()> {
    if socket.into().is_listener()? {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket that was handed over does not listen"))
}

/// Where a socket listens; an IPv4 address in IPv6 notation is the IPv4 address.
pub fn local_address(socket: &impl AsFd) -> Option<SocketAddr> {
    let address = SockRef::from(socket).local_addr().ok()?.as_socket()?;
    Some(mapped(address))
}

/// `[::ffff:192.0.2.1]:993` is 192.0.2.1:993 for the system.
#[must_use]
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::from((ip, address.port())),
        IpAddr::V6(_) => address,
    }
}

/// Whether a listening socket is an IPv6 wildcard that takes IPv4 too.
pub fn takes_both(socket: &impl AsFd) -> bool {
    let is_wildcard = local_address(socket).is_some_and(|at| at.is_ipv6() && at.ip().is_unspecified());
    is_wildcard && SockRef::from(socket).only_v6().is_ok_and(|only| !only)
}

/// A socket that will connect to `address`, tuned for a mail server, from this address of the machine if one
/// is given, by whatever port is free towards its peer then.
///
/// # Errors
/// `from` is not this machine's (EADDRNOTAVAIL), or there are no descriptors left.
pub fn towards(address: SocketAddr, from: Option<IpAddr>) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Before the connect, for the window's scale. Options that cannot be set cost speed or a late end.
    let _ = tune(&socket, &BACKEND);
    if let Some(from) = from {
        late_port(&socket);
        socket.bind(SocketAddr::new(from, 0))?;
    }
    Ok(socket)
}

/// Leaves the choice of a port to the connect (IP_BIND_ADDRESS_NO_PORT, ip(7)): a bind would take one
/// that no other connection from this address may have, wherever it goes. A kernel that does not know
/// the option takes it at the bind.
fn late_port(socket: &TcpSocket) {
    #[cfg(target_os = "linux")]
    let _ = nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true);
    #[cfg(not(target_os = "linux"))]
    let _ = socket;
}

/// What the kernel holds for all TCP connections of the machine, and from where on it refuses more
/// (net.ipv4.tcp_mem), in bytes; `None` where it does not say.
#[must_use]
pub fn kernel_memory() -> Option<(u64, u64)> {
    let page = rustix::param::page_size() as u64;
    let sockets = std::fs::read_to_string("/proc/net/sockstat").ok()?;
    let tcp = sockets.lines().find_map(|line| line.strip_prefix("TCP: "))?;
    let mut words = tcp.split(' ');
    words.find(|word| *word == "mem")?;
    let held: u64 = words.next()?.parse().ok()?;
    let limits = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_mem").ok()?;
    let limit: u64 = limits.split_whitespace().nth(2)?.parse().ok()?;
    Some((held.saturating_mul(page), limit.saturating_mul(page)))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// What a socket really has.
    fn timers(socket: &SockRef<'_>) -> Timers {
        assert!(socket.keepalive().unwrap());
        Timers {
            idle: socket.tcp_keepalive_time().unwrap(),
            interval: socket.tcp_keepalive_interval().unwrap(),
            probes: socket.tcp_keepalive_retries().unwrap(),
            user_timeout: socket.tcp_user_timeout().unwrap().unwrap(),
        }
    }

    #[test]
    fn socket_option_table_matches_the_system() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        for row in [CLIENT, BACKEND, DIRECTORY] {
            row.set(&socket).unwrap();
            assert_eq!(timers(&SockRef::from(&socket)), row);
        }
    }

    #[test]
    fn timers_of_each_row_are_consistent() {
        for row in [CLIENT, BACKEND, DIRECTORY] {
            // The fourth probe is sent and may be answered.
            assert!(row.user_timeout > row.idle + 3 * row.interval, "{row:?} does not survive three lost probes");
            // When the probe is due that finds the time over, and what a system that counts makes of it.
            let steps = (row.user_timeout - row.idle).as_secs().div_ceil(row.interval.as_secs()) as u32;
            assert_eq!(row.probes, steps, "{row:?}: both ways of counting end at the same probe");
        }
        let noticed = |row: Timers| row.idle + row.probes * row.interval;
        for session in [CLIENT, BACKEND] {
            assert!(session.user_timeout > Duration::from_secs(600), "ten minutes of a window of zero");
            assert!(noticed(session) < Duration::from_secs(720) && session.user_timeout < Duration::from_secs(720));
            assert!(session.idle < Duration::from_secs(300), "NAT boxes forget a connection after five minutes");
        }
        assert!(noticed(DIRECTORY) <= Duration::from_secs(15), "within seconds");
    }

    #[tokio::test]
    async fn backend_socket_options_are_set_before_connecting() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let to = listener.local_addr().unwrap();
            for from in [None, Some(to.ip())] {
                let stream = towards(to, from).unwrap().connect(to).await.unwrap();
                let socket = SockRef::from(&stream);
                assert_eq!(timers(&socket), BACKEND);
                assert!(socket.tcp_nodelay().unwrap());
                assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT);
                assert!(socket.recv_buffer_size().unwrap() <= 2 * UNREAD, "the kernel doubles what is asked for");
                before_login(&stream);
                assert_eq!(SockRef::from(&stream).recv_buffer_size().unwrap(), 2 * UNREAD_BEFORE_LOGIN);
            }
        }
    }

    #[tokio::test]
    async fn reset_is_detected_behind_unread_data_and_a_close_is_no_reset() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        for resets in [true, false] {
            let mut near = towards(to, None).unwrap().connect(to).await.unwrap();
            let mut far = listener.accept().await.unwrap().0;
            far.write_all(b"not read").await.unwrap();
            near.readable().await.unwrap();
            assert!(!near.is_broken());
            if resets {
                far.set_zero_linger().unwrap();
            }
            drop(far);
            let deadline = tokio::time::Instant::now() + Duration::from_secs(if resets { 10 } else { 1 });
            while !near.is_broken() && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(near.is_broken(), resets);
            let mut read = [0; 8];
            near.read_exact(&mut read).await.unwrap();
        }
    }

    #[test]
    fn kernel_reports_unsent_bytes() {
        let (held, limit) = kernel_memory().unwrap();
        assert!(held < limit, "{held} of {limit}");
    }
}

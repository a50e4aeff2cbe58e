//! Operating system interfaces: limits, socket options, local addresses.

pub(crate) mod allocator;
pub(crate) mod journal;
pub(crate) mod paths;
pub(crate) mod secret_files;
pub(crate) mod socket_file;
pub mod sockets;
pub(crate) mod terminal;

use std::fs::{File, Metadata};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::system::uname;
use socket2::SockRef;

/// Acknowledges what comes next at once, and not after the 40 ms for which Linux waits for something to send
/// along (TCP_QUICKACK, tcp(7)). For a peer that holds back its next segment until then (Nagle's algorithm).
/// Where it cannot be set, it costs those 40 ms.
pub(crate) fn acknowledge_at_once<'a>(socket: impl Into<SockRef<'a>>) {
    #[cfg(target_os = "linux")]
    let _ = socket.into().set_tcp_quickack(true);
}

/// Whether connecting to this address would reach one of these listeners.
#[must_use]
pub(crate) fn is_own(address: SocketAddr, listeners: &[SocketAddr]) -> bool {
    let ip = address.ip().to_canonical();
    listeners.iter().any(|listener| {
        let listens_on = listener.ip().to_canonical();
        listener.port() == address.port() && (listens_on == ip || listens_on.is_unspecified() && is_local(ip))
    })
}

/// Whether an address is local: only then is it its own source address. That it can be bound proves nothing,
/// because net.ipv4.ip_nonlocal_bind, which is set where addresses float (keepalived), allows all.
fn is_local(ip: IpAddr) -> bool {
    // All of 127.0.0.0/8 is here, and answers from 127.0.0.1.
    ip.is_unspecified() || ip.is_loopback() || source_towards(ip).is_ok_and(|source| source == ip)
}

/// Where a packet to this address would come from. None is sent: UDP connects by choosing a route.
fn source_towards(ip: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // Any port will do, except 0.
    socket.connect((ip, 9))?;
    Ok(socket.local_addr()?.ip())
}

/// The user that this process runs as.
#[must_use]
pub(crate) fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The machine's name.
#[must_use]
pub(crate) fn host_name() -> String {
    uname().nodename().to_string_lossy().into_owned()
}

/// Raises the limit of open files to what the system allows; returns the limit in force.
#[must_use]
pub(crate) fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // A limit that cannot be raised stays; the caller reports the consequence.
    let in_force = if setrlimit(Resource::Nofile, wanted).is_ok() { wanted.current } else { limit.current };
    in_force.unwrap_or(u64::MAX)
}

/// Opens a file to read all of it. Only a regular file: a FIFO would be waited for, a device has no end.
///
/// # Errors
/// Those of the system, or what it is instead of a file.
pub(crate) fn open_regular(path: &Path) -> io::Result<(File, Metadata)> {
    // Opening a FIFO waits for a writer otherwise; for a regular file the flag means nothing.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() { "a folder" } else { "a FIFO, a socket or a device" };
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a regular file")));
    }
    Ok((file, metadata))
}

/// What to do about a file that [`open_regular`] does not open, or that cannot be read.
#[must_use]
pub(crate) fn unreadable_advice(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::InvalidInput {
        "name the file itself; a container runtime makes a folder where the file to be mounted is missing"
    } else {
        "it must exist and be readable by the user that usher runs as"
    }
}

/// The sockets that systemd opened for this process, by name (sd_listen_fds_with_names(3)). Must be
/// called once only.
///
/// # Errors
/// What the environment says about them makes no sense.
#[allow(unsafe_code, reason = "a number from the environment becomes a descriptor nowhere else")]
pub(crate) fn activated() -> io::Result<Vec<(String, OwnedFd)>> {
    // SAFETY: sd_listen_fds(3) gives these descriptors, from 3 on, to the process that LISTEN_PID
    // names; nothing else in it knows their numbers, and this is the only call.
    let owned = |(number, name)| (name, unsafe { OwnedFd::from_raw_fd(number) });
    Ok(sd_notify::listen_fds_with_names()?.map(owned).collect())
}

/// The number of a group, by its name or as a number. Names are looked up as the system does it
/// (nsswitch.conf(5)): in /etc/group, by sssd, or wherever else its groups are.
///
/// # Errors
/// There is no such group, or the lookup failed.
pub(crate) fn group_id(name: &str) -> io::Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let group = nix::unistd::Group::from_name(name)?.ok_or_else(|| absent("group", name))?;
    Ok(group.gid.as_raw())
}

/// A user or group that the system does not know.
pub(crate) fn absent(kind: &str, name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("the system has no {kind} {name:?} (`getent` shows those it has)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcard_listener_owns_every_local_address_at_its_port() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let wildcard = [at("[::]:993")];
        assert!(is_own(at("127.0.0.1:993"), &wildcard));
        assert!(is_own(at("127.9.9.9:993"), &wildcard));
        assert!(is_own(at("[::ffff:127.0.0.1]:993"), &wildcard));
        assert!(!is_own(at("127.0.0.1:994"), &wildcard));
        assert!(!is_own(at("192.0.2.1:993"), &wildcard));
        let one = [at("127.0.0.1:993")];
        assert!(is_own(at("127.0.0.1:993"), &one));
        assert!(!is_own(at("127.0.0.2:993"), &one));
    }

    #[test]
    fn only_regular_files_are_opened_without_blocking() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        let status = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(status.success());
        for path in [&fifo, folder.path(), Path::new("/dev/null")] {
            let error = open_regular(path).unwrap_err();
            assert!(error.to_string().ends_with("not a regular file"), "{error}");
        }
        let link = folder.path().join("link");
        std::fs::write(folder.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        assert_eq!(open_regular(&link).unwrap().1.len(), 1);
        assert_eq!(open_regular(&folder.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn open_file_limit_is_never_lowered() {
        let before = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        assert!(raise_open_files() >= before);
    }
}

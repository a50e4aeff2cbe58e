//! Dead peer detection: the timer table on real sockets with packet loss, at a sixtieth of
//! the times that are minutes. These tests measure time.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use usher::internals::sockets::{BACKEND, CLIENT, DIRECTORY, Timers};

use crate::kit::netns::{End, Link};
use crate::kit::wait_limit;

const SCALE: u32 = 60;

fn scaled(timers: Timers) -> Timers {
    let Timers { idle, interval, probes, user_timeout } = timers;
    Timers { idle: idle / SCALE, interval: interval / SCALE, probes, user_timeout: user_timeout / SCALE }
}

/// The latest time at which a dead peer is detected.
fn noticed(timers: &Timers) -> Duration {
    timers.idle + timers.interval * timers.probes
}

/// A connection between the ends: the near one with usher's timers, the far one and its port.
fn connected(cable: &Link, timers: Timers) -> (TcpStream, TcpStream, u16) {
    let listener = cable.at(End::Far, || TcpListener::bind(SocketAddr::new(End::Far.address(), 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let near = cable.at(End::Near, move || TcpStream::connect(address).unwrap());
    timers.set(&near).unwrap();
    near.set_read_timeout(Some(wait_limit(noticed(&timers) * 3))).unwrap();
    (near, listener.accept().unwrap().0, address.port())
}

/// Whether a byte passes in both directions.
fn lives(near: &mut TcpStream, far: &mut TcpStream) {
    far.set_read_timeout(Some(wait_limit(Duration::from_secs(10)))).unwrap();
    let mut byte = [0];
    near.write_all(b"x").unwrap();
    far.read_exact(&mut byte).unwrap();
    far.write_all(b"y").unwrap();
    near.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"y");
}

#[track_caller]
fn survives_lost_probes_and_notices_a_dead_peer(timers: Timers) {
    let cable = Link::new();
    let (mut near, mut far, port) = connected(&cable, timers);
    lives(&mut near, &mut far);
    cable.lose(port);
    let silent = Instant::now();
    while cable.lost(port) < 3 {
        assert!(silent.elapsed() < wait_limit(noticed(&timers) * 3), "it is not probed");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(silent.elapsed() >= timers.idle - Duration::from_secs(1), "probed too early");
    cable.mend(port);
    // The next probe is answered, and the timer restarts.
    lives(&mut near, &mut far);

    cable.lose(port);
    let silent = Instant::now();
    let error = near.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error} after {:?}", silent.elapsed());
    let (least, most) = (timers.idle + 3 * timers.interval, noticed(&timers));
    assert!(silent.elapsed() >= least, "closed after {:?}: three lost probes are no death", silent.elapsed());
    assert!(silent.elapsed() < wait_limit(most * 3), "noticed after {:?}", silent.elapsed());
}

#[test]
fn session_survives_three_lost_probes_and_a_dead_peer_is_noticed() {
    assert_eq!(CLIENT, BACKEND, "one test for both legs");
    survives_lost_probes_and_notices_a_dead_peer(scaled(CLIENT));
}

#[test]
fn directory_connection_survives_three_lost_probes_and_a_dead_server_is_noticed_within_seconds() {
    survives_lost_probes_and_notices_a_dead_peer(DIRECTORY);
}

#[test]
fn session_survives_ten_minutes_in_which_its_peer_does_not_read() {
    let cable = Link::new();
    let timers = scaled(CLIENT);
    let (mut near, mut far, port) = connected(&cable, timers);
    // Until nothing fits, and the window is zero.
    near.set_nonblocking(true).unwrap();
    let (mut sent, mut full) = (0_usize, Instant::now());
    while full.elapsed() < Duration::from_millis(300) {
        match near.write(&[b'x'; 65_536]) {
            Ok(written) => (sent, full) = (sent + written, Instant::now()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
    std::thread::sleep(Duration::from_secs(600) / SCALE);
    near.set_nonblocking(false).unwrap();
    far.set_read_timeout(Some(wait_limit(Duration::from_secs(10)))).unwrap();
    let (mut read, mut buffer) = (0, vec![0; 65_536]);
    while read < sent {
        read += far.read(&mut buffer).unwrap();
    }
    lives(&mut near, &mut far);

    // A peer that dies meanwhile is detected.
    cable.lose(port);
    let silent = Instant::now();
    near.write_all(b"x").unwrap();
    let error = near.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert!(silent.elapsed() >= Duration::from_secs(600) / SCALE, "closed after {:?}", silent.elapsed());
}

/// `net.ipv4.ip_nonlocal_bind`, which keepalived requires, allows binding any address; only those of the
/// machine are local.
#[test]
fn loop_check_flags_a_backend_on_a_listener_port_only_at_local_addresses() {
    let cable = Link::new();
    let config = crate::kit::Config::shared().set("/listeners/0/address", "[::]:4993");
    let check = |address: &str| {
        let config = config.clone().set("/routing/backends/0/imap/address", address);
        let file = config.write().display().to_string();
        let [program, arguments @ ..] = cable.command(End::Near);
        let sysctl = "sysctl -qw net.ipv4.ip_nonlocal_bind=1 net.ipv6.ip_nonlocal_bind=1 && exec \"$@\"";
        let usher = ["sh", "-c", sysctl, "sh", crate::kit::usher::BINARY, "check", "--config", &file];
        crate::kit::process::run(program, &[&arguments[..], &usher].concat(), b"")
    };
    for elsewhere in ["192.0.2.2:4993", "198.51.100.7:4993", "[2001:db8::7]:4993"] {
        check(elsewhere).succeeded();
    }
    for own in ["192.0.2.1:4993", "127.0.0.9:4993", "[::1]:4993"] {
        let said = check(own);
        assert_eq!(said.code, 78, "{own}: {said:#?}");
        assert!(said.stderr.contains("own"), "{own}: {said:#?}");
    }
}

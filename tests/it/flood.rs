//! Many clients at once, most of them useless: a good login still gets through.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::kit::{Config, Imap, PROMISED_SECOND, Usher, password_of};

/// usher's processor time so far, in clock ticks of 10 ms.
fn ticks(usher: &Usher) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", usher.pid())).unwrap();
    let words: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    words[11].parse::<u64>().unwrap() + words[12].parse::<u64>().unwrap()
}

fn connect(port: u16, n: usize) -> Vec<TcpStream> {
    (0..n).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect()
}

#[test]
fn a_good_login_passes_a_thousand_stuck_handshakes() {
    let usher = Usher::start(Config::shared());
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    let mut stuck = connect(usher.imaps_port(), 1_000);
    for socket in stuck.iter_mut().step_by(2) {
        // Half of them begin a handshake: the head of a record that never comes.
        std::io::Write::write_all(socket, &[22, 3, 1, 2, 0, 1]).unwrap();
    }
    let idle: Vec<Imap> = (0..100).map(|_| Imap::tls(usher.imaps_port())).collect();
    let asked = Instant::now();
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    assert!(asked.elapsed() < PROMISED_SECOND, "{:?}", asked.elapsed());
    let asked = Instant::now();
    assert_eq!(usher.http("/live").0, 200);
    usher.metrics();
    assert!(asked.elapsed() < PROMISED_SECOND, "the side port took {:?}", asked.elapsed());
    drop((stuck, idle));
}

#[test]
fn connections_are_limited_and_the_surplus_is_counted() {
    let usher = Usher::start(Config::shared().set("/limits/connections", 2));
    let mut first = Imap::tls(usher.imaps_port());
    let second = Imap::tls(usher.imaps_port());
    assert_eq!(usher.metric("usher_connections", &[]), 2.0);
    assert_eq!(usher.metric("usher_connections_limit", &[]), 2.0);
    let mut third = Imap::silent(usher.imaps_port());
    third.rest();
    usher.wait_metric("usher_connections_refused_total", &[], 1.0);
    first.login("alice", &password_of("alice")).ok();
    drop(second);
    usher.wait_metric("usher_connections", &[], 1.0);
    Imap::tls(usher.imaps_port()).login("bob", &password_of("bob")).ok();
}

#[test]
fn out_of_descriptors_sessions_live_and_logins_come_back() {
    let usher = Usher::start(Config::shared());
    let mut session = Imap::tls(usher.imaps_port());
    session.login("alice", &password_of("alice")).ok();
    let open = std::fs::read_dir(format!("/proc/{}/fd", usher.pid())).unwrap().count() as u64;
    let pid = Pid::from_raw(usher.pid());
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", usher.pid())).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let maximum = line.split_whitespace().nth(1).unwrap().parse().ok();
    let limit = |current| prlimit(pid, Resource::Nofile, Rlimit { current: Some(current), maximum }).unwrap();
    let normal = limit(open + 8);
    let hogs = connect(usher.imaps_port(), 60);
    session.command("NOOP").ok();
    let before = ticks(&usher);
    std::thread::sleep(Duration::from_secs(1)); // the time over which spinning is measured
    let spent = ticks(&usher) - before;
    assert!(spent < 50, "{spent} ticks of 10 ms in a second: it spins");
    session.command("NOOP").ok();
    drop(hogs);
    let asked = Instant::now();
    loop {
        let reply = Imap::try_tls(usher.imaps_port(), &crate::kit::client::Tls::default())
            .map(|mut imap| imap.login("alice", &password_of("alice")));
        match reply {
            Ok(reply) if reply.tagged.starts_with("OK") => break,
            _ => assert!(asked.elapsed() < Duration::from_secs(3), "not well again: {reply:?}"),
        }
    }
    prlimit(pid, Resource::Nofile, normal).unwrap();
}

#[test]
fn a_log_that_nobody_reads_holds_up_no_login() {
    let usher = Usher::start(Config::shared());
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    let unread = usher.log_unread();
    // Each of these leaves lines: more than pipe and queue can hold.
    while usher.metric("usher_log_dropped_total", &[]) < 1.0 {
        for _ in 0..500 {
            Imap::silent(usher.imaps_port()).send("no TLS at all\r\n");
        }
    }
    let asked = Instant::now();
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    assert!(asked.elapsed() < PROMISED_SECOND, "{:?}", asked.elapsed());
    drop(unread);
}

#[test]
fn a_client_before_login_holds_little_memory() {
    const CLIENTS: u64 = 100;
    let usher = Usher::start(Config::shared());
    // Whatever is allocated once is allocated before the measuring.
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    let before = usher.resident_kib();
    let hogs: Vec<Imap> = (0..CLIENTS)
        .map(|n| {
            let mut imap = Imap::tls(usher.imaps_port());
            let more = match n % 3 {
                0 => format!("a LOGIN {{60000+}}\r\n{}", "x".repeat(59_000)),
                1 => format!("a {}", "x".repeat(100_000)),
                _ => format!("a AUTHENTICATE PLAIN {}", "QUFB".repeat(25_000)),
            };
            let _ = imap.try_send(more);
            imap
        })
        .collect();
    let each = usher.resident_kib().saturating_sub(before) / CLIENTS;
    assert!(each <= 128, "{each} KiB for each client before login");
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    drop(hogs);
}

//! Many simultaneous clients, most of them hostile: a valid login still succeeds.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::kit::process::run;
use crate::kit::scripted::{GREETING, Scripted};
use crate::kit::{Config, Imap, PROMISED_SECOND, Usher, password_of, slapd, wait_limit};

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
fn valid_login_passes_a_thousand_stuck_handshakes() {
    let usher = Usher::start(Config::shared());
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    let mut stuck = connect(usher.imaps_port(), 1_000);
    for socket in stuck.iter_mut().step_by(2) {
        // Half of them begin a handshake: the header of a record that never follows.
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
fn connections_are_limited_and_the_excess_is_counted() {
    let config = Config::shared().set("/limits/connections", 2).set("/limits/unauthenticated", 2);
    let usher = Usher::start(config.set("/throttle/exempt", serde_json::json!(["127.0.0.0/8"])));
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
fn sessions_survive_descriptor_exhaustion_and_logins_return() {
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
            _ => assert!(asked.elapsed() < Duration::from_secs(3), "not recovered: {reply:?}"),
        }
    }
    prlimit(pid, Resource::Nofile, normal).unwrap();
}

#[test]
fn unread_log_delays_no_login() {
    let usher = Usher::start(Config::shared());
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    let unread = usher.log_unread();
    // Each of these writes log lines: more than pipe and queue can hold.
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
fn client_before_login_holds_little_memory() {
    const CLIENTS: u64 = 100;
    let usher = Usher::start(Config::shared());
    // One-time allocations are made before the measurement.
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    let before = usher.resident_kib();
    let hogs: Vec<Imap> = (0..CLIENTS)
        .map(|n| {
            let mut imap = Imap::tls(usher.imaps_port());
            let more = match n % 4 {
                0 => format!("a LOGIN {{60000+}}\r\n{}", "x".repeat(59_000)),
                1 => format!("a {}", "x".repeat(100_000)),
                // The longest line that is kept.
                2 => format!("a ID (\"name\" \"{}", "x".repeat(32_700)),
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

/// Kernel memory of usher's connections, in KiB: unread input, written and
/// unacknowledged output, and reserved space.
fn kernel_kib(usher: &Usher) -> u64 {
    let listed = run("ss", &["-tmnpOH"], b"").succeeded().stdout;
    let pid = format!("pid={},", usher.pid());
    let sockets = listed.lines().filter(|line| line.contains(&pid));
    let held = sockets.map(|line| {
        let memory = line.split("skmem:(").nth(1).and_then(|rest| rest.split(')').next()).unwrap();
        let parts = memory.split(',').filter_map(|part| part.strip_prefix(['r', 'w', 'f'])?.parse::<u64>().ok());
        parts.sum::<u64>()
    });
    held.sum::<u64>() / 1024
}

/// Memory of usher and of the kernel for it, in KiB, once it stops growing.
fn settled_kib(usher: &Usher) -> (u64, u64) {
    let deadline = Instant::now() + wait_limit(Duration::from_secs(20));
    let mut before = 0;
    loop {
        let (own, kernels) = (usher.resident_kib(), kernel_kib(usher));
        if own + kernels <= before {
            return (own, kernels);
        }
        assert!(Instant::now() < deadline, "it goes on growing: {own} and {kernels} KiB");
        before = own + kernels;
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The growth per connection since, in KiB: of usher's memory and of the kernel's.
fn grown(usher: &Usher, before: (u64, u64), connections: u64) -> (u64, u64) {
    let now = settled_kib(usher);
    (now.0.saturating_sub(before.0) / connections, now.1.saturating_sub(before.1) / connections)
}

/// In every protocol, with backends that list as much as they can.
#[test]
fn clients_that_do_not_read_replies_hold_little_memory_including_the_kernel() {
    const CLIENTS: u64 = 60;
    for (protocol, question) in [
        ("imap", "a CAPABILITY\r\n"),
        ("pop3", "CAPA\r\n"),
        ("submission", "EHLO x\r\n"),
        ("managesieve", "CAPABILITY\r\n"),
    ] {
        let usher = match protocol {
            "imap" | "pop3" => Usher::start(Config::shared().speaking(protocol, &[1])),
            _ => {
                let usher = Usher::start(crate::capabilities::hostile(protocol));
                usher.wait_metric("usher_backend_probes_total", &[("backend", "server3"), ("result", "ok")], 2.0);
                usher.hup();
                usher
            }
        };
        // One-time allocations are made before the measurement.
        drop((0..10).map(|_| Imap::tls(usher.imaps_port())).collect::<Vec<_>>());
        let before = settled_kib(&usher);
        // In segments of network size: on loopback one write is one packet, of up to 64 KiB.
        let questions = question.repeat(4096 / question.len());
        let hogs: Vec<Imap> = (0..CLIENTS)
            .map(|_| {
                let mut client = Imap::tls(usher.imaps_port());
                (0..64).for_each(|_| client.send(&questions));
                client
            })
            .collect();
        let (own, kernels) = grown(&usher, before, CLIENTS);
        assert!(own + kernels <= 128, "{protocol}: {own} KiB of usher's and {kernels} of the kernel's for each client");
        drop(hogs);
    }
}

#[test]
fn sessions_that_do_not_read_hold_little_memory_including_the_kernel() {
    const SESSIONS: u64 = 40;
    const MESSAGE: usize = 24 << 20;
    let backend = Scripted::tls(|peer| {
        peer.send(GREETING);
        if peer.accept_login().is_some() && peer.command().is_some() {
            let piece = vec![b'x'; 65_536];
            for _ in 0..MESSAGE / piece.len() {
                if !peer.send(&piece) {
                    break;
                }
            }
        }
    });
    let usher = Usher::start(Config::with_directory(slapd()).scripted(&backend));
    let log_in = || {
        let mut imap = Imap::tls(usher.imaps_port());
        imap.login("alice", &password_of("alice")).ok();
        imap
    };
    drop(log_in());
    let before = settled_kib(&usher);
    let mut sessions: Vec<Imap> = (0..SESSIONS).map(|_| log_in()).collect();
    sessions.iter_mut().for_each(|imap| imap.send("f FETCH 1 BODY[]\r\n"));
    let (own, kernels) = grown(&usher, before, SESSIONS);
    assert!(own <= 160 && kernels <= 1024, "{own} KiB of usher's and {kernels} of the kernel's for each session");
    let held = usher.metric("usher_kernel_tcp_memory_bytes", &[]);
    assert!(held > 0.0 && held < usher.metric("usher_kernel_tcp_memory_limit_bytes", &[]), "{held}");
    // It continues where it stopped.
    assert!(sessions[0].bytes(MESSAGE).iter().all(|byte| *byte == b'x'));
}

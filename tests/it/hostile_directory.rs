//! Directories that attack their clients: the process and its sessions survive, its memory is bounded,
//! and the next server answers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::kit::scripted::{Operation, Scripted, ScriptedLdap, ldap_entry, ldap_result};
use super::kit::slapd::Slapd;
use super::kit::{Config, Imap, Usher, password_of, wait_limit};

/// `30 84 <length>` in itself, 20,000 times: 120 KB.
fn nested() -> Vec<u8> {
    let levels = 20_000_u32;
    (0..levels).rev().flat_map(|level| [&[0x30, 0x84][..], &(level * 6).to_be_bytes()].concat()).collect()
}

/// usher with this server before a healthy one.
fn before(good: &Slapd, url: &str, starttls: bool) -> Config {
    let good_url = if starttls { good.url() } else { good.tls_url() };
    Config::with_directory(good)
        .scripted(&Scripted::accepting())
        .set("/directory/servers", json!([url, good_url]))
        .set("/directory/starttls", starttls)
}

fn alice(usher: &Usher) -> Imap {
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("alice", &password_of("alice")).ok();
    imap
}

#[test]
fn nested_reply_ends_neither_the_process_nor_a_session() {
    let good = Slapd::private();
    // Before TLS, to a search, and to a bind.
    for (starttls, hostile) in [(true, Operation::Other(0x77)), (false, Operation::Search), (false, Operation::Bind)] {
        let attacks = Arc::new(AtomicBool::new(false));
        let attacking = Arc::clone(&attacks);
        let attacker = ScriptedLdap::start(move |_, operation, id, request| match operation {
            operation if operation == hostile && attacking.load(Ordering::SeqCst) => Some(nested()),
            Operation::Bind => Some(ldap_result(id, 0x61, 0)),
            Operation::Search => {
                let uid = if request.windows(4).any(|word| word == b"anna") { "anna" } else { "alice" };
                let dn = format!("uid={uid},ou=people,dc=example,dc=com");
                let found = ldap_entry(id, &dn, &[("mailHost", "server3")]);
                Some([found, ldap_result(id, 0x65, 0)].concat())
            }
            // It has no TLS: the healthy server is used from the beginning.
            Operation::Other(_) => Some(ldap_result(id, 0x78, 2)),
        });
        let usher = Usher::start(before(&good, &attacker.url(), starttls).set("/cache/ttl", "100ms"));
        let mut session = alice(&usher);
        attacks.store(true, Ordering::SeqCst);
        // The next server answers instead.
        Imap::tls(usher.imaps_port()).login("anna", &password_of("anna")).ok();
        usher.wait_metric("usher_directory_up", &[("server", &attacker.url())], 0.0);
        drop(alice(&usher));
        session.command("NOOP").ok();
        let counted = || {
            let metrics = usher.metrics().into_iter();
            let malformed =
                metrics.filter(|(name, _)| name.contains("directory_operations") && name.contains("malformed"));
            malformed.map(|(_, count)| count).sum::<f64>()
        };
        // Before TLS the next probe detects it.
        while counted() == 0.0 {
            wait_limit(Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The most memory that was ever resident, in KiB.
fn peak_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

#[test]
fn gigabytes_after_a_header_use_no_memory() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ldap://{}", listener.local_addr().unwrap());
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    std::thread::spawn(move || {
        for (number, mut socket) in listener.incoming().flatten().enumerate() {
            let count = Arc::clone(&count);
            // Alternately to the service account's bind and to the search after it.
            std::thread::spawn(move || flood(&mut socket, number % 2 == 1, &count));
        }
    });
    let good = Slapd::private();
    let usher = Usher::start(before(&good, &url, false).set("/cache/ttl", "100ms"));
    usher.wait_metric("usher_directory_up", &[("server", &url)], 0.0);
    let peak = peak_kib(usher.pid());
    let before = sent.load(Ordering::SeqCst);
    let began = Instant::now();
    // It is probed again and again.
    while sent.load(Ordering::SeqCst) == before && began.elapsed() < wait_limit(Duration::from_secs(20)) {
        drop(alice(&usher));
    }
    drop(alice(&usher));
    let grown = peak_kib(usher.pid()).saturating_sub(peak);
    assert!(peak < 128 * 1024 && grown < 32 * 1024, "a peak of {peak} KiB, and {grown} KiB more");
}

/// A header of 2 GiB and as many bytes after it as the peer reads.
fn flood(socket: &mut TcpStream, after_bind: bool, count: &AtomicU64) {
    let mut request = [0; 4096];
    if after_bind
        && (socket.read(&mut request).unwrap_or(0) == 0 || socket.write_all(&ldap_result(1, 0x61, 0)).is_err())
    {
        return;
    }
    if socket.read(&mut request).unwrap_or(0) == 0 || socket.write_all(b"\x30\x84\x7f\xff\xff\xff\x02\x01\x01").is_err()
    {
        return;
    }
    count.fetch_add(1, Ordering::SeqCst);
    while let Ok(n) = socket.write(&[0; 65_536]) {
        count.fetch_add(n as u64, Ordering::SeqCst);
    }
}

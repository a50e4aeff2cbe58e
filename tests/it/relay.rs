//! After login: every byte both ways, closes forwarded, bounded buffers.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use crate::kit::scripted::{GREETING, Peer, Scripted};
use crate::kit::tools::curl;
use crate::kit::{Config, Imap, Usher, password_of, slapd};

/// Bytes with a long period.
fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// A message of about 50 MB in lines of valid length.
fn large_message() -> Vec<u8> {
    let mut message = b"Subject: large\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: 8bit\r\n\r\n".to_vec();
    for line in noise(48 * 1024 * 1024, 7).chunks(900) {
        message.extend(line.iter().map(|byte| if *byte < 32 { byte + 64 } else { *byte }));
        message.extend(b"\r\n");
    }
    message
}

fn there_and_back(uid: &str) {
    let usher = Usher::start(Config::shared());
    let message = large_message();
    let file = usher.config.file("large", &message);
    let back = usher.config.path("back");
    curl(usher.imaps_port(), uid, "INBOX", &["-T", &file.display().to_string()]).succeeded();
    curl(usher.imaps_port(), uid, "INBOX;MAILINDEX=1", &["-o", &back.display().to_string()]).succeeded();
    let digest = |bytes: &[u8]| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().to_vec();
    let read = std::fs::read(back).unwrap();
    assert_eq!((read.len(), digest(&read)), (message.len(), digest(&message)));
    let resident = usher.resident_kib();
    assert!(resident < 128 * 1024, "a large message is not kept: {resident} KiB");
    let sent = usher.metric("usher_relayed_bytes_total", &[("direction", "in"), ("protocol", "imap")]);
    assert!(sent >= message.len() as f64, "{sent}");
}

#[test]
fn fifty_megabytes_pass_to_dovecot_and_back() {
    there_and_back("big3");
}

#[test]
fn fifty_megabytes_pass_to_cyrus_and_back() {
    there_and_back("big4");
}

/// A backend that accepts every login and then runs the script, with an usher in front.
fn after_login(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> (Scripted, Usher) {
    let backend = Scripted::tls(move |peer| {
        peer.send(GREETING);
        if peer.accept_login().is_some() {
            script(peer);
        }
    });
    let usher = Usher::start(Config::with_directory(slapd()).scripted(&backend));
    (backend, usher)
}

fn alice(usher: &Usher) -> Imap {
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("alice", &password_of("alice")).ok();
    imap
}

fn event<T: Send + 'static>() -> (Mutex<std::sync::mpsc::Sender<T>>, Receiver<T>) {
    let (sender, receiver) = channel();
    (Mutex::new(sender), receiver)
}

const SOON: Duration = Duration::from_secs(10);

#[test]
fn every_byte_passes_unchanged_both_ways() {
    const SIZE: usize = 1 << 20;
    let (_backend, usher) = after_login(|peer| {
        let Some(bytes) = peer.bytes(SIZE) else { return };
        peer.send(&bytes);
        peer.send(noise(SIZE, 3));
        peer.wait_for_end();
    });
    let mut imap = alice(&usher);
    let bytes = noise(SIZE, 5);
    for chunk in bytes.chunks(7_919) {
        imap.send(chunk);
    }
    assert!(imap.bytes(SIZE) == bytes, "what was sent comes back");
    assert!(imap.bytes(SIZE) == noise(SIZE, 3), "and what the backend says comes too");
}

#[test]
fn client_half_close_leaves_the_other_direction_open() {
    let (_backend, usher) = after_login(|peer| {
        peer.wait_for_end();
        // The reply begins only now, after the client's half-close.
        for _ in 0..16 {
            peer.send(noise(65_536, 9));
        }
    });
    let mut imap = alice(&usher);
    imap.half_close();
    for _ in 0..16 {
        assert!(imap.bytes(65_536) == noise(65_536, 9));
    }
    imap.expect_clean_end();
    let end = usher.wait_log("end", |_| true);
    assert!(["closed", "client_closed"].contains(&end["cause"].as_str().unwrap()), "{end}");
}

#[test]
fn backend_half_close_leaves_the_other_direction_open() {
    let (sender, received) = event();
    let (_backend, usher) = after_login(move |peer| {
        peer.send("* BYE\r\n");
        peer.half_close();
        let _ = sender.lock().unwrap().send(peer.bytes(100_000));
    });
    let mut imap = alice(&usher);
    assert_eq!(imap.line(), "* BYE");
    imap.expect_clean_end();
    imap.send(noise(100_000, 4));
    let bytes = received.recv_timeout(SOON).unwrap();
    assert!(bytes == Some(noise(100_000, 4)), "bytes after the backend's end arrive");
}

#[test]
fn backend_close_reaches_the_client_after_its_last_bytes() {
    let (_backend, usher) = after_login(|peer| {
        peer.send("* BYE autologout\r\n");
    });
    let mut imap = alice(&usher);
    assert_eq!(imap.line(), "* BYE autologout");
    imap.rest();
    drop(imap);
    let end = usher.wait_log("end", |_| true);
    assert!(["closed", "backend_closed", "backend_error"].contains(&end["cause"].as_str().unwrap()), "{end}");
    usher.wait_metric("usher_sessions", &[("backend", "server3")], 0.0);
}

#[test]
fn reset_frees_both_sides_at_once() {
    let (sender, ended) = event();
    let (_backend, usher) = after_login(move |peer| {
        peer.wait_for_end();
        let _ = sender.lock().unwrap().send(());
    });
    let imap = alice(&usher);
    usher.wait_metric("usher_sessions", &[("backend", "server3")], 1.0);
    imap.reset();
    ended.recv_timeout(Duration::from_secs(5)).expect("the backend's side ends");
    usher.wait_metric("usher_connections", &[], 0.0);
    let end = usher.wait_log("end", |_| true);
    assert_eq!(end["cause"], "client_error", "{end}");
    assert_eq!(usher.metric("usher_sessions_ended_total", &[("cause", "client_error")]), 1.0);
}

#[test]
fn end_event_counts_time_and_bytes() {
    let (_backend, usher) = after_login(Peer::reply_to_everything);
    let mut imap = alice(&usher);
    imap.command("NOOP").ok();
    imap.command("LOGOUT").ok();
    imap.rest();
    drop(imap);
    let (login, end) = (usher.login("alice"), usher.wait_log("end", |_| true));
    assert_eq!(end["session"], login["session"], "{end}");
    assert_eq!(end["bytes_in"].as_u64().unwrap(), "t2 NOOP\r\nt3 LOGOUT\r\n".len() as u64, "{end}");
    assert_eq!(end["bytes_out"].as_u64().unwrap(), "t2 OK did NOOP\r\nt3 OK did LOGOUT\r\n".len() as u64, "{end}");
    assert!(end["duration_ms"].is_number(), "{end}");
}

#[test]
fn client_that_does_not_read_costs_only_its_buffers() {
    const SENT: usize = 200 << 20;
    let (sender, stuck) = event();
    let (_backend, usher) = after_login(move |peer| {
        for _ in 0..SENT / 65_536 {
            if !peer.send(noise(65_536, 9)) {
                break;
            }
            let _ = sender.lock().unwrap().send(());
        }
    });
    let mut imap = alice(&usher);
    let before = usher.resident_kib();
    // The backend blocks when every buffer on the path is full.
    let mut pieces = 0;
    while stuck.recv_timeout(Duration::from_millis(700)).is_ok() {
        pieces += 1;
    }
    assert!(pieces * 65_536 < SENT, "the backend never blocked");
    let grown = usher.resident_kib().saturating_sub(before);
    assert!(grown < 2 * 1024, "{grown} KiB for a client that does not read");
    // It continues where it stopped.
    for _ in 0..64 {
        assert!(imap.bytes(65_536) == noise(65_536, 9));
    }
}

#[test]
fn silent_session_ends_at_the_idle_limit() {
    let backend = Scripted::accepting();
    let usher = Usher::start(Config::with_directory(slapd()).scripted(&backend).set("/limits/idle_timeout", "1s"));
    let mut imap = alice(&usher);
    imap.command("NOOP").ok();
    // RFC 3501 section 5.4 and 3.4.
    assert_eq!(imap.line(), "* BYE Disconnected for inactivity");
    imap.expect_clean_end();
    let end = usher.wait_log("end", |_| true);
    assert_eq!(end["cause"], "idle", "{end}");
}

#[test]
fn idle_works_through_the_relay() {
    let usher = Usher::start(Config::shared());
    let mut watcher = Imap::tls(usher.imaps_port());
    watcher.login("quote", &password_of("quote")).ok();
    watcher.command("SELECT INBOX").ok();
    watcher.send("i IDLE\r\n");
    assert!(watcher.line().starts_with("+ "));
    let mut writer = Imap::tls(usher.imaps_port());
    writer.login("quote", &password_of("quote")).ok();
    writer.command("APPEND INBOX {4+}\r\nx: y").ok();
    while !watcher.line().ends_with("EXISTS") {}
    watcher.send("DONE\r\n");
    watcher.reply("i").ok();
}

#[test]
fn sessions_leak_no_descriptors() {
    let (_backend, usher) = after_login(Peer::reply_to_everything);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", usher.pid())).unwrap().count();
    let session = |n: usize| {
        let mut imap = alice(&usher);
        match n % 3 {
            0 => drop(imap.command("LOGOUT").ok()),
            1 => imap.reset(),
            _ => drop(imap),
        }
    };
    session(0);
    usher.wait_metric("usher_connections", &[], 0.0);
    let before = descriptors();
    (0..60).for_each(session);
    usher.wait_metric("usher_connections", &[], 0.0);
    usher.wait_metric("usher_sessions", &[], 0.0);
    let after = descriptors();
    assert!(after <= before + 3, "{before} before, {after} after");
}

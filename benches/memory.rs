//! Benchmarks of memory: the cost of a session, the memory left after a burst, and that usher does not
//! grow with the number of logins. They take minutes and need 20,000 descriptors:
//!
//! ```sh
//! ulimit -n 20000; cargo bench --bench memory
//! ```
//!
//! `docs/developer/benchmarks.md` has the figures.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a program for developers"
)]

#[path = "../tests/it/kit/mod.rs"]
#[allow(dead_code, unused_imports, reason = "a part of the tests' kit")]
mod kit;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kit::scripted::Scripted;
use kit::{Config, Imap, Usher, password_of, slapd, start_deadline};

/// Sessions of the burst.
const SESSIONS: usize = 2_000;
/// Threads that log in.
const CLIENTS: usize = 4;
/// Time after a burst until its memory must be returned.
const SETTLED: Duration = Duration::from_secs(30);

/// The proportional set size of usher in KiB.
fn pss_kib(usher: &Usher) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", usher.pid())).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn main() {
    a_burst_gives_its_memory_back();
    a_hundred_thousand_logins_leave_nothing_behind();
}

fn descriptors(usher: &Usher) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", usher.pid())).unwrap().count()
}

fn start(peer: &Scripted) -> Usher {
    let config = Config::with_directory(slapd()).scripted(peer).set("/log/level", "info");
    // All clients log in as alice, without limits.
    let config = config.set("/throttle/sessions_per_user", serde_json::json!({"mode": "dry_run"}));
    let usher = Usher::start(config.set("/throttle/logins_per_second", serde_json::json!({"mode": "dry_run"})));
    login(&usher);
    usher
}

fn login(usher: &Usher) -> Imap {
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("alice", &password_of("alice")).ok();
    imap
}

fn a_burst_gives_its_memory_back() {
    let peer = Scripted::accepting();
    let usher = start(&peer);
    usher.wait_metric("usher_connections", &[], 0.0);
    let idle = pss_kib(&usher);
    for round in 1..=2 {
        start_deadline();
        let sessions: Vec<Imap> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..CLIENTS)
                .map(|_| scope.spawn(|| (0..SESSIONS / CLIENTS).map(|_| login(&usher)).collect::<Vec<_>>()))
                .collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        let full = pss_kib(&usher);
        drop(sessions);
        usher.wait_metric("usher_connections", &[], 0.0);
        let just_after = pss_kib(&usher);
        let ended = Instant::now();
        let mut least = just_after;
        while ended.elapsed() < SETTLED {
            // There is no event to wait for.
            std::thread::sleep(Duration::from_millis(500));
            least = least.min(pss_kib(&usher));
        }
        println!(
            "round {round}: idle {idle} KiB, {SESSIONS} sessions {full} KiB ({} KiB each), \
             after logout {just_after} KiB, within {SETTLED:?} {least} KiB",
            (full - idle) / SESSIONS as u64
        );
        assert!(least < idle + (full - idle) / 4, "three quarters of a burst are returned");
    }
}

fn a_hundred_thousand_logins_leave_nothing_behind() {
    const LOGINS: usize = 100_000;
    const SAMPLE: usize = 10_000;
    let peer = Scripted::accepting();
    let usher = start(&peer);
    let done = AtomicUsize::new(0);
    let mut samples = Vec::new();
    for _ in 0..LOGINS / SAMPLE {
        let goal = done.load(Ordering::SeqCst) + SAMPLE;
        let began = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    start_deadline();
                    while done.fetch_add(1, Ordering::SeqCst) < goal {
                        if done.load(Ordering::Relaxed).is_multiple_of(500) {
                            start_deadline();
                        }
                        login(&usher).command("LOGOUT").ok();
                    }
                });
            }
        });
        done.store(goal, Ordering::SeqCst);
        start_deadline();
        usher.wait_metric("usher_connections", &[], 0.0);
        let sample = (pss_kib(&usher), descriptors(&usher));
        println!("{goal} logins: {} KiB, {} descriptors, {:?}", sample.0, sample.1, began.elapsed());
        samples.push(sample);
    }
    // The first tenth fills everything with a limit: tickets, caches, threads.
    let (first, last) = (samples[0], samples[samples.len() - 1]);
    assert!(last.0 < first.0 + 2_048, "{samples:?} KiB");
    // The number of connections to the directory may vary.
    assert!(last.1 <= first.1 + 2, "{samples:?} descriptors");
}

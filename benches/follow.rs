//! Time from an edit in the directory to the new decision: a real slapd, 10,000 users with cached
//! decisions, 1,000 open sessions, concurrent logins.
//!
//! The time is measured from just before the edit is sent to usher's line "route changed", after which
//! no login uses the old value. Logins that went to the old server more than a second after slapd had
//! acknowledged the edit are counted. `docs/developer/benchmarks.md` has results.
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

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use ldap3::{LdapConnAsync, Mod};
use serde_json::Value;

use kit::scripted::Scripted;
use kit::slapd::{Options, SYNCPROV, Slapd};
use kit::users::{SUFFIX, User};
use kit::{Config, Imap, Usher, password_of};

const USERS: usize = 10_000;
const SESSIONS: usize = 1_000;
const EDITS: usize = 200;
const CLIENTS: usize = 4;

fn name(number: usize) -> String {
    format!("user{number}")
}

fn main() {
    // `cargo test --benches` runs this without the argument.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let entries: String = (0..USERS).map(|number| User::new(&name(number), Some("server3")).ldif()).collect();
    let slapd =
        Slapd::with(Options { modules: &["syncprov"], database: SYNCPROV, entries: &entries, ..Options::default() });
    let servers = [Scripted::accepting(), Scripted::accepting()];
    let config = Config::with_directory(&slapd)
        .backend("server3", servers[0].port, &["server3"])
        .backend("server4", servers[1].port, &["server4"])
        .set("/routing/backends/1/imap/server_name", "server3.example.com")
        .set("/directory/watch", "sync")
        .set("/cache/ttl", "1h")
        // The benchmark exceeds the default of 1,000 a second.
        .set("/throttle/logins_per_second", serde_json::json!({"mode": "dry_run"}))
        .set("/log/level", "info");
    // The thread that starts usher gets a deadline of a minute; this thread needs longer.
    let usher = std::thread::spawn(move || Usher::start(config)).join().expect("usher starts");
    usher.wait_log("LDAP change notification active", |_| true);
    let port = usher.imaps_port();

    let sessions: Vec<Imap> = parallel(USERS, |number| {
        let mut imap = Imap::tls(port);
        imap.login(&name(number), &password_of(&name(number))).ok();
        (number < SESSIONS).then_some(imap)
    });
    assert_eq!((usher.metric("usher_cache_entries", &[]), sessions.len()), (USERS as f64, SESSIONS));

    usher.wait_metric("usher_sessions", &[], SESSIONS as f64);
    // Every tenth edited user has a session, which ends.
    let with_session = EDITS.div_ceil(10);
    let edited: Vec<usize> = (0..EDITS).map(|edit| if edit % 10 == 0 { edit } else { SESSIONS + edit }).collect();
    let (over, logins) = (AtomicBool::new(false), AtomicUsize::new(0));
    let acknowledged = std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (over, logins, edited) = (&over, &logins, &edited);
            scope.spawn(move || {
                for number in edited.iter().cycle().skip(client * 37).step_by(3) {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    Imap::tls(port).login(&name(*number), &password_of(&name(*number))).ok();
                    logins.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let acknowledged = edit(&slapd, &edited);
        std::thread::sleep(Duration::from_secs(3));
        over.store(true, Ordering::Relaxed);
        acknowledged
    });

    let log = usher.logged();
    let mut took: Vec<f64> = Vec::new();
    for line in log.iter().filter(|line| line["message"] == "route changed") {
        took.push(second(line) - acknowledged[line["dn"].as_str().unwrap()].0);
    }
    took.sort_by(f64::total_cmp);
    let late = log.iter().filter(|line| {
        let edited = line["dn"].as_str().and_then(|dn| acknowledged.get(dn));
        line["message"] == "login" && line["backend"] == "server3" && edited.is_some_and(|at| second(line) > at.1 + 1.0)
    });
    println!(
        "{} users cached, {} sessions, {} logins during the edits; {} edits",
        USERS,
        SESSIONS,
        logins.into_inner(),
        took.len()
    );
    let at = |share: usize| took[(took.len() - 1) * share / 100] * 1_000.0;
    println!("edit to decision: median {:.2} ms, 95 % {:.2} ms, longest {:.2} ms", at(50), at(95), at(100));
    println!("logins to the old server more than a second after the edit: {}", late.count());
    // A session of a concurrent login may also be found before it has ended.
    let ended = usher.metric("usher_sessions_ended_total", &[("cause", "moved")]);
    println!("sessions ended by their user's move: {ended}, of which {with_session} had been open since the start");
    assert!(ended >= with_session as f64, "{ended}");
    assert!(usher.metric("usher_sessions", &[]) >= (SESSIONS - with_session) as f64, "other sessions stay open");
    println!("memory of usher: {:.1} MiB", usher.resident_kib() as f64 / 1024.0);
    drop(sessions);
}

/// Runs `work` for each number in a few threads and collects its results.
fn parallel<T: Send>(count: usize, work: impl Fn(usize) -> Option<T> + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let worker = || {
            let numbers = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
            numbers.take_while(|number| *number < count).filter_map(&work).collect::<Vec<_>>()
        };
        let workers: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

/// Moves users one after another. Returns by DN when each edit was sent and acknowledged.
fn edit(slapd: &Slapd, users: &[usize]) -> HashMap<String, (f64, f64)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (connection, mut ldap) = LdapConnAsync::new(&slapd.url()).await.unwrap();
        tokio::spawn(async move { drop(connection.drive().await) });
        ldap.simple_bind(&format!("cn=root,{SUFFIX}"), "root").await.unwrap().success().unwrap();
        let mut times = HashMap::new();
        for number in users {
            let dn = User::new(&name(*number), None).dn();
            let sent = now();
            let change = vec![Mod::Replace("mailHost".to_owned(), HashSet::from(["server4".to_owned()]))];
            ldap.modify(&dn, change).await.unwrap().success().unwrap();
            times.insert(dn, (sent, now()));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        times
    })
}

/// Seconds of this day.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64() % 86_400.0
}

/// When a line was written, in seconds of its day.
fn second(line: &Value) -> f64 {
    let time = &line["timestamp"].as_str().unwrap()[11..26];
    let parts: Vec<f64> = time.split(':').map(|part| part.trim_end_matches('Z').parse().unwrap()).collect();
    parts[0] * 3_600.0 + parts[1] * 60.0 + parts[2]
}

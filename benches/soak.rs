//! The soak test, run by `benches/soak`: clients that log in, guess passwords, idle, transfer mail and
//! reset connections, while users move, the configuration is reloaded, and the backend and the
//! directory restart or freeze, at random for the requested time.
//!
//! Failures while a server is unreachable are excused and counted; bytes that differ, a wrong
//! password that is accepted and a user on the wrong server are always errors. When all clients have
//! disconnected, their sessions, descriptors and memory must be freed.

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

use std::collections::BTreeMap;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kit::dovecot::Dovecot;
use kit::slapd::Slapd;
use kit::{Config, Imap, User, Usher, cyrus, password_of, shared};

/// Users that work concurrently; logins of alice show when an outage is over.
const WORKERS: [&str; 8] = ["anna", "bytes3", "sync3", "big3", "bob", "ben", "sync4", "big4"];
/// How long a decision is cached, and the time after which a move must be in effect.
const TTL: &str = "1s";
const MOVED_FOR_CERTAIN: Duration = Duration::from_millis(2500);

/// SplitMix64: the same seed, the same choices.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn pause(&mut self, most: u64) {
        std::thread::sleep(Duration::from_millis(self.roll(most)));
    }
}

/// A user's mail server, and since when.
#[derive(Clone, Copy, PartialEq)]
struct Home {
    server: &'static str,
    since: Instant,
}

/// State shared by the workers and the thread that causes moves and outages.
struct Run {
    port: u16,
    homes: Vec<Mutex<Home>>,
    over: AtomicBool,
    /// Outages so far, and current ones.
    outages: AtomicU64,
    lasting: AtomicU64,
    /// The directory does not respond, or usher may not yet have marked it up again.
    directory_down: AtomicBool,
    logins: AtomicU64,
    tally: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    faults: Mutex<Vec<String>>,
}

impl Run {
    fn count(&self, what: &'static str, how: &'static str) {
        *self.tally.lock().unwrap().entry((what, how)).or_default() += 1;
    }

    fn fault(&self, what: &'static str, text: String) {
        self.count(what, "WRONG");
        self.faults.lock().unwrap().push(format!("{what}: {text}"));
    }

    /// Runs a step. An `Err` is always an error; a panic of the kit, which means that a reply was
    /// unexpected or missing, only if no server was unreachable at that time.
    fn attempt(&self, what: &'static str, run: impl FnOnce() -> Result<(), String>) {
        let (outages, lasting) = (self.outages.load(Ordering::SeqCst), self.lasting.load(Ordering::SeqCst));
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => self.count(what, "as expected"),
            Ok(Err(text)) => self.fault(what, text),
            Err(_) if lasting > 0 || self.outages.load(Ordering::SeqCst) > outages => {
                self.count(what, "hit by an outage");
            }
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
                self.fault(what, text.to_owned());
            }
        }
    }

    fn connect(&self) -> Imap {
        Imap::tls(self.port)
    }

    fn login(&self, imap: &mut Imap, uid: &str) {
        imap.login(uid, &password_of(uid)).ok();
        self.logins.fetch_add(1, Ordering::SeqCst);
    }

    /// Logs in and checks that the backend is the one in the directory. While the directory does not
    /// respond, a moved user without a login since the move is sent to the old server (`cache.stale`).
    fn checked_login(&self, worker: usize) -> Result<Imap, String> {
        let directory_down = self.directory_down.load(Ordering::SeqCst);
        let before = *self.homes[worker].lock().unwrap();
        let certain = before.since.elapsed() > MOVED_FOR_CERTAIN;
        let mut imap = self.connect();
        self.login(&mut imap, WORKERS[worker]);
        let id = imap.command("ID NIL").ok().untagged.join(" ");
        let landed = if id.contains("server3") { "server3" } else { "server4" };
        if certain && before == *self.homes[worker].lock().unwrap() && landed != before.server {
            if directory_down || self.directory_down.load(Ordering::SeqCst) {
                self.count("move", "unknown in an outage");
                return Ok(imap);
            }
            return Err(format!("{} is at {}, landed at {landed}", WORKERS[worker], before.server));
        }
        Ok(imap)
    }

    fn work(&self, worker: usize, dice: &mut Dice) {
        match dice.roll(12) {
            0..4 => self.attempt("login", || {
                let mut imap = self.checked_login(worker)?;
                imap.command("NOOP").ok();
                imap.command("LOGOUT").ok();
                Ok(())
            }),
            4..6 => self.attempt("guess", || {
                let mut imap = self.connect();
                let reply = imap.login(WORKERS[worker], &format!("guess {}", dice.roll(u64::MAX)));
                if reply.tagged.starts_with("OK") {
                    return Err(format!("a wrong password of {} was accepted", WORKERS[worker]));
                }
                reply.is("NO [AUTHENTICATIONFAILED]");
                self.login(&mut imap, WORKERS[worker]);
                Ok(())
            }),
            6..9 => self.attempt("transfer", || {
                let message = message(dice);
                let mut imap = self.checked_login(worker)?;
                let append = imap.command(&format!("APPEND INBOX {{{}+}}\r\n{message}", message.len())).ok();
                let uid = append.tagged.split([' ', ']']).nth(3).expect("APPENDUID").to_owned();
                imap.command("SELECT INBOX").ok();
                let fetched = imap.command(&format!("UID FETCH {uid} BODY.PEEK[]")).ok();
                if !fetched.untagged.iter().any(|line| line.contains(&message)) {
                    return Err(format!("{} bytes came back changed", message.len()));
                }
                imap.command(&format!("UID STORE {uid} +FLAGS.SILENT (\\Deleted)")).ok();
                imap.command("EXPUNGE").ok();
                imap.command("LOGOUT").ok();
                Ok(())
            }),
            9 => self.attempt("idle", || {
                let mut imap = self.checked_login(worker)?;
                imap.command("SELECT INBOX").ok();
                imap.send("i IDLE\r\n");
                while !imap.line().starts_with('+') {}
                dice.pause(3000);
                imap.send("DONE\r\n");
                imap.reply("i").ok();
                Ok(())
            }),
            10 => self.attempt("reset", || {
                let mut imap = self.checked_login(worker)?;
                imap.send("x SELECT INBOX\r\ny UID FETCH 1:* BODY.PEEK[]\r\n");
                imap.reset();
                Ok(())
            }),
            _ => self.attempt("stuck handshake", || {
                let mut imap = Imap::silent(self.port);
                imap.send([22, 3, 1, 2, 0, 1]);
                dice.pause(2000);
                Ok(())
            }),
        }
    }

    /// Stops a server and starts it again; the outage ends when alice can log in without the cache.
    fn outage(&self, what: &'static str, mut stop: impl FnMut(), mut start: impl FnMut(), dice: &mut Dice) {
        self.outages.fetch_add(1, Ordering::SeqCst);
        self.lasting.fetch_add(1, Ordering::SeqCst);
        stop();
        dice.pause(2500);
        start();
        std::thread::sleep(Duration::from_millis(1100)); // cached decisions have expired
        let asked = Instant::now();
        while catch_unwind(AssertUnwindSafe(|| self.login(&mut self.connect(), "alice"))).is_err() {
            if asked.elapsed() > Duration::from_secs(20) {
                self.fault(what, "not healthy within 20 s".into());
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        self.count(what, "as expected");
        self.lasting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A unique message.
fn message(dice: &mut Dice) -> String {
    let size = dice.roll(13);
    let lines = 1 + dice.roll(1 << size);
    let mut text = format!("Subject: {lines} lines\r\n\r\n");
    for _ in 0..lines {
        text.push_str(&format!(
            "{:016x}{:016x}{:016x}\r\n",
            dice.roll(u64::MAX),
            dice.roll(u64::MAX),
            dice.roll(u64::MAX)
        ));
    }
    text
}

fn descriptors(usher: &Usher) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", usher.pid())).unwrap().count()
}

/// Moves, reloads and outages, one after the other.
fn trouble(run: &Run, usher: &Usher, directory: &mut Slapd, dovecot: &mut Dovecot, dice: &mut Dice) {
    match dice.roll(9) {
        0..4 => {
            let worker = dice.roll(WORKERS.len() as u64) as usize;
            let mut home = run.homes[worker].lock().unwrap();
            let server = if home.server == "server3" { "server4" } else { "server3" };
            directory.set(&User::new(WORKERS[worker], None), "mailHost", Some(server));
            *home = Home { server, since: Instant::now() };
            run.count("move", "as expected");
        }
        4..7 => {
            let reload = usher.command(&["reload"]);
            if reload.code == 0 {
                run.count("reload", "as expected");
            } else {
                run.fault("reload", format!("{reload:?}"));
            }
        }
        7 => {
            run.directory_down.store(true, Ordering::SeqCst);
            let url = directory.tls_url();
            if dice.roll(2) == 0 {
                let directory = Mutex::new(directory);
                let stop = || directory.lock().unwrap().stop();
                run.outage("directory restart", stop, || directory.lock().unwrap().start_again(), dice);
            } else {
                run.outage("directory freeze", || directory.freeze(), || directory.thaw(), dice);
            }
            // Until then alice may have logged in from the cache.
            usher.wait_metric("usher_directory_up", &[("server", &url)], 1.0);
            run.directory_down.store(false, Ordering::SeqCst);
        }
        _ => {
            let dovecot = Mutex::new(dovecot);
            let stop = || dovecot.lock().unwrap().stop();
            run.outage("backend restart", stop, || dovecot.lock().unwrap().start_again(), dice);
        }
    }
}

fn soak(length: Duration, seed: u64) {
    let mut directory = Slapd::private();
    let mut dovecot = Dovecot::start(&shared().certificates, &shared().server3, false);
    let config = Config::with_directory(&directory).backend("server3", dovecot.imaps, &["server3"]);
    let config = config.backend("server4", cyrus().imaps, &["server4", "server4.example.com"]);
    let config = config.set("/cache", serde_json::json!({"ttl": TTL, "negative_ttl": TTL}));
    let config = config.set("/log/level", "info").set("/directory/timeout", "2s");
    // The thread that starts usher gets a deadline of a minute; this thread needs longer.
    let usher = std::thread::spawn(move || Usher::start(config)).join().expect("usher starts");
    let now = Instant::now();
    let home = |uid: &&str| {
        let server = if ["bob", "ben", "sync4", "big4"].contains(uid) { "server4" } else { "server3" };
        Mutex::new(Home { server, since: now })
    };
    let run = Run {
        port: usher.imaps_port(),
        homes: WORKERS.iter().map(home).collect(),
        over: AtomicBool::new(false),
        outages: AtomicU64::new(0),
        lasting: AtomicU64::new(0),
        directory_down: AtomicBool::new(false),
        logins: AtomicU64::new(0),
        tally: Mutex::default(),
        faults: Mutex::default(),
    };
    // The first logins create long-lived resources: threads, connections to the directory, buffers.
    for worker in 0..WORKERS.len() {
        drop(run.checked_login(worker).unwrap());
    }
    usher.wait_metric("usher_connections", &[], 0.0);
    let held = |usher: &Usher| (usher.resident_kib(), descriptors(usher));
    let start = held(&usher);
    let (mut warm, mut peak) = (None, start);
    std::thread::scope(|scope| {
        let run = &run;
        for worker in 0..WORKERS.len() {
            let mut dice = Dice(seed.wrapping_add(worker as u64 + 1));
            scope.spawn(move || {
                while !run.over.load(Ordering::SeqCst) {
                    run.work(worker, &mut dice);
                    dice.pause(300);
                }
            });
        }
        let mut dice = Dice(seed);
        let began = Instant::now();
        while began.elapsed() < length {
            dice.pause(3000);
            trouble(run, &usher, &mut directory, &mut dovecot, &mut dice);
            let now = held(&usher);
            peak = (peak.0.max(now.0), peak.1.max(now.1));
            if warm.is_none() && began.elapsed() > length / 5 {
                warm = Some(now);
            }
        }
        run.over.store(true, Ordering::SeqCst);
    });
    usher.wait_metric("usher_connections", &[], 0.0);
    usher.wait_metric("usher_sessions", &[], 0.0);
    let deadline = Instant::now() + Duration::from_secs(10);
    while descriptors(&usher) > start.1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100)); // there is no event for a closed descriptor
    }
    let end = held(&usher);
    let counted = usher.metric("usher_logins_total", &[("result", "ok")]);
    let panics = usher.metric("usher_panics_total", &[]);

    let mut report = format!("soak of {} s, seed {seed}\n", length.as_secs());
    for ((what, how), n) in run.tally.lock().unwrap().iter() {
        report.push_str(&format!("  {what:<18} {how:<17} {n:>8}\n"));
    }
    let logins = run.logins.load(Ordering::SeqCst);
    report.push_str(&format!(
        "  successful logins seen by clients {logins}, counted by usher {counted}; panics {panics}\n"
    ));
    let show = |(kib, open): (u64, usize)| format!("{:.1} MiB and {open} descriptors", kib as f64 / 1024.0);
    let warm = warm.unwrap_or(peak);
    report.push_str(&format!("  at the start {}, after a fifth {}\n", show(start), show(warm)));
    report.push_str(&format!("  at most {}, at the end {}\n", show(peak), show(end)));
    // Helps to find the cause: for example a backend without enough CPU time to respond.
    for (series, n) in usher.metrics().iter().filter(|(_, n)| **n > 0.0) {
        if let Some(of) = series.strip_prefix("usher_backend_logins_total") {
            report.push_str(&format!("  logins at a backend {of} {n}\n"));
        }
    }
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let load = read("/proc/loadavg");
    let pressure = read("/proc/pressure/cpu").lines().next().unwrap_or_default().to_owned();
    report.push_str(&format!("  the machine: load {} {pressure}\n", load.trim()));
    std::io::stdout().write_all(report.as_bytes()).unwrap();

    let faults = run.faults.lock().unwrap();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(panics, 0.0, "panics");
    // A client may miss the reply to its successful login because of an outage.
    let missed = counted - logins as f64;
    assert!((0.0..=run.outages.load(Ordering::SeqCst) as f64 * WORKERS.len() as f64).contains(&missed), "{missed}");
    // The directory's pool may have grown to its maximum.
    assert!(end.1 <= start.1 + 8, "{} descriptors instead of {}", end.1, start.1);
    assert!(end.0 <= warm.0.max(start.0) + 16 * 1024, "{} KiB, after a fifth of the time {}", end.0, warm.0);
}

fn main() {
    let from_env = |name: &str| std::env::var(name).ok().map(|value| value.parse().expect("a number"));
    let (seconds, seed) = (from_env("SOAK_SECONDS").unwrap_or(3600), from_env("SOAK_SEED").unwrap_or(1));
    soak(Duration::from_secs(seconds), seed);
}

//! The soak, run by `benches/soak`: people who log in, guess, idle, transfer mail and leave
//! rudely, while users move, the configuration is reloaded, and the backend and the directory
//! restart or freeze, all at random for as long as told.
//!
//! What goes wrong while a server is away is excused and counted; bytes that differ, a wrong
//! password that is taken and a user on the wrong server never are. At the end everybody is gone:
//! so must be their sessions, descriptors and memory.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a program for developers"
)]

#[path = "../tests/it/kit/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests' kit, of which this needs a part")]
mod kit;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kit::dovecot::Dovecot;
use kit::slapd::Slapd;
use kit::{Config, Imap, Person, Usher, cyrus, password_of, world};

/// Who works at the same time; alice is asked whether all is well again.
const WORKERS: [&str; 8] = ["anna", "bytes3", "sync3", "big3", "bob", "ben", "sync4", "big4"];
/// How long a decision is remembered, and when a move has reached everybody for certain.
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

/// Where somebody's mail is, and since when.
#[derive(Clone, Copy, PartialEq)]
struct Home {
    server: &'static str,
    since: Instant,
}

/// What the workers and the troublemaker share.
struct Stage {
    port: u16,
    homes: Vec<Mutex<Home>>,
    over: AtomicBool,
    /// Outages so far, and those that last.
    outages: AtomicU64,
    lasting: AtomicU64,
    /// The directory does not answer, or usher may not yet have noticed that it does.
    blind: AtomicBool,
    logins: AtomicU64,
    tally: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    faults: Mutex<Vec<String>>,
}

impl Stage {
    fn count(&self, what: &'static str, how: &'static str) {
        *self.tally.lock().unwrap().entry((what, how)).or_default() += 1;
    }

    fn fault(&self, what: &'static str, words: String) {
        self.count(what, "WRONG");
        self.faults.lock().unwrap().push(format!("{what}: {words}"));
    }

    /// Runs something. An `Err` is wrong at any time; a panic of the kit, which means that an
    /// answer was another or did not come, only if no server was away meanwhile.
    fn attempt(&self, what: &'static str, run: impl FnOnce() -> Result<(), String>) {
        let (outages, lasting) = (self.outages.load(Ordering::SeqCst), self.lasting.load(Ordering::SeqCst));
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => self.count(what, "as expected"),
            Ok(Err(words)) => self.fault(what, words),
            Err(_) if lasting > 0 || self.outages.load(Ordering::SeqCst) > outages => {
                self.count(what, "hit by an outage");
            }
            Err(panic) => {
                let words = panic.downcast_ref::<String>().map(String::as_str);
                let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
                self.fault(what, words.to_owned());
            }
        }
    }

    fn connect(&self) -> Imap {
        Imap::tls(self.port)
    }

    fn enter(&self, imap: &mut Imap, uid: &str) {
        imap.login(uid, &password_of(uid)).ok();
        self.logins.fetch_add(1, Ordering::SeqCst);
    }

    /// Logs in and sees to it that this is where the directory says. While it says nothing, who has been
    /// moved and was away since gets in where he was last (`cache.stale`).
    fn visit(&self, worker: usize) -> Result<Imap, String> {
        let blind = self.blind.load(Ordering::SeqCst);
        let before = *self.homes[worker].lock().unwrap();
        let certain = before.since.elapsed() > MOVED_FOR_CERTAIN;
        let mut imap = self.connect();
        self.enter(&mut imap, WORKERS[worker]);
        let said = imap.command("ID NIL").ok().untagged.join(" ");
        let landed = if said.contains("server3") { "server3" } else { "server4" };
        if certain && before == *self.homes[worker].lock().unwrap() && landed != before.server {
            if blind || self.blind.load(Ordering::SeqCst) {
                self.count("move", "not known of in an outage");
                return Ok(imap);
            }
            return Err(format!("{} is at {}, landed at {landed}", WORKERS[worker], before.server));
        }
        Ok(imap)
    }

    fn work(&self, worker: usize, dice: &mut Dice) {
        match dice.roll(12) {
            0..4 => self.attempt("login", || {
                let mut imap = self.visit(worker)?;
                imap.command("NOOP").ok();
                imap.command("LOGOUT").ok();
                Ok(())
            }),
            4..6 => self.attempt("guess", || {
                let mut imap = self.connect();
                let reply = imap.login(WORKERS[worker], &format!("guess {}", dice.roll(u64::MAX)));
                if reply.tagged.starts_with("OK") {
                    return Err(format!("a wrong password of {} was taken", WORKERS[worker]));
                }
                reply.is("NO [AUTHENTICATIONFAILED]");
                self.enter(&mut imap, WORKERS[worker]);
                Ok(())
            }),
            6..9 => self.attempt("transfer", || {
                let message = message(dice);
                let mut imap = self.visit(worker)?;
                let append = imap.command(&format!("APPEND INBOX {{{}+}}\r\n{message}", message.len())).ok();
                let uid = append.tagged.split([' ', ']']).nth(3).expect("APPENDUID").to_owned();
                imap.command("SELECT INBOX").ok();
                let fetched = imap.command(&format!("UID FETCH {uid} BODY.PEEK[]")).ok();
                if !fetched.untagged.iter().any(|line| line.contains(&message)) {
                    return Err(format!("{} bytes came back otherwise", message.len()));
                }
                imap.command(&format!("UID STORE {uid} +FLAGS.SILENT (\\Deleted)")).ok();
                imap.command("EXPUNGE").ok();
                imap.command("LOGOUT").ok();
                Ok(())
            }),
            9 => self.attempt("idle", || {
                let mut imap = self.visit(worker)?;
                imap.command("SELECT INBOX").ok();
                imap.send("i IDLE\r\n");
                while !imap.line().starts_with('+') {}
                dice.pause(3000);
                imap.send("DONE\r\n");
                imap.reply("i").ok();
                Ok(())
            }),
            10 => self.attempt("reset", || {
                let mut imap = self.visit(worker)?;
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

    /// Takes a server away and brings it back; over when alice can log in without the cache.
    fn outage(&self, what: &'static str, mut away: impl FnMut(), mut back: impl FnMut(), dice: &mut Dice) {
        self.outages.fetch_add(1, Ordering::SeqCst);
        self.lasting.fetch_add(1, Ordering::SeqCst);
        away();
        dice.pause(2500);
        back();
        std::thread::sleep(Duration::from_millis(1100)); // what the cache knew is forgotten
        let asked = Instant::now();
        while catch_unwind(AssertUnwindSafe(|| self.enter(&mut self.connect(), "alice"))).is_err() {
            if asked.elapsed() > Duration::from_secs(20) {
                self.fault(what, "not well within 20 s".into());
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        self.count(what, "as expected");
        self.lasting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A message that is like no other.
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
fn trouble(stage: &Stage, usher: &Usher, directory: &mut Slapd, dovecot: &mut Dovecot, dice: &mut Dice) {
    match dice.roll(9) {
        0..4 => {
            let worker = dice.roll(WORKERS.len() as u64) as usize;
            let mut home = stage.homes[worker].lock().unwrap();
            let server = if home.server == "server3" { "server4" } else { "server3" };
            directory.set(&Person::new(WORKERS[worker], None), "mailHost", Some(server));
            *home = Home { server, since: Instant::now() };
            stage.count("move", "as expected");
        }
        4..7 => {
            let reload = usher.command(&["reload"]);
            if reload.code == 0 {
                stage.count("reload", "as expected");
            } else {
                stage.fault("reload", format!("{reload:?}"));
            }
        }
        7 => {
            stage.blind.store(true, Ordering::SeqCst);
            let url = directory.tls_url();
            if dice.roll(2) == 0 {
                let directory = Mutex::new(directory);
                let away = || directory.lock().unwrap().stop();
                stage.outage("directory restart", away, || directory.lock().unwrap().start_again(), dice);
            } else {
                stage.outage("directory freeze", || directory.freeze(), || directory.thaw(), dice);
            }
            // Until then alice, too, may have been let in by what was known.
            usher.wait_metric("usher_directory_up", &[("server", &url)], 1.0);
            stage.blind.store(false, Ordering::SeqCst);
        }
        _ => {
            let dovecot = Mutex::new(dovecot);
            let away = || dovecot.lock().unwrap().stop();
            stage.outage("backend restart", away, || dovecot.lock().unwrap().start_again(), dice);
        }
    }
}

fn soak(length: Duration, seed: u64) {
    let mut directory = Slapd::private();
    let mut dovecot = Dovecot::start(&world().certificates, &world().server3, false);
    let config = Config::with_directory(&directory).backend("server3", dovecot.imaps, &["server3"]);
    let config = config.backend("server4", cyrus().imaps, &["server4", "server4.example.com"]);
    let config = config.set("/cache", serde_json::json!({"ttl": TTL, "negative_ttl": TTL}));
    let config = config.set("/log/level", "info").set("/directory/timeout", "2s");
    // The thread that starts an usher has a minute from then on: this one needs longer.
    let usher = std::thread::spawn(move || Usher::start(config)).join().expect("usher starts");
    let now = Instant::now();
    let home = |uid: &&str| {
        let server = if ["bob", "ben", "sync4", "big4"].contains(uid) { "server4" } else { "server3" };
        Mutex::new(Home { server, since: now })
    };
    let stage = Stage {
        port: usher.imaps_port(),
        homes: WORKERS.iter().map(home).collect(),
        over: AtomicBool::new(false),
        outages: AtomicU64::new(0),
        lasting: AtomicU64::new(0),
        blind: AtomicBool::new(false),
        logins: AtomicU64::new(0),
        tally: Mutex::default(),
        faults: Mutex::default(),
    };
    // The first logins make what is made once: threads, connections to the directory, buffers.
    for worker in 0..WORKERS.len() {
        drop(stage.visit(worker).unwrap());
    }
    usher.wait_metric("usher_connections", &[], 0.0);
    let held = |usher: &Usher| (usher.resident_kib(), descriptors(usher));
    let start = held(&usher);
    let (mut warm, mut peak) = (None, start);
    std::thread::scope(|scope| {
        let stage = &stage;
        for worker in 0..WORKERS.len() {
            let mut dice = Dice(seed.wrapping_add(worker as u64 + 1));
            scope.spawn(move || {
                while !stage.over.load(Ordering::SeqCst) {
                    stage.work(worker, &mut dice);
                    dice.pause(300);
                }
            });
        }
        let mut dice = Dice(seed);
        let began = Instant::now();
        while began.elapsed() < length {
            dice.pause(3000);
            trouble(stage, &usher, &mut directory, &mut dovecot, &mut dice);
            let now = held(&usher);
            peak = (peak.0.max(now.0), peak.1.max(now.1));
            if warm.is_none() && began.elapsed() > length / 5 {
                warm = Some(now);
            }
        }
        stage.over.store(true, Ordering::SeqCst);
    });
    usher.wait_metric("usher_connections", &[], 0.0);
    usher.wait_metric("usher_sessions", &[], 0.0);
    let deadline = Instant::now() + Duration::from_secs(10);
    while descriptors(&usher) > start.1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100)); // a descriptor that closes gives no event
    }
    let end = held(&usher);
    let counted = usher.metric("usher_logins_total", &[("result", "ok")]);
    let panics = usher.metric("usher_panics_total", &[]);

    let mut report = format!("soak of {} s, seed {seed}\n", length.as_secs());
    for ((what, how), n) in stage.tally.lock().unwrap().iter() {
        report.push_str(&format!("  {what:<18} {how:<17} {n:>8}\n"));
    }
    let logins = stage.logins.load(Ordering::SeqCst);
    report.push_str(&format!(
        "  logins that clients saw succeed {logins}, that usher counted {counted}; panics {panics}\n"
    ));
    let show = |(kib, open): (u64, usize)| format!("{:.1} MiB and {open} descriptors", kib as f64 / 1024.0);
    let warm = warm.unwrap_or(peak);
    report.push_str(&format!("  at the start {}, after a fifth {}\n", show(start), show(warm)));
    report.push_str(&format!("  at the most {}, at the end {}\n", show(peak), show(end)));
    // Where it went wrong: a backend that does not answer in time, on a machine that has none to spare?
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

    let faults = stage.faults.lock().unwrap();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(panics, 0.0, "panics");
    // A login may succeed whose client an outage of its own kept from hearing it.
    let unheard = counted - logins as f64;
    assert!((0.0..=stage.outages.load(Ordering::SeqCst) as f64 * WORKERS.len() as f64).contains(&unheard), "{unheard}");
    // The directory's pool may have grown to its size meanwhile.
    assert!(end.1 <= start.1 + 8, "{} descriptors instead of {}", end.1, start.1);
    assert!(end.0 <= warm.0.max(start.0) + 16 * 1024, "{} KiB, after a fifth of the time {}", end.0, warm.0);
}

fn main() {
    let told = |name: &str| std::env::var(name).ok().map(|value| value.parse().expect("a number"));
    let (seconds, seed) = (told("SOAK_SECONDS").unwrap_or(3600), told("SOAK_SEED").unwrap_or(1));
    soak(Duration::from_secs(seconds), seed);
}

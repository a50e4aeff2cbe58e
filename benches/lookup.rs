//! How many questions of Postfix usher answers per second of one core, from the cache, over connections that are kept:
//!
//! ```sh
//! cargo bench --bench lookup
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

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use kit::process::free_port;
use kit::slapd::{Options, SYNCPROV, Slapd};
use kit::users::SUFFIX;
use kit::{Config, Usher, start_deadline};
use serde_json::json;

/// Users with an address, each with a cached entry.
const USERS: usize = 2_000;
/// Questions of each round.
const QUESTIONS: usize = 200_000;
/// What is promised, in answers per second of one core.
const PROMISED: f64 = 10_000.0;

/// A connection of Postfix.
struct Postfix(TcpStream);

impl Postfix {
    fn ask(&mut self, key: &str) {
        let question = format!("transport {key}");
        // One packet, as Postfix sends it: several would wait for each other's acknowledgement.
        self.0.write_all(format!("{}:{question},", question.len()).as_bytes()).unwrap();
        let (mut answer, mut read) = ([0; 256], 0);
        while read == 0 || answer[read - 1] != b',' {
            let more = self.0.read(&mut answer[read..]).unwrap();
            assert!(more > 0, "the connection was closed");
            read += more;
        }
        assert!(answer[..read].starts_with(b"35:OK lmtp:inet:"), "{}", String::from_utf8_lossy(&answer[..read]));
    }
}

fn address(user: usize) -> String {
    format!("lookup{}@example.com", user % USERS)
}

/// The CPU time that usher has used.
fn cpu(usher: &Usher) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", usher.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // USER_HZ is 100 on every Linux.
    Duration::from_millis(ticks * 10)
}

fn main() {
    let entries: String = (0..USERS)
        .map(|user| {
            format!(
                "dn: uid=lookup{user},ou=people,{SUFFIX}\nobjectClass: inetOrgPerson\nobjectClass: extensibleObject\n\
                 cn: x\nsn: x\nuid: lookup{user}\nmail: lookup{user}@example.com\nmailHost: server3\n\n"
            )
        })
        .collect();
    let slapd =
        Slapd::with(Options { modules: &["syncprov"], database: SYNCPROV, entries: &entries, ..Options::default() });
    let port = free_port();
    let config = Config::with_directory(&slapd)
        .backend("server3", 9, &["server3"])
        .set("/routing/backends/0/delivery", "lmtp:inet:server3.example.com:24")
        .set("/directory/watch", "auto")
        .set("/cache/ttl", "1h")
        .set("/log/level", "info")
        .set("/socketmap", json!({"address": format!("127.0.0.1:{port}"), "domains": "example.com"}));
    let usher = Usher::start(config);
    let connect = || Postfix(TcpStream::connect(("127.0.0.1", port)).unwrap());
    let mut first = connect();
    let began = Instant::now();
    (0..USERS).for_each(|user| first.ask(&address(user)));
    println!(
        "{USERS} addresses from the directory, one at a time: {:.0} µs each",
        began.elapsed().as_secs_f64() * 1e6 / USERS as f64
    );
    drop(first);
    for connections in [1, 8, 100, 990] {
        start_deadline();
        let mut all: Vec<Postfix> = (0..connections).map(|_| connect()).collect();
        let each = QUESTIONS / connections;
        let (before, began) = (cpu(&usher), Instant::now());
        std::thread::scope(|scope| {
            let threads = connections.min(8);
            let mut places: Vec<Vec<Postfix>> = (0..threads).map(|_| Vec::new()).collect();
            (0..).zip(all.drain(..)).for_each(|(at, one): (usize, Postfix)| places[at % threads].push(one));
            for (thread, mut place) in places.into_iter().enumerate() {
                scope.spawn(move || {
                    let share = each * connections / threads;
                    let count = place.len().max(1);
                    for question in 0..share {
                        place[question % count].ask(&address(question * 7 + thread));
                    }
                });
            }
        });
        let (wall, used) = (began.elapsed().as_secs_f64(), (cpu(&usher) - before).as_secs_f64());
        let asked = (each * connections) as f64;
        let per_core = asked / used;
        println!(
            "{connections} connections: {:.0} answers per second, {:.1} µs of CPU each: {per_core:.0} per second of one core",
            asked / wall,
            used * 1e6 / asked
        );
        assert!(per_core * 3.0 > PROMISED, "{per_core:.0} answers per second of one core");
    }
}

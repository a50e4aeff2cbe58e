//! What a fleet costs its store: ushers without clients, directory and backends share one real Redis.
//!
//! The members are usher's own limits and its own part of the fleet (`usher::internals::SampleMember`); what they
//! send and how often is theirs. The store's CPU time, bytes and memory are what `INFO` says, and include the beats of the
//! members; CPU time does not depend on what else the machine does, times do. Arguments choose of `idle`, `logins` and
//! `memory`. `docs/developer/benchmarks.md` has results.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a program for developers, and tests use the rest of the kit"
)]

#[path = "../tests/it/kit/process.rs"]
mod process;
#[path = "../tests/it/kit/redis.rs"]
mod redis;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use usher::internals::{Login, SampleMember, SampleSession, Secret};

use redis::Redis;

/// Logins of a row.
const LOGINS: usize = 20_000;
/// How many a second all members have together, unless they have as many as they can.
const PACE: usize = 1_000;
/// How many a member has at a time, when it has as many as it can.
const AT_A_TIME: usize = 32;
/// How long an idle fleet is watched.
const IDLE: Duration = Duration::from_secs(20);
/// The most writes that may wait in a member until the next login: none is dropped.
const WAITING: usize = 2_000;

/// For the kit.
fn wait_limit(limit: Duration) -> Duration {
    limit
}

fn main() {
    // `cargo test --benches` runs this without the argument.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let parts: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let is_wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if is_wanted("idle") {
        println!("An idle fleet:\n");
        println!("| members | scripts a second | store's CPU a second, us | bytes to it | from it |");
        println!("| --- | --- | --- | --- | --- |");
        for count in [0, 3, 10, 100] {
            idle(&runtime, count);
        }
    }
    if is_wanted("logins") {
        println!("\n{LOGINS} logins of each kind:\n");
        println!(
            "| members | kind | a second | scripts | awaited | commands | store's CPU, us | member's CPU, us | bytes to \
             the store | from it | awaited: p50, ms | p99, ms | without an answer | dropped writes |"
        );
        println!("{}", "| --- ".repeat(14) + "|");
        for count in [3, 10] {
            for pace in [Some(PACE), None] {
                logins(&runtime, count, pace);
            }
        }
    }
    if is_wanted("memory") {
        println!("\nMemory:\n");
        println!("| users | networks | sessions | accounts | all, MiB | bytes per user | keys |");
        println!("| --- | --- | --- | --- | --- | --- | --- |");
        for users in [50_000, 1_000_000] {
            memory(&runtime, users);
        }
    }
}

/// What the store says of itself.
#[derive(Debug, Clone, Copy)]
struct Info {
    cpu_us: f64,
    bytes_in: f64,
    bytes_out: f64,
    scripts: f64,
    commands: f64,
    memory: f64,
}

impl Info {
    fn of(store: &Redis) -> Self {
        let text = store.command(&["INFO", "everything"]);
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
            line.trim().parse::<f64>().unwrap()
        };
        let calls = |line: &str| -> f64 {
            let (_, rest) = line.split_once("calls=").unwrap();
            rest.split_once(',').unwrap().0.parse().unwrap()
        };
        let counted: Vec<&str> = text.lines().filter(|line| line.starts_with("cmdstat_")).collect();
        let scripts = counted.iter().filter(|line| line.starts_with("cmdstat_eval"));
        Self {
            cpu_us: 1e6 * (field("used_cpu_user") + field("used_cpu_sys")),
            bytes_in: field("total_net_input_bytes"),
            bytes_out: field("total_net_output_bytes"),
            scripts: scripts.map(|line| calls(line)).sum(),
            commands: counted.iter().map(|line| calls(line)).sum(),
            memory: field("used_memory"),
        }
    }
}

/// A store with members.
struct Setup {
    store: Redis,
    members: Vec<Arc<SampleMember>>,
}

impl Setup {
    async fn of(count: usize) -> Self {
        let store = Redis::start();
        let folder = process::folder("fleet");
        process::write_secret(&folder.join("fleet.secret"), "A".repeat(64));
        let members: Vec<_> = (0..count).map(|number| member(&folder, store.port, number)).collect();
        while members.iter().any(|member| member.members() < count) {
            sleep(Duration::from_millis(100)).await;
        }
        // The first beats write marks.
        sleep(Duration::from_secs(5)).await;
        Self { store, members }
    }

    /// Waits until all is written.
    async fn written(&self) {
        while self.members.iter().any(|member| member.waiting() > 0) {
            sleep(Duration::from_millis(10)).await;
        }
        // The last batch of each.
        sleep(Duration::from_millis(500)).await;
    }

    fn failures(&self) -> [u64; 2] {
        let all = self.members.iter().map(|member| member.failures());
        all.fold([0, 0], |[a, b], [c, d]| [a + c, b + d])
    }
}

fn member(folder: &Path, port: u16, number: usize) -> Arc<SampleMember> {
    let text = format!(
        "listeners: [{{protocol: imap, address: '127.0.0.1:0', tls: implicit}}]
tls: {{certificates: [{{chain: chain.pem, key: key.pem}}]}}
directory: {{servers: ['ldap://127.0.0.1:9'], base: dc=example, filter: '(uid={{login}})', watch: off}}
routing: {{backends: [{{name: server3, imap: {{address: '127.0.0.1:9', tls: implicit}}}}]}}
throttle: {{logins_per_second: {{mode: dry_run}}, sessions_per_user: {{mode: dry_run}}}}
# A late answer is measured and not given up.
fleet: {{name: mail, node: mx{number}, store: 'redis://127.0.0.1:{port}', secret_file: fleet.secret, timeout: 1s}}
"
    );
    let config = usher::internals::config::parse(&folder.join("usher.yaml"), &text).unwrap();
    Arc::new(SampleMember::join(&config).unwrap())
}

fn idle(runtime: &Runtime, count: usize) {
    runtime.block_on(async {
        let setup = Setup::of(count).await;
        let before = Info::of(&setup.store);
        sleep(IDLE).await;
        let after = Info::of(&setup.store);
        let each = |difference: f64| difference / IDLE.as_secs_f64();
        println!(
            "| {count} | {:.1} | {:.0} | {:.0} | {:.0} |",
            each(after.scripts - before.scripts),
            each(after.cpu_us - before.cpu_us),
            each(after.bytes_in - before.bytes_in),
            each(after.bytes_out - before.bytes_out),
        );
    });
}

/// What a login is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The password is cached; a session begins and ends.
    Cached,
    /// The directory accepts it; the network is known; a session begins and ends.
    Asks,
    /// The same for the first time.
    First,
    /// The directory refuses it.
    Wrong,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Asks => "asks the directory",
            Self::First => "the same, first time from a network",
            Self::Wrong => "wrong password",
        }
    }
}

fn user(number: usize) -> Login {
    Login::parse(format!("user{number}@example.com").as_bytes()).unwrap()
}

/// The network of a user, or another one.
fn client(number: usize, other: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + (other << 22) + u32::try_from(number % (1 << 22)).unwrap()).into()
}

async fn login(member: &SampleMember, kind: Kind, number: usize) -> Duration {
    let (client, login) = (client(number, u32::from(kind == Kind::Wrong)), user(number));
    let password = Secret::copy_of(b"correct horse battery staple");
    let took = match kind {
        Kind::Cached => {
            member.recalls(client, &login);
            Duration::ZERO
        }
        Kind::Asks | Kind::First => member.asks(client, &login, &password, true).await,
        Kind::Wrong => member.asks(client, &login, &password, false).await,
    };
    if kind != Kind::Wrong {
        drop(member.session(client, &login));
    }
    took
}

/// A row for each kind; `pace`: logins a second of all members together.
fn logins(runtime: &Runtime, count: usize, pace: Option<usize>) {
    runtime.block_on(async {
        let setup = Setup::of(count).await;
        for kind in [Kind::First, Kind::Asks, Kind::Cached, Kind::Wrong] {
            let (before, own, failures) = (Info::of(&setup.store), own_cpu_us(), setup.failures());
            let began = Instant::now();
            let tasks: Vec<_> = setup
                .members
                .iter()
                .enumerate()
                .map(|(at, member)| {
                    // Each user comes to the same member, which knows the network then.
                    let users: Vec<usize> = (at..LOGINS).step_by(count).collect();
                    tokio::spawn(share(Arc::clone(member), kind, users, pace.map(|pace| pace as f64 / count as f64)))
                })
                .collect();
            let mut times = Vec::with_capacity(LOGINS);
            for task in tasks {
                times.extend(task.await.unwrap());
            }
            let took = began.elapsed();
            setup.written().await;
            let (after, own) = (Info::of(&setup.store), own_cpu_us() - own);
            times.sort_unstable();
            let quantile = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
            let each = |difference: f64| difference / LOGINS as f64;
            let [dropped, unanswered] = setup.failures();
            let awaited = kind != Kind::Cached;
            let quantiles =
                if awaited { [0.5, 0.99].map(quantile).map(|ms| format!("{ms:.2}")) } else { Default::default() };
            println!(
                "| {count} | {} | {:.0} | {:.2} | {} | {:.1} | {:.0} | {:.0} | {:.0} | {:.0} | {} | {} | {} | {} |",
                kind.name(),
                LOGINS as f64 / took.as_secs_f64(),
                each(after.scripts - before.scripts),
                u8::from(awaited),
                each(after.commands - before.commands),
                each(after.cpu_us - before.cpu_us),
                each(own),
                each(after.bytes_in - before.bytes_in),
                each(after.bytes_out - before.bytes_out),
                quantiles[0],
                quantiles[1],
                unanswered - failures[1],
                dropped - failures[0],
            );
        }
    });
}

/// The logins of one member.
async fn share(member: Arc<SampleMember>, kind: Kind, users: Vec<usize>, pace: Option<f64>) -> Vec<Duration> {
    let mut times = Vec::with_capacity(users.len());
    if let Some(pace) = pace {
        let mut tick = interval(Duration::from_secs_f64(1.0 / pace));
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for number in users {
            tick.tick().await;
            times.push(login(&member, kind, number).await);
        }
        return times;
    }
    let parts: Vec<Vec<usize>> =
        (0..AT_A_TIME).map(|at| users.iter().copied().skip(at).step_by(AT_A_TIME).collect()).collect();
    let tasks: Vec<_> = parts
        .into_iter()
        .map(|part| {
            let member = Arc::clone(&member);
            tokio::spawn(async move {
                let mut times = Vec::with_capacity(part.len());
                for number in part {
                    room(&member).await;
                    times.push(login(&member, kind, number).await);
                }
                times
            })
        })
        .collect();
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    times
}

/// Waits until a member has few writes to do.
async fn room(member: &SampleMember) {
    while member.waiting() > WAITING {
        sleep(Duration::from_millis(1)).await;
    }
}

/// CPU time of this process, user and system: that of all members and of what drives them.
fn own_cpu_us() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // Fields 14 and 15 of proc(5), in hundredths of a second.
    let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().unwrap()).sum();
    ticks * 1e4
}

/// All users have a network from which they are known and every second one another; three of five have sessions, a
/// quarter of these at two members; one in a hundred has just mistyped the password.
fn memory(runtime: &Runtime, users: usize) {
    runtime.block_on(async {
        let setup = Setup::of(3).await;
        let empty = Info::of(&setup.store).memory;
        let member = |number: usize| &setup.members[number % setup.members.len()];
        for number in 0..users {
            room(member(number)).await;
            member(number).recalls(client(number, 0), &user(number));
            if number % 2 == 0 {
                member(number).recalls(client(number, 1), &user(number));
            }
        }
        setup.written().await;
        let networks = Info::of(&setup.store).memory - empty;
        let mut sessions: Vec<Option<SampleSession>> = Vec::new();
        for number in (0..users).filter(|number| number % 5 < 3) {
            for at in 0..1 + usize::from(number % 4 == 0) {
                room(member(number + at)).await;
                sessions.push(member(number + at).session(client(number, 0), &user(number)));
            }
        }
        setup.written().await;
        let with_sessions = Info::of(&setup.store).memory - empty - networks;
        for number in (0..users).filter(|number| number % 100 == 0) {
            login(member(number), Kind::Wrong, number).await;
        }
        setup.written().await;
        let all = Info::of(&setup.store).memory - empty;
        assert_eq!(setup.failures(), [0, 0], "everything is there");
        let each = |bytes: f64| bytes / users as f64;
        println!(
            "| {users} | {:.0} | {:.0} | {:.0} | {:.1} | {:.0} | {} |",
            each(networks),
            each(with_sessions),
            each(all - networks - with_sessions),
            all / f64::from(1 << 20),
            each(all),
            setup.store.command(&["DBSIZE"]),
        );
        drop(sessions);
    });
}

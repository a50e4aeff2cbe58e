//! Wrong passwords counted by several ushers in one real store, whose clock is the test's.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tempfile::TempDir;

use super::super::shared::{LaterAnswer, OnAnswer, ScriptArg, ScriptRunner, SharedKey, SharedStore};
use super::super::store::{Charge, CounterStore, EntryCharge, EntryGuess, Receipt, SharedId, Subject, Success};
use super::*;
use crate::fleet::FleetScript;

/// A redis-server on a socket of its own.
#[derive(Debug)]
struct Redis {
    process: Child,
    stream: Mutex<BufReader<UnixStream>>,
    _folder: TempDir,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Redis {
    fn start() -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("redis.sock");
        let mut process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let began = std::time::Instant::now();
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(_) if began.elapsed() < Duration::from_secs(30) => assert!(process.try_wait().unwrap().is_none()),
                Err(error) => panic!("{error}"),
            }
        };
        Arc::new(Self { process, stream: Mutex::new(BufReader::new(stream)), _folder: folder })
    }

    /// Sends a command and reads numbers; a text or an error of the store is an error.
    fn command(&self, words: &[Vec<u8>]) -> io::Result<Vec<i64>> {
        let mut stream = self.stream.lock().unwrap();
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend(format!("${}\r\n", word.len()).bytes());
            request.extend(word);
            request.extend(b"\r\n");
        }
        stream.get_mut().write_all(&request)?;
        let mut line = || {
            let mut line = String::new();
            stream.read_line(&mut line).map(|_| line)
        };
        let first = line()?;
        let number = |line: &str| line[1..].trim().parse::<i64>().map_err(io::Error::other);
        match first.as_bytes()[0] {
            b':' => Ok(vec![number(&first)?]),
            b'+' => Ok(Vec::new()),
            b'*' => (0..number(&first)?).map(|_| number(&line()?)).collect(),
            b'$' => {
                let mut text = vec![0; usize::try_from(number(&first)?).unwrap() + 2];
                stream.read_exact(&mut text)?;
                Err(io::Error::other("a text"))
            }
            _ => Err(io::Error::other(first)),
        }
    }

    fn run(&self, words: &[&str]) -> io::Result<Vec<i64>> {
        self.command(&words.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>())
    }
}

/// One usher's way to the store.
#[derive(Debug)]
struct Link {
    redis: Arc<Redis>,
    member: String,
    began: Instant,
    up: AtomicBool,
    answers: AtomicBool,
    orders: AtomicUsize,
}

impl Link {
    fn to(redis: &Arc<Redis>, began: Instant) -> Arc<Self> {
        static MEMBERS: AtomicUsize = AtomicUsize::new(0);
        let member = format!("{:016x}", MEMBERS.fetch_add(1, Ordering::Relaxed));
        redis.run(&["SET", &format!("m:{member}"), "lives"]).unwrap();
        let (up, answers) = (AtomicBool::new(true), AtomicBool::new(true));
        Arc::new(Self { redis: Arc::clone(redis), member, began, up, answers, orders: AtomicUsize::new(0) })
    }

    fn execute(&self, script: &FleetScript, keys: &[String], args: &[ScriptArg]) -> io::Result<Vec<i64>> {
        let clock = "local CLOCK = {ARGV[#ARGV - 1], ARGV[#ARGV]}; ARGV[#ARGV] = nil; ARGV[#ARGV] = nil\n";
        let text = format!("{clock}{}", script.text().replace("redis.call('TIME')", "CLOCK"));
        let now = Duration::from_secs(1_800_000_000) + self.began.elapsed();
        let mut words = vec![b"EVAL".to_vec(), text.into_bytes(), keys.len().to_string().into_bytes()];
        words.extend(keys.iter().map(|key| key.as_bytes().to_vec()));
        words.extend(args.iter().map(|arg| match arg {
            ScriptArg::Int(number) => number.to_string().into_bytes(),
            ScriptArg::Bytes(bytes) => bytes.clone(),
        }));
        words.extend([now.as_secs().to_string(), now.subsec_micros().to_string()].map(String::into_bytes));
        let answer = self.redis.command(&words);
        answer.map_err(|error| io::Error::other(format!("{}: {error}", script.name())))
    }
}

impl ScriptRunner for Link {
    fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    fn id(&self, kind: SharedKey, parts: &[&[u8]]) -> Option<SharedId> {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let mut id = [0; 16];
        for (salt, half) in id.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let mut hasher = DefaultHasher::new();
            (salt, kind, parts).hash(&mut hasher);
            *half = hasher.finish().to_be_bytes();
        }
        Some(id)
    }

    fn key(&self, kind: SharedKey, id: SharedId) -> String {
        format!("{kind:?}:{:032x}", u128::from_be_bytes(id))
    }

    fn member(&self) -> (String, String) {
        (self.member.clone(), "m:".to_owned())
    }

    fn eval(&self, script: &'static FleetScript, keys: Vec<String>, args: Vec<ScriptArg>) -> LaterAnswer {
        if !self.answers.load(Ordering::Relaxed) {
            return Box::pin(std::future::pending());
        }
        let answer = self.execute(script, &keys, &args);
        Box::pin(async { answer })
    }

    fn order(&self, script: &'static FleetScript, keys: Vec<String>, args: Vec<ScriptArg>, done: Option<OnAnswer>) {
        self.orders.fetch_add(1, Ordering::Relaxed);
        let answer = self.execute(script, &keys, &args).unwrap();
        if let Some(done) = done {
            done(&answer);
        }
    }
}

/// Reproducible numbers (SplitMix64).
struct Dice(u64);

impl Dice {
    fn between(&mut self, least: u64, above: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        least + (mixed ^ (mixed >> 31)) % (above - least)
    }

    fn small(&mut self, least: u64, above: u64) -> u32 {
        u32::try_from(self.between(least, above)).unwrap()
    }

    fn in_hundred(&mut self, chances: u64) -> bool {
        self.between(0, 100) < chances
    }
}

/// Several ushers with one store.
fn ushers(count: usize, redis: &Arc<Redis>, change: impl Fn(&mut config::Throttle)) -> Vec<(Door, Arc<Link>)> {
    let began = Instant::now();
    let one = |_| {
        let mut door = Door::new();
        door.set(&change);
        let link = Link::to(redis, began);
        door.throttle.share(Arc::clone(&link) as Arc<dyn ScriptRunner>);
        (door, link)
    };
    (0..count).map(one).collect()
}

#[tokio::test(start_paused = true)]
async fn script_and_memory_count_alike_over_random_sequences() {
    let redis = Redis::start();
    for seed in 0..12 {
        redis.run(&["FLUSHALL"]).unwrap();
        let mut random = Dice(seed + 1);
        let began = Instant::now();
        let every = Duration::from_secs(random.between(1, 90));
        let settings =
            config::Memory { capacity: 1_000, forget_every: every, known_network_ttl: Duration::from_secs(86_400) };
        let (memory, mirror) = (memory::LocalStore::new(&settings), Arc::new(memory::LocalStore::new(&settings)));
        let shared = SharedStore::new(&settings, mirror, Link::to(&redis, began));
        let mut rule = |limits: bool| FailedLogins {
            mode: if random.in_hundred(70) { Mode::Enforce } else { Mode::DryRun },
            free_failures: random.small(1, 6),
            limit: (limits && random.in_hundred(40)).then(|| random.small(3, 25)),
            first_delay: ms(random.between(100, 900)),
            max_delay: ms(random.between(900, 5_000)),
        };
        let (user_rule, prefix_rule, of_names) = (rule(true), rule(false), rule(false));
        let spraying = PasswordSpraying {
            mode: of_names.mode,
            names_per_minute: of_names.free_failures,
            first_delay: of_names.first_delay,
            max_delay: of_names.max_delay,
        };
        let mut open: Vec<(Vec<Receipt>, Vec<Receipt>, Guess)> = Vec::new();
        let mut refused = 0;
        for n in 0..400 {
            advance(ms(if random.in_hundred(5) { 70_000 } else { random.between(1, 3_000) })).await;
            let (user, prefix, known) = (random.between(0, 5), random.between(0, 2), random.in_hundred(20));
            let subject = Subject {
                login: Login::parse(format!("user{user}").as_bytes()),
                network: net::network_of(ip(&format!("192.0.2.{prefix}")), 32),
            };
            let entry = key(&format!("uid={user}"));
            let guess = Guess {
                account: if known { 1_000 + 100 * prefix + user } else { user },
                prefix: 10 + prefix,
                password: Credential::for_tests("alice", n.to_string()).digest().narrow(),
                known,
                user_rule,
                prefix_rule,
                name: (!known).then_some((user, spraying)),
                subject: subject.clone(),
                entry: None,
            };
            match random.between(0, 10) {
                0 if !open.is_empty() => {
                    let (one, other, guess) = open.swap_remove(random.between(0, open.len() as u64) as usize);
                    memory.refund(one, guess.password);
                    shared.refund(other, guess.password);
                }
                1 => {
                    let success = Success {
                        account: guess.account,
                        prefix: guess.prefix,
                        user: 50 + user,
                        home: known.then_some(guess.account),
                        known,
                        is_news: false,
                        key: &entry,
                        subject: &subject,
                    };
                    memory.succeeded(None, &success);
                    shared.succeeded(None, &success);
                }
                2 => {
                    let of_entry = EntryGuess { password: guess.password, rule: user_rule, waited: n % 2 == 0 };
                    let [one, other] = [&memory as &dyn CounterStore, &shared]
                        .map(|store| store.charge_entry(50 + user, &entry, &of_entry))
                        .map(|charge| match charge {
                            EntryCharge::Counted { over, receipt } => (over, receipt.is_some()),
                            EntryCharge::Repeated => panic!("a new password"),
                        });
                    assert_eq!(one, other, "step {n} of {seed}");
                }
                _ => {
                    let one = memory.charge_now(&guess);
                    let Err(later) = shared.charge(&guess) else { panic!("not asked") };
                    let other = later.now_or_never().unwrap();
                    let (
                        Charge::Counted { at_limit, delays, receipts, .. },
                        Charge::Counted { at_limit: at, delays: waits, receipts: charged, known: is_known },
                    ) = (one, other)
                    else {
                        panic!("a new password")
                    };
                    assert_eq!((at_limit, delays, known), (at, waits, is_known), "step {n} of {seed}");
                    let all = |receipts: Option<store::Receipts>| {
                        receipts.map(|all| [Some(all.user), Some(all.prefix), all.name].into_iter().flatten().collect())
                    };
                    refused += u32::from(receipts.is_none());
                    assert_eq!(
                        receipts.as_ref().map(|receipts| receipts.name.is_some()),
                        charged.as_ref().map(|receipts| receipts.name.is_some()),
                        "step {n} of {seed}"
                    );
                    if let (Some(receipts), Some(charged)) = (all(receipts), all(charged)) {
                        open.push((receipts, charged, guess));
                    }
                }
            }
        }
        assert!(refused < 300 && open.len() > 20, "{refused} {}", open.len());
    }
}

#[tokio::test(start_paused = true)]
async fn guesses_spread_over_ushers_take_what_they_take_at_one() {
    let redis = Redis::start();
    let ushers = ushers(3, &redis, |_| {});
    let mut delays = Vec::new();
    for n in 0..9 {
        let delay = ushers[n % 3].0.wrong(&format!("192.0.2.{n}"), "alice", &n.to_string(), Some(ALICE));
        delays.push(delay);
        advance(delay).await;
    }
    assert_eq!(delays, [0, 0, 0, 300, 600, 1_200, 2_400, 4_000, 4_000].map(ms));
    // A right password at one is one for all.
    advance(ms(4_000)).await;
    ushers[1].0.right("192.0.2.77", "alice", ALICE);
    assert_eq!(ushers[2].0.wrong("192.0.2.9", "alice", "x", Some(ALICE)), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn other_spellings_at_other_ushers_are_charged_to_the_entry() {
    let redis = Redis::start();
    let ushers = ushers(2, &redis, |_| {});
    // Each has seen both spellings.
    for (usher, _) in &ushers {
        for login in ["alice", "alice@example.com"] {
            let mut pending = usher.guess("192.0.2.1", login, "any").unwrap();
            let _ = pending.begin_lookup().unwrap().may_bind(&key(ALICE));
            pending.settle(AttemptOutcome::Inconclusive);
        }
    }
    for n in 0..6 {
        let delay = ushers[0].0.wrong("192.0.2.2", "alice", &n.to_string(), Some(ALICE));
        advance(delay / 2).await;
    }
    let (_, bound) = ushers[1].0.tried("192.0.2.3", "alice@example.com", "at once", Some(ALICE));
    assert!(!bound, "the entry's delay has not passed");
}

#[tokio::test(start_paused = true)]
async fn names_and_networks_are_counted_over_all_ushers() {
    let redis = Redis::start();
    let ushers = ushers(2, &redis, |rules| {
        rules.password_spraying.names_per_minute = 3;
        rules.failed_logins_per_prefix.free_failures = 5;
    });
    let mut delays = Vec::new();
    for n in 0..8 {
        let delay = ushers[n % 2].0.wrong("192.0.2.1", &format!("user{n}"), "spring", None);
        delays.push(delay);
        advance(delay).await;
    }
    assert_eq!(delays, [0, 0, 0, 300, 600, 1_200, 2_400, 4_000].map(ms));
    let by =
        |rule| ushers.iter().map(|(door, _)| door.counted(rule, ThrottleEffect::Delayed, Mode::Enforce)).sum::<u64>();
    assert_eq!((by(LimitRule::PasswordSpraying), by(LimitRule::FailedLoginsPerPrefix)), (5, 3));
}

#[tokio::test(start_paused = true)]
async fn network_of_an_earlier_login_is_known_to_all_ushers() {
    let redis = Redis::start();
    let ushers = ushers(2, &redis, |rules| rules.password_spraying.names_per_minute = 1);
    ushers[0].0.right("203.0.113.5", "alice", ALICE);
    ushers[1].0.heat("192.0.2.1").await;
    for n in 0..4 {
        ushers[1].0.wrong("203.0.113.5", &format!("user{n}"), "spring", None);
    }
    assert_eq!(ushers[1].0.guess("192.0.2.9", "alice", "x").unwrap().delay, ms(4_000));
    assert_eq!(ushers[1].0.wrong("203.0.113.5", "alice", "a typo", Some(ALICE)), Duration::ZERO);
    assert_eq!(ushers[1].0.right("203.0.113.5", "alice", ALICE), Duration::ZERO);
    // For as long as it is known to one.
    advance(Duration::from_secs(86_401)).await;
    ushers[0].0.heat("192.0.2.1").await;
    assert_eq!(ushers[0].0.guess("203.0.113.5", "alice", "x").unwrap().delay, ms(4_000));
}

#[tokio::test(start_paused = true)]
async fn newest_sixteen_networks_of_a_user_are_known_and_a_spoiled_record_harms_nothing() {
    let redis = Redis::start();
    let ushers = ushers(2, &redis, |_| {});
    let home = |n: usize| format!("203.0.113.{n}");
    for n in 0..17 {
        ushers[0].0.right(&home(n), "alice", ALICE);
        advance(ms(1_000)).await;
    }
    ushers[1].0.heat("192.0.2.1").await;
    let passwords = AtomicUsize::new(0);
    let is_known = |n: usize| {
        let password = format!("x{}", passwords.fetch_add(1, Ordering::Relaxed));
        ushers[1].0.guess(&home(n), "alice", &password).is_ok_and(|attempt| attempt.delay.is_zero())
    };
    assert_eq!((0..17).filter(|n| !is_known(*n)).collect::<Vec<_>>(), [0]);
    // What whoever has access to the store may put there.
    let spoil = |text: &str| {
        let script = "for _, key in ipairs(redis.call('KEYS', '*')) do \
                      if string.find(key, '^Networks') then redis.call('SET', key, ARGV[1]) end \
                      if string.find(key, '^Sessions') then for _, user in ipairs(redis.call('HKEYS', key)) do \
                      redis.call('HSET', key, user, ARGV[1]) end end end return 1";
        redis.run(&["EVAL", script, "0", text]).unwrap();
    };
    for (n, text) in ["", "short", "0123456789ab", &"x".repeat(5_000)].into_iter().enumerate() {
        spoil(text);
        assert!(!is_known(16), "{text}");
        ushers[0].0.throttle.cached_success(ip(&home(20 + n)), &Login::parse(b"alice").unwrap(), &key(ALICE));
        assert!(is_known(20 + n), "{text}");
    }
    let _held = ushers[0].0.session("192.0.2.1", ALICE).unwrap();
    for text in ["", "=", "0=", "zz=3 =4", "ffffffffffffffff=9999", &"0=1".repeat(1_000)] {
        spoil(text);
        let _ = ushers[1].0.session("192.0.2.1", ALICE).unwrap();
        assert!(ushers[1].0.session("192.0.2.1", ALICE).is_ok(), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn cached_password_writes_nothing_but_a_new_network() {
    let redis = Redis::start();
    let ushers = ushers(1, &redis, |_| {});
    let (door, link) = &ushers[0];
    let cached = || door.throttle.cached_success(ip("203.0.113.5"), &Login::parse(b"alice").unwrap(), &key(ALICE));
    for _ in 0..100 {
        cached();
    }
    assert_eq!(link.orders.load(Ordering::Relaxed), 1);
    advance(Duration::from_secs(86_400 / 30)).await;
    cached();
    assert_eq!(link.orders.load(Ordering::Relaxed), 2, "so that it stays known");
    // Nor does a lookup: the outcome is written at once.
    door.right("203.0.113.6", "bob", BOB);
    assert_eq!(link.orders.load(Ordering::Relaxed), 4, "the entry before the bind, and the outcome");
}

#[tokio::test(start_paused = true)]
async fn usher_goes_on_alone_from_what_the_store_has_counted() {
    let redis = Redis::start();
    let ushers = ushers(2, &redis, |_| {});
    for n in 0..5 {
        let delay = ushers[n % 2].0.wrong("192.0.2.1", "alice", &n.to_string(), Some(ALICE));
        advance(delay).await;
    }
    let (door, link) = &ushers[0];
    link.up.store(false, Ordering::Relaxed);
    assert_eq!(door.wrong("192.0.2.1", "alice", "alone", Some(ALICE)), ms(1_200));
    link.up.store(true, Ordering::Relaxed);
    // What stands in the store may be anything.
    advance(ms(1_200)).await;
    let all = "for _, key in ipairs(redis.call('KEYS', '*')) do redis.call('SET', key, ARGV[1]) end return 0";
    for garbage in ["garbage", "1 2 3", "99999999999999999999 1 1 1", ""] {
        redis.run(&["EVAL", all, "0", garbage]).unwrap();
        advance(ms(8_000)).await;
        let pending = door.guess("192.0.2.1", "alice", &format!("after {garbage}")).unwrap();
        assert!(pending.delay <= ms(4_000), "{garbage}");
    }
    let lists = "for _, key in ipairs(redis.call('KEYS', '*')) do redis.call('DEL', key) redis.call('RPUSH', key, 1) end return 0";
    redis.run(&["EVAL", lists, "0"]).unwrap();
    advance(ms(8_000)).await;
    assert!(door.guess("192.0.2.1", "alice", "after lists").is_ok(), "by the local rule");
}

#[tokio::test(start_paused = true)]
async fn same_password_during_the_question_waits_and_one_that_was_given_up_leaves_nothing() {
    let redis = Redis::start();
    let ushers = ushers(1, &redis, |_| {});
    let (door, link) = &ushers[0];
    link.answers.store(false, Ordering::Relaxed);
    let credential = Credential::for_tests("alice", "guess");
    let mut first = Box::pin(door.throttle.attempt(ip("192.0.2.1"), &credential));
    assert!(first.as_mut().now_or_never().is_none());
    assert_eq!(door.guess("192.0.2.2", "alice", "guess").unwrap().delay, ms(4_000));
    drop(first);
    link.answers.store(true, Ordering::Relaxed);
    assert_eq!(door.guess("192.0.2.3", "alice", "guess").unwrap().delay, Duration::ZERO, "a new guess");
}

#[tokio::test(start_paused = true)]
async fn counts_end_in_the_store_by_themselves() {
    let redis = Redis::start();
    let ushers = ushers(1, &redis, |_| {});
    for n in 0..5 {
        ushers[0].0.wrong("192.0.2.1", &format!("user{n}"), "x", Some(ALICE));
    }
    redis.run(&["DEL", &format!("m:{}", ushers[0].1.member)]).unwrap();
    let keys = redis.run(&["DBSIZE"]).unwrap();
    let ending = "local all = 0 for _, key in ipairs(redis.call('KEYS', '*')) do \
                  if redis.call('PTTL', key) > 0 then all = all + 1 end end return all";
    assert_eq!(redis.run(&["EVAL", ending, "0"]).unwrap(), keys);
    assert!(keys[0] > 5, "{keys:?}");
}

#[tokio::test(start_paused = true)]
async fn sessions_of_a_user_are_limited_over_all_ushers() {
    let redis = Redis::start();
    let ushers = ushers(3, &redis, |rules| {
        rules.sessions_per_user.limit = 5;
        rules.sessions_per_user_and_prefix.limit = 100;
    });
    let session = |usher: usize| ushers[usher].0.session("192.0.2.1", ALICE);
    let mut held: Vec<_> = (0..4).map(|n| session(n % 2).unwrap()).collect();
    // The first at an usher is counted without knowledge of the others, the next one is not.
    held.push(session(2).unwrap());
    for usher in 0..3 {
        let _ = session(usher);
        assert_eq!(session(usher).unwrap_err(), Limited(LimitRule::SessionsPerUser), "{usher}");
    }
    assert!(ushers[2].0.session("192.0.2.1", BOB).is_ok(), "another user");
    // What ends there has room here.
    held.truncate(3);
    let _ = session(0);
    drop(session(0).unwrap());
    // A member that is gone counts no more, though it could say no goodbye.
    redis.run(&["DEL", &format!("m:{}", ushers[1].1.member)]).unwrap();
    let _ = session(2);
    let more: Vec<_> = (0..9).filter_map(|_| session(2).ok()).collect();
    assert_eq!(more.len(), 3, "two at the first, which lives");
    // The store is emptied: each writes its own again.
    redis.run(&["FLUSHALL"]).unwrap();
    for (_, link) in &ushers {
        redis.run(&["SET", &format!("m:{}", link.member), "lives"]).unwrap();
    }
    for (door, _) in &ushers {
        door.throttle.rewrite_sessions().await;
    }
    let _ = session(0);
    assert!(session(0).is_err());
    // While it is unavailable each counts alone, and an old answer refuses no login.
    ushers[0].1.up.store(false, Ordering::Relaxed);
    advance(Duration::from_secs(61)).await;
    assert!(session(0).is_ok());
}

#[tokio::test(start_paused = true)]
async fn session_that_ends_while_the_store_is_away_counts_no_more() {
    let redis = Redis::start();
    let ushers = ushers(2, &redis, |rules| {
        rules.sessions_per_user.limit = 5;
        rules.sessions_per_user_and_prefix.limit = 100;
    });
    let session = |usher: usize| ushers[usher].0.session("192.0.2.1", ALICE);
    let held: Vec<_> = (0..5).map(|_| session(0).unwrap()).collect();
    let _ = session(1);
    assert!(session(1).is_err());
    ushers[0].1.up.store(false, Ordering::Relaxed);
    drop(held);
    // They would count as long as this process lives.
    ushers[0].1.up.store(true, Ordering::Relaxed);
    ushers[0].0.throttle.repeat_unanswered_sessions();
    assert!(session(1).is_err(), "at once an answer may be on its way");
    advance(Duration::from_secs(5)).await;
    ushers[0].0.throttle.repeat_unanswered_sessions();
    let _ = session(1);
    assert!(session(1).is_ok());
    // One that begins during its outage is counted as well, and what is answered is not repeated.
    ushers[0].1.up.store(false, Ordering::Relaxed);
    let _held: Vec<_> = (0..5).map(|_| session(0).unwrap()).collect();
    ushers[0].1.up.store(true, Ordering::Relaxed);
    advance(Duration::from_secs(5)).await;
    let orders = || ushers[0].1.orders.load(Ordering::Relaxed);
    let before = orders();
    ushers[0].0.throttle.repeat_unanswered_sessions();
    assert_eq!(orders(), before + 1);
    advance(Duration::from_secs(60)).await;
    ushers[0].0.throttle.repeat_unanswered_sessions();
    assert_eq!(orders(), before + 1);
    let _ = session(1);
    assert!(session(1).is_err());
}

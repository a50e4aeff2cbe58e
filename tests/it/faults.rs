//! Faults of every peer, one by one: the reply, the session afterwards, and that nothing leaked.
//!
//! Single protocol rules are tested in `backend.rs`, `directory.rs` and `relay.rs`; here
//! one process gets one fault after the other and must return to its state before each.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::kit::scripted::{GREETING, Peer, Scripted};
use crate::kit::slapd::Slapd;
use crate::kit::{Config, Imap, PROMISED_SECOND, Usher, cyrus, password_of, slapd, wait_limit};

/// The resources that usher holds without clients.
struct Still<'u> {
    usher: &'u Usher,
    descriptors: usize,
}

impl<'u> Still<'u> {
    /// Counts after a login, so that what is opened once (the directory's connections) is
    /// open.
    fn of(usher: &'u Usher) -> Self {
        alice(usher).command("LOGOUT").ok();
        usher.wait_metric("usher_connections", &[], 0.0);
        let mut descriptors = count(usher);
        // Connections to the side port end a moment after their reply.
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let now = count(usher);
            if now == descriptors {
                return Self { usher, descriptors };
            }
            descriptors = now;
        }
    }

    /// Waits until the counts are those of the beginning.
    fn again(&self, after: &str) {
        self.usher.wait_metric("usher_connections", &[], 0.0);
        self.usher.wait_metric("usher_sessions", &[], 0.0);
        let deadline = Instant::now() + wait_limit(Duration::from_secs(5));
        while count(self.usher) > self.descriptors {
            let (before, now) = (self.descriptors, count(self.usher));
            assert!(Instant::now() < deadline, "after {after}: {now} descriptors instead of {before}");
            // A closed descriptor offers no event to wait for.
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.usher.metric("usher_panics_total", &[]), 0.0, "after {after}");
    }
}

fn count(usher: &Usher) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", usher.pid())).unwrap().count()
}

fn alice(usher: &Usher) -> Imap {
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login("alice", &password_of("alice")).ok();
    imap
}

/// A backend that accepts logins, or runs the given faulty script.
type Script = fn(&mut Peer);

struct FaultyBackend {
    mood: Arc<Mutex<Option<Script>>>,
    backend: Scripted,
}

impl FaultyBackend {
    fn start() -> Self {
        let mood: Arc<Mutex<Option<Script>>> = Arc::default();
        let now = Arc::clone(&mood);
        let backend = Scripted::tls(move |peer| {
            let script = *now.lock().unwrap();
            match script {
                Some(script) => script(peer),
                None => {
                    peer.send(GREETING);
                    if peer.accept_login().is_some() {
                        peer.reply_to_everything();
                    }
                }
            }
        });
        Self { mood, backend }
    }

    fn usher(&self) -> Usher {
        let config = Config::with_directory(slapd()).scripted(&self.backend);
        let config = config.backend("server4", cyrus().imaps, &["server4", "server4.example.com"]);
        Usher::start(config.set("/routing/backends/0/timeout", "1500ms"))
    }

    fn be(&self, script: Option<Script>) {
        *self.mood.lock().unwrap() = script;
    }
}

/// Accepts the login and runs the rest.
fn after_login(peer: &mut Peer, rest: impl FnOnce(&mut Peer)) {
    peer.send(GREETING);
    if peer.accept_login().is_some() {
        rest(peer);
    }
}

#[test]
fn backend_faults_at_login_are_reported_and_leave_no_state() {
    let faults: [(&str, Script); 9] = [
        ("a reset before the greeting", Peer::reset),
        ("an end before the greeting", |_| {}),
        ("silence", Peer::wait_for_end),
        ("half a greeting", |peer| {
            peer.send("* OK [CAPA");
            peer.half_close();
            peer.wait_for_end();
        }),
        ("no mail server", |peer| {
            peer.send("HTTP/1.1 400 Bad Request\r\n\r\n");
            peer.wait_for_end();
        }),
        ("a reset instead of an answer", |peer| {
            peer.send(GREETING);
            peer.take_login();
            peer.reset();
        }),
        ("silence instead of an answer", |peer| {
            peer.send(GREETING);
            peer.take_login();
            peer.wait_for_end();
        }),
        ("lines without end", |peer| {
            peer.send(GREETING);
            peer.take_login();
            while peer.send("* OK and another thing\r\n".repeat(500)) {}
        }),
        ("a line without end", |peer| {
            peer.send("* OK ");
            while peer.send("x".repeat(10_000)) {}
        }),
    ];
    let backend = FaultyBackend::start();
    let usher = backend.usher();
    let still = Still::of(&usher);
    for (fault, script) in faults {
        backend.be(Some(script));
        let mut imap = Imap::tls(usher.imaps_port());
        let asked = Instant::now();
        let reply = imap.login("alice", &password_of("alice"));
        assert!(reply.tagged.starts_with("NO [UNAVAILABLE]"), "{fault}: {reply:?}");
        assert!(asked.elapsed() < Duration::from_secs(5), "{fault}: answered after {:?}", asked.elapsed());
        // The connection continues, and the first login after the recovery uses the backend.
        imap.command("NOOP").ok();
        backend.be(None);
        imap.login("alice", &password_of("alice")).ok();
        imap.command("NOOP").is("OK did NOOP");
        drop(imap);
        still.again(fault);
    }
}

#[test]
fn client_faults_before_login_affect_no_other_client() {
    let backend = FaultyBackend::start();
    let usher = backend.usher();
    let still = Still::of(&usher);
    let login = format!("LOGIN alice {}", password_of("alice"));
    let faults: [(&str, &dyn Fn()); 9] = [
        ("a connection that says nothing", &|| drop(Imap::silent(usher.imaps_port()))),
        ("a reset in place of a handshake", &|| Imap::silent(usher.imaps_port()).reset()),
        ("no TLS", &|| {
            let mut imap = Imap::silent(usher.imaps_port());
            imap.send("GET / HTTP/1.1\r\n\r\n");
            imap.rest();
        }),
        ("half a handshake", &|| {
            let mut imap = Imap::silent(usher.imaps_port());
            imap.send([22, 3, 1, 2, 0, 1]);
            imap.half_close();
            imap.rest();
        }),
        ("half a command and an end", &|| {
            let mut imap = Imap::tls(usher.imaps_port());
            imap.send("a LOGIN alice {10}");
            imap.half_close();
            imap.rest();
        }),
        ("a reset inside a literal", &|| {
            let mut imap = Imap::tls(usher.imaps_port());
            imap.send("a LOGIN {5+}\r\nal");
            imap.reset();
        }),
        ("a reset inside AUTHENTICATE", &|| {
            let mut imap = Imap::tls(usher.imaps_port());
            imap.send("a AUTHENTICATE PLAIN\r\n");
            assert!(imap.line().starts_with('+'));
            imap.reset();
        }),
        ("a reset while the directory is asked", &|| {
            let mut imap = Imap::tls(usher.imaps_port());
            imap.send("a LOGIN anna wrong\r\n");
            imap.reset();
        }),
        ("an end right behind the login", &|| {
            let mut imap = Imap::tls(usher.imaps_port());
            imap.send(format!("a {login}\r\nb LOGOUT\r\n"));
            imap.half_close();
            let said = String::from_utf8(imap.rest()).unwrap();
            assert!(said.contains("a OK") && said.contains("b OK did LOGOUT"), "{said}");
        }),
    ];
    for (fault, commit) in faults {
        commit();
        still.again(fault);
    }
    alice(&usher).command("NOOP").is("OK did NOOP");
}

#[test]
fn frozen_backend_affects_only_its_users() {
    let backend = FaultyBackend::start();
    let usher = backend.usher();
    let still = Still::of(&usher);
    let mut before = alice(&usher);
    backend.be(Some(Peer::wait_for_end));
    let mut waiting = Imap::tls(usher.imaps_port());
    waiting.send(format!("a LOGIN alice {}\r\n", password_of("alice")));
    let asked = Instant::now();
    Imap::tls(usher.imaps_port()).login("bob", &password_of("bob")).ok();
    assert!(asked.elapsed() < PROMISED_SECOND, "bob waited {:?}", asked.elapsed());
    waiting.reply("a").is("NO [UNAVAILABLE]");
    before.command("NOOP").is("OK did NOOP");
    backend.be(None);
    waiting.login("alice", &password_of("alice")).ok();
    drop((before, waiting));
    still.again("a frozen backend");
}

#[test]
fn client_can_close_a_session_with_a_frozen_backend() {
    let backend = FaultyBackend::start();
    let usher = backend.usher();
    let still = Still::of(&usher);
    backend.be(Some(|peer| {
        after_login(peer, |_| std::thread::sleep(Duration::from_secs(20)));
    }));
    // More than usher buffers, to a backend that reads nothing.
    let mut imap = alice(&usher);
    (0..5).for_each(|_| imap.send(vec![b'x'; 200_000]));
    imap.reset();
    still.again("a client who left a frozen backend");
    let end = usher.wait_log("end", |line| line["cause"] == "client_error");
    assert!(end["bytes_in"].as_u64().unwrap() > 0, "{end}");
}

#[test]
fn backend_can_close_a_session_with_a_client_that_does_not_read() {
    let backend = FaultyBackend::start();
    let usher = backend.usher();
    let still = Still::of(&usher);
    backend.be(Some(|peer| {
        after_login(peer, |peer| {
            // More than the client's side buffers, and less than fills usher's window: a kernel drops
            // a reset that is outside of it.
            peer.send(vec![b'x'; 480 * 1024]);
            peer.reset();
        });
    }));
    let imap = alice(&usher);
    // The client's own descriptor is still open: usher's is not.
    still.again("a backend that closed on a client that does not read");
    usher.wait_log("end", |line| line["cause"] == "backend_error");
    drop(imap);
}

#[test]
fn backend_reset_frees_both_sides_at_once() {
    let backend = FaultyBackend::start();
    let usher = backend.usher();
    let still = Still::of(&usher);
    backend.be(Some(|peer| {
        after_login(peer, |peer| {
            peer.line();
            peer.reset();
        });
    }));
    let mut imap = alice(&usher);
    let asked = Instant::now();
    imap.send("x NOOP\r\n");
    imap.rest();
    assert!(asked.elapsed() < Duration::from_secs(2), "the client got its reply after {:?}", asked.elapsed());
    // The client's own descriptor is still open: usher's is not.
    still.again("a backend's reset");
    usher.wait_log("end", |line| line["cause"] == "backend_error");
}

/// The time from the last byte to the end of a session of which one half is closed.
fn lives_on(talk: impl FnOnce(&mut Imap) -> Instant, script: Script) {
    let backend = FaultyBackend::start();
    let usher = backend.usher();
    let still = Still::of(&usher);
    backend.be(Some(script));
    let mut imap = alice(&usher);
    let last_byte = talk(&mut imap);
    imap.rest();
    let lived = last_byte.elapsed();
    assert!(lived > Duration::from_millis(2500) && lived < Duration::from_secs(5), "ended after {lived:?}");
    still.again("a half-closed session");
}

#[test]
fn session_ends_three_seconds_after_the_last_byte_of_a_closed_client() {
    let talk = |imap: &mut Imap| {
        imap.half_close();
        (0..4).for_each(|_| assert_eq!(imap.line(), "* OK still here"));
        Instant::now()
    };
    lives_on(talk, |peer| {
        after_login(peer, |peer| {
            peer.wait_for_end();
            for _ in 0..4 {
                // The pace of a backend that has more to say.
                std::thread::sleep(Duration::from_secs(1));
                peer.send("* OK still here\r\n");
            }
            // It never closes by itself.
            std::thread::sleep(Duration::from_secs(15));
        });
    });
}

#[test]
fn session_ends_three_seconds_after_the_last_byte_of_a_closed_backend() {
    let (sender, ended) = channel();
    let sender = Mutex::new(sender);
    let backend = Scripted::tls(move |peer| {
        after_login(peer, |peer| {
            peer.send("* BYE later\r\n");
            peer.half_close();
            peer.wait_for_end();
            let _ = sender.lock().unwrap().send(Instant::now());
        });
    });
    let usher = Usher::start(Config::with_directory(slapd()).scripted(&backend));
    let mut imap = alice(&usher);
    assert_eq!(imap.line(), "* BYE later");
    for _ in 0..4 {
        std::thread::sleep(Duration::from_secs(1)); // the pace of a client that has more to say
        imap.send("x NOOP\r\n");
    }
    let last_byte = Instant::now();
    let ended = ended.recv_timeout(Duration::from_secs(10)).expect("the backend's side ends");
    let lived = ended - last_byte;
    assert!(lived > Duration::from_millis(2500) && lived < Duration::from_secs(5), "ended after {lived:?}");
    usher.wait_metric("usher_connections", &[], 0.0);
}

#[test]
fn frozen_dead_or_recovered_directory_leaves_no_state() {
    let mut directory = Slapd::private();
    let backend = FaultyBackend::start();
    let config = Config::with_directory(&directory).scripted(&backend.backend);
    let usher = Usher::start(config.set("/directory/timeout", "2s").set("/directory/attempt_timeout", "1s"));
    let still = Still::of(&usher);
    // Another user each time: a cached user needs no directory.
    for (fault, uid) in [("frozen", "anna"), ("dead", "sync3")] {
        if fault == "frozen" {
            directory.freeze()
        } else {
            directory.stop()
        }
        let mut imap = Imap::tls(usher.imaps_port());
        imap.login(uid, &password_of(uid)).is("NO [UNAVAILABLE]");
        imap.command("NOOP").ok();
        alice(&usher).command("NOOP").is("OK did NOOP");
        if fault == "frozen" {
            directory.thaw()
        } else {
            directory.start_again()
        }
        imap.login(uid, &password_of(uid)).ok();
        drop(imap);
        still.again(fault);
    }
}

/// The keepalive timer of the socket between these ports, from the kernel's table: the time until
/// it expires.
fn keepalive(local: u16, remote: u16) -> Option<Duration> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().skip(1).find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let port = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
        let ours = [(local, words[1]), (remote, words[2])];
        let established = words[3] == "01";
        if !established || ours.iter().any(|(wanted, shown)| *wanted != 0 && port(shown) != Some(*wanted)) {
            return None;
        }
        // `2` is the keepalive timer; its time is in hundredths of a second.
        let (kind, rings) = words[5].split_once(':')?;
        let hundredths = u64::from_str_radix(rings, 16).ok()?;
        (kind == "02").then(|| Duration::from_millis(hundredths * 10))
    })
}

#[test]
fn silent_peer_is_probed_by_keepalive() {
    let backend = FaultyBackend::start();
    let usher = backend.usher();
    let mut imap = alice(&usher);
    imap.command("NOOP").is("OK did NOOP");
    for (side, (local, remote)) in [("client", (usher.imaps_port(), 0)), ("backend", (0, backend.backend.port))] {
        let deadline = Instant::now() + wait_limit(Duration::from_secs(5));
        // Another timer runs until the last acknowledgement.
        let rings = loop {
            if let Some(rings) = keepalive(local, remote) {
                break rings;
            }
            assert!(Instant::now() < deadline, "the {side}'s socket has no keepalive");
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(rings <= Duration::from_secs(240), "the {side} is asked after {rings:?}");
    }
}

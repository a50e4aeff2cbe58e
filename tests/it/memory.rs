//! No writable memory page of usher contains a password after its use, even while pools stay open.
//!
//! Everything that the process can write is read from outside, by /proc/PID/mem, and searched for the
//! beginning and the end of each password, and for its base64 at each alignment.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::client::{Tls, base64};
use crate::kit::process::run;
use crate::kit::{Config, Imap, Sieve, Usher, cyrus, dovecot, password_of, relay, wait_limit};

/// The time until it must be wiped; asserted at three times its value.
const WIPED_WITHIN: Duration = Duration::from_secs(3);
/// The length of the searched parts: a part of a password is a leak too.
const PART: usize = 20;

/// Prints the name of each needle found in the writable memory of the process, and its place.
const SCAN: &str = r#"
import re, sys
pid, needles = sys.argv[1], [line.split(" ") for line in sys.stdin.read().splitlines()]
needles = [(name, bytes.fromhex(needle)) for name, needle in needles]
with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
    for line in maps:
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line)
        begin, end = int(match[1], 16), int(match[2], 16)
        if "w" not in match[3]:
            continue
        carry, at = b"", begin
        while at < end:
            try:
                memory.seek(at)
                piece = memory.read(min(end - at, 1 << 24))
            except OSError:
                break
            if not piece:
                break
            text = carry + piece
            for name, needle in needles:
                found = text.find(needle)
                while found >= 0:
                    where = at - len(carry) + found
                    around = text[max(found - 48, 0):found + len(needle) + 48]
                    print(f"{name} at {where:x} in {line.split()[-1]} ({begin:x}-{end:x}): {around!r}")
                    found = text.find(needle, found + 1)
            at += len(piece)
            carry = text[-64:]
"#;

/// The needles for a password.
fn needles(name: &str, password: &str) -> Vec<(String, Vec<u8>)> {
    let bytes = password.as_bytes();
    let (first, last) = (&bytes[..PART], &bytes[bytes.len() - PART..]);
    let mut needles = vec![(format!("{name}:first"), first.to_vec()), (format!("{name}:last"), last.to_vec())];
    for alignment in 0..3 {
        let encoded = base64(&[&vec![0; alignment], &bytes[..24]].concat());
        // Without the digits that also encode neighbouring bytes.
        let begin = [0, 2, 3][alignment];
        needles.push((format!("{name}:base64-{alignment}"), encoded.as_bytes()[begin..begin + PART].to_vec()));
    }
    needles
}

/// The places in the memory of usher that contain any of them.
fn found(usher: &Usher, needles: &[(String, Vec<u8>)]) -> Vec<String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let input: String = needles.iter().map(|(name, needle)| format!("{name} {}\n", hex(needle))).collect();
    let said = run("python3", &["-c", SCAN, &usher.pid().to_string()], input.as_bytes()).succeeded();
    said.stdout.lines().map(str::to_owned).collect()
}

/// Waits until none is found.
pub(crate) fn gone(usher: &Usher, what: &str, needles: &[(String, Vec<u8>)]) {
    let deadline = Instant::now() + wait_limit(3 * WIPED_WITHIN);
    loop {
        let found = found(usher, needles);
        if found.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{what}:\n{}", found.join("\n"));
        // Memory offers no event to wait for.
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A session that is open until it is dropped.
enum Session {
    Lines(#[expect(dead_code, reason = "kept open")] Imap),
    Sieve(#[expect(dead_code, reason = "kept open")] Sieve),
}

/// A login method: its name and function. The last argument is whether the login should succeed.
type LoginMethod = (&'static str, fn(u16, &str, &str, bool) -> Session);

fn imap_login(port: u16, uid: &str, password: &str, good: bool) -> Session {
    let mut imap = Imap::tls(port);
    imap.login(uid, password).is(if good { "OK" } else { "NO [AUTHENTICATIONFAILED]" });
    Session::Lines(imap)
}

fn imap_authenticate(port: u16, uid: &str, password: &str, good: bool) -> Session {
    let mut imap = Imap::tls(port);
    imap.authenticate("", uid, password.as_bytes()).is(if good { "OK" } else { "NO [AUTHENTICATIONFAILED]" });
    Session::Lines(imap)
}

fn ask(connection: &mut Imap, command: &str) -> String {
    connection.send(format!("{command}\r\n"));
    connection.line()
}

fn pop3_pass(port: u16, uid: &str, password: &str, good: bool) -> Session {
    let mut pop3 = Imap::tls(port);
    assert!(ask(&mut pop3, &format!("USER {uid}")).starts_with("+OK"));
    let said = ask(&mut pop3, &format!("PASS {password}"));
    assert_eq!(said.starts_with("+OK"), good, "{said}");
    Session::Lines(pop3)
}

fn plain(uid: &str, password: &str) -> String {
    base64(format!("\0{uid}\0{password}").as_bytes())
}

fn pop3_auth(port: u16, uid: &str, password: &str, good: bool) -> Session {
    let mut pop3 = Imap::tls(port);
    let said = ask(&mut pop3, &format!("AUTH PLAIN {}", plain(uid, password)));
    assert_eq!(said.starts_with("+OK"), good, "{said}");
    Session::Lines(pop3)
}

fn submission(port: u16, uid: &str, password: &str, good: bool) -> Session {
    let mut smtp = Imap::tls(port);
    let mut said = ask(&mut smtp, "EHLO here");
    while said.as_bytes().get(3) == Some(&b'-') {
        said = smtp.line();
    }
    let said = ask(&mut smtp, &format!("AUTH PLAIN {}", plain(uid, password)));
    assert!(said.starts_with(if good { "235 " } else { "535 " }), "{said}");
    Session::Lines(smtp)
}

fn managesieve(port: u16, uid: &str, password: &str, good: bool) -> Session {
    let mut sieve = Sieve::tls(port);
    let said = sieve.authenticate(uid, password);
    assert!(said.starts_with(if good { "OK" } else { "NO" }), "{said}");
    Session::Sieve(sieve)
}

/// Wrong, uncached and cached logins by each method at each server: nothing is left after each connection.
fn nothing_stays(config: Config, ways: &[LoginMethod], people: &[&str]) {
    nothing_stays_in(&watched(config), ways, people);
}

/// Starts it so that its memory can be read.
pub(crate) fn watched(config: Config) -> Usher {
    Usher::start(config.set("/process", json!({"debug": true})).set("/limits/failed_logins", 50))
}

fn nothing_stays_in(usher: &Usher, ways: &[LoginMethod], people: &[&str]) {
    let port = usher.imaps_port();
    let (mut all, mut logins) = (Vec::new(), 0);
    for uid in people {
        let password = password_of(uid);
        for (name, way) in ways {
            let wrong = format!("wrong{name}{uid}Hn3Xc8Qz5Vb1Km7Ty4Lp9Wd2Rs6Jf0");
            let needles = needles(&format!("{uid}-{name}-wrong"), &wrong);
            drop(way(port, uid, &wrong, false));
            gone(usher, &format!("a wrong login of {uid} by {name}"), &needles);
            all.extend(needles);
        }
        let right = needles(uid, &password);
        // The first is verified by the directory, the others by the cache.
        for (name, way) in ways.iter().chain(ways) {
            let session = way(port, uid, &password, true);
            logins += 1;
            // The one exception: the buffer of rustls for this client.
            let open = found(usher, &right);
            let mut copies: Vec<&str> = open.iter().map(|line| line.split(':').next().unwrap_or_default()).collect();
            copies.dedup();
            assert!(open.len() <= 2, "{name}, while the session of {uid} is open:\n{}", open.join("\n"));
            drop(session);
            usher.wait_nth_log(logins, "end", |_| true);
            gone(usher, &format!("a session of {uid} by {name}"), &right);
        }
        all.extend(right);
    }
    gone(usher, "after all", &all);
    let connections = usher.metric("usher_directory_connections", &[]);
    assert!(connections > 0.0 || usher.log_text().is_empty(), "the pool stays open: {connections}");
}

#[test]
fn imap_passwords_stay_in_no_memory_page() {
    let ways: [LoginMethod; 2] = [("login", imap_login), ("authenticate", imap_authenticate)];
    nothing_stays(Config::shared(), &ways, &["memimap3", "memimap4"]);
}

#[test]
fn passwords_of_traced_sessions_stay_in_no_memory_page() {
    let usher = watched(Config::shared());
    let mut reader = UnixStream::connect(usher.config.path("control.sock")).unwrap();
    reader.write_all(b"POST /trace?client=127.0.0.1&for=1h HTTP/1.1\r\nHost: usher\r\n\r\n").unwrap();
    usher.wait_metric("usher_traces", &[], 1.0);
    nothing_stays_in(&usher, &[("login", imap_login), ("authenticate", imap_authenticate)], &["memtrace3"]);
    drop(reader);
}

#[test]
fn pop3_passwords_stay_in_no_memory_page() {
    let config = Config::shared().speaking("pop3", &[dovecot().pop3s, cyrus().pop3().0]);
    let ways: [LoginMethod; 2] = [("pass", pop3_pass), ("auth", pop3_auth)];
    nothing_stays(config, &ways, &["mempop3", "mempop4"]);
}

#[test]
fn submission_passwords_stay_in_no_memory_page() {
    relay();
    let config = Config::shared().speaking("submission", &[dovecot().submissions]);
    nothing_stays(config, &[("auth", submission)], &["memsend3"]);
}

#[test]
fn managesieve_passwords_stay_in_no_memory_page() {
    // timsieved accepts only users with a mailbox, which imapd creates.
    let tls = Tls { server_name: "server4.example.com", ..Tls::default() };
    let mut mailbox = Imap::try_tls(cyrus().imaps, &tls).unwrap();
    mailbox.authenticate("", "memsieve4", password_of("memsieve4").as_bytes()).ok();
    let config = Config::shared()
        .speaking("managesieve", &[dovecot().sieve, cyrus().sieve])
        .set("/routing/backends/0/managesieve/tls", "starttls")
        .set("/routing/backends/1/managesieve/tls", "starttls");
    nothing_stays(config, &[("authenticate", managesieve)], &["memsieve3", "memsieve4"]);
}

#[test]
fn systemd_unit_allows_no_swap() {
    let unit = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/usher.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    assert!(unit.lines().any(|line| line == "MemorySwapMax=0"), "{unit}");
}

#[test]
fn memory_search_finds_a_known_value() {
    // The service account's password at the backends is kept for as long as the process lives.
    let mut config = Config::shared().set("/process", json!({"debug": true}));
    let password = password_of("memimap3");
    let file = config.file("service.password", &password);
    let service: Value = json!({"login": "usher", "password_file": file});
    config.change("/routing/backends/0/service", service);
    config.change("/directory/login_attribute", "uid");
    let usher = Usher::start(config);
    let found = found(&usher, &needles("kept", &password));
    assert!(found.iter().any(|line| line.starts_with("kept:first")), "{found:?}");
    assert!(found.iter().any(|line| line.starts_with("kept:last")), "{found:?}");
}

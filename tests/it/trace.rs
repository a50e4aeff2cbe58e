//! `usher trace`: the dialogues of chosen sessions on real servers, without a password in any form, and its bounds.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::control::ask;
use crate::kit::client::base64;
use crate::kit::process::free_port;
use crate::kit::usher::{BINARY, Successor};
use crate::kit::{Config, Imap, Sieve, Usher, dovecot, password_of, relay, wait_limit};

/// A running `usher trace`, ended when it is dropped.
pub(crate) struct Tracer {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Tracer {
    /// Starts it and waits until the trace is active.
    pub(crate) fn start(usher: &Usher, arguments: &[&str]) -> Self {
        let mut tracer = Self::spawn(usher, &[&["--json"], arguments].concat());
        tracer.wait("the beginning", |line| line.contains("\"started\""));
        tracer
    }

    fn spawn(usher: &Usher, arguments: &[&str]) -> Self {
        let file = usher.config.path("usher.yaml").display().to_string();
        let mut child = Command::new(BINARY)
            .args(["trace", "--config", &file])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let errors = sender.clone();
        let (out, err) = (BufReader::new(child.stdout.take().unwrap()), BufReader::new(child.stderr.take().unwrap()));
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        std::thread::spawn(move || err.lines().map_while(Result::ok).try_for_each(|line| errors.send(line)));
        Self { child, lines, seen: Vec::new() }
    }

    /// Waits for a line, and returns it.
    fn wait(&mut self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        loop {
            match self.lines.recv_timeout(wait_limit(Duration::from_secs(20))) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if is_it(&line) {
                        return line;
                    }
                }
                Err(error) => panic!("{what}: {error}; so far:\n{}", self.seen.join("\n")),
            }
        }
    }

    /// Waits for a line of a session with this text.
    pub(crate) fn wait_text(&mut self, text: &str) -> Value {
        let line = self.wait(text, |line| line_of(line).is_some_and(|line| has(&line, text)));
        line_of(&line).unwrap()
    }

    /// The lines of sessions so far, each as `leg direction text`.
    pub(crate) fn shown(&self) -> Vec<String> {
        let lines = self.seen.iter().filter_map(|line| line_of(line));
        let word = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
        lines.map(|line| ["leg", "direction", "text"].map(|key| word(&line, key)).join(" ")).collect()
    }

    /// Reads to the end, and returns the exit code.
    fn ended(&mut self) -> i32 {
        loop {
            match self.lines.recv_timeout(wait_limit(Duration::from_secs(20))) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(error) => panic!("{error}; so far:\n{}", self.seen.join("\n")),
            }
        }
        self.child.wait().unwrap().code().unwrap_or(-1)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line_of(line: &str) -> Option<Value> {
    let message: Value = serde_json::from_str(line).ok()?;
    message.get("line").cloned()
}

fn has(line: &Value, text: &str) -> bool {
    line["text"].as_str().unwrap().contains(text)
}

fn is_audit(line: &Value, cmd: &str) -> bool {
    line["cmd"] == cmd
}

/// No six bytes in a row of the password, or of its base64 at any alignment, are in the text.
pub(crate) fn has_no_secret(text: &str, password: &str) {
    let encoded = (0..3).map(|before| {
        let whole = base64(&[&vec![0; before], password.as_bytes()].concat());
        whole[(before * 8_usize).div_ceil(6)..].to_owned()
    });
    for form in encoded.chain([password.to_owned()]) {
        for part in form.as_bytes().windows(6.min(form.len())) {
            let found = text.as_bytes().windows(part.len()).any(|window| window == part);
            assert!(!found, "{} is in\n{text}", part.escape_ascii());
        }
    }
}

fn said(peer: &mut Imap, line: &str) -> String {
    peer.send(format!("{line}\r\n"));
    peer.line()
}

#[test]
fn both_legs_of_a_login_are_shown_and_the_log_names_who_asked() {
    let usher = Usher::start(Config::shared().set("/directory/login_attribute", "uid"));
    let mut tracer = Tracer::start(&usher, &["--user", "ALICE@example.com"]);
    assert_eq!(usher.metric("usher_traces", &[]), 1.0);
    let begun = usher.wait_log("admin command", |line| is_audit(line, "trace"));
    assert_eq!((begun["what"].as_str(), begun["uid"].is_u64()), (Some("user=ALICE@example.com for=600s"), true));

    let mut bob = Imap::tls(usher.imaps_port());
    bob.login("bob", &password_of("bob")).ok();
    let mut alice = Imap::tls(usher.imaps_port());
    alice.command("ID (\"name\" \"Mail\" \"version\" \"7.1\")").ok();
    alice.login("alice@example.com", &password_of("alice")).ok();
    let last = tracer.wait_text("no longer traced");
    assert_eq!(last["session"], usher.login("alice@example.com")["session"]);
    let shown = tracer.shown();
    let position = |text: &str| {
        let found = shown.iter().position(|line| line.contains(text));
        found.unwrap_or_else(|| panic!("no {text:?} in\n{}", shown.join("\n")))
    };
    let order = [
        "client note 127.0.0.1:",
        "client note TLS: TLSv1_3, ",
        "client out * OK [CAPABILITY IMAP4rev1",
        "ID (\"name\" \"Mail\" \"version\" \"7.1\")",
        "LOGIN <",
        "usher note login attempt as alice@example.com",
        "directory note asked ldap",
        "directory note password accepted: entry ",
        "usher note routed to the backend server3, login there alice",
        "backend note connected to 127.0.0.1:",
        "verified as server3.example.com",
        "backend in * OK",
        "backend out u",
        "usher note login accepted",
        "client out ",
    ];
    let places: Vec<usize> = order.iter().map(|text| position(text)).collect();
    assert!(places[..14].is_sorted(), "{places:?}\n{}", shown.join("\n"));
    assert!(!shown.iter().any(|line| line.contains("bob")), "{shown:#?}");
    has_no_secret(&tracer.seen.join("\n"), &password_of("alice"));

    // The second login is decided by the cache.
    let mut again = Imap::tls(usher.imaps_port());
    again.login("alice@example.com", &password_of("alice")).ok();
    tracer.wait_text("the cache has this password");
    tracer.wait_text("no longer traced");

    tracer.signal(Signal::KILL);
    let end = usher.wait_log("admin command", |line| is_audit(line, "trace end"));
    assert_eq!((&end["count"], &end["uid"], &end["lost"]), (&json!(2), &begun["uid"], &json!(0)), "{end}");
    usher.wait_metric("usher_traces", &[], 0.0);
    has_no_secret(&usher.log_text(), &password_of("alice"));
}

#[test]
fn text_for_a_terminal_has_time_session_and_way() {
    let usher = Usher::start(Config::shared());
    let mut tracer = Tracer::spawn(&usher, &["--client", "127.0.0.0/8", "--for", "5m"]);
    tracer.wait("the beginning", |line| line == "tracing client=127.0.0.0/8 for 300 s; Ctrl-C ends it");
    let mut alice = Imap::tls(usher.imaps_port());
    alice.login("alice", "Nq4.Vz8.Xy7.Kb2").is("NO [AUTHENTICATIONFAILED]");
    let line = tracer.wait("the refusal", |line| line.contains("login refused: wrong_password"));
    let session = usher.login("alice")["session"].as_str().unwrap().to_owned();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert!(words[0].parse::<f64>().is_ok() && words[1] == session, "{line}");
    tracer.wait("the reply", |line| line.contains("  usher > client   ") && line.contains("NO [AUTHENTICATIONFAILED]"));
    assert!(tracer.seen.iter().any(|line| line.contains("LDAP result 49")), "{}", tracer.seen.join("\n"));
    has_no_secret(&tracer.seen.join("\n"), "Nq4.Vz8.Xy7.Kb2");
    tracer.signal(Signal::INT);
    assert_eq!(tracer.ended(), 0);
    usher.wait_log("admin command", |line| is_audit(line, "trace end"));
}

#[test]
fn outage_of_a_backend_is_shown_with_its_reason() {
    let dead = free_port();
    let usher = Usher::start(Config::shared().set("/routing/backends/0/imap/address", format!("127.0.0.1:{dead}")));
    let mut tracer = Tracer::start(&usher, &["--backend", "server3"]);
    let mut alice = Imap::tls(usher.imaps_port());
    alice.login("alice", &password_of("alice")).is("NO [UNAVAILABLE]");
    tracer.wait_text("login refused: backend_unreachable");
    let shown = tracer.shown().join("\n");
    assert!(shown.contains(&format!("127.0.0.1:{dead}")) && shown.contains("refused"), "{shown}");
    assert!(shown.contains("client out * OK [CAPABILITY"), "what went before is shown too: {shown}");
    has_no_secret(&shown, &password_of("alice"));
    for (path, status, words) in [
        ("/trace", 400, "select what to trace"),
        ("/trace?older_than=1h", 400, "select what to trace"),
        ("/trace?backend=server9", 400, "unknown backend"),
        ("/trace?user=alice&for=2h", 400, "from 1s to 1h"),
        ("/trace?user=", 400, "`user` is empty"),
    ] {
        let (said, problem) = ask(&usher, "POST", path);
        assert!(said == status && problem["error"].as_str().unwrap().contains(words), "{path}: {problem}");
    }
}

#[test]
fn outage_of_the_directory_is_shown_with_its_reason() {
    let dead = format!("ldaps://127.0.0.1:{}", free_port());
    let usher = Usher::start(Config::shared().set("/directory/servers/0", dead));
    let mut tracer = Tracer::start(&usher, &["--user", "alice"]);
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).is("NO [UNAVAILABLE]");
    let line = tracer.wait_text("no verdict on the password: ");
    assert!(has(&line, "Connection refused") && line["leg"] == "directory", "{line}");
    tracer.wait_text("login refused: directory_unavailable");
}

#[test]
fn passwords_are_shown_in_no_protocol_and_by_no_mechanism() {
    relay();
    let mail = dovecot();
    let password = password_of("alice");
    let (wrong, plain) = ("W7q/Rz4\"x Kd9", base64(format!("\0alice\0{password}").as_bytes()));
    let check = |config: Config, dialogue: &dyn Fn(&Usher), logins: usize| {
        let usher = Usher::start(config);
        let mut tracer = Tracer::start(&usher, &["--client", "127.0.0.1"]);
        dialogue(&usher);
        (0..logins).for_each(|_| drop(tracer.wait_text("no longer traced")));
        let all = tracer.seen.join("\n");
        has_no_secret(&all, &password);
        has_no_secret(&all, wrong);
        assert!(all.contains("login refused: wrong_password"), "{all}");
    };
    let pop3 = |usher: &Usher| {
        let mut pop3 = Imap::tls(usher.imaps_port());
        said(&mut pop3, &format!("APOP alice {password}"));
        said(&mut pop3, "USER alice");
        assert!(said(&mut pop3, &format!("PASS {wrong}")).starts_with("-ERR"));
        said(&mut pop3, "USER alice");
        assert!(said(&mut pop3, &format!("PASS {password}")).starts_with("+OK"));
        let mut pop3 = Imap::tls(usher.imaps_port());
        assert!(said(&mut pop3, &format!("AUTH PLAIN {plain}")).starts_with("+OK"));
    };
    check(Config::shared().speaking("pop3", &[mail.pop3s]), &pop3, 2);
    let submission = |usher: &Usher| {
        let mut smtp = Imap::tls(usher.imaps_port());
        smtp.send("EHLO laptop.example.net\r\n");
        while smtp.line().as_bytes().get(3) == Some(&b'-') {}
        said(&mut smtp, &format!("NOOP {password}"));
        said(&mut smtp, "AUTH LOGIN");
        said(&mut smtp, &base64(b"alice"));
        assert!(said(&mut smtp, &base64(wrong.as_bytes())).starts_with("535"));
        said(&mut smtp, "AUTH PLAIN");
        assert!(said(&mut smtp, &plain).starts_with("235"));
    };
    check(Config::shared().speaking("submission", &[mail.submissions]), &submission, 1);
    let sieve = |usher: &Usher| {
        let mut sieve = Sieve::tls(usher.imaps_port());
        sieve.command(&format!("NOOP \"{password}\""));
        assert!(sieve.authenticate("alice", wrong).starts_with("NO"));
        assert!(sieve.authenticate("alice", &password).starts_with("OK"));
    };
    let config =
        Config::shared().speaking("managesieve", &[mail.sieve]).set("/routing/backends/0/managesieve/tls", "starttls");
    check(config, &sieve, 1);
    let imap = |usher: &Usher| {
        let mut imap = Imap::tls(usher.imaps_port());
        // A client that is out of step: the password as a command, and a literal that was not requested.
        imap.send(format!("{password}\r\na1 LOGIN alice {{5000000}}\r\n{password} NOOP\r\na2 ID {password}\r\n"));
        (0..4).for_each(|_| drop(imap.line()));
        imap.authenticate("", "alice", wrong.as_bytes()).is("NO");
        imap.authenticate("", "alice", password.as_bytes()).ok();
    };
    check(Config::shared(), &imap, 1);
}

#[test]
fn requests_of_nginx_are_traced() {
    let config = Config::shared().set("/auth_http", json!({"address": "127.0.0.1:0", "allow": ["127.0.0.1"]}));
    let mut config = config;
    config.change("/routing/backends/0/imap/auth_http", json!({"port": dovecot().imap}));
    let usher = Usher::start(config);
    let address = usher.wait_log("auth_http listening", |_| true)["address"].as_str().unwrap().to_owned();
    let mut tracer = Tracer::start(&usher, &["--client", "192.0.2.7"]);
    let mut nginx = TcpStream::connect(address).unwrap();
    let password = password_of("alice");
    let request = format!(
        "GET / HTTP/1.0\r\nAuth-Method: plain\r\nAuth-User: alice\r\nAuth-Pass: {password}\r\nAuth-Protocol: imap\r\n\
         Auth-Login-Attempt: 1\r\nClient-IP: 192.0.2.7\r\n\r\n"
    );
    nginx.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    nginx.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("Auth-Status: OK"), "{answer}");
    tracer.wait_text("Auth-Port: ");
    let shown = tracer.shown().join("\n");
    assert!(shown.contains(&format!("Auth-User <5 bytes>, Auth-Pass <{} bytes>", password.len())), "{shown}");
    assert!(shown.contains("login attempt as alice") && shown.contains("routed to the backend server3"), "{shown}");
    has_no_secret(&shown, &password);
}

/// A reader that does not read.
fn silent_reader(usher: &Usher, path: &str) -> UnixStream {
    let mut stream = UnixStream::connect(usher.config.path("control.sock")).unwrap();
    stream.set_read_timeout(Some(wait_limit(Duration::from_secs(20)))).unwrap();
    stream.write_all(format!("POST {path} HTTP/1.1\r\nHost: usher\r\n\r\n").as_bytes()).unwrap();
    stream
}

#[test]
fn slow_reader_loses_lines_and_slows_no_login() {
    let usher = Usher::start(Config::shared());
    let mut reader = silent_reader(&usher, "/trace?client=127.0.0.1&for=1h");
    usher.wait_metric("usher_traces", &[], 1.0);
    for _ in 0..12 {
        let mut client = Imap::tls(usher.imaps_port());
        // Each command is two lines.
        client.send("a NOOP\r\n".repeat(450));
        (0..450).for_each(|_| drop(client.line()));
        client.login("alice", &password_of("alice")).ok();
    }
    // As a reload ends it, what is queued is still sent.
    assert_eq!(usher.hup()["message"], "reloaded");
    let mut all = Vec::new();
    let _ = reader.read_to_end(&mut all);
    let all = String::from_utf8(all).unwrap();
    let summary = all.lines().find(|line| line.contains("\"ended\"")).unwrap_or_else(|| panic!("no end: {all:.300}"));
    let summary: Value = serde_json::from_str(summary).unwrap();
    let (lines, lost) = (summary["ended"]["lines"].as_u64().unwrap(), summary["ended"]["lost"].as_u64().unwrap());
    let received = all.lines().filter(|line| line.starts_with("{\"line\"")).count() as u64;
    assert!(lost > 0 && received + lost == lines, "{received} + {lost} = {lines}");
    assert_eq!(summary["ended"]["sessions"], 12);
    let end = usher.wait_log("admin command", |line| is_audit(line, "trace end"));
    assert_eq!((&end["lost"], &end["count"]), (&json!(lost), &json!(12)));
}

#[test]
fn traces_are_bounded_and_end_with_the_process() {
    let usher = Usher::start(Config::shared());
    let readers: Vec<_> = (0..4).map(|_| silent_reader(&usher, "/trace?user=alice")).collect();
    usher.wait_metric("usher_traces", &[], 4.0);
    let (status, problem) = ask(&usher, "POST", "/trace?user=alice");
    assert!(status == 409 && problem["error"].as_str().unwrap().contains("4 traces are running"), "{problem}");
    drop(readers);
    usher.wait_metric("usher_traces", &[], 0.0);
    usher.wait_nth_log(4, "admin command", |line| is_audit(line, "trace end"));
    let refused = Usher::command(&usher, &["trace", "--user", "alice", "--for", "2h"]);
    assert_eq!(refused.code, 64, "{refused:#?}");
    assert_eq!(usher.command(&["trace"]).code, 64);
    let over = usher.command(&["trace", "--user", "alice", "--for", "1s"]).succeeded();
    assert!(over.stderr.contains("trace ended: 1 s are over; 0 sessions, 0 lines"), "{over:#?}");

    let mut tracer = Tracer::start(&usher, &["--user", "alice"]);
    usher.command(&["upgrade"]).succeeded();
    assert_eq!(tracer.ended(), 1);
    assert!(tracer.seen.last().unwrap().contains("another process serves now"), "{:?}", tracer.seen);
    let successor = Successor::of(&usher, 2);
    let mut tracer = Tracer::start(&usher, &["--user", "alice"]);
    kill_process(successor.0, Signal::TERM).unwrap();
    assert_eq!(tracer.ended(), 1);
    assert!(tracer.seen.last().unwrap().contains("shutting down"), "{:?}", tracer.seen);
}

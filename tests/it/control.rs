//! The control socket for scripts and unauthorized users: plain HTTP, error messages, limits,
//! and none of its commands on the side port.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::Value;

use crate::kit::process::run;
use crate::kit::usher::{BINARY, command};
use crate::kit::{Config, Imap, Usher, password_of, wait_limit};

/// Sends bytes to the control socket and returns the whole reply.
fn raw(usher: &Usher, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(usher.config.path("control.sock")).unwrap();
    stream.set_read_timeout(Some(wait_limit(Duration::from_secs(20)))).unwrap();
    // The connection may be closed before all of it is read.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    // A reset counts as a close.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

/// A request without a body: the status and the JSON.
pub(crate) fn ask(usher: &Usher, method: &str, path: &str) -> (u16, Value) {
    let answer = raw(usher, format!("{method} {path} HTTP/1.1\r\nHost: usher\r\n\r\n").as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(head.contains("application/json"), "{answer}");
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}")))
}

#[test]
fn curl_can_drive_the_control_socket() {
    let usher = Usher::start(Config::shared());
    let mut alice = Imap::tls(usher.imaps_port());
    alice.login("alice", &password_of("alice")).ok();
    let socket = usher.config.path("control.sock").display().to_string();
    let url = "http://usher/sessions?user=alice&client=127.0.0.0/8";
    let said = run("curl", &["--silent", "--fail", "--unix-socket", &socket, url], b"").succeeded();
    let sessions: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((sessions[0]["login"].as_str(), sessions[0]["backend"].as_str()), (Some("alice"), Some("server3")));
    assert_eq!(sessions.as_array().unwrap().len(), 1);
}

#[test]
fn invalid_requests_get_an_error_message_and_change_nothing() {
    let usher = Usher::start(Config::shared());
    let mut alice = Imap::tls(usher.imaps_port());
    alice.login("alice", &password_of("alice")).ok();
    for (method, path, status, words) in [
        ("GET", "/", 404, "no such path"),
        ("GET", "/kick?all=true", 405, "POST changes"),
        ("POST", "/sessions", 405, "method not allowed"),
        ("POST", "/kick", 400, "select sessions"),
        ("POST", "/kick?user=alice&all=true", 400, "select sessions"),
        ("POST", "/kick?user=", 400, "`user` is empty"),
        ("POST", "/kick?usr=alice", 400, "unknown or repeated argument `usr`"),
        ("POST", "/kick?user=alice&user=bob", 400, "unknown or repeated argument `user`"),
        ("POST", "/kick?user=alice&over=soon", 400, "`over` is not a duration"),
        ("POST", "/kick?user=alice&over=25h", 400, "at most 24h"),
        ("POST", "/kick?user=alice&dry_run=yes", 400, "`dry_run` must be true or false"),
        ("POST", "/kick?backend=serv3", 400, "unknown backend `serv3`; configured backends: server3, server4"),
        ("GET", "/sessions?protocol=http", 400, "unknown protocol `http`; supported are imap"),
        ("GET", "/sessions?client=127.0.0.1/8", 400, "invalid client `127.0.0.1/8`"),
        ("GET", "/sessions?older_than=1", 400, "invalid age `1`"),
        ("GET", "/cache", 400, "`login` is missing"),
        ("POST", "/cache/drop", 400, "specify login"),
        ("POST", "/cache/drop?login=alice&all=true", 400, "specify login"),
        ("POST", "/backends/server9/drain", 400, "unknown backend `server9`"),
        ("POST", "/backends/server3/drain?rate=-1", 400, "`rate` must be a number from 0 to"),
        ("POST", "/drain?ready_only=true&undo=true", 400, "exclude each other"),
        ("POST", "/confirm/soon", 400, "`soon` is not a number of seconds"),
    ] {
        let (said, problem) = ask(&usher, method, path);
        let sentence = problem["error"].as_str().unwrap_or_else(|| panic!("{method} {path}: {problem}"));
        assert!(said == status && sentence.contains(words), "{method} {path}: {said} {sentence}");
    }
    alice.command("NOOP").ok();
    assert!(!usher.log_text().contains("admin command"));
}

#[test]
fn request_size_and_duration_are_limited() {
    let usher = Usher::start(Config::shared());
    let body = "POST /reload HTTP/1.1\r\nHost: usher\r\nContent-Length: 5\r\n\r\nhello";
    let said = raw(&usher, body.as_bytes());
    assert!(said.starts_with("HTTP/1.1 413 ") && said.contains("request bodies are not allowed"), "{said}");
    let endless = format!("GET /{} HTTP/1.1\r\n", "a".repeat(100_000));
    let said = raw(&usher, endless.as_bytes());
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
    assert!(raw(&usher, b"\x16\x03\x01 no HTTP\r\n\r\n").starts_with("HTTP/1.1 400 "));
    // More silent peers than slots: the next request waits until they time out.
    let silent: Vec<_> = (0..40).map(|_| UnixStream::connect(usher.config.path("control.sock")).unwrap()).collect();
    assert_eq!(ask(&usher, "GET", "/sessions").0, 200);
    drop(silent);
    assert_eq!(usher.http("/live").0, 200);
}

#[test]
fn control_commands_are_not_on_the_side_port() {
    let usher = Usher::start(Config::shared());
    for path in ["/sessions", "/backends", "/cache?login=alice", "/users/616c696365"] {
        assert_eq!(usher.http(path).0, 404, "{path}");
    }
    for path in ["/kick?all=true", "/reload", "/upgrade", "/drain", "/confirm/0", "/cache/drop?all=true"] {
        let mut stream = std::net::TcpStream::connect(usher.side_port()).unwrap();
        stream.set_read_timeout(Some(wait_limit(Duration::from_secs(10)))).unwrap();
        write!(stream, "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
}

#[test]
fn commands_report_missing_arguments() {
    let config = Config::shared();
    config.write();
    let commands: [&[&str]; 9] = [
        &["sessions"],
        &["kick", "--all"],
        &["cache", "show", "alice"],
        &["cache", "drop", "--all"],
        &["backends"],
        &["backends", "drain", "server3"],
        &["drain"],
        &["reload"],
        &["confirm"],
    ];
    for arguments in commands {
        let said = command(&config, arguments, b"");
        assert!(said.code == 69 && said.stderr.contains("usher is not running"), "{arguments:?}: {said:#?}");
    }
    let without = config.without("/control");
    without.write();
    let said = command(&without, &["sessions"], b"");
    assert!(said.code == 78 && said.stderr.contains("add `control:"), "{said:#?}");
}

#[test]
fn unauthorized_user_gets_an_error_for_the_control_socket() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let usher = Usher::start(Config::shared());
    // A copy readable by all users: the build folder may not be.
    let program = usher.config.path("usher").display().to_string();
    std::fs::copy(BINARY, &program).unwrap();
    let file = usher.config.path("usher.yaml").display().to_string();
    let other_user = ["--reuid", "65534", "--regid", "65534", "--clear-groups", &program, "--config", &file];
    for arguments in [&["sessions"][..], &["kick", "--all"]] {
        let said = run("setpriv", &[&other_user, arguments].concat(), b"");
        assert!(said.code == 77 && said.stderr.contains("try sudo"), "{said:#?}");
    }
}

#[test]
fn help_shows_examples() {
    for (arguments, words) in [
        (&["sessions", "--help"][..], "usher sessions --backend server3"),
        (&["kick", "--help"], "usher kick --user alice"),
        (&["cache", "--help"], "usher cache drop alice"),
        (&["backends", "--help"], "Exit codes"),
        (&["backends", "drain", "--help"], "usher backends drain server3 --rate 5"),
        (&["drain", "--help"], "--ready-only"),
    ] {
        let said = run(BINARY, arguments, b"").succeeded();
        assert!(said.stdout.contains(words), "{said:#?}");
    }
}

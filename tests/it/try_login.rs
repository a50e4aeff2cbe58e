//! `usher try`: a whole login through the running usher, as a client would make it.

use serde_json::{Value, json};

use crate::kit::process::free_port;
use crate::kit::slapd::Slapd;
use crate::kit::usher::command;
use crate::kit::{Config, Usher, dovecot, password_of, slapd};

fn tried(usher: &Usher, arguments: &[&str], password: &str) -> (i32, Value) {
    let said = command(&usher.config, &[&["try"], arguments, &["--json"]].concat(), format!("{password}\n").as_bytes());
    let value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    (said.code, value)
}

#[test]
fn login_is_walked_and_its_session_ends() {
    let usher = Usher::start(Config::shared());
    let (code, value) = tried(&usher, &["alice", "--from", "192.0.2.7"], &password_of("alice"));
    assert_eq!((code, &value["result"], &value["backend"]), (0, &json!("ok"), &json!("server3")), "{value}");
    let phases: Vec<&str> =
        value["phases"].as_array().unwrap().iter().map(|phase| phase["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["search", "bind", "backend_connect", "backend_login"], "{value}");
    assert_eq!(value["phases"][1]["server"], slapd().tls_url());
    let reply = value["reply"].as_str().unwrap();
    assert!(reply.starts_with("a OK ") && reply.contains("CAPABILITY"), "{value}");
    // Logged as a login, and as the end of a session; the mail server saw a logout.
    let login = usher.login("alice");
    assert_eq!((&login["client"], &login["tried_by_uid"]), (&json!("192.0.2.7"), &json!(0)), "{login}");
    assert_eq!(login["session"], value["session"]);
    assert_eq!(usher.wait_log("end", |_| true)["cause"], "closed");
    usher.wait_metric("usher_sessions", &[], 0.0);
    assert_eq!(usher.metric("usher_logins_total", &[("result", "ok"), ("protocol", "imap")]), 1.0);
    // The decision is cached like any other, and the attempt is in the history.
    let (_, again) = tried(&usher, &["alice"], &password_of("alice"));
    assert_eq!(again["by"], "cache", "{again}");
    assert!(usher.command(&["history", "alice"]).succeeded().stdout.contains("192.0.2.7"));
    // As text.
    let said = command(&usher.config, &["try", "alice"], password_of("alice").as_bytes()).succeeded();
    for part in ["alice by imap", "backend login", " ms  server3", "client reads    a OK ", "result          ok"] {
        assert!(said.stdout.contains(part), "{part}: {}", said.stdout);
    }
    assert!(!usher.log_text().contains(&password_of("alice")) && !value.to_string().contains(&password_of("alice")));
}

#[test]
fn refusals_say_what_a_client_reads_and_count_like_those_of_clients() {
    let slapd = Slapd::private();
    let config = Config::with_directory(&slapd)
        .backend("server3", dovecot().imaps, &["server3"])
        .backend("server4", free_port(), &["server4", "server4.example.com"])
        .set(
            "/throttle/failed_logins_per_user",
            json!({"mode": "enforce", "free_failures": 2, "first_delay": "100ms", "max_delay": "200ms"}),
        );
    let mut slapd = slapd;
    let usher = Usher::start(config);
    let (code, value) = tried(&usher, &["alice"], "wrong-of-alice");
    assert_eq!((code, &value["result"]), (77, &json!("wrong_password")), "{value}");
    assert_eq!(value["reply"], "a NO [AUTHENTICATIONFAILED] Name or password is wrong");
    assert_eq!(tried(&usher, &["nobody"], "x").0, 67);
    assert_eq!(tried(&usher, &["carol"], &password_of("carol")).0, 65);
    let (code, value) = tried(&usher, &["bob"], &password_of("bob"));
    assert_eq!((code, &value["result"], &value["backend"]), (69, &json!("backend_unreachable"), &json!("server4")));
    assert!(value["reply"].as_str().unwrap().starts_with("a NO [UNAVAILABLE] "), "{value}");
    assert!(value["backend_reply"].as_str().unwrap().contains("refused"), "{value}");
    // Guesses are limited as those of clients are, whoever asks.
    for guess in 0..6 {
        tried(&usher, &["alice"], &format!("guess-{guess}"));
    }
    let (code, value) = tried(&usher, &["alice"], "guess-7");
    assert_eq!((code, &value["limited_by"]), (77, &json!("failed_logins_per_user")), "{value}");
    slapd.stop();
    let (code, value) = tried(&usher, &["bob"], "another");
    assert_eq!((code, &value["result"]), (69, &json!("directory_unavailable")), "{value}");
    let log = usher.log_text();
    assert!(!log.contains("wrong-of-alice") && !log.contains("guess-"), "{log}");
}

#[test]
fn other_protocols_are_tried_by_their_own_commands_and_mistakes_are_said() {
    let config = Config::shared().speaking("pop3", &[dovecot().pop3s, dovecot().pop3s]);
    let usher = Usher::start(config);
    let (code, value) = tried(&usher, &["alice", "--protocol", "pop3"], &password_of("alice"));
    assert_eq!((code, &value["result"]), (0, &json!("ok")), "{value}");
    assert!(value["reply"].as_str().unwrap().starts_with("+OK"), "{value}");
    let (code, value) = tried(&usher, &["alice", "--protocol", "pop3"], "wrong");
    assert_eq!(code, 77);
    assert_eq!(value["reply"], "-ERR [AUTH] Name or password is wrong");
    let said = command(&usher.config, &["try", "alice", "--protocol", "imap"], b"x\n");
    assert!(said.code == 64 && said.stderr.contains("no listener for this protocol"), "{said:?}");
    let said = command(&usher.config, &["try", "alice"], b"");
    assert!(said.code == 66 && said.stderr.contains("no password was given"), "{said:?}");
    for body in ["{\"login\":\"alice\",\"password\":\"secret-in-a-mistake\"", "[]", ""] {
        let reply = crate::kit::process::run(
            "curl",
            &[
                "-s",
                "--unix-socket",
                usher.config.path("control.sock").to_str().unwrap(),
                "-d",
                body,
                "http://usher/try",
            ],
            b"",
        );
        assert!(
            reply.stdout.contains("the body must be an object") && !reply.stdout.contains("secret-in"),
            "{reply:?}"
        );
    }
    assert!(!usher.log_text().contains("secret-in-a-mistake"));
}

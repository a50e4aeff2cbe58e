//! `usher history`: what a helpdesk sees of a user's last attempts.

use serde_json::{Value, json};

use crate::kit::process::free_port;
use crate::kit::scripted::Scripted;
use crate::kit::{Config, Imap, Usher, password_of, slapd};

fn history(usher: &Usher, name: &str) -> (i32, Vec<Value>) {
    let said = usher.command(&["history", name, "--json"]);
    (said.code, serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}")))
}

#[test]
fn history_shows_each_attempt_with_its_reason_and_what_the_client_was_told() {
    let server = Scripted::accepting();
    let config = Config::with_directory(slapd())
        .scripted(&server)
        .backend("server4", free_port(), &["server4", "server4.example.com"])
        .set("/limits/failed_logins", 50);
    let usher = Usher::start(config);
    assert_eq!(history(&usher, "alice"), (67, Vec::new()));
    let said = usher.command(&["history", "alice"]);
    assert!(said.code == 67 && said.stderr.contains("no login attempt of alice is remembered"), "{said:?}");

    let mut client = Imap::tls(usher.imaps_port());
    client.command("ID (\"name\" \"Thunderbird\" \"version\" \"128.4\")").ok();
    client.login("alice", "not-her-password").is("NO [AUTHENTICATIONFAILED]");
    client.login("alice", "not-her-password").is("NO [AUTHENTICATIONFAILED]");
    client.login("alice", &password_of("alice")).ok();
    // By the address, which leads to the same entry.
    Imap::tls(usher.imaps_port()).login("alice@example.com", &password_of("alice")).ok();
    Imap::tls(usher.imaps_port()).login("bob", &password_of("bob")).is("NO [UNAVAILABLE]");
    Imap::tls(usher.imaps_port()).login("nobody-here", "secret-of-nobody").is("NO [AUTHENTICATIONFAILED]");

    let (code, attempts) = history(&usher, "ALICE");
    assert_eq!((code, attempts.len()), (0, 3), "{attempts:?}");
    let fact = |at: usize, name: &str| attempts[at][name].clone();
    assert_eq!((fact(0, "result"), fact(0, "count")), (json!("wrong_password"), json!(2)), "{attempts:?}");
    assert_eq!(fact(0, "reply"), "Name or password is wrong");
    assert_eq!((fact(0, "client"), fact(0, "program")), (json!("127.0.0.1"), json!("Thunderbird 128.4")));
    assert_eq!((fact(1, "result"), fact(1, "backend")), (json!("ok"), json!("server3")), "{attempts:?}");
    assert_eq!(fact(2, "login"), "alice@example.com");
    // The session is that of the log.
    assert_eq!(fact(1, "session"), usher.wait_log("login", |line| line["result"] == "ok")["session"]);
    let (_, attempts) = history(&usher, "bob");
    assert_eq!((&attempts[0]["result"], &attempts[0]["backend"]), (&json!("backend_unreachable"), &json!("server4")));
    assert!(attempts[0]["backend_reply"].as_str().unwrap().contains("refused"), "{attempts:?}");
    assert_eq!(history(&usher, "nobody-here").1[0]["result"], "unknown_user");

    let said = usher.command(&["history", "alice"]).succeeded().stdout;
    for part in
        ["RESULT", "wrong_password", "Thunderbird 128.4", "Name or password is wrong; 2 times since ", "server3"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    // By a name that was never typed: the cache knows it as one of the entry's.
    assert_eq!(history(&usher, "uid=alice,ou=people,dc=example,dc=com").1.len(), 3);
    for name in ["alice", "bob", "nobody-here"] {
        let all = format!("{:?}", history(&usher, name));
        for secret in [&password_of("alice"), "not-her-password", "secret-of-nobody"] {
            assert!(!all.contains(secret), "{all}");
        }
    }
    assert_eq!(usher.command(&["history"]).code, 64);
}

#[test]
fn name_that_a_terminal_would_interpret_is_escaped() {
    let server = Scripted::accepting();
    let usher = Usher::start(Config::with_directory(slapd()).scripted(&server));
    let mut client = Imap::tls(usher.imaps_port());
    client.command("ID (\"name\" \"\u{202e}evil\u{1b}[2J\")");
    client.login("alice", &password_of("alice")).ok();
    let said = usher.command(&["history", "alice"]).succeeded().stdout;
    assert!(!said.contains('\u{1b}') && !said.contains('\u{202e}'), "{said:?}");
}

//! `usher explain --running`: what a login would meet now, as the running process knows it.

use serde_json::{Value, json};

use crate::kit::process::free_port;
use crate::kit::scripted::Scripted;
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::usher::command;
use crate::kit::{Config, Imap, User, Usher, password_of, slapd};

fn log_in(usher: &Usher, name: &str) -> Imap {
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login(name, &password_of(name)).ok();
    imap
}

/// The exit code, and the answer.
fn explain(usher: &Usher, arguments: &[&str]) -> (i32, Value) {
    let said = usher.command(&[&["explain", "--running", "--json"], arguments].concat());
    let value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    (said.code, value)
}

/// The exit code and the result.
fn result(usher: &Usher, arguments: &[&str]) -> (i32, String) {
    let (code, value) = explain(usher, arguments);
    (code, value["result"].as_str().unwrap().to_owned())
}

fn is(code: i32, result: &str) -> (i32, String) {
    (code, result.to_owned())
}

#[test]
fn cache_backend_and_directory_decide_as_they_do_for_a_login() {
    let server = Scripted::accepting();
    let dead = free_port();
    let config = Config::with_directory(slapd())
        .scripted(&server)
        .backend("server4", dead, &["server4", "server4.example.com"])
        .set("/limits/failed_logins", 100);
    let usher = Usher::start(config);
    let before = usher.metric("usher_decisions_total", &[]);
    let (code, value) = explain(&usher, &["alice"]);
    assert_eq!((code, &value["by"], &value["result"]), (0, &json!("directory"), &json!("routed")), "{value}");
    assert_eq!((&value["backend"], &value["cached_seconds"]), (&json!("server3"), &Value::Null), "{value}");
    let session = log_in(&usher, "alice");
    let (code, value) = explain(&usher, &["alice"]);
    assert_eq!((code, &value["by"], &value["sessions"]), (0, &json!("cache"), &json!(1)), "{value}");
    // Another spelling was not typed before.
    assert_eq!(explain(&usher, &["ALICE"]).1["by"], "directory");
    assert_eq!(usher.metric("usher_decisions_total", &[]) - before, 1.0, "that of the login");
    drop(session);
    assert_eq!(result(&usher, &["nobody"]), is(67, "unknown_user"));
    assert_eq!(result(&usher, &["carol"]), is(65, "no_mail_host"));
    usher.command(&["backends", "drain", "server3"]).succeeded();
    let (code, value) = explain(&usher, &["alice"]);
    assert_eq!((code, &value["result"], &value["drained"]), (69, &json!("backend_draining"), &json!(true)));
    usher.command(&["backends", "undrain", "server3"]).succeeded();
    assert_eq!(result(&usher, &["alice"]), is(0, "routed"));
    // A mail server that is down, once that was noticed.
    for _ in 0..3 {
        Imap::tls(usher.imaps_port()).login("bob", &password_of("bob")).is("NO [UNAVAILABLE]");
    }
    let (code, value) = explain(&usher, &["bob"]);
    assert_eq!((code, &value["result"]), (69, &json!("backend_unreachable")), "{value}");
    assert_eq!(value["protocols"][0]["up"], false);
    let said = usher.command(&["explain", "bob", "--running"]);
    assert!(said.code == 69 && said.stdout.contains("imap down: "), "{}", said.stdout);
    // The file is not asked: the running process has another one in force.
    let mut usher = usher;
    usher.config.change("/routing/backends", json!([]));
    usher.config.write();
    assert_eq!(result(&usher, &["alice"]), is(0, "routed"));
    let said = usher.command(&["explain", "alice", "--running", "--from", "nowhere"]);
    assert_eq!(said.code, 64, "{}", said.stderr);
    let said = usher.command(&["explain", "--running"]);
    assert_eq!(said.code, 64, "{}", said.stderr);
    // What no client can log in with, and what a terminal would interpret.
    for name in ["alice\u{1b}[2J", "a\nb", " ", &"a".repeat(513)] {
        assert_eq!(result(&usher, &[name]), is(65, "invalid_username"), "{name:?}");
        let said = usher.command(&["explain", name, "--running"]);
        assert!(said.code == 65 && !said.stdout.contains('\u{1b}') && !said.stdout.contains("a\nb"), "{}", said.stdout);
    }
    assert_eq!(usher.command(&["explain", "", "--running"]).code, 64);
}

#[test]
fn hold_networks_and_an_outage_of_the_directory_are_said() {
    let options = Options { modules: &["syncprov"], database: SYNCPROV, ..Options::default() };
    let mut slapd = Slapd::with(options);
    let server = Scripted::accepting();
    let config = Config::with_directory(&slapd)
        .scripted(&server)
        .set("/directory/watch", "auto")
        .set("/directory/hold_attribute", "description")
        .set("/directory/networks_attribute", "street")
        .set("/cache/ttl", "1s");
    let usher = Usher::start(config);
    usher.wait_log("LDAP change notification active", |_| true);
    let bob = User::new("bob", None);
    slapd.set(&bob, "mailHost", Some("server3"));
    slapd.set(&bob, "description", Some("moving"));
    let (code, value) = explain(&usher, &["bob"]);
    assert_eq!((code, &value["result"], &value["held"]), (69, &json!("hold"), &json!(true)), "{value}");
    // Before the route, which may be changed meanwhile.
    slapd.set(&bob, "mailHost", None);
    assert_eq!(result(&usher, &["bob"]), is(69, "hold"));
    slapd.set(&bob, "mailHost", Some("server3"));
    slapd.set(&bob, "description", None);
    slapd.set(&bob, "street", Some("192.0.2.0/24"));
    assert_eq!(result(&usher, &["bob", "--from", "192.0.2.7"]), is(0, "routed"));
    assert_eq!(result(&usher, &["bob", "--from", "198.51.100.7"]), is(77, "network_not_allowed"));
    drop(log_in(&usher, "alice"));
    slapd.stop();
    usher.wait_metric("usher_directory_up", &[], 0.0);
    // The decision is older than cache.ttl by then.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while explain(&usher, &["alice"]).1["by"] != "stale" {
        assert!(std::time::Instant::now() < end, "{}", explain(&usher, &["alice"]).1);
    }
    let (code, value) = explain(&usher, &["alice"]);
    assert_eq!((code, &value["result"], &value["left_seconds"]), (0, &json!("routed"), &Value::Null), "{value}");
    assert_eq!(result(&usher, &["bob"]), is(69, "directory_unavailable"));
    drop(log_in(&usher, "alice"));
}

/// Without an option: the running process decides, and the file is a second verdict where it differs.
#[test]
fn both_verdicts_are_shown_and_the_first_decides() {
    let server = Scripted::accepting();
    let dead = free_port();
    let config =
        Config::with_directory(slapd()).scripted(&server).backend("server4", dead, &["server4", "server4.example.com"]);
    let mut usher = Usher::start(config);
    let both = |usher: &Usher, arguments: &[&str]| {
        let said = usher.command(&[&["explain", "--json"], arguments].concat());
        let value: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"));
        (said.code, value)
    };
    let (code, value) = both(&usher, &["alice"]);
    assert_eq!((code, &value["running"]["result"], &value["file_differs"]), (0, &json!("routed"), &json!(false)));
    let said = usher.command(&["explain", "alice"]).succeeded();
    assert!(said.stdout.contains("alice now, in the running usher\n"), "{}", said.stdout);
    assert!(said.stdout.contains("alice in the directory, by ") && said.stdout.contains("query "), "{}", said.stdout);
    assert_eq!(said.stdout.matches("result ").count(), 1, "{}", said.stdout);

    // The mail server is down, or out of service: the file knows neither.
    for _ in 0..3 {
        Imap::tls(usher.imaps_port()).login("bob", &password_of("bob")).is("NO [UNAVAILABLE]");
    }
    let (code, value) = both(&usher, &["bob"]);
    assert_eq!((code, &value["running"]["result"]), (69, &json!("backend_unreachable")), "{value}");
    usher.command(&["backends", "drain", "server3"]).succeeded();
    assert_eq!(usher.command(&["explain", "alice"]).code, 69);
    // Whatever the password.
    let (code, value) = {
        let said = command(
            &usher.config,
            &["explain", "alice", "--password-stdin", "--json"],
            password_of("alice").as_bytes(),
        );
        (said.code, serde_json::from_str::<Value>(&said.stdout).unwrap())
    };
    assert_eq!(
        (code, &value["running"]["result"], &value["result"]),
        (69, &json!("backend_draining"), &json!("routed"))
    );
    usher.command(&["backends", "undrain", "server3"]).succeeded();
    let said = command(&usher.config, &["explain", "alice", "--password-stdin"], b"wrong");
    assert!(said.code == 77 && said.stdout.contains("wrong_password"), "{said:?}");

    // An edit that is not in force yet.
    usher.config.change("/routing/backends/0/hosts", json!(["elsewhere"]));
    usher.config.write();
    let (code, value) = both(&usher, &["alice"]);
    assert_eq!((code, &value["running"]["result"], &value["file_differs"]), (0, &json!("routed"), &json!(true)));
    assert_eq!(value["result"], "unknown_mail_host", "{value}");
    let said = usher.command(&["explain", "alice"]).succeeded();
    assert!(said.stdout.contains("alice after a reload of "), "{}", said.stdout);
    assert_eq!(said.stdout.matches("result ").count(), 2, "{}", said.stdout);
    // One with a mistake does not hide what is in force.
    usher.config.change("/cache/ttl", json!("soon"));
    usher.config.write();
    let said = usher.command(&["explain", "alice"]);
    assert!(said.code == 0 && said.stdout.contains("routed") && said.stderr.contains("cache.ttl"), "{said:?}");
    assert_eq!(both(&usher, &["alice"]).1["running"]["result"], "routed");

    usher.terminate();
    assert_eq!(usher.exit_code(), 0);
    let said = usher.command(&["explain", "alice"]);
    assert!(said.code == 78, "{said:?}");
    usher.config.change("/cache/ttl", json!("1m"));
    usher.config.write();
    let said = usher.command(&["explain", "alice"]);
    assert!(said.code == 65 && said.stderr.contains("usher is not running"), "{said:?}");
    assert_eq!(said.stdout.lines().next(), Some("alice"));
}

/// What the entry says keeps a user out also where no usher runs.
#[test]
fn file_alone_knows_holds_and_accounts_that_are_locked() {
    let slapd = Slapd::private();
    let config = Config::with_directory(&slapd)
        .backend("server3", 1, &["server3"])
        .set("/directory/hold_attribute", "description");
    config.write();
    let explain = |name: &str| command(&config, &["explain", name], b"");
    assert_eq!(explain("alice").code, 0);
    slapd.set(&User::new("alice", None), "description", Some("moving"));
    let said = explain("alice");
    assert!(said.code == 69 && said.stdout.contains("result       hold"), "{said:?}");
}

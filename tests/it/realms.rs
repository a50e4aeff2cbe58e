//! Several directories: each login goes to its own, and nothing of one concerns the users of another.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::process::write_secret;
use crate::kit::redis::Redis;
use crate::kit::scripted::Scripted;
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::users::{SERVICE_DN, SUFFIX};
use crate::kit::{Config, Imap, PROMISED_SECOND, User, Usher, password_of, shared};
use crate::socketmap::Postfix;

/// Two directories with the same suffix, so that every DN occurs in both.
struct Setup {
    corp: Slapd,
    partner: Slapd,
    server: Scripted,
}

fn directory(name: &str, domains: &Value, slapd: &Slapd) -> Value {
    json!({
        "name": name,
        "domains": domains,
        "servers": [slapd.tls_url()],
        "ca": shared().certificates.ca(),
        "bind_dn": SERVICE_DN,
        "bind_password_file": "ldap.password",
        "base": SUFFIX,
        "filter": "(|(uid={local})(mail={login}))",
        "watch": "off",
    })
}

impl Setup {
    fn new() -> Self {
        Self::with("")
    }

    /// With more entries in both.
    fn with(entries: &str) -> Self {
        let options = || Options { modules: &["syncprov"], database: SYNCPROV, entries, ..Options::default() };
        Self { corp: Slapd::with(options()), partner: Slapd::with(options()), server: Scripted::accepting() }
    }

    fn config(&self) -> Config {
        let corp = directory("corp", &json!(["corp.example", "both.example", ""]), &self.corp);
        let partner =
            directory("partner", &json!(["partner.example", "*.partner.example", "both.example"]), &self.partner);
        Config::with_directory(&self.corp)
            .scripted(&self.server)
            .without("/directory")
            .set("/directories", json!([corp, partner]))
    }
}

fn log_in(usher: &Usher, name: &str, password: &str) -> Imap {
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login(name, password).ok();
    imap
}

fn refused(usher: &Usher, name: &str, password: &str) {
    Imap::tls(usher.imaps_port()).login(name, password).is("NO [AUTHENTICATIONFAILED]");
}

fn unavailable(usher: &Usher, name: &str, password: &str) {
    Imap::tls(usher.imaps_port()).login(name, password).is("NO [UNAVAILABLE]");
}

/// What a login would meet now.
fn met_by(usher: &Usher, name: &str) -> Value {
    let said = usher.command(&["explain", "--running", "--json", name]);
    let value: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    assert_eq!(said.code == 0, value["result"] == "routed", "{said:?}");
    value
}

/// The user's DN, the same in both.
fn alice() -> User {
    User::new("alice", None)
}

fn change_password(slapd: &Slapd, password: &str) {
    slapd.set(&alice(), "userPassword", Some(password));
}

#[test]
fn same_dn_in_two_directories_is_two_users() {
    let setup = Setup::new();
    change_password(&setup.partner, "of-partner");
    let usher = Usher::start(setup.config().set("/cache/ttl", "1h"));
    let (corp, partner) = ("alice@corp.example", "alice@partner.example");
    let (own, other) = (log_in(&usher, corp, &password_of("alice")), log_in(&usher, partner, "of-partner"));
    for (name, directory) in [(corp, "corp"), (partner, "partner")] {
        let line = usher.login(name);
        assert_eq!(
            (line["directory"].as_str(), line["dn"].as_str()),
            (Some(directory), Some(&*alice().dn())),
            "{line}"
        );
    }
    // Cached in one, and of no use in the other, in either way.
    refused(&usher, corp, "of-partner");
    refused(&usher, partner, &password_of("alice"));
    let binds = || [&setup.corp, &setup.partner].map(|slapd| slapd.binds(&alice().dn()));
    let before = binds();
    drop(log_in(&usher, corp, &password_of("alice")));
    drop(log_in(&usher, partner, "of-partner"));
    assert_eq!(binds(), before, "both are cached");
    // Commands concern the user that a name means.
    let sessions = |arguments: &[&str]| -> Vec<Value> {
        serde_json::from_str(&usher.command(&[&["sessions", "--json"], arguments].concat()).succeeded().stdout).unwrap()
    };
    usher.wait_metric("usher_sessions", &[], 2.0);
    let of_partner = sessions(&["--user", partner]);
    assert_eq!((of_partner.len(), of_partner[0]["directory"].as_str()), (1, Some("partner")), "{of_partner:?}");
    assert_eq!(sessions(&["--user", &alice().dn()]).len(), 2);
    assert_eq!(sessions(&["--user", &alice().dn(), "--directory", "corp"]).len(), 1);
    for (name, directory) in [(corp, "corp"), (partner, "partner")] {
        let met = met_by(&usher, name);
        assert_eq!((&met["directory"], &met["by"]), (&json!(directory), &json!("cache")), "{met}");
        assert_eq!((&met["sessions"], &met["dn"]), (&json!(1), &json!(alice().dn())), "{met}");
    }
    let dropped = usher.command(&["cache", "drop", partner]).succeeded().stdout;
    assert!(dropped.contains("1 user dropped"), "{dropped}");
    drop(log_in(&usher, corp, &password_of("alice")));
    assert_eq!(binds()[0], before[0], "nothing was dropped in the other one");
    usher.command(&["kick", "--user", partner]).succeeded();
    usher.wait_metric("usher_sessions_ended_total", &[("cause", "kicked")], 1.0);
    drop((own, other));
    // Guesses at one are none at the other.
    let shown: Vec<Value> =
        serde_json::from_str(&usher.command(&["cache", "show", "--json", corp]).succeeded().stdout).unwrap();
    assert_eq!((shown.len(), shown[0]["directory"].as_str()), (1, Some("corp")), "{shown:?}");
}

#[test]
fn guesses_and_session_limits_are_those_of_one_directorys_user() {
    let setup = Setup::new();
    let limits = json!({
        "failed_logins_per_user": {"mode": "enforce", "limit": 3},
        "sessions_per_user": {"mode": "enforce", "limit": 1},
    });
    let usher = Usher::start(setup.config().set("/throttle", limits));
    let secret = password_of("alice");
    let first = log_in(&usher, "alice@corp.example", &secret);
    Imap::tls(usher.imaps_port()).login("alice@corp.example", &secret).is("NO [LIMIT]");
    // The entry has the same DN, and a place of its own.
    let second = log_in(&usher, "alice@partner.example", &secret);
    drop((first, second));
    for guess in 0..3 {
        refused(&usher, "anna@partner.example", &format!("guess {guess}"));
    }
    Imap::tls(usher.imaps_port()).login("ANNA@partner.example", "one too many").is("NO [LIMIT]");
    assert_eq!(usher.login("ANNA@partner.example")["limited_by"], "failed_logins_per_user");
    drop(log_in(&usher, "anna@corp.example", &password_of("anna")));
}

#[test]
fn names_that_only_look_like_a_domain_are_unknown_users() {
    let setup = Setup::new();
    let usher = Usher::start(setup.config());
    let secret = password_of("alice");
    for name in ["alice", "alice@CORP.example", "bob@x@corp.example", "alice@a.b.partner.example"] {
        // The part before the last @ is the name.
        let expected = if name.starts_with("bob") { None } else { Some(()) };
        let mut imap = Imap::tls(usher.imaps_port());
        let reply = imap.login(name, &secret);
        if expected.is_some() {
            reply.ok();
        } else {
            reply.is("NO [AUTHENTICATIONFAILED]");
        }
    }
    assert_eq!(usher.login("alice")["directory"], "corp", "names without a domain are this one's");
    assert_eq!(usher.login("alice@a.b.partner.example")["directory"], "partner");
    let searches = || [&setup.corp, &setup.partner].map(|slapd| slapd.searches("uid"));
    let before = searches();
    for name in [
        "alice@corp.example.",
        "alice@other.example",
        "alice@sub.corp.example",
        "alice@",
        "alice@partner.example@x",
        "alice@xpartner.example",
        "alice@.partner.example",
    ] {
        refused(&usher, name, &secret);
        let line = usher.login(name);
        assert_eq!((line["result"].as_str(), line["by"].as_str()), (Some("unknown_user"), Some("usher")), "{line}");
        assert!(line["directory"].is_null(), "{line}");
        let met = met_by(&usher, name);
        assert_eq!((&met["result"], &met["by"]), (&json!("unknown_user"), &json!("usher")), "{met}");
        assert!(met["directory"].is_null(), "{met}");
    }
    assert_eq!(searches(), before, "no directory was asked");
    let explained = usher.command(&["explain", "alice@other.example"]);
    assert_eq!(explained.code, 67, "{}", explained.stdout);
    let explained = usher.command(&["explain", "alice@partner.example"]).succeeded().stdout;
    assert!(explained.contains("directory    partner"), "{explained}");
}

#[test]
fn deferred_mail_names_its_directory_and_each_has_its_own_line() {
    let mut setup = Setup::new();
    let config = setup.config().set("/routing/backends/0/delivery", "lmtp:inet:server3.example.com:24");
    let usher = Usher::start(config.set("/socketmap", json!({"address": "127.0.0.1:0"})));
    setup.corp.stop();
    setup.partner.stop();
    let mut postfix = Postfix::of(&usher);
    let away = "TEMP the directory is not available";
    for domain in ["corp.example", "partner.example", "both.example"] {
        assert_eq!(postfix.ask("transport", &format!("unknown@{domain}")), away);
    }
    for directory in ["corp", "partner", "corp,partner"] {
        let line = usher.wait_log("mail is deferred", |line| line["directory"] == directory);
        assert_eq!(line["reason"], "the directory is not available", "{line}");
    }
}

#[test]
fn entry_in_both_directories_is_refused_with_both_dns_in_the_log() {
    let person = |uid: &str, mail: &'static [&'static str]| User { mails: mail, ..User::new(uid, Some("server3")) };
    let setup = Setup::new();
    setup.corp.add(&person("one", &["twice@both.example", "only-corp@both.example"]));
    setup.partner.add(&person("two", &["twice@both.example"]));
    setup.partner.add(&person("three", &["only-partner@both.example"]));
    let usher = Usher::start(setup.config());
    drop(log_in(&usher, "only-corp@both.example", &password_of("one")));
    drop(log_in(&usher, "only-partner@both.example", &password_of("three")));
    assert_eq!(usher.login("only-partner@both.example")["directory"], "partner");
    refused(&usher, "nowhere@both.example", "x");
    let unknown = usher.login("nowhere@both.example");
    assert_eq!(unknown["result"], "unknown_user", "{unknown}");
    for password in [password_of("one"), password_of("two"), "wrong".to_owned()] {
        refused(&usher, "twice@both.example", &password);
    }
    let line = usher.login("twice@both.example");
    assert_eq!(line["result"], "several_entries", "{line}");
    assert_eq!((&line["directory"], &line["other_directory"]), (&json!("corp"), &json!("partner")), "{line}");
    assert_eq!(
        (line["dn"].as_str(), line["other_dn"].as_str()),
        (Some(&*person("one", &[]).dn()), Some(&*person("two", &[]).dn()))
    );
    assert_eq!([setup.corp.binds(&person("one", &[]).dn()), setup.partner.binds(&person("two", &[]).dn())], [1, 0]);
    let explained = usher.command(&["explain", "twice@both.example"]);
    assert!(explained.stdout.contains("in several directories"), "{}", explained.stdout);
    for (name, result, by, directory) in [
        ("twice@both.example", "several_entries", "directory", None),
        ("nowhere@both.example", "unknown_user", "directory", None),
        ("only-corp@both.example", "routed", "cache", Some("corp")),
        ("ONLY-partner@both.example", "routed", "directory", Some("partner")),
    ] {
        let met = met_by(&usher, name);
        assert_eq!(
            (&met["result"], &met["by"], met["directory"].as_str()),
            (&json!(result), &json!(by), directory),
            "{met}"
        );
    }
}

#[test]
fn frozen_directory_is_noticed_by_its_own_users_alone() {
    let setup = Setup::new();
    setup.partner.add(&User { mails: &["late@both.example"], ..User::new("late", Some("server3")) });
    let usher = Usher::start(setup.config().set("/cache/stale", "0s").set("/cache/ttl", "100ms"));
    drop(log_in(&usher, "alice@corp.example", &password_of("alice")));
    setup.corp.freeze();
    std::thread::scope(|scope| {
        // As many wait as would fill a pool that both had.
        for _ in 0..20 {
            scope.spawn(|| unavailable(&usher, "anna@corp.example", &password_of("anna")));
        }
        for name in ["alice", "anna", "sync3"] {
            let began = Instant::now();
            drop(log_in(&usher, &format!("{name}@partner.example"), &password_of(name)));
            assert!(began.elapsed() < PROMISED_SECOND, "{:?}", began.elapsed());
        }
    });
    assert_eq!(usher.login("anna@corp.example")["result"], "directory_unavailable");
    // A name that both may have: the other one decides, and a name that it does not have is no wrong password.
    drop(log_in(&usher, "late@both.example", &password_of("late")));
    unavailable(&usher, "nowhere@both.example", "x");
    for (name, result) in [("nowhere@both.example", "directory_unavailable"), ("late@both.example", "routed")] {
        let met = met_by(&usher, name);
        assert_eq!(met["result"], result, "{met}");
    }
    usher.wait_metric("usher_directory_up", &[("directory", "corp")], 0.0);
    usher.wait_metric("usher_directory_up", &[("directory", "partner")], 1.0);
    let status = usher.command(&["status"]).succeeded().stdout;
    assert!(status.contains("corp: unreachable") && status.contains("partner: in use"), "{status}");
    let down = usher.wait_log("directory server marked down", |_| true);
    assert_eq!(down["directory"], "corp", "{down}");
    let report = usher.command(&["check", "--connect", "--json"]);
    let report: Value = serde_json::from_str(&report.stdout).unwrap();
    let states = |name: &str| {
        let subjects = report["subjects"].as_array().unwrap();
        let of = subjects.iter().filter(|subject| subject["name"].as_str().unwrap().starts_with(name));
        of.flat_map(|subject| subject["findings"].as_array().unwrap()).any(|finding| finding["state"] == "problem")
    };
    assert_eq!((states("corp "), states("partner ")), (true, false), "{report:#}");
    setup.corp.thaw();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !Imap::tls(usher.imaps_port()).login("alice@corp.example", &password_of("alice")).tagged.starts_with("OK ") {
        assert!(Instant::now() < deadline, "it is used again");
    }
}

#[test]
fn brake_of_one_directory_holds_no_user_of_the_other() {
    let names: Vec<String> = (0..6).map(|number| format!("mass{number}")).collect();
    let entries: String = names.iter().map(|name| User::new(name, Some("server3")).ldif()).collect();
    let setup = Setup::with(&entries);
    let mut config = setup.config().backend("server4", setup.server.port, &["server4"]);
    config.change("/routing/backends/1/imap/server_name", "server3.example.com");
    for place in 0..2 {
        config.change(&format!("/directories/{place}/watch"), "auto");
        config.change(&format!("/directories/{place}/brake"), 3);
    }
    let usher = Usher::start(config);
    usher.wait_metric("usher_directory_watch_connected", &[("directory", "corp")], 1.0);
    usher.wait_metric("usher_directory_watch_connected", &[("directory", "partner")], 1.0);
    for name in &names {
        for domain in ["corp", "partner"] {
            drop(log_in(&usher, &format!("{name}@{domain}.example"), &password_of(name)));
        }
    }
    let edit = |slapd: &Slapd, names: &[String]| {
        let change = |name: &String| {
            format!("dn: {}\nchangetype: modify\nreplace: mailHost\nmailHost: server4\n\n", User::new(name, None).dn())
        };
        slapd.modify(&names.iter().map(change).collect::<String>());
    };
    edit(&setup.corp, &names);
    usher.wait_metric("usher_directory_brake", &[("directory", "corp")], 6.0);
    let engaged = usher.wait_log(
        "too many users moved, disabled or deleted at once: their routes and sessions are kept until `usher confirm`, \
         or until the directory is back in its previous state",
        |_| true,
    );
    assert_eq!(engaged["directory"], "corp");
    // An ordinary move in the other one takes effect.
    edit(&setup.partner, &names[..1]);
    let name = format!("{}@partner.example", names[0]);
    usher.wait_log("route changed", |line| line["directory"] == "partner");
    drop(log_in(&usher, &name, &password_of(&names[0])));
    assert_eq!(usher.nth_login(2, &name)["backend"], "server4");
    let held = format!("{}@corp.example", names[0]);
    drop(log_in(&usher, &held, &password_of(&names[0])));
    assert_eq!(usher.nth_login(2, &held)["backend"], "server3");
    usher.wait_metric("usher_directory_brake", &[("directory", "partner")], 0.0);
    // A confirmation of the other one changes nothing here.
    usher.command(&["confirm", "--directory", "partner"]).succeeded();
    usher.wait_metric("usher_directory_brake", &[("directory", "corp")], 6.0);
    assert_eq!(usher.command(&["confirm", "--directory", "none"]).code, 64);
    usher.command(&["confirm", "--directory", "corp"]).succeeded();
    usher.wait_metric("usher_directory_brake", &[("directory", "corp")], 0.0);
    drop(log_in(&usher, &held, &password_of(&names[0])));
    assert_eq!(usher.nth_login(3, &held)["backend"], "server4");
}

#[test]
fn reload_that_adds_a_directory_keeps_cache_and_sessions_of_the_others() {
    let setup = Setup::new();
    let third = Slapd::private();
    change_password(&third, "of-third");
    let mut usher = Usher::start(setup.config().set("/cache/ttl", "1h"));
    let mut kept = log_in(&usher, "alice@partner.example", &password_of("alice"));
    drop(log_in(&usher, "alice@corp.example", &password_of("alice")));
    let binds = setup.partner.binds(&alice().dn());
    // Before them all, and one that is there no more.
    let partner = directory("partner", &json!(["partner.example"]), &setup.partner);
    let new = directory("third", &json!(["third.example"]), &third);
    usher.config.change("/directories", json!([new, partner]));
    usher.config.write();
    let reloaded = usher.hup();
    assert_eq!(reloaded["level"], "INFO", "{reloaded}");
    drop(log_in(&usher, "alice@partner.example", &password_of("alice")));
    assert_eq!(usher.nth_login(2, "alice@partner.example")["by"], "cache");
    assert_eq!(setup.partner.binds(&alice().dn()), binds);
    drop(log_in(&usher, "alice@third.example", "of-third"));
    refused(&usher, "alice@third.example", &password_of("alice"));
    refused(&usher, "alice@corp.example", &password_of("alice"));
    let line = usher.nth_login(2, "alice@corp.example");
    assert_eq!((&line["result"], &line["by"]), (&json!("unknown_user"), &json!("usher")), "{line}");
    kept.command("NOOP").ok();
    let metrics = usher.metrics();
    let watched = metrics.keys().filter(|series| series.starts_with("usher_directory_watch_connected"));
    assert!(watched.clone().all(|series| !series.contains("corp")), "{:?}", watched.collect::<Vec<_>>());
}

#[test]
fn fleet_knows_users_by_their_directorys_name() {
    use base64::Engine as _;
    let setup = Setup::new();
    let store = Redis::start();
    let node = |name: &str, turned: bool| {
        let mut config = setup.config().set("/throttle/sessions_per_user", json!({"mode": "enforce", "limit": 1}));
        if turned {
            // The same directories in another order: the place in the list means nothing.
            let partner = directory("partner", &json!(["partner.example"]), &setup.partner);
            let corp = directory("corp", &json!(["corp.example"]), &setup.corp);
            config.change("/directories", json!([partner, corp]));
        }
        let line = base64::engine::general_purpose::STANDARD.encode([1; 48]) + "\n";
        write_secret(&config.path("fleet.secret"), line);
        let url = format!("redis://127.0.0.1:{}", store.port);
        let fleet = json!({"name": "mail", "node": name, "store": url, "secret_file": "fleet.secret"});
        let usher = Usher::start(config.set("/fleet", fleet));
        usher.wait_metric("usher_fleet_up", &[], 1.0);
        usher
    };
    let (one, other) = (node("mx1", false), node("mx2", true));
    one.wait_metric("usher_fleet_members", &[], 2.0);
    let secret = password_of("alice");
    let held = log_in(&one, "alice@corp.example", &secret);
    // What is heard of other nodes comes with the answer to the first session here.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut imap = Imap::tls(other.imaps_port());
        if imap.login("alice@corp.example", &secret).tagged.contains("[LIMIT]") {
            break;
        }
        assert!(Instant::now() < deadline, "the limit is shared");
    }
    // The same DN in the other directory is another user at every node.
    drop(log_in(&other, "alice@partner.example", &secret));
    drop(log_in(&one, "alice@partner.example", &secret));
    let kicked = one.command(&["kick", "--user", "alice@partner.example", "--fleet"]).succeeded().stdout;
    assert!(!kicked.contains("error"), "{kicked}");
    one.wait_metric("usher_sessions", &[], 1.0);
    drop(held);
}

#[test]
fn windows_name_is_an_account_of_the_directory_of_its_domain() {
    let setup = Setup::new();
    change_password(&setup.partner, "of-partner");
    let mut config = setup.config();
    for place in 0..2 {
        config.change(&format!("/directories/{place}/login_attribute"), "uid");
    }
    let filter = "(uid={local})";
    let domains = json!({
        "CORP": {"directory": "corp", "filter": filter},
        "PARTNER": {"directory": "partner", "filter": filter},
    });
    let usher = Usher::start(config.set("/windows_domains", domains));
    for (name, password, directory) in [
        ("CORP\\alice", password_of("alice"), "corp"),
        ("corp\\Alice", password_of("alice"), "corp"),
        ("Partner\\alice", "of-partner".to_owned(), "partner"),
    ] {
        let mut imap = Imap::tls(usher.imaps_port());
        imap.authenticate("", name, password.as_bytes()).ok();
        let line = usher.login(name);
        assert_eq!((&line["directory"], &line["login_backend"]), (&json!(directory), &json!("alice")), "{line}");
    }
    // Neither another domain nor a part of a mail name leads anywhere.
    for name in ["PARTNER\\alice", "OTHER\\alice", "CORP\\alice@corp.example", "CORP\\", "CORP\\CORP\\alice"] {
        let mut imap = Imap::tls(usher.imaps_port());
        imap.authenticate("", name, password_of("alice").as_bytes()).is("NO [AUTHENTICATIONFAILED]");
    }
    assert_eq!(usher.login("CORP\\alice@corp.example")["result"], "unknown_user");
    let explained = usher.command(&["explain", "PARTNER\\alice"]).succeeded().stdout;
    assert!(explained.contains("directory    partner") && explained.contains("(uid=alice)"), "{explained}");
}

#[test]
fn mistakes_are_reported_with_their_place() {
    let setup = Setup::new();
    let mut config = setup.config();
    config.change("/directories/1/domains", json!(["b\u{fc}cher.example"]));
    config.change("/directories/1/name", "corp");
    config.write();
    let output = crate::kit::usher::command(&config, &["check"], b"");
    assert_eq!(output.code, 78, "{}", output.stderr);
    for (key, phrase) in [("directories[1].domains[0]", "A-label"), ("directories[1].name", "`corp` is already used")] {
        let line = output.stderr.lines().find(|line| line.contains(&format!(": {key}: ")));
        let line = line.unwrap_or_else(|| panic!("{key}: {}", output.stderr));
        assert!(line.contains(phrase) && line.contains("usher.yaml:"), "{line}");
    }
}

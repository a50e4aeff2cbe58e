//! Migration: the backend of every user, and the import of an nginx recipe's users.txt.

use serde_json::Value;

use crate::kit::process::Output;
use crate::kit::slapd::{Options, Slapd};
use crate::kit::users::METACHARACTERS;
use crate::kit::usher::command;
use crate::kit::{Config, Imap, User, Usher, password_of};

/// The base of the users of these tests: the default users are elsewhere.
const BASE: &str = "ou=open,dc=example,dc=com";

fn person(uid: &str, mail_host: Option<&'static str>) -> User {
    User { ou: "open", ..User::new(uid, mail_host) }
}

/// A directory with these users, and olga, a default user.
fn slapd_with(people: &[User]) -> Slapd {
    let entries: String = people.iter().map(User::ldif).collect();
    Slapd::with(Options { entries: &entries, ..Options::default() })
}

/// The shared mail servers with this directory.
fn config(slapd: &Slapd) -> Config {
    Config::shared().set("/directory/servers/0", slapd.tls_url()).set("/directory/base", BASE)
}

/// Runs `usher import-users` on standard input.
fn import(config: &Config, arguments: &[&str], users: &str) -> Output {
    config.write();
    command(config, &[&["import-users", "-"], arguments].concat(), users.as_bytes())
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    let found = text.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(found, "no line with {words:?}:\n{text}");
}

#[test]
fn users_file_becomes_ldif_and_each_user_keeps_the_backend() {
    let people = [
        person("alice", None),
        person(METACHARACTERS, None),
        person("gruen", Some("server9")),
        person("anna", Some("server3")),
        person("bob", None),
        person("bobby", None),
        person("ben", None),
    ];
    let slapd = slapd_with(&people);
    let config = config(&slapd).set("/routing/default", "server4");
    // The line of bobby also matched bob; that of benjamin matched ben, and no user is called benjamin.
    let users = format!("alice\r\n{METACHARACTERS}\n\ngruen\nanna\nALICE\nolga\nbobby\nbenjamin\nb\u{7}b\n");
    let said = import(&config, &["--backend", "server3"], &users);
    assert_eq!(said.code, 1, "{said:#?}");
    for words in [
        &["line 1: strpos finds alice at 0"][..],
        &["line 3: no name"],
        &["line 6: the same name as in line 1"],
        &["line 9: benjamin is not in the directory"],
        &["line 10: b\\u{7}b is not a valid login name"],
        &["uid=gruen,", "replaces server9"],
        &["bob is not in the file", "within bobby (line 8)"],
        &["ben is not in the file", "within benjamin (line 9)"],
        &["4 changes, 2 already right, 4 to decide"],
    ] {
        says(&said.stderr, words);
    }
    assert!(!said.stdout.contains("benjamin") && !said.stdout.contains("uid=bob,"), "no backend is guessed: {said:#?}");
    slapd.modify(&said.stdout);
    for (uid, host) in [("alice", "server3"), ("gruen", "server3"), (METACHARACTERS, "server3")] {
        let read = slapd.read(&person(uid, None).dn(), &["mailHost"]);
        assert!(read.contains(&format!("mailHost: {host}\n")), "{uid}: {read}");
    }
    // Once applied, there is nothing left to do.
    let again = import(&config, &["--backend", "server3"], &users);
    says(&again.stderr, &["0 changes, 6 already right, 4 to decide"]);

    let usher = Usher::start(config);
    for (uid, backend) in [
        ("alice", "server3"),
        (METACHARACTERS, "server3"),
        ("gruen", "server3"),
        ("bob", "server4"),
        ("ben", "server4"),
    ] {
        Imap::tls(usher.imaps_port()).login(uid, &password_of(uid)).ok();
        assert_eq!(usher.login(uid)["backend"], backend);
    }
}

#[test]
fn import_without_open_questions_succeeds() {
    let slapd = slapd_with(&[person("alice", None), person("bob", None), person("carol", None)]);
    let config = config(&slapd);
    // Without a configured default, users missing in the file would have no mail server.
    let arguments = ["--backend", "server3", "--default", "server4.example.com"];
    let said = import(&config, &arguments, "alice\nolga\n");
    assert_eq!(said.code, 1, "{said:#?}");
    says(&said.stderr, &["2 other entries without mailHost", "--write-default"]);
    let said = import(&config, &[&arguments[..], &["--write-default"]].concat(), "alice\nolga\n").succeeded();
    slapd.modify(&said.stdout);
    for uid in ["bob", "carol"] {
        says(&slapd.read(&person(uid, None).dn(), &["mailHost"]), &["mailHost: server4.example.com"]);
    }
    // A user with a third mail server is left unchanged and reported.
    slapd.set(&person("carol", None), "mailHost", Some("server9"));
    let said = import(&config, &arguments, "alice\nolga\n");
    assert_eq!(said.code, 1, "{said:#?}");
    says(&said.stderr, &["uid=carol,", "is routed to server9, not to the default"]);
}

#[test]
fn import_without_a_directory_builds_dns_from_names() {
    let config = Config::with_url("ldap://127.0.0.1");
    let all_users = config.file("all-users", "ann\njoanna\nzoe\n").display().to_string();
    let dn = format!("uid={{login}},{BASE}");
    let arguments = ["import-users", "-", "--backend", "server4", "--dn", &dn, "--all-users", &all_users];
    let said = command(&config, &arguments, "joanna\njosé \nx, y\n".as_bytes());
    assert_eq!(said.code, 1, "{said:#?}");
    says(&said.stderr, &["ann is not in the file", "within joanna (line 1)"]);
    says(&said.stderr, &["no directory was queried"]);
    says(&said.stdout, &[&format!("dn: uid=joanna,{BASE}")]);
    says(&said.stdout, &["dn:: dWlkPWpvc8Op"]);
    says(&said.stdout, &[&format!("dn: uid=x\\2c y,{BASE}")]);
    // This requires no configuration, only the base of the users.
    let arguments = ["import-users", "-", "--backend", "server4", "--base", BASE];
    command(&config, &arguments, b"joanna\n").succeeded();
    assert_eq!(command(&config, &arguments[..4], b"joanna\n").code, 64);
    assert_eq!(command(&config, &["import-users", "/nowhere", "--backend", "x", "--dn", &dn], b"").code, 66);
}

#[test]
fn import_requires_a_reachable_directory_and_an_existing_backend() {
    let mut slapd = slapd_with(&[]);
    let config = config(&slapd);
    let said = import(&config, &["--backend", "server7"], "olga\n");
    assert_eq!(said.code, 64, "{said:#?}");
    says(&said.stderr, &["--backend", "no backend server7", "server3, server4"]);
    slapd.stop();
    let said = import(&config, &["--backend", "server3"], "olga\n");
    assert_eq!((said.code, said.stdout.as_str()), (69, ""), "{said:#?}");
    says(&said.stderr, &["nothing is printed"]);
}

/// `usher explain --all` on a directory that nearly matches the recipe.
fn mixed_directory() -> (Slapd, Config) {
    let people = [
        person("alice", Some("server3")),
        person("bob", Some("server4")),
        person("=cmd|calc", Some("server3")),
        person("carol", None),
        person("dave", Some("server9")),
        User { mails: &["twin@example.com"], ..person("castor", Some("server3")) },
        User { mails: &["twin@example.com"], ..person("pollux", Some("server4")) },
    ];
    let slapd = slapd_with(&people);
    let config = config(&slapd);
    config.write();
    (slapd, config)
}

fn explain(config: &Config, arguments: &[&str], input: &str) -> Output {
    command(config, &[&["explain", "--all"], arguments].concat(), input.as_bytes())
}

#[test]
fn explain_all_lists_every_user_of_the_directory() {
    let (_slapd, config) = mixed_directory();
    let said = explain(&config, &[], "");
    assert_eq!(said.code, 1, "some users would be refused: {said:#?}");
    says(&said.stdout, &["alice", "server3", "routed", "uid=alice,ou=open,dc=example,dc=com"]);
    says(&said.stdout, &["carol", "no_mail_host"]);
    says(&said.stdout, &["dave", "unknown_mail_host", "server9"]);
    says(&said.stdout, &["twin@example.com", "several_entries"]);
    for count in ["9  users", "4  to server3", "2  to server4", "1  refused: several_entries"] {
        says(&said.stdout, &[count]);
    }

    let said = explain(&config, &["--json"], "");
    let value: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:#?}"));
    assert_eq!(value["total"], 9);
    assert_eq!(value["backends"]["server3"], 4);
    assert_eq!(value["refusals"]["no_mail_host"], 1);
    let row = value["users"].as_array().unwrap().iter().find(|row| row["login"] == "bob").unwrap();
    assert_eq!((row["backend"].as_str(), row["result"].as_str()), (Some("server4"), Some("routed")));
    assert!(row.get("expected").is_none());

    let said = explain(&config, &["--csv"], "");
    assert!(said.stdout.starts_with("login,dn,mail_host,backend,by_default,backend_login,result,explanation\n"));
    // A formula for a spreadsheet is escaped.
    says(&said.stdout, &["'=cmd|calc,", "server3"]);
    says(&said.stderr, &["9  users"]);
}

#[test]
fn explain_all_accepts_a_list() {
    let (mut slapd, config) = mixed_directory();
    let said = explain(&config, &["--users", "-", "--json"], "bob\n\nunknown\nALICE\n");
    assert_eq!(said.code, 1);
    let value: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:#?}"));
    let rows: Vec<_> = value["users"].as_array().unwrap().iter().map(|row| row["login"].as_str().unwrap()).collect();
    assert_eq!(rows, ["bob", "unknown", "ALICE"], "in the order of the list");
    assert_eq!(value["refusals"]["unknown_user"], 1);
    let said = explain(&config, &["--users", "-"], "bob\nalice\n").succeeded();
    says(&said.stdout, &["2  users"]);
    assert_eq!(explain(&config, &["--users", "/nowhere"], "").code, 66);
    slapd.stop();
    let said = explain(&config, &["--users", "-", "--json"], "bob\n");
    assert_eq!(said.code, 69, "{said:#?}");
}

#[test]
fn differences_to_a_recipe_are_reported_both_ways() {
    let (slapd, config) = mixed_directory();
    for uid in ["carol", "dave"] {
        slapd.set(&person(uid, None), "mailHost", Some("server3"));
    }
    slapd.set(&person("pollux", None), "mail", None);
    let users = config.file("users.txt", "bob\npollux\nolga\nghost\n").display().to_string();
    let arguments = ["--against", &users, "--backend", "server4", "--default", "server3"];
    let said = explain(&config, &arguments, "");
    assert_eq!(said.code, 1, "{said:#?}");
    // olga is in the file and has server3; no user is called ghost.
    says(&said.stdout, &["olga", "server3", "server4"]);
    says(&said.stdout, &["ghost", "-", "server4", "unknown_user"]);
    says(&said.stdout, &["2  differ from the recipe"]);
    assert!(!said.stdout.contains("alice"), "only what differs: {said:#?}");

    slapd.set(&person("alice", None), "mailHost", Some("server4"));
    let said = explain(&config, &[&arguments[..], &["--json"]].concat(), "");
    let value: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:#?}"));
    let row = value["users"].as_array().unwrap().iter().find(|row| row["login"] == "alice").unwrap();
    assert_eq!((&row["expected"], &row["differs"]), (&"server3".into(), &true.into()), "the other way");
    assert_eq!(value["differences"], 3);

    // The recipe and the directory agree.
    slapd.set(&person("alice", None), "mailHost", Some("server3"));
    slapd.set(&person("olga", None), "mailHost", Some("server4"));
    config.file("users.txt", "bob\npollux\nolga\n");
    let said = explain(&config, &arguments, "").succeeded();
    says(&said.stdout, &["0  differ from the recipe"]);
    assert_eq!(explain(&config, &arguments[..4], "").code, 64, "without a default nothing is guessed");
}

#[test]
fn partial_directory_is_reported_as_incomplete() {
    let entries: String = (0..20).map(|n| person(&format!("many{n}"), Some("server3")).ldif()).collect();
    let limits = "limits dn.exact=\"cn=usher,ou=services,dc=example,dc=com\" size.soft=5 size.hard=5 size.prtotal=5\n";
    let slapd = Slapd::with(Options { entries: &entries, database: limits, ..Options::default() });
    let config = config(&slapd);
    config.write();
    let said = explain(&config, &["--csv"], "");
    assert_eq!(said.code, 69, "{said:#?}");
    says(&said.stderr, &["list is incomplete", "limits", "--users"]);
}

/// More than slapd's size limit (500) and one page.
#[test]
fn large_directory_is_listed_completely() {
    let host = |n| if n % 2 == 0 { "server3" } else { "server4" };
    let entries: String = (0..1_200).map(|n| person(&format!("crowd{n}"), Some(host(n))).ldif()).collect();
    let limits = "limits dn.exact=\"cn=usher,ou=services,dc=example,dc=com\" size=unlimited\n";
    let slapd = Slapd::with(Options { entries: &entries, database: limits, ..Options::default() });
    let config = config(&slapd);
    config.write();
    let said = explain(&config, &["--csv"], "").succeeded();
    assert_eq!(said.stdout.lines().count(), 1_202, "olga and the head");
    says(&said.stderr, &["1,201  users"]);
    says(&said.stderr, &["600  to server4"]);
}

//! Acting for another user's mailbox on real servers: Dovecot by its master user, Cyrus by `proxyservers`; and the end
//! of such sessions when a right is taken away.

use serde_json::{Value, json};

use crate::kit::process::run;
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::users::{METACHARACTERS, SERVICE_PASSWORD, SUFFIX};
use crate::kit::{Config, Imap, User, Usher, cyrus, dovecot, password_of};

/// Copies a message from one mailbox into another, each reached by one of the forms.
const COPY: &str = r#"
import imaplib, ssl, sys
port, password, mark = int(sys.argv[1]), sys.argv[2], sys.argv[3]
context = ssl._create_unverified_context()

def acting(form, mailbox):
    server = imaplib.IMAP4_SSL("localhost", port, ssl_context=context)
    if form == "authzid":
        server.authenticate("PLAIN", lambda _: ("%s\0boss\0%s" % (mailbox, password)).encode())
    else:
        server.login(mailbox + "*boss", password)
    return server

for source, target in (("anna", "ben"), ("ben", "anna")):
    for form, other in (("authzid", "name"), ("name", "authzid")):
        folder = "acting-%s-%s" % (form, source)
        text = ("Subject: %s %s\r\n\r\nfrom %s\r\n" % (mark, form, source)).encode()
        old, new = acting(form, source), acting(other, target)
        for server in (old, new):
            server.create(folder)
        assert old.append(folder, None, None, text)[0] == "OK"
        assert old.select(folder)[0] == "OK"
        message = old.fetch(old.search(None, "ALL")[1][0].split()[-1].decode(), "(RFC822)")[1][0][1]
        assert message == text, message
        assert new.append(folder, None, None, message)[0] == "OK"
        assert new.select(folder)[0] == "OK"
        assert new.fetch(new.search(None, "ALL")[1][0].split()[-1].decode(), "(RFC822)")[1][0][1] == text
        for server in (old, new):
            server.logout()
print("copied")
"#;

/// A followed directory with an administrator, a helpdesk user and a mailbox that has none of its own.
fn directory() -> Slapd {
    let entries = [User::new("boss", None), User::new("chief", Some("server3")), User::new("helper", Some("server4"))];
    let entries: String = entries.iter().map(User::ldif).collect();
    Slapd::with(Options { modules: &["syncprov"], database: SYNCPROV, entries: &entries, ..Options::default() })
}

fn dn(uid: &str) -> String {
    format!("uid={uid},ou=people,{SUFFIX}")
}

/// Both servers, with the administrators boss and, by a filter, chief.
fn config(slapd: &Slapd) -> Config {
    let config = Config::with_directory(slapd)
        .backend("server3", dovecot().imaps, &["server3"])
        .backend("server4", cyrus().imaps, &["server4.example.com"])
        .set("/directory/watch", "auto")
        .set("/directory/login_attribute", "uid")
        .set("/directory/grant_attribute", "seeAlso")
        .set("/limits/failed_logins", 50);
    let service = json!({"login": "usher", "password_file": config.file("backend.password", SERVICE_PASSWORD)});
    let networks = json!(["127.0.0.1/32"]);
    config
        .set("/routing/backends/0/impersonation_service", service.clone())
        .set("/routing/backends/1/impersonation_service", service)
        .set("/impersonation", json!({"admins": [dn("boss")], "admin_filter": "(uid=chief)", "networks": networks}))
}

fn start(config: Config) -> Usher {
    let usher = Usher::start(config);
    usher.wait_log("LDAP change notification active", |_| true);
    usher
}

fn acting(usher: &Usher, actor: &str, mailbox: &str) -> (Imap, String) {
    let mut imap = Imap::tls(usher.imaps_port());
    let reply = imap.authenticate(mailbox, actor, password_of(actor).as_bytes());
    (imap, reply.tagged)
}

#[track_caller]
fn acts(usher: &Usher, actor: &str, mailbox: &str) -> Imap {
    let (imap, reply) = acting(usher, actor, mailbox);
    assert!(reply.starts_with("OK"), "{actor} for {mailbox}: {reply}");
    imap
}

/// The first event of an attempt of one user to act for another with this value of a field.
#[track_caller]
fn event(usher: &Usher, (actor, mailbox): (&str, &str), field: &str, value: &str) -> Value {
    usher.wait_log("login", |event| event["acting"] == actor && event["acting_for"] == mailbox && event[field] == value)
}

#[test]
fn administrator_copies_between_dovecot_and_cyrus_by_both_forms() {
    let slapd = directory();
    let usher = start(config(&slapd));
    let said =
        run("python3", &["-c", COPY, &usher.imaps_port().to_string(), &password_of("boss"), "copy"], b"").succeeded();
    assert_eq!(said.stdout, "copied\n");
    for (mailbox, typed) in [("anna", "boss"), ("ben", "boss"), ("anna", "anna*boss"), ("ben", "ben*boss")] {
        let event = event(&usher, ("boss", mailbox), "login", typed);
        assert_eq!((&event["result"], &event["dn"]), (&json!("ok"), &json!(dn(mailbox))), "{event}");
    }
    let event = event(&usher, ("boss", "ben"), "result", "ok");
    assert_eq!((&event["acting_dn"], &event["acting_by"]), (&json!(dn("boss")), &json!("administrator")), "{event}");
    assert_eq!((&event["by"], &event["login_backend"]), (&json!("impersonation"), &event["acting_for"]), "{event}");
    assert!(usher.metric("usher_decisions_total", &[("by", "impersonation")]) >= 8.0);
    // Dovecot's log names the account that has logged in for the user.
    let logged = dovecot().logged();
    assert!(logged.contains("user=<anna>") && logged.contains("master"), "{logged}");
}

#[test]
fn every_refusal_is_that_of_a_wrong_password() {
    let slapd = directory();
    slapd.modify(&format!("dn: {}\nchangetype: modify\nadd: seeAlso\nseeAlso: {}\n", dn("ben"), dn("helper")));
    let usher = start(config(&slapd));
    let refused = |imap: &mut Imap, actor: &str, mailbox: &str, password: &str, fault: &str| {
        imap.authenticate(mailbox, actor, password.as_bytes()).is("NO [AUTHENTICATIONFAILED]");
        let (field, value) = if fault.is_empty() { ("result", "wrong_password") } else { ("acting_refused", fault) };
        event(&usher, (actor, mailbox), field, value);
    };
    let mut imap = Imap::tls(usher.imaps_port());
    for (actor, mailbox, fault) in [
        ("helper", "anna", "not_permitted"),
        ("boss", "nobody", "unknown_target"),
        ("boss", "twin@example.com", "ambiguous_target"),
        ("boss", "chief", "administrator"),
        ("chief", "boss", "administrator"),
    ] {
        refused(&mut imap, actor, mailbox, &password_of(actor), fault);
    }
    refused(&mut imap, "boss", "anna", "wrong", "");
    refused(&mut imap, "helper", "ben", "wrong", "");
    let mut away = Imap::tls_from([127, 0, 0, 9], usher.imaps_port());
    refused(&mut away, "boss", "anna", &password_of("boss"), "network");
    // Consent has no networks, and is for this mailbox alone.
    away.authenticate("ben", "helper", password_of("helper").as_bytes()).ok();
    event(&usher, ("helper", "ben"), "acting_by", "grant");
    // The user's own password opens the user's own mailbox only, whatever it is called.
    imap.authenticate("alice@example.com", "alice", password_of("alice").as_bytes()).ok();
    let own = usher.login("alice");
    assert_eq!((&own["acting_by"], &own["login_backend"]), (&Value::Null, &json!("alice")), "{own}");
}

#[test]
fn alias_that_equals_another_users_name_leads_to_nobody_elses_mailbox() {
    let slapd = directory();
    let usher = start(config(&slapd));
    drop(acts(&usher, "boss", "anna"));
    // ben calls himself anna.
    slapd.modify(&format!("dn: {}\nchangetype: modify\nadd: mail\nmail: anna\n", dn("ben")));
    let (_, reply) = acting(&usher, "boss", "anna");
    assert!(reply.starts_with("NO [AUTHENTICATIONFAILED]"), "{reply}");
    event(&usher, ("boss", "anna"), "acting_refused", "ambiguous_target");
    // An alias that no user has as a name leads to its own entry, under that entry's name at the backend.
    slapd.modify(&format!("dn: {}\nchangetype: modify\nreplace: mail\nmail: anna@example.com\n", dn("ben")));
    drop(acts(&usher, "boss", "anna@example.com"));
    event(&usher, ("boss", "anna@example.com"), "login_backend", "ben");
}

#[test]
fn name_with_the_separator_still_logs_in_as_itself() {
    let slapd = directory();
    let usher = start(config(&slapd));
    let mut imap = Imap::tls(usher.imaps_port());
    imap.authenticate("", METACHARACTERS, password_of(METACHARACTERS).as_bytes());
    let event = usher.login(METACHARACTERS);
    assert_eq!(event["acting"], Value::Null, "{event}");
    assert!(event["dn"].as_str().unwrap().starts_with("uid=o"), "{event}");
}

#[test]
fn session_ends_when_the_right_or_either_user_is_gone() {
    let slapd = directory();
    let usher = start(config(&slapd));
    let grant = |value: Option<&str>| {
        let add = value.map(|value| format!("seeAlso: {value}\n")).unwrap_or_default();
        slapd.modify(&format!("dn: {}\nchangetype: modify\nreplace: seeAlso\n{add}", dn("ben")));
    };
    grant(Some(&dn("helper")));
    let mut imap = acts(&usher, "helper", "ben");
    let mut office = acts(&usher, "boss", "ben");
    let table = usher.command(&["sessions"]).succeeded().stdout;
    assert!(table.starts_with("USER  ACTING  CLIENT"), "{table}");
    assert!(table.contains("ben   helper"), "{table}");
    let shown = usher.command(&["sessions", "--user", "helper", "--json"]).succeeded().stdout;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown[0]["login"], &shown[0]["acting"]), (&json!("ben"), &json!("helper")), "{shown}");
    assert_eq!(shown.as_array().unwrap().len(), 1, "{shown}");

    grant(None);
    assert!(imap.line().starts_with("* BYE"));
    imap.expect_clean_end();
    usher.wait_log("end", |event| event["cause"] == "grant_revoked");
    let (_, reply) = acting(&usher, "helper", "ben");
    assert!(reply.starts_with("NO [AUTHENTICATIONFAILED]"), "{reply}");
    // The administrator's right is another one.
    office.command("NOOP").ok();

    // `kick` of the user who acts.
    usher.command(&["kick", "--user", "boss"]).succeeded();
    assert!(office.line().starts_with("* BYE"));
    office.expect_clean_end();

    // The entry of the user who acts is deleted.
    let mut office = acts(&usher, "boss", "ben");
    slapd.modify(&format!("dn: {}\nchangetype: delete\n", dn("boss")));
    assert!(office.line().starts_with("* BYE"));
    office.expect_clean_end();
    usher.wait_log("end", |event| event["cause"] == "deleted");
}

#[test]
fn explain_says_who_may_act() {
    let slapd = directory();
    let usher = start(config(&slapd));
    let explain = |arguments: &[&str]| {
        let said = usher.command(&[&["explain"], arguments].concat());
        (said.code, said.stdout)
    };
    let (code, text) = explain(&["anna", "--acting", "boss", "--from", "127.0.0.1"]);
    assert!(code == 0 && text.contains("boss may act as an administrator, in imap"), "{code} {text}");
    let (code, text) = explain(&["anna", "--acting", "boss", "--from", "192.0.2.1"]);
    assert!(code != 0 && text.contains("not in impersonation.networks"), "{code} {text}");
    let (code, text) = explain(&["anna", "--acting", "helper"]);
    assert!(code != 0 && text.contains("helper may not act"), "{code} {text}");
}

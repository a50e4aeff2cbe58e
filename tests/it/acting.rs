//! Acting for another user's mailbox on real servers: Dovecot by its master user, Cyrus by `proxyservers`; and the end
//! of such sessions when a right is taken away.

use serde_json::{Value, json};

use crate::auth_http;
use crate::external;
use crate::kit::authority::Authority;
use crate::kit::client::base64;
use crate::kit::issuer::ScriptedIssuer;
use crate::kit::process::run;
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::tools::curl_url;
use crate::kit::users::{METACHARACTERS, SERVICE_PASSWORD, SUFFIX};
use crate::kit::usher::command;
use crate::kit::{Config, Imap, Sieve, User, Usher, cyrus, dovecot, password_of, relay};
use crate::token_login::{log_in, oauthbearer, xoauth2};
use crate::trace::{Tracer, has_no_secret};

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
    Slapd::with(Options { modules: &["syncprov"], database: SYNCPROV, entries: &entries(), ..Options::default() })
}

fn entries() -> String {
    let boss = User { mails: &["boss@example.com"], ..User::new("boss", None) };
    let helper = User { mails: &["helper@example.com"], ..User::new("helper", Some("server4")) };
    [boss, User::new("chief", Some("server3")), helper].iter().map(User::ldif).collect()
}

/// The same with a password policy, by which an account can be disabled.
fn directory_with_policy() -> Slapd {
    let policy = format!("cn=policy,ou=services,{SUFFIX}");
    let entry = format!(
        "dn: {policy}\nobjectClass: device\nobjectClass: pwdPolicy\ncn: policy\npwdAttribute: userPassword\n\
         pwdLockout: TRUE\n\n"
    );
    Slapd::with(Options {
        modules: &["syncprov", "ppolicy"],
        database: &format!("{SYNCPROV}overlay ppolicy\nppolicy_default \"{policy}\"\n"),
        entries: &(entry + &entries()),
        ..Options::default()
    })
}

fn modify(slapd: &Slapd, uid: &str, attribute: &str, value: Option<&str>) {
    let value = value.map(|value| format!("{attribute}: {value}\n")).unwrap_or_default();
    slapd.modify(&format!("dn: {}\nchangetype: modify\nreplace: {attribute}\n{value}", dn(uid)));
}

/// A message of PLAIN.
fn plain(authzid: &str, login: &str, password: &str) -> String {
    base64(format!("{authzid}\0{login}\0{password}").as_bytes())
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

/// The same with an account that logs in at server3 for users without a password.
fn with_service(config: Config) -> Config {
    config.set("/routing/backends/0/service", json!({"login": "usher", "password_file": "backend.password"}))
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
        ("boss", "missing", "unknown_target"),
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

/// What no line may have is the address of a client that acts for no other user, at any level.
#[test]
fn log_has_networks_in_place_of_clients_where_addresses_may_not_be_kept() {
    let slapd = directory();
    let config = config(&slapd)
        .set("/log", json!({"format": "json", "level": "trace", "client_address": "network"}))
        .set("/limits/failed_logins", 2);
    let mut usher = start(config);
    let port = usher.imaps_port();
    let client = || Imap::tls_from([127, 9, 8, 7], port);
    let mut anna = client();
    anna.login("anna", &password_of("anna")).ok();
    anna.command("LOGOUT").ok();
    let mut guesser = client();
    guesser.login("anna", "wrong").is("NO [AUTHENTICATIONFAILED]");
    guesser.login("nobody", "wrong");
    drop(client());
    // No TLS at all.
    drop(Imap::silent_from([127, 9, 8, 7], port));
    usher.wait_log("end", |_| true);
    usher.wait_log("disconnected before login", |line| line["client"] == "127.9.8.0/24");
    usher.wait_log("TLS handshake failed", |_| true);
    assert_eq!(usher.login("anna")["client"], "127.9.8.0/24");
    assert!(!usher.log_text().contains("127.9.8.7"), "{}", usher.log_text());
    // Lists show the network, too; who acts for others is in the log whole.
    let mut anna = client();
    anna.login("anna", &password_of("anna")).ok();
    assert!(usher.command(&["sessions"]).succeeded().stdout.contains("127.9.8.0/24"));
    let boss = acts(&usher, "boss", "anna");
    assert_eq!(event(&usher, ("boss", "anna"), "result", "ok")["client"], "127.0.0.1");
    drop(boss);
    // A reload changes it.
    usher.config.change("/log/client_address", "full");
    usher.config.write();
    usher.hup();
    anna.command("LOGOUT").ok();
    let ended = usher.wait_log("end", |line| line["client"] == "127.9.8.7");
    assert_eq!(ended["login"], "anna");
}

/// Only server3, in one protocol, in which administrators may act.
fn speaking(slapd: &Slapd, protocol: &str, ports: &[u16]) -> Config {
    config(slapd)
        .without("/routing/backends/0/imap")
        .speaking(protocol, ports)
        .set("/impersonation/protocols", json!(["imap", "pop3", "submission", "managesieve"]))
}

#[test]
fn administrator_acts_by_pop3_and_submission_in_both_forms() {
    let slapd = directory();
    let _relay = relay();
    for (protocol, scheme, port, wrong) in [
        ("pop3", "pop3s", dovecot().pop3s, "-ERR [AUTH] "),
        ("submission", "smtps", dovecot().submissions, "535 5.7.8 "),
    ] {
        let usher = start(speaking(&slapd, protocol, &[port]));
        let url = format!("{scheme}://127.0.0.1:{}/", usher.imaps_port());
        let named = format!("anna*boss:{}", password_of("boss"));
        for form in [&["--sasl-authzid", "anna"][..], &["-u", &named]] {
            let last: &[&str] = if protocol == "submission" { &["-X", "NOOP"] } else { &[] };
            let said = curl_url(&url, "boss", &[form, last, &["--login-options", "AUTH=PLAIN"]].concat());
            let typed = if form[0] == "-u" { "anna*boss" } else { "boss" };
            let event = event(&usher, ("boss", "anna"), "login", typed);
            let seen = ["result", "protocol", "login_backend", "acting_by"].map(|field| event[field].clone());
            assert_eq!(seen, ["ok", protocol, "anna", "administrator"].map(Value::from), "{event} {said:?}");
        }
        // A refusal is word for word that of a wrong password.
        let mut client = Imap::tls(usher.imaps_port());
        if protocol == "submission" {
            client.send("EHLO here\r\n");
            while client.line().as_bytes().get(3) == Some(&b'-') {}
        }
        let mut said = |authzid: &str, login: &str, password: &str| {
            client.send(format!("AUTH PLAIN {}\r\n", plain(authzid, login, password)));
            client.line()
        };
        let expected = said("", "anna", "wrong");
        assert!(expected.starts_with(wrong), "{expected}");
        for (authzid, login) in [("anna", "helper"), ("missing", "boss"), ("", "anna*helper"), ("", "missing*boss")] {
            let actor = login.rsplit('*').next().unwrap();
            assert_eq!(said(authzid, login, &password_of(actor)), expected, "{authzid} {login}");
        }
    }
}

#[test]
fn administrator_acts_by_managesieve_in_both_forms() {
    let slapd = directory();
    let endpoint = json!({"address": format!("127.0.0.1:{}", dovecot().sieve), "tls": "starttls", "server_name": "server3.example.com"});
    let usher = start(speaking(&slapd, "managesieve", &[]).set("/routing/backends/0/managesieve", endpoint));
    let said = |authzid: &str, login: &str, password: &str| {
        let mut client = Sieve::tls(usher.imaps_port());
        let answer = client.command(&format!("AUTHENTICATE \"PLAIN\" \"{}\"", plain(authzid, login, password)));
        let answer = answer.last().unwrap().clone();
        let listed = answer.starts_with("OK").then(|| client.command("LISTSCRIPTS"));
        assert!(listed.is_none_or(|listed| listed.last().unwrap().starts_with("OK")));
        answer
    };
    for (authzid, login) in [("anna", "boss"), ("", "anna*boss")] {
        let answer = said(authzid, login, &password_of("boss"));
        assert!(answer.starts_with("OK"), "{answer}");
        event(&usher, ("boss", "anna"), "login", login);
    }
    let expected = said("", "anna", "wrong");
    assert!(expected.starts_with("NO \"Name or password"), "{expected}");
    for (authzid, login) in [("anna", "helper"), ("missing", "boss"), ("", "anna*helper")] {
        let actor = login.rsplit('*').next().unwrap();
        assert_eq!(said(authzid, login, &password_of(actor)), expected, "{authzid} {login}");
    }
}

#[test]
fn nobody_acts_through_auth_http() {
    let slapd = directory();
    let usher = start(config(&slapd).set("/auth_http", json!({"address": "127.0.0.1:0", "allow": ["127.0.0.1"]})));
    let port = auth_http::port(&usher);
    let status = |user: &str, password: &str| {
        let answer = auth_http::ask(port, &auth_http::question(user, password, "imap", 1, ""));
        auth_http::header(&answer, "Auth-Status").unwrap_or_default().to_owned()
    };
    let boss = password_of("boss");
    let wrong = status("anna", "wrong");
    assert!(wrong.contains("wrong"), "{wrong}");
    assert_eq!(status("anna*boss", &boss), wrong);
    let event = usher.login("anna*boss");
    assert_eq!((&event["result"], &event["acting"]), (&json!("unknown_user"), &Value::Null), "{event}");
}

#[test]
fn token_acts_for_the_mailbox_that_is_named_beside_it() {
    let slapd = directory();
    modify(&slapd, "ben", "seeAlso", Some(&dn("helper")));
    let issuer = ScriptedIssuer::start();
    let usher = start(issuer.configured(with_service(config(&slapd))));
    let (boss, helper) = (issuer.token("boss@example.com"), issuer.token("helper@example.com"));
    let alice = issuer.token("alice@example.com");
    for (message, mailbox) in [
        (format!("OAUTHBEARER {}", oauthbearer("anna", &boss)), "anna"),
        (format!("XOAUTH2 {}", xoauth2("ben", &boss)), "ben"),
    ] {
        let mut imap = Imap::tls(usher.imaps_port());
        imap.command(&format!("AUTHENTICATE {message}")).ok();
        imap.command("SELECT INBOX").ok();
        let event = event(&usher, ("boss", mailbox), "result", "ok");
        let seen = ["acting_by", "acting_dn", "dn", "login_backend", "claim", "by"].map(|field| event[field].clone());
        let (claim, dns) = ("email=boss@example.com", [dn("boss"), dn(mailbox)]);
        let expected = ["administrator", &dns[0], &dns[1], mailbox, claim, "impersonation"];
        assert_eq!(seen, expected.map(Value::from), "{event}");
        let table = usher.command(&["sessions"]).succeeded().stdout;
        assert!(table.contains("  boss"), "{table}");
    }
    let mut imap = Imap::tls(usher.imaps_port());
    imap.command(&format!("AUTHENTICATE XOAUTH2 {}", xoauth2("ben", &helper))).ok();
    event(&usher, ("helper", "ben"), "acting_by", "grant");
    // The own name is no other user's.
    assert!(log_in(&usher, "a.liddell@example.com", &alice).1.starts_with("OK"));
    assert_eq!(usher.login("a.liddell@example.com")["acting"], Value::Null);
    // Whoever it is, and whether there is such a mailbox: the reply to a token of an unknown user.
    let refusal = log_in(&usher, "", &issuer.token("missing@example.com"));
    assert!(refusal.1.starts_with("NO [AUTHENTICATIONFAILED]"), "{refusal:?}");
    for (mailbox, token) in
        [("anna", &helper), ("anna", &alice), ("missing", &boss), ("chief", &boss), ("boss", &alice)]
    {
        assert_eq!(log_in(&usher, mailbox, token), refusal, "{mailbox}");
    }
    event(&usher, ("helper", "anna"), "acting_refused", "not_permitted");
    event(&usher, ("boss", "chief"), "acting_refused", "administrator");
    // With a token the name is never split, and no token is refused for that.
    assert_eq!(log_in(&usher, "anna*boss", &boss), refusal);

    modify(&slapd, "ben", "seeAlso", None);
    assert!(imap.line().starts_with("* BYE"));
    usher.wait_log("end", |event| event["cause"] == "grant_revoked");
    assert_eq!(log_in(&usher, "ben", &helper), refusal);
}

#[test]
fn client_certificate_acts_for_the_mailbox_of_the_authzid() {
    let (slapd, authority) = (directory(), Authority::new("people"));
    let (boss, other) = (authority.certificate(1, "boss", &[], false), authority.certificate(2, "alice", &[], false));
    external::list(&slapd, "boss", Some(&boss));
    external::list(&slapd, "alice", Some(&other));
    let mut config = with_service(config(&slapd)).set("/listeners/0/client_ca", authority.ca().display().to_string());
    config.change("/listeners/0/client_login", json!({"match": "certificate"}));
    let usher = start(config.clone());
    let external = |usher: &Usher, pair, authzid: &str| {
        let mut imap = external::connect(usher, pair);
        let reply = imap.command(&format!("AUTHENTICATE EXTERNAL {}", base64(authzid.as_bytes()))).tagged;
        (imap, reply)
    };
    let (mut imap, reply) = external(&usher, &boss, "anna");
    assert!(reply.starts_with("OK"), "{reply}");
    let event = event(&usher, ("boss", "anna"), "result", "ok");
    assert_eq!((&event["login_backend"], &event["acting_dn"]), (&json!("anna"), &json!(dn("boss"))), "{event}");
    for (pair, mailbox) in [(&other, "anna"), (&boss, "missing"), (&boss, "chief"), (&other, "boss")] {
        let (_, reply) = external(&usher, pair, mailbox);
        assert_eq!(reply, "NO [AUTHENTICATIONFAILED] Name or password is wrong", "{mailbox}");
    }
    self::event(&usher, ("alice", "anna"), "acting_refused", "not_permitted");
    external(&usher, &other, "a.liddell@example.com").1.starts_with("OK").then_some(()).unwrap();
    // The session hangs on the certificate of the user who acts.
    external::list(&slapd, "boss", None);
    assert!(imap.line().starts_with("* BYE"));
    usher.wait_log("end", |event| event["cause"] == "certificate_removed");
    assert!(external(&usher, &boss, "anna").1.starts_with("NO [AUTHENTICATIONFAILED]"));

    // The address of a certificate; and a listener that ignores what the client asks for.
    let boss = authority.certificate(3, "", &["boss@example.com"], false);
    config.change("/listeners/0/client_login", json!({"match": "san_email"}));
    let usher = start(config.clone());
    assert!(external(&usher, &boss, "anna").1.starts_with("OK"));
    assert!(external(&usher, &boss, "missing").1.starts_with("NO [AUTHENTICATIONFAILED]"));
    config.change("/listeners/0/client_login", json!({"match": "san_email", "ignore_authzid": true}));
    let usher = start(config);
    let (_, reply) = external(&usher, &boss, "anna");
    assert!(reply.starts_with("NO [CONTACTADMIN]"), "boss has no mailbox: {reply}");
    assert_eq!(usher.wait_log("login", |_| true)["acting"], Value::Null);
}

#[test]
fn disabling_either_user_ends_the_session() {
    let slapd = directory_with_policy();
    modify(&slapd, "ben", "seeAlso", Some(&dn("helper")));
    let usher = start(config(&slapd));
    let mut number = 0.0;
    for (actor, mailbox, disabled) in [("boss", "anna", "boss"), ("helper", "ben", "ben"), ("helper", "ben", "helper")]
    {
        let mut imap = acts(&usher, actor, mailbox);
        modify(&slapd, disabled, "pwdAccountLockedTime", Some("000001010000Z"));
        assert!(imap.line().starts_with("* BYE"), "{disabled}");
        imap.expect_clean_end();
        number += 1.0;
        usher.wait_metric("usher_sessions_ended_total", &[("cause", "disabled")], number);
        let (_, reply) = acting(&usher, actor, mailbox);
        assert!(reply.starts_with("NO [AUTHENTICATIONFAILED]"), "{disabled}: {reply}");
        modify(&slapd, disabled, "pwdAccountLockedTime", None);
        usher.wait_metric("usher_directory_changes_total", &[("kind", "enable")], number);
    }
    event(&usher, ("helper", "ben"), "acting_refused", "disabled");
}

#[test]
fn trace_shows_a_user_who_acts_under_both_names_and_no_secret() {
    let slapd = directory();
    let usher = start(config(&slapd));
    for name in ["boss", "anna"] {
        let mut tracer = Tracer::start(&usher, &["--user", name]);
        drop(acts(&usher, "boss", "anna"));
        tracer.wait_text("no longer traced");
        let shown = tracer.shown().join("\n");
        assert!(
            shown.contains(&format!("boss ({}) acts for anna, permitted by: administrator", dn("boss"))),
            "{shown}"
        );
        assert!(shown.contains("the user who acts is proven"), "{shown}");
        has_no_secret(&shown, &password_of("boss"));
        has_no_secret(&shown, SERVICE_PASSWORD);
    }
    let mut tracer = Tracer::start(&usher, &["--user", "anna"]);
    let (_, reply) = acting(&usher, "helper", "anna");
    assert!(reply.starts_with("NO"), "{reply}");
    let line = tracer.wait_text("may not act");
    assert!(line["text"].as_str().unwrap().starts_with("helper may not act for anna: no administrator"), "{line}");
}

#[test]
fn check_finds_what_keeps_users_from_acting() {
    let slapd = directory();
    let mut usher_config = config(&slapd)
        .set("/impersonation/admins", json!([dn("boss"), dn("gone")]))
        .without("/routing/backends/1/impersonation_service");
    usher_config.write();
    let said = command(&usher_config, &["check", "--connect"], b"").stdout;
    for text in [
        "1 entry of impersonation.admins found",
        &format!("impersonation.admins: the directory has no entry {}", dn("gone")),
        "no account for users that act for a mailbox at server4",
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    // A lost read right would end the sessions of all users that act by a grant.
    usher_config.change("/directory/canary", json!({"login": "alice", "mail_host": "server3"}));
    usher_config.write();
    let said = command(&usher_config, &["check", "--connect"], b"").stdout;
    assert!(said.contains("shows no seeAlso"), "{said}");
    modify(&slapd, "alice", "seeAlso", Some(&dn("alice")));
    let said = command(&usher_config, &["check", "--connect"], b"").stdout;
    assert!(said.contains("shown as configured") && !said.contains("shows no"), "{said}");
    // `explain` looks at the mailbox's backend as well.
    let explained = command(&usher_config, &["explain", "ben", "--acting", "boss"], b"");
    assert!(
        explained.code != 0 && explained.stdout.contains("neither impersonation_service nor service"),
        "{explained:?}"
    );
}

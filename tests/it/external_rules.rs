//! Logins by client certificate (SASL EXTERNAL): what applies to them as to logins by password, and certificates that
//! are made to pass for another user's.

use rcgen::{DnType, ExtendedKeyUsagePurpose, IsCa};
use serde_json::{Value, json};

use crate::external::{config, connect, directory, is_greeted, list, showing, start};
use crate::kit::authority::Authority;
use crate::kit::certs::Pair;
use crate::kit::client::base64;
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::users::SERVICE_DN;
use crate::kit::usher::command;
use crate::kit::{Config, Imap, User, Usher, password_of};

const WRONG: &str = "NO [AUTHENTICATIONFAILED]";

/// Replaces the values of an attribute of a user.
fn set(slapd: &Slapd, uid: &str, attribute: &str, value: Option<&str>) {
    let value = value.map_or_else(String::new, |value| format!("{attribute}: {value}\n"));
    let dn = User::new(uid, None).dn();
    slapd.modify(&format!("dn: {dn}\nchangetype: modify\nreplace: {attribute}\n{value}"));
}

/// How many logins the log has.
fn logins(usher: &Usher) -> usize {
    usher.logged().iter().filter(|line| line["message"] == "login").count()
}

/// A session by this certificate, once the log has it.
fn session(usher: &Usher, pair: &Pair) -> Imap {
    let (before, mut imap) = (logins(usher), connect(usher, pair));
    imap.command("AUTHENTICATE EXTERNAL =").ok();
    usher.wait_nth_log(before + 1, "login", |_| true);
    imap
}

/// One attempt as `authzid`: the tagged reply and the event.
fn attempt(usher: &Usher, pair: &Pair, authzid: &str) -> (String, Value) {
    attempt_from(usher, [127, 0, 0, 1], pair, authzid)
}

fn attempt_from(usher: &Usher, from: [u8; 4], pair: &Pair, authzid: &str) -> (String, Value) {
    let before = logins(usher);
    let initial = if authzid.is_empty() { "=".to_owned() } else { base64(authzid.as_bytes()) };
    let mut imap = Imap::tls_at(from, usher.imaps_port(), &showing(pair));
    let reply = imap.command(&format!("AUTHENTICATE EXTERNAL {initial}")).tagged;
    (reply, usher.wait_nth_log(before + 1, "login", |_| true))
}

fn refused(usher: &Usher, pair: &Pair, authzid: &str, start: &str, result: &str) -> Value {
    let (reply, event) = attempt(usher, pair, authzid);
    assert_eq!((reply.starts_with(start), event["result"].as_str()), (true, Some(result)), "{reply}: {event}");
    event
}

#[test]
fn certificate_passes_all_that_a_password_passes() {
    let database = format!("{SYNCPROV}overlay ppolicy\n");
    let slapd = Slapd::with(Options { modules: &["syncprov", "ppolicy"], database: &database, ..Options::default() });
    let authority = Authority::new("people");
    let pair = authority.certificate(1, "alice", &[], false);
    list(&slapd, "alice", [&pair]);
    set(&slapd, "alice", "description", Some("127.0.0.0/24"));
    set(&slapd, "alice", "title", Some("mail"));
    let usher = start(
        config(&slapd, &authority)
            .set("/directory/networks_attribute", "description")
            .set("/directory/hold_attribute", "carLicense")
            .set("/directory/hold_timeout", "1s")
            .set("/directory/allow_filter", "(title=mail)"),
    );
    session(&usher, &pair);
    // Not cached, and cached.
    let (reply, event) = attempt(&usher, &pair, "");
    assert!(reply.starts_with("OK") && event["by"] == "cache", "{reply}: {event}");
    let (reply, event) = attempt_from(&usher, [127, 0, 9, 9], &pair, "");
    assert!(reply.starts_with(WRONG) && event["result"] == "network_not_allowed", "{reply}: {event}");

    let of_bob = authority.certificate(2, "bob", &[], false);
    list(&slapd, "bob", [&of_bob]);
    refused(&usher, &of_bob, "", "NO [AUTHORIZATIONFAILED]", "not_allowed");

    set(&slapd, "alice", "carLicense", Some("held"));
    usher.wait_metric("usher_directory_changes_total", &[("kind", "hold")], 1.0);
    refused(&usher, &pair, "", "NO [UNAVAILABLE]", "hold");
    set(&slapd, "alice", "carLicense", None);
    usher.wait_metric("usher_directory_changes_total", &[("kind", "release")], 1.0);

    let mut open = session(&usher, &pair);
    set(&slapd, "alice", "pwdAccountLockedTime", Some("000001010000Z"));
    let rest = String::from_utf8_lossy(&open.rest()).into_owned();
    assert!(rest.starts_with("* BYE"), "{rest}");
    refused(&usher, &pair, "", "NO", "account_disabled");
    set(&slapd, "alice", "pwdAccountLockedTime", None);
    usher.wait_metric("usher_directory_changes_total", &[("kind", "enable")], 1.0);
    let (reply, event) = attempt(&usher, &pair, "");
    assert!(reply.starts_with("OK"), "{reply}: {event}");
}

#[test]
fn mechanism_of_certificates_alone_takes_no_password() {
    let (slapd, authority) = (directory(), Authority::new("people"));
    let pair = authority.certificate(1, "alice", &[], false);
    list(&slapd, "alice", [&pair]);
    let usher = start(
        config(&slapd, &authority)
            .set("/listeners/0/mechanisms", json!(["EXTERNAL"]))
            .set("/listeners/1/mechanisms", "external"),
    );
    let mut imap = Imap::tls(usher.imaps_port());
    assert!(imap.greeting.contains("LOGINDISABLED") && !imap.greeting.contains("AUTH="), "{}", imap.greeting);
    imap.login("alice", &password_of("alice")).is("NO Unsupported mechanism");
    let mut imap = connect(&usher, &pair);
    assert!(imap.greeting.contains("AUTH=EXTERNAL LOGINDISABLED"), "{}", imap.greeting);
    imap.command("AUTHENTICATE PLAIN").is("NO Unsupported mechanism");
    imap.command("AUTHENTICATE EXTERNAL =").ok();
    let mut imap = Imap::plain(usher.imap_port());
    imap.command("AUTHENTICATE EXTERNAL =").is("NO [PRIVACYREQUIRED]");
    imap.command("STARTTLS").ok();
    imap.start_tls_as(&showing(&pair));
    imap.command("AUTHENTICATE EXTERNAL =").ok();
}

#[test]
fn certificates_of_one_user_and_of_two() {
    let (slapd, authority) = (directory(), Authority::new("people"));
    let [one, other, shared] = [1, 2, 3].map(|serial| authority.certificate(serial, "alice", &[], false));
    list(&slapd, "alice", [&one, &other, &shared]);
    list(&slapd, "bob", [&shared]);
    let usher = start(config(&slapd, &authority));
    for pair in [&one, &other, &shared] {
        let (reply, event) = attempt(&usher, pair, "");
        assert!(reply.starts_with("OK") && event["login_backend"] == "alice", "{reply}: {event}");
    }
    // Both entries list it, so that the name that the client sends decides.
    let (reply, event) = attempt(&usher, &shared, "bob");
    assert!(event["dn"].as_str().unwrap().starts_with("uid=bob,"), "{reply}: {event}");
    assert_ne!(event["result"], "wrong_certificate", "{event}");
    refused(&usher, &one, "bob", WRONG, "wrong_certificate");
    // A name is no pattern.
    for pattern in ["*", "a*", "alice)(uid=*"] {
        refused(&usher, &one, pattern, WRONG, "unknown_user");
    }
    // One of several values is deleted: its session ends alone.
    let [mut first, mut second] = [&one, &other].map(|pair| session(&usher, pair));
    list(&slapd, "alice", [&other]);
    usher.wait_log("end", |line| line["cause"] == "certificate_removed");
    first.rest();
    second.command("NOOP").ok();
    refused(&usher, &one, "", WRONG, "wrong_certificate");
}

#[test]
fn address_is_exactly_one_and_no_pattern() {
    let (slapd, vouching) = (directory(), Authority::new("vouching"));
    let config = config(&slapd, &vouching).set("/listeners/0/client_login", json!({"match": "san_email"}));
    let usher = start(config);
    let address = "a.liddell@example.com";
    let certificate = |serial, addresses: &[&str]| vouching.certificate(serial, "alice", addresses, false);
    let (reply, event) = attempt(&usher, &certificate(1, &["A.Liddell@EXAMPLE.com"]), "");
    assert!(reply.starts_with("OK") && event["login_backend"] == "alice", "{reply}: {event}");
    let (reply, event) = attempt(&usher, &certificate(2, &[address, "A.LIDDELL@example.com"]), "");
    assert!(reply.starts_with("OK") && event["login_backend"] == "alice", "{reply}: {event}");
    for (serial, addresses, result) in [
        (3, &[address, "bob@example.com"][..], "no_certificate_name"),
        (4, &[], "no_certificate_name"),
        (5, &["*@example.com"], "unknown_user"),
        (6, &["*"], "unknown_user"),
        (7, &["a.liddell@example.com)(uid=*"], "unknown_user"),
        (8, &["a.liddell@example.com\0@evil.example"], "invalid_username"),
        (9, &["a.liddell@example.com\r\n"], "invalid_username"),
        (10, &[""], "invalid_username"),
    ] {
        refused(&usher, &certificate(serial, addresses), "", WRONG, result);
    }
    // A name of the subject vouches for nothing, and its control characters break no line of the log.
    let subject = vouching.certificate_with(11, "x", &[], |params| {
        params.distinguished_name.push(DnType::OrganizationName, "a\r\nb\u{1b}[2J");
        params.distinguished_name.push(DnType::from_oid(&[1, 2, 840, 113549, 1, 9, 1]), address);
    });
    let event = refused(&usher, &subject, "alice", WRONG, "no_certificate_name");
    let shown = event["certificate"].as_str().unwrap();
    assert!(shown.starts_with("certificate CN=x, O=a\r\nb\u{1b}[2J, Email="), "{shown:?}");
}

#[test]
fn certificate_for_another_use_does_not_pass_the_handshake() {
    let (slapd, authority, other) = (directory(), Authority::new("people"), Authority::new("others"));
    let servers = [ExtendedKeyUsagePurpose::ServerAuth];
    let signers = authority.below("signers", &[]);
    let server_signers = authority.below("server signers", &servers);
    let usher = start(config(&slapd, &authority));
    let passes = |pair: &Pair| {
        list(&slapd, "alice", [pair]);
        is_greeted(usher.imaps_port(), showing(pair).config())
    };
    assert!(passes(&authority.certificate(1, "alice", &[], false)));
    assert!(passes(&authority.certificate_with(2, "alice", &[], |params| params.extended_key_usages.clear())));
    assert!(passes(&signers.certificate(3, "alice", &[], false)), "by an authority in between");
    assert!(!passes(
        &authority.certificate_with(4, "alice", &[], |params| params.extended_key_usages = servers.to_vec())
    ));
    assert!(!passes(&server_signers.certificate(5, "alice", &[], false)), "its authority is for servers");
    let authority_itself = authority.certificate_with(6, "alice", &[], |params| {
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    });
    assert!(!passes(&authority_itself), "an authority is no user");

    // A list of another authority says nothing about this one's certificates, even where it has the same name.
    let forger = Authority::new("people");
    let pair = authority.certificate(7, "alice", &[], false);
    for (foreign, at) in [(&other, "other"), (&forger, "forged")] {
        let crl = foreign.revoke(&[], 2049).display().to_string();
        let usher = Usher::start(config(&slapd, &authority).set("/listeners/0/crl", crl));
        assert!(!is_greeted(usher.imaps_port(), showing(&pair).config()), "{at}");
        Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
    }
}

#[test]
fn end_of_a_revocation_list_is_a_metric() {
    let (slapd, authority) = (directory(), Authority::new("people"));
    let crl = authority.revoke(&[], 2049).display().to_string();
    let usher = start(config(&slapd, &authority).set("/listeners/0/crl", crl.as_str()));
    let ends = || usher.metric("usher_crl_next_update_timestamp_seconds", &[("crl", crl.as_str())]);
    assert_eq!(ends(), 2_493_072_000.0, "2049-01-01");
    authority.revoke(&[], 2048);
    assert_eq!(usher.hup()["message"], "reloaded");
    assert_eq!(ends(), 2_461_449_600.0, "2048-01-01");
}

/// The finding of `check --connect` about certificates, and the text of the whole.
fn found(config: &Config) -> (Option<Value>, Value) {
    let report: Value = serde_json::from_str(&command(config, &["check", "--connect", "--json"], b"").stdout).unwrap();
    let of = |subject: &Value| subject["kind"] == "directory";
    let subject = report["subjects"].as_array().unwrap().iter().find(|subject| of(subject)).cloned().unwrap();
    let found = subject["findings"].as_array().unwrap().iter().find(|one| one["check"] == "certificates").cloned();
    (found, report)
}

#[test]
fn certificates_that_cannot_be_read_are_a_finding() {
    let authority = Authority::new("people");
    let pair = authority.certificate(1, "alice", &[], false);
    let hidden = format!("access to attrs=userCertificate by dn.exact=\"{SERVICE_DN}\" search by * none\n");
    for (access, listed, state, words) in [
        ("", true, "ok", "userCertificate is shown, such as that of uid=alice"),
        ("", false, "warning", "no user shows userCertificate"),
        (hidden.as_str(), true, "problem", "may be searched but not read"),
    ] {
        let slapd = Slapd::with(Options { access, ..Options::default() });
        list(&slapd, "alice", listed.then_some(&pair));
        let config = config(&slapd, &authority);
        config.write();
        let (finding, report) = found(&config);
        let finding = finding.unwrap_or_else(|| panic!("{report:#}"));
        assert!(finding["state"] == state && finding.to_string().contains(words), "{finding}");
        let chain = pair.chain.display().to_string();
        let explained = command(&config, &["explain", "alice", "--certificate", &chain], b"").stdout;
        let result = if state == "ok" { "server3" } else { "wrong_certificate" };
        assert!(explained.contains(result), "{explained}");
    }
    // By an address nothing is compared.
    let slapd = Slapd::with(Options { access: &hidden, ..Options::default() });
    let mut config = config(&slapd, &authority);
    for listener in ["/listeners/0", "/listeners/1"] {
        config.change(&format!("{listener}/client_login"), json!({"match": "san_email"}));
    }
    config.write();
    assert_eq!(found(&config).0, None);
}

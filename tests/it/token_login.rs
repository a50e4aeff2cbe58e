//! Logins with a token: real directory, real mail servers, a scripted issuer, common clients.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::kit::client::base64;
use crate::kit::issuer::{Conduct, DISCOVERY, INTROSPECTION, ScriptedIssuer, in_seconds};
use crate::kit::slapd::{Options, SYNCPROV, Slapd};
use crate::kit::tools::curl_url;
use crate::kit::users::{SERVICE_PASSWORD, SUFFIX};
use crate::kit::usher::command;
use crate::kit::{Config, Imap, Sieve, User, Usher, dovecot, relay, slapd, wait_limit};

pub(crate) const ALICE: &str = "alice@example.com";

/// server3 is entered by its master user.
pub(crate) fn config(issuer: &ScriptedIssuer) -> Config {
    let config = Config::with_directory(slapd()).backend("server3", dovecot().imaps, &["server3"]);
    config.file("server3.password", SERVICE_PASSWORD);
    issuer
        .configured(config)
        .set("/directory/login_attribute", "uid")
        .set("/routing/backends/0/service", json!({"login": "usher", "password_file": "server3.password"}))
}

pub(crate) fn oauthbearer(user: &str, token: &str) -> String {
    let name = if user.is_empty() { String::new() } else { format!("a={user}") };
    base64(format!("n,{name},\x01host=localhost\x01port=993\x01auth=Bearer {token}\x01\x01").as_bytes())
}

pub(crate) fn xoauth2(user: &str, token: &str) -> String {
    base64(format!("user={user}\x01auth=Bearer {token}\x01\x01").as_bytes())
}

/// Logs in by IMAP; the challenge, if one came, and the tagged reply.
pub(crate) fn log_in(usher: &Usher, user: &str, token: &str) -> (Option<Value>, String) {
    let mut client = Imap::tls(usher.imaps_port());
    client.send(format!("a AUTHENTICATE OAUTHBEARER {}\r\n", oauthbearer(user, token)));
    let line = client.line();
    let Some(challenge) = line.strip_prefix("+ ") else { return (None, tagged(&mut client, line)) };
    let challenge = serde_json::from_slice(&STANDARD.decode(challenge.trim_end()).unwrap()).unwrap();
    client.send("AQ==\r\n");
    let line = client.line();
    (Some(challenge), tagged(&mut client, line))
}

fn tagged(client: &mut Imap, mut line: String) -> String {
    while !line.starts_with("a ") {
        line = client.line();
    }
    line["a ".len()..].trim_end().to_owned()
}

#[test]
fn user_with_a_token_reaches_the_own_mailbox_by_imap() {
    let issuer = ScriptedIssuer::start();
    let usher = Usher::start(config(&issuer));
    let token = issuer.token(ALICE);
    for message in [
        format!("AUTHENTICATE OAUTHBEARER {}", oauthbearer(ALICE, &token)),
        format!("AUTHENTICATE OAUTHBEARER {}", oauthbearer("", &token)),
        format!("AUTHENTICATE XOAUTH2 {}", xoauth2("alice", &token)),
        format!("authenticate xoauth2 {}", xoauth2("a.liddell@example.com", &token)),
    ] {
        let mut client = Imap::tls(usher.imaps_port());
        assert!(client.greeting.contains("AUTH=PLAIN AUTH=LOGIN AUTH=OAUTHBEARER AUTH=XOAUTH2"), "{}", client.greeting);
        client.command(&message).ok();
        client.command("SELECT INBOX").ok();
    }
    let mut client = Imap::tls(usher.imaps_port());
    client.send("a AUTHENTICATE XOAUTH2\r\n");
    assert_eq!(client.line(), "+ ");
    client.send(format!("{}\r\n", xoauth2("", &token)));
    let line = client.line();
    assert!(tagged(&mut client, line).starts_with("OK "));
    let event = usher.login(ALICE);
    assert_eq!(
        (&event["result"], &event["mechanism"], &event["by"]),
        (&json!("ok"), &json!("oauthbearer"), &json!("directory"))
    );
    assert_eq!((&event["login_backend"], &event["claim"]), (&json!("alice"), &json!("email=alice@example.com")));
    assert_eq!(event["issuer"], issuer.issuer());
    assert!(!usher.log_text().contains(&token[token.len() - 40..]), "no token is logged");
    // No other user's name, whether there is such a user or not.
    for other in ["bob", "missing", "bob@example.com"] {
        let (challenge, reply) = log_in(&usher, other, &token);
        assert_eq!(challenge.unwrap()["status"], "invalid_token");
        assert_eq!(reply, "NO [AUTHORIZATIONFAILED] Authorization as another user is not allowed");
    }
    // In the clear nothing is offered or taken.
    let mut clear = Imap::plain(usher.imap_port());
    assert!(!clear.greeting.contains("OAUTH"), "{}", clear.greeting);
    clear.command(&format!("AUTHENTICATE XOAUTH2 {}", xoauth2("", &token))).is("NO [PRIVACYREQUIRED]");
}

#[test]
fn address_that_moves_to_another_user_opens_that_user_s_mailbox() {
    let issuer = ScriptedIssuer::start();
    let policy = format!("cn=policy,ou=services,{SUFFIX}");
    let slapd = Slapd::with(Options {
        modules: &["syncprov", "ppolicy"],
        database: &format!("{SYNCPROV}overlay ppolicy\nppolicy_default \"{policy}\"\n"),
        entries: &format!(
            "dn: {policy}\nobjectClass: device\nobjectClass: pwdPolicy\ncn: policy\npwdAttribute: userPassword\n\n"
        ),
        ..Options::default()
    });
    let (alice, bob) = (User::new("alice", None), User::new("bob", None));
    // From now on the entry shows when its password was changed.
    slapd.set(&alice, "userPassword", Some("another"));
    let config = Config::with_directory(&slapd).backend("server3", dovecot().imaps, &["server3"]);
    config.file("server3.password", SERVICE_PASSWORD);
    let usher = Usher::start(
        issuer
            .configured(config)
            .set("/directory/login_attribute", "uid")
            .set("/directory/watch", "auto")
            .set("/cache/ttl", "1h")
            .set("/routing/backends/0/service", json!({"login": "usher", "password_file": "server3.password"})),
    );
    usher.wait_metric("usher_directory_watch_connected", &[], 1.0);
    let token = issuer.token(ALICE);
    let logged_in = |nth: usize| {
        let _ = log_in(&usher, "", &token);
        usher.wait_nth_log(nth, "login", |_| true)
    };
    assert_eq!(logged_in(1)["by"], "directory");
    let event = logged_in(2);
    assert_eq!((&event["by"], &event["dn"]), (&json!("cache"), &json!(alice.dn())), "{event}");
    slapd.set(&alice, "mail", Some("liddell@example.com"));
    slapd.set(&bob, "mailHost", Some("server3"));
    slapd.set(&bob, "mail", Some(ALICE));
    let end = Instant::now() + wait_limit(Duration::from_secs(10));
    while usher.metric("usher_directory_changes_total", &[("kind", "other")]) < 1.0 {
        assert!(Instant::now() < end, "the change is not reported");
        std::thread::sleep(Duration::from_millis(20));
    }
    let event = logged_in(3);
    assert_eq!((&event["result"], &event["dn"]), (&json!("ok"), &json!(bob.dn())), "{event}");
}

#[test]
fn refused_token_is_answered_by_its_error_and_an_outage_by_none() {
    let issuer = ScriptedIssuer::start();
    let mut config = config(&issuer);
    config.change("/tokens/0/scopes", json!(["mail"]));
    let usher = Usher::start(config);
    let claims = |change: &dyn Fn(&mut Value)| {
        let mut claims = issuer.claims(ALICE);
        claims["scope"] = json!("openid mail");
        change(&mut claims);
        issuer.sign(&claims)
    };
    assert!(log_in(&usher, "", &claims(&|_| ())).1.starts_with("OK "));
    let expired = claims(&|claims| claims["exp"] = json!(in_seconds(-300)));
    let (challenge, reply) = log_in(&usher, "expired", &expired);
    let document = issuer.url(DISCOVERY);
    assert_eq!(
        challenge.unwrap(),
        json!({"status": "invalid_token", "scope": "mail", "openid-configuration": document})
    );
    assert_eq!(reply, "NO [AUTHENTICATIONFAILED] The token is not accepted, get a new one");
    let event = usher.login("expired");
    assert_eq!((&event["result"], &event["token_error"]), (&json!("token_refused"), &json!("token_expired")));
    let narrow = claims(&|claims| claims["scope"] = json!("openid"));
    assert_eq!(log_in(&usher, "", &narrow).0.unwrap()["status"], "insufficient_scope");
    let unknown = claims(&|claims| claims["email"] = json!("missing@example.com"));
    let (challenge, reply) = log_in(&usher, "", &unknown);
    assert_eq!(challenge.unwrap()["status"], "invalid_token");
    assert_eq!(reply, "NO [AUTHENTICATIONFAILED] The token is not accepted, get a new one");
    let twins = claims(&|claims| claims["email"] = json!("twin@example.com"));
    assert!(log_in(&usher, "", &twins).1.starts_with("NO ["));
    assert!(log_in(&usher, "", "garbage").0.is_some());
    // An usher that has never received the keys.
    issuer.set_conduct(DISCOVERY, Conduct::Status(503, ""));
    let usher = Usher::start(self::config(&issuer));
    let (challenge, reply) = log_in(&usher, "outage", &claims(&|_| ()));
    assert_eq!(challenge, None);
    assert!(reply.starts_with("NO [UNAVAILABLE] The mail service is not available"), "{reply}");
    assert_eq!(usher.login("outage")["result"], "token_unavailable");
}

#[test]
fn opaque_token_is_introspected_and_an_outage_is_no_refusal() {
    let issuer = ScriptedIssuer::start();
    let mut config = config(&issuer);
    config.file("idp.secret", "secret");
    let introspection =
        json!({"url": issuer.url(INTROSPECTION), "client_id": "usher", "client_secret_file": "idp.secret"});
    config.change("/tokens/0/introspection", introspection);
    let usher = Usher::start(config);
    let mut answer = issuer.claims(ALICE);
    answer["active"] = json!(true);
    issuer.introspects("opaque-token", answer);
    assert!(log_in(&usher, "", "opaque-token").1.starts_with("OK "));
    assert_eq!(log_in(&usher, "", "other-token").0.unwrap()["status"], "invalid_token");
    for conduct in [Conduct::Closes, Conduct::Silent, Conduct::Status(500, "")] {
        issuer.set_conduct(INTROSPECTION, conduct);
        let (challenge, reply) = log_in(&usher, "", "third-token");
        assert_eq!(challenge, None);
        assert!(reply.starts_with("NO [UNAVAILABLE]"), "{reply}");
    }
}

#[test]
fn garbage_delays_its_network_and_no_user() {
    let issuer = ScriptedIssuer::start();
    let config = config(&issuer)
        .set("/throttle/failed_logins_per_prefix", json!({"mode": "enforce", "free_failures": 2, "first_delay": "1s"}))
        .set("/throttle/failed_logins_per_user", json!({"mode": "enforce", "free_failures": 1, "first_delay": "1s"}));
    let usher = Usher::start(config);
    for number in 0..4 {
        let (challenge, _) = log_in(&usher, "alice", &format!("garbage{number}"));
        assert_eq!(challenge.unwrap()["status"], "invalid_token");
    }
    let event = usher.nth_login(4, "alice");
    assert_eq!(event["limited_by"], "failed_logins_per_prefix");
    assert!(event["delay_ms"].as_f64().unwrap() > 0.0);
    // A name that is not the token's is a guess at who exists, and takes as long as one.
    for name in ["bob", "missing"] {
        assert!(log_in(&usher, name, &issuer.token(ALICE)).1.starts_with("NO [AUTHORIZATIONFAILED]"));
        assert_eq!(usher.login(name)["limited_by"], "failed_logins_per_prefix");
    }
    // An honest token is not delayed, and alice's password is her own matter.
    assert!(log_in(&usher, "honest", &issuer.token(ALICE)).1.starts_with("NO "), "another name");
    assert!(log_in(&usher, "", &issuer.token(ALICE)).1.starts_with("OK "));
    assert!(usher.login("")["delay_ms"].is_null());
    let mut elsewhere = Imap::tls_from([127, 0, 0, 9], usher.imaps_port());
    elsewhere.login("alice", &crate::kit::password_of("alice"));
    assert!(usher.nth_login(5, "alice")["limited_by"].is_null());
}

#[test]
fn curl_logs_in_with_a_token_by_imap_pop3_and_submission() {
    let issuer = ScriptedIssuer::start();
    let token = issuer.token(ALICE);
    let _relay = relay();
    for (protocol, scheme, port) in [
        ("imap", "imaps", dovecot().imaps),
        ("pop3", "pop3s", dovecot().pop3s),
        ("submission", "smtps", dovecot().submissions),
    ] {
        let mut config = config(&issuer);
        if protocol != "imap" {
            config = config.speaking(protocol, &[port]).without("/routing/backends/0/imap");
        }
        let usher = Usher::start(config);
        let url = format!("{scheme}://127.0.0.1:{}/", usher.imaps_port());
        for mechanism in ["AUTH=OAUTHBEARER", "AUTH=XOAUTH2"] {
            let mut arguments = vec!["--oauth2-bearer", &token, "-u", "alice:", "--login-options", mechanism];
            if protocol == "submission" {
                arguments.extend(["-X", "NOOP"]);
            }
            let output = curl_url(&url, "alice", &arguments);
            assert_eq!(usher.wait_log("login", |line| line["result"] == "ok")["protocol"], protocol, "{output:?}");
        }
    }
}

#[test]
fn managesieve_takes_a_token() {
    let issuer = ScriptedIssuer::start();
    let config = config(&issuer).without("/routing/backends/0/imap").speaking("managesieve", &[]);
    let endpoint = json!({"address": format!("127.0.0.1:{}", dovecot().sieve), "tls": "starttls", "server_name": "server3.example.com"});
    let usher = Usher::start(config.set("/routing/backends/0/managesieve", endpoint));
    let mut client = Sieve::tls(usher.imaps_port());
    let message = oauthbearer(ALICE, &issuer.token(ALICE));
    client.send(format!("AUTHENTICATE \"OAUTHBEARER\" {{{}+}}\r\n{message}\r\n", message.len()));
    let answer = client.answer();
    assert!(answer.last().unwrap().starts_with("OK"), "{answer:?}");
    let answer = client.command("LISTSCRIPTS");
    assert!(answer.last().unwrap().starts_with("OK"), "{answer:?}");
}

#[test]
fn session_of_a_token_is_listed_and_kicked_by_its_user() {
    let issuer = ScriptedIssuer::start();
    let usher = Usher::start(config(&issuer));
    let mut client = Imap::tls(usher.imaps_port());
    client.command(&format!("AUTHENTICATE OAUTHBEARER {}", oauthbearer("", &issuer.token(ALICE)))).ok();
    let listed = usher.command(&["sessions"]).stdout;
    assert!(listed.contains("alice") && listed.contains("server3"), "{listed}");
    let kicked = usher.command(&["kick", "--user", "alice"]);
    assert!(kicked.stdout.contains('1'), "{kicked:?}");
    let rest = String::from_utf8_lossy(&client.rest()).into_owned();
    assert!(rest.contains("BYE"), "{rest}");
}

#[test]
fn listener_offers_the_mechanisms_that_are_listed() {
    let issuer = ScriptedIssuer::start();
    let usher = Usher::start(config(&issuer).set("/listeners/0/mechanisms", json!(["xoauth2"])));
    let mut client = Imap::tls(usher.imaps_port());
    assert!(client.greeting.contains("AUTH=XOAUTH2 LOGINDISABLED]"), "{}", client.greeting);
    client.login("alice", &crate::kit::password_of("alice")).is("NO Unsupported mechanism");
    client.command("AUTHENTICATE PLAIN").is("NO Unsupported mechanism");
    client.command(&format!("AUTHENTICATE XOAUTH2 {}", xoauth2("", &issuer.token(ALICE)))).ok();
    // Without issuers there are no tokens, whatever is listed.
    let usher = Usher::start(config(&issuer).without("/tokens"));
    let client = Imap::tls(usher.imaps_port());
    assert!(!client.greeting.contains("OAUTH"), "{}", client.greeting);
}

#[test]
fn backend_without_a_way_for_tokens_is_reported_by_check_and_by_the_log() {
    let issuer = ScriptedIssuer::start();
    let config = config(&issuer).without("/routing/backends/0/service");
    config.write();
    let checked = command(&config, &["check"], b"");
    let said = format!("{}{}", checked.stdout, checked.stderr);
    assert!(said.contains("token: forward"), "{said}");
    let usher = Usher::start(config);
    let (challenge, reply) = log_in(&usher, "alice", &issuer.token(ALICE));
    assert_eq!(challenge, None, "another token would not help");
    assert!(reply.starts_with("NO [CONTACTADMIN]"), "{reply}");
    assert_eq!(usher.login("alice")["result"], "no_service_login");
    // A password still does.
    let mut client = Imap::tls(usher.imaps_port());
    client.login("anna", &crate::kit::password_of("anna")).ok();
}

#[test]
fn explain_says_what_a_token_leads_to() {
    let issuer = ScriptedIssuer::start();
    let config = config(&issuer);
    config.write();
    let explained = |token: &str| command(&config, &["explain", "--token-stdin"], format!("{token}\n").as_bytes());
    let good = explained(&issuer.token(ALICE)).stdout;
    for part in [&issuer.issuer(), "email=alice@example.com", "uid=alice,ou=people", "server3", "routed"] {
        assert!(good.contains(part), "{part}: {good}");
    }
    let mut claims = issuer.claims(ALICE);
    claims["exp"] = json!(in_seconds(-300));
    let expired = explained(&issuer.sign(&claims)).stdout;
    assert!(expired.contains("token_expired"), "{expired}");
    let token = issuer.token("missing@example.com");
    let unknown = explained(&token).stdout;
    assert!(unknown.contains("unknown_user") && !unknown.contains(&token), "{unknown}");
}

//! Logins with the tokens of a real provider: each kind that it issues, new keys, and its outage.

use serde_json::json;

use crate::kit::provider::{Provider, text};
use crate::kit::users::SERVICE_PASSWORD;
use crate::kit::usher::command;
use crate::kit::{Config, User, Usher, dovecot, slapd};
use crate::token_login::log_in;

/// server3 is entered by its master user.
fn config(provider: &Provider) -> Config {
    let config = Config::with_directory(slapd()).backend("server3", dovecot().imaps, &["server3"]);
    config.file("server3.password", SERVICE_PASSWORD);
    provider
        .configured(config)
        .set("/directory/login_attribute", "uid")
        .set("/routing/backends/0/service", json!({"login": "usher", "password_file": "server3.password"}))
}

/// The entry's own id, which the provider has as `sub`.
fn id_of(uid: &str) -> String {
    let entry = slapd().read(&User::new(uid, None).dn(), &["entryUUID"]);
    let line = entry.lines().find_map(|line| line.strip_prefix("entryUUID: "));
    line.unwrap_or_else(|| panic!("{entry}")).to_owned()
}

#[test]
fn tokens_of_a_real_provider_log_in_and_its_other_tokens_do_not() {
    let provider = Provider::start();
    let usher = Usher::start(config(&provider));
    let alice = id_of("alice");
    // A signature with ECDSA, one with RSA, and a text that only the provider can read.
    for resource in ["mail", "mail-rsa", "mail-opaque"] {
        let (challenge, reply) = log_in(&usher, "alice", &provider.token(&alice, resource));
        assert!(reply.starts_with("OK "), "{resource}: {challenge:?} {reply}\n{}", usher.log_text());
    }
    for nth in 1..=3 {
        let event = usher.nth_login(nth, "alice");
        assert_eq!((&event["result"], &event["login_backend"]), (&json!("ok"), &json!("alice")));
        assert_eq!((&event["issuer"], &event["claim"]), (&json!(provider.issuer()), &json!(format!("sub={alice}"))));
    }

    let whole = provider.user(&alice, Some("mail"));
    let revoked = provider.token(&alice, "mail-opaque");
    provider.revoke(&revoked);
    for (case, token, reason) in [
        ("id", text(&whole["id_token"]), "not_an_access_token"),
        ("robot", provider.robot("mail"), "app_only_token"),
        ("robot-opaque", provider.robot("mail-opaque"), "token_without_login"),
        ("calendar", provider.token(&alice, "calendar"), "token_audience"),
        // For the provider's own page of claims alone: opaque, and without an audience.
        ("nothing", text(&provider.user(&alice, None)["access_token"]), "token_audience"),
        ("revoked", revoked, "inactive_token"),
    ] {
        let (challenge, reply) = log_in(&usher, case, &token);
        assert_eq!(challenge.unwrap_or_default()["status"], "invalid_token", "{case}: {reply}");
        assert_eq!(reply, "NO [AUTHENTICATIONFAILED] The token is not accepted, get a new one", "{case}");
        let event = usher.login(case);
        assert_eq!((&event["result"], &event["token_error"]), (&json!("token_refused"), &json!(reason)), "{case}");
    }
    // A good token names one user: not the one that is written beside it, nor any user by a claim of no entry.
    let (_, reply) = log_in(&usher, "bob", &text(&whole["access_token"]));
    assert_eq!(reply, "NO [AUTHORIZATIONFAILED] Authorization as another user is not allowed");
    let unlisted = provider.token("7e5bd3d4-0000-4000-8000-000000000000", "mail");
    let (_, reply) = log_in(&usher, "unlisted", &unlisted);
    assert_eq!(reply, "NO [AUTHENTICATIONFAILED] The token is not accepted, get a new one");
    assert_eq!(usher.login("unlisted")["result"], "unknown_user");
    assert!(!usher.log_text().contains(text(&whole["access_token"]).split('.').next_back().unwrap()));
}

#[test]
fn new_keys_of_a_real_provider_are_fetched_and_the_last_ones_outlive_it() {
    let mut provider = Provider::start();
    let config = config(&provider);
    config.write();
    let checked = command(&config, &["check", "--connect"], b"").stdout;
    assert!(checked.contains("ok       keys          2 usable keys\n"), "{checked}");
    assert!(
        checked.contains("ok       introspection answers that a token which was made up is not active"),
        "{checked}"
    );
    let usher = Usher::start(config);
    let alice = id_of("alice");
    let old = provider.token(&alice, "mail");
    assert!(log_in(&usher, "", &old).1.starts_with("OK "));
    // Other keys, a moment after usher has fetched the present ones.
    provider.start_again();
    let (rsa, opaque) = (provider.token(&alice, "mail-rsa"), provider.token(&alice, "mail-opaque"));
    assert!(log_in(&usher, "", &rsa).1.starts_with("OK "));
    assert!(log_in(&usher, "", &opaque).1.starts_with("OK "));
    assert_eq!(log_in(&usher, "old", &old).0.unwrap()["status"], "invalid_token");
    assert_eq!(usher.login("old")["token_error"], "unknown_key");

    let (unseen, other) = (provider.token(&alice, "mail"), provider.token(&alice, "mail-opaque"));
    provider.stop();
    for token in [&rsa, &unseen, &opaque] {
        assert!(log_in(&usher, "", token).1.starts_with("OK "), "{}", usher.log_text());
    }
    let (challenge, reply) = log_in(&usher, "outage", &other);
    assert_eq!(challenge, None);
    assert!(reply.starts_with("NO [UNAVAILABLE]"), "{reply}");
    assert_eq!(usher.login("outage")["token_error"], "token_issuer_unavailable");
}

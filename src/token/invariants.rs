//! What must hold for any token and any set of keys.
//!
//! Not part of the product: built for tests and with the feature `internals` alone. Panics when an invariant is
//! violated.
#![allow(clippy::panic, reason = "a violated invariant is reported by a panic")]

use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::claims::{self, Source};
use super::jwt::{self, Algorithm, Form, Jwt};
use super::keys::KeySet;
use crate::config::TokenIssuer;
use crate::proto::ldap::template;

/// The key of RFC 7515 appendix A.3.
const KEY: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
/// What is signed there, in 2011.
const SIGNED: &str = "eyJhbGciOiJFUzI1NiJ9.\
    eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
/// Before that expired.
const NOW: u64 = 1_300_000_000;

static KEYS: LazyLock<KeySet> = LazyLock::new(|| KeySet::parse(KEY.as_bytes()).expect("a key"));

static ISSUER: LazyLock<Arc<TokenIssuer>> = LazyLock::new(|| {
    Arc::new(TokenIssuer {
        scopes: vec!["mail".to_owned()],
        login_claim: "email".to_owned(),
        directory: None,
        filter: Some(template::parse_claim_filter("(mail={claim})").expect("a filter")),
        domains: vec!["example.com".to_owned()],
        ..TokenIssuer::for_tests("joe")
    })
});

/// A fuzz target: a token, or a set of keys if it begins with a brace. A token that is read has one spelling, an
/// algorithm with a public key and no extension, and one key verifies one text; claims that name a user say so to
/// any reader of JSON.
pub fn invariants(data: &[u8]) {
    if data.first() == Some(&b'{') {
        if let Ok(set) = KeySet::parse(data) {
            assert!(set.len() > 0, "a set without a usable key was accepted");
        }
        return;
    }
    match jwt::read(data) {
        Ok(Form::Jwt(jwt)) => signed(data, jwt),
        Ok(Form::Opaque) => {
            let mut parts = data.split(|byte| *byte == b'.');
            let head = parts.next().filter(|_| parts.next().is_some()).and_then(jwt::decode);
            let is_object = |head: &[u8]| serde_json::from_slice::<Value>(head).is_ok_and(|head| head.is_object());
            assert!(!head.is_some_and(|head| is_object(&head)), "a JWT counts as opaque");
        }
        Err(_) => {}
    }
}

fn signed(data: &[u8], jwt: Jwt<'_>) {
    let parts: Vec<&[u8]> = data.split(|byte| *byte == b'.').collect();
    let [head, payload, signature] = parts.as_slice() else { panic!("not three parts") };
    for part in [head, payload, signature] {
        let decoded = jwt::decode(part).expect("base64url");
        assert_eq!(URL_SAFE_NO_PAD.encode(&decoded).as_bytes(), *part, "a second spelling");
    }
    assert_eq!(jwt.signed, [*head, *payload].join(&b'.'), "another text is verified");
    let head: Value = serde_json::from_slice(&jwt::decode(head).expect("base64url")).expect("JSON");
    let algorithm = head.get("alg").and_then(Value::as_str).expect("an algorithm");
    assert_eq!(Algorithm::named(algorithm), Some(jwt.algorithm));
    assert!(!algorithm.starts_with("HS") && !algorithm.eq_ignore_ascii_case("none"), "{algorithm}");
    assert!(head.get("crit").is_none() && head.get("enc").is_none(), "an extension is ignored");
    if KEYS.verify(&jwt).is_ok() {
        assert_eq!(jwt.signed, SIGNED.as_bytes(), "a forgery");
    }
    let plain: Value = serde_json::from_slice(&jwt::decode(payload).expect("base64url")).expect("JSON");
    if let Ok(verified) = claims::judge(&ISSUER, jwt.claims, Source::Token, NOW) {
        let email = plain.get("email").and_then(Value::as_str).expect("the claim");
        assert_eq!((verified.claim().as_str(), plain.get("email_verified")), (email, Some(&Value::Bool(true))));
        assert!(email.to_ascii_lowercase().ends_with("@example.com") || !email.contains('@'), "a foreign domain");
        assert!(plain.get("exp").and_then(Value::as_f64).is_some_and(|end| end + 30.0 > NOW as f64), "expired");
        assert!(plain.get("cnf").is_none(), "bound");
        assert!(verified.filter(None).is_some_and(|filter| ldap3::parse_filter(filter).is_ok()), "no filter");
    }
}

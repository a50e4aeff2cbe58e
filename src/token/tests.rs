//! Every reason to refuse a token, rotation of keys, outages, introspection: over HTTP to this machine.

#[path = "../../tests/it/kit/signer.rs"]
pub(crate) mod signer;

mod fetched;
mod introspected;
mod keys;
mod server;

use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};

use super::*;
use crate::proto::ldap::template;
use signer::{Signer, base64url};

const ISSUER: &str = "https://idp.example.com/realms/corp";

static SIGNER: LazyLock<Signer> = LazyLock::new(|| Signer::new("ES256", "one"));

fn settings() -> TokenIssuer {
    TokenIssuer { audience: vec!["mail".to_owned(), "imap".to_owned()], ..TokenIssuer::for_tests(ISSUER) }
}

fn key_set(signers: &[&Signer]) -> KeySet {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
}

fn tokens(settings: TokenIssuer) -> Tokens {
    let files = IssuerFiles { keys: Some(Arc::new(key_set(&[&SIGNER]))), ..IssuerFiles::default() };
    Tokens::new(&[settings], vec![files], &Arc::new(Metrics::new()), None)
}

fn now() -> i64 {
    i64::try_from(unix_now()).unwrap()
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "mail", "sub": "b6ad-1", "azp": "thunderbird", "exp": now() + 300})
}

/// The claims with these members; null removes one.
fn with(members: Value) -> Value {
    let mut all = claims();
    for (name, value) in members.as_object().unwrap() {
        if value.is_null() {
            all.as_object_mut().unwrap().remove(name);
        } else {
            all[name] = value.clone();
        }
    }
    all
}

async fn verify(tokens: &Tokens, token: impl AsRef<[u8]>) -> Result<VerifiedToken, TokenError> {
    tokens.verify(&Secret::copy_of(token.as_ref())).await
}

async fn refusal(settings: TokenIssuer, members: Value) -> Option<TokenError> {
    verify(&tokens(settings), SIGNER.token(&with(members))).await.err()
}

const HEAD: &str = r#"{"alg":"ES256","kid":"one"}"#;

async fn head_refusal(head: &str) -> Option<TokenError> {
    verify(&tokens(settings()), SIGNER.signed(head, &claims().to_string())).await.err()
}

#[tokio::test]
async fn genuine_token_names_its_user() {
    let verified = verify(&tokens(settings()), SIGNER.token(&with(json!({"mail": "a@example.com"})))).await.unwrap();
    assert_eq!((verified.issuer(), verified.claim().as_str(), verified.claim_name()), (ISSUER, "b6ad-1", "sub"));
    assert_eq!(verified.filter(None).as_deref(), Some("(entryUUID=b6ad-1)"));
    assert_eq!(verified.text("mail"), Some("a@example.com"));
    assert_eq!((verified.text("exp"), verified.text("absent")), (None, None));
    assert!(verified.expires() > unix_now());
}

#[tokio::test]
async fn filter_escapes_the_claim_and_requires_a_domain_of_the_issuer() {
    let mut settings = settings();
    settings.filter = Some(template::parse_filter("(|(uid={local})(mail={login}))").unwrap());
    settings.domains = vec!["example.com".to_owned(), "example.net".to_owned()];
    settings.login_claim = "upn".to_owned();
    let tokens = tokens(settings);
    let filter = async |upn: &str| {
        verify(&tokens, SIGNER.token(&with(json!({ "upn": upn })))).await.map(|verified| verified.filter(None))
    };
    let domains = "(|(mail=*@example.com)(mail=*@example.net))";
    assert_eq!(
        filter("al*)(uid=b@Example.com").await.unwrap().unwrap(),
        format!("(&(|(uid=al\\2a\\29\\28uid=b)(mail=al\\2a\\29\\28uid=b@Example.com)){domains})")
    );
    // Without an @ the entry alone shows the domain.
    assert_eq!(filter("alice").await.unwrap().unwrap(), format!("(&(|(uid=alice)(mail=alice)){domains})"));
    for upn in ["alice@example.org", "alice@example.com@evil.example", "alice@", "a@example.com.", "a@xexample.com"] {
        assert_eq!(filter(upn).await.unwrap_err(), TokenError::Domain, "{upn}");
    }
}

#[tokio::test]
async fn texts_that_are_no_token_are_refused() {
    let tokens = tokens(settings());
    let genuine = SIGNER.token(&claims());
    let [head, payload, signature] = genuine.split('.').collect::<Vec<_>>().try_into().unwrap();
    let json = |text: &str| base64url(text);
    for (token, error) in [
        (String::new(), TokenError::Malformed),
        ("=".to_owned(), TokenError::Malformed),
        ("a b".to_owned(), TokenError::Malformed),
        (format!("{genuine}\n"), TokenError::Malformed),
        (format!("{genuine}\0"), TokenError::Malformed),
        (format!("{genuine}="), TokenError::Malformed),
        (format!("{head}.{payload}"), TokenError::Malformed),
        (format!("{head}.{payload}."), TokenError::Malformed),
        (format!("{head}.{payload}.{signature}."), TokenError::Malformed),
        (format!("{head}..{signature}"), TokenError::Malformed),
        (format!("{head}.{}.{signature}", json("[]")), TokenError::Malformed),
        (format!("{head}.{}.{signature}", json("{}")), TokenError::UnknownIssuer),
        (format!("{}.{payload}.{signature}", json("{\"alg\":\"ES256\"")), TokenError::Malformed),
        (format!("{head}.{}=.{signature}", json("{\"a\":1}")), TokenError::Malformed),
        // Encrypted: five parts.
        (format!("{}.a.b.c.d", json("{\"alg\":\"dir\",\"enc\":\"A256GCM\"}")), TokenError::Header),
        // Opaque, and no issuer has introspection.
        ("2YotnFZFEjr1zCsicMWpAA".to_owned(), TokenError::UnknownIssuer),
        ("a.b.c".to_owned(), TokenError::UnknownIssuer),
    ] {
        assert_eq!(verify(&tokens, &token).await.unwrap_err(), error, "{token}");
        assert!(error.is_guess());
        assert!(!tokens.needs_introspection(&Secret::copy_of(token.as_bytes())));
    }
    // Another spelling of the same signature: the unused bits of the last letter are set.
    let last = signature.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let at = alphabet.find(last).unwrap();
    let other = alphabet.chars().nth(at ^ 1).unwrap();
    let spelled = format!("{head}.{payload}.{}{other}", &signature[..signature.len() - 1]);
    assert_eq!(verify(&tokens, spelled).await.unwrap_err(), TokenError::Malformed);
}

#[tokio::test]
async fn huge_tokens_are_refused_unread() {
    let tokens = tokens(settings());
    let room = jwt::LONGEST - SIGNER.token(&with(json!({"pad": ""}))).len();
    let longest = SIGNER.token(&with(json!({"pad": "x".repeat(room * 3 / 4)})));
    assert!(longest.len() <= jwt::LONGEST && longest.len() > jwt::LONGEST - 8, "{}", longest.len());
    assert!(verify(&tokens, longest).await.is_ok());
    let longer = SIGNER.token(&with(json!({"pad": "x".repeat(room * 3 / 4 + 8)})));
    assert_eq!(verify(&tokens, longer).await.unwrap_err(), TokenError::Malformed);
    // Deep nesting costs no stack.
    let deep = format!("{}{}", "[".repeat(3_000), "]".repeat(3_000));
    let claims = format!("{{\"iss\":\"{ISSUER}\",\"a\":{deep}}}");
    assert_eq!(verify(&tokens, SIGNER.signed(HEAD, &claims)).await.unwrap_err(), TokenError::Malformed);
}

#[tokio::test]
async fn header_chooses_neither_algorithm_nor_key_beyond_the_issuers() {
    for algorithm in ["none", "None", "NONE", "", "HS256", "HS384", "HS512", "es256", "ES256K", "RSA1_5", "dir"] {
        let head = format!(r#"{{"alg":"{algorithm}","kid":"one"}}"#);
        assert_eq!(head_refusal(&head).await, Some(TokenError::Algorithm), "{algorithm}");
    }
    for head in [r#"{"kid":"one"}"#, r#"{"alg":null,"kid":"one"}"#, r#"{"alg":["ES256"],"kid":"one"}"#] {
        assert_eq!(head_refusal(head).await, Some(TokenError::Algorithm), "{head}");
    }
    // Of another type than the key, or of another curve.
    for algorithm in ["RS256", "PS256", "ES384", "ES512", "EdDSA"] {
        let head = format!(r#"{{"alg":"{algorithm}","kid":"one"}}"#);
        assert_eq!(head_refusal(&head).await, Some(TokenError::Algorithm), "{algorithm}");
    }
    // A key that the token brings is not read: it is the attacker's, and signs as one that is not known.
    let attacker = Signer::new("ES256", "one");
    for member in [
        format!("\"jwk\":{}", attacker.jwk()),
        "\"jku\":\"https://evil.example/keys\"".to_owned(),
        "\"x5u\":\"https://evil.example/certificate\"".to_owned(),
        "\"x5c\":[\"MIIB\"]".to_owned(),
    ] {
        let head = format!(r#"{{"alg":"ES256","kid":"one",{member}}}"#);
        let forged = verify(&tokens(settings()), attacker.signed(&head, &claims().to_string())).await;
        assert_eq!(forged.unwrap_err(), TokenError::Signature, "{member}");
        assert_eq!(head_refusal(&head).await, None, "{member}");
    }
}

#[tokio::test]
async fn hmac_with_the_public_key_is_no_signature() {
    let head = r#"{"alg":"HS256","kid":"one"}"#;
    let signed = format!("{}.{}", base64url(head), base64url(claims().to_string()));
    let x = SIGNER.jwk()["x"].as_str().unwrap().to_owned();
    for secret in [SIGNER.jwk().to_string().into_bytes(), jwt::decode(x.as_bytes()).unwrap().to_vec(), Vec::new()] {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &secret);
        let token = format!("{signed}.{}", base64url(aws_lc_rs::hmac::sign(&key, signed.as_bytes())));
        assert_eq!(verify(&tokens(settings()), token).await.unwrap_err(), TokenError::Algorithm);
    }
    let unsigned = format!("{}.{}.", base64url(r#"{"alg":"none"}"#), base64url(claims().to_string()));
    assert_eq!(verify(&tokens(settings()), unsigned).await.unwrap_err(), TokenError::Algorithm);
}

#[tokio::test]
async fn header_that_forbids_its_use_is_refused() {
    for member in [
        r#""crit":["exp"]"#,
        r#""crit":[]"#,
        r#""crit":["b64"],"b64":false"#,
        r#""b64":true"#,
        r#""enc":"A256GCM""#,
        r#""zip":"DEF""#,
        r#""typ":"JWS""#,
        r#""typ":"ID""#,
        r#""typ":"id_token""#,
        r#""typ":"dpop+jwt""#,
        r#""typ":"logout+jwt""#,
        r#""typ":"token-introspection+jwt""#,
        r#""typ":"""#,
        r#""typ":null"#,
        r#""kid":1"#,
    ] {
        let head = format!(r#"{{"alg":"ES256",{member}}}"#);
        assert_eq!(head_refusal(&head).await, Some(TokenError::Header), "{member}");
    }
    for kind in ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt"] {
        let head = format!(r#"{{"alg":"ES256","kid":"one","typ":"{kind}"}}"#);
        assert_eq!(head_refusal(&head).await, None, "{kind}");
    }
    // A name given twice, whichever is meant.
    for head in [
        r#"{"alg":"ES256","alg":"ES256","kid":"one"}"#,
        r#"{"alg":"none","alg":"ES256","kid":"one"}"#,
        r#"{"alg":"ES256","kid":"two","kid":"one"}"#,
        r#"{"alg":"ES256","kid":"one","x":{"a":1,"a":2}}"#,
    ] {
        assert_eq!(head_refusal(head).await, Some(TokenError::Malformed), "{head}");
    }
}

#[tokio::test]
async fn issuers_that_differ_by_a_byte_are_unknown() {
    for issuer in [
        json!("https://idp.example.com/realms/corp/"),
        json!("https://idp.example.com/realms/Corp"),
        json!("http://idp.example.com/realms/corp"),
        json!("https://idp.example.com:443/realms/corp"),
        json!(" https://idp.example.com/realms/corp"),
        json!("https://idp.example.com/realms/corp\u{0}"),
        json!([ISSUER]),
        json!(null),
        json!(""),
    ] {
        let error = refusal(settings(), json!({ "iss": issuer })).await;
        assert_eq!(error, Some(TokenError::UnknownIssuer), "{issuer}");
    }
}

#[tokio::test]
async fn claims_given_twice_are_refused() {
    let text = claims().to_string();
    for member in [r#""sub":"another""#, r#""exp":9999999999"#, r#""aud":"mail""#, r#""\u0073ub":"x""#] {
        let claims = text.replacen('{', &format!("{{{member},"), 1);
        let verified = verify(&tokens(settings()), SIGNER.signed(HEAD, &claims)).await;
        assert_eq!(verified.unwrap_err(), TokenError::Malformed, "{member}");
    }
}

#[tokio::test]
async fn forged_and_altered_tokens_are_guesses() {
    let tokens = tokens(settings());
    let genuine = SIGNER.token(&claims());
    let [head, _, signature] = genuine.split('.').collect::<Vec<_>>().try_into().unwrap();
    let altered = format!("{head}.{}.{signature}", base64url(with(json!({"sub": "another"})).to_string()));
    let stranger = Signer::new("ES256", "one").token(&claims());
    // Expired as well: what an attacker writes into the claims makes no guess a device of the user.
    let expired = Signer::new("ES256", "one").token(&with(json!({"exp": 1})));
    for token in [altered, stranger, expired] {
        let error = verify(&tokens, token).await.unwrap_err();
        assert_eq!((error, error.is_guess()), (TokenError::Signature, true));
    }
    let unknown = verify(&tokens, Signer::new("ES256", "two").token(&claims())).await.unwrap_err();
    assert_eq!((unknown, unknown.is_guess()), (TokenError::UnknownKey, true));
    // Not the fixed form of RFC 7518 section 3.4, but of the right length for none.
    let short = format!("{}.{}", genuine.rsplit_once('.').unwrap().0, base64url([1_u8; 63]));
    assert_eq!(verify(&tokens, short).await.unwrap_err(), TokenError::Signature);
    let zero = format!("{}.{}", genuine.rsplit_once('.').unwrap().0, base64url([0_u8; 64]));
    assert_eq!(verify(&tokens, zero).await.unwrap_err(), TokenError::Signature);
}

#[tokio::test]
async fn time_of_a_token_has_a_leeway_of_half_a_minute() {
    for (members, error) in [
        (json!({"exp": null}), Some(TokenError::NoExpiry)),
        (json!({"exp": now() - 35}), Some(TokenError::Expired)),
        (json!({"exp": now() - 20}), None),
        (json!({"exp": 0}), Some(TokenError::Expired)),
        (json!({"exp": 9_999_999_999_i64, "nbf": now() - 1}), None),
        (json!({"nbf": now() + 20}), None),
        (json!({"nbf": now() + 40}), Some(TokenError::NotYetValid)),
        (json!({"exp": (now() + 300) as f64 + 0.5}), None),
        (json!({"exp": "9999999999"}), Some(TokenError::Claims)),
        (json!({"exp": -1}), Some(TokenError::Claims)),
        (json!({"exp": 1e300}), Some(TokenError::Claims)),
        (json!({"exp": true}), Some(TokenError::Claims)),
        (json!({"nbf": "0"}), Some(TokenError::Claims)),
    ] {
        let found = refusal(settings(), members.clone()).await;
        assert_eq!(found, error, "{members}");
        assert!(found.is_none_or(|error| !error.is_guess()));
    }
}

#[tokio::test]
async fn audience_and_client_are_compared_exactly() {
    for (members, error) in [
        (json!({"aud": ["account", "imap"]}), None),
        (json!({"aud": "Mail"}), Some(TokenError::Audience)),
        (json!({"aud": "mail2"}), Some(TokenError::Audience)),
        (json!({"aud": []}), Some(TokenError::Audience)),
        (json!({"aud": null}), Some(TokenError::Audience)),
        (json!({"aud": ["mail", 1]}), Some(TokenError::Claims)),
        (json!({"aud": {"mail": 1}}), Some(TokenError::Claims)),
    ] {
        assert_eq!(refusal(settings(), members.clone()).await, error, "{members}");
    }
    let clients = || {
        let mut settings = settings();
        settings.audience.clear();
        settings.clients = vec!["thunderbird".to_owned()];
        settings
    };
    for (members, error) in [
        (json!({}), None),
        (json!({"aud": null}), None),
        (json!({"azp": null, "appid": "thunderbird"}), None),
        (json!({"azp": null, "client_id": "thunderbird"}), None),
        (json!({"azp": null}), Some(TokenError::Audience)),
        (json!({"azp": "other"}), Some(TokenError::Audience)),
        // The claims disagree.
        (json!({"client_id": "other"}), Some(TokenError::Audience)),
        (json!({"azp": ["thunderbird"]}), Some(TokenError::Claims)),
    ] {
        assert_eq!(refusal(clients(), members.clone()).await, error, "{members}");
    }
}

#[tokio::test]
async fn missing_scope_is_insufficient_and_no_guess() {
    let scoped = || TokenIssuer { scopes: vec!["mail.read".to_owned(), "openid".to_owned()], ..settings() };
    for (members, error) in [
        (json!({"scope": "openid mail.read"}), None),
        (json!({"scp": "mail.read openid x"}), None),
        (json!({"scp": ["mail.read", "openid"]}), None),
        (json!({"scope": "openid mail.reader"}), Some(TokenError::Scope)),
        (json!({"scope": "mail.read"}), Some(TokenError::Scope)),
        (json!({}), Some(TokenError::Scope)),
        (json!({"scope": 1}), Some(TokenError::Claims)),
    ] {
        assert_eq!(refusal(scoped(), members.clone()).await, error, "{members}");
    }
    let scope = TokenError::Scope;
    assert_eq!(
        scope.challenge().map(|challenge| (challenge.error(), challenge.status())),
        Some(("insufficient_scope", "403"))
    );
    assert!(!scope.is_guess());
    assert_eq!(tokens(scoped()).scope(), "mail.read openid");
}

#[tokio::test]
async fn tokens_that_are_no_access_token_of_a_user_are_refused() {
    for (members, error) in [
        (json!({"typ": "ID"}), Some(TokenError::NotAccessToken)),
        (json!({"typ": "Refresh"}), Some(TokenError::NotAccessToken)),
        (json!({"typ": "Offline"}), Some(TokenError::NotAccessToken)),
        (json!({"typ": "DPoP"}), Some(TokenError::NotAccessToken)),
        (json!({"typ": ["Bearer"]}), Some(TokenError::NotAccessToken)),
        (json!({"at_hash": "x"}), Some(TokenError::NotAccessToken)),
        (json!({"c_hash": "x"}), Some(TokenError::NotAccessToken)),
        (json!({"token_use": "id"}), Some(TokenError::NotAccessToken)),
        (json!({"token_use": ["access"]}), Some(TokenError::NotAccessToken)),
        (json!({"token_use": "access"}), None),
        (json!({"typ": "Bearer"}), None),
        (json!({"cnf": {"jkt": "x"}}), Some(TokenError::Bound)),
        (json!({"cnf": {"x5t#S256": "x"}}), Some(TokenError::Bound)),
        (json!({"cnf": {}}), Some(TokenError::Bound)),
        (json!({"idtyp": "app"}), Some(TokenError::AppOnly)),
        (json!({"sub": "thunderbird"}), Some(TokenError::AppOnly)),
        (json!({"client_id": "b6ad-1"}), Some(TokenError::AppOnly)),
        (json!({"cid": "b6ad-1"}), Some(TokenError::AppOnly)),
        (json!({"gty": "client-credentials"}), Some(TokenError::AppOnly)),
        (json!({"preferred_username": "service-account-thunderbird"}), Some(TokenError::AppOnly)),
        (json!({"tid": "x", "oid": "y", "roles": ["Mail.Read"]}), Some(TokenError::AppOnly)),
        (json!({"tid": "x", "oid": "y", "scp": "Mail.Read"}), None),
    ] {
        assert_eq!(refusal(settings(), members.clone()).await, error, "{members}");
    }
}

#[tokio::test]
async fn only_a_verified_text_names_a_user() {
    for sub in [json!(null), json!(""), json!(" a"), json!("a "), json!("a\u{0}b"), json!("a\nb")] {
        assert_eq!(refusal(settings(), json!({ "sub": sub })).await, Some(TokenError::NoLogin), "{sub}");
    }
    for sub in [json!(7), json!(["a"])] {
        assert_eq!(refusal(settings(), json!({ "sub": sub })).await, Some(TokenError::Claims), "{sub}");
    }
    assert_eq!(refusal(settings(), json!({"sub": "x".repeat(513)})).await, Some(TokenError::NoLogin));
    // No other claim takes its place.
    let named = json!({"sub": null, "email": "a@example.com", "preferred_username": "alice"});
    assert_eq!(refusal(settings(), named).await, Some(TokenError::NoLogin));
    let email =
        |unverified| TokenIssuer { login_claim: "email".to_owned(), unverified_email: unverified, ..settings() };
    for (verified, error) in [
        (json!(true), None),
        (json!(false), Some(TokenError::EmailUnverified)),
        (json!(null), Some(TokenError::EmailUnverified)),
        (json!("true"), Some(TokenError::EmailUnverified)),
        (json!(1), Some(TokenError::EmailUnverified)),
    ] {
        let members = json!({"email": "a@example.com", "email_verified": verified});
        assert_eq!(refusal(email(false), members.clone()).await, error, "{members}");
        assert_eq!(refusal(email(true), members).await, None);
    }
}

#[tokio::test]
async fn an_issuer_speaks_for_itself_alone() {
    let other = TokenIssuer { issuer: "https://other.example".to_owned(), ..settings() };
    let stranger = Signer::new("ES256", "one");
    let files = [&*SIGNER, &stranger]
        .map(|signer| IssuerFiles { keys: Some(Arc::new(key_set(&[signer]))), ..IssuerFiles::default() });
    let tokens = Tokens::new(&[settings(), other], files.into(), &Arc::new(Metrics::new()), None);
    let foreign = with(json!({"iss": "https://other.example"}));
    assert!(verify(&tokens, SIGNER.token(&claims())).await.is_ok());
    assert_eq!(verify(&tokens, stranger.token(&foreign)).await.unwrap().issuer(), "https://other.example");
    // The same `kid` at both: each is verified by the key of the issuer that it names.
    assert_eq!(verify(&tokens, stranger.token(&claims())).await.unwrap_err(), TokenError::Signature);
    assert_eq!(verify(&tokens, SIGNER.token(&foreign)).await.unwrap_err(), TokenError::Signature);
    assert_eq!(tokens.discovery(), None);
}

#[tokio::test]
async fn no_text_of_a_token_is_shown() {
    let tokens = tokens(settings());
    let verified = verify(&tokens, SIGNER.token(&with(json!({"nonce": "hunter2"})))).await.unwrap();
    assert!(!format!("{verified:?} {tokens:?}").contains("hunter2"));
}

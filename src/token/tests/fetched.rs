//! Keys by URL and by discovery: faults, rotation, outages.

use tokio::net::TcpListener;
use tokio::time::{advance, pause, resume};

use super::server::{Reply, Server};
use super::*;
use crate::config::HttpUrl;
use crate::token::fetch::FetchError;

const KEYS: &str = "/keys";
const DOCUMENT: &str = "/.well-known/openid-configuration";

fn keys(signers: &[&Signer]) -> Reply {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    Reply::Text(json!({ "keys": keys }).to_string())
}

fn at(url: &str) -> Tokens {
    let url = HttpUrl::parse(url).unwrap();
    let source = if url.path == KEYS { KeySource::Url(url) } else { KeySource::Discovery(url) };
    let settings = TokenIssuer { keys: Some(source), ..settings() };
    Tokens::new(&[settings], vec![IssuerFiles::default()], &Arc::new(Metrics::new()), None)
}

fn remote(tokens: &Tokens) -> &Arc<RemoteKeys> {
    let Keys::Remote(remote) = &tokens.issuers[0].keys else { panic!("not fetched") };
    remote
}

async fn fault(server: &Server, path: &str) -> FetchError {
    remote(&at(&format!("{}{path}", server.url))).fetch().await.unwrap_err()
}

/// The clock goes on, and nothing else.
async fn later(seconds: u64) {
    pause();
    advance(Duration::from_secs(seconds)).await;
    resume();
}

#[tokio::test]
async fn keys_are_discovered_at_the_issuer_alone() {
    let server = Server::start().await;
    server.reply(KEYS, keys(&[&SIGNER]));
    let document = |issuer: &str, uri: &str| {
        server.reply(DOCUMENT, Reply::Text(json!({"issuer": issuer, "jwks_uri": uri}).to_string()));
    };
    let uri = format!("{}{KEYS}", server.url);
    document(ISSUER, &uri);
    let tokens = at(&format!("{}{DOCUMENT}", server.url));
    assert_eq!(remote(&tokens).fetch().await.unwrap().len(), 1);
    for issuer in [
        "https://idp.example.com/realms/corp/",
        "https://evil.example",
        "https://idp.example.com/realms/{tenantid}",
        "",
    ] {
        document(issuer, &uri);
        let error = fault(&server, DOCUMENT).await.to_string();
        assert!(error.starts_with("the discovery document is of another issuer"), "{error}");
    }
    for (text, phrase) in [
        ("[]".to_owned(), "no JSON object"),
        ("{}".to_owned(), "has no `issuer`"),
        (format!("{{\"issuer\":\"{ISSUER}\"}}"), "has no `jwks_uri`"),
        (format!("{{\"issuer\":\"{ISSUER}\",\"jwks_uri\":\"http://192.0.2.1/keys\"}}"), "not used"),
        (format!("{{\"issuer\":\"{ISSUER}\",\"jwks_uri\":\"file:///etc/passwd\"}}"), "not used"),
        (format!("{{\"issuer\":\"x\",\"issuer\":\"{ISSUER}\",\"jwks_uri\":\"{uri}\"}}"), "name twice"),
    ] {
        server.reply(DOCUMENT, Reply::Text(text.clone()));
        let error = fault(&server, DOCUMENT).await.to_string();
        assert!(error.contains(phrase), "{text}: {error}");
    }
}

#[tokio::test]
async fn answers_that_are_no_keys_are_faults() {
    let server = Server::start().await;
    assert_eq!(fault(&server, KEYS).await, FetchError::Status(404));
    for (status, error) in [
        (301, FetchError::Redirect(301)),
        (302, FetchError::Redirect(302)),
        (308, FetchError::Redirect(308)),
        (304, FetchError::Redirect(304)),
        (204, FetchError::Status(204)),
        (500, FetchError::Status(500)),
    ] {
        server.reply(KEYS, Reply::Status(status, "Location: /elsewhere\r\n"));
        server.reply("/elsewhere", keys(&[&SIGNER]));
        assert_eq!(fault(&server, KEYS).await, error);
    }
    assert!(!server.requests().iter().any(|request| request.contains("/elsewhere")));
    server.reply(KEYS, Reply::Text(format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(LARGEST_SET))));
    assert_eq!(fault(&server, KEYS).await, FetchError::TooLarge);
    for reply in [Reply::Closed, Reply::EndlessHead, Reply::Short] {
        server.reply(KEYS, reply);
        assert!(matches!(fault(&server, KEYS).await, FetchError::Http(_)));
    }
    server.reply(KEYS, Reply::Text("<html>".to_owned()));
    assert!(matches!(fault(&server, KEYS).await, FetchError::Content(_)));
    // A port where no server listens.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert!(matches!(remote(&at(&format!("http://{port}/keys"))).fetch().await, Err(FetchError::Connect(_))));
}

#[tokio::test]
async fn keys_are_fetched_before_they_are_needed_and_again_after_a_while() {
    let server = Server::start().await;
    server.reply(KEYS, keys(&[&SIGNER]));
    let tokens = at(&format!("{}{KEYS}", server.url));
    tokens.run_due();
    tokens.run_due();
    // A login during the first fetch waits for it.
    verify(&tokens, SIGNER.token(&claims())).await.unwrap();
    tokens.run_due();
    assert_eq!(server.requests().len(), 1);
    // A key that was withdrawn is no longer used after the next fetch.
    let second = Signer::new("ES256", "two");
    server.reply(KEYS, keys(&[&second]));
    verify(&tokens, SIGNER.token(&claims())).await.unwrap();
    later(15 * 60 + 1).await;
    let mut ended = remote(&tokens).state.ended();
    tokens.run_due();
    ended.changed().await.unwrap();
    assert_eq!(verify(&tokens, SIGNER.token(&claims())).await.unwrap_err(), TokenError::UnknownKey);
    verify(&tokens, second.token(&claims())).await.unwrap();
}

#[tokio::test]
async fn unknown_key_is_fetched_at_most_once_a_minute() {
    let server = Server::start().await;
    server.reply(KEYS, keys(&[&SIGNER]));
    let tokens = at(&format!("{}{KEYS}", server.url));
    tokens.run_due();
    verify(&tokens, SIGNER.token(&claims())).await.unwrap();
    // The first name that is not known is looked up, however new the keys are; those that are made up meanwhile are not.
    for kid in ["x", "y", "z"] {
        let forged = Signer::new("ES256", kid).token(&claims());
        let error = verify(&tokens, forged).await.unwrap_err();
        assert_eq!((error, error.is_guess()), (TokenError::UnknownKey, true));
    }
    assert_eq!(server.requests().len(), 2);
    let second = Signer::new("ES256", "two");
    server.reply(KEYS, keys(&[&SIGNER, &second]));
    assert_eq!(verify(&tokens, second.token(&claims())).await.unwrap_err(), TokenError::UnknownKey);
    later(61).await;
    // At once, by as many logins as there are: one request.
    let token = second.token(&claims());
    let (one, other) = tokio::join!(verify(&tokens, &token), verify(&tokens, &token));
    assert!(one.is_ok() && other.is_ok());
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn rotation_behind_a_regular_fetch_refuses_no_honest_token() {
    let server = Server::start().await;
    server.reply(KEYS, keys(&[&SIGNER]));
    let tokens = at(&format!("{}{KEYS}", server.url));
    tokens.run_due();
    verify(&tokens, SIGNER.token(&claims())).await.unwrap();
    let mut generations = Vec::new();
    for kid in ["two", "three"] {
        let next = Signer::new("ES256", kid);
        server.reply(KEYS, keys(&[&next]));
        verify(&tokens, next.token(&claims())).await.unwrap();
        generations.push(next);
        // Fetched again by the clock: that says nothing about the rotation that follows at once.
        later(15 * 60 + 1).await;
        let mut ended = remote(&tokens).state.ended();
        tokens.run_due();
        ended.changed().await.unwrap();
    }
    assert_eq!(verify(&tokens, generations[0].token(&claims())).await.unwrap_err(), TokenError::UnknownKey);
}

#[tokio::test]
async fn token_joins_a_fetch_and_asks_once_more_if_that_began_before_the_rotation() {
    let server = Server::start().await;
    server.reply(KEYS, keys(&[&SIGNER]));
    let tokens = at(&format!("{}{KEYS}", server.url));
    tokens.run_due();
    verify(&tokens, SIGNER.token(&claims())).await.unwrap();
    later(15 * 60 + 1).await;
    // Answered with the old keys although the new one signs already.
    tokens.run_due();
    let second = Signer::new("ES256", "two");
    let (new, token) = (keys(&[&second]), second.token(&claims()));
    let answered = async {
        while server.requests().len() < 2 {
            tokio::task::yield_now().await;
        }
        server.reply(KEYS, new);
    };
    let (verified, ()) = tokio::join!(verify(&tokens, token), answered);
    verified.unwrap();
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn outage_keeps_the_keys_and_is_no_verdict_about_others() {
    let server = Server::start().await;
    server.reply(KEYS, keys(&[&SIGNER]));
    let tokens = at(&format!("{}{KEYS}", server.url));
    tokens.run_due();
    verify(&tokens, SIGNER.token(&claims())).await.unwrap();
    server.reply(KEYS, Reply::Status(503, ""));
    later(15 * 60 + 1).await;
    let mut ended = remote(&tokens).state.ended();
    tokens.run_due();
    ended.changed().await.unwrap();
    let metrics = Metrics::new();
    tokens.measure(&metrics);
    let text = metrics.render();
    assert!(text.contains(&format!("usher_token_keys{{issuer=\"{ISSUER}\"}} 1")), "{text}");
    assert!(text.contains(&format!("usher_token_keys_last_fetch_successful{{issuer=\"{ISSUER}\"}} 0")), "{text}");
    verify(&tokens, SIGNER.token(&claims())).await.unwrap();
    // A key that could be new: neither a guess nor a refusal.
    let unknown = Signer::new("ES256", "two").token(&claims());
    let error = verify(&tokens, &unknown).await.unwrap_err();
    assert_eq!((error, error.is_guess(), error.challenge()), (TokenError::Unavailable, false, None));
    // A forgery with a known name is one all the same.
    let forged = Signer::new("ES256", "one").token(&claims());
    assert_eq!(verify(&tokens, forged).await.unwrap_err(), TokenError::Signature);
    // The issuer is back.
    server.reply(KEYS, keys(&[&SIGNER]));
    later(61).await;
    assert_eq!(verify(&tokens, &unknown).await.unwrap_err(), TokenError::UnknownKey);
    tokens.measure(&metrics);
    assert!(
        metrics
            .render()
            .contains("usher_token_keys_last_fetch_successful{issuer=\"https://idp.example.com/realms/corp\"} 1")
    );
}

#[tokio::test]
async fn without_any_keys_every_token_of_the_issuer_meets_an_outage() {
    let server = Server::start().await;
    server.reply(KEYS, Reply::Closed);
    let tokens = at(&format!("{}{KEYS}", server.url));
    tokens.run_due();
    for token in [SIGNER.token(&claims()), Signer::new("ES256", "x").token(&claims())] {
        assert_eq!(verify(&tokens, token).await.unwrap_err(), TokenError::Unavailable);
    }
    let foreign = SIGNER.token(&with(json!({"iss": "https://other.example"})));
    assert_eq!(verify(&tokens, foreign).await.unwrap_err(), TokenError::UnknownIssuer);
}

#[tokio::test]
async fn silent_issuer_keeps_no_login_waiting_for_more_than_seconds() {
    let server = Server::start().await;
    server.reply(KEYS, Reply::Silent);
    let tokens = at(&format!("{}{KEYS}", server.url));
    tokens.run_due();
    let token = SIGNER.token(&claims());
    let began = Instant::now();
    pause();
    assert_eq!(verify(&tokens, token).await.unwrap_err(), TokenError::Unavailable);
    assert!(began.elapsed() <= PATIENCE + Duration::from_millis(5));
}

#[tokio::test]
async fn keys_survive_a_reload_with_the_same_settings() {
    let server = Server::start().await;
    server.reply(KEYS, keys(&[&SIGNER]));
    let tokens = at(&format!("{}{KEYS}", server.url));
    tokens.run_due();
    verify(&tokens, SIGNER.token(&claims())).await.unwrap();
    server.reply(KEYS, Reply::Closed);
    let settings = TokenIssuer::clone(&tokens.issuers[0].settings);
    let metrics = Arc::new(Metrics::new());
    let reloaded = Tokens::new(std::slice::from_ref(&settings), vec![IssuerFiles::default()], &metrics, Some(&tokens));
    verify(&reloaded, SIGNER.token(&claims())).await.unwrap();
    let changed = TokenIssuer { audience: vec!["mail".to_owned()], ..settings };
    let reloaded = Tokens::new(&[changed], vec![IssuerFiles::default()], &metrics, Some(&tokens));
    reloaded.run_due();
    assert_eq!(verify(&reloaded, SIGNER.token(&claims())).await.unwrap_err(), TokenError::Unavailable);
}

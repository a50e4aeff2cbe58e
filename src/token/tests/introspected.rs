//! Opaque tokens.

use tokio::time::{advance, pause, resume};

use super::server::{Reply, Server};
use super::*;
use crate::config::{HttpUrl, Introspection};

const PATH: &str = "/introspect";
const TOKEN: &str = "2YotnFZFEjr1zCsicMWpAA+/~==";

fn introspected(server: &Server) -> TokenIssuer {
    let introspection = Introspection {
        url: HttpUrl::parse(&format!("{}{PATH}", server.url)).unwrap(),
        client_id: "usher of example.com".to_owned(),
        client_secret_file: "secret".into(),
    };
    TokenIssuer { keys: None, introspection: Some(introspection), ..settings() }
}

fn at(server: &Server, more: &[TokenIssuer]) -> Tokens {
    let settings: Vec<TokenIssuer> = std::iter::once(introspected(server)).chain(more.iter().cloned()).collect();
    let secret = IssuerFiles { client_secret: Some(Secret::copy_of(b"hunter:2&")), ..IssuerFiles::default() };
    let keys = IssuerFiles { keys: Some(Arc::new(key_set(&[&SIGNER]))), ..IssuerFiles::default() };
    Tokens::new(&settings, vec![secret, keys], &Arc::new(Metrics::new()), None)
}

fn answer(members: Value) -> Reply {
    let mut all = json!({"active": true, "aud": "mail", "sub": "b6ad-1", "client_id": "thunderbird"});
    for (name, value) in members.as_object().unwrap() {
        all[name] = value.clone();
    }
    Reply::Text(all.to_string())
}

async fn later(seconds: u64) {
    pause();
    advance(Duration::from_secs(seconds)).await;
    resume();
}

#[tokio::test]
async fn active_token_is_asked_about_once_in_five_minutes() {
    let server = Server::start().await;
    server.reply(PATH, answer(json!({})));
    let tokens = at(&server, &[]);
    assert!(tokens.needs_introspection(&Secret::copy_of(TOKEN.as_bytes())));
    assert_eq!(verify(&tokens, TOKEN).await.unwrap().claim().as_str(), "b6ad-1");
    assert!(!tokens.needs_introspection(&Secret::copy_of(TOKEN.as_bytes())));
    verify(&tokens, TOKEN).await.unwrap();
    let requests = server.requests();
    let [request] = requests.as_slice() else { panic!("{requests:?}") };
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /introspect HTTP/1.1\r\n"), "{head}");
    // `usher%20of%20example.com:hunter%3A2%26`
    let credential = "authorization: Basic dXNoZXIlMjBvZiUyMGV4YW1wbGUuY29tOmh1bnRlciUzQTIlMjY=";
    assert!(
        head.to_ascii_lowercase().contains(&credential.to_ascii_lowercase())
            && head.contains("dXNoZXIlMjBvZiUyMGV4YW1wbGUuY29tOmh1bnRlciUzQTIlMjY="),
        "{head}"
    );
    assert_eq!(body, "token=2YotnFZFEjr1zCsicMWpAA%2B%2F~%3D%3D");
    // Revoked meanwhile: it counts for so long.
    server.reply(PATH, answer(json!({"active": false})));
    later(4 * 60).await;
    verify(&tokens, TOKEN).await.unwrap();
    later(61).await;
    // It was valid once: a device that has not noticed, and no guess.
    let error = verify(&tokens, TOKEN).await.unwrap_err();
    assert_eq!((error, error.is_guess()), (TokenError::Expired, false));
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn inactive_token_is_a_guess_for_half_a_minute() {
    let server = Server::start().await;
    server.reply(PATH, answer(json!({"active": false})));
    let tokens = at(&server, &[]);
    let error = verify(&tokens, TOKEN).await.unwrap_err();
    assert_eq!((error, error.is_guess()), (TokenError::Inactive, true));
    server.reply(PATH, answer(json!({})));
    assert_eq!(verify(&tokens, TOKEN).await.unwrap_err(), TokenError::Inactive);
    assert_eq!(server.requests().len(), 1);
    later(31).await;
    verify(&tokens, TOKEN).await.unwrap();
}

#[tokio::test]
async fn yes_counts_until_the_token_expires() {
    let server = Server::start().await;
    let expires = now() - 10;
    server.reply(PATH, answer(json!({"exp": expires})));
    let tokens = at(&server, &[]);
    let verified = verify(&tokens, TOKEN).await.unwrap();
    assert_eq!(verified.expires(), u64::try_from(expires).unwrap());
    server.reply(PATH, answer(json!({"exp": now() - 31})));
    let expired = verify(&tokens, "another").await.unwrap_err();
    assert_eq!((expired, expired.is_guess()), (TokenError::Expired, false));
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn claims_of_an_answer_are_judged_as_those_of_a_token() {
    let server = Server::start().await;
    let tokens = at(&server, &[]);
    for (at, (members, error)) in [
        (json!({"aud": "other"}), TokenError::Audience),
        (json!({"aud": null}), TokenError::Claims),
        (json!({"sub": ""}), TokenError::NoLogin),
        (json!({"iss": "https://other.example"}), TokenError::Claims),
        (json!({"token_type": "DPoP"}), TokenError::NotAccessToken),
        (json!({"cnf": {"jkt": "x"}}), TokenError::Bound),
        (json!({"sub": "thunderbird"}), TokenError::AppOnly),
        (json!({"nbf": now() + 100}), TokenError::NotYetValid),
    ]
    .into_iter()
    .enumerate()
    {
        server.reply(PATH, answer(members.clone()));
        assert_eq!(verify(&tokens, format!("token{at}")).await.unwrap_err(), error, "{members}");
    }
    server.reply(PATH, answer(json!({"iss": ISSUER, "token_type": "Bearer"})));
    verify(&tokens, "sound").await.unwrap();
}

#[tokio::test]
async fn issuer_without_an_answer_is_an_outage_and_nothing_is_remembered() {
    let server = Server::start().await;
    let tokens = at(&server, &[]);
    for reply in [
        Reply::Status(401, ""),
        Reply::Status(403, ""),
        Reply::Status(302, "Location: /introspect\r\n"),
        Reply::Status(500, ""),
        Reply::Closed,
        Reply::Text("[]".to_owned()),
        Reply::Text("{}".to_owned()),
        Reply::Text("{\"active\":\"true\"}".to_owned()),
        Reply::Text("{\"active\":false,\"active\":true}".to_owned()),
        Reply::Text(format!("{{\"active\":true,\"x\":\"{}\"}}", "x".repeat(64 * 1024))),
    ] {
        server.reply(PATH, reply);
        let error = verify(&tokens, TOKEN).await.unwrap_err();
        assert_eq!((error, error.is_guess(), error.challenge()), (TokenError::Unavailable, false, None));
    }
    server.reply(PATH, answer(json!({})));
    verify(&tokens, TOKEN).await.unwrap();
}

#[tokio::test]
async fn jwts_go_to_no_issuer_but_their_own() {
    let server = Server::start().await;
    server.reply(PATH, answer(json!({})));
    let other = TokenIssuer { issuer: "https://other.example".to_owned(), ..settings() };
    let tokens = at(&server, &[other]);
    // Of an issuer that is not configured, of one with keys, and encrypted.
    let unknown = SIGNER.token(&with(json!({"iss": "https://third.example"})));
    assert_eq!(verify(&tokens, unknown).await.unwrap_err(), TokenError::UnknownIssuer);
    verify(&tokens, SIGNER.token(&with(json!({"iss": "https://other.example"})))).await.unwrap();
    let encrypted = format!("{}.a.b.c.d", base64url("{\"alg\":\"dir\",\"enc\":\"A256GCM\"}"));
    assert_eq!(verify(&tokens, encrypted).await.unwrap_err(), TokenError::Header);
    assert_eq!(server.requests(), [""; 0]);
    // Its own, which it has no keys for here.
    verify(&tokens, SIGNER.token(&claims())).await.unwrap();
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn opaque_token_may_be_any_random_bytes() {
    let server = Server::start().await;
    server.reply(PATH, answer(json!({})));
    let tokens = at(&server, &[]);
    let random = [0x7b, 0x22, 0xff, 1, 2, 3].repeat(5);
    for token in [base64url(&random), base64url("{\"handle\":17}"), format!("{}.x.y", base64url(random))] {
        verify(&tokens, token).await.unwrap();
    }
    assert_eq!(server.requests().len(), 3);
    // A part of a JWT is not sent to another issuer.
    let foreign = SIGNER.token(&with(json!({"iss": "https://third.example"})));
    let (unsigned, _) = foreign.rsplit_once('.').unwrap();
    assert_eq!(verify(&tokens, unsigned).await.unwrap_err(), TokenError::Malformed);
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn jwt_that_its_issuer_calls_active_is_an_access_token_all_the_same() {
    let server = Server::start().await;
    server.reply(PATH, answer(json!({})));
    let tokens = at(&server, &[]);
    verify(&tokens, SIGNER.token(&claims())).await.unwrap();
    for (members, error) in [
        (json!({"typ": "ID"}), TokenError::NotAccessToken),
        (json!({"at_hash": "x"}), TokenError::NotAccessToken),
        (json!({"cnf": {"jkt": "x"}}), TokenError::Bound),
        (json!({"idtyp": "app"}), TokenError::AppOnly),
    ] {
        assert_eq!(verify(&tokens, SIGNER.token(&with(members))).await.unwrap_err(), error);
    }
}

#[tokio::test]
async fn answers_are_forgotten_on_demand_but_not_that_a_token_was_valid() {
    let server = Server::start().await;
    server.reply(PATH, answer(json!({})));
    let tokens = at(&server, &[]);
    verify(&tokens, TOKEN).await.unwrap();
    server.reply(PATH, answer(json!({"active": false})));
    verify(&tokens, TOKEN).await.unwrap();
    tokens.forget_answers();
    assert!(tokens.needs_introspection(&Secret::copy_of(TOKEN.as_bytes())));
    assert_eq!(verify(&tokens, TOKEN).await.unwrap_err(), TokenError::Expired);
    // A no as well.
    server.reply(PATH, answer(json!({})));
    assert_eq!(verify(&tokens, TOKEN).await.unwrap_err(), TokenError::Expired);
    tokens.forget_answers();
    verify(&tokens, TOKEN).await.unwrap();
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn sixteen_questions_are_in_progress_at_most() {
    let server = Server::start().await;
    server.reply(PATH, Reply::Silent);
    let tokens = at(&server, &[]);
    let asking = (0..16).map(|number| verify(&tokens, format!("token{number}")));
    let mut asking = Box::pin(futures_util::future::join_all(asking));
    assert!(futures_util::poll!(&mut asking).is_pending());
    let error = verify(&tokens, "one-more").await.unwrap_err();
    assert_eq!((error, error.is_guess(), error.challenge()), (TokenError::Busy, false, None));
    pause();
    for result in asking.await {
        assert_eq!(result.unwrap_err(), TokenError::Unavailable);
    }
    resume();
    server.reply(PATH, answer(json!({})));
    verify(&tokens, "one-more").await.unwrap();
}

#[tokio::test]
async fn same_token_in_fifty_connections_is_one_question() {
    let server = Server::start().await;
    server.reply(PATH, answer(json!({})));
    let tokens = at(&server, &[]);
    let all = futures_util::future::join_all((0..50).map(|_| verify(&tokens, TOKEN))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(server.requests().len(), 1);
    // A client that leaves takes no answer from the others.
    server.reply(PATH, answer(json!({"active": false})));
    let mut first = Box::pin(verify(&tokens, "another"));
    assert!(futures_util::poll!(&mut first).is_pending());
    let second = verify(&tokens, "another");
    drop(first);
    assert_eq!(second.await.unwrap_err(), TokenError::Inactive);
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn question_from_before_answers_were_forgotten_is_not_joined() {
    let server = Server::start().await;
    server.reply(PATH, Reply::Silent);
    let tokens = at(&server, &[]);
    let mut before = Box::pin(verify(&tokens, TOKEN));
    while server.requests().is_empty() {
        assert!(futures_util::poll!(&mut before).is_pending());
        tokio::task::yield_now().await;
    }
    tokens.forget_answers();
    server.reply(PATH, answer(json!({})));
    verify(&tokens, TOKEN).await.unwrap();
    assert_eq!(server.requests().len(), 2);
}

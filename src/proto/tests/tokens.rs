//! A token that is forwarded to a backend: by the mechanism it came by and no other, and what a refusal is.

use super::super::script;
use super::super::trial::HOST;
use super::super::{BackSettings, BackTls, by_name};
use crate::base::credential::TokenForm;
use crate::base::secret::Secret;

fn settings(form: TokenForm, token: &str) -> BackSettings {
    BackSettings {
        tls: BackTls::Implicit,
        login: b"alice".to_vec(),
        password: Secret::copy_of(token.as_bytes()),
        token: Some(form),
        service: None,
        untagged_limit: 2_000,
        forward: None,
        host: HOST.into(),
        initial_response: true,
        ehlo: None,
    }
}

#[track_caller]
fn play(name: &str, form: TokenForm, text: &str) {
    script::backend(by_name(name).unwrap(), &settings(form, "secret"), text);
}

#[test]
fn imap_backend_gets_the_token_by_its_own_mechanism() {
    let listed = "S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN AUTH=XOAUTH2 AUTH=OAUTHBEARER] ready";
    play(
        "imap",
        TokenForm::OAuthBearer,
        &format!(
            "{listed}\nC: u1 AUTHENTICATE OAUTHBEARER bixhPWFsaWNlLAFhdXRoPUJlYXJlciBzZWNyZXQBAQ==\nS: u1 OK Logged in\n=> ready [] Logged in"
        ),
    );
    play(
        "imap",
        TokenForm::XOAuth2,
        &format!(
            "{listed}\nC: u1 AUTHENTICATE XOAUTH2 dXNlcj1hbGljZQFhdXRoPUJlYXJlciBzZWNyZXQBAQ==\nS: u1 OK Logged in\n=> ready [] Logged in"
        ),
    );
    play(
        "imap",
        TokenForm::OAuthBearer,
        "S: * OK [CAPABILITY IMAP4rev1 AUTH=OAUTHBEARER] ready\nC: u1 AUTHENTICATE OAUTHBEARER\nS: + \nC: bixhPWFsaWNlLAFhdXRoPUJlYXJlciBzZWNyZXQBAQ==\n\
         S: u1 OK Logged in\n=> ready [] Logged in",
    );
    // Neither PLAIN nor LOGIN carries it, and nothing is sent.
    for offered in ["AUTH=PLAIN AUTH=LOGIN", "AUTH=PLAIN AUTH=XOAUTH2"] {
        play(
            "imap",
            TokenForm::OAuthBearer,
            &format!("S: * OK [CAPABILITY IMAP4rev1 SASL-IR {offered}] ready\n=> fault NoMechanism"),
        );
    }
}

#[test]
fn challenge_of_a_refusal_is_answered_once_and_reported() {
    let listed = "S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2 AUTH=OAUTHBEARER] ready";
    play(
        "imap",
        TokenForm::OAuthBearer,
        &format!(
            "{listed}\nC: u1 AUTHENTICATE OAUTHBEARER bixhPWFsaWNlLAFhdXRoPUJlYXJlciBzZWNyZXQBAQ==\nS: + eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=\nC: AQ==\n\
             S: u1 NO [AUTHENTICATIONFAILED] Authentication failed.\n\
             => refused [AUTHENTICATIONFAILED] Authentication failed. after invalid_token"
        ),
    );
    play(
        "imap",
        TokenForm::XOAuth2,
        &format!(
            "{listed}\nC: u1 AUTHENTICATE XOAUTH2 dXNlcj1hbGljZQFhdXRoPUJlYXJlciBzZWNyZXQBAQ==\nS: + eyJzdGF0dXMiOiI0MDMiLCJzY2hlbWVzIjoiYmVhcmVyIn0=\nC: \nS: u1 NO Failed\n\
             => refused [] Failed after insufficient_scope"
        ),
    );
    play(
        "imap",
        TokenForm::OAuthBearer,
        &format!(
            "{listed}\nC: u1 AUTHENTICATE OAUTHBEARER bixhPWFsaWNlLAFhdXRoPUJlYXJlciBzZWNyZXQBAQ==\nS: + eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=\nC: AQ==\nS: + eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0=\n=> fault ProtocolViolation"
        ),
    );
    // A backend that reads no message with the command must not get it twice.
    play(
        "imap",
        TokenForm::OAuthBearer,
        &format!(
            "{listed}\nC: u1 AUTHENTICATE OAUTHBEARER bixhPWFsaWNlLAFhdXRoPUJlYXJlciBzZWNyZXQBAQ==\nS: + \nC: AQ==\nS: u1 NO no\n=> refused [] no after invalid_token"
        ),
    );
    play(
        "managesieve",
        TokenForm::OAuthBearer,
        r#"
        S: "SASL" "PLAIN OAUTHBEARER"
        S: OK
        C: AUTHENTICATE "OAUTHBEARER" "bixhPWFsaWNlLAFhdXRoPUJlYXJlciBzZWNyZXQBAQ=="
        S: "eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIn0="
        C: "AQ=="
        S: NO "unsupported"
        => refused [] unsupported after invalid_token
        "#,
    );
    play(
        "submission",
        TokenForm::XOAuth2,
        "S: 220 ready\nC: EHLO usher.example.com\nS: 250-server3\nS: 250 AUTH PLAIN XOAUTH2\nC: AUTH XOAUTH2 dXNlcj1hbGljZQFhdXRoPUJlYXJlciBzZWNyZXQBAQ==\n\
         S: 334 eyJzdGF0dXMiOiI0MDMiLCJzY2hlbWVzIjoiYmVhcmVyIn0=\nC: \nS: 535 5.7.8 Authentication failed\n\
         => refused [535 5.7.8] Authentication failed after insufficient_scope",
    );
}

#[test]
fn pop3_and_submission_backends_get_a_long_token_after_the_challenge() {
    let token = "x".repeat(4_000);
    let mut message = crate::base::secret::SecretBuf::new();
    super::super::bearer::write_oauthbearer(b"alice", &Secret::copy_of(token.as_bytes()), &mut message);
    let message = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, message.as_slice());
    let settings = settings(TokenForm::OAuthBearer, &token);
    script::backend(
        by_name("pop3").unwrap(),
        &settings,
        &format!(
            "S: +OK ready\nC: CAPA\nS: +OK\nS: SASL PLAIN OAUTHBEARER\nS: .\nC: AUTH OAUTHBEARER\nS: + \nC: {message}\n\
             S: +OK Logged in.\n=> ready [] Logged in."
        ),
    );
    script::backend(
        by_name("submission").unwrap(),
        &settings,
        &format!(
            "S: 220 ready\nC: EHLO usher.example.com\nS: 250-server3\nS: 250 AUTH OAUTHBEARER\nC: AUTH OAUTHBEARER\n\
             S: 334 \nC: {message}\nS: 235 2.7.0 Logged in.\n=> ready [] Logged in."
        ),
    );
}

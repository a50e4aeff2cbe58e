//! Tests of the mechanisms, of both sides of an exchange.

use super::*;

fn named(name: &[u8]) -> &'static Mechanism {
    MechanismSet::ALL.by_name(name).unwrap()
}

fn parts(credentials: &Credentials) -> (&[u8], &[u8], &[u8]) {
    let secret = match &credentials.secret {
        CredentialSecret::Password(secret) | CredentialSecret::Token(BearerToken { token: secret, .. }) => secret,
        CredentialSecret::ClientCertificate(_) => panic!("a certificate"),
    };
    (&credentials.authzid, &credentials.login, secret.expose())
}

fn plain_of(response: &[u8]) -> Result<Credentials, SaslError> {
    let exchange = goes(Exchange::begin(named(b"PLAIN"), None).unwrap());
    exchange.respond(response).map(done).map_err(|failed| failed.error)
}

#[test]
fn set_of_mechanisms_has_their_places() {
    assert!(MechanismSet::PASSWORDS.names().eq(["PLAIN", "LOGIN"]));
    assert!(MechanismSet::TOKENS.names().eq(["OAUTHBEARER", "XOAUTH2"]));
    assert_eq!(MechanismSet::of("xoauth2").map(|set| set.names().collect::<Vec<_>>()), Some(vec!["XOAUTH2"]));
    assert!(MechanismSet::of("SCRAM-SHA-256").is_none() && MechanismSet::NONE.names().next().is_none());
    assert!(MechanismSet::PASSWORDS.by_name(b"XOAUTH2").is_none() && MechanismSet::ALL.by_name(b"xoauth2").is_some());
    assert!(MechanismSet::EXTERNAL.names().eq(["EXTERNAL"]) && MechanismSet::PASSWORDS.by_name(b"EXTERNAL").is_none());
    assert!(MechanismSet::ALL.names().eq(MECHANISMS.iter().map(|mechanism| mechanism.name)));
    let all = MechanismSet::ALL;
    assert!(all.meets(MechanismSet::TOKENS) && !MechanismSet::PASSWORDS.meets(MechanismSet::TOKENS));
    assert_eq!(all.and(MechanismSet::TOKENS), MechanismSet::TOKENS);
}

#[test]
fn malformed_token_message_is_reported_by_its_mechanism() {
    for name in ["OAUTHBEARER", "XOAUTH2"] {
        let begun = Exchange::begin(named(name.as_bytes()), Some(b"dXNlcg=="));
        let failed = begun.unwrap_err();
        assert_eq!((failed.error, failed.reported_by.map(|one| one.name)), (SaslError::Malformed, Some(name)));
        let undecodable = Exchange::begin(named(name.as_bytes()), Some(b"*")).unwrap_err();
        assert!(undecodable.error == SaslError::NotBase64 && undecodable.reported_by.is_none());
    }
}

fn done(progress: ExchangeStep) -> Credentials {
    let ExchangeStep::Done(credentials, _) = progress else { panic!("there is another challenge") };
    credentials
}

fn goes(progress: ExchangeStep) -> Exchange {
    let ExchangeStep::Continue(exchange) = progress else { panic!("the exchange is over") };
    exchange
}

#[test]
fn plain_has_three_parts() {
    // RFC 4616 section 4, without and with authzid.
    let tim = plain_of(b"AHRpbQB0YW5zdGFhZnRhbnN0YWFm").unwrap();
    assert_eq!(parts(&tim), (&b""[..], &b"tim"[..], &b"tanstaaftanstaaf"[..]));
    let kurt = plain_of(b"VXJzZWwAS3VydAB4aXBqMzBwbHE=").unwrap();
    assert_eq!(parts(&kurt), (&b"Ursel"[..], &b"Kurt"[..], &b"xipj30plq"[..]));
    let empty = plain_of(b"AAA=").unwrap();
    assert_eq!(parts(&empty), (&b""[..], &b""[..], &b""[..]));
    for (message, why) in [(&b""[..], "empty"), (b"YQBi", "one NUL"), (b"AAAA", "three NULs")] {
        assert_eq!(plain_of(message).unwrap_err(), SaslError::Malformed, "{why}");
    }
}

#[test]
fn login_sends_two_challenges() {
    let exchange = goes(Exchange::begin(named(b"LOGIN"), None).unwrap());
    assert_eq!(STANDARD.decode(exchange.challenge()).unwrap(), b"Username:");
    let exchange = goes(exchange.respond(b"YWxpY2U=").unwrap());
    assert_eq!(STANDARD.decode(exchange.challenge()).unwrap(), b"Password:");
    let credentials = done(exchange.respond(b"c2VjcmV0").unwrap());
    assert_eq!(parts(&credentials), (&b""[..], &b"alice"[..], &b"secret"[..]));
}

#[test]
fn responses_are_canonical_base64_or_a_cancellation() {
    for wrong in [&b"YQ"[..], b"YQ=", b"YR==", b"Y Q==", b"YQ==\t", b"****", b"=", b"YQ==YQ=="] {
        assert_eq!(plain_of(wrong).unwrap_err(), SaslError::NotBase64, "{}", wrong.escape_ascii());
    }
    assert_eq!(plain_of(b"*").unwrap_err(), SaslError::Cancelled);
    let login = |initial| Exchange::begin(named(b"LOGIN"), Some(initial));
    assert_eq!(login(b"*").unwrap_err().error, SaslError::NotBase64);
    let exchange = goes(login(b"=").unwrap());
    assert_eq!(exchange.challenge(), "UGFzc3dvcmQ6");
}

#[test]
fn written_response_is_read_back() {
    let password = Secret::copy_of(b"p\xc3\xa4ss \"w\\rd");
    for authzid in [&b""[..], b"a", b"al", b"ali"] {
        let mut out = SecretBuf::new();
        write_plain(authzid, b"proxy", &password, &mut out);
        let credentials = plain_of(out.as_slice()).unwrap();
        assert_eq!(parts(&credentials), (authzid, &b"proxy"[..], password.expose()));
    }
    assert!(fits_plain(b"a\r\n") && !fits_plain(b"a\0b"));
}

#[test]
fn mechanism_names_are_case_insensitive() {
    assert_eq!(named(b"plain").name, "PLAIN");
    assert_eq!(named(b"Login").name, "LOGIN");
    assert!(MechanismSet::ALL.by_name(b"SCRAM-SHA-256").is_none());
}

fn account(password: &[u8]) -> Account {
    Account { login: b"alice".to_vec(), password: Secret::copy_of(password), token: None, service: None }
}

#[test]
fn external_has_an_authzid_or_nothing() {
    let read = |initial: Option<&[u8]>, line: &[u8]| {
        let credentials = match Exchange::begin(named(b"EXTERNAL"), initial).unwrap() {
            ExchangeStep::Continue(exchange) => {
                assert_eq!(exchange.challenge(), "");
                done(exchange.respond(line).unwrap())
            }
            over @ ExchangeStep::Done(..) => done(over),
        };
        assert!(matches!(credentials.secret, CredentialSecret::ClientCertificate(_)) && credentials.login.is_empty());
        credentials.authzid
    };
    assert_eq!(read(Some(b"="), b""), b"");
    assert_eq!(read(None, b""), b"");
    assert_eq!(read(Some(b"YWxpY2U="), b""), b"alice");
    assert_eq!(read(None, b"YWxpY2U="), b"alice");
    let begin = |initial: &[u8]| Exchange::begin(named(b"EXTERNAL"), Some(initial)).unwrap_err().error;
    assert_eq!((begin(b"YQBi"), begin(b"*")), (SaslError::Malformed, SaslError::NotBase64));
    let exchange = goes(Exchange::begin(named(b"EXTERNAL"), None).unwrap());
    assert_eq!(exchange.respond(b"*").unwrap_err().error, SaslError::Cancelled);
}

#[test]
fn every_mechanism_reads_what_it_writes() {
    let service = Some(b"proxy".to_vec());
    let own = account(b"p\xc3\xa4ss");
    let with_service = Account { service, ..own.clone() };
    let token = |form| Account { token: Some(form), ..account(b"ey.J-_~+/=") };
    let (one, other) = (token(TokenForm::OAuthBearer), token(TokenForm::XOAuth2));
    let accounts = [&own, &with_service, &one, &other];
    for (mechanism, account) in MECHANISMS.iter().flat_map(|one| accounts.map(|account| (one, account))) {
        if !(mechanism.carries)(account) {
            continue;
        }
        let mut client = ClientExchange::new(mechanism);
        let mut server = goes(Exchange::begin(mechanism, None).unwrap());
        let credentials = loop {
            let mut response = SecretBuf::new();
            client.respond(server.challenge().as_bytes(), account, &mut response).unwrap();
            match server.respond(response.as_slice()).unwrap() {
                ExchangeStep::Continue(exchange) => server = exchange,
                ExchangeStep::Done(credentials, _) => break credentials,
            }
        };
        let expected = match &account.service {
            Some(service) => (&b"alice"[..], service.as_slice()),
            None => (&b""[..], &b"alice"[..]),
        };
        assert_eq!(parts(&credentials), (expected.0, expected.1, account.password.expose()), "{}", mechanism.name);
        let is_token = matches!(credentials.secret, CredentialSecret::Token(_));
        assert_eq!(is_token, account.token.is_some(), "{}", mechanism.name);
        let mut more = SecretBuf::new();
        let goes_on = client.respond(b"", account, &mut more).is_some();
        assert_eq!(goes_on, mechanism.reports_refusals(), "{} has no more", mechanism.name);
        assert!(more.len() <= 4, "{} never sends its message again", mechanism.name);
    }
}

#[test]
fn initial_response_is_repeated_once_after_an_empty_challenge() {
    let account = account(b"secret");
    let mut out = SecretBuf::new();
    let mut exchange = ClientExchange::with_initial(named(b"PLAIN"), &account, &mut out);
    assert!(exchange.is_command_only() && !exchange.has_sent_nothing() && !exchange.awaits_challenge());
    assert!(exchange.respond(b"eyJzdGF0dXMiOiI0MDEifQ==", &account, &mut out).is_none());
    let first = std::mem::take(&mut out);
    exchange.respond(b"", &account, &mut out).unwrap();
    assert_eq!(out.as_slice(), first.as_slice());
    assert!(exchange.was_repeated() && !exchange.is_command_only());
    assert!(exchange.respond(b"", &account, &mut out).is_none(), "once");
}

#[test]
fn refusal_challenge_never_gets_the_message_again() {
    let scope = STANDARD.encode(r#"{"status":"403"}"#);
    for (name, form, answer) in
        [("OAUTHBEARER", TokenForm::OAuthBearer, &b"AQ=="[..]), ("XOAUTH2", TokenForm::XOAuth2, b"")]
    {
        for (challenge, error) in [
            ("", TokenChallenge::InvalidToken),
            ("eyJzdGF0dXMiOiI0MDEifQ==", TokenChallenge::InvalidToken),
            ("no base64", TokenChallenge::InvalidToken),
            (&scope, TokenChallenge::InsufficientScope),
        ] {
            let account = Account { token: Some(form), ..account(b"secret") };
            let mut exchange = ClientExchange::with_initial(named(name.as_bytes()), &account, &mut SecretBuf::new());
            assert!(exchange.is_command_only() && exchange.reported().is_none());
            let mut out = SecretBuf::new();
            exchange.respond(challenge.as_bytes(), &account, &mut out).unwrap();
            assert_eq!((out.as_slice(), exchange.reported()), (answer, Some(error)), "{name} {challenge}");
            assert!(!exchange.is_command_only());
            assert!(exchange.respond(b"", &account, &mut out).is_none(), "{name}: once");
        }
    }
    for mechanism in MECHANISMS {
        assert!(!mechanism.may_repeat_initial() || !mechanism.reports_refusals(), "{}", mechanism.name);
    }
}

#[test]
fn backend_gets_the_first_mechanism_that_carries_the_account() {
    let own = account(b"a\0b");
    let chosen = |account: &Account, offers: &[&str]| {
        Mechanism::for_backend(account, |name| offers.contains(&name)).map(|one| one.name).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&own, &["LOGIN", "PLAIN"]), ["LOGIN"], "PLAIN cannot carry a NUL");
    let sound = Account { password: Secret::copy_of(b"ab"), ..own };
    assert_eq!(chosen(&sound, &["LOGIN", "PLAIN"]), ["PLAIN", "LOGIN"]);
    assert!(chosen(&sound, &["OAUTHBEARER", "XOAUTH2", "EXTERNAL", "SCRAM-SHA-256"]).is_empty());
    let token = Account { token: Some(TokenForm::XOAuth2), ..sound.clone() };
    assert_eq!(chosen(&token, &["PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2"]), ["XOAUTH2"], "as it came");
    let service = Account { service: Some(b"proxy".to_vec()), ..sound };
    assert!(chosen(&service, &["LOGIN"]).is_empty(), "LOGIN knows no authzid");
}

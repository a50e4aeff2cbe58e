//! SASL as a server and as a client, for every protocol: the table of mechanisms, with base64 (RFC 4648) and the
//! cancelling `*` (RFC 4422).
//!
//! What is offered, read from clients and written to backends derives from [`MECHANISMS`]. Knows no protocol's
//! syntax, checks no name or password, and keeps every decoded byte in wiping memory.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::Credentials;
use super::bearer::{self, TokenHints};
use crate::base::credential::{BearerToken, ClientCertificate, CredentialSecret, TokenForm};
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::TokenChallenge;

/// The longest line of an exchange, without CRLF (RFC 4954 section 4 has this number).
pub(crate) const LINE: usize = 12_288;

/// A mechanism: what a server asks and reads, and what a client writes.
#[derive(Debug)]
pub(crate) struct Mechanism {
    /// The registered name.
    pub(crate) name: &'static str,
    /// The server's challenges in base64, each for one response; two at most.
    challenges: &'static [&'static str],
    /// The server half: reads the last response, and the one before it if there are two.
    read: fn(Option<Secret>, Secret) -> Result<Message, SaslError>,
    /// What the secret that was read is.
    credential: fn(Secret) -> CredentialSecret,
    /// The client half: writes the response with this number in base64.
    write: fn(&Account, usize, &mut SecretBuf),
    /// Whether the client half can carry this account.
    carries: fn(&Account) -> bool,
    /// How a refused login is reported, if by a challenge: the other side answers it with one more line before the
    /// final reply (RFC 7628 section 3.2.3).
    refusal: Option<RefusalChallenge>,
}

/// A challenge that reports a refused login.
#[derive(Debug)]
struct RefusalChallenge {
    /// The challenge.
    write: fn(TokenChallenge, &TokenHints) -> String,
    /// The client's answer to it, in base64.
    answer: &'static [u8],
}

/// What clients may log in with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MechanismSet(u8);

impl MechanismSet {
    /// The mechanisms of a password.
    pub const PASSWORDS: Self = Self(0b0_0011);
    /// The mechanisms of a token.
    pub const TOKENS: Self = Self(0b0_1100);
    /// The mechanism of a client certificate.
    pub const EXTERNAL: Self = Self(0b1_0000);
    /// All.
    pub const ALL: Self = Self::PASSWORDS.or(Self::TOKENS).or(Self::EXTERNAL);
    /// None.
    pub const NONE: Self = Self(0);

    /// The mechanism of this name alone, in any case.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        let at = MECHANISMS.iter().position(|mechanism| mechanism.name.eq_ignore_ascii_case(name))?;
        Some(Self(1 << at))
    }

    /// Those of either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether some are in both.
    #[must_use]
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Their names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.all().map(|mechanism| mechanism.name)
    }

    fn all(self) -> impl Iterator<Item = &'static Mechanism> {
        MECHANISMS.iter().enumerate().filter(move |(at, _)| self.0 & 1 << at != 0).map(|(_, mechanism)| mechanism)
    }

    /// Finds one by its name, in any case.
    pub(super) fn by_name(self, name: &[u8]) -> Option<&'static Mechanism> {
        self.all().find(|mechanism| mechanism.name.as_bytes().eq_ignore_ascii_case(name))
    }
}

/// What a mechanism's responses hold.
struct Message {
    login: Vec<u8>,
    secret: Secret,
    authzid: Vec<u8>,
}

impl Message {
    /// The name beside a token is no other one than the token's, so that it is not an authzid.
    fn of_token((login, secret): bearer::TokenMessage) -> Self {
        Self { login, secret, authzid: Vec::new() }
    }
}

/// The mechanisms, the preferred one for backends first. Their places are the bits of [`MechanismSet`].
pub(crate) static MECHANISMS: &[Mechanism] = &[
    // RFC 4616: one message of authzid, authcid and password.
    Mechanism {
        name: "PLAIN",
        challenges: &[""],
        read: |_, message| plain(&message),
        credential: CredentialSecret::Password,
        write: |account, _, out| match &account.service {
            Some(service) => write_plain(&account.login, service, &account.password, out),
            None => write_plain(b"", &account.login, &account.password, out),
        },
        carries: |account| account.token.is_none() && account.has_no_nul(),
        refusal: None,
    },
    // draft-murchison-sasl-login: obsolete but required by some clients. It asks for name and password in turn and
    // knows no authzid, so a service account cannot use it.
    Mechanism {
        name: "LOGIN",
        challenges: &["VXNlcm5hbWU6", "UGFzc3dvcmQ6"], // Username: and Password:
        read: |login, password| {
            let login = login.map(|login| login.expose().to_vec()).unwrap_or_default();
            Ok(Message { login, secret: password, authzid: Vec::new() })
        },
        credential: CredentialSecret::Password,
        write: |account, number, out| {
            write_base64(if number == 0 { &account.login } else { account.password.expose() }, out)
        },
        carries: |account| account.token.is_none() && account.service.is_none(),
        refusal: None,
    },
    // RFC 7628: a token, which says itself whose it is. The client's answer to a refusal is its dummy response.
    Mechanism {
        name: "OAUTHBEARER",
        challenges: &[""],
        read: |_, message| {
            bearer::read_oauthbearer(message.expose()).map(Message::of_token).ok_or(SaslError::Malformed)
        },
        credential: |token| CredentialSecret::Token(BearerToken { token, form: TokenForm::OAuthBearer }),
        write: |account, _, out| write_message(bearer::write_oauthbearer, account, out),
        carries: |account| account.token == Some(TokenForm::OAuthBearer),
        refusal: Some(RefusalChallenge { write: bearer::oauthbearer_challenge, answer: b"AQ==" }),
    },
    // Its predecessor, which is in no RFC.
    Mechanism {
        name: "XOAUTH2",
        challenges: &[""],
        read: |_, message| bearer::read_xoauth2(message.expose()).map(Message::of_token).ok_or(SaslError::Malformed),
        credential: |token| CredentialSecret::Token(BearerToken { token, form: TokenForm::XOAuth2 }),
        write: |account, _, out| write_message(bearer::write_xoauth2, account, out),
        carries: |account| account.token == Some(TokenForm::XOAuth2),
        refusal: Some(RefusalChallenge { write: bearer::xoauth2_challenge, answer: b"" }),
    },
    // RFC 4422 appendix A: one message, the authzid or nothing. What proves the user is the certificate of the
    // connection, which usher does not have towards a backend.
    Mechanism {
        name: "EXTERNAL",
        challenges: &[""],
        read: |_, message| external(&message),
        credential: |_| CredentialSecret::ClientCertificate(ClientCertificate::claimed()),
        write: |_, _, _| {},
        carries: |_| false,
        refusal: None,
    },
];

impl Mechanism {
    /// Whether a refused login may be reported by a challenge.
    #[must_use]
    pub(super) const fn reports_refusals(&self) -> bool {
        self.refusal.is_some()
    }

    /// The challenge, in base64, that reports an error.
    pub(super) fn refusal_challenge(&self, error: TokenChallenge, hints: &TokenHints) -> Option<String> {
        self.refusal.as_ref().map(|refusal| STANDARD.encode((refusal.write)(error, hints)))
    }
}

impl Mechanism {
    /// The mechanisms to log in to a backend with, the preferred one first: those that the backend offers and that
    /// can carry the account.
    pub(crate) fn for_backend(account: &Account, offers: impl Fn(&str) -> bool) -> impl Iterator<Item = &'static Self> {
        MECHANISMS.iter().filter(move |mechanism| offers(mechanism.name) && (mechanism.carries)(account))
    }

    /// Whether the login is one message, which can go with the command.
    #[must_use]
    pub(crate) const fn has_one_response(&self) -> bool {
        self.challenges.len() == 1
    }

    /// The size of the first response in base64.
    pub(crate) fn initial_size(&self, account: &Account) -> usize {
        let mut message = SecretBuf::new();
        (self.write)(account, 0, &mut message);
        message.len()
    }

    /// Whether an empty challenge after the initial response requests that response once more: the server has not
    /// read it with the command. Where a refusal comes as a challenge, no challenge means that.
    fn may_repeat_initial(&self) -> bool {
        self.challenges == [""] && self.refusal.is_none()
    }
}

/// What usher logs in to a backend with.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    /// The user's name: authcid of a login of its own, authzid of a login by a service account.
    pub(crate) login: Vec<u8>,
    /// The user's password or token, or the service account's password.
    pub(crate) password: Secret,
    /// How a token is sent; `None`: it is a password.
    pub(crate) token: Option<TokenForm>,
    /// The service account (authcid), if one logs in for the user.
    pub(crate) service: Option<Vec<u8>>,
}

impl Account {
    /// The name, the service account's or nothing, and the password.
    pub(crate) fn parts(&self) -> [&[u8]; 3] {
        [&self.login, self.service.as_deref().unwrap_or_default(), self.password.expose()]
    }

    /// Whether a message whose parts are separated by NUL can carry it.
    #[must_use]
    pub(crate) fn has_no_nul(&self) -> bool {
        self.parts().into_iter().all(fits_plain)
    }
}

/// usher's own exchange with a backend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientExchange {
    mechanism: &'static Mechanism,
    /// How many responses were written.
    written: usize,
    initial: InitialResponse,
    /// The error that the backend has reported by a challenge.
    reported: Option<TokenChallenge>,
}

/// What became of the response that went with the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InitialResponse {
    /// None did.
    Absent,
    /// It was sent.
    Sent,
    /// It was sent again after an empty challenge.
    Repeated,
}

impl ClientExchange {
    /// Starts an exchange.
    #[must_use]
    pub(crate) const fn new(mechanism: &'static Mechanism) -> Self {
        Self { mechanism, written: 0, initial: InitialResponse::Absent, reported: None }
    }

    /// Starts an exchange with an initial response, which is written in base64.
    #[must_use]
    pub(crate) fn with_initial(mechanism: &'static Mechanism, account: &Account, out: &mut SecretBuf) -> Self {
        (mechanism.write)(account, 0, out);
        Self { mechanism, written: 1, initial: InitialResponse::Sent, reported: None }
    }

    /// Writes the response to a challenge in base64: the next one, or, after an empty challenge, once more the
    /// initial response, which the backend has not read. A challenge that reports a refusal gets the mechanism's
    /// answer. `None`: the backend sent one challenge too many.
    pub(crate) fn respond(&mut self, challenge: &[u8], account: &Account, out: &mut SecretBuf) -> Option<()> {
        if self.awaits_challenge() {
            (self.mechanism.write)(account, self.written, out);
            self.written += 1;
            return Some(());
        }
        if let Some(refusal) = self.mechanism.refusal.as_ref().filter(|_| self.reported.is_none()) {
            let challenge = STANDARD.decode(challenge).unwrap_or_default();
            self.reported = Some(bearer::reported_error(&challenge));
            out.extend(refusal.answer);
            return Some(());
        }
        let unread =
            self.initial == InitialResponse::Sent && challenge.is_empty() && self.mechanism.may_repeat_initial();
        unread.then(|| {
            (self.mechanism.write)(account, 0, out);
            self.initial = InitialResponse::Repeated;
        })
    }

    /// Whether the backend has to send another challenge before it can decide.
    #[must_use]
    pub(crate) fn awaits_challenge(&self) -> bool {
        self.mechanism.challenges.get(self.written).is_some()
    }

    /// Whether nothing of the account was sent yet.
    #[must_use]
    pub(crate) const fn has_sent_nothing(&self) -> bool {
        self.written == 0
    }

    /// Whether no challenge was answered yet: a reply may be about the form of the command.
    #[must_use]
    pub(crate) fn is_command_only(&self) -> bool {
        self.reported.is_none() && (self.written == 0 || self.initial == InitialResponse::Sent)
    }

    /// The error that the backend has reported by a challenge: it has read the message and refuses it.
    #[must_use]
    pub(crate) const fn reported(&self) -> Option<TokenChallenge> {
        self.reported
    }

    /// Whether the backend has not read the initial response with the command.
    #[must_use]
    pub(crate) fn was_repeated(&self) -> bool {
        self.initial == InitialResponse::Repeated
    }
}

/// Why an exchange ended without credentials: always the client's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SaslError {
    /// The client sent `*`.
    #[error("the client cancelled the exchange")]
    Cancelled,
    /// A response is not canonical base64.
    #[error("the response is not base64")]
    NotBase64,
    /// A message is none of its mechanism.
    #[error("the response is not a message of the mechanism")]
    Malformed,
}

/// An exchange that has failed.
#[derive(Debug)]
pub(crate) struct FailedExchange {
    /// Why.
    pub(crate) error: SaslError,
    /// The mechanism, if it reports that by a challenge.
    pub(crate) reported_by: Option<&'static Mechanism>,
}

/// A client's authentication exchange, waiting for a response.
#[derive(Debug)]
pub(crate) struct Exchange {
    mechanism: &'static Mechanism,
    /// The first of two responses.
    earlier: Option<Secret>,
}

/// The result of a response.
#[derive(Debug)]
pub(crate) enum ExchangeStep {
    /// The next challenge is to be sent.
    Continue(Exchange),
    /// The exchange is over.
    Done(Credentials, &'static Mechanism),
}

impl Exchange {
    /// Starts an exchange with the response that came with the command, if one did; `=` is an empty one (RFC 4959
    /// section 3).
    ///
    /// # Errors
    /// As [`Exchange::respond`], except that `*` does not cancel here.
    pub(crate) fn begin(
        mechanism: &'static Mechanism,
        initial_response: Option<&[u8]>,
    ) -> Result<ExchangeStep, FailedExchange> {
        let exchange = Self { mechanism, earlier: None };
        match initial_response {
            Some(response) => exchange.take(if response == b"=" { b"" } else { response }),
            None => Ok(ExchangeStep::Continue(exchange)),
        }
    }

    /// The pending challenge, in base64.
    #[must_use]
    pub(crate) fn challenge(&self) -> &'static str {
        self.mechanism.challenges.get(usize::from(self.earlier.is_some())).copied().unwrap_or_default()
    }

    /// Takes the response to the challenge, a line without its end.
    ///
    /// # Errors
    /// The exchange is over: cancelled, undecodable or malformed.
    pub(crate) fn respond(self, line: &[u8]) -> Result<ExchangeStep, FailedExchange> {
        if line == b"*" {
            return Err(FailedExchange { error: SaslError::Cancelled, reported_by: None });
        }
        self.take(line)
    }

    fn take(self, response: &[u8]) -> Result<ExchangeStep, FailedExchange> {
        let Self { mechanism, earlier } = self;
        let response = decode(response).map_err(|error| FailedExchange { error, reported_by: None })?;
        if earlier.is_none() && !mechanism.has_one_response() {
            return Ok(ExchangeStep::Continue(Self { mechanism, earlier: Some(response) }));
        }
        let reported_by = mechanism.reports_refusals().then_some(mechanism);
        let read = (mechanism.read)(earlier, response);
        let Message { login, secret, authzid } = read.map_err(|error| FailedExchange { error, reported_by })?;
        let secret = (mechanism.credential)(secret);
        Ok(ExchangeStep::Done(Credentials { login, secret, authzid }, mechanism))
    }
}

/// Reads `[authzid] NUL authcid NUL passwd`. NUL can be in none of them, so a fourth part is no
/// password with a NUL but a malformed message (RFC 4616 section 2).
fn plain(message: &Secret) -> Result<Message, SaslError> {
    let mut parts = message.expose().split(|byte| *byte == 0);
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(authzid), Some(login), Some(password), None) => {
            Ok(Message { login: login.to_vec(), secret: Secret::copy_of(password), authzid: authzid.to_vec() })
        }
        _ => Err(SaslError::Malformed),
    }
}

/// Reads the message of EXTERNAL: an authzid, which has no NUL (RFC 4422 appendix A), or nothing.
fn external(message: &Secret) -> Result<Message, SaslError> {
    let authzid = message.expose();
    if authzid.contains(&0) {
        return Err(SaslError::Malformed);
    }
    Ok(Message { login: Vec::new(), secret: Secret::copy_of(b""), authzid: authzid.to_vec() })
}

fn decode(text: &[u8]) -> Result<Secret, SaslError> {
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.len())]);
    let length = STANDARD.decode_slice(text, &mut bytes).map_err(|_| SaslError::NotBase64)?;
    bytes.truncate(length);
    Ok(Secret::new(std::mem::take(&mut *bytes)))
}

/// Writes the base64 of a PLAIN message. None of the parts may hold a NUL: see [`fits_plain`].
fn write_plain(authzid: &[u8], authcid: &[u8], password: &Secret, out: &mut SecretBuf) {
    let mut message = SecretBuf::new();
    message.extend(authzid);
    message.extend(b"\0");
    message.extend(authcid);
    message.extend(b"\0");
    message.extend(password.expose());
    write_base64(message.as_slice(), out);
}

/// Writes the base64 of a message with a token.
fn write_message(write: fn(&[u8], &Secret, &mut SecretBuf), account: &Account, out: &mut SecretBuf) {
    let mut message = SecretBuf::new();
    write(&account.login, &account.password, &mut message);
    write_base64(message.as_slice(), out);
}

/// Writes base64 and leaves no copy of it.
fn write_base64(bytes: &[u8], out: &mut SecretBuf) {
    let mut group = Zeroizing::new([0; 4]);
    for three in bytes.chunks(3) {
        let length = STANDARD.encode_slice(three, &mut *group).expect("three bytes are four characters of base64");
        out.extend(group.get(..length).unwrap_or_default());
    }
}

/// Whether a PLAIN message can carry this part: a NUL would shift name and password.
fn fits_plain(part: &[u8]) -> bool {
    !part.contains(&0)
}

#[cfg(test)]
pub(super) mod tests {
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
        assert!(
            MechanismSet::PASSWORDS.by_name(b"XOAUTH2").is_none() && MechanismSet::ALL.by_name(b"xoauth2").is_some()
        );
        assert!(
            MechanismSet::EXTERNAL.names().eq(["EXTERNAL"]) && MechanismSet::PASSWORDS.by_name(b"EXTERNAL").is_none()
        );
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
            assert!(
                matches!(credentials.secret, CredentialSecret::ClientCertificate(_)) && credentials.login.is_empty()
            );
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
                let mut exchange =
                    ClientExchange::with_initial(named(name.as_bytes()), &account, &mut SecretBuf::new());
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
}

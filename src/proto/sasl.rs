//! SASL as a server and as a client, for every protocol: the table of mechanisms, with base64 (RFC 4648) and the
//! cancelling `*` (RFC 4422).
//!
//! What is offered, read from clients and written to backends derives from [`MECHANISMS`]. Knows no protocol's
//! syntax, checks no name or password, and keeps every decoded byte in wiping memory.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::Credentials;
use crate::base::credential::CredentialSecret;
use crate::base::secret::{Secret, SecretBuf};

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
    /// The challenge, in base64, that reports a refused login: the client answers it with one more line before
    /// the final reply (RFC 7628 section 3.2.3).
    pub(crate) refusal_challenge: Option<&'static str>,
}

/// What a mechanism's responses hold.
struct Message {
    login: Vec<u8>,
    secret: Secret,
    authzid: Vec<u8>,
}

/// The mechanisms that are offered to clients, the preferred one for backends first.
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
        carries: Account::has_no_nul,
        refusal_challenge: None,
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
        carries: |account| account.service.is_none(),
        refusal_challenge: None,
    },
];

/// The names of the mechanisms that are offered.
pub(crate) fn offered() -> impl Iterator<Item = &'static str> {
    MECHANISMS.iter().map(|mechanism| mechanism.name)
}

impl Mechanism {
    /// Finds a mechanism by its name, in any case.
    #[must_use]
    pub(crate) fn by_name(name: &[u8]) -> Option<&'static Self> {
        let all = MECHANISMS.iter();
        #[cfg(test)]
        let all = all.chain([&tests::CHALLENGING]);
        let mut all = all;
        all.find(|mechanism| mechanism.name.as_bytes().eq_ignore_ascii_case(name))
    }

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
        self.challenges == [""] && self.refusal_challenge.is_none()
    }
}

/// What usher logs in to a backend with.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    /// The user's name: authcid of a login of its own, authzid of a login by a service account.
    pub(crate) login: Vec<u8>,
    /// The user's password, or the service account's.
    pub(crate) password: Secret,
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
        Self { mechanism, written: 0, initial: InitialResponse::Absent }
    }

    /// Starts an exchange with an initial response, which is written in base64.
    #[must_use]
    pub(crate) fn with_initial(mechanism: &'static Mechanism, account: &Account, out: &mut SecretBuf) -> Self {
        (mechanism.write)(account, 0, out);
        Self { mechanism, written: 1, initial: InitialResponse::Sent }
    }

    /// Writes the response to a challenge in base64: the next one, or, after an empty challenge, once more the
    /// initial response, which the backend has not read. `None`: the backend sent one challenge too many.
    pub(crate) fn respond(&mut self, challenge: &[u8], account: &Account, out: &mut SecretBuf) -> Option<()> {
        if self.awaits_challenge() {
            (self.mechanism.write)(account, self.written, out);
            self.written += 1;
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
        self.written == 0 || self.initial == InitialResponse::Sent
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
    /// A PLAIN message does not consist of three parts.
    #[error("the response is not a message of the mechanism")]
    Malformed,
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
    ) -> Result<ExchangeStep, SaslError> {
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
    pub(crate) fn respond(self, line: &[u8]) -> Result<ExchangeStep, SaslError> {
        if line == b"*" { Err(SaslError::Cancelled) } else { self.take(line) }
    }

    fn take(self, response: &[u8]) -> Result<ExchangeStep, SaslError> {
        let Self { mechanism, earlier } = self;
        let response = decode(response)?;
        if earlier.is_none() && !mechanism.has_one_response() {
            return Ok(ExchangeStep::Continue(Self { mechanism, earlier: Some(response) }));
        }
        let Message { login, secret, authzid } = (mechanism.read)(earlier, response)?;
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

    /// A mechanism that reports a refusal by a challenge, as OAUTHBEARER does; its message is PLAIN's. Clients may
    /// use it in tests, and it is not offered.
    pub(in crate::proto) static CHALLENGING: Mechanism = Mechanism {
        name: "X-CHALLENGING",
        challenges: &[""],
        read: |_, message| plain(&message),
        credential: CredentialSecret::Password,
        write: |_, _, _| {},
        carries: |_| false,
        refusal_challenge: Some("eyJzdGF0dXMiOiI0MDEifQ=="),
    };

    fn named(name: &[u8]) -> &'static Mechanism {
        Mechanism::by_name(name).unwrap()
    }

    fn parts(credentials: &Credentials) -> (&[u8], &[u8], &[u8]) {
        let CredentialSecret::Password(password) = &credentials.secret;
        (&credentials.authzid, &credentials.login, password.expose())
    }

    fn plain_of(response: &[u8]) -> Result<Credentials, SaslError> {
        goes(Exchange::begin(named(b"PLAIN"), None).unwrap()).respond(response).map(done)
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
        assert_eq!(login(b"*").unwrap_err(), SaslError::NotBase64);
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
        assert!(Mechanism::by_name(b"SCRAM-SHA-256").is_none());
    }

    #[test]
    fn every_mechanism_reads_what_it_writes() {
        let service = Some(b"proxy".to_vec());
        let own = Account { login: b"alice".to_vec(), password: Secret::copy_of(b"p\xc3\xa4ss"), service: None };
        let with_service = Account { service, ..own.clone() };
        for (mechanism, account) in MECHANISMS.iter().flat_map(|one| [(one, &own), (one, &with_service)]) {
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
            assert_eq!(parts(&credentials), (expected.0, expected.1, &b"p\xc3\xa4ss"[..]), "{}", mechanism.name);
            assert!(client.respond(b"", account, &mut SecretBuf::new()).is_none(), "{} has no more", mechanism.name);
        }
    }

    #[test]
    fn initial_response_is_repeated_once_after_an_empty_challenge() {
        let account = Account { login: b"alice".to_vec(), password: Secret::copy_of(b"secret"), service: None };
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
        let account = Account { login: b"alice".to_vec(), password: Secret::copy_of(b"secret"), service: None };
        let mut out = SecretBuf::new();
        let mut exchange = ClientExchange::with_initial(&CHALLENGING, &account, &mut out);
        for challenge in [&b""[..], b"eyJzdGF0dXMiOiI0MDEifQ=="] {
            assert!(exchange.respond(challenge, &account, &mut out).is_none());
        }
        for mechanism in MECHANISMS {
            assert!(!mechanism.may_repeat_initial() || mechanism.refusal_challenge.is_none(), "{}", mechanism.name);
        }
    }

    #[test]
    fn backend_gets_the_first_mechanism_that_carries_the_account() {
        let own = Account { login: b"alice".to_vec(), password: Secret::copy_of(b"a\0b"), service: None };
        let chosen = |account: &Account, offers: &[&str]| {
            Mechanism::for_backend(account, |name| offers.contains(&name)).map(|one| one.name).collect::<Vec<_>>()
        };
        assert_eq!(chosen(&own, &["LOGIN", "PLAIN"]), ["LOGIN"], "PLAIN cannot carry a NUL");
        let sound = Account { password: Secret::copy_of(b"ab"), ..own };
        assert_eq!(chosen(&sound, &["LOGIN", "PLAIN"]), ["PLAIN", "LOGIN"]);
        assert!(chosen(&sound, &["X-CHALLENGING", "SCRAM-SHA-256"]).is_empty());
        let service = Account { service: Some(b"proxy".to_vec()), ..sound };
        assert!(chosen(&service, &["LOGIN"]).is_empty(), "LOGIN knows no authzid");
    }
}

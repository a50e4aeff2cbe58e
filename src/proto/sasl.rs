//! SASL as a server and as a client, for every protocol: the table of mechanisms, with base64 (RFC 4648) and the
//! cancelling `*` (RFC 4422).
//!
//! What is offered, read from clients and written to backends derives from [`MECHANISMS`]. Knows no protocol's
//! syntax, checks no name or password, and keeps every decoded byte in wiping memory.

mod client;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

pub(crate) use self::client::{Account, ClientExchange};
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

/// Why an exchange ended without credentials: always the client's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SaslError {
    /// The client sent `*`.
    #[error("the client cancelled the exchange")]
    Cancelled,
    /// A response is not canonical base64.
    #[error("the response is not base64")]
    NotBase64,
    /// A message does not belong to its mechanism.
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
mod tests;

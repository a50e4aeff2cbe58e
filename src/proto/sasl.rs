//! SASL as a server and as a client, for every protocol: PLAIN (RFC 4616) and LOGIN
//! (draft-murchison-sasl-login), with base64 (RFC 4648) and the cancelling `*` (RFC 4422).
//!
//! Knows no protocol's syntax, checks no name or password, and keeps every decoded byte in wiping memory.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::Credentials;
use crate::base::secret::{Secret, SecretBuf};

/// The longest line of an exchange, without CRLF (RFC 4954 section 4 has this number).
pub(crate) const LINE: usize = 12_288;

/// A mechanism that usher offers to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mechanism {
    /// One message: authzid, authcid and password.
    Plain,
    /// Obsolete but required by some clients: asks for name and password in turn.
    Login,
}

impl Mechanism {
    /// Finds a mechanism by its name, in any case.
    #[must_use]
    pub(crate) fn by_name(name: &[u8]) -> Option<Self> {
        let known = [(&b"PLAIN"[..], Self::Plain), (b"LOGIN", Self::Login)];
        known.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, mechanism)| mechanism)
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
pub(crate) struct Exchange(Awaiting);

#[derive(Debug)]
enum Awaiting {
    PlainMessage,
    LoginName,
    LoginPassword { login: Secret },
}

/// The result of a response.
#[derive(Debug)]
pub(crate) enum ExchangeStep {
    /// The next challenge is to be sent.
    Continue(Exchange),
    /// The exchange is over.
    Done(Credentials),
}

impl Exchange {
    /// Starts an exchange; the client is to be sent [`Exchange::challenge`], unless its initial
    /// response came with the command.
    #[must_use]
    pub(crate) const fn new(mechanism: Mechanism) -> Self {
        Self(match mechanism {
            Mechanism::Plain => Awaiting::PlainMessage,
            Mechanism::Login => Awaiting::LoginName,
        })
    }

    /// The pending challenge, in base64.
    #[must_use]
    pub(crate) const fn challenge(&self) -> &'static str {
        match self.0 {
            Awaiting::PlainMessage => "",
            Awaiting::LoginName => "VXNlcm5hbWU6",            // Username:
            Awaiting::LoginPassword { .. } => "UGFzc3dvcmQ6", // Password:
        }
    }

    /// Takes the response that came with the command; `=` is an empty one (RFC 4959 section 3).
    ///
    /// # Errors
    /// As [`Exchange::respond`], except that `*` does not cancel here.
    pub(crate) fn initial_response(self, response: &[u8]) -> Result<ExchangeStep, SaslError> {
        self.take(if response == b"=" { b"" } else { response })
    }

    /// Takes the response to the challenge, a line without its end.
    ///
    /// # Errors
    /// The exchange is over: cancelled, undecodable or malformed.
    pub(crate) fn respond(self, line: &[u8]) -> Result<ExchangeStep, SaslError> {
        if line == b"*" { Err(SaslError::Cancelled) } else { self.take(line) }
    }

    fn take(self, response: &[u8]) -> Result<ExchangeStep, SaslError> {
        let response = decode(response)?;
        Ok(match self.0 {
            Awaiting::PlainMessage => ExchangeStep::Done(plain(&response)?),
            Awaiting::LoginName => ExchangeStep::Continue(Self(Awaiting::LoginPassword { login: response })),
            Awaiting::LoginPassword { login } => {
                let login = login.expose().to_vec();
                ExchangeStep::Done(Credentials { login, password: response, authzid: Vec::new() })
            }
        })
    }
}

/// Reads `[authzid] NUL authcid NUL passwd`. NUL can be in none of them, so a fourth part is no
/// password with a NUL but a malformed message (RFC 4616 section 2).
fn plain(message: &Secret) -> Result<Credentials, SaslError> {
    let mut parts = message.expose().split(|byte| *byte == 0);
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(authzid), Some(login), Some(password), None) => {
            Ok(Credentials { login: login.to_vec(), password: Secret::copy_of(password), authzid: authzid.to_vec() })
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
pub(crate) fn write_plain(authzid: &[u8], authcid: &[u8], password: &Secret, out: &mut SecretBuf) {
    let mut message = SecretBuf::new();
    message.extend(authzid);
    message.extend(b"\0");
    message.extend(authcid);
    message.extend(b"\0");
    message.extend(password.expose());
    write_base64(message.as_slice(), out);
}

/// Writes base64 and leaves no copy of it.
pub(crate) fn write_base64(bytes: &[u8], out: &mut SecretBuf) {
    let mut group = Zeroizing::new([0; 4]);
    for three in bytes.chunks(3) {
        let length = STANDARD.encode_slice(three, &mut *group).expect("three bytes are four characters of base64");
        out.extend(group.get(..length).unwrap_or_default());
    }
}

/// Whether a PLAIN message can carry this part: a NUL would shift name and password.
#[must_use]
pub(crate) fn fits_plain(part: &[u8]) -> bool {
    !part.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(credentials: &Credentials) -> (&[u8], &[u8], &[u8]) {
        (&credentials.authzid, &credentials.login, credentials.password.expose())
    }

    fn plain_of(response: &[u8]) -> Result<Credentials, SaslError> {
        Exchange::new(Mechanism::Plain).respond(response).map(done)
    }

    fn done(progress: ExchangeStep) -> Credentials {
        let ExchangeStep::Done(credentials) = progress else { panic!("there is another challenge") };
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
        let exchange = Exchange::new(Mechanism::Login);
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
        let login = || Exchange::new(Mechanism::Login);
        assert_eq!(login().initial_response(b"*").unwrap_err(), SaslError::NotBase64);
        let exchange = goes(login().initial_response(b"=").unwrap());
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
        assert_eq!(Mechanism::by_name(b"plain"), Some(Mechanism::Plain));
        assert_eq!(Mechanism::by_name(b"Login"), Some(Mechanism::Login));
        assert_eq!(Mechanism::by_name(b"SCRAM-SHA-256"), None);
    }
}

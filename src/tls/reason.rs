//! Why a handshake failed: as a type by which advice is chosen, and as text that an administrator can act on.
//!
//! Text from the peer (names in its certificate) is escaped and bounded. Alerts are named as in RFC 8446
//! section 6.2.

use std::fmt;
use std::io;

use rustls::{AlertDescription, Error, InvalidMessage, PeerIncompatible};

use super::refused::{self, CertificateFault};

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// The peer's certificate is refused.
    Certificate(CertificateFault),
    /// The peer ended the handshake.
    Alert,
    /// The peer has no version, cipher suite or group in common.
    Incompatible,
    /// The peer does not speak TLS.
    NotTls,
    /// Another failure.
    Other,
}

/// Why TLS failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandshakeError {
    /// The kind.
    pub(crate) failure: HandshakeFailure,
    text: String,
}

impl HandshakeError {
    /// The TLS error within an error of a stream; `None` if it is one of the TCP connection.
    pub(crate) fn find(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref::<Error>().map(Self::from)
    }

    /// There is nothing to begin a handshake with.
    pub(crate) fn without_configuration() -> Self {
        Self { failure: HandshakeFailure::Other, text: "not configured".to_owned() }
    }

    /// An error of a handshake, or of the connection during it.
    pub(crate) fn of_stream(error: &io::Error) -> Self {
        Self::find(error).unwrap_or_else(|| Self { failure: HandshakeFailure::Other, text: describe(error) })
    }
}

impl From<&Error> for HandshakeError {
    fn from(error: &Error) -> Self {
        Self { failure: failure(error), text: describe_tls(error) }
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Describes what went wrong on a TLS connection, or on the TCP connection below it.
#[must_use]
pub(crate) fn describe(error: &io::Error) -> String {
    match HandshakeError::find(error) {
        Some(tls) => tls.text,
        None if error.kind() == io::ErrorKind::UnexpectedEof => "the peer closed the connection during TLS".to_owned(),
        None => error.to_string(),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library's enum is open")]
fn failure(error: &Error) -> HandshakeFailure {
    match error {
        Error::InvalidCertificate(certificate) => HandshakeFailure::Certificate(refused::fault(certificate)),
        Error::AlertReceived(_) => HandshakeFailure::Alert,
        Error::PeerIncompatible(_) => HandshakeFailure::Incompatible,
        error if is_not_tls(error) => HandshakeFailure::NotTls,
        _ => HandshakeFailure::Other,
    }
}

/// Whether the first bytes of the peer are not a TLS record: it speaks cleartext.
const fn is_not_tls(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::MessageTooLarge
                | InvalidMessage::InvalidEmptyPayload,
        )
    )
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library's enum is open and has its own words for the rest")]
fn describe_tls(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(certificate) => refused::describe(certificate),
        Error::AlertReceived(alert) => {
            let name = alert.as_str().map_or_else(|| u8::from(*alert).to_string(), |name| words(name, '_'));
            format!("the peer ended the handshake with the alert {name}{}", alert_hint(*alert))
        }
        Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon) => {
            "no common cipher suite: only ECDHE with AES-GCM or ChaCha20 is supported".to_owned()
        }
        Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon) => "no common key exchange group".to_owned(),
        Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => "no common TLS version: TLS 1.2 and 1.3 are supported, as far as the config allows".to_owned(),
        Error::PeerIncompatible(what) => format!("incompatible TLS peer: {}", rule(what)),
        Error::PeerMisbehaved(what) => format!("the peer violated the TLS protocol: {}", rule(what)),
        error if is_not_tls(error) => "the peer does not speak TLS here (is this a STARTTLS port?)".to_owned(),
        Error::NoApplicationProtocol => "the client speaks another protocol (ALPN)".to_owned(),
        Error::NoCertificatesPresented => "the peer presented no certificate".to_owned(),
        Error::InvalidMessage(what) => format!("the peer sent a malformed TLS message: {}", rule(what)),
        Error::InappropriateMessage { got_type, .. } => {
            format!("the peer sent a TLS message out of order: {}", named(got_type.as_str(), u8::from(*got_type)))
        }
        Error::InappropriateHandshakeMessage { got_type, .. } => {
            format!("the peer sent a handshake message out of order: {}", named(got_type.as_str(), u8::from(*got_type)))
        }
        other => other.to_string(),
    }
}

/// A rule of the library by its name, as words: it has no text for it.
fn rule(name: &dyn fmt::Debug) -> String {
    let name = format!("{name:?}");
    words(name.split(['(', '{', ' ']).next().unwrap_or_default(), ' ')
}

/// The type of a message by its name, or by its number.
fn named(name: Option<&str>, number: u8) -> String {
    name.map_or_else(|| format!("type {number}"), |name| words(name, ' '))
}

/// The words of a name such as `UnknownPSKIdentity`, in small letters.
fn words(name: &str, separator: char) -> String {
    let mut text = String::with_capacity(name.len() + 8);
    let letters: Vec<char> = name.chars().collect();
    for (index, letter) in letters.iter().enumerate() {
        let at = |index: usize| letters.get(index).copied().unwrap_or('A');
        let begins = index > 0
            && letter.is_ascii_uppercase()
            && (!at(index - 1).is_ascii_uppercase() || at(index + 1).is_ascii_lowercase());
        if begins {
            text.push(separator);
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

fn alert_hint(alert: AlertDescription) -> &'static str {
    if alert == AlertDescription::CertificateRequired {
        ": it requires a client certificate"
    } else if matches!(alert, AlertDescription::UnknownCA | AlertDescription::CertificateUnknown) {
        ": it does not trust our certificate"
    } else if alert == AlertDescription::CertificateExpired {
        ": our certificate has expired"
    } else if alert == AlertDescription::BadCertificate {
        ": it does not accept our certificate"
    } else if alert == AlertDescription::ProtocolVersion {
        ": no common TLS version"
    } else if alert == AlertDescription::HandshakeFailure {
        ": no common parameters, or it requires a client certificate"
    } else if alert == AlertDescription::NoApplicationProtocol {
        ": it speaks another protocol (ALPN)"
    } else {
        ""
    }
}

//! Why a handshake failed: as a type by which advice is chosen, and as text that an administrator can act on.
//!
//! Text from the peer (names in its certificate) is escaped and bounded. Alerts are named as in RFC 8446
//! section 6.2.

use std::fmt::{self, Write as _};
use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};
use x509_parser::time::ASN1Time;

use crate::telemetry::log::Escaped;

/// How many names of a certificate are listed.
const NAMES: usize = 8;

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// The peer's certificate has expired.
    Expired,
    /// The peer's certificate is not valid yet.
    NotYetValid,
    /// No known authority has issued the peer's certificate.
    UnknownIssuer,
    /// The peer's certificate is for another name.
    WrongName,
    /// A signature of the handshake or of a certificate is wrong.
    BadSignature,
    /// The peer's certificate is refused for another reason.
    Certificate,
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
        Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => HandshakeFailure::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                HandshakeFailure::NotYetValid
            }
            CertificateError::UnknownIssuer => HandshakeFailure::UnknownIssuer,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                HandshakeFailure::WrongName
            }
            CertificateError::BadSignature => HandshakeFailure::BadSignature,
            _ => HandshakeFailure::Certificate,
        },
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
        Error::InvalidCertificate(certificate) => describe_certificate(certificate),
        Error::AlertReceived(alert) => {
            let hint = alert_hint(*alert);
            format!("the peer ended the handshake with the alert {}{hint}", alert.as_str().unwrap_or("unknown"))
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
        Error::PeerIncompatible(what) => format!("incompatible TLS peer: {what:?}"),
        Error::PeerMisbehaved(what) => format!("the peer violated the TLS protocol: {what:?}"),
        error if is_not_tls(error) => "the peer does not speak TLS here (is this a STARTTLS port?)".to_owned(),
        Error::NoApplicationProtocol => "the client speaks another protocol (ALPN)".to_owned(),
        Error::NoCertificatesPresented => "the peer presented no certificate".to_owned(),
        other => other.to_string(),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library's enum is open and has its own words for the rest")]
fn describe_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate expired on {}", date(not_after.as_secs()))
        }
        CertificateError::Expired => "its certificate has expired".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("its certificate is not valid before {}: is a clock wrong?", date(not_before.as_secs()))
        }
        CertificateError::UnknownIssuer => {
            "its certificate comes from no known authority: name the authority as `ca`, and let the server send its \
             intermediates"
                .to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            format!(
                "its certificate is not for {}, it is for {}",
                Escaped(expected.to_str().as_bytes()),
                names(presented)
            )
        }
        CertificateError::NotValidForName => "its certificate is for another name".to_owned(),
        // The handshake's signature or one in the chain: the library does not say which.
        CertificateError::BadSignature => "a signature does not fit: it does not hold the key of its certificate, or \
                                           `ca` names another authority of the same name"
            .to_owned(),
        CertificateError::BadEncoding => "its certificate cannot be parsed".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not valid for this purpose (extended key usage)".to_owned()
        }
        // webpki's message, such as CaUsedAsEndEntity, or that of a pin mismatch.
        CertificateError::Other(other) => {
            let hint = match other.0.downcast_ref::<webpki::Error>() {
                Some(webpki::Error::CaUsedAsEndEntity | webpki::Error::UnsupportedCertVersion) => {
                    ": no verifier takes it; renew it or set pin_sha256"
                }
                _ => "",
            };
            format!("its certificate is refused: {}{hint}", Escaped(other.to_string().as_bytes()))
        }
        other => format!("its certificate is refused: {}", Escaped(other.to_string().as_bytes())),
    }
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

/// The names in a certificate. webpki writes them as `DnsName("mail.example.com")`.
fn names(presented: &[String]) -> String {
    let mut text = String::new();
    for (index, name) in presented.iter().take(NAMES).enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        let _ = write!(text, "{separator}{}", Escaped(bare(name).as_bytes()));
    }
    if presented.len() > NAMES {
        let _ = write!(text, " and {} more", presented.len() - NAMES);
    }
    if text.is_empty() { "no name at all (a CN does not count)".to_owned() } else { text }
}

fn bare(name: &str) -> &str {
    let quoted = name.split_once("(\"").and_then(|(_, rest)| rest.strip_suffix("\")"));
    quoted.or_else(|| name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'))).unwrap_or(name)
}

fn date(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| ASN1Time::from_timestamp(seconds).ok());
    time.map_or_else(|| format!("{seconds} (Unix time)"), |time| time.to_string())
}

//! Describes why a handshake failed, in terms that an administrator can act on.
//!
//! Text from the peer (names in its certificate) is escaped and bounded. Alerts are named as in RFC 8446
//! section 6.2.

use std::fmt::Write as _;
use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};
use x509_parser::time::ASN1Time;

use crate::telemetry::log::Escaped;

/// How many names of a certificate are listed.
const NAMES: usize = 8;

/// Says what went wrong on a TLS connection, or on the TCP connection under it.
#[must_use]
pub(crate) fn describe(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(tls) => describe_tls(tls),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "the peer closed the connection during TLS".to_owned(),
        None => error.to_string(),
    }
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
        Error::PeerMisbehaved(what) => format!("the peer broke the TLS protocol: {what:?}"),
        // The first bytes of a cleartext peer are not a TLS record.
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge
            | InvalidMessage::InvalidEmptyPayload,
        ) => "the peer does not speak TLS here (is this a STARTTLS port?)".to_owned(),
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
            let words = other.to_string();
            let hint = if words.contains("CaUsedAsEndEntity") || words.contains("UnsupportedCertVersion") {
                ": no verifier takes it; renew it or set pin_sha256"
            } else {
                ""
            };
            format!("its certificate is refused: {}{hint}", Escaped(words.as_bytes()))
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

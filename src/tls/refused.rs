//! Why a certificate is refused: the true reason, as a type by which advice is chosen and as text.
//!
//! rustls' errors name the rule that was broken, in its own names, and not always the cause: a key that is too
//! short is a wrong signature there, a missing intermediate an unknown issuer. [`Explaining`] looks at the
//! certificates of a refused server and says what is wrong with which. It decides nothing. Text from
//! certificates is escaped. RFC 5280, RFC 9525 (names).

use std::fmt::Write as _;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, ExtendedKeyPurpose, OtherError, RootCertStore, SignatureScheme,
};
use x509_parser::asn1_rs::{Any, FromDer as _, Sequence, ToDer as _};
use x509_parser::certificate::X509Certificate;
use x509_parser::public_key::PublicKey;
use x509_parser::time::ASN1Time;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Name};

use super::pin::NotPinned;
use crate::telemetry::log::Escaped;

/// RSA keys below this many bits are refused.
const LEAST_BITS: usize = 2048;
/// How many names of a certificate are listed.
const NAMES: usize = 8;
/// The longest name of a certificate that is shown.
const NAME: usize = 200;

/// What is wrong with the certificate of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CertificateFault {
    /// It, or one of its chain, has expired.
    Expired,
    /// It, or one of its chain, is not valid yet.
    NotYetValid,
    /// Its chain ends with an authority that is not known.
    UnknownIssuer,
    /// Its issuer is not known, and the peer does not send the issuer's certificate.
    MissingIssuer,
    /// It is its own issuer, and is not known.
    SelfSigned,
    /// It is for another name.
    WrongName,
    /// It has no subjectAltName: the CN does not count.
    NoName,
    /// It is that of an authority (CA:TRUE).
    Authority,
    /// Its key, or that of its issuer, is too short.
    ShortKey,
    /// It is signed with SHA-1 or MD5, or by an algorithm that is not supported.
    WeakSignature,
    /// It is not X.509 v3.
    OldVersion,
    /// Its extended key usage is another.
    WrongUsage,
    /// Its authority may not issue certificates for its names.
    NameConstraints,
    /// A signature is wrong: that of the handshake or of a certificate.
    BadSignature,
    /// Its key is not pinned.
    NotPinned,
    /// Something else.
    Other,
}

/// What [`Explaining`] has found.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
struct Refused {
    fault: CertificateFault,
    text: String,
}

impl Refused {
    fn new(fault: CertificateFault, text: impl Into<String>) -> Option<Self> {
        Some(Self { fault, text: text.into() })
    }
}

/// The kind of a refusal.
#[expect(clippy::wildcard_enum_match_arm, reason = "the library's enum is open")]
pub(super) fn fault(error: &CertificateError) -> CertificateFault {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => CertificateFault::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => CertificateFault::NotYetValid,
        CertificateError::UnknownIssuer => CertificateFault::UnknownIssuer,
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => CertificateFault::NoName,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            CertificateFault::WrongName
        }
        CertificateError::BadSignature => CertificateFault::BadSignature,
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            CertificateFault::WrongUsage
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => CertificateFault::WeakSignature,
        CertificateError::Other(other) => {
            if let Some(refused) = other.0.downcast_ref::<Refused>() {
                refused.fault
            } else if other.0.is::<NotPinned>() {
                CertificateFault::NotPinned
            } else {
                other.0.downcast_ref().map_or(CertificateFault::Other, |rule| broken_rule(rule).0)
            }
        }
        _ => CertificateFault::Other,
    }
}

/// The text of a refusal.
#[expect(clippy::wildcard_enum_match_arm, reason = "the library's enum is open")]
pub(super) fn describe(error: &CertificateError) -> String {
    match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("its certificate expired on {}", date(not_after.as_secs()))
        }
        CertificateError::Expired => "the validity of its certificate ends before it begins".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("its certificate is not valid before {}: is a clock wrong?", date(not_before.as_secs()))
        }
        CertificateError::UnknownIssuer => "its certificate comes from no known authority".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            format!(
                "its certificate is not for {}, it is for {}",
                Escaped(expected.to_str().as_bytes()),
                names(presented)
            )
        }
        CertificateError::NotValidForName => "its certificate is for another name".to_owned(),
        CertificateError::BadSignature => "a signature does not fit: it does not hold the key of its certificate, or \
                                           the known authority of this name is another"
            .to_owned(),
        CertificateError::BadEncoding => "its certificate cannot be parsed".to_owned(),
        CertificateError::InvalidPurposeContext { required, presented } => {
            let presented: Vec<String> = presented.iter().map(purpose).collect();
            let presented = if presented.is_empty() { "no purpose".to_owned() } else { presented.join(" and ") };
            format!("its certificate is for {presented}, not for {} (extended key usage)", purpose(required))
        }
        CertificateError::InvalidPurpose => {
            "its certificate is not valid for this purpose (extended key usage)".to_owned()
        }
        CertificateError::UnhandledCriticalExtension => {
            "its certificate has a critical extension that is not supported".to_owned()
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. } => {
            "its certificate is signed by an algorithm that is not supported, such as SHA-1".to_owned()
        }
        CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "the signature of its certificate is of another kind than the key of its issuer".to_owned()
        }
        CertificateError::Other(other) => match other.0.downcast_ref::<webpki::Error>() {
            Some(rule) => broken_rule(rule).1.to_owned(),
            // Of this house: what was found out, or the pin that is missing.
            None => other.to_string(),
        },
        _ => "its certificate is refused".to_owned(),
    }
}

fn purpose(purpose: &ExtendedKeyPurpose) -> String {
    match purpose {
        ExtendedKeyPurpose::ClientAuth => "client authentication".to_owned(),
        ExtendedKeyPurpose::ServerAuth => "server authentication".to_owned(),
        ExtendedKeyPurpose::Other(oid) => {
            let oid: Vec<String> = oid.iter().map(ToString::to_string).collect();
            format!("the purpose {}", oid.join("."))
        }
    }
}

/// webpki's rules that rustls passes on as they are.
#[expect(clippy::wildcard_enum_match_arm, reason = "the library's enum is open")]
fn broken_rule(rule: &webpki::Error) -> (CertificateFault, &'static str) {
    match rule {
        webpki::Error::CaUsedAsEndEntity => (
            CertificateFault::Authority,
            "its certificate is that of an authority (CA:TRUE), which may sign others and not stand for a server",
        ),
        webpki::Error::UnsupportedCertVersion => {
            (CertificateFault::OldVersion, "its certificate, or one of its chain, is not X.509 v3")
        }
        webpki::Error::NameConstraintViolation => (
            CertificateFault::NameConstraints,
            "its authority may not issue certificates for its names (name constraints)",
        ),
        webpki::Error::EndEntityUsedAsCa => {
            (CertificateFault::Other, "the certificate of its issuer is not that of an authority (no CA:TRUE)")
        }
        webpki::Error::PathLenConstraintViolated => {
            (CertificateFault::Other, "its chain is longer than an authority in it allows (path length)")
        }
        webpki::Error::UnsupportedCriticalExtension => {
            (CertificateFault::Other, "its certificate has a critical extension that is not supported")
        }
        webpki::Error::InvalidSerialNumber => {
            (CertificateFault::Other, "the serial number of its certificate is negative or longer than 20 bytes")
        }
        webpki::Error::MalformedDnsIdentifier => (CertificateFault::Other, "a name in its certificate is malformed"),
        webpki::Error::MalformedNameConstraint | webpki::Error::InvalidNetworkMaskConstraint => {
            (CertificateFault::NameConstraints, "the name constraints of its authority are malformed")
        }
        webpki::Error::EmptyEkuExtension
        | webpki::Error::ExtensionValueInvalid
        | webpki::Error::MalformedExtensions => {
            (CertificateFault::Other, "an extension of its certificate is malformed")
        }
        webpki::Error::SignatureAlgorithmMismatch => {
            (CertificateFault::Other, "its certificate names two algorithms for its one signature")
        }
        webpki::Error::MaximumPathDepthExceeded
        | webpki::Error::MaximumPathBuildCallsExceeded
        | webpki::Error::MaximumSignatureChecksExceeded
        | webpki::Error::MaximumNameConstraintComparisonsExceeded => {
            (CertificateFault::Other, "its chain is too long, or has too many ways to an authority")
        }
        _ => (CertificateFault::Other, "its certificate is refused by the rules of RFC 5280"),
    }
}

/// Verifies as another does, and explains why a server is refused.
#[derive(Debug)]
pub(super) struct Explaining {
    pub(super) verifier: Arc<dyn ServerCertVerifier>,
    /// The known authorities; none where a pin decides.
    pub(super) roots: Arc<RootCertStore>,
}

impl ServerCertVerifier for Explaining {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        verified.map_err(|error| {
            let chain =
                std::iter::once(end_entity).chain(intermediates).filter_map(|der| read(der)).collect::<Vec<_>>();
            explained(error, |error| explain_chain(error, &chain, &self.roots))
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = self.verifier.verify_tls12_signature(message, cert, dss);
        verified.map_err(|error| explained(error, |error| explain_signature(error, cert)))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = self.verifier.verify_tls13_signature(message, cert, dss);
        verified.map_err(|error| explained(error, |error| explain_signature(error, cert)))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

fn explained(error: Error, explain: impl FnOnce(&CertificateError) -> Option<Refused>) -> Error {
    let Error::InvalidCertificate(certificate) = &error else { return error };
    match explain(certificate) {
        Some(refused) => CertificateError::Other(OtherError(Arc::new(refused))).into(),
        None => error,
    }
}

fn read<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}

/// Why a handshake's signature is wrong.
fn explain_signature(error: &CertificateError, certificate: &CertificateDer<'_>) -> Option<Refused> {
    let certificate = read(certificate)?;
    match short_key(certificate.public_key()) {
        Some(bits) => Refused::new(
            CertificateFault::ShortKey,
            format!("its key is too short: RSA with {bits} bits, at least {LEAST_BITS} are required"),
        ),
        None if matches!(error, CertificateError::BadSignature) => Refused::new(
            CertificateFault::BadSignature,
            "the signature of its handshake does not fit: it does not hold the key of its certificate",
        ),
        None => None,
    }
}

/// Why a chain, the server's own certificate first, is refused; `None`: rustls' error says it.
#[expect(clippy::wildcard_enum_match_arm, reason = "the library's enum is open")]
fn explain_chain(error: &CertificateError, chain: &[X509Certificate<'_>], roots: &RootCertStore) -> Option<Refused> {
    let own = chain.first()?;
    match error {
        CertificateError::UnknownIssuer => explain_issuer(chain),
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            let cn = own.subject().iter_common_name().next().and_then(|cn| cn.as_str().ok());
            let cn = cn.map(|cn| format!(", only the CN {}", shown(cn))).unwrap_or_default();
            Refused::new(
                CertificateFault::NoName,
                format!("its certificate has no name as subjectAltName{cn}: a CN does not count (RFC 9525)"),
            )
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            let end = i64::try_from(not_after.as_secs()).ok()?;
            let of = chain.iter().skip(1).find(|one| one.validity().not_after.timestamp() == end)?;
            (own.validity().not_after.timestamp() != end).then_some(())?;
            let issuer = distinguished(of.subject());
            let text = format!("the certificate of its issuer {issuer} expired on {}", date(not_after.as_secs()));
            Refused::new(CertificateFault::Expired, text)
        }
        CertificateError::BadSignature => explain_wrong_signature(chain, roots),
        CertificateError::UnsupportedSignatureAlgorithmContext { .. } => {
            let weak = chain.iter().find_map(|one| Some((one, weak_signature(one)?)));
            let (which, algorithm) = weak.unwrap_or((own, "an algorithm that is not supported"));
            let which = if std::ptr::eq(which, own) {
                "its certificate".to_owned()
            } else {
                format!("the certificate of its issuer {}", distinguished(which.subject()))
            };
            Refused::new(CertificateFault::WeakSignature, format!("{which} is signed with {algorithm}"))
        }
        CertificateError::Other(other) => match other.0.downcast_ref::<webpki::Error>()? {
            webpki::Error::UnsupportedCertVersion => {
                let old = chain.iter().find(|one| one.version().0 != 2)?;
                let which = if std::ptr::eq(old, own) { "its certificate" } else { "the certificate of its issuer" };
                let version = old.version().0.saturating_add(1);
                Refused::new(
                    CertificateFault::OldVersion,
                    format!("{which} is X.509 v{version}, which has no room for names and purposes"),
                )
            }
            _ => None,
        },
        _ => None,
    }
}

/// The last certificate on the way from the server's own to an authority.
fn explain_issuer(chain: &[X509Certificate<'_>]) -> Option<Refused> {
    let own = chain.first()?;
    let mut last = own;
    // Each step uses another: a chain may run in a circle.
    for _ in chain {
        if last.issuer() == last.subject() {
            return if std::ptr::eq(last, own) {
                let text = "its certificate comes from no known authority: it is self-signed";
                Refused::new(CertificateFault::SelfSigned, text)
            } else {
                let end = distinguished(last.subject());
                let text = format!("its certificate comes from no known authority: its chain ends with {end}");
                Refused::new(CertificateFault::UnknownIssuer, text)
            };
        }
        match chain.iter().find(|one| one.subject() == last.issuer()) {
            Some(next) => last = next,
            None => break,
        }
    }
    let issuer = distinguished(last.issuer());
    let text = format!("its certificate comes from no known authority: it does not send that of the issuer, {issuer}");
    Refused::new(CertificateFault::MissingIssuer, text)
}

/// Of a chain in which a signature does not fit: a key too short to verify it, or another authority of the name.
fn explain_wrong_signature(chain: &[X509Certificate<'_>], roots: &RootCertStore) -> Option<Refused> {
    let short = |name: &X509Name<'_>, key: &SubjectPublicKeyInfo<'_>| {
        let bits = short_key(key)?;
        let text = format!(
            "the key of its issuer {} is too short: RSA with {bits} bits, at least {LEAST_BITS} are required",
            distinguished(name)
        );
        Refused::new(CertificateFault::ShortKey, text)
    };
    if let Some(refused) = chain.iter().skip(1).find_map(|one| short(one.subject(), one.public_key())) {
        return Some(refused);
    }
    for one in chain {
        // An anchor has the content of these elements alone.
        let Ok((_, issuer)) = Any::from_der(one.issuer().as_raw()) else { continue };
        let anchors = || roots.roots.iter().filter(|anchor| anchor.subject.as_ref() == issuer.data);
        let too_short = anchors().find_map(|anchor| {
            let key = Sequence::new(anchor.subject_public_key_info.as_ref().into()).to_der_vec().ok()?;
            short(one.issuer(), &SubjectPublicKeyInfo::from_der(&key).ok()?.1)
        });
        if too_short.is_some() {
            return too_short;
        }
        if anchors().next().is_some() {
            let text = format!(
                "the signature of its certificate does not fit: the known authority {} has another key than the one that \
                 signed it",
                distinguished(one.issuer())
            );
            return Refused::new(CertificateFault::BadSignature, text);
        }
    }
    None
}

/// The length of an RSA key that is too short.
fn short_key(key: &SubjectPublicKeyInfo<'_>) -> Option<usize> {
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => Some(rsa.key_size()).filter(|bits| *bits < LEAST_BITS),
        Ok(
            PublicKey::EC(_)
            | PublicKey::DSA(_)
            | PublicKey::GostR3410(_)
            | PublicKey::GostR3410_2012(_)
            | PublicKey::Unknown(_),
        )
        | Err(_) => None,
    }
}

/// The name of a signature's algorithm that no verifier accepts any more.
fn weak_signature(certificate: &X509Certificate<'_>) -> Option<&'static str> {
    match certificate.signature_algorithm.algorithm.to_id_string().as_str() {
        "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" | "1.2.840.10040.4.3" | "1.3.14.3.2.29" => {
            Some("SHA-1, which is no longer accepted")
        }
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.2" => Some("MD5 or older, which is no longer accepted"),
        _ => None,
    }
}

fn distinguished(name: &X509Name<'_>) -> String {
    shown(&name.to_string())
}

fn shown(text: &str) -> String {
    let end = text.char_indices().nth(NAME).map_or(text.len(), |(end, _)| end);
    Escaped(text.get(..end).unwrap_or_default().as_bytes()).to_string()
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

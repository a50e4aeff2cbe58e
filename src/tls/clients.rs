//! Certificates of clients: which are accepted in the handshake, and once more at each login.
//!
//! A resumed session brings the certificate of an earlier handshake (RFC 8446 section 2.2), and a connection may be older
//! than a revocation list. So what a login relies on is verified again by the rules in force: chain, dates, revocation
//! lists. [`VerifiedCertificate`] is built here and nowhere else. RFC 5280 (certificates and revocation lists).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier};
use rustls::{CertificateError, Error, RootCertStore};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use super::pem::{self, PemError, PemFault};
use super::trusted::Purpose;
use super::{TlsError, TlsProblem, certificate, provider};
use crate::base::credential::CertificateDigest;
use crate::config::{ClientAuth, ClientCertificates, Group};
use crate::telemetry::log::Bounded;

/// How many of its names are read of a certificate.
const NAMES: usize = 16;

/// The rules for certificates of clients, and what they are made from.
#[derive(Debug, Clone)]
pub(super) struct ClientRules {
    /// Verifies them.
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    /// The authorities, if certificates are requested.
    pub(super) roots: Option<Arc<RootCertStore>>,
    /// When the first of the revocation lists becomes invalid, Unix time.
    pub(super) lists_end: Option<i64>,
}

impl ClientRules {
    /// Reads the files that the settings name; `key` is the config key of the section that names them.
    ///
    /// # Errors
    /// The first mistake.
    pub(super) fn read(clients: &ClientCertificates, groups: &[Group], key: &str) -> Result<Self, TlsProblem> {
        let key = |name: &str| format!("{key}.{name}");
        let Some(path) = clients.ca.as_ref().filter(|_| clients.auth != ClientAuth::Off) else {
            return match clients.auth {
                ClientAuth::Required => Err(TlsProblem::new(key("client_auth"), TlsError::RequiredWithoutAuthority)),
                ClientAuth::Off | ClientAuth::Optional => {
                    Ok(Self { verifier: WebPkiClientVerifier::no_client_auth(), roots: None, lists_end: None })
                }
            };
        };
        let roots = certificate::load_roots(path, Purpose::Clients);
        let roots = Arc::new(roots.map_err(|error| TlsProblem::new(key("client_ca"), error))?);
        let lists = clients.crl.as_deref().map(read_lists).transpose();
        let (lists, lists_end) = lists.map_err(|error| TlsProblem::new(key("crl"), error))?.unwrap_or_default();
        let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider(groups, None))
            .with_crls(lists)
            // As OpenSSL does: a list that is no longer renewed hides what was revoked since.
            .enforce_revocation_expiration();
        if clients.auth == ClientAuth::Optional {
            verifier = verifier.allow_unauthenticated();
        }
        let verifier = verifier.build().map_err(|source| {
            let is_about_lists = matches!(source, VerifierBuilderError::InvalidCrl(_));
            let name = if is_about_lists { "crl" } else { "client_ca" };
            TlsProblem::new(key(name), TlsError::ClientVerifier { source })
        })?;
        Ok(Self { verifier, roots: Some(roots), lists_end })
    }

    /// Verifies what a client has shown; `None` if it has shown none.
    pub(super) fn verify(&self, chain: &ClientChain) -> Option<Result<VerifiedCertificate, ClientFault>> {
        let (own, intermediates) = chain.0.split_first()?;
        if self.roots.is_none() {
            return Some(Err(ClientFault::Untrusted));
        }
        let verified = self.verifier.verify_client_cert(own, intermediates, UnixTime::now());
        Some(verified.map_err(|error| ClientFault::of(&error)).map(|_| VerifiedCertificate::read(own)))
    }
}

/// The lists of a file, in PEM or one in DER, and when the first of them becomes invalid.
type Lists = (Vec<CertificateRevocationListDer<'static>>, Option<i64>);

fn read_lists(path: &Path) -> Result<Lists, TlsError> {
    let bytes = certificate::read(path)?;
    let broken = |PemError { line, fault }| TlsError::BrokenPem { path: path.to_owned(), line, fault };
    let mut lists: Vec<CertificateRevocationListDer<'static>> = Vec::new();
    // A SEQUENCE, which no text begins with.
    if bytes.first() == Some(&0x30) {
        lists.push(bytes.to_vec().into());
    } else {
        for mut block in pem::blocks(&bytes).map_err(broken)? {
            if block.label != "X509 CRL" {
                let label = block.label.to_owned();
                let fault = PemFault::Foreign { label, wanted: "revocation list", advice: ": leave it out" };
                return Err(broken(fault.at(block.line)));
            }
            lists.push(std::mem::take(&mut *block.content).into());
        }
    }
    if lists.is_empty() {
        return Err(TlsError::NoRevocationList { path: path.to_owned() });
    }
    let end = |list: &CertificateRevocationListDer<'_>| {
        let (_, list) = CertificateRevocationList::from_der(list).ok()?;
        Some(list.next_update()?.timestamp())
    };
    let end = lists.iter().filter_map(end).min();
    Ok((lists, end))
}

/// The certificates that a client has shown in a handshake and whose key it has, its own first. It is the evidence of no
/// authority: that is verified whenever it counts.
#[derive(Debug, Clone)]
pub(crate) struct ClientChain(pub(super) Vec<CertificateDer<'static>>);

/// Why the certificate of a client is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientFault {
    /// Its validity has ended, or has not begun.
    Expired,
    /// It is on a revocation list.
    Revoked,
    /// It is not from the authority of the listener, or must not be used so.
    Untrusted,
    /// Whether it is revoked is unknown: no list is from its authority, or the list is no longer valid.
    RevocationUnknown,
}

impl ClientFault {
    /// The reason, for the log.
    pub(crate) const fn describe(self) -> &'static str {
        match self {
            Self::Expired => "it has expired, or is not valid yet",
            Self::Revoked => "it is revoked",
            Self::Untrusted => "it is not from the CA of this listener",
            Self::RevocationUnknown => "no valid revocation list is from its CA",
        }
    }

    fn of(error: &Error) -> Self {
        let is = |found: bool, fault| found.then_some(fault);
        let expired = matches!(
            error,
            Error::InvalidCertificate(
                CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. }
            )
        );
        let revoked = matches!(error, Error::InvalidCertificate(CertificateError::Revoked));
        let unknown = matches!(
            error,
            Error::InvalidCertificate(
                CertificateError::UnknownRevocationStatus
                    | CertificateError::ExpiredRevocationList
                    | CertificateError::ExpiredRevocationListContext { .. }
            ) | Error::InvalidCertRevocationList(_)
        );
        is(expired, Self::Expired)
            .or(is(revoked, Self::Revoked))
            .or(is(unknown, Self::RevocationUnknown))
            .unwrap_or(Self::Untrusted)
    }
}

/// A certificate that a client has shown, whose key it has, and that was verified just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VerifiedCertificate {
    /// The certificate.
    pub(crate) digest: CertificateDigest,
    /// Its subject, as written in it.
    pub(crate) subject: String,
    /// The mail addresses of its subjectAltName, each once.
    pub(crate) addresses: Vec<String>,
    /// The names of its subject that may be a login name: mail address, user id, common name.
    pub(crate) names: Vec<String>,
}

impl VerifiedCertificate {
    fn read(der: &CertificateDer<'_>) -> Self {
        let digest = CertificateDigest::of(der);
        let Ok((_, parsed)) = X509Certificate::from_der(der) else {
            return Self { digest, subject: String::new(), addresses: Vec::new(), names: Vec::new() };
        };
        let mut addresses: Vec<String> = Vec::new();
        let alternative = parsed.subject_alternative_name().ok().flatten();
        for name in alternative.iter().flat_map(|extension| &extension.value.general_names) {
            if let GeneralName::RFC822Name(address) = name
                && !addresses.iter().any(|known| known.eq_ignore_ascii_case(address))
                && addresses.len() < NAMES
            {
                addresses.push((*address).to_owned());
            }
        }
        let subject = parsed.subject();
        let user_ids = subject.iter_attributes().filter(|one| one.attr_type().to_id_string() == USER_ID);
        let names = subject.iter_email().chain(user_ids).chain(subject.iter_common_name());
        let names = names.filter_map(|one| one.as_str().ok()).take(NAMES).map(str::to_owned).collect();
        Self { digest, subject: subject.to_string(), addresses, names }
    }
}

impl fmt::Display for VerifiedCertificate {
    /// The subject is the client's text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "certificate {}, SHA-256 {}", Bounded(self.subject.as_bytes()), self.digest)
    }
}

/// The attribute type `uid` (RFC 4519 section 2.39).
const USER_ID: &str = "0.9.2342.19200300.100.1.1";

/// A file of revocation lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RevocationLists {
    /// The file.
    pub(crate) path: PathBuf,
    /// When the first list of it becomes invalid, Unix time.
    pub(crate) end: i64,
}

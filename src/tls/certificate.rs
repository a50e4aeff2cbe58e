//! Certificates and keys from PEM files: read, parsed and matched.
//!
//! What a certificate says (names, end, public key) is read with x509-parser, which takes the old
//! forms that webpki refuses (X.509 v1, a CA as a leaf); nothing here decides about trust.
//! Files are read synchronously: at the start, by `usher check`, and on a reload in a blocking task.
//! RFC 7468 (PEM), RFC 5280 (X.509), RFC 6125 section 6.4 (names).

use std::fs::Metadata;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use rustls::sign::{CertifiedKey, SigningKey};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use zeroize::Zeroizing;

use super::{TlsError, TlsProblem};
use crate::base::sys;
use crate::base::sys::secret_files::exposure;
use crate::config::CertificateFiles;

/// The largest certificate, key or CA file that is read, in bytes. A system's whole bundle has 0.3 MB.
pub(crate) const FILE_LIMIT: u64 = 4 << 20;

/// The content of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateInfo {
    /// The DNS names of its subjectAltName, lower case; a wildcard as `*.example.com`.
    pub names: Vec<String>,
    /// The last second of its validity, Unix time.
    pub not_after: i64,
    /// Who issued it: a DN as written in the certificate.
    pub issuer: String,
    /// Its SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
}

impl CertificateInfo {
    /// Reads a certificate.
    ///
    /// # Errors
    /// The parser's message, if it is invalid.
    pub(crate) fn read(der: &[u8]) -> Result<Self, String> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        if !rest.is_empty() {
            return Err("trailing data after the certificate".to_owned());
        }
        // A subjectAltName that cannot be read names nothing: the certificate can still be the default.
        let names = certificate
            .subject_alternative_name()
            .ok()
            .flatten()
            .map_or_else(Vec::new, |extension| extension.value.general_names.iter().filter_map(dns_name).collect());
        Ok(Self {
            names,
            not_after: certificate.validity().not_after.timestamp(),
            issuer: certificate.issuer().to_string(),
            spki: certificate.public_key().raw.to_vec(),
        })
    }

    /// The SHA-256 of the public key info: what `pin_sha256` compares, in base64.
    #[must_use]
    pub(crate) fn spki_sha256(&self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, &self.spki).as_ref());
        hash
    }
}

fn dns_name(name: &GeneralName<'_>) -> Option<String> {
    // Clients send no address as SNI (RFC 6066 section 3); other kinds name no server.
    let GeneralName::DNSName(name) = name else { return None };
    Some(name.trim_end_matches('.').to_ascii_lowercase())
}

/// A certificate chain with its key, ready to be presented to a peer.
#[derive(Debug, Clone)]
pub(crate) struct LoadedCertificate {
    /// What rustls presents.
    pub certified: Arc<CertifiedKey>,
    /// What the first certificate says.
    pub info: CertificateInfo,
}

/// Loads a chain and its key; `key` is the config key of the pair.
///
/// # Errors
/// Every mistake in either file, under `key.chain` and `key.key`.
pub(crate) fn load(files: &CertificateFiles, key: &str) -> Result<LoadedCertificate, Vec<TlsProblem>> {
    let chain = read_chain(&files.chain).map_err(|error| TlsProblem::new(format!("{key}.chain"), error));
    let private = read_key(&files.key).map_err(|error| TlsProblem::new(format!("{key}.key"), error));
    let ((chain, facts), private) = match (chain, private) {
        (Ok(chain), Ok(private)) => (chain, private),
        (chain, private) => return Err(chain.err().into_iter().chain(private.err()).collect()),
    };
    // rustls compares by webpki, which cannot read every old certificate: so by the bytes.
    let matches = private.public_key().is_none_or(|public| public == SubjectPublicKeyInfoDer::from(&*facts.spki));
    if !matches {
        return Err(vec![TlsProblem::new(format!("{key}.key"), TlsError::KeyMismatch { chain: files.chain.clone() })]);
    }
    Ok(LoadedCertificate { certified: Arc::new(CertifiedKey::new(chain, private)), info: facts })
}

/// Reads a file of authorities. Every certificate in it must be usable: one that is silently skipped would be
/// missed only when its server is needed.
///
/// # Errors
/// Why it cannot be used.
pub(crate) fn load_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in read_certificates(path)?.into_iter().enumerate() {
        let position = index + 1;
        roots.add(certificate).map_err(|source| TlsError::UnusableAuthority {
            path: path.to_owned(),
            position,
            source,
        })?;
    }
    Ok(roots)
}

fn read_chain(path: &Path) -> Result<(Vec<CertificateDer<'static>>, CertificateInfo), TlsError> {
    let chain = read_certificates(path)?;
    let mut first = None;
    for (index, certificate) in chain.iter().enumerate() {
        let facts = CertificateInfo::read(certificate).map_err(|reason| TlsError::BrokenCertificate {
            path: path.to_owned(),
            position: index + 1,
            reason,
        })?;
        first.get_or_insert(facts);
    }
    let facts = first.ok_or_else(|| TlsError::NoCertificate { path: path.to_owned(), hint: "" })?;
    Ok((chain, facts))
}

/// Every certificate of a PEM file, at least one.
fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let certificates = certificates.map_err(|error| broken_pem(path, &error))?;
    if certificates.is_empty() {
        let hint = if CertificateInfo::read(&bytes).is_ok() {
            "; it is DER: convert it with `openssl x509 -inform der -in FILE -out NEW`"
        } else if contains(&bytes, b"PRIVATE KEY-----") {
            "; it holds a private key: are chain and key swapped?"
        } else {
            ""
        };
        return Err(TlsError::NoCertificate { path: path.to_owned(), hint });
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<Arc<dyn SigningKey>, TlsError> {
    let bytes = read_secret(path)?;
    // PKCS#8 says so in its label, the older forms in a header (RFC 1421 section 4.6.1.1).
    if contains(&bytes, b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || contains(&bytes, b"Proc-Type: 4,ENCRYPTED") {
        return Err(TlsError::EncryptedKey { path: path.to_owned() });
    }
    let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
        let none = matches!(error, pem::Error::NoItemsFound);
        if none { TlsError::NoKey { path: path.to_owned() } } else { broken_pem(path, &error) }
    })?;
    let unusable = |source| TlsError::UnusableKey { path: path.to_owned(), source };
    default_provider().key_provider.load_private_key(key).map_err(unusable)
}

fn broken_pem(path: &Path, error: &pem::Error) -> TlsError {
    TlsError::BrokenPem { path: path.to_owned(), reason: error.to_string() }
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

/// A whole file, wiped after use because it may hold a key.
///
/// # Errors
/// It cannot be read, or is larger than [`FILE_LIMIT`].
pub(crate) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    read_if(path, |_| Ok(()))
}

/// A key's file, which only usher may read.
pub(super) fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    read_if(path, |file| match exposure(path, file) {
        Some(exposure) if !exposure.is_harmless() => Err(TlsError::Exposed(exposure)),
        Some(_) | None => Ok(()),
    })
}

fn read_if(path: &Path, fits: impl Fn(&Metadata) -> Result<(), TlsError>) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let unreadable = |source: io::Error| TlsError::Unreadable { path: path.to_owned(), source };
    let (file, metadata) = sys::open_regular(path).map_err(unreadable)?;
    fits(&metadata)?;
    if metadata.len() > FILE_LIMIT {
        return Err(TlsError::TooLarge { path: path.to_owned() });
    }
    // Room for the whole file, so that no growth leaves a part of a key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default() + 1));
    file.take(FILE_LIMIT).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

//! Certificates and keys from PEM files: read, parsed and matched.
//!
//! What a certificate says (names, end, public key) is read with x509-parser, which takes the old
//! forms that webpki refuses (X.509 v1, a CA as a leaf); nothing here decides about trust.
//! Files are read synchronously: at the start, by `usher check`, and on a reload in a blocking task.
//! RFC 7468 (PEM, by `tls/pem`), RFC 5280 (X.509), RFC 6125 section 6.4 (names).

use std::fs::Metadata;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use rustls::sign::{CertifiedKey, SigningKey};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use zeroize::Zeroizing;

use super::pem::{self, PemError, PemFault};
use super::trusted::{self, Purpose};
use super::{TlsError, TlsProblem};
use crate::base::credential::CertificateDigest;
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
pub(crate) fn load_roots(path: &Path, purpose: Purpose) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for (index, PemCertificate { der, trust, line }) in read_certificates(path)?.into_iter().enumerate() {
        let position = index + 1;
        let unusable = |reason| TlsError::UnusableAuthority { path: path.to_owned(), position, line, reason };
        if !trusted::is_trusted(&trust, purpose) {
            let purpose = match purpose {
                Purpose::Servers => "servers (serverAuth)",
                Purpose::Clients => "clients (clientAuth)",
            };
            let reason = format!("its trust settings, which `openssl x509 -trustout` wrote, exclude {purpose}");
            return Err(unusable(reason));
        }
        let reason = CertificateInfo::read(&der).err();
        roots.add(der).map_err(|_| unusable(reason.unwrap_or_else(|| "it is malformed".to_owned())))?;
    }
    Ok(roots)
}

/// The first certificate of a file.
///
/// # Errors
/// Why the file cannot be read.
pub(crate) fn first(path: &Path) -> Result<CertificateDigest, TlsError> {
    let first = read_certificates(path)?.into_iter().next();
    let first = first.ok_or_else(|| TlsError::NoCertificate { path: path.to_owned(), hint: "" })?;
    Ok(CertificateDigest::of(&first.der))
}

/// The certificates of a system's bundle that may vouch for this purpose.
///
/// # Errors
/// Why the file cannot be read.
pub(super) fn authorities(path: &Path, purpose: Purpose) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = read_certificates(path)?.into_iter();
    Ok(all.filter(|one| trusted::is_trusted(&one.trust, purpose)).map(|one| one.der).collect())
}

fn read_chain(path: &Path) -> Result<(Vec<CertificateDer<'static>>, CertificateInfo), TlsError> {
    let (mut chain, mut first) = (Vec::new(), None);
    for (index, PemCertificate { der, line, .. }) in read_certificates(path)?.into_iter().enumerate() {
        let facts = CertificateInfo::read(&der).map_err(|reason| TlsError::BrokenCertificate {
            path: path.to_owned(),
            position: index + 1,
            line,
            reason,
        })?;
        first.get_or_insert(facts);
        chain.push(der);
    }
    let facts = first.ok_or_else(|| TlsError::NoCertificate { path: path.to_owned(), hint: "" })?;
    Ok((chain, facts))
}

/// A certificate of a PEM file.
struct PemCertificate {
    der: CertificateDer<'static>,
    /// What follows it in a TRUSTED CERTIFICATE: OpenSSL's trust settings.
    trust: Vec<u8>,
    /// The line that it begins in.
    line: usize,
}

/// Every certificate of a PEM file, at least one. Keys and parameters may stand beside them, as where one file
/// is chain and key; of anything else it would be unknown what was left out.
fn read_certificates(path: &Path) -> Result<Vec<PemCertificate>, TlsError> {
    let bytes = read(path)?;
    let broken = |PemError { line, fault }| TlsError::BrokenPem { path: path.to_owned(), line, fault };
    let mut certificates = Vec::new();
    let blocks = pem::blocks(&bytes).map_err(broken)?;
    let alone = blocks.len() == 1;
    for mut block in blocks {
        let line = block.line;
        match block.label {
            "CERTIFICATE" | "X509 CERTIFICATE" => {
                let der = std::mem::take(&mut *block.content).into();
                certificates.push(PemCertificate { der, trust: Vec::new(), line });
            }
            "TRUSTED CERTIFICATE" => {
                let length = trusted::length(&block.content);
                let (der, trust) = block.content.split_at(length);
                certificates.push(PemCertificate { der: der.to_vec().into(), trust: trust.to_vec(), line });
            }
            label if PARAMETERS.contains(&label) || label.ends_with("PRIVATE KEY") => {}
            label => {
                let advice = certificate_advice(label, alone);
                let fault = PemFault::Foreign { label: label.to_owned(), wanted: "certificate", advice };
                return Err(broken(fault.at(line)));
            }
        }
    }
    if certificates.is_empty() {
        let hint = if contains(&bytes, b"PRIVATE KEY-----") {
            "; it holds a private key: are chain and key swapped?"
        } else {
            binary_certificate(&bytes)
        };
        return Err(TlsError::NoCertificate { path: path.to_owned(), hint });
    }
    Ok(certificates)
}

/// What `openssl ecparam` and `dhparam` write before a key or beside it.
const PARAMETERS: [&str; 4] = ["EC PARAMETERS", "DH PARAMETERS", "X9.42 DH PARAMETERS", "DSA PARAMETERS"];

/// What to do about a block that is no certificate in a file of certificates, alone or beside others.
fn certificate_advice(label: &str, alone: bool) -> &'static str {
    match label {
        "PKCS7" | "PKCS #7 SIGNED DATA" if alone => {
            ", but may hold some: write them with `openssl pkcs7 -print_certs -in FILE -out NEW`"
        }
        "PKCS7" => {
            ", but may hold some: write them with `sed -n '/BEGIN PKCS7/,/END PKCS7/p' FILE | openssl pkcs7 \
             -print_certs -out NEW` and put them in its place"
        }
        "CMS" => {
            ", but may hold some: write them with `sed 's/ CMS-/ PKCS7-/' FILE | openssl pkcs7 -print_certs -out NEW`"
        }
        "X509 CRL" => {
            ", and revocation lists are not checked: leave it out with `openssl crl2pkcs7 -nocrl -certfile FILE | \
             openssl pkcs7 -print_certs -out NEW`"
        }
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => ": name the certificate that the authority has issued",
        _ => ": leave it out with `openssl crl2pkcs7 -nocrl -certfile FILE | openssl pkcs7 -print_certs -out NEW`",
    }
}

/// What a file without PEM may be, and the command that converts it.
fn binary_certificate(bytes: &[u8]) -> &'static str {
    match Binary::of(bytes) {
        Some(Binary::Pkcs12) => {
            "; it is PKCS #12: write the certificates with `openssl pkcs12 -nokeys -in FILE -out NEW`"
        }
        Some(Binary::Pkcs7) => {
            "; it is PKCS #7 in DER: convert it with `openssl pkcs7 -inform der -print_certs -in FILE -out NEW`"
        }
        Some(Binary::Other) if CertificateInfo::read(bytes).is_ok() => {
            "; it is DER: convert it with `openssl x509 -inform der -in FILE -out NEW`"
        }
        Some(Binary::Other) | None => "",
    }
}

/// Formats that are no text, by their first bytes.
enum Binary {
    Pkcs12,
    Pkcs7,
    /// Another in DER.
    Other,
}

impl Binary {
    fn of(bytes: &[u8]) -> Option<Self> {
        // OID 1.2.840.113549.1.7.2, signedData.
        const SIGNED_DATA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02";
        let content = match bytes {
            [0x30, 0x82, _, _, content @ ..] | [0x30, 0x81, _, content @ ..] | [0x30, _, content @ ..] => content,
            _ => return None,
        };
        // A PKCS #12 begins with its version, 3, and a SEQUENCE behind it.
        Some(if content.starts_with(b"\x02\x01\x03\x30") {
            Self::Pkcs12
        } else if content.starts_with(SIGNED_DATA) {
            Self::Pkcs7
        } else {
            Self::Other
        })
    }
}

fn read_key(path: &Path) -> Result<Arc<dyn SigningKey>, TlsError> {
    let bytes = read_secret(path)?;
    let broken = |PemError { line, fault }| TlsError::BrokenPem { path: path.to_owned(), line, fault };
    let mut found: Option<(usize, PrivateKeyDer<'static>)> = None;
    for mut block in pem::blocks(&bytes).map_err(broken)? {
        let line = block.line;
        if block.encrypted || block.label == "ENCRYPTED PRIVATE KEY" {
            return Err(TlsError::EncryptedKey { path: path.to_owned(), line });
        }
        let mut content = || std::mem::take(&mut *block.content);
        let key = match block.label {
            "PRIVATE KEY" => PrivateKeyDer::Pkcs8(content().into()),
            "RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(content().into()),
            "EC PRIVATE KEY" => PrivateKeyDer::Sec1(content().into()),
            label if PARAMETERS.contains(&label) || label.ends_with("CERTIFICATE") => continue,
            label => {
                let advice = key_advice(label);
                let fault = PemFault::Foreign { label: label.to_owned(), wanted: "private key for TLS", advice };
                return Err(broken(fault.at(line)));
            }
        };
        if let Some((first, _)) = &found {
            return Err(TlsError::SeveralKeys { path: path.to_owned(), first: *first, second: line });
        }
        found = Some((line, key));
    }
    let Some((_, key)) = found else {
        let hint = match Binary::of(&bytes) {
            Some(Binary::Pkcs12) => {
                "; it is PKCS #12: write the key with `openssl pkcs12 -nocerts -nodes -in FILE -out NEW`"
            }
            Some(Binary::Pkcs7 | Binary::Other) => {
                "; if it is DER, convert it with `openssl pkey -inform der -in FILE -out NEW`"
            }
            None => "",
        };
        return Err(TlsError::NoKey { path: path.to_owned(), hint });
    };
    let unusable = |source| TlsError::UnusableKey { path: path.to_owned(), source };
    default_provider().key_provider.load_private_key(key).map_err(unusable)
}

/// What to do about a block that is no key in a key's file.
fn key_advice(label: &str) -> &'static str {
    match label {
        "OPENSSH PRIVATE KEY" => ": convert a copy of it with `ssh-keygen -p -N '' -m PKCS8 -f COPY`",
        "PUBLIC KEY" | "RSA PUBLIC KEY" => ": name the private key that it belongs to",
        "DSA PRIVATE KEY" => ": RSA from 2048 bits, P-256, P-384 and Ed25519 are",
        _ => ": write the key alone with `openssl pkey -in FILE -out NEW`",
    }
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

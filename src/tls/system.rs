//! The authorities of the system, for servers whose `ca` is not configured.

use std::collections::HashSet;
use std::env;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls_native_certs::CertificateResult;

use super::TlsError;
use super::certificate;
use super::trusted::Purpose;

/// The file of the system's authorities, if there is one: where `rustls_native_certs` reads it, too.
pub(super) fn bundle() -> Option<PathBuf> {
    let file = env::var_os("SSL_CERT_FILE");
    let folders = env::var_os("SSL_CERT_DIR").filter(|folders| !folders.is_empty());
    match (file, folders) {
        (Some(file), _) => Some(file.into()),
        // These are meant to be all.
        (None, Some(_)) => None,
        (None, None) => openssl_probe::probe().cert_file,
    }
}

/// The system's roots: those that were found, and those that only usher's own reader finds in the bundle, for
/// example behind a byte order mark. A system has dozens; that one of them cannot be read is worth a warning
/// and no outage.
pub(super) fn roots(found: CertificateResult, bundle: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut reasons: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
    let mut certificates: Vec<CertificateDer<'static>> = found.certs;
    match bundle.map(|path| certificate::authorities(path, Purpose::Servers)) {
        Some(Ok(more)) => {
            let known: HashSet<CertificateDer<'static>> = certificates.iter().cloned().collect();
            certificates.extend(more.into_iter().filter(|one| !known.contains(one)));
        }
        Some(Err(error)) => reasons.push(error.to_string()),
        None => {}
    }
    let mut roots = RootCertStore::empty();
    let (_, ignored) = roots.add_parsable_certificates(certificates);
    let first = reasons.into_iter().next();
    if roots.is_empty() {
        return Err(TlsError::NoSystemRoots { reason: first.map(|error| format!(" ({error})")).unwrap_or_default() });
    }
    if ignored > 0 || first.is_some() {
        let reason = first.unwrap_or_default();
        tracing::warn!(usable = roots.len(), ignored, reason, "some of the system's root certificates cannot be used");
    }
    Ok(roots)
}

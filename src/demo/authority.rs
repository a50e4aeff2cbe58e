//! The demo's own certificate authority: made at the start, gone at the end.
//!
//! Keys are made fresh for every run and never leave the demo's folder, which only its owner may
//! enter.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// A certificate authority that only the demo trusts.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A server certificate with its key.
pub(crate) struct Certificate {
    /// The certificate.
    pub chain: CertificateDer<'static>,
    /// Its key, PKCS #8.
    pub key: PrivatePkcs8KeyDer<'static>,
    /// The certificate for a file.
    pub chain_pem: String,
    /// The key for a file.
    pub key_pem: String,
}

impl Authority {
    /// Makes a new authority.
    ///
    /// # Errors
    /// What the cryptographic library says; a machine without randomness, in practice.
    pub(crate) fn new() -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "usher demo CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// The authority's certificate, for `--cacert`.
    #[must_use]
    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Certifies a server under these host names and IP addresses.
    ///
    /// # Errors
    /// A name that cannot stand in a certificate.
    pub(crate) fn certify(&self, names: &[&str]) -> Result<Certificate, rcgen::Error> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names.clone())?;
        params.distinguished_name.push(DnType::CommonName, names.first().map_or("usher demo", String::as_str));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Certificate {
            chain: certificate.der().clone(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
            chain_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// TLS for a client that trusts this authority and no other.
    ///
    /// # Errors
    /// What rustls says about the authority's certificate.
    pub(crate) fn client(&self) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone())?;
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(config))
    }
}

impl Certificate {
    /// TLS for a server with this certificate.
    ///
    /// # Errors
    /// What rustls says about the certificate and its key.
    pub(crate) fn server(&self) -> Result<Arc<ServerConfig>, rustls::Error> {
        let key = PrivateKeyDer::Pkcs8(self.key.clone_key());
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![self.chain.clone()], key)?;
        Ok(Arc::new(config))
    }
}

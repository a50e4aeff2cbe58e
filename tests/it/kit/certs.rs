//! Certificates: a CA that all peers trust, one that none trusts, and the certificates they sign.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A folder with certificates in PEM files.
pub(crate) struct Certificates {
    folder: PathBuf,
    ca: CertifiedIssuer<'static, KeyPair>,
    wrong_ca: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key in files.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
    /// Base64 of the SHA-256 of the public key info, as in `pin_sha256`.
    pub(crate) pin: String,
}

/// The properties of a leaf certificate.
#[derive(Clone, Copy)]
pub(crate) struct Leaf<'a> {
    pub(crate) names: &'a [&'a str],
    pub(crate) client: bool,
    pub(crate) rsa: bool,
    pub(crate) expired: bool,
    /// The validity in days, plus a half.
    pub(crate) days: Option<u64>,
    pub(crate) wrong_ca: bool,
}

impl<'a> Leaf<'a> {
    /// A server's certificate for these names.
    pub(crate) const fn server(names: &'a [&'a str]) -> Self {
        Self { names, client: false, rsa: false, expired: false, days: None, wrong_ca: false }
    }
}

impl Certificates {
    /// Makes the CAs and the leaves that the shared servers use.
    pub(crate) fn new(folder: &Path) -> Self {
        let certificates =
            Self { folder: folder.into(), ca: authority("usher test CA"), wrong_ca: authority("usher wrong CA") };
        std::fs::write(certificates.ca(), certificates.ca.pem()).unwrap();
        std::fs::write(certificates.wrong_ca(), certificates.wrong_ca.pem()).unwrap();
        certificates
    }

    /// The CA's certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A CA that signed no default server certificate.
    pub(crate) fn wrong_ca(&self) -> PathBuf {
        self.folder.join("wrong-ca.pem")
    }

    /// Makes a certificate; the file is named after the first argument.
    pub(crate) fn leaf(&self, file: &str, leaf: Leaf<'_>) -> Pair {
        let names: Vec<String> = leaf.names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, leaf.names[0]);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(if leaf.expired { 2021 } else { 2049 }, 1, 1);
        if let Some(days) = leaf.days {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            params.not_after =
                date_time_ymd(1970, 1, 1) + now + Duration::from_secs(days * 24 * 60 * 60 + 12 * 60 * 60);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![match leaf.client {
            true => ExtendedKeyUsagePurpose::ClientAuth,
            false => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        let key = if leaf.rsa { KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256) } else { KeyPair::generate() }.unwrap();
        let issuer = if leaf.wrong_ca { &self.wrong_ca } else { &self.ca };
        let certificate = params.signed_by(&key, issuer).unwrap();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &key.subject_public_key_info());
        let pair = Pair {
            chain: self.folder.join(format!("{file}.pem")),
            key: self.folder.join(format!("{file}.key")),
            pin: base64::engine::general_purpose::STANDARD.encode(digest),
        };
        std::fs::write(&pair.chain, certificate.pem()).unwrap();
        super::process::write_secret(&pair.key, key.serialize_pem());
        pair
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2049, 1, 1);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

impl Pair {
    /// The certificate chain for rustls.
    pub(crate) fn certificates(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(&self.chain).unwrap().map(Result::unwrap).collect()
    }

    /// The private key for rustls.
    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(&self.key).unwrap()
    }

    /// As YAML's `{chain, key}`.
    pub(crate) fn yaml(&self) -> serde_json::Value {
        serde_json::json!({"chain": self.chain, "key": self.key})
    }

    /// A server side for scripted peers.
    pub(crate) fn server_config(&self) -> Arc<rustls::ServerConfig> {
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.certificates(), self.private_key())
            .unwrap();
        Arc::new(config)
    }
}

/// The crypto provider of every TLS peer in the kit.
pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

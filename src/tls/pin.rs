//! Verification by public key: for servers whose certificate no verifier accepts.
//!
//! Old mail servers have self-signed certificates that are their own CA, that name the host in the
//! CN alone, or that are X.509 v1. A pin (SHA-256 of the SubjectPublicKeyInfo, RFC 7469 section 2.4)
//! stands in for chain, name and dates. It never stands in for the signature of the handshake: a
//! certificate is public and can be copied, only the signature proves the key.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, PeerMisbehaved, SignatureScheme};

use super::certificate::CertificateInfo;

/// The server's key is not among the configured pins.
#[derive(Debug, thiserror::Error)]
#[error("its public key is not pinned; the presented key is pin_sha256 {presented}")]
pub(crate) struct NotPinned {
    /// The presented key, in the form of the config.
    pub presented: String,
}

/// Accepts exactly the servers that hold a pinned key.
#[derive(Debug)]
pub(super) struct PinVerifier {
    pins: Vec<[u8; 32]>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinVerifier {
    pub(super) fn new(pins: Vec<[u8; 32]>, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { pins, algorithms }
    }
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let presented = facts(end_entity)?.spki_sha256();
        if self.pins.contains(&presented) {
            return Ok(ServerCertVerified::assertion());
        }
        let error = NotPinned { presented: STANDARD.encode(presented) };
        Err(CertificateError::Other(OtherError(Arc::new(error))).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(facts(cert)?.spki);
        let key = webpki::RawPublicKeyEntity::try_from(&spki).map_err(|_| CertificateError::BadEncoding)?;
        // TLS 1.2 does not name the curve with the scheme: several algorithms may fit one scheme.
        let (_, algorithms) = (self.algorithms.mapping.iter())
            .find(|(scheme, _)| *scheme == dss.scheme)
            .ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        let valid = algorithms.iter().any(|one| key.verify_signature(*one, message, dss.signature()).is_ok());
        if valid { Ok(HandshakeSignatureValid::assertion()) } else { Err(CertificateError::BadSignature.into()) }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(facts(cert)?.spki);
        verify_tls13_signature_with_raw_key(message, &spki, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn facts(certificate: &CertificateDer<'_>) -> Result<CertificateInfo, Error> {
    CertificateInfo::read(certificate).map_err(|_| CertificateError::BadEncoding.into())
}

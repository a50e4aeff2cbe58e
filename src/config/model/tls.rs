//! TLS towards clients.

use std::path::PathBuf;
use std::time::Duration;

/// TLS towards clients.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Certificates with their keys; the first is used for no or an unknown SNI.
    pub certificates: Vec<CertificateFiles>,
    /// The lowest TLS version.
    pub min_version: TlsVersion,
    /// Key exchange groups in order of preference, by their IANA names; never empty.
    pub groups: Vec<Group>,
    /// Cipher suites in order of preference by their IANA names, each known to
    /// [`cipher_suite`](super::cipher_suite); never empty; `None`: the library's.
    pub cipher_suites: Option<Vec<String>>,
    /// The CA of client certificates; when set, a certificate that is shown must be from it.
    pub client_ca: Option<PathBuf>,
    /// Whether clients are asked for a certificate.
    pub client_auth: ClientAuth,
    /// The revocation lists of that CA; `None`: revocation is not checked.
    pub crl: Option<PathBuf>,
    /// The keys of tickets that other ushers know as well; `None`: each process makes its own.
    pub ticket_keys_file: Option<PathBuf>,
    /// How often the files that the config names are looked at again.
    pub reload_interval: Duration,
}

impl Tls {
    /// The client certificates of listeners that do not say otherwise.
    #[must_use]
    pub fn clients(&self) -> ClientCertificates {
        ClientCertificates { auth: self.client_auth, ca: self.client_ca.clone(), crl: self.crl.clone() }
    }
}

/// Which certificates clients show at a listener.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientCertificates {
    /// Whether clients are asked for one.
    pub auth: ClientAuth,
    /// The CA that it must come from.
    pub ca: Option<PathBuf>,
    /// The revocation lists of the CA.
    pub crl: Option<PathBuf>,
}

/// Whether clients are asked for a certificate in the TLS handshake; `client_ca` verifies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientAuth {
    /// Not asked for.
    Off,
    /// Asked for; a client without one may go on.
    Optional,
    /// The handshake fails without one.
    Required,
}

/// A certificate chain and its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM: the certificate, then its intermediates.
    pub chain: PathBuf,
    /// PEM: the private key.
    pub key: PathBuf,
}

/// A TLS version usher speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2 (AEAD and ECDHE suites only).
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// A key exchange group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Hybrid post-quantum.
    X25519MlKem768,
    /// Curve25519.
    X25519,
    /// NIST P-256.
    Secp256r1,
    /// NIST P-384.
    Secp384r1,
}

impl Group {
    /// Whether the first message of a client that offers it is too long for one packet: its share has 1,216 bytes.
    #[must_use]
    pub const fn is_long(self) -> bool {
        matches!(self, Self::X25519MlKem768)
    }
}

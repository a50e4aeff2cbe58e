//! TLS on every side of usher: one policy, built from the config's files.
//!
//! [`server`] answers clients ([`clients`] verifies their certificates, `hello` reads their first message, `server_name` hides a name in it that rustls
//! would refuse), [`client`] calls backends and directories, [`pin`] verifies by public key where no chain can
//! be. [`certificate`] reads files (`pem` their form, `trusted` OpenSSL's trust settings, `system` the system's
//! authorities), [`stream`] is the connection itself, `sessions` what is kept of it for the next one,
//! [`tickets`] what clients keep of theirs, [`key_lines`] the secrets of several ushers, [`dial`] connections for libraries, [`reason`] describes why a handshake failed, and `refused` why a
//! certificate was refused. Every configuration names its `CryptoProvider` (aws-lc-rs); the process-wide
//! default is for libraries that ask for it. TLS 1.2 (ECDHE with AEAD only) and 1.3 (RFC 8446, RFC 9325); no
//! renegotiation, no early data.

pub(crate) mod certificate;
pub(crate) mod client;
pub(crate) mod clients;
pub(crate) mod dial;
mod hello;
pub(crate) mod key_lines;
pub(crate) mod pem;
pub(crate) mod pin;
pub(crate) mod reason;
mod refused;
pub(crate) mod server;
pub(crate) mod server_name;
mod sessions;
pub(crate) mod stream;
mod system;
pub(crate) mod tickets;
mod trusted;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::SupportedCipherSuite;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};

use crate::base::sys;
use crate::base::sys::secret_files::Exposure;
use crate::config::{Group, Place, Problem};

pub(crate) use reason::{HandshakeError, HandshakeFailure, describe};
pub(crate) use refused::CertificateFault;

/// The groups usher offers to servers, and takes from clients unless `tls.groups` says otherwise.
pub(crate) const DEFAULT_GROUPS: [Group; 4] =
    [Group::X25519MlKem768, Group::X25519, Group::Secp256r1, Group::Secp384r1];

/// Why TLS cannot be set up as configured. The messages say what to do: they are shown by
/// `usher check`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}; {}", path.display(), sys::unreadable_advice(source))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A key that others can read.
    #[error("{0}")]
    Exposed(Exposure),
    /// No certificate or key file is this large.
    #[error("{} is larger than {} MiB: name a PEM file", path.display(), certificate::FILE_LIMIT >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// No certificate in the file.
    #[error("{} holds no PEM certificate: a line -----BEGIN CERTIFICATE----- must be in it{hint}", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// What it seems to hold instead, or nothing.
        hint: &'static str,
    },
    /// A line of a PEM file is wrong.
    #[error("line {line} of {}: {fault}", path.display())]
    BrokenPem {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        fault: pem::PemFault,
    },
    /// A PEM section holds no X.509 certificate.
    #[error(
        "certificate {position} in {}, on line {line}, cannot be parsed ({reason}): copy the file again in full",
        path.display()
    )]
    BrokenCertificate {
        /// The file.
        path: PathBuf,
        /// Which one, from 1.
        position: usize,
        /// The line that it begins in.
        line: usize,
        /// The parser's message.
        reason: String,
    },
    /// No private key in the file.
    #[error("{} holds no PEM private key: a line such as -----BEGIN PRIVATE KEY----- must be in it{hint}", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// What it seems to hold instead, or nothing.
        hint: &'static str,
    },
    /// More than one private key in the file.
    #[error(
        "{} holds two private keys, on lines {first} and {second}: leave the one that belongs to the certificate",
        path.display()
    )]
    SeveralKeys {
        /// The file.
        path: PathBuf,
        /// The line of the first.
        first: usize,
        /// The line of the second.
        second: usize,
    },
    /// The private key needs a passphrase.
    #[error(
        "the private key in {}, on line {line}, is encrypted and usher starts without a passphrase: \
         write a decrypted copy with `openssl pkey -in FILE -out NEW` and protect it by its mode", path.display()
    )]
    EncryptedKey {
        /// The file.
        path: PathBuf,
        /// The line that it begins in.
        line: usize,
    },
    /// The private key is of a kind that cannot sign here.
    #[error("the private key in {} cannot be used ({source}): RSA from 2048 bits, P-256, P-384 or Ed25519 can", path.display())]
    UnusableKey {
        /// The file.
        path: PathBuf,
        /// The library's reason.
        source: rustls::Error,
    },
    /// The key belongs to another certificate.
    #[error(
        "the private key does not belong to the first certificate in {}: name the key that the certificate was \
         issued for, and put the server's own certificate before its intermediates", chain.display()
    )]
    KeyMismatch {
        /// The chain file.
        chain: PathBuf,
    },
    /// A certificate of a CA file cannot be one.
    #[error("certificate {position} in {}, on line {line}, cannot be used as an authority: {reason}", path.display())]
    UnusableAuthority {
        /// The file.
        path: PathBuf,
        /// Which one, from 1.
        position: usize,
        /// The line that it begins in.
        line: usize,
        /// Why not.
        reason: String,
    },
    /// The system has no roots.
    #[error("the system has no usable root certificates{reason}: install them (ca-certificates) or name a `ca` file")]
    NoSystemRoots {
        /// The first failure, if there was one, with a leading separator.
        reason: String,
    },
    /// A line of a file of secrets is invalid.
    #[error("line {line} of {}: {fault}", path.display())]
    KeyLine {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        fault: key_lines::KeyLineError,
    },
    /// No line in a file of secrets.
    #[error("{} holds no key: write one with `openssl rand -base64 48`", path.display())]
    NoKeyLine {
        /// The file.
        path: PathBuf,
    },
    /// No list in the file of revocation lists.
    #[error("{} holds no revocation list: a line -----BEGIN X509 CRL----- must be in it, or DER", path.display())]
    NoRevocationList {
        /// The file.
        path: PathBuf,
    },
    /// `tls.certificates` is empty.
    #[error("at least one certificate is needed: name its chain and key")]
    NoCertificates,
    /// A suite by a name that usher does not have.
    #[error("unknown cipher suite {name:?}; supported are {known}")]
    UnknownSuite {
        /// As typed.
        name: String,
        /// All names.
        known: String,
    },
    /// No suite works with the versions and certificates.
    #[error(
        "no listed cipher suite works from min_version up ({source}): list one of TLS 1.3 such as TLS_AES_256_GCM_SHA384"
    )]
    NoSuite {
        /// The library's reason.
        source: rustls::Error,
    },
    /// Client certificates are required, but no authority is configured.
    #[error("a client certificate is required but client_ca names no authority to check it against")]
    RequiredWithoutAuthority,
    /// The verifier of client certificates cannot be built.
    #[error("cannot check client certificates: {source}")]
    ClientVerifier {
        /// The library's reason.
        source: rustls::server::VerifierBuilderError,
    },
    /// The TLS versions cannot be set up with the provider.
    #[error("TLS cannot be set up: {source}")]
    Setup {
        /// The library's reason.
        source: rustls::Error,
    },
}

/// A [`TlsError`] and the config key it belongs to.
#[derive(Debug)]
pub(crate) struct TlsProblem {
    /// The key path, such as `tls.certificates[0].key`.
    pub key: String,
    /// What is wrong.
    pub error: TlsError,
}

impl TlsProblem {
    fn new(key: impl Into<String>, error: TlsError) -> Self {
        Self { key: key.into(), error }
    }

    /// The mistake as `usher check` shows it, with file and line.
    #[must_use]
    pub(crate) fn problem(&self, place: &Place) -> Problem {
        place.problem(&self.key, self.error.to_string())
    }
}

/// Makes aws-lc-rs the process-wide default for libraries that look for one (ldap3). usher itself
/// never relies on it. A second call changes nothing.
pub(crate) fn install_default() {
    // An error means that one is already installed, which is equivalent.
    let _ = aws_lc_rs::default_provider().install_default();
}

/// The provider with exactly these groups, and these suites or the usual ones.
fn provider(groups: &[Group], suites: Option<&[SupportedCipherSuite]>) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = groups.iter().copied().map(key_exchange).collect();
    match suites {
        Some(suites) => provider.cipher_suites = suites.to_vec(),
        // AES-128 comes with SHA-256, for which processors have instructions as they have none for the
        // SHA-384 of AES-256, which was 9 % of a login's CPU. It is the suite that all have to know (RFC 8446
        // section 9.1). The order is stable otherwise: TLS 1.3 first.
        None => provider.cipher_suites.sort_by_key(|suite| (suite.tls13().is_none(), usual_place(*suite))),
    }
    Arc::new(provider)
}

/// Where a suite stands among the usual ones of its version.
fn usual_place(suite: SupportedCipherSuite) -> usize {
    let name = suite_name(suite);
    ["AES_128_GCM", "AES_256_GCM", "CHACHA20"].iter().position(|cipher| name.contains(cipher)).unwrap_or(usize::MAX)
}

fn key_exchange(group: Group) -> &'static dyn SupportedKxGroup {
    match group {
        Group::X25519MlKem768 => aws_lc_rs::kx_group::X25519MLKEM768,
        Group::X25519 => aws_lc_rs::kx_group::X25519,
        Group::Secp256r1 => aws_lc_rs::kx_group::SECP256R1,
        Group::Secp384r1 => aws_lc_rs::kx_group::SECP384R1,
    }
}

/// A suite's IANA name: rustls writes `TLS13_` where IANA writes `TLS_`.
fn suite_name(suite: SupportedCipherSuite) -> String {
    format!("{:?}", suite.suite()).replacen("TLS13_", "TLS_", 1)
}

#[cfg(test)]
mod tests;

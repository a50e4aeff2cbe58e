//! TLS towards backends and directories: verified by chain and name, or by a pinned key.
//!
//! There is no way to switch verification off. One configuration serves one group of servers and
//! keeps its sessions for resumption (`tls/sessions`), which halves the cost of the
//! next handshake; early data is never sent, because it can be replayed (RFC 8446 section 8). RFC 9525 (names), RFC 5280 (chains).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WantsClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ConfigBuilder, RootCertStore, version};
use tokio::net::TcpStream;

use super::pin::PinVerifier;
use super::refused::Explaining;
use super::sessions::{ChainMeasuringVerifier, ClientSessions};
use super::stream::Stream;
use super::trusted::Purpose;
use super::{DEFAULT_GROUPS, TlsError, TlsProblem, certificate, provider, system};
use crate::config::{CertificateFiles, Group, Place, Problem};

/// The TLS settings towards a group of servers.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientTls {
    /// The authorities; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// What to show to a server that asks for a certificate.
    pub client_certificate: Option<CertificateFiles>,
    /// SHA-256 of public key infos; if there is one, it replaces chain and name.
    pub pins: Vec<[u8; 32]>,
    /// The ALPN id to offer.
    pub alpn: Option<&'static [u8]>,
    /// The key exchange groups to offer, in order of preference; none: [`DEFAULT_GROUPS`].
    pub groups: Vec<Group>,
    /// The config key that the settings stand under, such as `routing.backends[0]`.
    pub key: String,
}

impl ClientTls {
    /// Reads the files and builds the configuration.
    ///
    /// # Errors
    /// Every mistake in them, under `key.ca`, `key.client_certificate.chain` and so on.
    pub(crate) fn build(&self, place: &Place) -> Result<Arc<ClientConfig>, Vec<Problem>> {
        self.prepare().map_err(|mistakes| mistakes.iter().map(|mistake| mistake.problem(place)).collect())
    }

    /// As [`ClientTls::build`], with the mistakes as they were found.
    ///
    /// # Errors
    /// Every mistake in the settings and the files they name.
    pub(crate) fn prepare(&self) -> Result<Arc<ClientConfig>, Vec<TlsProblem>> {
        let sessions = Arc::new(ClientSessions::default());
        let verified = self.verified(&sessions);
        let certificate_key = format!("{}.client_certificate", self.key);
        let shown =
            self.client_certificate.as_ref().map(|files| certificate::load(files, &certificate_key)).transpose();
        let (builder, shown) = match (verified, shown) {
            (Ok(builder), Ok(shown)) => (builder, shown),
            (verified, shown) => {
                return Err(verified.err().into_iter().chain(shown.err().into_iter().flatten()).collect());
            }
        };
        let mut config = match shown {
            None => builder.with_no_client_auth(),
            Some(loaded) => {
                let one = rustls::sign::SingleCertAndKey::from(loaded.certified);
                builder.with_client_cert_resolver(Arc::new(one))
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|id| id.to_vec()).collect();
        config.resumption = Resumption::store(sessions);
        Ok(Arc::new(config))
    }

    /// Builds the verifier of server certificates.
    fn verified(
        &self,
        sessions: &Arc<ClientSessions>,
    ) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsProblem> {
        let groups = if self.groups.is_empty() { DEFAULT_GROUPS.as_slice() } else { &self.groups };
        let crypto = provider(groups, None);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&crypto))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .map_err(|source| TlsProblem::new(self.key.clone(), TlsError::Setup { source }))?;
        let verifier = self.verifier(crypto)?;
        let noting = ChainMeasuringVerifier { verifier, sessions: Arc::clone(sessions) };
        Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(noting)))
    }

    fn verifier(&self, crypto: Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, TlsProblem> {
        let ca_key = || format!("{}.ca", self.key);
        if !self.pins.is_empty() {
            let verifier = PinVerifier::new(self.pins.clone(), crypto.signature_verification_algorithms);
            let roots = Arc::new(RootCertStore::empty());
            return Ok(Arc::new(Explaining { verifier: Arc::new(verifier), roots }));
        }
        let roots = match &self.ca {
            Some(path) => certificate::load_roots(path, Purpose::Servers),
            None => system::roots(rustls_native_certs::load_native_certs(), system::bundle().as_deref()),
        };
        let roots = Arc::new(roots.map_err(|error| TlsProblem::new(ca_key(), error))?);
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), crypto).build();
        // Fails only without roots or with invalid revocation lists: there are roots and no lists.
        let verifier = verifier.map_err(|error| {
            let source = rustls::Error::General(error.to_string());
            TlsProblem::new(ca_key(), TlsError::Setup { source })
        })?;
        Ok(Arc::new(Explaining { verifier, roots }))
    }
}

/// Does a handshake with the server of this name. The caller sets the deadline for it; dropping
/// the future closes the connection.
///
/// # Errors
/// What went wrong, for [`describe`](super::describe).
pub(crate) async fn connect(
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
    tcp: TcpStream,
) -> io::Result<Stream> {
    let connection = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    Stream::under_tls(tcp, connection.into()).handshake().await
}

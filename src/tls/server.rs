//! TLS towards clients: certificates by SNI, groups and suites in usher's order, one ALPN per protocol.
//!
//! [`ServerTls`] is built from a config snapshot and belongs to it. No session resumes into a policy
//! it was not verified under: a reload builds another with new ticket keys, unless they come from a
//! file, and then they are derived from the policy as well ([`tickets`](super::tickets)). Every
//! protocol has ticket keys and a cache of its own: no ticket crosses an ALPN. So have listeners whose rules
//! for client certificates differ: no certificate that one authority vouches for comes to the listener of another.
//! RFC 6066 section 3 (SNI), RFC 7301 (ALPN), RFC 8446 section 4.2 (extensions), ALPACA (2021).

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use ::aws_lc_rs::digest;
use rustls::crypto::{SupportedKxGroup, aws_lc_rs};
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert, ServerSessionMemoryCache, danger};
use rustls::sign::CertifiedKey;
use rustls::{
    CipherSuite, ProtocolVersion, RootCertStore, ServerConfig, ServerConnection, SignatureAlgorithm, SignatureScheme,
    SupportedCipherSuite, version,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::certificate::{self, LoadedCertificate};
use super::clients::{ClientChain, ClientFault, ClientRules, RevocationLists, VerifiedCertificate};
use super::hello::{self, Failure, Hello};
use super::key_lines::KeyLines;
use super::server_name::{self, RestoringVerifier};
use super::stream::Stream;
use super::tickets::ticketer;
use super::{TlsError, TlsProblem, key_exchange, provider, suite_name};
use crate::config::{self, ClientAuth, ClientCertificates, Group, Listener, Place, Problem, TlsVersion};
use crate::proto::{PROTOCOLS, Protocol};

/// TLS 1.2 sessions kept per protocol for clients without tickets; about 200 bytes each.
const SESSIONS: usize = 2_048;

/// A mail client opens its connections one after the other, so one fresh ticket per handshake is
/// enough for the next; two allow for a pair opened at once.
const TICKETS: usize = 2;

/// A certificate that is shown to clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServedCertificate {
    /// The chain file: the metric label.
    pub chain: PathBuf,
    /// The DNS names in it, lower case.
    pub names: Vec<String>,
    /// The last second of its validity, Unix time.
    pub not_after: i64,
    /// Whether it had expired when it was loaded. It is served nevertheless: some clients continue, and a
    /// missing listener would help none.
    pub expired: bool,
}

/// TLS towards clients under one config snapshot.
#[derive(Debug)]
pub(crate) struct ServerTls {
    served: Vec<ServedCertificate>,
    /// By the rules for client certificates; those of the section `tls` first.
    policies: Vec<Policy>,
}

/// The listeners with the same rules for client certificates.
#[derive(Debug)]
struct Policy {
    clients: ClientCertificates,
    rules: ClientRules,
    by_group: Vec<Template>,
    /// The keys that are shared with other ushers, and the policy that a ticket's client met.
    shared: Option<(Arc<KeyLines>, Vec<u8>)>,
    acceptors: HashMap<&'static str, Arc<Acceptor>>,
}

impl ServerTls {
    /// Reads the files that the settings name and builds everything from them.
    ///
    /// # Errors
    /// Every mistake in them.
    pub(crate) fn build(tls: &config::Tls, listeners: &[Listener], place: &Place) -> Result<Self, Vec<Problem>> {
        let own =
            listeners.iter().enumerate().map(|(index, listener)| (format!("listeners[{index}]"), &listener.clients));
        Self::of_all(tls, own).map_err(|mistakes| mistakes.iter().map(|mistake| mistake.problem(place)).collect())
    }

    /// As [`ServerTls::build`] for listeners without rules of their own, with the mistakes as they were found.
    ///
    /// # Errors
    /// Every mistake in the settings and the files they name.
    #[cfg(test)]
    pub(crate) fn from_settings(tls: &config::Tls) -> Result<Self, Vec<TlsProblem>> {
        Self::of_all(tls, std::iter::empty())
    }

    /// The rules of `tls`, and those of listeners with the section that they are in.
    pub(super) fn of_all<'a>(
        tls: &config::Tls,
        listeners: impl Iterator<Item = (String, &'a ClientCertificates)>,
    ) -> Result<Self, Vec<TlsProblem>> {
        let mut mistakes = Vec::new();
        let loaded = load_all(tls, &mut mistakes);
        let suites = suites(tls, &mut mistakes);
        let mut rules: Vec<(ClientCertificates, Option<ClientRules>)> = Vec::new();
        let listeners = listeners.map(|(section, clients)| (section, clients.clone()));
        for (section, clients) in std::iter::once(("tls".to_owned(), tls.clients())).chain(listeners) {
            if !rules.iter().any(|(known, _)| *known == clients) {
                let read = ClientRules::read(&clients, &tls.groups, &section);
                rules.push((clients, read.map_err(|mistake| mistakes.push(mistake)).ok()));
            }
        }
        let keys = tls.ticket_keys_file.as_deref().map(KeyLines::read).transpose();
        let keys = keys.map_err(|error| mistakes.push(TlsProblem::new("tls.ticket_keys_file", error))).ok();
        let (Some(keys), true) = (keys, mistakes.is_empty()) else {
            return Err(mistakes);
        };
        let keys = keys.map(Arc::new);
        let resolver = Arc::new(BySni::new(&loaded));
        let mut policies = Vec::with_capacity(rules.len());
        for (clients, rules) in rules {
            let Some(rules) = rules else { continue };
            policies.push(Policy::new(tls, (clients, rules), suites.as_deref(), &resolver, keys.as_ref())?);
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let served = std::iter::zip(&tls.certificates, loaded)
            .map(|(files, loaded)| ServedCertificate {
                chain: files.chain.clone(),
                expired: loaded.info.not_after < i64::try_from(now).unwrap_or(i64::MAX),
                names: loaded.info.names,
                not_after: loaded.info.not_after,
            })
            .collect();
        Ok(Self { served, policies })
    }

    /// What answers the clients of a protocol at a listener with these rules; `None` if no listener has them.
    #[must_use]
    pub(crate) fn acceptor(&self, protocol: &Protocol, clients: &ClientCertificates) -> Option<Arc<Acceptor>> {
        self.policies.iter().find(|policy| policy.clients == *clients).map(|policy| policy.acceptor(protocol))
    }

    /// What answers the clients of a protocol at listeners without rules of their own.
    #[cfg(test)]
    pub(crate) fn common_acceptor(&self, protocol: &Protocol) -> Arc<Acceptor> {
        self.policies.first().map(|policy| policy.acceptor(protocol)).expect("the rules of the section `tls`")
    }

    /// The files of revocation lists, and when they become invalid.
    pub(crate) fn revocation_lists(&self) -> impl Iterator<Item = RevocationLists> {
        self.policies.iter().filter_map(|policy| {
            Some(RevocationLists { path: policy.clients.crl.clone()?, end: policy.rules.lists_end? })
        })
    }

    /// The certificates, in the order of the config.
    #[must_use]
    pub(crate) fn certificates(&self) -> &[ServedCertificate] {
        &self.served
    }
}

impl Policy {
    fn new(
        tls: &config::Tls,
        (clients, rules): (ClientCertificates, ClientRules),
        suites: Option<&[SupportedCipherSuite]>,
        resolver: &Arc<BySni>,
        keys: Option<&Arc<KeyLines>>,
    ) -> Result<Self, Vec<TlsProblem>> {
        let mut by_group = Vec::with_capacity(tls.groups.len());
        for group in &tls.groups {
            let template = Template::new(tls, *group, suites, &rules.verifier, resolver).map_err(|source| {
                let suites_given = suites.is_some();
                let key = if suites_given { "tls.cipher_suites" } else { "tls.groups" };
                let error = if suites_given { TlsError::NoSuite { source } } else { TlsError::Setup { source } };
                vec![TlsProblem::new(key, error)]
            })?;
            by_group.push(template);
        }
        let shared = keys.map(|keys| (Arc::clone(keys), policy(tls, clients.auth, rules.roots.as_deref())));
        let mut policy = Self { clients, rules, by_group, shared, acceptors: HashMap::new() };
        policy.acceptors = PROTOCOLS.iter().map(|row| (row.name, policy.make(row))).collect();
        Ok(policy)
    }

    /// The same one for all listeners of a protocol.
    fn acceptor(&self, protocol: &Protocol) -> Arc<Acceptor> {
        let known = self.acceptors.get(protocol.name).cloned();
        known.unwrap_or_else(|| self.make(protocol))
    }

    fn make(&self, protocol: &Protocol) -> Arc<Acceptor> {
        let ticketer = match &self.shared {
            Some((keys, policy)) => ticketer(keys, &[policy, protocol.name.as_bytes()].concat()).ok(),
            // Without random bytes for a key there are no tickets: clients resume from the cache or not.
            None => aws_lc_rs::Ticketer::new().ok(),
        };
        Arc::new(Acceptor::new(&self.by_group, protocol, self.rules.clone(), ticketer))
    }
}

/// Answers the clients of one protocol.
#[derive(Debug)]
pub(crate) struct Acceptor {
    rules: ClientRules,
    /// In order of preference. rustls takes the *client's* order among the groups of one config,
    /// so there is a config for each group and the choice is made here (RFC 8446 section 4.2.7
    /// leaves it to the server).
    by_group: Vec<GroupConfig>,
    tls13: bool,
}

/// The configs for clients that share a group.
#[derive(Debug)]
struct GroupConfig {
    group: &'static dyn SupportedKxGroup,
    /// With usher's order of suites.
    ours: Arc<ServerConfig>,
    /// With the client's order, unless the config has one.
    theirs: Arc<ServerConfig>,
    /// For clients whose server name is hidden, with usher's order.
    name_hidden: Arc<ServerConfig>,
}

/// What the protocols' configs for a group are made from.
#[derive(Debug)]
struct Template {
    group: &'static dyn SupportedKxGroup,
    usual: ServerConfig,
    /// For clients whose server name is hidden.
    name_hidden: ServerConfig,
}

impl Acceptor {
    fn new(
        templates: &[Template],
        protocol: &Protocol,
        rules: ClientRules,
        ticketer: Option<Arc<dyn ProducesTickets>>,
    ) -> Self {
        let sessions = ServerSessionMemoryCache::new(SESSIONS);
        // No client can offer an empty id (RFC 7301 section 3.1), so every offer is refused; an empty list
        // would accept every offer.
        let alpn = vec![protocol.alpn.unwrap_or_default().to_vec()];
        let configure = |template: &ServerConfig, ours: bool| {
            let mut config = template.clone();
            config.alpn_protocols.clone_from(&alpn);
            config.session_storage = sessions.clone();
            config.ignore_client_order |= ours;
            if let Some(ticketer) = &ticketer {
                config.ticketer = Arc::clone(ticketer);
            }
            Arc::new(config)
        };
        let choices = templates.iter().map(|template| GroupConfig {
            group: template.group,
            ours: configure(&template.usual, true),
            theirs: configure(&template.usual, false),
            name_hidden: configure(&template.name_hidden, true),
        });
        let by_group: Vec<_> = choices.collect();
        let tls13 = by_group.first().is_some_and(|choice| {
            choice.ours.crypto_provider().cipher_suites.iter().any(|suite| suite.tls13().is_some())
        });
        Self { rules, by_group, tls13 }
    }

    /// Answers a client's handshake. The caller sets the deadline for it; dropping the future
    /// closes the connection.
    ///
    /// # Errors
    /// What went wrong, for [`describe`](super::describe); the client was sent an alert.
    pub(crate) async fn accept(&self, mut tcp: TcpStream) -> io::Result<Stream> {
        match self.begin(&mut tcp).await {
            Ok(connection) => Stream::under_tls(tcp, connection.into()).handshake().await,
            Err(Failure { error, alert }) => {
                // As far as the client takes it.
                let _ = tcp.write_all(&alert).await;
                Err(error)
            }
        }
    }

    /// Verifies the certificate that a client has shown in its handshake, or in that of the session it resumed, by the
    /// rules of this acceptor and the present time; `None` if it has shown none.
    pub(crate) fn verify(&self, chain: &ClientChain) -> Option<Result<VerifiedCertificate, ClientFault>> {
        self.rules.verify(chain)
    }

    /// The connection of a client, from its first message.
    async fn begin(&self, tcp: &mut TcpStream) -> Result<ServerConnection, Failure> {
        let Hello { accepted, name_hidden } = hello::first(tcp).await?;
        let config = self.choose(&accepted.client_hello(), name_hidden);
        let config = config.ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
        let mut connection = accepted.into_connection(config)?;
        if name_hidden {
            hello::second(tcp, &mut connection).await?;
        }
        Ok(connection)
    }

    /// The config of the first group that the client can do; otherwise rustls refuses it.
    fn choose(&self, hello: &ClientHello<'_>, name_hidden: bool) -> Option<Arc<ServerConfig>> {
        // Only TLS 1.3 suites are in 0x13xx; the version itself cannot be asked for at this point.
        let tls13 = self.tls13 && hello.cipher_suites().iter().any(|suite| u16::from(*suite) >> 8 == 0x13);
        let version = if tls13 { ProtocolVersion::TLSv1_3 } else { ProtocolVersion::TLSv1_2 };
        let offered = hello.named_groups().unwrap_or_default();
        let wanted =
            |group: &dyn SupportedKxGroup| group.usable_for_version(version) && offered.contains(&group.name());
        let chosen = self.by_group.iter().find(|choice| wanted(choice.group)).or_else(|| self.by_group.first());
        let config = |choice: &GroupConfig| match name_hidden {
            true => Arc::clone(&choice.name_hidden),
            false if prefers_chacha(hello.cipher_suites()) => Arc::clone(&choice.theirs),
            false => Arc::clone(&choice.ours),
        };
        chosen.map(config)
    }
}

/// Whether AES is slow for a client: devices without AES instructions list ChaCha20 first.
pub(super) fn prefers_chacha(suites: &[CipherSuite]) -> bool {
    // A client may begin with a suite that does not exist, to keep servers flexible (RFC 8701).
    let grease = |suite: &CipherSuite| u16::from(*suite) & 0x0f0f == 0x0a0a;
    let first = suites.iter().find(|suite| !grease(suite));
    matches!(
        first,
        Some(
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
        )
    )
}

fn load_all(tls: &config::Tls, mistakes: &mut Vec<TlsProblem>) -> Vec<LoadedCertificate> {
    if tls.certificates.is_empty() {
        mistakes.push(TlsProblem::new("tls.certificates", TlsError::NoCertificates));
    }
    let mut all = Vec::with_capacity(tls.certificates.len());
    for (index, files) in tls.certificates.iter().enumerate() {
        match certificate::load(files, &format!("tls.certificates[{index}]")) {
            Ok(loaded) => all.push(loaded),
            Err(more) => mistakes.extend(more),
        }
    }
    all
}

fn suites(tls: &config::Tls, mistakes: &mut Vec<TlsProblem>) -> Option<Vec<SupportedCipherSuite>> {
    let names = tls.cipher_suites.as_ref()?;
    let mut suites = Vec::with_capacity(names.len());
    for (index, name) in names.iter().enumerate() {
        match aws_lc_rs::ALL_CIPHER_SUITES.iter().find(|suite| suite_name(**suite) == *name) {
            Some(suite) => suites.push(*suite),
            None => {
                let known: Vec<_> = aws_lc_rs::ALL_CIPHER_SUITES.iter().map(|suite| suite_name(*suite)).collect();
                let error = TlsError::UnknownSuite { name: name.clone(), known: known.join(", ") };
                mistakes.push(TlsProblem::new(format!("tls.cipher_suites[{index}]"), error));
            }
        }
    }
    Some(suites)
}

/// The policy for clients, in bytes that are equal in every process with the same settings: a resumed session
/// is not verified again, so a ticket is valid only under the same policy. Certificates of usher's own are not
/// in it, so that renewing one ends no session's ticket.
fn policy(tls: &config::Tls, client_auth: ClientAuth, roots: Option<&RootCertStore>) -> Vec<u8> {
    let mut policy = Vec::from(b"policy 1");
    let mut add = |part: &[u8]| {
        policy.extend_from_slice(&(part.len() as u64).to_be_bytes());
        policy.extend_from_slice(part);
    };
    add(match tls.min_version {
        TlsVersion::V1_2 => b"1.2",
        TlsVersion::V1_3 => b"1.3",
    });
    let groups = tls.groups.iter().flat_map(|group| u16::from(key_exchange(*group).name()).to_be_bytes());
    add(&groups.collect::<Vec<u8>>());
    add(tls.cipher_suites.as_ref().map(|suites| suites.join(",")).unwrap_or_default().as_bytes());
    add(&[u8::from(client_auth == ClientAuth::Required)]);
    let mut anchors: Vec<Vec<u8>> = Vec::new();
    for anchor in roots.into_iter().flat_map(|roots| &roots.roots) {
        let constraints = anchor.name_constraints.as_deref().unwrap_or_default();
        let parts = [anchor.subject.as_ref(), anchor.subject_public_key_info.as_ref(), constraints];
        let hashes = parts.map(|part| digest::digest(&digest::SHA256, part));
        anchors.push(hashes.iter().flat_map(|hash| hash.as_ref().iter().copied()).collect());
    }
    // Their order in the file is irrelevant.
    anchors.sort_unstable();
    add(&anchors.concat());
    policy
}

impl Template {
    fn new(
        tls: &config::Tls,
        group: Group,
        suites: Option<&[SupportedCipherSuite]>,
        verifier: &Arc<dyn danger::ClientCertVerifier>,
        resolver: &Arc<BySni>,
    ) -> Result<Self, rustls::Error> {
        let versions: &[_] = match tls.min_version {
            TlsVersion::V1_2 => &[&version::TLS13, &version::TLS12],
            TlsVersion::V1_3 => &[&version::TLS13],
        };
        let configure = |provider, verifier| {
            let mut config = ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(versions)?
                .with_client_cert_verifier(verifier)
                .with_cert_resolver(resolver.clone());
            // Or by the client: see `Acceptor::choose`.
            config.ignore_client_order = suites.is_some();
            config.send_tls13_tickets = TICKETS;
            Ok::<_, rustls::Error>(config)
        };
        let provider = provider(&[group], suites);
        let restoring = Arc::new(server_name::restoring(&provider));
        Ok(Self {
            group: key_exchange(group),
            usual: configure(provider, Arc::clone(verifier))?,
            name_hidden: configure(restoring, Arc::new(RestoringVerifier(Arc::clone(verifier))))?,
        })
    }
}

/// Chooses a certificate by the name that the client asks for and by what it can verify.
#[derive(Debug)]
struct BySni {
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// `*.example.com` under `example.com`: a wildcard stands for one label (RFC 6125 section 6.4.3).
    wildcard: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// The first of the config and its twins of other key types, then the rest.
    default: Vec<Arc<CertifiedKey>>,
}

impl BySni {
    fn new(loaded: &[LoadedCertificate]) -> Self {
        let mut exact: HashMap<String, Vec<_>> = HashMap::new();
        let mut wildcard: HashMap<String, Vec<_>> = HashMap::new();
        // Sorted by key type once, here; the order of the config decides among equals.
        let mut ranked: Vec<&LoadedCertificate> = loaded.iter().collect();
        ranked.sort_by_key(|one| rank(one.certified.key.algorithm()));
        for one in &ranked {
            for name in &one.info.names {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut wildcard, parent),
                    None => (&mut exact, name.as_str()),
                };
                names.entry(name.to_owned()).or_default().push(Arc::clone(&one.certified));
            }
        }
        let first = loaded.first();
        let (twins, rest): (Vec<&LoadedCertificate>, Vec<&LoadedCertificate>) =
            ranked.into_iter().partition(|one| first.is_some_and(|first| same_names(first, one)));
        let default = twins.into_iter().chain(rest).map(|one| Arc::clone(&one.certified)).collect();
        Self { exact, wildcard, default }
    }

    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let exact = name.and_then(|name| self.exact.get(name)).into_iter().flatten();
        let parent = name.and_then(|name| name.split_once('.')).map(|(_, parent)| parent);
        let wildcard = parent.and_then(|parent| self.wildcard.get(parent)).into_iter().flatten();
        let usable = |one: &&Arc<CertifiedKey>| one.key.choose_scheme(schemes).is_some();
        // If the client can verify none, rustls sends the fitting alert.
        let chosen = exact.chain(wildcard).chain(&self.default).find(usable).or_else(|| self.default.first());
        chosen.cloned()
    }
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls hands the name over in lower case.
        self.choose(hello.server_name(), hello.signature_schemes())
    }
}

/// ECDSA signs four times as fast as RSA here and sends less; other types come between.
fn rank(algorithm: SignatureAlgorithm) -> u8 {
    if algorithm == SignatureAlgorithm::ECDSA {
        0
    } else if algorithm == SignatureAlgorithm::RSA {
        2
    } else {
        1
    }
}

fn same_names(one: &LoadedCertificate, other: &LoadedCertificate) -> bool {
    let sorted = |loaded: &LoadedCertificate| {
        let mut names = loaded.info.names.clone();
        names.sort_unstable();
        names.dedup();
        names
    };
    sorted(one) == sorted(other)
}

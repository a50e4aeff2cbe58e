//! What DNS says of directory servers: SRV records (RFC 2782), and addresses where `directory.resolver` is set.
//!
//! Every look-up reads the system's settings anew and keeps no answer: how long one holds is decided in `server_set.rs`. No
//! answer is authenticated here.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// A whole look-up.
pub(crate) const LOOKUP: Duration = Duration::from_secs(8);
/// One question to one server, which is repeated once.
const QUESTION: Duration = Duration::from_secs(2);
const QUESTIONS: usize = 2;
/// Addresses of a host; no request has the time for more.
const ADDRESSES: usize = 16;
/// Aliases in a row.
const ALIASES: usize = 8;
/// DNS servers that are asked.
const SERVERS: usize = 8;

/// Why a look-up has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LookupFault {
    /// The name does not exist.
    #[error("DNS has no such name (NXDOMAIN)")]
    NoName,
    /// The name has no such records.
    #[error("the name has no records of this kind in DNS")]
    NoRecords,
    /// The DNS server answered with an error.
    #[error("the DNS server answered {0}")]
    Server(String),
    /// No DNS server answered.
    #[error("no DNS server answered in time")]
    Timeout,
    /// An answer that cannot be used.
    #[error("the answer of the DNS server cannot be used")]
    Malformed,
    /// The DNS servers cannot be asked. The text is the system's.
    #[error("no DNS server can be asked: {0}")]
    System(String),
}

impl LookupFault {
    /// How much it says about the name.
    const fn rank(&self) -> u8 {
        match self {
            Self::NoName => 5,
            Self::NoRecords => 4,
            Self::Server(_) => 3,
            Self::Malformed => 2,
            Self::System(_) => 1,
            Self::Timeout => 0,
        }
    }
}

/// One SRV record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SrvRecord {
    pub(crate) priority: u16,
    pub(crate) weight: u16,
    pub(crate) port: u16,
    /// In lower case without the last dot; empty: the service is not available.
    pub(crate) target: String,
}

/// The records of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SrvAnswer {
    pub(crate) records: Vec<SrvRecord>,
    /// How long they hold.
    pub(crate) ttl: Duration,
}

/// Asks the configured DNS servers, or those of the system.
#[derive(Debug, Clone)]
pub(crate) struct DnsResolver {
    servers: Vec<SocketAddr>,
}

impl DnsResolver {
    /// Without servers those of the system are asked.
    pub(crate) const fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers }
    }

    /// Whether it knows its servers itself.
    pub(crate) fn is_configured(&self) -> bool {
        !self.servers.is_empty()
    }

    /// The SRV records of a name.
    pub(crate) async fn srv(&self, name: &str) -> Result<SrvAnswer, LookupFault> {
        let name = absolute(name)?;
        let ask = |resolver: TokioResolver| {
            let name = name.clone();
            async move {
                let (name, ttl) = followed(&resolver, name).await?;
                let found = resolver.srv_lookup(name.clone()).await.map_err(|error| fault(&error))?;
                Ok((name, ttl, found))
            }
        };
        let (name, of_aliases, found) = self.first_answer(ask).await?;
        let record = |data: &RData| {
            let RData::SRV(srv) = data else { return None };
            let target = srv.target.to_ascii().to_ascii_lowercase();
            let target = target.strip_suffix('.').unwrap_or(&target).to_owned();
            Some(SrvRecord { priority: srv.priority, weight: srv.weight, port: srv.port, target })
        };
        let own = found.answers().iter().filter(|one| one.name == name);
        let records: Vec<_> = own.filter_map(|one| record(&one.data)).collect();
        if records.is_empty() {
            return Err(LookupFault::NoRecords);
        }
        let ttl = found.answers().iter().map(|one| one.ttl).chain(of_aliases).min().unwrap_or_default();
        Ok(SrvAnswer { records, ttl: Duration::from_secs(ttl.into()) })
    }

    /// The addresses of a host.
    pub(crate) async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, LookupFault> {
        if let Ok(address) = host.parse() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let name = absolute(host)?;
        let ask = async |resolver: TokioResolver| resolver.lookup_ip(name.clone()).await.map_err(|error| fault(&error));
        let found = self.first_answer(ask).await?;
        Ok(found.iter().take(ADDRESSES).map(|address| SocketAddr::new(address, port)).collect())
    }

    /// The first answer of any DNS server; without one, the most decided fault. Each is asked on its own: a silent one
    /// would delay a question that the library repeats by TCP at another until its time is over.
    async fn first_answer<T, F: Future<Output = Result<T, LookupFault>>>(
        &self,
        ask: impl Fn(TokioResolver) -> F,
    ) -> Result<T, LookupFault> {
        let asked = async {
            let mut questions: FuturesUnordered<_> = self.resolvers().await?.into_iter().map(&ask).collect();
            let mut worst = LookupFault::Timeout;
            while let Some(answer) = questions.next().await {
                match answer {
                    Ok(answer) => return Ok(answer),
                    Err(fault) if fault.rank() >= worst.rank() => worst = fault,
                    Err(_) => {}
                }
            }
            Err(worst)
        };
        timeout(LOOKUP, asked).await.unwrap_or(Err(LookupFault::Timeout))
    }

    /// One for each DNS server.
    async fn resolvers(&self) -> Result<Vec<TokioResolver>, LookupFault> {
        let system = |error: NetError| LookupFault::System(bounded(&error.to_string()));
        let (servers, mut options) = if self.servers.is_empty() {
            // resolv.conf is a file.
            let read = spawn_blocking(read_system_conf).await;
            let unread = |_| LookupFault::System("its settings cannot be read".to_owned());
            let (config, options) = read.map_err(unread)?.map_err(system)?;
            (config.name_servers().to_vec(), options)
        } else {
            let servers = self.servers.iter().map(|server| {
                let mut one = NameServerConfig::udp_and_tcp(server.ip());
                one.connections.iter_mut().for_each(|connection| connection.port = server.port());
                one
            });
            (servers.collect(), ResolverOpts::default())
        };
        options.timeout = options.timeout.min(QUESTION);
        options.attempts = options.attempts.min(QUESTIONS);
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        let resolver = |server| {
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            builder.with_options(options.clone()).build().map_err(system)
        };
        servers.into_iter().take(SERVERS).map(resolver).collect()
    }
}

/// The name at the end of a chain of aliases, and the shortest of their TTLs. The library takes the last target of several SRV records behind a CNAME for
/// one more alias, and asks for that.
async fn followed(resolver: &TokioResolver, mut name: Name) -> Result<(Name, Option<u32>), LookupFault> {
    let mut shortest: Option<u32> = None;
    for _ in 0..ALIASES {
        let found = match resolver.lookup(name.clone(), RecordType::CNAME).await {
            Ok(found) => found,
            Err(error) => {
                let fault = fault(&error);
                return if fault == LookupFault::NoRecords { Ok((name, shortest)) } else { Err(fault) };
            }
        };
        let target = |data: &RData| if let RData::CNAME(target) = data { Some(target.0.clone()) } else { None };
        let own = found.answers().iter().filter(|one| one.name == name);
        let alias = own.filter_map(|one| Some((target(&one.data)?, one.ttl))).next();
        let Some((next, ttl)) = alias else { return Ok((name, shortest)) };
        shortest = Some(shortest.map_or(ttl, |known| known.min(ttl)));
        name = next;
    }
    Err(LookupFault::Malformed)
}

/// A name that no search list is added to.
fn absolute(name: &str) -> Result<Name, LookupFault> {
    let mut name = Name::from_ascii(name).map_err(|_| LookupFault::NoName)?;
    name.set_fqdn(true);
    Ok(name)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the library's enums are open")]
fn fault(error: &NetError) -> LookupFault {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => LookupFault::NoName,
            ResponseCode::NoError => LookupFault::NoRecords,
            code => LookupFault::Server(bounded(&code.to_string())),
        },
        NetError::Dns(DnsError::ResponseCode(code)) => LookupFault::Server(bounded(&code.to_string())),
        NetError::Timeout | NetError::NoConnections => LookupFault::Timeout,
        NetError::Io(error) => LookupFault::System(bounded(&error.to_string())),
        _ => LookupFault::Malformed,
    }
}

fn bounded(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(100).collect()
}

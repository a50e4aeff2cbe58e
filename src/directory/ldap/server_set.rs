//! The servers in force: those of the configuration, and those that SRV records name.
//!
//! Records are looked up when they end (30 s to 1 h), sooner when servers fail. Whatever DNS answers but a usable list or the
//! decided absence of the service, the last list stays in force: an outage of DNS is not one of the directory. A server that
//! stays in the list keeps its connections and its health; one that leaves it gets no new request, and is closed with
//! the last one that it has.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::base::clock::chance;
use crate::base::tasks::{self, Task};
use crate::config::{Balance, DirectoryServer, Srv, SrvTarget};
use crate::directory::ldap::dns::{DnsResolver, LOOKUP, LookupFault, SrvAnswer};
use crate::directory::ldap::server::{Server, ServerFactory};
use crate::directory::ldap::srv::{self, Ignored, SrvServers};
use crate::directory::ldap::tuning::locked;
use crate::directory::{ListedServer, Realm, ResolvedName, SrvServer, SrvStanding, UnavailableCause};

/// How long an answer is used, whatever its TTL is.
const SHORTEST: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(60 * 60);
/// Between two look-ups of a name of which no server is in use, and of one that a login waits for.
const OUTAGE_INTERVAL: Duration = Duration::from_secs(5);
const AWAITED_INTERVAL: Duration = Duration::from_secs(1);
/// The longest pause after look-ups that failed.
const LONGEST_RETRY: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
/// Names in a line of the log.
const SHOWN: usize = 16;

/// One server, and its place.
#[derive(Debug, Clone)]
struct Member {
    server: Arc<Server>,
    settings: DirectoryServer,
    /// Servers of a lower tier are preferred.
    tier: usize,
    weight: u16,
    /// Drawn once, so that the order among others stays when one joins or leaves.
    drawn: f64,
    srv: Option<SrvStanding>,
}

/// The servers in force, in order of preference.
#[derive(Debug, Default)]
pub(crate) struct ServerList {
    members: Vec<Member>,
}

impl ServerList {
    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Server>> + Clone {
        self.members.iter().map(|member| &member.server)
    }

    /// The order for one decision, the one with this number.
    pub(crate) fn order(&self, balance: Balance, turn: usize) -> Vec<&Arc<Server>> {
        if balance == Balance::First {
            return self.iter().collect();
        }
        let mut order = Vec::with_capacity(self.members.len());
        for tier in self.members.chunk_by(|one, next| one.tier == next.tier) {
            let is_even = tier.iter().all(|member| tier.first().is_none_or(|first| first.weight == member.weight));
            if is_even {
                let (before, after) = tier.split_at_checked(turn % tier.len().max(1)).unwrap_or((tier, &[]));
                order.extend(after.iter().chain(before).map(|member| &member.server));
            } else {
                let mut places: Vec<_> =
                    tier.iter().map(|member| (srv::place(member.weight, chance()), &member.server)).collect();
                places.sort_by(|(one, _), (other, _)| one.total_cmp(other));
                order.extend(places.into_iter().map(|(_, server)| server));
            }
        }
        order
    }
}

/// What is known of one name.
#[derive(Debug)]
struct NameState {
    /// The directory, where there are several.
    shown: Option<&'static str>,
    item: DirectoryServer,
    srv: Srv,
    /// The last usable answer; `None`: there was none yet.
    servers: Option<Vec<SrvServer>>,
    /// Why the last look-up gave no list.
    fault: Option<NameFault>,
    ignored: Vec<Ignored>,
    /// Targets that are not used, as far as they have been logged.
    logged: HashSet<String>,
    due: Instant,
    looked_at: Option<Instant>,
    is_looking: bool,
    failures: u32,
}

/// Why a name leads to no server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NameFault {
    #[error("not looked up yet")]
    NotYet,
    #[error(transparent)]
    Lookup(#[from] LookupFault),
    #[error("DNS says that the service is not available (target \".\")")]
    NotAvailable,
    #[error("no target of the records may be used")]
    NoTarget,
}

impl NameState {
    fn new(shown: Option<&'static str>, item: &DirectoryServer, srv: &Srv) -> Self {
        Self {
            shown,
            item: item.clone(),
            srv: srv.clone(),
            servers: None,
            fault: Some(NameFault::NotYet),
            ignored: Vec::new(),
            logged: HashSet::new(),
            due: Instant::now(),
            looked_at: None,
            is_looking: false,
            failures: 0,
        }
    }

    /// `interval`: less than that between two look-ups is too soon, whatever is the matter.
    fn is_due(&self, interval: Option<Duration>) -> bool {
        let is_rested = |pause| self.looked_at.is_none_or(|looked| looked.elapsed() >= pause);
        !self.is_looking && (self.due <= Instant::now() || interval.is_some_and(is_rested))
    }

    /// Takes an answer; returns whether there is another list.
    fn learn(&mut self, answer: Result<SrvAnswer, LookupFault>, allowed: &[SrvTarget]) -> bool {
        let ttl = answer.as_ref().map(|answer| answer.ttl).unwrap_or_default();
        let found = answer.map(|answer| srv::servers(answer.records, &self.item, &self.srv, allowed));
        let (servers, fault) = match found {
            Ok(SrvServers::Listed(servers, ignored)) => {
                self.ignored = ignored;
                if servers.is_empty() { (None, Some(NameFault::NoTarget)) } else { (Some(servers), None) }
            }
            Ok(SrvServers::NotAvailable) => {
                self.ignored = Vec::new();
                (Some(Vec::new()), Some(NameFault::NotAvailable))
            }
            Err(fault) => (None, Some(fault.into())),
        };
        if self.ignored.is_empty() {
            self.logged.clear();
        }
        self.log(servers.as_deref(), fault.as_ref());
        self.fault = fault;
        let Some(servers) = servers else {
            self.failures = self.failures.saturating_add(1);
            let pause = Duration::from_secs(1 << self.failures.min(5)).min(LONGEST_RETRY);
            self.due = Instant::now() + pause;
            return false;
        };
        self.failures = 0;
        // Whoever forges the absence of the service must do it again and again.
        let longest = if servers.is_empty() { SHORTEST } else { LONGEST };
        self.due = Instant::now() + ttl.clamp(SHORTEST, longest);
        let is_new = self.servers.as_ref() != Some(&servers);
        self.servers = Some(servers);
        is_new
    }

    /// One line per change, and per target that is not used.
    fn log(&mut self, servers: Option<&[SrvServer]>, fault: Option<&NameFault>) {
        let (directory, name) = (self.shown, &self.item.url);
        for Ignored { target, reason } in &self.ignored {
            if self.logged.len() < srv::MOST && self.logged.insert(target.clone()) {
                warn!(directory, name, target, %reason, "directory server named by DNS is not used");
            }
        }
        if let Some(servers) = servers.filter(|servers| self.servers.as_deref() != Some(*servers)) {
            let urls: Vec<_> = servers.iter().take(SHOWN).map(|one| one.server.url.as_str()).collect();
            info!(directory, name, count = servers.len(), servers = urls.join(" "), "directory servers named by DNS");
        }
        if fault != self.fault.as_ref() {
            let kept = self.servers.as_ref().map_or(0, Vec::len);
            match fault {
                Some(NameFault::NotAvailable) => {
                    warn!(directory, name, "DNS says that no directory server is available")
                }
                Some(reason) => warn!(directory, name, %reason, kept, "directory servers cannot be looked up in DNS"),
                None if !matches!(self.fault, Some(NameFault::NotYet)) => {
                    info!(directory, name, "directory servers can be looked up in DNS again");
                }
                None => {}
            }
        }
    }
}

/// The servers of a directory, and where they are from.
#[derive(Debug)]
pub(crate) struct ServerSet {
    factory: ServerFactory,
    resolver: DnsResolver,
    list: ArcSwap<ServerList>,
    /// By their place in the configuration.
    names: Mutex<Vec<(usize, NameState)>>,
    changes: watch::Sender<()>,
}

impl ServerSet {
    /// With the servers that the configuration has itself; names are looked up when they are due. Changes of the list are
    /// sent to `changes`.
    pub(crate) fn new(factory: ServerFactory, resolver: DnsResolver, changes: watch::Sender<()>) -> Self {
        let shown = Realm::named(&factory.settings().name).shown(factory.settings());
        let servers = factory.settings().servers.iter().enumerate();
        let names = servers.filter_map(|(place, item)| Some((place, NameState::new(shown, item, item.srv.as_ref()?))));
        let names = Mutex::new(names.collect());
        let server_set = Self { factory, resolver, list: ArcSwap::default(), names, changes };
        server_set.rebuild(&locked(&server_set.names));
        server_set
    }

    /// The servers in force.
    pub(crate) fn list(&self) -> Arc<ServerList> {
        self.list.load_full()
    }

    /// The directory's name, where there are several.
    pub(crate) fn shown(&self) -> Option<&'static str> {
        Realm::named(&self.factory.settings().name).shown(self.factory.settings())
    }

    /// Whether a look-up is in progress.
    pub(crate) fn is_looking(&self) -> bool {
        locked(&self.names).iter().any(|(_, name)| name.is_looking)
    }

    /// Why there is no server.
    pub(crate) fn cause(&self) -> UnavailableCause {
        let names = locked(&self.names);
        let fault = names.iter().find_map(|(_, name)| Some((name.item.url.as_str(), name.fault.clone()?)));
        match fault {
            Some((name, fault)) => UnavailableCause::NoServer { name: name.into(), fault: fault.to_string().into() },
            None => UnavailableCause::Timeout,
        }
    }

    /// Starts the look-ups that are due. `away`: no server is in use; `awaited`: a login waits for one.
    pub(crate) fn look_up_due(self: &Arc<Self>, away: bool, awaited: bool) {
        let list = self.list();
        let has_failed = |name: &str| {
            let own = list.members.iter().filter(|member| member.srv.as_ref().is_some_and(|srv| &*srv.name == name));
            own.fold((false, false), |(any, up), member| {
                let is_up = member.server.health().is_in_use();
                (any || !is_up, up || is_up)
            })
        };
        let mut names = locked(&self.names);
        for (place, name) in names.iter_mut() {
            let interval = match has_failed(&name.item.url) {
                _ if awaited => Some(AWAITED_INTERVAL),
                _ if away => Some(OUTAGE_INTERVAL),
                (true, false) => Some(OUTAGE_INTERVAL),
                (true, true) => Some(SHORTEST),
                (false, _) => None,
            };
            if name.is_due(interval) {
                self.start(*place, name);
            }
        }
    }

    /// Looks up every name, if `all`, or those that have no answer yet, and waits for it.
    pub(crate) async fn look_up(self: &Arc<Self>, all: bool) {
        let mut changed = self.changes.subscribe();
        let began = Instant::now();
        for (place, name) in locked(&self.names).iter_mut() {
            if !name.is_looking && (all || name.looked_at.is_none()) {
                self.start(*place, name);
            }
        }
        let waiting = async {
            loop {
                changed.mark_unchanged();
                let is_open = |name: &NameState| {
                    name.is_looking && (all || name.servers.is_none())
                        || name.looked_at.is_none_or(|at| all && at < began)
                };
                if !locked(&self.names).iter().any(|(_, name)| is_open(name)) || changed.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = timeout(LOOKUP.saturating_add(SECOND), waiting).await;
    }

    fn start(self: &Arc<Self>, place: usize, name: &mut NameState) {
        name.is_looking = true;
        let looking = LookupGuard { server_set: Arc::clone(self), place };
        let host = name.item.host.clone();
        tokio::spawn(async move {
            let looked_up = async {
                let answer = looking.server_set.resolver.srv(&host).await;
                looking.server_set.learn(looking.place, answer);
            };
            let restarts = &looking.server_set.factory.metrics().task_restarts;
            let _ = tasks::once(Task::Resolver, restarts, looked_up).await;
        });
    }

    /// Takes an answer about the name at this place.
    pub(crate) fn learn(&self, place: usize, answer: Result<SrvAnswer, LookupFault>) {
        let mut names = locked(&self.names);
        let Some((_, name)) = names.iter_mut().find(|(at, _)| *at == place) else { return };
        let is_new = name.learn(answer, &self.factory.settings().srv_targets);
        if is_new {
            self.rebuild(&names);
        }
    }

    /// Makes the list anew; servers that stay in it are the same as before.
    fn rebuild(&self, names: &[(usize, NameState)]) {
        let old = self.list();
        let mut members: Vec<Member> = Vec::new();
        let mut add = |settings: &DirectoryServer, tier: usize, srv: Option<(u16, SrvStanding)>| {
            let is_same = |other: &Member| {
                (srv.is_some() || other.srv.is_some())
                    && other.settings.scheme == settings.scheme
                    && other.settings.port == settings.port
                    && other.settings.host.eq_ignore_ascii_case(&settings.host)
            };
            if members.iter().any(is_same) {
                return;
            }
            let before = old.members.iter().find(|member| member.settings == *settings);
            members.push(Member {
                server: before.map_or_else(|| self.factory.make(settings), |member| Arc::clone(&member.server)),
                settings: settings.clone(),
                tier,
                weight: srv.as_ref().map_or(1, |(weight, _)| *weight),
                drawn: before.map_or_else(chance, |member| member.drawn),
                srv: srv.map(|(_, standing)| standing),
            });
        };
        let mut tier = 0;
        for (place, item) in self.factory.settings().servers.iter().enumerate() {
            let Some((_, name)) = names.iter().find(|(at, _)| *at == place) else {
                add(item, tier, None);
                continue;
            };
            // Servers of the configuration that stand side by side are of one tier, each priority of a name is another.
            tier += 1;
            let mut priority = None;
            for one in name.servers.iter().flatten() {
                tier += usize::from(priority.is_some_and(|before| before != one.priority));
                priority = Some(one.priority);
                let standing =
                    SrvStanding { name: item.url.as_str().into(), priority: one.priority, weight: one.weight };
                add(&one.server, tier, Some((one.weight, standing)));
            }
            tier += 1;
        }
        let by_weight = |member: &Member| match member.srv {
            Some(_) => srv::place(member.weight, member.drawn),
            None => 0.0,
        };
        members.sort_by(|one, other| (one.tier.cmp(&other.tier)).then(by_weight(one).total_cmp(&by_weight(other))));
        self.list.store(Arc::new(ServerList { members }));
        let list = self.list();
        for gone in old.iter().filter(|server| !list.iter().any(|one| Arc::ptr_eq(one, server))) {
            info!(directory = gone.endpoint.shown, server = %gone.url, "directory server is no longer named by DNS");
            gone.endpoint.retired.cancel();
        }
        self.changes.send_replace(());
    }

    /// The servers and how DNS ranks them.
    pub(crate) fn listed(&self) -> Vec<ListedServer> {
        let list = self.list();
        let listed = |member: &Member| ListedServer { url: Arc::clone(&member.server.url), srv: member.srv.clone() };
        list.members.iter().map(listed).collect()
    }

    /// The settings of a server in force.
    pub(crate) fn settings_of(&self, server: &Arc<Server>) -> Option<DirectoryServer> {
        let list = self.list();
        let member = list.members.iter().find(|member| Arc::ptr_eq(&member.server, server));
        member.map(|member| member.settings.clone())
    }

    /// Whether a look-up is due, if no server fails.
    #[cfg(test)]
    pub(crate) fn is_due(&self) -> bool {
        locked(&self.names).iter().any(|(_, name)| name.is_due(None))
    }

    /// What is known of every name.
    pub(crate) fn resolved(&self) -> Vec<ResolvedName> {
        let names = locked(&self.names);
        let known = |(_, name): &(usize, NameState)| ResolvedName {
            name: name.item.url.as_str().into(),
            servers: name.servers.clone(),
            fault: name.fault.as_ref().map(ToString::to_string),
            ignored: name.ignored.iter().map(|one| format!("{}: {}", one.target, one.reason)).collect(),
            addresses: self.list().iter().map(|one| (Arc::clone(&one.url), one.endpoint.addresses().known())).collect(),
        };
        names.iter().map(known).collect()
    }

    /// Sets the gauges that are known at a scrape.
    pub(crate) fn update_gauges(&self) {
        for (_, name) in locked(&self.names).iter() {
            let labels = [self.factory.settings().name.as_str(), name.item.url.as_str()];
            let gauge = self.factory.metrics().directory_srv_resolved.with_label_values(&labels);
            gauge.set(name.fault.is_none().into());
        }
    }

    /// Begins with what was known under the configuration before, of names that are the same.
    pub(crate) fn begin_with(&self, known: &[ResolvedName]) {
        let mut names = locked(&self.names);
        for (_, name) in names.iter_mut().filter(|(_, name)| name.servers.is_none()) {
            let before = known.iter().find(|known| *known.name == *name.item.url);
            let Some(servers) = before.and_then(|known| known.servers.as_ref()) else { continue };
            // The rules may be others now.
            let records = servers.iter().map(srv::record).collect();
            if let SrvServers::Listed(servers, _) =
                srv::servers(records, &name.item, &name.srv, &self.factory.settings().srv_targets)
            {
                name.servers = Some(servers).filter(|servers| !servers.is_empty());
            }
        }
        self.rebuild(&names);
        let list = self.list();
        for (url, addresses) in known.iter().flat_map(|known| &known.addresses) {
            if let Some(server) = list.iter().find(|server| server.url == *url) {
                server.endpoint.addresses().begin_with(addresses);
            }
        }
    }
}

/// A look-up in progress; ends when dropped.
struct LookupGuard {
    server_set: Arc<ServerSet>,
    place: usize,
}

impl Drop for LookupGuard {
    fn drop(&mut self) {
        let mut names = locked(&self.server_set.names);
        if let Some((_, name)) = names.iter_mut().find(|(at, _)| *at == self.place) {
            name.is_looking = false;
            name.looked_at = Some(Instant::now());
            // A look-up that panicked, too, is not repeated at once.
            name.due = name.due.max(Instant::now() + SECOND);
        }
        drop(names);
        self.server_set.changes.send_replace(());
    }
}

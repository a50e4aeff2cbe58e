//! What a login needs of one configuration, and what it uses of the process: nothing else of either reaches the
//! modules of `login`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::backend::{Backend, BackendContext, BackendFiles};
use crate::config::{self, Config};
use crate::directory::{Directory, Realm};
use crate::limits::{Shares, Throttle};
use crate::login::history::LoginHistory;
use crate::login::realms::Realms;
use crate::proto::TokenHints;
use crate::sessions::maintenance::Maintenance;
use crate::sessions::registry::Registry;
use crate::telemetry::metrics::Metrics;
use crate::token::{IssuerFiles, Tokens};
use crate::tracking::{ChangeTrackers, TrackingContext};

/// One configuration, with what decides about logins under it.
#[derive(Debug)]
pub(crate) struct LoginCore {
    /// The configuration.
    pub config: Config,
    /// The directories, each with its decisions and its cache.
    pub realms: Realms,
    /// The issuers of tokens.
    pub tokens: Arc<Tokens>,
    /// What a client without a good token hears.
    pub token_hints: Arc<TokenHints>,
    /// The backends.
    pub backends: Backends,
    /// By how many ushers limits of what the backends bear are divided. Kept from the first configuration on.
    pub shares: Shares,
}

/// What backends are built from, besides the config.
pub(crate) struct BackendParts<'a> {
    /// What their files hold, by name.
    pub files: HashMap<String, BackendFiles>,
    /// usher's own name in its dialogues.
    pub host: &'a Arc<str>,
    /// usher's own listeners.
    pub own: &'a Arc<[SocketAddr]>,
    /// The core whose health data is kept.
    pub kept: Option<&'a LoginCore>,
}

impl LoginCore {
    /// The core of this config with its directories, in the same order. Caches and tracked entries of `previous` are
    /// kept if they are still valid under it.
    #[must_use]
    pub(crate) fn new(
        config: Config,
        directories: Vec<Arc<dyn Directory>>,
        issuers: Vec<IssuerFiles>,
        BackendParts { mut files, host, own, kept }: BackendParts<'_>,
        metrics: &Arc<Metrics>,
        previous: Option<&Self>,
    ) -> Self {
        let tokens = Tokens::new(&config.tokens, issuers, metrics, previous.map(|old| &*old.tokens));
        let tokens = Arc::new(tokens);
        let token_hints = TokenHints { scope: tokens.scope(), discovery: tokens.discovery().map(str::to_owned) };
        let valid = previous.filter(|old| old.config.cache == config.cache).map(|old| &old.realms);
        let realms = Realms::new(&config, directories, valid).with_tokens(Arc::clone(&tokens));
        let shares = previous.map(|old| old.shares.clone()).unwrap_or_default();
        let untagged_limit = config.limits.max_backend_greeting;
        let context = BackendContext { untagged_limit, host, own, shares: &shares, metrics };
        // Files were read for each backend of this config.
        let backends = config.routing.backends.iter().filter_map(|settings| {
            let files = files.remove(&settings.name)?;
            let kept = kept.and_then(|old| old.backend_like(settings));
            Some(Backend::new(settings, files, &context, kept))
        });
        let backends = Backends::new(backends);
        Self { config, realms, tokens, token_hints: token_hints.into(), backends, shares }
    }

    /// By what changes of this directory are judged; `None`: it is not configured.
    #[must_use]
    pub(crate) fn setting(&self, realm: Realm) -> Option<TrackingContext<'_>> {
        self.realms.get(realm).map(|realm| realm.setting(&self.config.routing))
    }

    /// The same of every directory.
    pub(crate) fn all_settings(&self) -> impl Iterator<Item = TrackingContext<'_>> {
        self.realms.all().iter().map(|realm| realm.setting(&self.config.routing))
    }

    /// The backend with exactly these settings: its health data stays valid.
    fn backend_like(&self, settings: &config::Backend) -> Option<&Backend> {
        let is_same = self.config.routing.backends.contains(settings);
        self.backends.get(&settings.name).filter(|_| is_same).map(|backend| &**backend)
    }
}

/// The backends of one configuration, found by the names that routing yields.
#[derive(Debug, Default)]
pub(crate) struct Backends {
    /// In the order of the config.
    all: Vec<Arc<Backend>>,
    by_name: HashMap<Arc<str>, Arc<Backend>>,
}

impl Backends {
    /// These backends, in the order of the config.
    #[must_use]
    pub(crate) fn new(backends: impl Iterator<Item = Backend>) -> Self {
        let all: Vec<_> = backends.map(Arc::new).collect();
        let by_name = all.iter().map(|backend| (Arc::clone(&backend.name), Arc::clone(backend))).collect();
        Self { all, by_name }
    }

    /// The backend with this name.
    #[must_use]
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Backend>> {
        self.by_name.get(name)
    }

    /// All of them, in the order of the config.
    #[must_use]
    pub(crate) fn all(&self) -> &[Arc<Backend>] {
        &self.all
    }
}

/// The core in force; a reload replaces it.
pub(crate) trait InForce: Send + Sync {
    /// The core of the newest configuration.
    fn core(&self) -> Arc<LoginCore>;
}

/// What a login uses of the process. All of it outlives a reload.
#[derive(Clone, Copy)]
pub(crate) struct LoginContext<'a> {
    /// The core in force.
    pub in_force: &'a dyn InForce,
    /// Limits per client and user.
    pub limits: &'a Throttle,
    /// The changes of the directories.
    pub tracking: &'a ChangeTrackers,
    /// The relayed sessions.
    pub sessions: &'a Arc<Registry>,
    /// The backends that are out of service.
    pub maintenance: &'a Maintenance,
    /// The last attempts of each user.
    pub history: &'a LoginHistory,
    /// Every metric.
    pub metrics: &'a Metrics,
}

impl std::fmt::Debug for LoginContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginContext").finish_non_exhaustive()
    }
}

//! `usher check --connect`: from the config to the world, and what to do about what is wrong there.
//!
//! Every server is reached by the code that serves logins (`directory::examine`, `backend::inspect`); here
//! is what its answers mean for an operator. Nothing is changed anywhere, and no user's password is sent.

mod acting;
mod backend_advice;
mod backends;
mod certificate_advice;
mod certificates;
mod directory;
mod fleet;
pub(crate) mod table;
mod tokens;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use serde::Serialize;

use crate::base::credential::Login;
use crate::process::Snapshot;
use crate::proto::PROTOCOLS;
use crate::telemetry::metrics::Metrics;

pub(crate) use certificates::served;

/// The result of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Healthy.
    Ok,
    /// Worth knowing.
    Note,
    /// It works now, but not for long, or not for all users.
    Warning,
    /// Logins, or what the config asks for, do not work.
    Problem,
}

impl State {
    /// Its word.
    #[must_use]
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// What was found about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was looked at, such as `tls`.
    pub check: &'static str,
    /// The result.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn new(check: &'static str, state: State, found: impl Into<String>) -> Self {
        Self { check, state, found: found.into(), advice: None }
    }

    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, State::Ok, found)
    }

    fn problem(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(check, State::Problem, found).advised(advice)
    }

    fn advised(self, advice: impl Into<String>) -> Self {
        let advice = advice.into();
        Self { advice: (!advice.is_empty()).then_some(advice), ..self }
    }
}

/// One server, as far as it was looked at.
#[derive(Debug, Serialize)]
pub(crate) struct Subject {
    /// `directory`, `issuer`, `store`, `backend`, `protocol` or `usher`.
    pub kind: &'static str,
    /// Its URL, or the backend's or protocol's name.
    pub name: String,
    /// Of a backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<&'static str>,
    /// Of a backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What was found, in the order of a login.
    pub findings: Vec<Finding>,
}

/// Everything that was found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Whether there is no problem.
    pub ok: bool,
    /// The servers.
    pub subjects: Vec<Subject>,
}

impl Report {
    /// Adds what the running process has seen of a backend: that it accepts no login, which only logins show.
    pub(crate) fn accepts_no_login(&mut self, backend: &str, protocol: &str, found: String) {
        let is_it = |subject: &&mut Subject| {
            subject.kind == "backend" && subject.name == backend && subject.protocol == Some(protocol)
        };
        if let Some(subject) = self.subjects.iter_mut().find(is_it) {
            let advice = "the server's authentication is broken: see its log";
            subject.findings.push(Finding::problem("logins", found, advice));
            self.ok = false;
        }
    }

    /// How often something stands so.
    #[must_use]
    pub(crate) fn count(&self, state: State) -> usize {
        self.subjects.iter().flat_map(|subject| &subject.findings).filter(|finding| finding.state == state).count()
    }
}

/// Looks at every server of this snapshot, all at the same time. `done` counts them.
pub(crate) async fn inspect(
    snapshot: &Snapshot,
    metrics: &Arc<Metrics>,
    sample: Option<&Login>,
    done: &AtomicUsize,
) -> Report {
    let counted = || done.fetch_add(1, Ordering::Relaxed);
    let realms = &snapshot.realms;
    let directories = join_all(realms.all().iter().map(|realm| async move {
        // A name of another directory is looked up there.
        let sample = sample.filter(|name| realms.may_have(realm, name));
        let examined = match realm.directory().diagnose() {
            Some(diagnosis) => diagnosis.examine(sample).await,
            None => Vec::new(),
        };
        counted();
        (realm, sample, examined)
    }));
    let backends = join_all(snapshot.backends.all().iter().map(|backend| async {
        let inspected = backend.inspect().await;
        counted();
        (&*backend.name, inspected)
    }));
    let issuers = async {
        let inspected = snapshot.tokens.inspect().await;
        counted();
        inspected
    };
    let config = &snapshot.config;
    let acting = acting::findings(config, realms);
    let stores = async {
        let inspected = match (&config.fleet, &snapshot.fleet) {
            (Some(settings), Some(files)) => crate::fleet::inspect(settings, files).await,
            (_, _) => Vec::new(),
        };
        counted();
        inspected
    };
    let (examined, inspected, issuers, acting, stores) = tokio::join!(directories, backends, issuers, acting, stores);
    let mut subjects = Vec::new();
    let own: Vec<_> = served(&snapshot.tls).into_iter().chain(acting).collect();
    if !own.is_empty() {
        subjects.push(Subject {
            kind: "usher",
            name: snapshot.host.to_string(),
            protocol: None,
            address: None,
            findings: own,
        });
    }
    for (realm, sample, servers) in &examined {
        let listed = realm.directory().diagnose().map(|diagnosis| diagnosis.servers()).unwrap_or_default();
        let names = realm.directory().resolved();
        subjects.extend(names.iter().map(|known| directory::named(&realm.settings, known, &listed)));
        subjects.extend(servers.iter().map(|server| directory::subject(config, &realm.settings, server, *sample)));
    }
    subjects.extend(issuers.iter().map(tokens::subject));
    if let Some(settings) = &config.fleet {
        subjects.extend(stores.iter().map(|store| fleet::subject(config, settings, store)));
    }
    for (name, inspected) in &inspected {
        let settings = config.routing.backends.iter().find(|settings| settings.name == *name);
        let (Some(settings), Some(backend)) = (settings, snapshot.backends.get(name)) else { continue };
        subjects.extend(
            inspected.iter().flat_map(|one| backends::subjects(config, settings, backend.probes_log_in(), one)),
        );
    }
    // What would be advertised now, by the code that advertises it.
    snapshot.offers.refresh(snapshot.backends.all(), metrics);
    subjects.extend(PROTOCOLS.iter().filter_map(|protocol| backends::advertised(snapshot, &inspected, protocol)));
    let ok = subjects.iter().flat_map(|subject| &subject.findings).all(|finding| finding.state != State::Problem);
    Report { ok, subjects }
}

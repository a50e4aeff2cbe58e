//! How the backends stand, put together for whoever looks: the control socket's `/backends` and the
//! side port. Names no user.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::backend::state::BackendStatus;
use crate::process::Shared;
use crate::sessions::maintenance::Drain;

/// A backend as an administrator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Backend {
    /// Its addresses, health and logins.
    #[serde(flatten)]
    pub state: BackendStatus,
    /// How many sessions are relayed to it, by protocol.
    pub sessions: BTreeMap<String, usize>,
    /// Set while it is taken out of service.
    pub draining: Option<Drain>,
}

/// A backend in one word: its worst protocol counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// An administrator has taken it out of service.
    Draining,
    /// No protocol takes logins.
    Down,
    /// Some do not.
    PartlyDown,
    /// It refuses every login.
    Refusing,
    /// All do.
    Up,
}

impl Condition {
    /// As in JSON.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Down => "down",
            Self::PartlyDown => "partly_down",
            Self::Refusing => "refusing",
            Self::Up => "up",
        }
    }
}

impl Backend {
    /// The protocols that take no logins.
    pub(crate) fn down(&self) -> Vec<&str> {
        self.state.protocols.iter().filter(|one| !one.up).map(|one| &*one.protocol).collect()
    }

    /// The protocols whose every login it refuses, and for how many seconds at most.
    pub(crate) fn refusing(&self) -> Option<(Vec<&str>, u64)> {
        let all =
            || self.state.protocols.iter().filter_map(|one| Some((&*one.protocol, one.refusing.as_ref()?.seconds)));
        let longest = all().map(|(_, seconds)| seconds).max()?;
        Some((all().map(|(protocol, _)| protocol).collect(), longest))
    }

    /// How it is.
    pub(crate) fn condition(&self) -> Condition {
        match (self.draining, self.down().len()) {
            (Some(_), _) => Condition::Draining,
            (None, 0) if self.refusing().is_some() => Condition::Refusing,
            (None, 0) => Condition::Up,
            (None, down) if down < self.state.protocols.len() => Condition::PartlyDown,
            (None, _) => Condition::Down,
        }
    }
}

/// Every backend of the configuration in force, in its order.
#[must_use]
pub(crate) fn backends(shared: &Shared) -> Vec<Backend> {
    let sessions = shared.registry.counts();
    let by_protocol = |backend: &str| {
        let counts = sessions.get(backend).into_iter().flatten();
        counts.map(|(protocol, count)| (protocol.to_string(), *count)).collect()
    };
    let snapshot = shared.snapshot.load();
    let states = snapshot.backends.all().iter().map(|backend| backend.status());
    let whole = states.map(|state| Backend {
        sessions: by_protocol(&state.name),
        draining: shared.maintenance.drained(&state.name),
        state,
    });
    whole.collect()
}

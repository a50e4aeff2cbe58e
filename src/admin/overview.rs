//! How the backends stand, put together for whoever looks: the control socket's `/backends` and the
//! side port. Names no user.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::backend::state::BackendStatus;
use crate::login::core::Shared;
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

/// Every backend of the configuration in force, in its order.
#[must_use]
pub(crate) fn backends(shared: &Shared) -> Vec<Backend> {
    let mut sessions: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for session in shared.registry.sessions() {
        let there = sessions.entry(session.backend.to_string()).or_default();
        *there.entry(session.protocol.to_string()).or_default() += 1;
    }
    let snapshot = shared.snapshot.load();
    let states = snapshot.backends.iter().map(crate::backend::Backend::status);
    let whole = states.map(|state| Backend {
        sessions: sessions.remove(&state.name).unwrap_or_default(),
        draining: shared.steer.drained(&state.name),
        state,
    });
    whole.collect()
}

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

//! Bind connections waiting for reuse, and the task that closes unused connections.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::base::tasks::{self, Task};
use crate::config::Connections;
use crate::directory::ldap::bind_client::BindClient;
use crate::directory::ldap::tuning::locked;
use crate::telemetry::metrics::Metrics;

/// A bind connection waiting for reuse.
#[derive(Debug)]
pub(crate) struct IdleConnection {
    pub(crate) connection: BindClient,
    pub(crate) expires: Instant,
    since: Instant,
}

impl IdleConnection {
    fn is_usable(&mut self, limits: &Connections) -> bool {
        !self.connection.is_dead()
            && self.connection.operations() < limits.max_operations
            && self.expires > Instant::now()
            && self.since.elapsed() < limits.idle_timeout
    }
}

/// The idle bind connections of a server.
#[derive(Debug)]
pub(crate) struct IdleConnections {
    limits: Connections,
    stack: Mutex<Vec<IdleConnection>>,
}

impl IdleConnections {
    pub(crate) const fn new(limits: Connections) -> Self {
        Self { limits, stack: Mutex::new(Vec::new()) }
    }

    pub(crate) fn push(&self, connection: BindClient, expires: Instant) {
        locked(&self.stack).push(IdleConnection { connection, expires, since: Instant::now() });
    }

    /// The most recently used connection is the one most likely to be alive.
    pub(crate) fn take(&self) -> Option<IdleConnection> {
        let mut stack = locked(&self.stack);
        std::iter::from_fn(|| stack.pop()).find_map(|mut one| one.is_usable(&self.limits).then_some(one))
    }

    pub(crate) fn len(&self) -> usize {
        locked(&self.stack).len()
    }

    /// Closes the unusable ones; returns how many were closed and how many are left.
    pub(crate) fn close_unusable(&self) -> (usize, usize) {
        let mut stack = locked(&self.stack);
        let before = stack.len();
        stack.retain_mut(|one| one.is_usable(&self.limits));
        (before - stack.len(), stack.len())
    }

    /// Closes all.
    pub(crate) fn clear(&self) {
        locked(&self.stack).clear();
    }
}

/// A holder of connections that are closed when unused.
pub(crate) trait HoldsConnections: Send + Sync + 'static {
    /// Closes unusable connections; returns whether any are left to be closed later.
    fn close_unused(&self) -> bool;

    /// Its sweeper.
    fn sweeper(&self) -> &Sweeper;
}

/// The task that closes unused connections, also when no user logs in any more. Runs while there are any.
#[derive(Debug)]
pub(crate) struct Sweeper {
    running: AtomicBool,
    pause: Duration,
    metrics: Arc<Metrics>,
}

impl Sweeper {
    pub(crate) const fn new(pause: Duration, metrics: Arc<Metrics>) -> Self {
        Self { running: AtomicBool::new(false), pause, metrics }
    }

    /// Starts the task, unless it runs.
    pub(crate) fn start<H: HoldsConnections>(&self, holder: &Arc<H>) {
        if self.running.swap(true, Ordering::AcqRel) {
            return;
        }
        let (holder, pause, metrics) = (Arc::downgrade(holder), self.pause, Arc::clone(&self.metrics));
        let make = move || sweep(holder.clone(), pause);
        tokio::spawn(async move { tasks::keep(Task::DirectorySweep, &metrics.task_restarts, make).await });
    }
}

/// Closes unused connections periodically, until none is left.
async fn sweep<H: HoldsConnections>(holder: Weak<H>, pause: Duration) {
    loop {
        tokio::time::sleep(pause).await;
        let Some(holder) = holder.upgrade() else { return };
        if holder.close_unused() {
            continue;
        }
        let running = &holder.sweeper().running;
        running.store(false, Ordering::Release);
        // A connection may have been returned between the check and the store.
        if !holder.close_unused() || running.swap(true, Ordering::AcqRel) {
            return;
        }
    }
}

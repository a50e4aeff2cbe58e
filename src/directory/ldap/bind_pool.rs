//! The bind connections of a server.
//!
//! Each bind has a connection of its own, taken from a stack and returned, so that a bind waits for another only when
//! all `connections.max` are busy, and no longer than one attempt may take. A connection that failed, or whose reply
//! was not awaited, is closed and never reused.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use crate::directory::ldap::bind_client::BindClient;
use crate::directory::ldap::endpoint::Endpoint;
use crate::directory::ldap::error::{ConnectionError, RequestError};
use crate::directory::ldap::idle::{HoldsConnections, IdleConnection, Sweeper};
use crate::directory::ldap::policy::BindResponse;
use crate::directory::ldap::query::{SearchRequest, SearchResult, login_origin};
use crate::directory::ldap::service_account::ServiceAccount;
use crate::directory::{Trace, UnavailableCause};
use crate::telemetry::labels::DirectoryOperation;

/// A bind connection in exclusive use. Closed when dropped without [`BindPool::give_back`].
#[derive(Debug)]
pub(crate) struct BindLease {
    connection: BindClient,
    expires: Instant,
    _permit: OwnedSemaphorePermit,
}

/// The bind connections of a server.
#[derive(Debug)]
pub(crate) struct BindPool {
    endpoint: Arc<Endpoint>,
    /// Checks the canary before a new connection is made; `None` without a canary.
    canary: Option<Arc<ServiceAccount>>,
    permits: Arc<Semaphore>,
    sweeper: Sweeper,
}

impl HoldsConnections for BindPool {
    fn close_unused(&self) -> bool {
        let (closed, kept) = self.endpoint.idle.close_unusable();
        debug!(directory = self.endpoint.shown, server = %self.endpoint.url, closed, kept, "closed unused directory connections");
        kept > 0
    }

    fn sweeper(&self) -> &Sweeper {
        &self.sweeper
    }
}

impl BindPool {
    pub(crate) fn new(endpoint: Arc<Endpoint>, canary: Option<Arc<ServiceAccount>>) -> Self {
        let limits = &endpoint.limits;
        Self {
            permits: Arc::new(Semaphore::new(limits.max.max(1))),
            sweeper: Sweeper::new(limits.idle_timeout, Arc::clone(&endpoint.metrics)),
            canary,
            endpoint,
        }
    }

    /// Binds on a dedicated connection. The lease stays bound as that user.
    pub(crate) async fn bind(
        self: &Arc<Self>,
        dn: &str,
        password: &[u8],
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<(BindResponse, BindLease), RequestError> {
        let (mut lease, reused) = self.lease(deadline, trace).await?;
        let origin = login_origin(DirectoryOperation::Bind, &[dn]);
        let mut asked = Instant::now();
        let mut answer = self
            .endpoint
            .timed(DirectoryOperation::Bind, deadline, trace, lease.connection.bind(dn, password), |bound| {
                bound.result.clone()
            })
            .await;
        if reused && matches!(answer, Err(ConnectionError::Broken(_) | ConnectionError::Malformed)) {
            // Not answered, so not yet a counted guess: retried once on a fresh connection.
            lease.connection = self.endpoint.connect(deadline, trace).await.map_err(RequestError::after_sending)?;
            lease.expires = self.endpoint.expiry();
            asked = Instant::now();
            answer = self
                .endpoint
                .timed(DirectoryOperation::Bind, deadline, trace, lease.connection.bind(dn, password), |bound| {
                    bound.result.clone()
                })
                .await;
        }
        let bound = answer.map_err(|error| {
            RequestError::Indeterminate(self.endpoint.note_error(DirectoryOperation::Bind, origin, &error))
        })?;
        self.endpoint.note_result(DirectoryOperation::Bind, origin, &bound.result, asked)?;
        Ok((bound, lease))
    }

    /// Reads on a bind connection, as the bound user.
    pub(crate) async fn read(
        &self,
        lease: &mut BindLease,
        query: &SearchRequest,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<SearchResult, UnavailableCause> {
        let (asked, origin) = (Instant::now(), query.origin());
        let answer = lease.connection.search(query, self.endpoint.patience);
        let answer = self.endpoint.timed(query.operation, deadline, trace, answer, SearchResult::result).await;
        let found = answer.map_err(|error| self.endpoint.note_error(query.operation, origin, &error))?;
        self.endpoint.note_result(query.operation, origin, &found.result(), asked).map_err(RequestError::cause)?;
        Ok(found)
    }

    /// Returns a bind connection for the next user, whose bind replaces the identity.
    pub(crate) fn give_back(self: &Arc<Self>, lease: BindLease) {
        let BindLease { connection, expires, _permit: permit } = lease;
        self.endpoint.idle.push(connection, expires);
        // After the push, so that a waiter that gets the permit finds the connection.
        drop(permit);
        self.sweeper.start(self);
    }

    /// A bind connection, and whether it was used before.
    async fn lease(self: &Arc<Self>, deadline: Instant, trace: &mut Trace) -> Result<(BindLease, bool), RequestError> {
        let asked = Instant::now();
        // A queue that takes longer than a whole attempt is an overload, reported at once.
        let permit = match timeout_at(
            deadline.min(asked + self.endpoint.patience),
            self.permits.clone().acquire_owned(),
        )
        .await
        {
            Ok(Ok(permit)) => permit,
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => return Err(RequestError::NotSent(UnavailableCause::Busy)),
        };
        // The server failed while this request was queued: fail over instead of repeating the failure.
        if self.endpoint.replaceable && self.endpoint.health.failed_since(asked) {
            return Err(RequestError::NotSent(UnavailableCause::Busy));
        }
        if let Some(IdleConnection { connection, expires, .. }) = self.endpoint.idle.take() {
            return Ok((BindLease { connection, expires, _permit: permit }, true));
        }
        if let Some(service) = &self.canary {
            // A different server may answer on a new connection. The canary was read on the search connection,
            // which a restart would have closed as well.
            service.search_connection(deadline, trace).await?;
        }
        let connection = self.endpoint.connect(deadline, trace).await?;
        Ok((BindLease { connection, expires: self.endpoint.expiry(), _permit: permit }, false))
    }

    pub(crate) fn leased(&self) -> usize {
        self.endpoint.limits.max.saturating_sub(self.permits.available_permits())
    }

    /// Whether fewer bind connections are open than `connections.min`.
    fn wants_more(&self) -> bool {
        // A dead connection is detected here, at each probe, or when it is taken.
        let (_, idle) = self.endpoint.idle.close_unusable();
        idle + self.leased() < self.endpoint.limits.min
    }

    /// Opens bind connections up to `connections.min`.
    pub(crate) async fn top_up(self: &Arc<Self>, deadline: Instant) -> Result<(), UnavailableCause> {
        while self.wants_more() {
            let connection =
                self.endpoint.connect(deadline, &mut Trace::default()).await.map_err(RequestError::cause)?;
            self.keep(connection);
        }
        Ok(())
    }

    /// Keeps an unused connection for the next bind, if it is wanted.
    pub(crate) fn keep(self: &Arc<Self>, connection: BindClient) {
        if self.wants_more() {
            self.endpoint.idle.push(connection, self.endpoint.expiry());
            self.sweeper.start(self);
        }
    }
}

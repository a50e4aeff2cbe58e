//! The connection that many searches share.
//!
//! `bind_client.rs` opens and binds it. Searches use ldap3, isolated: it receives what `bridge.rs` lets through, its
//! driver runs in a task whose end is the connection's end, its panics are caught and become
//! [`ConnectionError::Malformed`]. Sets no deadline: the caller limits the wait and drops the connection on a timeout.
//! RFC 4511.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use ldap3::exop::WhoAmI;
use ldap3::{LdapConnAsync, LdapConnSettings, LdapError, StdStream};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::directory::ldap::bind_client::BindClient;
use crate::directory::ldap::bridge::Bridge;
use crate::directory::ldap::error::ConnectionError;

/// A connection shared by searches. Dropping it closes the socket at once.
#[derive(Debug)]
pub(crate) struct Connection {
    ldap: ldap3::Ldap,
    end: watch::Receiver<Option<ConnectionError>>,
    operations: AtomicU64,
    /// The driver and the bridge: aborted on drop.
    _tasks: JoinSet<()>,
}

impl Connection {
    /// Hands a connection to ldap3, with its current identity.
    pub(crate) async fn over(client: BindClient) -> Result<Self, ConnectionError> {
        let (stream, frames, operations) = client.into_parts();
        let (near, far) = UnixStream::pair().map_err(|error| ConnectionError::io(&error))?;
        let near = near.into_std().map_err(|error| ConnectionError::io(&error))?;
        // The URL is unused: the socket is given.
        let settings = LdapConnSettings::new().set_std_stream(StdStream::Unix(near));
        let made = LdapConnAsync::with_settings(settings, "ldapi:///").await;
        let (driver, ldap) = made.map_err(|error| ConnectionError::from(&error))?;
        let (ended, end) = watch::channel(None);
        let mut tasks = JoinSet::new();
        let bridge = Bridge::new(stream, frames, far);
        let why = ended.clone();
        tasks.spawn(async move {
            let (error, far) = bridge.run().await;
            // Before ldap3 sees the end of the pair: the first reason is the actual one.
            if let Some(error) = error {
                record_end(&why, error);
            }
            drop(far);
        });
        tasks.spawn(async move {
            let error = match AssertUnwindSafe(driver.drive()).catch_unwind().await {
                Ok(Ok(())) => ConnectionError::closed(),
                Ok(Err(error)) => ConnectionError::from(&error),
                Err(_panic) => ConnectionError::Malformed,
            };
            record_end(&ended, error);
        });
        Ok(Self { ldap, end, operations: AtomicU64::new(operations), _tasks: tasks })
    }

    /// Whether it is known to be closed.
    pub(crate) fn is_dead(&self) -> bool {
        self.end.borrow().is_some()
    }

    /// The number of its operations.
    pub(crate) fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// Sends Who am I?: any reply shows that the connection is alive.
    pub(crate) async fn who_am_i(&self) -> Result<(), ConnectionError> {
        let mut ldap = self.ldap.clone();
        self.contained(ldap.extended(WhoAmI)).await.map(drop)
    }

    /// Counts an operation towards `connections.max_operations`.
    pub(crate) fn count_operation(&self) {
        self.operations.fetch_add(1, Ordering::Relaxed);
    }

    /// For an operation to be wrapped in [`Connection::contained`].
    pub(crate) fn handle(&self) -> ldap3::Ldap {
        self.ldap.clone()
    }

    /// Runs an operation; a panic within it, or the driver's end, becomes an error.
    pub(crate) async fn contained<T>(
        &self,
        operation: impl Future<Output = Result<T, LdapError>>,
    ) -> Result<T, ConnectionError> {
        match AssertUnwindSafe(operation).catch_unwind().await {
            Ok(Ok(answer)) => Ok(answer),
            Err(_panic) => Err(ConnectionError::Malformed),
            Ok(Err(error)) if is_end(&error) => {
                // The driver has closed its channel; the reason follows shortly.
                let mut end = self.end.clone();
                let known = end.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
                Err(known.unwrap_or_else(|| ConnectionError::from(&error)))
            }
            Ok(Err(error)) => Err(ConnectionError::from(&error)),
        }
    }
}

/// Records the reason why a connection ended, unless one is recorded already.
fn record_end(end: &watch::Sender<Option<ConnectionError>>, error: ConnectionError) {
    end.send_if_modified(|known| {
        let is_first = known.is_none();
        known.get_or_insert(error);
        is_first
    });
}

/// Whether an error only means that the driver has ended.
fn is_end(error: &LdapError) -> bool {
    matches!(
        error,
        LdapError::OpSend { .. }
            | LdapError::ResultRecv { .. }
            | LdapError::IdScrubSend { .. }
            | LdapError::MiscSend { .. }
            | LdapError::EndOfStream
    )
}

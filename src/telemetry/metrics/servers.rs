//! The series of directory servers: they are there for as long as the server is used, and removed with it, so that a
//! server that DNS no longer names leaves none behind.

use std::sync::{Arc, PoisonError};

use super::{DIRECTORY_CODES, Metrics};
use crate::base::labels::Label as _;
use crate::telemetry::labels::{ConnectionUse, DirectoryOperation};

/// Keeps the series of a server.
#[derive(Debug)]
pub(crate) struct ServerSeries {
    metrics: Arc<Metrics>,
    /// The directory's name and the server's URL.
    names: [Arc<str>; 2],
}

impl ServerSeries {
    /// Creates the series of a server of this directory, by its URL, unless they exist.
    #[must_use]
    pub(crate) fn new(metrics: &Arc<Metrics>, directory: &str, server: &str) -> Self {
        let names: [Arc<str>; 2] = [directory.into(), server.into()];
        *metrics.servers.lock().unwrap_or_else(PoisonError::into_inner).entry(names.clone()).or_default() += 1;
        metrics.know_server(names.each_ref().map(|name| &**name));
        Self { metrics: Arc::clone(metrics), names }
    }
}

impl Drop for ServerSeries {
    fn drop(&mut self) {
        let mut users = self.metrics.servers.lock().unwrap_or_else(PoisonError::into_inner);
        // After a reload there are two of one server for a while.
        let left = users.get(&self.names).copied().unwrap_or_default().saturating_sub(1);
        if left > 0 {
            users.insert(self.names.clone(), left);
            return;
        }
        users.remove(&self.names);
        self.metrics.forget_server(self.names.each_ref().map(|name| &**name));
    }
}

impl Metrics {
    /// Creates the series of a directory server.
    pub(super) fn know_server(&self, [directory, server]: [&str; 2]) {
        for operation in DirectoryOperation::ALL {
            for code in DIRECTORY_CODES {
                self.directory_operations.with_label_values(&[directory, server, operation.label(), code]);
            }
            self.directory_seconds.with_label_values(&[directory, server, operation.label()]);
        }
        self.directory_failovers.with_label_values(&[directory, server]);
    }

    /// Removes them; which of them exist does not matter.
    fn forget_server(&self, [directory, server]: [&str; 2]) {
        for operation in DirectoryOperation::ALL {
            for code in DIRECTORY_CODES {
                let _ = self.directory_operations.remove_label_values(&[directory, server, operation.label(), code]);
            }
            let _ = self.directory_seconds.remove_label_values(&[directory, server, operation.label()]);
        }
        let _ = self.directory_failovers.remove_label_values(&[directory, server]);
        let _ = self.directory_service_bind_ok.remove_label_values(&[directory, server]);
        let _ = self.directory_up.remove_label_values(&[directory, server]);
        let _ = self.directory_canary_ok.remove_label_values(&[directory, server]);
        let _ = self.directory_lag.remove_label_values(&[directory, server]);
        for used in ConnectionUse::ALL {
            self.directory_connections.remove_server([directory, server], *used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_a_server_end_with_its_last_user() {
        let metrics = Arc::new(Metrics::new());
        let url = "ldap://dc1.example.com:389";
        let (old, new) = (ServerSeries::new(&metrics, "a", url), ServerSeries::new(&metrics, "a", url));
        metrics.directory_operation(["a", url], DirectoryOperation::Bind, 49);
        metrics.directory_operation(["a", url], DirectoryOperation::Bind, 4_711);
        metrics.directory_service_bind_ok.with_label_values(&["a", url]).set(1);
        metrics.directory_connections.at_server(["a", url], ConnectionUse::Busy).set(1);
        let other = ServerSeries::new(&metrics, "b", url);
        drop(old);
        assert!(metrics.render().contains(url));
        drop(new);
        assert!(!metrics.render().contains("directory=\"a\""), "{}", metrics.render());
        assert!(metrics.render().contains(url), "another directory has it too");
        drop(other);
        assert!(!metrics.render().contains("dc1.example.com"), "{}", metrics.render());
    }
}

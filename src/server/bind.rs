//! Listening sockets: inherited or bound, each twice, so that a successor can get it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::net::TcpListener;
use tracing::info;

use super::StartError;
use super::handover::Inherited;
use super::supervise::KeptTask;
use crate::config::{self, Config, ListenerTls};
use crate::frontend::listener::{self, BoundListener};

/// How long closing a listener may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Identifies a listener.
pub(super) type ListenerKey = (SocketAddr, &'static str, ListenerTls);

/// A socket in use: connections are accepted until this is dropped. The socket once more, for a successor.
pub(super) struct Listening {
    pub(super) accepting: KeptTask,
    pub(super) socket: OwnedFd,
}

impl Listening {
    /// Stops accepting. Unlike after a drop, connections are refused when this returns.
    pub(super) async fn close(self) {
        drop(self.socket);
        self.accepting.end(CLOSE_TIMEOUT).await;
    }
}

pub(super) fn listener_key(config: &config::Listener) -> ListenerKey {
    (config.address, config.protocol.name, config.tls)
}

/// Listeners that would have to take over the address of an open one.
pub(super) fn collisions<T>(config: &Config, present: &HashMap<ListenerKey, T>) -> Vec<String> {
    let problem = |(index, listener): (usize, &config::Listener)| {
        let key = listener_key(listener);
        let (open, ..) =
            present.keys().find(|(open, ..)| !present.contains_key(&key) && config::collide(*open, key.0))?;
        let (name, words) = if *open == key.0 {
            let words =
                "a listener's protocol or tls cannot change while it is open: restart, or put the old value back";
            ("tls", words.to_owned())
        } else {
            (
                "address",
                format!(
                    "usher already listens at {open}, which includes this address: restart, or put the old value back"
                ),
            )
        };
        Some(config.problem(&format!("listeners[{index}].{name}"), words).to_string())
    };
    config.listeners.iter().enumerate().filter_map(problem).collect()
}

/// Inherits or binds the listeners that are not open yet; each with its socket once more.
pub(super) fn bind_new(
    config: &Config,
    present: &HashMap<ListenerKey, Listening>,
    inherited: &mut Inherited,
) -> Result<Vec<(BoundListener, OwnedFd)>, StartError> {
    let missing = |listener: &&config::Listener| !present.contains_key(&listener_key(listener));
    let numbered = config.listeners.iter().enumerate().filter(|(_, listener)| missing(listener));
    let bind = |(index, listener): (usize, &config::Listener)| {
        let bound = match inherited.take(listener.address, listener.socket.as_deref()) {
            Some(socket) => listener::adopt(listener, socket),
            None => listener::bind(listener),
        };
        let both = bound.and_then(|bound| bound.duplicate().map(|socket| (bound, socket)));
        both.map_err(|source| StartError::Bind {
            key: format!("listeners[{index}].address"),
            what: listener.address.to_string(),
            source,
        })
    };
    numbered.map(bind).collect()
}

/// The same for the address of `auth_http`, if it is not bound yet.
pub(super) fn bind_auth_http(
    config: &Config,
    present: Option<SocketAddr>,
    inherited: &mut Inherited,
) -> Result<Option<(SocketAddr, TcpListener, OwnedFd)>, StartError> {
    let address = config.auth_http.as_ref().map(|settings| settings.address);
    let bind = |address| {
        let (listener, socket) = bind_http(address, "auth_http.address", "auth_http listening", inherited)?;
        Ok((address, listener, socket))
    };
    address.filter(|address| present != Some(*address)).map(bind).transpose()
}

/// The same for an HTTP port.
pub(super) fn bind_http(
    address: SocketAddr,
    key: &str,
    words: &str,
    inherited: &mut Inherited,
) -> Result<(TcpListener, OwnedFd), StartError> {
    let mut bind = || {
        let socket = inherited.take(address, None).map_or_else(|| std::net::TcpListener::bind(address), Ok)?;
        socket.set_nonblocking(true)?;
        info!(address = %socket.local_addr()?, "{words}");
        let once_more = socket.try_clone()?.into();
        Ok((TcpListener::from_std(socket)?, once_more))
    };
    bind().map_err(|source| StartError::Bind { key: key.to_owned(), what: address.to_string(), source })
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::base::tasks::Task;
    use crate::server::supervise::Supervisor;
    use crate::telemetry::metrics::Metrics;

    #[tokio::test]
    async fn closed_listener_refuses_connections_at_once() {
        let supervisor = Supervisor::new(&Arc::new(Metrics::new()));
        let (listener, socket) =
            bind_http(SocketAddr::from(([127, 0, 0, 1], 0)), "x", "listening", &mut Inherited::default()).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = Arc::new(listener);
        let accepting = supervisor.keep_while(Task::AuthHttp, move || {
            let listener = Arc::clone(&listener);
            async move {
                loop {
                    let _ = listener.accept().await;
                }
            }
        });
        TcpStream::connect(address).unwrap();
        tokio::task::yield_now().await;
        Listening { accepting, socket }.close().await;
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn changed_listener_kind_is_distinguished_from_an_address_in_use() {
        let config = config::parse(Path::new("/c.yaml"), super::super::TEST_CONFIG).unwrap();
        let key = |port, tls| (SocketAddr::from(([127, 0, 0, 1], port)), "imap", tls);
        let present = [key(993, ListenerTls::Implicit), key(143, ListenerTls::StartTls)];
        let present = present.into_iter().map(|key| (key, ())).collect();
        let [problem] = collisions(&config, &present).try_into().unwrap();
        assert!(problem.starts_with("/c.yaml:3: listeners[1].tls: "), "{problem}");
        assert!(collisions::<()>(&config, &HashMap::new()).is_empty());
        let wildcard = (SocketAddr::from(([0, 0, 0, 0], 143)), "imap", ListenerTls::Implicit);
        let [problem] = collisions(&config, &HashMap::from([(wildcard, ())])).try_into().unwrap();
        assert!(
            problem.starts_with("/c.yaml:3: listeners[1].address: usher already listens at 0.0.0.0:143"),
            "{problem}"
        );
    }
}

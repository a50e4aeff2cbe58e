//! Listeners for clients: bind, accept, and a task for each connection.
//!
//! No client can block the accept loop: PROXY header and handshake are handled by the connection's own task.
//! Addresses are made canonical here, so that an IPv4 client of an IPv6 socket is never `::ffff:a.b.c.d` in a
//! log, a limit or a header.

use crate::frontend::proxy_header;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tracing::{error, warn};

use crate::base::sys::sockets;
use crate::config;
use crate::frontend::session::{self, Accepted};
use crate::process::Shared;
use crate::telemetry::log::Repeats;

/// How long to wait when the system has no descriptor left: sessions end meanwhile.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// A bound listener.
#[derive(Debug)]
pub(crate) struct BoundListener {
    socket: TcpListener,
    /// As configured.
    pub config: config::Listener,
    /// As bound: the port is known even where 0 was configured.
    pub address: SocketAddr,
}

/// Takes a socket that listens already. Must be called inside the runtime.
///
/// # Errors
/// It is no socket that listens.
pub(crate) fn adopt(config: &config::Listener, socket: std::net::TcpListener) -> io::Result<BoundListener> {
    sockets::require_listening(&socket)?;
    socket.set_nonblocking(true)?;
    // Once for all that it will accept. Options that cannot be set cost speed or a late end, not the login.
    let _ = sockets::tune(&socket, &sockets::CLIENT);
    let address = socket.local_addr()?;
    Ok(BoundListener { socket: TcpListener::from_std(socket)?, config: config.clone(), address })
}

impl BoundListener {
    /// The socket once more, to be handed over while it is in use.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }
}

/// Accepts until the task is ended.
pub(crate) async fn accept(shared: Arc<Shared>, bound: Arc<BoundListener>) {
    let BoundListener { socket, config, address } = &*bound;
    let (config, address) = (Arc::new(config.clone()), *address);
    let repeats = Repeats::default();
    loop {
        let (tcp, peer) = match socket.accept().await {
            Ok(accepted) => accepted,
            // The client disconnected before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                if let Some(suppressed) = repeats.allow("accept", "") {
                    error!(%error, %address, suppressed, "cannot accept connections; is LimitNOFILE too low?");
                }
                sleep(EXHAUSTED_PAUSE).await;
                continue;
            }
        };
        let permit = match shared.enter(&shared.snapshot.load().config.limits) {
            Ok(permit) => permit,
            Err(limit) => {
                shared.metrics.connections_refused.inc();
                if let Some(suppressed) = repeats.allow("limit", limit) {
                    warn!(limit, suppressed, "connection closed: connection limit reached");
                }
                continue;
            }
        };
        let local = canonical(tcp.local_addr().unwrap_or(address));
        // An IPv6 wildcard that was open before 0.0.0.0 was configured too serves both.
        let over_ipv4 = config.address.is_ipv6() && local.is_ipv4();
        let (listener, client, since) = (Arc::clone(&config), canonical(peer), Instant::now());
        let accepted = Accepted { tcp, client, local, since, listener, over_ipv4, permit };
        tokio::spawn(enter(Arc::clone(&shared), accepted));
    }
}

/// Starts a session for the peer, or for a proxy's client.
async fn enter(shared: Arc<Shared>, mut accepted: Accepted) {
    let snapshot = shared.snapshot.load_full();
    // A reload can change the trusted proxies.
    let listener = Arc::clone(&accepted.listener);
    let current = snapshot.config.listener_now(&listener, accepted.over_ipv4).unwrap_or(&listener);
    if let Some(proxies) = &current.proxies
        && proxy_header::receive(&shared, &snapshot.config, proxies, &mut accepted).await.is_none()
    {
        return;
    }
    drop(snapshot);
    session::serve(shared, accepted).await;
}

/// An IPv4 client of an IPv6 socket is an IPv4 client.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use socket2::SockRef;

    use super::*;

    /// Whether a socket is set as [`sockets::tune`] sets it.
    fn is_tuned(tcp: &TcpStream) -> bool {
        let socket = SockRef::from(tcp);
        let options = (socket.tcp_nodelay().unwrap(), socket.keepalive().unwrap());
        let times = (socket.tcp_keepalive_time().unwrap(), socket.tcp_user_timeout().unwrap());
        options == (true, true) && times == (sockets::CLIENT.idle, Some(sockets::CLIENT.user_timeout))
    }

    #[tokio::test]
    async fn accepted_socket_has_the_options_of_the_listener() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let config = config::Listener {
                protocol: crate::proto::PROTOCOLS.first().unwrap(),
                address: address.parse().unwrap(),
                tls: config::ListenerTls::Implicit,
                mechanisms: None,
                proxies: None,
                socket: None,
                clients: config::ClientCertificates { auth: config::ClientAuth::Off, ca: None, crl: None },
                client_login: None,
            };
            let bound = adopt(&config, sockets::listen(config.address, false).unwrap()).unwrap();
            let client = TcpStream::connect(bound.address).await.unwrap();
            assert!(!is_tuned(&client), "not by default");
            assert!(is_tuned(&bound.socket.accept().await.unwrap().0));
            // A socket that another process made as well.
            let foreign = std::net::TcpListener::bind(address).unwrap();
            let adopted = adopt(&config, foreign).unwrap();
            let _client = TcpStream::connect(adopted.address).await.unwrap();
            assert!(is_tuned(&adopted.socket.accept().await.unwrap().0));
        }
    }
}

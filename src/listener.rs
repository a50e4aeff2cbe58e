//! Where clients come in: bind, accept, and a task for each connection.
//!
//! Nothing a client does can hold up the loop: the handshake is the session's matter. Addresses are
//! made canonical here, so that an IPv4 client of an IPv6 socket is never `::ffff:a.b.c.d` in a
//! log, a limit or a header.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tracing::{error, warn};

use crate::config;
use crate::log::Repeats;
use crate::session::{self, Accepted};
use crate::snapshot::Shared;
use crate::sys;

/// Connections that wait for accept; the system lowers it to its own limit.
const BACKLOG: i32 = 4096;
/// How long to wait when the system has no descriptor left: sessions end meanwhile.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// A bound listener.
#[derive(Debug)]
pub struct Bound {
    socket: TcpListener,
    /// As configured.
    pub config: config::Listener,
    /// As bound: the port is known even where 0 was configured.
    pub address: SocketAddr,
}

/// Binds a listener. Must be called inside the runtime.
///
/// # Errors
/// The system's reason: the address is in use, is not local, or the port needs a capability.
pub fn bind(config: &config::Listener) -> io::Result<Bound> {
    let socket = Socket::new(Domain::for_address(config.address), Type::STREAM, Some(Protocol::TCP))?;
    if config.address.is_ipv6() {
        // `[::]` takes both families, whatever the system's default.
        socket.set_only_v6(false)?;
    }
    // A restart must not wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&config.address.into())?;
    socket.listen(BACKLOG)?;
    adopt(config, socket.into())
}

/// Takes a socket that listens already, from another process. Must be called inside the runtime.
///
/// # Errors
/// It is no socket that listens.
pub fn adopt(config: &config::Listener, socket: std::net::TcpListener) -> io::Result<Bound> {
    if !SockRef::from(&socket).is_listener()? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket that was handed over does not listen"));
    }
    socket.set_nonblocking(true)?;
    let address = socket.local_addr()?;
    Ok(Bound { socket: TcpListener::from_std(socket)?, config: config.clone(), address })
}

impl Bound {
    /// The socket once more, to be handed over while it is in use.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }
}

/// Accepts until the task is ended.
pub async fn accept(shared: Arc<Shared>, bound: Bound) {
    let Bound { socket, config, address } = bound;
    let repeats = Repeats::default();
    loop {
        let (tcp, client) = match socket.accept().await {
            Ok(accepted) => accepted,
            // The client went away before it was its turn.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                if let Some(suppressed) = repeats.allow("accept", "") {
                    error!(%error, %address, suppressed, "cannot accept connections; is LimitNOFILE too low?");
                }
                sleep(EXHAUSTED_PAUSE).await;
                continue;
            }
        };
        let limit = shared.snapshot.load().config.limits.connections;
        let Some(permit) = shared.permit(limit) else {
            shared.metrics.connections_refused.inc();
            if let Some(suppressed) = repeats.allow("limit", "") {
                warn!(limit, suppressed, "connection closed: limits.connections is met");
            }
            continue;
        };
        // Options that cannot be set cost speed or a late end, not the login.
        let _ = sys::tune(&tcp);
        let client = client.ip().to_canonical();
        let accepted = Accepted { tcp, client, protocol: config.protocol, tls: config.tls, permit };
        tokio::spawn(session::serve(Arc::clone(&shared), accepted));
    }
}

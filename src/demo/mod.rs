//! `usher demo`: a directory, two mail servers and usher in front of them, all on this machine.
//!
//! A newcomer sees in half a minute what usher does, with nothing installed but cargo: real LDAP
//! and real TLS on loopback ports, from a configuration that can be read. It is compiled only with
//! the feature `demo`; the production binary carries none of it.

pub(crate) mod authority;
pub(crate) mod client;
pub(crate) mod directory;
mod issuer;
pub(crate) mod ldif;
pub(crate) mod mailbox;
pub(crate) mod post;
mod scene;
mod tour;
mod welcome;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

pub(crate) use tour::{Options, run};

/// The entries of the demo's directory.
pub(crate) const LDIF: &str = include_str!("../../deploy/demo.ldif");
/// The account that may change entries.
pub(crate) const ADMIN: &str = "cn=admin,dc=demo,dc=example";
/// The admin's password, as in the LDIF.
pub(crate) const ADMIN_PASSWORD: &str = "demo-admin";

/// How many connections one demo server holds.
const CONNECTIONS: usize = 256;
/// How long a demo server waits for the next request (RFC 3501 section 5.4 asks for 30 minutes).
const IDLE: Duration = Duration::from_secs(30 * 60);
/// How long a demo server waits for a peer that does not read, or for a TLS handshake.
const WRITE: Duration = Duration::from_secs(10);

/// Accepts connections; each is a task of its own. Never returns.
async fn serve<F, C>(listener: TcpListener, converse: F)
where
    F: Fn(TcpStream) -> C,
    C: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // The semaphore is never closed: the loop ends with its task.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Small answers must not wait for the peer's delayed acknowledgement.
                let _ = stream.set_nodelay(true);
                let conversation = converse(stream);
                tokio::spawn(async move {
                    conversation.await;
                    drop(place);
                });
            }
            // Out of descriptors, most likely: accepting again at once would spin.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

//! A client's first message (ClientHello), read before a configuration is chosen for it.
//!
//! Sets no deadline: callers do. RFC 8446 section 4.1.2.

use std::io;

use rustls::server::{Accepted, AcceptedAlert, Acceptor};
use rustls::{HandshakeKind, ServerConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::server_name::{self, Hiding};

/// The most that one system call reads: such a message has 200 to 2,000 bytes.
const READ: usize = 2048;
/// The most that is kept of what a client sends. Below the size from which freed memory is not wiped: a client
/// that does not speak TLS sends its password here.
const KEPT: usize = 12 * 1024;

/// A client's first message.
pub(super) struct Hello {
    pub accepted: Accepted,
    /// Whether it has a name that rustls refuses and does not see.
    pub name_hidden: bool,
}

/// Why a handshake ends, and what the client is to be sent.
pub(super) struct Failure {
    pub error: io::Error,
    pub alert: Vec<u8>,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { error, alert: Vec::new() }
    }
}

impl From<(rustls::Error, AcceptedAlert)> for Failure {
    fn from((error, mut source): (rustls::Error, AcceptedAlert)) -> Self {
        let mut alert = Vec::new();
        // Memory takes all of it.
        let _ = source.write_all(&mut alert);
        Self { error: io::Error::new(io::ErrorKind::InvalidData, error), alert }
    }
}

/// Reads the message.
pub(super) async fn first(tcp: &mut TcpStream) -> Result<Hello, Failure> {
    let mut acceptor = Acceptor::default();
    let (mut wire, mut kept) = (Vec::new(), true);
    loop {
        let before = wire.len();
        receive(tcp, &mut wire).await?;
        match accept(&mut acceptor, wire.get(before..).unwrap_or_default()) {
            Ok(Some(accepted)) => return Ok(Hello { accepted, name_hidden: false }),
            Ok(None) => {}
            // Whatever rustls refuses, it may be the name.
            Err(failure) if kept && server_name::hide(&mut wire) == Hiding::Hidden => {
                let accepted = accept(&mut Acceptor::default(), &wire)?.ok_or(failure)?;
                return Ok(Hello { accepted, name_hidden: true });
            }
            Err(failure) => return Err(failure),
        }
        kept &= wire.len() <= KEPT;
        if !kept {
            wire.clear();
        }
    }
}

/// Goes on where the answer to a message with a hidden name is to send another (HelloRetryRequest): that has the
/// same name.
pub(super) async fn second(tcp: &mut TcpStream, connection: &mut ServerConnection) -> Result<(), Failure> {
    if connection.handshake_kind() != Some(HandshakeKind::FullWithHelloRetryRequest) {
        return Ok(());
    }
    tcp.write_all(&to_send(connection)).await?;
    let mut wire = Vec::new();
    while wire.len() <= KEPT && server_name::hide(&mut wire) == Hiding::Incomplete {
        receive(tcp, &mut wire).await?;
    }
    let mut rest = wire.as_slice();
    while !rest.is_empty() {
        connection.read_tls(&mut rest)?;
        if let Err(error) = connection.process_new_packets() {
            return Err(Failure {
                error: io::Error::new(io::ErrorKind::InvalidData, error),
                alert: to_send(connection),
            });
        }
    }
    Ok(())
}

/// Appends one read.
async fn receive(tcp: &mut TcpStream, wire: &mut Vec<u8>) -> io::Result<()> {
    // Not for each byte of a client that sends one at a time.
    if wire.capacity() - wire.len() < READ / 4 {
        wire.reserve_exact(READ);
    }
    if tcp.read_buf(wire).await? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

fn accept(acceptor: &mut Acceptor, mut bytes: &[u8]) -> Result<Option<Accepted>, Failure> {
    while !bytes.is_empty() {
        acceptor.read_tls(&mut bytes)?;
    }
    Ok(acceptor.accept()?)
}

fn to_send(connection: &mut ServerConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while connection.wants_write() && connection.write_tls(&mut bytes).is_ok_and(|written| written > 0) {}
    bytes
}

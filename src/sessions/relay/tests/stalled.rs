//! A receiver reads nothing, and its sender resets behind unread data: on sockets, since this
//! depends on the kernel.

use tokio::net::{TcpListener, TcpSocket};

use super::*;

async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpSocket::new_v4().unwrap();
    near.set_recv_buffer_size(32 * 1024).unwrap();
    let near = near.connect(listener.local_addr().unwrap()).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    // So that the buffers are small.
    let _ = crate::base::sys::sockets::tune(&far, &crate::base::sys::sockets::CLIENT);
    (near, far)
}

/// More than a receiver that does not read buffers, and less than fills the relay's window: a kernel
/// drops a reset outside of it, and only the next probe detects it.
const SAID: usize = 480 * 1024;

struct Sockets {
    client: TcpStream,
    backend: TcpStream,
    relay: tokio::task::JoinHandle<RelayOutcome>,
}

async fn start() -> Sockets {
    let (client, client_side) = connection().await;
    let (backend, backend_side) = connection().await;
    let end = |side: TcpStream| RelaySide { stream: side.into(), first: Vec::new(), own: 0, sent: counter() };
    let (at_client, at_backend) = (end(client_side), end(backend_side));
    let relay = tokio::spawn(async move {
        Relay::new(at_client, at_backend, IDLE).run(&ClosingLine::Close, &mut pending::<TerminationReason>()).await
    });
    Sockets { client, backend, relay }
}

async fn cause(relay: tokio::task::JoinHandle<RelayOutcome>) -> EndReason {
    timeout(3 * (STALL_PROBE + STALL_PROBE), relay).await.expect("not noticed").unwrap().cause
}

#[tokio::test]
async fn client_reset_is_detected_while_the_backend_reads_nothing() {
    let mut sockets = start().await;
    sockets.client.write_all(&[b'x'; SAID]).await.unwrap();
    sockets.client.set_zero_linger().unwrap();
    drop(sockets.client);
    assert_eq!(cause(sockets.relay).await, EndReason::ClientError);
}

#[tokio::test]
async fn backend_reset_is_detected_while_the_client_reads_nothing() {
    let mut sockets = start().await;
    sockets.backend.write_all(&[b'x'; SAID]).await.unwrap();
    sockets.backend.set_zero_linger().unwrap();
    drop(sockets.backend);
    assert_eq!(cause(sockets.relay).await, EndReason::BackendError);
}

#[tokio::test]
async fn sender_that_closes_before_a_pausing_receiver_is_relayed_completely() {
    let mut sockets = start().await;
    sockets.backend.write_all(&[b'x'; SAID]).await.unwrap();
    sockets.backend.shutdown().await.unwrap();
    // Two checks of a connection that is closed and not reset.
    tokio::time::sleep(STALL_PROBE * 2 + STALL_PROBE / 2).await;
    assert!(!sockets.relay.is_finished());
    let mut heard = Vec::new();
    sockets.client.read_to_end(&mut heard).await.unwrap();
    drop(sockets.client);
    let ended = timeout(Duration::from_secs(10), sockets.relay).await.unwrap().unwrap();
    assert_eq!((ended.cause, ended.bytes_out), (EndReason::Closed, SAID as u64));
}

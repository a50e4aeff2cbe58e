//! TLS connections: a close may arrive in one read with the bytes before it.

use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use super::*;
use crate::base::secret::SecretBuf;

/// Both ends of an established connection over a pipe of this size.
async fn connection(pipe: usize) -> (Stream<DuplexStream>, Stream<DuplexStream>) {
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let server = server.unwrap().with_no_client_auth().with_single_cert(vec![pair.cert.der().clone()], key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(pair.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = client.with_root_certificates(roots).with_no_client_auth();

    let (near, far) = duplex(pipe);
    let client = ClientConnection::new(Arc::new(client), ServerName::try_from("localhost").unwrap()).unwrap();
    let server = ServerConnection::new(Arc::new(server)).unwrap();
    let (near, far) = (Stream::under_tls(near, client.into()), Stream::under_tls(far, server.into()));
    let (near, far) = tokio::join!(near.handshake(), far.handshake());
    (near.unwrap(), far.unwrap())
}

/// A backend that has sent everything and closed; the client's side of the relay at its start.
async fn last_words(words: &[u8]) -> (Stream<DuplexStream>, tokio::task::JoinHandle<RelayOutcome>) {
    let (client, client_side) = connection(4_096).await;
    let (backend_side, mut backend) = connection(1 << 20).await;
    backend.write_all(words).await.unwrap();
    backend.shutdown().await.unwrap();
    let client_end = RelaySide { stream: client_side, first: Vec::new(), own: 0, sent: counter() };
    let backend_end = RelaySide { stream: backend_side, first: Vec::new(), own: 0, sent: counter() };
    let relay = tokio::spawn(async move {
        let ended = run(client_end, backend_end, ClosingLine::Close, pending()).await;
        drop(backend);
        ended
    });
    (client, relay)
}

#[tokio::test(start_paused = true)]
async fn last_bytes_reach_a_slow_client_after_the_close() {
    let words = vec![b'w'; 60_000];
    let (mut client, relay) = last_words(&words).await;
    // Longer than the limit of a silent half-closed session.
    tokio::time::sleep(2 * HALF_CLOSED_IDLE).await;
    let mut heard = SecretBuf::new();
    while client.fill(&mut heard).await.unwrap() > 0 {}
    assert!(heard.as_slice() == words, "{} bytes", heard.len());
    client.shutdown().await.unwrap();
    let ended = relay.await.unwrap();
    assert_eq!(ended, RelayOutcome { cause: EndReason::Closed, bytes_in: 0, bytes_out: 60_000 });
}

#[tokio::test(start_paused = true)]
async fn client_gone_before_the_last_bytes_is_reported() {
    let (client, relay) = last_words(&[b'w'; 60_000]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(client);
    assert_eq!(relay.await.unwrap().cause, EndReason::ClientError);
}

#[tokio::test(start_paused = true)]
async fn coalesced_records_reach_a_slow_cleartext_client_in_order() {
    let words: Vec<u8> = (0..200_000_u32).map(|at| (at.wrapping_mul(77_777) >> 13) as u8).collect();
    let (mut client, client_side) = duplex(1_000);
    let (backend_side, mut backend) = connection(1 << 20).await;
    backend.write_all(&words).await.unwrap();
    backend.flush().await.unwrap();
    let client_end = RelaySide { stream: client_side.into(), first: Vec::new(), own: 0, sent: counter() };
    let backend_end = RelaySide { stream: backend_side, first: Vec::new(), own: 0, sent: counter() };
    let relay = tokio::spawn(run(client_end, backend_end, ClosingLine::Close, pending()));
    let mut heard = vec![0; words.len()];
    client.read_exact(&mut heard).await.unwrap();
    assert!(heard == words);
    drop(client);
    assert_eq!(relay.await.unwrap().bytes_out, 200_000);
}

#[tokio::test(start_paused = true)]
async fn many_small_records_among_large_ones_keep_their_order() {
    let words: Vec<u8> = (0..60_000_u32).map(|at| (at.wrapping_mul(99_991) >> 13) as u8).collect();
    let (mut client, client_side) = connection(1 << 20).await;
    let (backend_side, mut backend) = connection(1 << 20).await;
    let mut rest = words.as_slice();
    while !rest.is_empty() {
        // A record for each byte of the first 500 of every 10,000; none waits for the one before.
        for piece in rest[..500].chunks(1).chain([&rest[500..10_000]]) {
            backend.write_all(piece).await.unwrap();
        }
        rest = &rest[10_000..];
    }
    backend.shutdown().await.unwrap();
    let client_end = RelaySide { stream: client_side, first: Vec::new(), own: 0, sent: counter() };
    let backend_end = RelaySide { stream: backend_side, first: Vec::new(), own: 0, sent: counter() };
    let relay = tokio::spawn(run(client_end, backend_end, ClosingLine::Close, pending()));
    let mut heard = SecretBuf::new();
    while client.fill(&mut heard).await.unwrap() > 0 {}
    assert!(heard.as_slice() == words, "{} bytes", heard.len());
    client.shutdown().await.unwrap();
    assert_eq!(relay.await.unwrap().bytes_out, 60_000);
}

//! The cost of a relayed byte, TLS 1.3 on both sides: the CPU time of the relay's thread alone.
//!
//! A client, a relay and a backend over loopback, each in a thread; the times that criterion shows
//! are the CPU time of the relay's thread without that of its peers.
#![allow(missing_docs, clippy::unwrap_used, reason = "a program for developers, and criterion's macros")]

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use usher::internals::ClosingLine;
use usher::internals::Stream;
use usher::internals::relay::{Relay, RelaySide};

/// Size of one transfer.
const SIZE: usize = 16 * 1024 * 1024;

#[derive(Clone)]
struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl Tls {
    fn new() -> Self {
        let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![pair.cert.der().clone()], key)
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(pair.cert.der().clone()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { acceptor: Arc::new(server).into(), connector: Arc::new(client).into() }
    }

    async fn accept(&self, listener: &TcpListener) -> tokio_rustls::server::TlsStream<TcpStream> {
        self.acceptor.accept(listener.accept().await.unwrap().0).await.unwrap()
    }

    async fn connect(&self, to: std::net::SocketAddr) -> tokio_rustls::client::TlsStream<TcpStream> {
        let name = ServerName::try_from("localhost").unwrap();
        self.connector.connect(name, TcpStream::connect(to).await.unwrap()).await.unwrap()
    }
}

/// Runs a future in a thread with a separate runtime.
fn thread<F: Future<Output = ()>>(run: impl FnOnce() -> F + Send + 'static) {
    std::thread::spawn(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run());
    });
}

/// The CPU time of a thread: the first number of its schedstat, in nanoseconds.
fn cpu(thread: &str) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// Sends [`SIZE`] bytes as many times as requested through the channel.
async fn send(stream: impl Into<TlsStream<TcpStream>>, mut times: UnboundedReceiver<u64>) {
    let (mut stream, chunk) = (stream.into(), vec![b'm'; 64 * 1024]);
    while let Some(times) = times.recv().await {
        for _ in 0..times * (SIZE / chunk.len()) as u64 {
            stream.write_all(&chunk).await.unwrap();
        }
        stream.flush().await.unwrap();
    }
}

/// Notifies each time another [`SIZE`] bytes have arrived.
async fn receive(stream: impl Into<TlsStream<TcpStream>>, arrived: mpsc::Sender<()>) {
    let (mut stream, mut chunk, mut rest) = (stream.into(), vec![0; 64 * 1024], SIZE);
    loop {
        let room = rest.min(chunk.len());
        let Ok(read @ 1..) = stream.read(chunk.get_mut(..room).unwrap()).await else { return };
        rest -= read;
        if rest == 0 {
            rest = SIZE;
            if arrived.send(()).is_err() {
                return;
            }
        }
    }
}

fn throughput(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("relay");
    group.throughput(Throughput::Bytes(SIZE as u64)).sample_size(20);
    for (name, up) in [("download", false), ("upload", true)] {
        let tls = Tls::new();
        let (addressed, address) = mpsc::channel();
        let (times, requested) = tokio::sync::mpsc::unbounded_channel();
        let (arrived, arrivals) = mpsc::channel();
        let (client_side, backend_side) = match up {
            true => ((Some(requested), None), (None, Some(arrived))),
            false => ((None, Some(arrived)), (Some(requested), None)),
        };
        let (at_backend, at_relay, at_client) = (tls.clone(), tls.clone(), tls);
        thread(move || async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addressed.send(listener.local_addr().unwrap()).unwrap();
            peer(at_backend.accept(&listener).await, backend_side).await;
        });
        let backend = address.recv().unwrap();
        let (addressed, address) = mpsc::channel();
        let (named, thread_name) = mpsc::channel();
        thread(move || async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addressed.send(listener.local_addr().unwrap()).unwrap();
            let (tcp, connection) = at_relay.accept(&listener).await.into_inner();
            let client = Stream::under_tls(tcp, connection.into());
            let (tcp, connection) = at_relay.connect(backend).await.into_inner();
            let backend = Stream::under_tls(tcp, connection.into());
            usher::internals::sockets::tune(client.tcp(), &usher::internals::sockets::CLIENT).unwrap();
            usher::internals::sockets::tune(backend.tcp(), &usher::internals::sockets::CLIENT).unwrap();
            let link = std::fs::read_link("/proc/thread-self").unwrap();
            named.send(link.file_name().unwrap().to_string_lossy().into_owned()).unwrap();
            let end = |stream: Stream| RelaySide {
                stream,
                own: 0,
                first: Vec::new(),
                sent: prometheus::IntCounter::new("sent", "bytes").unwrap(),
            };
            let mut relay = Relay::new(end(client), end(backend), Duration::from_secs(60));
            relay.run(&ClosingLine::Close, &mut std::future::pending()).await;
        });
        let relay = address.recv().unwrap();
        thread(move || async move { peer(at_client.connect(relay).await, client_side).await });
        let relays = thread_name.recv().unwrap();
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let before = cpu(&relays);
                times.send(iterations).unwrap();
                for _ in 0..iterations {
                    arrivals.recv().unwrap();
                }
                cpu(&relays) - before
            });
        });
    }
    group.finish();
}

/// The sending or the receiving peer.
async fn peer(
    stream: impl Into<TlsStream<TcpStream>>,
    task: (Option<UnboundedReceiver<u64>>, Option<mpsc::Sender<()>>),
) {
    match task {
        (Some(times), _) => send(stream, times).await,
        (None, Some(arrived)) => receive(stream, arrived).await,
        (None, None) => {}
    }
}

criterion_group!(benches, throughput);
criterion_main!(benches);

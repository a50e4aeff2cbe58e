//! The server half: connections of the control socket, each with one request, all within bounds.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use futures_util::FutureExt as _;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::{Request, routes};
use crate::snapshot::Shared;

/// Connections at a time: administrators and their scripts. Whoever comes then waits.
const CONNECTIONS: u32 = 32;
/// From the connection to the end of the request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A head is one line and some words; hyper wants no less.
const HEAD_LIMIT: usize = 8 * 1024;
/// From the connection to the end of the answer: an upgrade takes 45 s at the most.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long to wait when the system has no descriptor left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Who asks: the process at the other end of the socket (SO_PEERCRED, unix(7)).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Caller {
    pub(super) uid: Option<u32>,
    pub(super) pid: Option<i32>,
}

impl Caller {
    fn of(stream: &UnixStream) -> Self {
        let credentials = stream.peer_cred().ok();
        Self { uid: credentials.map(|it| it.uid()), pid: credentials.and_then(|it| it.pid()) }
    }
}

/// Serves the control socket until the other end of `until` is dropped, and what is being answered then.
pub async fn serve(
    listener: UnixListener,
    shared: Arc<Shared>,
    orders: mpsc::Sender<Request>,
    until: oneshot::Receiver<Infallible>,
) {
    let router = routes::router(shared, orders);
    let places = Arc::new(Semaphore::new(CONNECTIONS as usize));
    let mut until = until.fuse();
    loop {
        let accepted = tokio::select! {
            _ = &mut until => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, place)) = accepted else {
            sleep(EXHAUSTED_PAUSE).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone().layer(Extension(Caller::of(&stream))));
        tokio::spawn(async move {
            let mut http = http1::Builder::new();
            http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_LIMIT);
            // Who is late or breaks the protocol gets no answer; that is all.
            let _ = timeout(EXCHANGE_TIMEOUT, http.serve_connection(TokioIo::new(stream), service)).await;
            drop(place);
        });
    }
    // Each has an end of its own.
    let _ = places.acquire_many(CONNECTIONS).await;
}

async fn accept(listener: &UnixListener, places: &Arc<Semaphore>) -> Option<(UnixStream, OwnedSemaphorePermit)> {
    // The semaphore is never closed.
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    let (stream, _) = listener.accept().await.ok()?;
    Some((stream, place))
}

//! The side port: `/metrics`, `/live` and `/ready` over HTTP for machines that watch, and `/`, the status
//! page, for people.
//!
//! It changes nothing and names no user. One request a connection, all of it within
//! `EXCHANGE_TIMEOUT`, so that no peer can hold its descriptors. What steers usher is on the
//! control socket ([`control`]), which only its owner can open.

pub mod control;
pub mod overview;
mod status;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::metrics::Metrics;
use crate::snapshot::{Shared, Stage};
use status::Status;

/// How long a request and its answer may take together.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at a time: some scrapers and health checks.
const CONNECTIONS: usize = 256;
/// How long to wait when the system has no descriptor left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Serves the side port until the task is ended.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let status = Status::new(Arc::clone(&shared));
    let page = Router::new().route("/", get(status::show)).with_state(Arc::clone(&status));
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .with_state(shared)
        .merge(page);
    tokio::join!(exchange(listener, router, EXCHANGE_TIMEOUT), status.keep());
}

async fn exchange(listener: TcpListener, router: Router, limit: Duration) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // The semaphore is never closed: the loop ends with its task.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let Ok((tcp, _)) = listener.accept().await else {
            sleep(EXHAUSTED_PAUSE).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(tcp), service);
            // Who is late or breaks the protocol gets no answer; that is all.
            let _ = timeout(limit, connection).await;
            drop(place);
        });
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    // Encoding thousands of series takes milliseconds, which no login should wait for.
    let rendered = tokio::task::spawn_blocking(move || shared.metrics.scrape(|metrics| refresh(&shared, metrics)));
    match rendered.await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Sets the gauges that are known when they are asked for.
fn refresh(shared: &Shared, metrics: &Metrics) {
    let snapshot = shared.snapshot.load();
    let entries = snapshot.authn.cache().entries();
    metrics.cache_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
    let dropped = &metrics.log_dropped;
    dropped.inc_by((shared.log.dropped() as u64).saturating_sub(dropped.get()));
    if let Some((held, limit)) = crate::sys::sockets::kernel_memory() {
        metrics.kernel_tcp_memory.set(i64::try_from(held).unwrap_or(i64::MAX));
        metrics.kernel_tcp_memory_limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
    }
    shared.throttle.measure();
    snapshot.directory.show();
    for backend in &snapshot.backends {
        backend.show(metrics);
        let draining = shared.steer.drained(&backend.name).is_some();
        metrics.backend_draining.with_label_values(&[&*backend.name]).set(draining.into());
    }
}

/// Ready once the directory has answered, until the drain begins. A later outage of the directory
/// does not unready every node at once: cached users still get in, and it has metrics of its own.
async fn ready(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let stage = *shared.stage.borrow();
    if stage == Stage::Unready {
        (StatusCode::SERVICE_UNAVAILABLE, "taken away by an administrator: `usher drain --undo`\n")
    } else if stage != Stage::Serving {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if !shared.directory_answered.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "the directory has not answered yet\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_says_nothing_is_closed_and_another_is_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/live", get(|| async { "live\n" }));
        tokio::spawn(exchange(listener, router, Duration::from_millis(300)));
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut asking = TcpStream::connect(address).await.unwrap();
        asking.write_all(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("live\n"), "{answer}");
        let closed = timeout(Duration::from_secs(10), silent.read(&mut [0])).await.expect("an end in time");
        assert_eq!(closed.unwrap(), 0);
    }
}

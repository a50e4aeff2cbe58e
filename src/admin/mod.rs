//! The side port: `/metrics`, `/live` and `/ready` over HTTP for machines that watch, and `/`, the status
//! page, for people.
//!
//! It changes nothing and names no user. One request a connection, all of it within
//! `EXCHANGE_TIMEOUT`, so that no peer can hold its descriptors; slots are shared out (`slots`), pages are
//! rendered at a limited rate (`rendering`), and only for requests by a name of this machine (`hosts`). Commands
//! are on the control socket ([`control`]), which only its owner can open.

pub(crate) mod asked;
pub(crate) mod control;
mod hosts;
pub(crate) mod overview;
mod rendering;
mod slots;
mod status;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::directory::Probes;
use crate::process::{Shared, Stage};
use crate::telemetry::log::Bounded;
use crate::telemetry::metrics::Metrics;
use hosts::{ForeignHosts, OwnNames};
use rendering::RateLimitedText;
use slots::{ConnectionSlots, SlotLimits};
use status::Status;

/// From the connection to the end of the request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a request and its answer may take together.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at a time: some scrapers and health checks; and those of one address.
const SLOTS: SlotLimits = SlotLimits { all: 256, share: 64, reserved: 0 };
/// The status page is made at most once in this time, the metrics at most once in that.
const PAGE_PERIOD: Duration = Duration::from_secs(1);
const METRICS_PERIOD: Duration = Duration::from_millis(100);
/// How long to wait when the system has no descriptor left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// The reply to a connection without a slot.
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// The side port: what it answers, whoever has connected.
pub(crate) struct SidePort {
    status: Arc<Status>,
    router: Router,
    slots: Arc<ConnectionSlots<IpAddr>>,
}

impl SidePort {
    /// For one process.
    #[must_use]
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        let status = Status::new(Arc::clone(shared));
        let page = {
            let status = Arc::clone(&status);
            RateLimitedText::new(PAGE_PERIOD, move || status.measured())
        };
        let metrics = {
            let shared = Arc::clone(shared);
            RateLimitedText::new(METRICS_PERIOD, move || shared.metrics.scrape(|metrics| refresh(&shared, metrics)))
        };
        let (own, requested) = (Arc::new((OwnNames::read(), ForeignHosts::default())), Arc::clone(shared));
        let router = Router::new()
            .route("/live", get(|| async { "live\n" }))
            .route("/ready", get(ready))
            .with_state(Arc::clone(shared))
            .merge(Router::new().route("/", get(status::show)).with_state(page))
            .merge(Router::new().route("/metrics", get(self::metrics)).with_state(metrics))
            .layer(middleware::from_fn(move |request: Request, next: Next| {
                let (names, foreign) = &*own;
                let is_own = names.are_asked_for(request.headers(), &requested.snapshot.load());
                if !is_own && let Some(host) = foreign.first_seen(request.headers()) {
                    warn!(
                        host = %Bounded(host),
                        "side port: replied 421, not a name of this machine; if it should be, add it to admin.hosts",
                    );
                }
                async move { if is_own { next.run(request).await } else { MISDIRECTED.into_response() } }
            }));
        Self { status, router, slots: ConnectionSlots::new(SLOTS) }
    }

    /// Serves it until the task is ended.
    pub(crate) async fn serve(&self, listener: &TcpListener) {
        exchange(listener, &self.router, &self.slots).await;
    }

    /// Samples the counters periodically; never returns.
    pub(crate) async fn sample(&self) {
        self.status.keep().await;
    }
}

/// The reply to a request for a foreign name.
const MISDIRECTED: (StatusCode, &str) =
    (StatusCode::MISDIRECTED_REQUEST, "not a name of this machine: add it to `admin.hosts`, or use the address\n");

async fn exchange(listener: &TcpListener, router: &Router, slots: &Arc<ConnectionSlots<IpAddr>>) {
    loop {
        let Ok((tcp, peer)) = listener.accept().await else {
            sleep(EXHAUSTED_PAUSE).await;
            continue;
        };
        let Some(slot) = slots.take(peer.ip().to_canonical(), false) else {
            // Whether it is heard does not matter.
            let _ = tcp.try_write(BUSY);
            continue;
        };
        let requested = slot.request_flag();
        let router = router.clone().layer(middleware::from_fn(move |request: Request, next: Next| {
            requested.set();
            next.run(request)
        }));
        tokio::spawn(async move {
            let mut http = http1::Builder::new();
            http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            let connection = http.serve_connection(TokioIo::new(tcp), TowerToHyperService::new(router));
            tokio::select! {
                // A late or malformed request gets no reply.
                _ = timeout(EXCHANGE_TIMEOUT, connection) => {}
                () = slot.evicted() => {}
            }
        });
    }
}

async fn metrics(State(metrics): State<Arc<RateLimitedText>>) -> Response {
    match metrics.text().await {
        Some(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Sets the gauges that are known at each scrape.
fn refresh(shared: &Shared, metrics: &Metrics) {
    let snapshot = shared.snapshot.load();
    let entries: u64 = snapshot.realms.all().iter().map(|realm| realm.authn.cache().entries()).sum();
    metrics.cache_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
    let dropped = &metrics.log_dropped;
    dropped.inc_by((shared.log.dropped() as u64).saturating_sub(dropped.get()));
    if let Some((held, limit)) = crate::base::sys::sockets::kernel_memory() {
        metrics.kernel_tcp_memory.set(i64::try_from(held).unwrap_or(i64::MAX));
        metrics.kernel_tcp_memory_limit.set(i64::try_from(limit).unwrap_or(i64::MAX));
    }
    shared.throttle.measure();
    let probes = snapshot.realms.all().iter().filter_map(|realm| realm.directory().probes());
    probes.for_each(Probes::update_gauges);
    snapshot.tokens.measure(metrics);
    for backend in snapshot.backends.all() {
        backend.update_gauges(metrics);
        let draining = shared.maintenance.drained(&backend.name).is_some();
        metrics.backend_draining.with_label_values(&[&*backend.name]).set(draining.into());
    }
}

/// Ready once the directory has answered, until the drain begins. A later outage of the directory
/// does not unready every node at once: cached users still get in, and it has metrics of its own.
async fn ready(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let stage = *shared.stage.borrow();
    if stage == Stage::Unready {
        (StatusCode::SERVICE_UNAVAILABLE, "taken out of service by an administrator: `usher drain --undo`\n")
    } else if stage != Stage::Serving {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if !shared.directory_answered.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "waiting for the first reply of the directory\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

impl std::fmt::Debug for SidePort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SidePort").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    async fn closed(stream: &mut TcpStream) {
        let end = timeout(Duration::from_secs(10), stream.read(&mut [0])).await.expect("an end in time");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }

    #[tokio::test]
    async fn silent_peers_are_closed_and_block_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/live", get(|| async { "live\n" }));
        tokio::spawn(async move { exchange(&listener, &router, &ConnectionSlots::new(SLOTS)).await });
        let mut silent = Vec::new();
        // As many as there are slots.
        for _ in 0..256 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let requested = async {
            let mut asking = TcpStream::connect(address).await.unwrap();
            asking.write_all(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            asking.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = timeout(Duration::from_secs(3), requested).await.expect("at once");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("live\n"), "{answer}");
        // The oldest has lost its place, the newest meets the deadline of a head.
        closed(&mut silent[0]).await;
        closed(silent.last_mut().unwrap()).await;
    }
}

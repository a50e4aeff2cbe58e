//! The side port: `/metrics`, `/live` and `/ready` over HTTP, for machines that watch.
//!
//! It changes nothing and names no user. What steers usher is on the control socket
//! ([`control`]), which only its owner can open.

pub mod control;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tracing::error;

use crate::snapshot::{Shared, Stage};

/// Serves the side port until the task is ended.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .with_state(shared);
    if let Err(error) = axum::serve(listener, router).await {
        error!(%error, "the side port has ended");
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    // Encoding thousands of series takes milliseconds, which no login should wait for.
    let rendered = tokio::task::spawn_blocking(move || {
        shared.metrics.scrape(|metrics| {
            let snapshot = shared.snapshot.load();
            let entries = snapshot.authn.cache().entries();
            metrics.cache_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
            metrics.log_dropped.set(i64::try_from(shared.log.dropped()).unwrap_or(i64::MAX));
            snapshot.backends.iter().for_each(|backend| backend.show(metrics));
        })
    });
    match rendered.await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Ready once the directory has answered, until the drain begins. A later outage of the directory
/// does not unready every node at once: cached users still get in, and it has metrics of its own.
async fn ready(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    if *shared.stage.borrow() != Stage::Serving {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if !shared.directory_answered.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "the directory has not answered yet\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

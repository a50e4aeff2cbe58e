//! The server half: connections of the control socket, each with one request, all within bounds.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::Request as HttpRequest;
use axum::middleware::{self, Next};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::slots::{ConnectionSlots, SlotLimits};
use super::caller::Caller;
use super::fleet::{self, Known};
use super::trace::ExtraTime;
use super::{Request, routes};
use crate::process::Shared;
use crate::trace::TraceEnd;

/// Connections at a time: administrators and their scripts; of one user; and what is kept for root.
const SLOTS: SlotLimits = SlotLimits { all: 32, share: 8, reserved: 1 };
/// The reply to a connection without a slot.
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: \
                    63\r\nConnection: close\r\n\r\n{\"error\": \"too many requests at a time: try again in a \
                    moment\"}";
/// From the connection to the end of the request's head, which a program sends at once.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// A head is one line and some words; hyper wants no less.
const HEAD_LIMIT: usize = 8 * 1024;
/// From the connection to the end of the answer: an upgrade takes 45 s at the most.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long to wait when the system has no descriptor left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Serves the control socket until the token says stop, and what is being answered then.
pub(crate) async fn serve(
    listener: &UnixListener,
    shared: Arc<Shared>,
    orders: mpsc::Sender<Request>,
    known: Arc<Known>,
    stop: CancellationToken,
) {
    let traces = Arc::clone(&shared.traces);
    let local = routes::router(Arc::clone(&shared), orders);
    let router = fleet::router(shared, local.clone(), known).merge(local);
    let (slots, answering) = (ConnectionSlots::new(SLOTS), TaskTracker::new());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            sleep(EXHAUSTED_PAUSE).await;
            continue;
        };
        let caller = Caller::of(&stream);
        let Some(slot) = slots.take(caller.uid, caller.uid == Some(0)) else {
            // Whether it is heard does not matter.
            let _ = stream.try_write(BUSY.as_bytes());
            continue;
        };
        let requested = slot.request_flag();
        let extra = ExtraTime::default();
        let extensions = (Extension(caller), Extension(extra.clone()));
        let router = router.clone().layer(extensions.0).layer(extensions.1).layer(middleware::from_fn(
            move |request: HttpRequest, next: Next| {
                requested.set();
                next.run(request)
            },
        ));
        answering.spawn(async move {
            let mut http = http1::Builder::new();
            http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_LIMIT);
            let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            let answered = async {
                let mut connection = pin!(connection);
                // A late or malformed request gets no reply.
                if timeout(EXCHANGE_TIMEOUT, &mut connection).await.is_err() {
                    let _ = timeout(extra.granted(), connection).await;
                }
            };
            tokio::select! {
                () = answered => {}
                () = slot.evicted() => {}
            }
        });
    }
    // Each has an end of its own; a trace gets one.
    traces.end_all(TraceEnd::Drain);
    answering.close();
    answering.wait().await;
}

/// Answers other nodes of the fleet and carries out their marks; never returns.
pub(crate) async fn obey(shared: Arc<Shared>, orders: mpsc::Sender<Request>, known: Arc<Known>) {
    let local = routes::router(Arc::clone(&shared), orders);
    fleet::obey(shared, local, known).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overload_reply_has_the_announced_length() {
        let (head, body) = BUSY.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
        serde_json::from_str::<super::super::ErrorReply>(body).unwrap();
    }
}

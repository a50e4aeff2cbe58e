//! The server half: connections of the control socket, each with one request, all within bounds.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::Request as HttpRequest;
use axum::middleware::{self, Next};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::places::{Bounds, Places};
use super::{Request, routes};
use crate::login::core::Shared;

/// Connections at a time: administrators and their scripts; of one user; and what is kept for root.
const PLACES: Bounds = Bounds { all: 32, share: 8, reserved: 1 };
/// What a connection gets for which there is no place.
const NO_PLACE: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n\
    Content-Length: 63\r\nConnection: close\r\n\r\n\
    {\"error\": \"too many requests at a time: ask again in a moment\"}";
/// From the connection to the end of the request's head, which a program sends at once.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// A head is one line and some words; hyper wants no less.
const HEAD_LIMIT: usize = 8 * 1024;
/// From the connection to the end of the answer: an upgrade takes 45 s at the most.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(75);
/// How long to wait when the system has no descriptor left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// The caller: the process at the other end of the socket (SO_PEERCRED, unix(7)).
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

/// Serves the control socket until the token says stop, and what is being answered then.
pub(crate) async fn serve(
    listener: &UnixListener,
    shared: Arc<Shared>,
    orders: mpsc::Sender<Request>,
    stop: CancellationToken,
) {
    let router = routes::router(shared, orders);
    let (places, answering) = (Places::new(PLACES), TaskTracker::new());
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
        let Some(place) = places.take(caller.uid, caller.uid == Some(0)) else {
            // Whether it is heard does not matter.
            let _ = stream.try_write(NO_PLACE.as_bytes());
            continue;
        };
        let asked = place.asked();
        let router = router.clone().layer(Extension(caller)).layer(middleware::from_fn(
            move |request: HttpRequest, next: Next| {
                asked.set();
                next.run(request)
            },
        ));
        answering.spawn(async move {
            let mut http = http1::Builder::new();
            http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_LIMIT);
            let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
            tokio::select! {
                // A late or malformed request gets no reply.
                _ = timeout(EXCHANGE_TIMEOUT, connection) => {}
                () = place.lost() => {}
            }
        });
    }
    // Each has an end of its own.
    answering.close();
    answering.wait().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overload_reply_has_the_announced_length() {
        let (head, body) = NO_PLACE.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
        serde_json::from_str::<super::super::Problem>(body).unwrap();
    }
}

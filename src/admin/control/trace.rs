//! `POST /trace`: a response that goes on line by line, until the reader leaves or the trace ends.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use hyper::body::Bytes;
use tracing::info;

use super::arguments::{QueryArgs, Rejection};
use super::caller::{Caller, audit};
use crate::sessions::filter::Filter;
use crate::sessions::registry::EntryRef;
use crate::trace::{self, TraceMessage, TraceReceiver, TraceRefused, TraceSummary, Traces};

/// How much longer than others an exchange may take, for a response that goes on.
#[derive(Debug, Clone, Default)]
pub(super) struct ExtraTime(Arc<AtomicU64>);

impl ExtraTime {
    fn grant(&self, time: Duration) {
        self.0.store(time.as_secs().saturating_add(1), Ordering::Relaxed);
    }

    pub(super) fn granted(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

/// A trace that is being read; its end is logged when it is dropped.
struct Audited {
    receiver: TraceReceiver,
    caller: Caller,
    what: String,
}

impl Drop for Audited {
    fn drop(&mut self) {
        let Caller { uid, pid, .. } = self.caller;
        let TraceSummary { reason, sessions, lines, lost, .. } = self.receiver.summary();
        let what = &self.what;
        info!(cmd = "trace end", uid, pid, what, count = sessions, lines, lost, reason, "admin command");
    }
}

/// Which sessions, and for how long.
pub(super) fn selection(mut arguments: QueryArgs) -> Result<(Filter, Duration), Rejection> {
    let (filter, time) = (arguments.filter()?, arguments.time("for")?.unwrap_or(trace::DEFAULT));
    arguments.end()?;
    if filter.is_empty() || filter.older_than.is_some() || filter.younger_than.is_some() {
        return Err(Rejection::bad("select what to trace: user, client, backend, protocol"));
    }
    if time > trace::LONGEST || time < Duration::from_secs(1) {
        return Err(Rejection::bad("`for` must be from 1s to 1h"));
    }
    Ok((filter, time))
}

/// Begins a trace; `entries` are those that the filter's user is known to have.
pub(super) fn begin(
    traces: &Arc<Traces>,
    (filter, time): (Filter, Duration),
    entries: Vec<EntryRef>,
    caller: Caller,
    extra: &ExtraTime,
) -> Result<Response, Rejection> {
    let what = format!("{filter} for={}s", time.as_secs());
    let receiver = traces.begin(filter, entries, time).map_err(|refused| {
        let status = match refused {
            TraceRefused::TooMany => StatusCode::CONFLICT,
            TraceRefused::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        };
        Rejection(status, refused.to_string())
    })?;
    audit("trace", &caller, &what, None);
    extra.grant(time);
    let audited = Audited { receiver, caller, what };
    let lines = stream::unfold(audited, |mut audited| async move {
        let message = audited.receiver.next().await?;
        Some((Ok::<_, Infallible>(line(&message)), audited))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

fn line(message: &TraceMessage) -> Bytes {
    // Nothing in it cannot be written as JSON.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

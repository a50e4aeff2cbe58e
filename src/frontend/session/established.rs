//! A session after its login: the relay, with the metrics and permits that end with it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::Instant;

use super::listing::Listing;
use crate::limits::{ConnectionPermit, SessionPermit};
use crate::login::event::{self, ConnectionInfo};
use crate::process::{Permit, Shared};
use crate::proto::ClosingLine;
use crate::proto::watch::CommandWatch;
use crate::sessions::relay::{Relay, RelaySide};
use crate::telemetry::labels::{Direction, SessionEnd};
use crate::tls::stream::Stream;

/// A session after its login: what the relay needs, and no more.
pub(super) struct Established {
    pub(super) info: ConnectionInfo,
    pub(super) backend_name: Arc<str>,
    pub(super) listing: Listing,
    pub(super) client: Stream,
    pub(super) backend: Stream,
    pub(super) watch: Option<CommandWatch>,
    /// The OK, and what the backend has sent after its own.
    pub(super) to_client: Vec<u8>,
    /// The length of the OK.
    pub(super) answer: usize,
    pub(super) to_backend: Vec<u8>,
    pub(super) idle: Duration,
    pub(super) closing_line: &'static ClosingLine,
    pub(super) place: SessionPermit,
}

impl Established {
    /// Relays until the end, with metrics; then releases its permits. The future holds only what the relay
    /// needs.
    pub(super) fn relay(
        self,
        shared: &Arc<Shared>,
        taken: (Permit, ConnectionPermit),
    ) -> impl Future<Output = ()> + use<> {
        let began = Instant::now();
        let Self { info, backend_name, listing, client, backend, to_client, answer, .. } = self;
        let Self { watch, to_backend, idle, closing_line, place, .. } = self;
        let Listing { listed, stop: mut asked_to_end } = listing;
        let metrics = Arc::clone(&shared.metrics);
        let sessions = metrics.sessions.with_label_values(&[info.protocol, &backend_name]);
        let bytes = |direction| metrics.relayed_bytes.at(info.protocol, direction);
        let client = RelaySide { stream: client, first: to_client, own: answer, sent: bytes(Direction::Out) };
        let backend = RelaySide { stream: backend, first: to_backend, own: 0, sent: bytes(Direction::In) };
        let mut relay = Relay::new(client, backend, idle).watching(watch);
        async move {
            sessions.inc();
            let ended = AssertUnwindSafe(relay.run(closing_line, &mut asked_to_end)).catch_unwind().await;
            sessions.dec();
            let cause = ended.as_ref().map_or(SessionEnd::Panic, |ended| ended.cause.counted());
            let session = listed.session();
            event::ended((&info, session.as_deref()), cause, ended.as_ref().ok(), began.elapsed(), &metrics);
            drop((listed, place, taken));
        }
    }
}

//! The connection for messages, to the store that the other connection is at.
//!
//! It is one of its own, so that a large answer delays no login. Messages are judged where they arrive: what is not of
//! this fleet takes no memory.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::messages::{Envelope, Judged};
use super::store::{Connection, Driver, PushHandler};
use super::{Arc, Fleet, Kind, Member, Message, NoAnswer, Outgoing, StoreError};
use crate::base::clock::jittered;

/// Between two signs of life.
const PING_EVERY: Duration = Duration::from_secs(3);
/// How long the store may take for one, or for a message.
const PATIENCE: Duration = Duration::from_secs(3);
/// The pause after a connection has ended: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Keeps a connection until the process ends.
pub(super) async fn run(fleet: &Arc<Fleet>) {
    let mut outbox = fleet.outbox_out.lock().await;
    let mut place = fleet.place.subscribe();
    let mut pause = PAUSES.0;
    loop {
        // The sender lives as long as the fleet.
        let Ok(at) = place.wait_for(Option::is_some).await.map(|at| *at) else { return };
        let opened = match at {
            Some(at) => open(fleet, at).await,
            None => continue,
        };
        let moved = async {
            let _ = place.wait_for(|now| *now != at).await;
        };
        match opened {
            Ok((connection, driver)) => {
                pause = PAUSES.0;
                fleet.listening.send_replace(true);
                let has_moved = tokio::select! {
                    () = moved => true,
                    () = driver => false,
                    _ = exchange(fleet, &connection, &mut outbox) => false,
                };
                fleet.listening.send_replace(false);
                if has_moved {
                    continue;
                }
            }
            Err(error) => {
                if let Some(suppressed) = fleet.repeats.allow("channel", "") {
                    warn!(%error, suppressed, "no messages by the fleet's store");
                }
                pause = (pause * 2).min(PAUSES.1);
            }
        }
        sleep(jittered(pause)).await;
    }
}

async fn open(fleet: &Arc<Fleet>, at: usize) -> Result<(Connection, Driver), StoreError> {
    let address = fleet.settings.stores.get(at).ok_or(StoreError::Lost)?;
    let taker = Arc::clone(fleet);
    let handler: PushHandler = Arc::new(move |channel: &[u8], sealed: &[u8]| take(&taker, channel, sealed));
    let (connection, mut driver) =
        Connection::open(address, &fleet.settings, &fleet.files.load_full(), &[], Some(handler)).await?;
    let channels = [fleet.channel(), fleet.channel_of(fleet.id)];
    let subscribed = tokio::select! {
        subscribed = timeout(PATIENCE, connection.subscribe(&channels)) => subscribed.unwrap_or(Err(StoreError::Late)),
        () = &mut driver => Err(StoreError::Lost),
    };
    subscribed.map(|()| (connection, driver))
}

/// Sends what is to be sent, until the connection is of no use.
async fn exchange(fleet: &Fleet, connection: &Connection, outbox: &mut mpsc::Receiver<Outgoing>) -> StoreError {
    loop {
        let sent = match timeout(jittered(PING_EVERY), outbox.recv()).await {
            Ok(Some(message)) => timeout(PATIENCE, connection.publish(&message.channel, &message.sealed)).await,
            // The sender lives as long as the fleet.
            Ok(None) => return StoreError::Lost,
            Err(_) => timeout(PATIENCE, connection.ping()).await,
        };
        match sent.unwrap_or(Err(StoreError::Late)) {
            Ok(()) => {}
            Err(error) if error.is_lost() || error == StoreError::Late => return error,
            Err(error) => {
                fleet.metrics.fleet_writes_dropped.inc();
                if let Some(suppressed) = fleet.repeats.allow("publish", "") {
                    warn!(%error, suppressed, "the fleet's store does not take a message");
                }
            }
        }
    }
}

/// A message has come.
fn take(fleet: &Fleet, channel: &[u8], sealed: &[u8]) {
    let sealer = Arc::clone(&fleet.files.load().sealer);
    match Envelope::open(&sealer, channel, sealed) {
        Ok(message) => judge(fleet, message, false),
        Err(error) => fleet.reject(error.into(), "message"),
    }
}

/// Judges the messages that have waited for a beat.
pub(super) fn judge_held(fleet: &Fleet) {
    for message in fleet.inbox.held() {
        judge(fleet, message, true);
    }
}

fn judge(fleet: &Fleet, message: Envelope, held: bool) {
    match fleet.inbox.judge(fleet.id, &fleet.members.load(), fleet.now(), message, held) {
        Judged::Taken(message, from) => deliver(fleet, *message, from),
        Judged::Held => fleet.beat_now.notify_one(),
        Judged::Own => {}
        Judged::Left(id) => fleet.take_goodbye(id),
        Judged::Rejected(reason) => fleet.reject(reason, "message"),
    }
}

fn deliver(fleet: &Fleet, message: Envelope, from: Member) {
    let Envelope { kind, question, body, .. } = message;
    let arrives = |question| {
        // Without a reader there is nothing to do.
        let _ = fleet.arrived.send(Message { from: from.clone(), body: body.as_slice().into(), question });
    };
    match kind {
        Kind::Poke => fleet.beat_now.notify_one(),
        Kind::Notice => arrives(None),
        Kind::Question => arrives(Some(question)),
        Kind::Answer => fleet.asked.answer(from.id, question, Ok(body)),
        Kind::TooLarge => fleet.asked.answer(from.id, question, Err(NoAnswer::TooLarge)),
        // Judged as `Left`.
        Kind::Goodbye => {}
    }
}

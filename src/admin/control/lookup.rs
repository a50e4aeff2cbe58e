//! The answers to Postfix: the one for an address, and the age of the last one for an entry.

use axum::http::StatusCode;

use super::arguments::Rejection;
use super::{Looked, MapReply, Recent};
use crate::login::delivery::{Delivery, MapAnswer, Meaning};
use crate::process::{Shared, Snapshot};
use crate::proto::socketmap::SocketmapAnswer;
use crate::telemetry::labels::SocketmapMap;

/// What both maps answer for an address. Postfix does not see it.
pub(super) async fn look_up(snapshot: &Snapshot, address: &str) -> Result<Looked, Rejection> {
    let delivery = Delivery::of(&snapshot.config, &snapshot.realms).ok_or_else(not_configured)?;
    let located = delivery.locate(address.as_bytes()).await;
    let transport = delivery.answer(SocketmapMap::Transport, &located);
    let recipient = delivery.answer(SocketmapMap::Recipient, &located);
    let entry = match &located.meaning {
        Meaning::Entry(entry) => Some(entry),
        Meaning::Foreign(_) | Meaning::Unknown | Meaning::Undecided(_) => None,
    };
    let (_, cause) = located.fault();
    Ok(Looked {
        found_as: entry.and(located.address.as_ref()).map(|address| address.as_str().to_owned()),
        backend: transport.backend.clone(),
        transport: reply(&transport),
        recipient: reply(&recipient),
        dn: entry.map(|entry| entry.dn.to_string()),
        mail_host: entry.map(|entry| entry.mail_hosts.clone()).unwrap_or_default(),
        held: entry.is_some_and(|entry| entry.version.held),
        by: located.by.label().to_owned(),
        cause,
    })
}

fn reply(answer: &MapAnswer) -> MapReply {
    let value = match &answer.answer {
        SocketmapAnswer::Ok(value) => Some(value.clone()),
        SocketmapAnswer::NotFound | SocketmapAnswer::Temp(_) => None,
    };
    MapReply { result: answer.result().label().to_owned(), value, reason: answer.reason.clone() }
}

fn not_configured() -> Rejection {
    Rejection(StatusCode::CONFLICT, "Postfix asks nothing here: the section `socketmap` is missing".to_owned())
}

/// When this process last answered Postfix with a server for an entry.
pub(super) fn recent(shared: &Shared, dn: &str) -> Recent {
    let is_asked = shared.snapshot.load().config.socketmap.is_some();
    let recent = &shared.delivered;
    Recent {
        age_seconds: recent.age(dn).map(|age| age.as_secs_f64()),
        remembered_seconds: is_asked.then(|| recent.remembered_for().as_secs_f64()),
    }
}

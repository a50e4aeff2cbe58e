//! `GET /status`: this process on one screen.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::task::spawn_blocking;

use super::{BackendSummary, DirectoryStatus, FleetStatus, ListenerStatus, PreviousStatus, Status};
use crate::admin::overview::{self, Backend};
use crate::config::{Listener, ListenerTls, TextDigest};
use crate::directory::Availability;
use crate::login::explain::running;
use crate::login::realms::RealmCore;
use crate::process::{Shared, Snapshot, Stage};
use crate::sessions::previous::PreviousProcess;

/// How this process is.
pub(super) async fn status(shared: &Shared, snapshot: Arc<Snapshot>) -> Status {
    let own = Arc::clone(&snapshot);
    // A small file, but one that may be on a slow disk.
    let differs = spawn_blocking(move || TextDigest::of_file(&own.config.file) != Some(own.config.digest)).await;
    let fleet = shared.fleet.as_ref().map(|fleet| {
        let quality = fleet.store_quality();
        FleetStatus {
            up: fleet.is_up(),
            clock_ahead_seconds: quality.map(|(ahead, _)| ahead),
            store_answers_after_ms: quality.map(|(_, took)| took.as_secs_f64() * 1_000.0),
        }
    });
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        config: format!("{:016x}", snapshot.config.fleet_digest()),
        file: snapshot.config.file.display().to_string(),
        file_differs: differs.unwrap_or(true),
        reloaded_at: shared.metrics.config_last_reload_success_timestamp.get() as u64,
        reload_refused: shared.metrics.config_last_reload_successful.get() == 0,
        listeners: snapshot.config.listeners.iter().map(listener_status).collect(),
        backends: overview::backends(shared).iter().map(backend_summary).collect(),
        ready: *shared.stage.borrow() == Stage::Serving && shared.directory_answered.load(Ordering::Relaxed),
        sessions: shared.registry.count(),
        previous: shared.previous.all().iter().map(previous_status).collect(),
        ends_at: shared.ends_at.get().copied(),
        brake_holds: snapshot.config.directories.iter().map(|directory| shared.metrics.brake(&directory.name)).sum(),
        certificate_ends: snapshot.tls.certificates().iter().map(|served| served.not_after).min(),
        held_back: shared.trackers.held_back().list().with(shared.throttle.held_back.list()),
        directories: directory_statuses(shared, &snapshot),
        fleet,
    }
}

fn listener_status(listener: &Listener) -> ListenerStatus {
    let tls = match listener.tls {
        ListenerTls::Implicit => "implicit",
        ListenerTls::StartTls => "starttls",
    };
    let (protocol, address) = (listener.protocol.name.to_owned(), listener.address.to_string());
    ListenerStatus { protocol, address, tls: tls.to_owned() }
}

fn backend_summary(backend: &Backend) -> BackendSummary {
    let state = backend.condition().label().to_owned();
    let by_protocol = backend.sessions.clone();
    BackendSummary { name: backend.state.name.clone(), state, sessions: by_protocol.values().sum(), by_protocol }
}

fn previous_status(process: &PreviousProcess) -> PreviousStatus {
    PreviousStatus { pid: process.pid, sessions: process.sessions, ends_at: process.ends_at }
}

/// How each directory is.
fn directory_statuses(shared: &Shared, snapshot: &Snapshot) -> Vec<DirectoryStatus> {
    let status = |realm: &RealmCore| DirectoryStatus {
        name: realm.settings.name.clone(),
        up: realm.directory().availability() != Availability::Unreachable,
        watch: running::watch(realm, &shared.trackers).to_owned(),
        brake_holds: shared.metrics.brake(&realm.settings.name),
    };
    snapshot.realms.all().iter().map(status).collect()
}

//! `usher status`: how the running usher is, or every node of the fleet.

use std::path::Path;
use std::process::ExitCode;

use super::fleet::{self, ByNode};
use super::running::{Running, age, say, say_json};
use super::{OK, count};
use crate::admin::control::{BackendSummary, DirectoryStatus, FleetStatus, ListenerStatus, PreviousStatus, Status};
use crate::base::clock::unix_now;
use crate::diagnose::table::Shown;
use crate::telemetry::held_back::HeldBack;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    by_node: ByNode,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(super) async fn status(config: &Path, arguments: &Args) -> Result<ExitCode, ExitCode> {
    let running = Running::of(config)?;
    if arguments.by_node.fleet {
        return fleet::ask(&running, ("GET", "/status"), arguments.json, |status: Status| text(&status)).await;
    }
    let status: Status = running.ask("GET", "/status").await?;
    if arguments.json {
        say_json(&status);
    } else {
        say(text(&status));
    }
    Ok(ExitCode::from(OK))
}

fn text(status: &Status) -> String {
    let Status {
        version, pid, config, file, ready, sessions, brake_holds, certificate_ends, directories, fleet, ..
    } = status;
    let now = i64::try_from(unix_now()).unwrap_or(i64::MAX);
    let certificate = certificate_ends.map(|end| match u64::try_from(end.saturating_sub(now)) {
        Ok(left) => format!("ends in {}", age(left)),
        Err(_) => "has ended".to_owned(),
    });
    let ready = if *ready { "ready" } else { "not ready" };
    let mut lines = vec![
        format!("usher        {version}, process {pid}, {ready}, {}", count(*sessions, "session")),
        format!("config       {}{}, digest {config}", Shown(file), reloaded(status)),
        format!("certificate  {}", certificate.unwrap_or_else(|| "none".to_owned())),
    ];
    for PreviousStatus { pid, sessions, ends_at } in &status.previous {
        let until = ends_at.map(|end| format!(", closed in {} at the latest", age(end.saturating_sub(unix_now()))));
        let sessions = count(*sessions, "session");
        lines.push(format!("upgrade      process {pid} still has {sessions}{}", until.unwrap_or_default()));
    }
    for ListenerStatus { protocol, address, tls } in &status.listeners {
        lines.push(format!("listener     {} {} {}", Shown(protocol), Shown(address), Shown(tls)));
    }
    for BackendSummary { name, state, sessions, .. } in &status.backends {
        let state = state.replace('_', " ");
        lines.push(format!("backend      {}: {}, {}", Shown(name), Shown(&state), count(*sessions, "session")));
    }
    if *brake_holds > 0 {
        let changes = count(usize::try_from(*brake_holds).unwrap_or_default(), "change");
        lines.push(format!("brake        holds {changes} until `usher confirm`"));
    }
    lines.extend(status.held_back.listed.iter().map(held_back));
    if status.held_back.more > 0 {
        lines.push(format!("held back    and {} more", status.held_back.more));
    }
    for DirectoryStatus { name, up, watch, brake_holds } in directories {
        let up = if *up { "in use" } else { "unreachable" };
        let brake = if *brake_holds > 0 { format!(", brake holds {brake_holds}") } else { String::new() };
        lines.push(format!("directory    {}: {up}, changes {}{brake}", Shown(name), Shown(watch)));
    }
    if let Some(FleetStatus { up, clock_ahead_seconds, store_answers_after_ms }) = fleet {
        lines.push(if *up {
            let took = store_answers_after_ms.map(|took| format!(", answers after {took:.1} ms")).unwrap_or_default();
            let ahead = clock_ahead_seconds.map(|ahead| format!(", clock {ahead:+.3} s")).unwrap_or_default();
            format!("store        in use{took}{ahead}")
        } else {
            // What it last answered says nothing of now.
            "store        unavailable: limits are local; `usher check --connect` says why".to_owned()
        });
    }
    lines.join("\n")
}

/// A user or a network that is held back, why, and since when.
fn held_back(one: &HeldBack) -> String {
    let HeldBack { reason, directory, user, network, by, since, until, seen } = one;
    let who = match (user, network) {
        (Some(user), _) => Shown(user).to_string(),
        (None, Some(network)) => network.to_string(),
        (None, None) => "names without an entry".to_owned(),
    };
    let now = unix_now();
    let of = directory.as_ref().map(|directory| format!(" ({})", Shown(directory))).unwrap_or_default();
    let why = match reason.as_str() {
        "hold" => "held by the directory".to_owned(),
        "locked" => "locked by the directory".to_owned(),
        limit => {
            format!("throttle.{}, {}", Shown(limit), count(usize::try_from(*seen).unwrap_or(usize::MAX), "attempt"))
        }
    };
    let by = by.as_ref().map(|by| format!(", last modified by {}", Shown(by))).unwrap_or_default();
    let until = until.map(|until| format!(", until {} from now at least", age(until.saturating_sub(now))));
    let until = until.unwrap_or_default();
    format!("held back    {who}{of}: {why} for {}{by}{until}", age(now.saturating_sub(*since)))
}

/// When the configuration in force was read, and whether it is still that of the file.
fn reloaded(status: &Status) -> String {
    let read = format!(", read {} ago", age(unix_now().saturating_sub(status.reloaded_at)));
    match (status.reload_refused, status.file_differs) {
        (true, _) => format!("{read}; the last reload was refused: `usher check` says why"),
        (false, true) => format!("{read}; the file has changed since: `usher reload`"),
        (false, false) => read,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::held_back::HeldBackList;

    #[test]
    fn status_says_what_an_administrator_compares() {
        let mut status = Status {
            version: "0.2.0".to_owned(),
            pid: 7,
            config: "00".to_owned(),
            file: "/etc/usher/config.yaml".to_owned(),
            file_differs: true,
            reloaded_at: unix_now() - 3_600,
            reload_refused: false,
            listeners: vec![ListenerStatus {
                protocol: "imap".to_owned(),
                address: "[::]:993".to_owned(),
                tls: "implicit".to_owned(),
            }],
            backends: vec![BackendSummary {
                name: "server3".to_owned(),
                state: "partly_down".to_owned(),
                sessions: 1,
                by_protocol: [("imap".to_owned(), 1)].into(),
            }],
            ready: true,
            sessions: 1,
            previous: vec![PreviousStatus { pid: 6, sessions: 12, ends_at: Some(unix_now() + 600) }],
            ends_at: None,
            brake_holds: 2,
            held_back: HeldBackList {
                listed: vec![
                    HeldBack {
                        reason: "hold".to_owned(),
                        directory: None,
                        user: Some("uid=alice,dc=x".to_owned()),
                        network: None,
                        by: Some("cn=admin".to_owned()),
                        since: unix_now() - 300,
                        until: None,
                        seen: 1,
                    },
                    HeldBack {
                        reason: "password_spraying".to_owned(),
                        directory: None,
                        user: None,
                        network: Some("192.0.2.0/24".parse().unwrap()),
                        by: None,
                        since: unix_now() - 60,
                        until: Some(unix_now() + 45),
                        seen: 7,
                    },
                ],
                more: 12,
            },
            certificate_ends: Some(i64::try_from(unix_now()).unwrap() + 90_061),
            directories: vec![DirectoryStatus {
                name: "corp".to_owned(),
                up: false,
                watch: "lost".to_owned(),
                brake_holds: 2,
            }],
            fleet: Some(FleetStatus { up: true, clock_ahead_seconds: Some(-0.25), store_answers_after_ms: Some(0.5) }),
        };
        let shown = text(&status);
        for part in [
            "0.2.0, process 7, ready, 1 session",
            "config       /etc/usher/config.yaml, read 1h00m ago; the file has changed since: `usher reload`, digest 00",
            "listener     imap [::]:993 implicit",
            "backend      server3: partly down, 1 session",
            "upgrade      process 6 still has 12 sessions, closed in 10m at the latest",
            "ends in 1d01h",
            "holds 2 changes",
            "held back    uid=alice,dc=x: held by the directory for 5m, last modified by cn=admin\n",
            "held back    192.0.2.0/24: throttle.password_spraying, 7 attempts for 1m, until 45s from now at least\n",
            "held back    and 12 more\n",
            "0.5 ms, clock -0.250 s",
            "corp: unreachable, changes lost, brake holds 2",
        ] {
            assert!(shown.contains(part), "{shown}");
        }
        status.fleet = status.fleet.map(|fleet| FleetStatus { up: false, ..fleet });
        assert!(text(&status).ends_with("limits are local; `usher check --connect` says why"), "{}", text(&status));
        (status.certificate_ends, status.brake_holds, status.fleet) = (Some(0), 0, None);
        status.held_back = HeldBackList::default();
        status.directories.clear();
        status.listeners.clear();
        status.previous.clear();
        status.backends.clear();
        status.reload_refused = true;
        assert!(text(&status).contains("the last reload was refused"), "{}", text(&status));
        assert!(text(&status).ends_with("has ended"), "{}", text(&status));
    }
}

//! `usher backends`: how the mail servers stand, and taking one out of service for a while.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;

use super::fleet;
use super::running::{Running, age, say, say_json, table, with_query};
use super::{FAILED, count};
use crate::admin::control::encode;
use crate::admin::overview::{Backend, Condition};
use crate::backend::state::{AddressStatus, ProtocolStatus, RefusingStatus};
use crate::base::clock::unix_now;
use crate::sessions::maintenance::Drain;
use crate::telemetry::log::Escaped;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Also every address, and each protocol's capabilities
    #[arg(long)]
    long: bool,
    /// Ask every node of the fleet, and print by node
    #[arg(long, global = true)]
    fleet: bool,
    /// JSON instead of a table
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send no new logins to a backend, and close its sessions one by one
    Drain {
        /// The backend's name
        name: String,
        /// Sessions that are ended per second, at most; 0: none
        #[arg(long, value_name = "N")]
        rate: Option<u32>,
    },
    /// Send users to a backend again
    Undrain {
        /// The backend's name
        name: String,
    },
}

pub(super) async fn backends(config: &Path, arguments: &Args) -> Result<ExitCode, ExitCode> {
    let running = Running::of(config)?;
    let path = |name: &str, act: &str| format!("/backends/{}/{act}", encode(name));
    match &arguments.command {
        None => show(&running, arguments).await,
        Some(Command::Drain { name, rate }) => {
            let rate = rate.map(|rate| rate.to_string());
            let path = with_query(&path(name, "drain"), rate.as_deref().map(|rate| ("rate", rate)));
            act(&running, &path, arguments).await
        }
        Some(Command::Undrain { name }) => act(&running, &path(name, "undrain"), arguments).await,
    }
}

async fn act(running: &Running, path: &str, arguments: &Args) -> Result<ExitCode, ExitCode> {
    if arguments.fleet {
        return fleet::ask(running, ("POST", path), arguments.json, |backend| said(&backend)).await;
    }
    let answers = running.ask_all::<Backend>("POST", path).await?;
    let code = answers.code();
    for backend in merged(answers.all.into_iter().map(|backend| vec![backend]).collect()) {
        if arguments.json {
            say_json(&backend);
        } else {
            say(said(&backend));
        }
    }
    Ok(code)
}

/// What a drain or its end means.
fn said(backend: &Backend) -> String {
    let name = &backend.state.name;
    let number: usize = backend.sessions.values().sum();
    let (sessions, are) = (count(number, "session"), if number == 1 { "is" } else { "are" });
    match backend.draining {
        Some(Drain { rate: 0, .. }) => format!("{name} gets no new logins; its {sessions} {are} left open"),
        Some(Drain { rate, .. }) => {
            format!("{name} gets no new logins; its {sessions} {are} being ended, {rate} a second")
        }
        None => match backend.condition() {
            Condition::Draining | Condition::Up => format!("{name} gets logins again"),
            Condition::PartlyDown => {
                format!(
                    "{name} gets logins again, but its {} is down (see `usher backends`)",
                    backend.down().join(", ")
                )
            }
            Condition::Down => format!(
                "{name} is no longer drained, but it is down: it gets logins when it is up again (see `usher backends`)"
            ),
            Condition::Refusing => format!("{name} gets logins again, but accepts none (see `usher backends`)"),
        },
    }
}

async fn show(running: &Running, arguments: &Args) -> Result<ExitCode, ExitCode> {
    if arguments.fleet {
        let show = |backends: Vec<Backend>| text(&backends, arguments.long, true);
        return fleet::ask(running, ("GET", "/backends"), arguments.json, show).await;
    }
    let answers = running.ask_all::<Vec<Backend>>("GET", "/backends").await?;
    let code = answers.code();
    let backends = merged(answers.all);
    if arguments.json {
        say_json(&backends);
    } else {
        say(text(&backends, arguments.long, false));
    }
    let is_trouble = backends.iter().any(|backend| backend.draining.is_none() && !backend.state.is_up());
    Ok(if is_trouble { ExitCode::from(FAILED) } else { code })
}

/// As the process that serves sees them, with the sessions of all.
fn merged(mut lists: Vec<Vec<Backend>>) -> Vec<Backend> {
    let mut backends = if lists.is_empty() { Vec::new() } else { lists.remove(0) };
    for other in lists.into_iter().flatten() {
        if let Some(backend) = backends.iter_mut().find(|backend| backend.state.name == other.state.name) {
            for (protocol, number) in other.sessions {
                *backend.sessions.entry(protocol).or_default() += number;
            }
        }
    }
    backends
}

fn text(backends: &[Backend], long: bool, fleet: bool) -> String {
    let (mut rows, mut remarks) = (Vec::new(), Vec::new());
    for backend in backends {
        let name = &backend.state.name;
        for serving in &backend.state.protocols {
            let word = match backend.draining {
                Some(_) => "draining",
                None if serving.up && serving.refusing.is_some() => "refusing",
                None if serving.up => "up",
                None => "down",
            };
            let used = serving.addresses.iter().filter(|at| at.is_used()).count();
            let sessions = backend.sessions.get(&*serving.protocol).copied().unwrap_or(0);
            rows.push(vec![
                name.clone(),
                serving.protocol.to_string(),
                word.to_owned(),
                sessions.to_string(),
                format!("{}/{}", backend.state.logins_in_flight, backend.state.logins_in_flight_limit),
                format!("{used}/{}", serving.addresses.len()),
            ]);
            remarks.extend(remarks_on(name, serving, long));
        }
        if let Some(drain) = backend.draining {
            let since = age(unix_now().saturating_sub(drain.since));
            let ending = match drain.rate {
                0 => "its sessions are left open".to_owned(),
                rate => format!("{rate} sessions a second are ended"),
            };
            let everywhere = if fleet { " --fleet" } else { "" };
            remarks.push(format!(
                "{name} is draining for {since}: no new logins, {ending}; `usher backends undrain {name}{everywhere}`"
            ));
        }
    }
    let titles = ["BACKEND", "PROTOCOL", "STATE", "SESSIONS", "LOGINS", "ADDRESSES"];
    std::iter::once(table(&titles, &rows)).chain(remarks).collect::<Vec<_>>().join("\n")
}

/// What is wrong with its addresses; or, at length, how each is and what they can do.
fn remarks_on(name: &str, serving: &ProtocolStatus, long: bool) -> Vec<String> {
    let protocol = &serving.protocol;
    let mut remarks = Vec::new();
    if let Some(reason) = &serving.unresolved {
        remarks.push(format!("{name} {protocol}: {}", Escaped(reason.as_bytes())));
    }
    if let Some(RefusingStatus { seconds, by_probe, reason }) = &serving.refusing {
        let (seen_by, reason) = (if *by_probe { "the probe account" } else { "users" }, Escaped(reason.as_bytes()));
        remarks.push(format!("{name} {protocol}: accepts no login for {}, as {seen_by} show: {reason}", age(*seconds)));
    }
    for AddressStatus { address, breaker, reason, down_seconds, greets_after_ms } in &serving.addresses {
        match down_seconds {
            Some(seconds) => {
                let reason = reason.as_deref().unwrap_or("reason unknown");
                let looking = if breaker == "half_open" { ", being probed" } else { "" };
                let reason = Escaped(reason.as_bytes());
                remarks.push(format!("{name} {protocol}: {address} is down for {}{looking}: {reason}", age(*seconds)));
            }
            None if greets_after_ms.is_some() => {
                let after = Duration::from_millis(greets_after_ms.unwrap_or_default());
                remarks.push(format!(
                    "{name} {protocol}: {address} is in use and greets after {:.1} s",
                    after.as_secs_f64()
                ));
            }
            None if long => remarks.push(format!("{name} {protocol}: {address} is in use")),
            None => {}
        }
    }
    if long {
        let able = serving.capabilities.as_ref().filter(|list| !list.is_empty()).map(|list| list.join(", "));
        let able = able.unwrap_or_else(|| "unknown until the first greeting".to_owned());
        remarks.push(format!("{name} {protocol}: capabilities: {}", Escaped(able.as_bytes())));
    }
    remarks
}

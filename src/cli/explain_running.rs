//! `usher explain LOGIN --running`: what a login would meet now in the running usher, or at every node of its fleet.

use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use super::fleet;
use super::running::{Running, age, say, say_json, with_query};
use super::{DATA, NO_PERMISSION, NO_USER, OK, SOFTWARE, UNAVAILABLE, count};
use crate::diagnose::table::Shown;
use crate::login::explain::running::RunningVerdict;
use crate::outcome::Refusal;

/// Whom to ask instead of the configuration file.
#[derive(Debug, Clone, Copy, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// What a login would meet now in the running usher: its cache, the state of the mail server, hold and brake
    #[arg(long, requires = "login", conflicts_with_all = ["all", "password_stdin", "token_stdin", "certificate", "acting"])]
    pub(super) running: bool,
    /// With --running: ask every node of the fleet, and print by node
    #[arg(long, requires = "running")]
    fleet: bool,
}

pub(super) async fn explain(
    file: &Path,
    (login, from): (&str, Option<IpAddr>),
    arguments: Args,
    json: bool,
) -> Result<ExitCode, ExitCode> {
    let running = Running::of(file)?;
    let path = path(login, from);
    if arguments.fleet {
        let show = |verdict: RunningVerdict| text(&verdict, "");
        return fleet::ask_whether(&running, ("GET", &path), json, show, RunningVerdict::is_routed).await;
    }
    // A process from before an upgrade takes no login.
    let verdict: RunningVerdict = running.ask("GET", &path).await?;
    if json {
        say_json(&verdict);
    } else {
        say(text(&verdict, ""));
    }
    Ok(ExitCode::from(code(&verdict.result)))
}

/// What to request.
pub(super) fn path(login: &str, from: Option<IpAddr>) -> String {
    let from = from.map(|address| address.to_string());
    let query = [("login", login)].into_iter().chain(from.iter().map(|from| ("from", from.as_str())));
    with_query("/explain", query)
}

/// What a command exits with for this result.
pub(super) fn code(result: &str) -> u8 {
    match result {
        "routed" => OK,
        "unknown_user" => NO_USER,
        "invalid_username" => DATA,
        "internal" => SOFTWARE,
        _ if Refusal::is_outage_label(result) || result == Refusal::Draining.label() => UNAVAILABLE,
        _ if Refusal::is_without_route_label(result) => DATA,
        _ => NO_PERMISSION,
    }
}

/// The verdict under the user's name and `of`.
pub(super) fn text(verdict: &RunningVerdict, of: &str) -> String {
    let mut lines = vec![format!("{}{of}", Shown(&verdict.login))];
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            lines.push(format!("  {name:<13}{}", Shown(value)));
        }
    };
    line("directory", verdict.directory.as_deref().unwrap_or_default());
    line("entry", verdict.dn.as_deref().unwrap_or_default());
    line("mail host", &verdict.mail_host.join(", "));
    line("may use", &verdict.may_use.join(", "));
    line("networks", &verdict.networks.join(", "));
    let backend = verdict.backend.as_deref().unwrap_or_default();
    line("backend", &format!("{backend}{}", if verdict.drained { ": out of service" } else { "" }));
    for state in &verdict.protocols {
        let reason = state.reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
        line("", &format!("{} {}{reason}", state.protocol, if state.up { "up" } else { "down" }));
    }
    line("logs in as", verdict.backend_login.as_deref().unwrap_or_default());
    line("cached", &cached(verdict));
    line("held", if verdict.held { "yes: logins wait until the directory releases the hold" } else { "" });
    line("locked", if verdict.locked { "after wrong passwords, now or until recently" } else { "" });
    match verdict.brake.as_deref() {
        Some("local") => {
            line("brake", &format!("stays at {} until `usher confirm`", verdict.mail_host.join(", ")));
        }
        Some(_) => line("brake", "another node holds back a change of this user until `usher confirm`"),
        None => {}
    }
    let decided = if verdict.by == "directory" { ", asked now" } else { "" };
    if !verdict.servers.is_empty() {
        line("servers", &format!("{}{decided}; watch {}", verdict.servers, verdict.watch));
    }
    line("sessions", &count(verdict.sessions, "session"));
    line("limits", verdict.limited.as_deref().unwrap_or_default());
    line("result", &verdict.result);
    line("", &verdict.explanation);
    line("client reads", verdict.reply.as_deref().unwrap_or_default());
    lines.join("\n")
}

fn cached(verdict: &RunningVerdict) -> String {
    let Some(seconds) = verdict.cached_seconds else { return "no decision".to_owned() };
    let left = verdict.left_seconds.map_or_else(
        || "expired: the next login is verified by the directory".to_owned(),
        |left| format!("used for {} more", age(left)),
    );
    let stale = verdict.stale_left_seconds.map(|left| format!(", {} while the directory is unreachable", age(left)));
    format!("verified {} ago, {left}{}", age(seconds), stale.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_tells_an_outage_from_a_refusal() {
        for (result, expected) in [
            ("routed", OK),
            ("unknown_user", NO_USER),
            ("account_locked", NO_PERMISSION),
            ("wrong_password", NO_PERMISSION),
            ("network_not_allowed", NO_PERMISSION),
            ("hold", UNAVAILABLE),
            ("draining", UNAVAILABLE),
            ("backend_draining", UNAVAILABLE),
            ("backend_unreachable", UNAVAILABLE),
            ("directory_unavailable", UNAVAILABLE),
            ("no_mail_host", DATA),
            ("several_entries", DATA),
            ("not_allowed", DATA),
            ("invalid_username", DATA),
        ] {
            assert_eq!(code(result), expected, "{result}");
        }
        assert!(Refusal::LABELS.iter().all(|label| code(label) != OK));
    }
}

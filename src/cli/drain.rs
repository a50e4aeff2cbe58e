//! `usher drain`: ends the running usher as SIGTERM does, or only takes it away from balancers.

use std::path::Path;
use std::process::ExitCode;

use super::fleet;
use super::running::{Running, age, say, say_json, with_query};
use super::{OK, count};
use crate::admin::control::Leaving;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only make /ready reply 503
    #[arg(long)]
    ready_only: bool,
    /// Revert --ready-only
    #[arg(long, conflicts_with = "ready_only")]
    undo: bool,
    /// Of this node of the fleet, instead of the usher on this machine
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(super) async fn drain(config: &Path, arguments: &Args) -> Result<ExitCode, ExitCode> {
    let ready_only = arguments.ready_only.then_some(("ready_only", "true"));
    let undo = arguments.undo.then_some(("undo", "true"));
    let path = with_query("/drain", ready_only.into_iter().chain(undo));
    let running = Running::of(config)?;
    if let Some(node) = &arguments.node {
        return fleet::ask_node(&running, node, ("POST", &path), arguments.json, |leaving| text(&leaving, Some(node)))
            .await;
    }
    let leaving: Leaving = running.ask("POST", &path).await?;
    if arguments.json {
        say_json(&leaving);
    } else {
        say(text(&leaving, None));
    }
    Ok(ExitCode::from(OK))
}

fn text(leaving: &Leaving, node: Option<&str>) -> String {
    if leaving.ends {
        let sessions = count(leaving.sessions, "session");
        let (delay, deadline) = (age(leaving.delay_seconds), age(leaving.deadline_seconds));
        format!("draining: the listeners close in {delay}, {sessions} within {deadline} after that, then usher exits")
    } else if leaving.ready {
        "/ready replies 200 again".to_owned()
    } else {
        let node = node.map(|node| format!(" --node {node}")).unwrap_or_default();
        format!("/ready replies 503; nothing else changes. `usher drain --undo{node}` reverts it")
    }
}

//! `usher kick`: ends sessions, politely and at a pace.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::ArgGroup;

use super::fleet::{self, ByNode};
use super::running::{Running, say, say_json, with_query};
use super::sessions::{Which, listed, sorted};
use super::{FAILED, count, fail};
use crate::admin::control::Kicked;
use crate::config;
use crate::diagnose::table::Shown;
use crate::sessions::registry::Session;

#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("whom").required(true).multiple(true)
    .args(["user", "backend", "client", "protocol", "directory", "older_than", "younger_than", "all"]))]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// All sessions
    #[arg(long, conflicts_with_all = ["user", "backend", "client", "protocol", "directory", "older_than", "younger_than"])]
    all: bool,
    /// Spread over this time, such as 60s; 0s: all at once; at most 24h
    #[arg(long, value_name = "TIME", value_parser = time)]
    over: Option<String>,
    /// List the sessions that would be ended, and end none
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    by_node: ByNode,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

fn time(text: &str) -> Result<String, String> {
    config::duration(text).map(|_| text.to_owned())
}

pub(super) async fn kick(config: &Path, arguments: &Args) -> Result<ExitCode, ExitCode> {
    let all = arguments.all.then_some(("all", "true"));
    let over = arguments.over.as_deref().map(|over| ("over", over));
    let dry_run = arguments.dry_run.then_some(("dry_run", "true"));
    let path = with_query("/kick", arguments.which.pairs().chain(all).chain(over).chain(dry_run));
    let running = Running::of(config)?;
    if arguments.by_node.fleet {
        return fleet::ask(&running, ("POST", &path), arguments.json, |kicked| text(&kicked)).await;
    }
    let answers = running.ask_all::<Kicked>("POST", &path).await?;
    let code = answers.code();
    let mut kicked = Kicked { count: 0, over_seconds: 0.0, dry_run: arguments.dry_run, sessions: Vec::new() };
    for mut answer in answers.all {
        kicked.count += answer.count;
        kicked.over_seconds = kicked.over_seconds.max(answer.over_seconds);
        kicked.sessions.append(&mut answer.sessions);
    }
    let user = arguments.which.pairs().find(|(key, _)| *key == "user");
    let none = user.filter(|_| kicked.count == 0);
    if arguments.json {
        say_json(&kicked);
        return Ok(if none.is_some() { ExitCode::from(FAILED) } else { code });
    }
    if let Some((_, user)) = none {
        return Err(fail(FAILED, format!("no session of {}; `usher sessions` lists the names", Shown(user))));
    }
    say(text(&kicked));
    Ok(code)
}

fn text(kicked: &Kicked) -> String {
    let mut text = String::new();
    if kicked.dry_run && kicked.count > 0 {
        let sessions = kicked.sessions.iter().map(|session| Session::clone(session)).collect();
        text = format!("{}\n", listed(&sorted(vec![sessions])));
    }
    let verb = match (kicked.count, kicked.dry_run) {
        (_, true) => "would be ended",
        (1, false) => "is being ended",
        (_, false) => "are being ended",
    };
    let over = Duration::from_secs_f64(kicked.over_seconds.round());
    let over = if over.is_zero() { String::new() } else { format!(" over {over:?}") };
    format!("{text}{} {verb}{over}", count(kicked.count, "session"))
}

//! `usher cache`: shows and drops what the running usher has cached for a user.

use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;

use super::fleet;
use super::running::{Running, age, say, say_json, with_query};
use super::{NO_USER, OK, count, fail};
use crate::admin::control::{Cached, Dropped};
use crate::telemetry::log::Escaped;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
    /// Ask every node of the fleet, and print by node
    #[arg(long, global = true)]
    fleet: bool,
    /// JSON instead of text
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what is cached for a user: the number of passwords, never a password
    Show {
        /// The login name as typed (case-insensitive), the claim of a token, a mail address, or the DN
        login: String,
        /// In this directory alone
        #[arg(long, value_name = "NAME")]
        directory: Option<String>,
    },
    /// Drop what is cached for a user, including right and wrong passwords
    Drop {
        /// The login name as typed (case-insensitive), the claim of a token, a mail address, or the DN
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        login: Option<String>,
        /// Drop all users
        #[arg(long)]
        all: bool,
        /// Of this directory alone
        #[arg(long, value_name = "NAME")]
        directory: Option<String>,
    },
}

pub(super) async fn cache(config: &Path, arguments: &Args) -> Result<ExitCode, ExitCode> {
    let running = Running::of(config)?;
    match &arguments.command {
        Command::Show { login, directory } if arguments.fleet => {
            let show = |found: Vec<Cached>| match found.as_slice() {
                [] => "nothing is cached".to_owned(),
                found => found.iter().map(text).collect::<Vec<_>>().join("\n"),
            };
            let path = show_path(login, directory.as_deref());
            fleet::ask(&running, ("GET", &path), arguments.json, show).await
        }
        Command::Show { login, directory } => show(&running, (login, directory.as_deref()), arguments.json).await,
        Command::Drop { login, directory, .. } if arguments.fleet => {
            let path = drop_path(login.as_deref(), directory.as_deref());
            fleet::ask(&running, ("POST", &path), arguments.json, |dropped| dropped_text(&dropped)).await
        }
        Command::Drop { login, directory, .. } => {
            let path = drop_path(login.as_deref(), directory.as_deref());
            drop_entries(&running, &path, arguments.json).await
        }
    }
}

async fn show(running: &Running, (login, directory): (&str, Option<&str>), json: bool) -> Result<ExitCode, ExitCode> {
    // The cache of a process from before an upgrade decides no login any more.
    let found: Vec<Cached> = running.ask("GET", &show_path(login, directory)).await?;
    if json {
        say_json(&found);
    } else {
        found.iter().for_each(|cached| say(text(cached)));
    }
    if found.is_empty() {
        let login = Escaped(login.as_bytes());
        return Err(fail(
            NO_USER,
            format!("nothing is cached for {login}: the next login is verified by the directory"),
        ));
    }
    Ok(ExitCode::from(OK))
}

fn text(cached: &Cached) -> String {
    let escaped = |text: &str| Escaped(text.as_bytes()).to_string();
    let list = |texts: &[String]| texts.iter().map(|text| escaped(text)).collect::<Vec<_>>().join(", ");
    let mut lines = vec![escaped(&cached.dn), format!("  typed as   {}", list(&cached.names))];
    lines.extend(cached.directory.as_ref().map(|name| format!("  directory  {}", escaped(name))));
    if let Some(seconds) = cached.age_seconds {
        let left = cached.left_seconds.map_or_else(
            || "expired: the next login is verified by the directory".to_owned(),
            |left| format!("cached for {} more", age(left)),
        );
        let stale = cached.stale_left_seconds.map(|left| format!(", {} while the directory is unreachable", age(left)));
        lines.push(format!("  verified   {} ago, {left}{}", age(seconds), stale.unwrap_or_default()));
        let backend = cached.backend.as_deref().unwrap_or("none: see `usher explain`");
        lines.push(format!("  backend    {backend} (mailHost: {})", list(&cached.mail_host)));
    }
    lines.push(format!("  passwords  {} right, {} wrong", cached.right, cached.wrong));
    if cached.tokens > 0 {
        lines.push(format!("  tokens     verified at each login; cached searches that lead here: {}", cached.tokens));
    }
    if !cached.addresses.is_empty() {
        lines.push(format!("  mail for   {}", list(&cached.addresses)));
    }
    lines.join("\n")
}

async fn drop_entries(running: &Running, path: &str, json: bool) -> Result<ExitCode, ExitCode> {
    let answers = running.ask_all::<Dropped>("POST", path).await?;
    let code = answers.code();
    let mut dropped = Dropped { entries: 0, dns: Vec::new() };
    for mut answer in answers.all {
        // Both processes may have cached the same users.
        dropped.entries = dropped.entries.max(answer.entries);
        dropped.dns.append(&mut answer.dns);
    }
    dropped.dns.sort_unstable();
    dropped.dns.dedup();
    if json {
        say_json(&dropped);
        return Ok(code);
    }
    say(dropped_text(&dropped));
    Ok(code)
}

fn show_path(login: &str, directory: Option<&str>) -> String {
    let directory = directory.map(|name| ("directory", name));
    with_query("/cache", [("login", login)].into_iter().chain(directory))
}

fn drop_path(login: Option<&str>, directory: Option<&str>) -> String {
    let directory = directory.map(|name| ("directory", name));
    with_query("/cache/drop", [login.map_or(("all", "true"), |login| ("login", login))].into_iter().chain(directory))
}

fn dropped_text(dropped: &Dropped) -> String {
    let dns = dropped.dns.iter().map(|dn| Escaped(dn.as_bytes()).to_string());
    dns.chain([format!("{} dropped", count(dropped.entries, "user"))]).collect::<Vec<_>>().join("\n")
}

//! `usher cache`: what the running usher remembers of a user, and forgetting it.

use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;

use super::running::{Running, age, say, say_json, with_query};
use super::{NO_USER, OK, count, fail};
use crate::admin::control::{Cached, Dropped};
use crate::log::Escaped;

const HELP: &str = "\
Whoever is forgotten is asked for in the directory at the next login; sessions go on. Nothing is lost:
what was dropped is learned again.

Examples:
  usher cache show alice
  usher cache drop alice                                  a leaver; then `usher kick --user alice`
  usher cache drop uid=alice,ou=people,dc=example,dc=com  under whatever name she logs in
  usher cache drop --all                                  everybody asks the directory again

Exit codes: 0 told or done, also if there was nothing to drop; 1 done, but a process of an upgrade did not
answer; 64 a mistake in the arguments; 67 nothing is remembered (show); 69 usher does not run; 77 you may
not use the control socket.";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// JSON instead of text
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell what is remembered of a user: never a password, only how many
    Show {
        /// The login name as it was typed, in any capitals, or the DN
        login: String,
    },
    /// Forget what is remembered of a user, right and wrong passwords alike
    Drop {
        /// The login name as it was typed, in any capitals, or the DN
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        login: Option<String>,
        /// Forget everybody
        #[arg(long)]
        all: bool,
    },
}

pub(super) async fn cache(config: &Path, arguments: &Arguments) -> Result<ExitCode, ExitCode> {
    let running = Running::of(config)?;
    match &arguments.command {
        Command::Show { login } => show(&running, login, arguments.json).await,
        Command::Drop { login, .. } => forget(&running, login.as_deref(), arguments.json).await,
    }
}

async fn show(running: &Running, login: &str, json: bool) -> Result<ExitCode, ExitCode> {
    // What a process before an upgrade remembers decides about nobody any more.
    let found: Vec<Cached> = running.ask("GET", &with_query("/cache", [("login", login)])).await?;
    if json {
        say_json(&found);
    } else {
        found.iter().for_each(|cached| say(text(cached)));
    }
    if found.is_empty() {
        let login = Escaped(login.as_bytes());
        return Err(fail(NO_USER, format!("nothing is remembered of {login}: the next login asks the directory")));
    }
    Ok(ExitCode::from(OK))
}

fn text(cached: &Cached) -> String {
    let escaped = |text: &str| Escaped(text.as_bytes()).to_string();
    let list = |texts: &[String]| texts.iter().map(|text| escaped(text)).collect::<Vec<_>>().join(", ");
    let mut lines = vec![escaped(&cached.dn), format!("  typed as   {}", list(&cached.names))];
    if let Some(seconds) = cached.age_seconds {
        let left = cached.left_seconds.map_or_else(
            || "too long for a login: the directory is asked again".to_owned(),
            |left| format!("good for {} more", age(left)),
        );
        let stale = cached.stale_left_seconds.map(|left| format!(", {} while no directory answers", age(left)));
        lines.push(format!("  proven     {} ago, {left}{}", age(seconds), stale.unwrap_or_default()));
        let backend = cached.backend.as_deref().unwrap_or("none: see `usher explain`");
        lines.push(format!("  backend    {backend} (mailHost: {})", list(&cached.mail_host)));
    }
    lines.push(format!("  passwords  {} right, {} wrong", cached.right, cached.wrong));
    lines.join("\n")
}

async fn forget(running: &Running, login: Option<&str>, json: bool) -> Result<ExitCode, ExitCode> {
    let whom = login.map_or(("all", "true"), |login| ("login", login));
    let answers = running.ask_all::<Dropped>("POST", &with_query("/cache/drop", [whom])).await?;
    let code = answers.code();
    let mut dropped = Dropped { entries: 0, dns: Vec::new() };
    for mut answer in answers.all {
        // Two processes remember the same people.
        dropped.entries = dropped.entries.max(answer.entries);
        dropped.dns.append(&mut answer.dns);
    }
    dropped.dns.sort_unstable();
    dropped.dns.dedup();
    if json {
        say_json(&dropped);
        return Ok(code);
    }
    for dn in &dropped.dns {
        say(Escaped(dn.as_bytes()));
    }
    say(format!("{} forgotten", count(dropped.entries, "user")));
    Ok(code)
}

//! `usher confirm`: applies the changes that the brake holds.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::count;
use super::fleet::{self, ByNode};
use super::running::{Running, say, say_json, with_query};
use crate::admin::control::Confirmed;
use crate::base::clock::unix_now;
use crate::config;

/// The longest time that can be confirmed in advance.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Also apply changes that come within this time, for a planned move, such as 30m; at most 24h
    #[arg(long = "for", value_name = "TIME", value_parser = time, default_value = "0s")]
    time: Duration,
    /// Of this directory alone
    #[arg(long, value_name = "NAME")]
    directory: Option<String>,
    #[command(flatten)]
    by_node: ByNode,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    let time = config::duration(text)?;
    if time > DAY { Err("at most 24h".to_owned()) } else { Ok(time) }
}

pub(super) async fn confirm(config: &Path, arguments: &Args) -> Result<ExitCode, ExitCode> {
    let directory = arguments.directory.as_deref().map(|name| ("directory", name));
    let path = with_query(&format!("/confirm/{}", arguments.time.as_secs()), directory);
    // After an upgrade the sessions there are moved by the process that has them.
    let running = Running::of(config)?;
    if arguments.by_node.fleet {
        return fleet::ask(&running, ("POST", &path), arguments.json, |confirmed| text(&confirmed, arguments.time))
            .await;
    }
    let answers = running.ask_all::<Confirmed>("POST", &path).await?;
    let code = answers.code();
    let changes = answers.all.iter().map(|confirmed| confirmed.changes).max().unwrap_or_default();
    if arguments.json {
        say_json(&Confirmed { changes });
    } else {
        say(text(&Confirmed { changes }, arguments.time));
    }
    Ok(code)
}

fn text(confirmed: &Confirmed, time: Duration) -> String {
    let applied = format!("{} applied", count(confirmed.changes, "change"));
    if time.is_zero() {
        return applied;
    }
    let until = (unix_now() + time.as_secs()) % 86_400;
    format!("{applied}; those that come until {:02}:{:02} UTC are applied at once", until / 3_600, until % 3_600 / 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_of_the_time_is_said() {
        assert_eq!(text(&Confirmed { changes: 1 }, Duration::ZERO), "1 change applied");
        let said = text(&Confirmed { changes: 0 }, Duration::from_secs(1_800));
        assert!(said.starts_with("0 changes applied; those that come until ") && said.contains(" UTC are"), "{said}");
    }

    #[test]
    fn time_is_written_as_in_the_configuration() {
        assert_eq!(time("30m"), Ok(Duration::from_secs(1_800)));
        assert!(time("30").unwrap_err().contains("needs a unit"));
        assert!(time("2d").is_err());
    }
}

//! `usher confirm`: what so many users were changed for is meant.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::sessions::control_socket;
use super::{OK, UNAVAILABLE, count, fail};
use crate::admin::control::{self, Confirmed};
use crate::config;

/// The longest time that can be confirmed in advance.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Act on whatever comes within this time, too: before a planned move, such as 30m; at most 24h
    #[arg(long = "for", value_name = "TIME", value_parser = time, default_value = "0s")]
    time: Duration,
}

fn time(text: &str) -> Result<Duration, String> {
    let time = config::duration(text)?;
    if time > DAY { Err("24h at the most".to_owned()) } else { Ok(time) }
}

pub(super) async fn confirm(config: &Path, arguments: &Arguments) -> ExitCode {
    let socket = match control_socket(config) {
        Ok(socket) => socket,
        Err(code) => return code,
    };
    let path = format!("/confirm/{}", arguments.time.as_secs());
    let mut changes = match control::ask::<Confirmed>(&socket, "POST", &path).await {
        Ok(confirmed) => confirmed.changes,
        Err(error) => return fail(UNAVAILABLE, error),
    };
    for socket in control::predecessors(&socket) {
        // After an upgrade: the sessions there are moved by the process that has them.
        changes = changes.max(control::ask::<Confirmed>(&socket, "POST", &path).await.map_or(0, |it| it.changes));
    }
    println!("{} acted on", count(changes, "change"));
    ExitCode::from(OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_in_the_configuration() {
        assert_eq!(time("30m"), Ok(Duration::from_secs(1_800)));
        assert!(time("30").unwrap_err().contains("needs a unit"));
        assert!(time("2d").is_err());
    }
}

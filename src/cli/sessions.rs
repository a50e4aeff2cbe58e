//! `usher sessions`: who is logged in through the running usher.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{CONFIG, OK, UNAVAILABLE, count, fail, fail_config};
use crate::admin::control;
use crate::config::{self, Mistakes};
use crate::registry::{Session, unix_now};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// One JSON array instead of a table
    #[arg(long)]
    json: bool,
    /// Only those of this user: the login name as it was typed, or the DN
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

pub(super) async fn sessions(config: &Path, arguments: &Arguments) -> ExitCode {
    let socket = match control_socket(config) {
        Ok(socket) => socket,
        Err(code) => return code,
    };
    let mut sessions: Vec<Session> = match control::ask(&socket, "GET", "/sessions").await {
        Ok(sessions) => sessions,
        Err(error) => return fail(UNAVAILABLE, error),
    };
    for socket in control::predecessors(&socket) {
        // After an upgrade; one that does not answer has ended meanwhile.
        sessions.extend(control::ask::<Vec<Session>>(&socket, "GET", "/sessions").await.unwrap_or_default());
    }
    if let Some(user) = &arguments.user {
        sessions.retain(|session| [&session.login, &session.dn].iter().any(|name| name.eq_ignore_ascii_case(user)));
    }
    if arguments.json {
        match serde_json::to_string_pretty(&sessions) {
            Ok(text) => println!("{text}"),
            Err(error) => return fail(UNAVAILABLE, error),
        }
    } else {
        print_table(&sessions);
    }
    ExitCode::from(OK)
}

fn print_table(sessions: &[Session]) {
    let width = |column: fn(&Session) -> usize, title: &str| {
        sessions.iter().map(column).chain([title.len()]).max().unwrap_or_default()
    };
    let login = width(|session| session.login.chars().count(), "USER");
    let client = width(|session| session.client.to_string().len(), "CLIENT");
    let backend = width(|session| session.backend.len(), "BACKEND");
    let now = unix_now();
    println!(
        "{:13}  {:login$}  {:client$}  {:8}  {:backend$}  {:>8}",
        "ID", "USER", "CLIENT", "PROTOCOL", "BACKEND", "AGE"
    );
    for session in sessions {
        let Session { id, login: user, client: from, protocol, backend: to, since, .. } = session;
        let (from, age) = (from.to_string(), age(now.saturating_sub(*since)));
        println!("{id}  {user:login$}  {from:client$}  {protocol:8}  {to:backend$}  {age:>8}");
    }
    println!("{}", count(sessions.len(), "session"));
}

/// `42s`, `17m`, `5h03m`, `2d04h`.
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        (_, _, _) => format!("{days}d{:02}h", hours % 24),
    }
}

/// The control socket of this configuration. Mistakes elsewhere in the file do not matter: the
/// running usher has another one in force, and it says itself what it thinks of this one.
pub(super) fn control_socket(file: &Path) -> Result<PathBuf, ExitCode> {
    let control = match config::load(file) {
        Ok(config) => config.control,
        Err(Mistakes { draft: Some(draft), .. }) if draft.control.is_some() => draft.control,
        Err(Mistakes { problems, .. }) => return Err(fail_config(&problems)),
    };
    control.map(|control| control.path).ok_or_else(|| {
        fail(
            CONFIG,
            format!("{} has no control socket; add `control: {{path: /run/usher/control.sock}}`", file.display()),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{age, control_socket};

    #[test]
    fn a_mistake_elsewhere_does_not_hide_the_control_socket() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, "listenerz: []\ncontrol: {path: control.sock}\n").unwrap();
        assert_eq!(control_socket(&file).unwrap(), folder.path().join("control.sock"));
        std::fs::write(&file, "control: [\n").unwrap();
        assert!(control_socket(&file).is_err());
    }

    #[test]
    fn ages_have_two_units_at_most() {
        assert_eq!(age(59), "59s");
        assert_eq!(age(60), "1m");
        assert_eq!(age(3_599), "59m");
        assert_eq!(age(3_780), "1h03m");
        assert_eq!(age(187_200), "2d04h");
    }
}

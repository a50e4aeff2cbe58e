//! What the commands about the running usher share: its control socket, its answers, and how they are
//! shown.

use std::fmt::Display;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hyper::body::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{CONFIG, FAILED, NO_PERMISSION, OK, UNAVAILABLE, USAGE, fail, fail_config, output, progress};
use crate::admin::control::{self, ControlError, encode};
use crate::config::{self, Mistakes};
use crate::diagnose::table::{ShownJson, ShownLines};

/// What is said of a request that takes its time.
const WAITING: &str = "waiting for the running usher";

/// The running usher of a configuration.
pub(super) struct Running {
    socket: PathBuf,
}

/// The answers of the process that serves and of those that an upgrade has left with their sessions.
pub(super) struct Answers<T> {
    /// The first is of the process that serves.
    pub(super) all: Vec<T>,
    /// Whether every process has replied.
    complete: bool,
}

impl<T> Answers<T> {
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    pub(super) fn code(&self) -> ExitCode {
        ExitCode::from(if self.complete { OK } else { FAILED })
    }
}

impl Running {
    /// The one whose control socket is in this configuration. Mistakes elsewhere in the file do not
    /// matter: the running usher has another one in force, and it says itself what it thinks of this one.
    pub(super) fn of(file: &Path) -> Result<Self, ExitCode> {
        let control = match config::load(file) {
            Ok(config) => config.control,
            Err(Mistakes { draft: Some(draft), .. }) if draft.control.is_some() => draft.control,
            Err(Mistakes { problems, .. }) => return Err(fail_config(&problems)),
        };
        let socket = control.map(|control| control.path).ok_or_else(|| {
            fail(
                CONFIG,
                format!("{} has no control socket; add `control: {{path: /run/usher/control.sock}}`", file.display()),
            )
        })?;
        Ok(Self { socket })
    }

    /// Asks the process that serves.
    ///
    /// # Errors
    /// The exit code, after the reason was printed.
    pub(super) async fn ask<T: DeserializeOwned>(&self, method: &str, path: &str) -> Result<T, ExitCode> {
        let asked = control::ask(&self.socket, method, path);
        progress::waiting(WAITING, asked).await.map_err(|error| refused(&error))
    }

    /// Has the process that serves act on its configuration file, if that is `file`. 0.1.0 does not know the argument,
    /// and refuses the request before it does anything: there it acts on the file that it has.
    ///
    /// # Errors
    /// As [`Running::ask`].
    pub(super) async fn act_on<T: DeserializeOwned>(
        &self,
        file: &str,
        path: &str,
        option: Option<(&str, &str)>,
    ) -> Result<T, ExitCode> {
        let with_file = with_query(path, [("config", file)].into_iter().chain(option));
        let asked = async {
            match control::ask(&self.socket, "POST", &with_file).await {
                Err(error) if error.refuses_argument("config") => {
                    control::ask(&self.socket, "POST", &with_query(path, option)).await
                }
                asked => asked,
            }
        };
        progress::waiting(WAITING, asked).await.map_err(|error| refused(&error))
    }

    /// Sends the process that serves a request with a body.
    ///
    /// # Errors
    /// As [`Running::ask`].
    pub(super) async fn send<T: DeserializeOwned>(&self, method: &str, path: &str, body: Bytes) -> Result<T, ExitCode> {
        let sent = control::send(&self.socket, method, path, body);
        progress::waiting(WAITING, sent).await.map_err(|error| refused(&error))
    }

    /// Follows a response of the process that serves.
    ///
    /// # Errors
    /// As [`Running::ask`].
    pub(super) async fn follow<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        each: impl FnMut(T) -> ControlFlow<()>,
    ) -> Result<(), ExitCode> {
        control::follow(&self.socket, method, path, each).await.map_err(|error| refused(&error))
    }

    /// Asks the process that serves and those before it. Of the latter an error is printed, but is no
    /// failure of the whole.
    ///
    /// # Errors
    /// As [`Running::ask`].
    pub(super) async fn ask_all<T: DeserializeOwned>(&self, method: &str, path: &str) -> Result<Answers<T>, ExitCode> {
        let asked = control::ask_all(&self.socket, method, path);
        let asked = progress::waiting(WAITING, asked).await.map_err(|error| refused(&error))?;
        let mut answers = Answers { all: vec![asked.serving], complete: true };
        for (socket, answer) in asked.before {
            match answer {
                Ok(answer) => answers.all.push(answer),
                // What the one that serves understands and this one does not, it has nothing to do with.
                Err(error) if error.is_mistake() => {}
                Err(error) => {
                    let error = format!("the process before the last upgrade ({}): {error}", socket.display());
                    output::complaint(format_args!("usher: {}", ShownLines(&error)));
                    answers.complete = false;
                }
            }
        }
        Ok(answers)
    }
}

/// Says why there is no answer.
fn refused(error: &ControlError) -> ExitCode {
    if error.is_unknown_path() {
        let words =
            "the running usher is of an earlier version, which does not know this command; `usher upgrade` replaces it";
        return fail(UNAVAILABLE, words);
    }
    fail(code_of(error), error)
}

/// What a command exits with that has no answer.
pub(super) fn code_of(error: &ControlError) -> u8 {
    if error.is_permission() {
        NO_PERMISSION
    } else if error.is_mistake() {
        USAGE
    } else {
        UNAVAILABLE
    }
}

/// A path with its query.
pub(super) fn with_query<'k, 'v>(path: &str, pairs: impl IntoIterator<Item = (&'k str, &'v str)>) -> String {
    let pairs: Vec<String> = pairs.into_iter().map(|(key, value)| format!("{key}={}", encode(value))).collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

/// Prints. What a terminal would interpret is escaped, because
/// names and replies are untrusted.
pub(super) fn say(text: impl Display) {
    output::line(ShownLines(&text.to_string()));
}

/// Prints as JSON.
pub(super) fn say_json(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => output::line(ShownJson(&text)),
        // Maps with keys that are no text, of which there are none.
        Err(error) => output::complaint(format_args!("usher: {error}")),
    }
}

/// Rows under titles, each column as wide as it must be. Numbers stand at the right.
pub(super) fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    let is_number = |text: &str| text.starts_with(|first: char| first.is_ascii_digit()) && !text.contains([':', '.']);
    let columns = titles.iter().enumerate().map(|(at, title)| {
        let cells = || rows.iter().filter_map(move |row| row.get(at));
        let width = cells().map(|cell| cell.chars().count()).chain([title.len()]).max().unwrap_or(0);
        (width, !rows.is_empty() && cells().all(|cell| is_number(cell)))
    });
    let columns: Vec<(usize, bool)> = columns.collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&columns).map(
            |(cell, (width, right))| {
                if *right { format!("{cell:>width$}") } else { format!("{cell:width$}") }
            },
        );
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let head = line(&mut titles.iter().copied());
    let body = rows.iter().map(|row| line(&mut row.iter().map(String::as_str)));
    std::iter::once(head).chain(body).collect::<Vec<_>>().join("\n")
}

/// `42s`, `17m`, `5h03m`, `2d04h`.
pub(super) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        (_, _, _) => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_socket_is_found_despite_other_config_mistakes() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, "listenerz: []\ncontrol: {path: control.sock}\n").unwrap();
        assert_eq!(Running::of(&file).ok().unwrap().socket, folder.path().join("control.sock"));
        std::fs::write(&file, "control: [\n").unwrap();
        assert!(Running::of(&file).is_err());
    }

    #[test]
    fn ages_have_at_most_two_units() {
        assert_eq!(age(59), "59s");
        assert_eq!(age(60), "1m");
        assert_eq!(age(3_599), "59m");
        assert_eq!(age(3_780), "1h03m");
        assert_eq!(age(187_200), "2d04h");
    }

    #[test]
    fn name_is_escaped_in_a_query() {
        assert_eq!(with_query("/sessions", []), "/sessions");
        let path = with_query("/kick", [("user", "jürgen&all=true"), ("client", "2001:db8::/32")]);
        assert_eq!(path, "/kick?user=j%C3%BCrgen%26all%3Dtrue&client=2001%3Adb8%3A%3A%2F32");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [["jürgen", "5"], ["al", "12"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&["USER", "SESSIONS"], &rows), "USER    SESSIONS\njürgen         5\nal            12");
        assert_eq!(table(&["USER", "N"], &[]), "USER  N");
    }
}

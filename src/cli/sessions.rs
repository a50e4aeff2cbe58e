//! `usher sessions`: lists the sessions of the running usher; and the selection of sessions, which
//! `usher kick` shares.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use clap::ValueEnum;
use serde_json::{Map, Value};

use super::count;
use super::fleet::{self, ByNode};
use super::running::{Running, age, say, say_json, table, with_query};
use crate::base::clock::unix_now;
use crate::diagnose::table::Shown;
use crate::sessions::filter::{Filter, FilterError};
use crate::sessions::registry::Session;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// Only the number, by backend or by the given fields: `--count=user`, `--count=backend,protocol`
    #[arg(
        long,
        value_name = "BY",
        value_delimiter = ',',
        num_args = 0..,
        require_equals = true,
        default_missing_value = "backend"
    )]
    count: Vec<By>,
    #[command(flatten)]
    by_node: ByNode,
    /// One JSON array instead of a table
    #[arg(long)]
    json: bool,
}

/// Of what sessions; each that is given has to fit.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Selection {
    /// Only this user's: the login name as it was typed, or the DN; under other names, too
    #[arg(long, value_name = "NAME", value_parser = part("user"))]
    user: Option<String>,
    /// Only those at this backend
    #[arg(long, value_name = "NAME", value_parser = part("backend"))]
    backend: Option<String>,
    /// Only those from this address or network
    #[arg(long, value_name = "ADDRESS[/BITS]", value_parser = part("client"))]
    client: Option<String>,
    /// Only those of this protocol: imap, pop3, submission, managesieve
    #[arg(long, value_name = "NAME", value_parser = part("protocol"))]
    protocol: Option<String>,
    /// Only those of users of this directory
    #[arg(long, value_name = "NAME", value_parser = part("directory"))]
    directory: Option<String>,
}

impl Selection {
    /// As arguments of a request.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let values = [
            ("user", &self.user),
            ("backend", &self.backend),
            ("client", &self.client),
            ("protocol", &self.protocol),
            ("directory", &self.directory),
        ];
        values.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?)))
    }
}

/// Which sessions; each that is given has to fit.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Which {
    #[command(flatten)]
    selection: Selection,
    /// Only those of at least this age, such as 12h
    #[arg(long, value_name = "TIME", value_parser = part("older_than"))]
    older_than: Option<String>,
    /// Only those that are younger, such as 5m
    #[arg(long, value_name = "TIME", value_parser = part("younger_than"))]
    younger_than: Option<String>,
}

/// Checks a part of a filter here, where clap says which argument it was.
pub(super) fn part(key: &'static str) -> impl Fn(&str) -> Result<String, FilterError> + Clone + Send + Sync + 'static {
    move |text| Filter::default().set(key, text).map(|()| text.to_owned())
}

impl Which {
    /// As arguments of a request.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let ages = [("older_than", &self.older_than), ("younger_than", &self.younger_than)];
        let ages = ages.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?)));
        self.selection.pairs().chain(ages)
    }
}

/// What sessions are counted by.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    Backend,
    Protocol,
    User,
    Client,
    Directory,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Backend => "backend",
            Self::Protocol => "protocol",
            Self::User => "user",
            Self::Client => "client",
            Self::Directory => "directory",
        }
    }

    fn of(self, session: &Session) -> String {
        match self {
            Self::Backend => session.backend.to_string(),
            Self::Protocol => session.protocol.to_string(),
            Self::User => session.login.to_string(),
            Self::Client => session.client.to_string(),
            Self::Directory => session.directory.as_deref().unwrap_or("default").to_owned(),
        }
    }
}

pub(super) async fn sessions(config: &Path, arguments: &Args) -> Result<ExitCode, ExitCode> {
    let path = with_query("/sessions", arguments.which.pairs());
    let running = Running::of(config)?;
    if arguments.by_node.fleet {
        let show = |sessions| shown(&sorted(vec![sessions]), &arguments.count);
        return fleet::ask(&running, ("GET", &path), arguments.json, show).await;
    }
    let answers = running.ask_all::<Vec<Session>>("GET", &path).await?;
    let code = answers.code();
    let sessions = sorted(answers.all);
    match (arguments.count.as_slice(), arguments.json) {
        ([], true) => say_json(&sessions),
        (by, true) => say_json(&as_objects(&counted(&sessions, by), by)),
        (by, false) => say(shown(&sessions, by)),
    }
    Ok(code)
}

/// A table of them, or how many there are.
fn shown(sessions: &[Session], by: &[By]) -> String {
    if by.is_empty() { listed(sessions) } else { count_table(&counted(sessions, by), by, sessions.len()) }
}

/// By user, and each user's from the oldest on.
pub(super) fn sorted(lists: Vec<Vec<Session>>) -> Vec<Session> {
    let mut sessions: Vec<Session> = lists.into_iter().flatten().collect();
    sessions.sort_by(|one, other| (&one.login, one.since, one.id).cmp(&(&other.login, other.since, other.id)));
    sessions
}

/// A table, and how many there are.
pub(super) fn listed(sessions: &[Session]) -> String {
    let now = unix_now();
    let is_acting = sessions.iter().any(|session| session.acting.is_some());
    let is_several = sessions.iter().any(|session| session.directory.is_some());
    let row = |session: &Session| {
        let Session { id, login, acting, client, protocol, backend, since, directory, .. } = session;
        let directory = is_several.then(|| Shown(directory.as_deref().unwrap_or("-")).to_string());
        let age = age(now.saturating_sub(*since));
        let acting = is_acting.then(|| acting.as_ref().map_or_else(|| "-".to_owned(), |name| Shown(name).to_string()));
        let user = [Shown(login).to_string()].into_iter().chain(directory).chain(acting);
        let rest = [client.to_string(), protocol.to_string(), backend.to_string(), age, id.to_string()];
        user.chain(rest).collect()
    };
    let rows: Vec<_> = sessions.iter().map(row).collect();
    let number = count(sessions.len(), "session");
    if rows.is_empty() {
        return number;
    }
    let titles = ["USER", "DIRECTORY", "ACTING", "CLIENT", "PROTOCOL", "BACKEND", "AGE", "ID"];
    let is_shown = |title: &&str| match *title {
        "DIRECTORY" => is_several,
        "ACTING" => is_acting,
        _ => true,
    };
    let titles: Vec<_> = titles.into_iter().filter(is_shown).collect();
    format!("{}\n{number}", table(&titles, &rows))
}

/// How many for each combination, the most first.
fn counted(sessions: &[Session], by: &[By]) -> Vec<(Vec<String>, usize)> {
    let mut counts: BTreeMap<Vec<String>, usize> = BTreeMap::new();
    for session in sessions {
        *counts.entry(by.iter().map(|by| by.of(session)).collect()).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, number)| std::cmp::Reverse(*number));
    counts
}

fn as_objects(counts: &[(Vec<String>, usize)], by: &[By]) -> Vec<Map<String, Value>> {
    let object = |(values, number): &(Vec<String>, usize)| {
        let named = std::iter::zip(by, values).map(|(by, value)| (by.name().to_owned(), Value::from(value.clone())));
        named.chain([("sessions".to_owned(), Value::from(*number))]).collect()
    };
    counts.iter().map(object).collect()
}

fn count_table(counts: &[(Vec<String>, usize)], by: &[By], all: usize) -> String {
    let titles: Vec<String> = by.iter().map(|by| by.name().to_uppercase()).chain(["SESSIONS".to_owned()]).collect();
    let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
    let row = |(values, number): &(Vec<String>, usize)| {
        values.iter().map(|value| Shown(value).to_string()).chain([number.to_string()]).collect()
    };
    let rows: Vec<_> = counts.iter().map(row).collect();
    format!("{}\n{}", table(&titles, &rows), count(all, "session"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_with_terminal_control_is_escaped() {
        let session = serde_json::json!({
            "id": "06AAAAAAAAAAA", "login": "al\u{202e}ice\u{9b}2J\u{1b}[31m", "dn": "uid=x", "client": "192.0.2.1",
            "protocol": "imap", "backend": "server3", "since": 0,
        });
        let sessions: Vec<Session> = vec![serde_json::from_value(session).unwrap()];
        let by = [By::User];
        for text in [listed(&sessions), count_table(&counted(&sessions, &by), &by, 1)] {
            assert!(text.contains(r"al\u{202e}ice\u{9b}2J\u{1b}[31m"), "{text}");
            assert!(text.lines().all(|line| line.chars().all(crate::telemetry::log::is_printable)), "{text}");
        }
    }
}

//! `usher wait`: waits until a held user has no session and no mail on its way, so that the mailbox can be moved.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::directories;
use super::fleet::ByNode;
use super::running::{Running, say, say_json, with_query};
use super::{DATA, FAILED, NO_USER, OK, UNAVAILABLE, USAGE, count, fail, fail_config, progress};
use crate::admin::control::{Dropped, NodeReply, Recent};
use crate::base::credential::Login;
use crate::config;
use crate::directory::DirectoryError;
use crate::telemetry::log::Escaped;

/// How often the sessions are counted.
const PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The login name, as a client would type it
    login: String,
    #[command(flatten)]
    by_node: ByNode,
    /// Also wait until the last answer to Postfix about the user is this old, such as 30s
    #[arg(long, value_name = "TIME", value_parser = config::duration)]
    age: Option<Duration>,
    /// Give up after this time, such as 5m
    #[arg(long, value_name = "TIME", value_parser = config::duration, default_value = "5m")]
    timeout: Duration,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// What the wait has come to, as JSON.
#[derive(Serialize)]
struct Waited<'a> {
    login: &'a str,
    dn: &'a str,
    /// Whether the mailbox can be moved.
    done: bool,
    sessions: usize,
    /// How long ago Postfix may have got a server, in seconds, if that is less than `--age`.
    youngest_answer_seconds: Option<f64>,
    /// The nodes, or processes of an upgrade, without an answer.
    without_answer: Vec<String>,
}

pub(super) async fn wait(file: &Path, arguments: &Args) -> Result<ExitCode, ExitCode> {
    let config = config::load(file).map_err(|mistakes| fail_config(&mistakes.problems))?;
    let realms = directories::open(&config)?;
    let shown = Escaped(arguments.login.as_bytes()).to_string();
    let login = Login::parse(arguments.login.as_bytes()).ok_or_else(|| fail(USAGE, "this is no login name"))?;
    let entry = realms.find(&login).await.0.map_err(|error| {
        let is_outage = matches!(error, DirectoryError::Unavailable(_));
        fail(if is_outage { UNAVAILABLE } else { NO_USER }, format!("{shown}: {error}"))
    })?;
    if !entry.version.held {
        let words = match realms.of(&entry).and_then(|realm| realm.settings.watch.hold_attribute.as_ref()) {
            Some(attribute) => {
                format!("{shown} is not held: set {attribute} of {} first", Escaped(entry.dn.as_bytes()))
            }
            None => format!("{shown} is not held: directory.hold_attribute is not configured"),
        };
        return Err(fail(DATA, words));
    }
    let (running, until) = (Running::of(file)?, Instant::now() + arguments.timeout);
    let of = |key| [(key, &*entry.dn)].into_iter().chain(realms.shown(&entry).map(|name| ("directory", name)));
    let (path, cached) = (with_query("/sessions", of("user")), with_query("/cache/drop", of("login")));
    let answers = with_query("/answers", [("dn", &*entry.dn)]);
    let mut is_dropped = false;
    // An answer to Postfix that was being decided when the hold was set is seen the next time.
    let mut was_settled = arguments.age.is_none();
    loop {
        let (sessions, mut silent) = ask::<Vec<Value>>(&running, &path, arguments.by_node.fleet).await?;
        let sessions: usize = sessions.iter().map(Vec::len).sum();
        if !is_dropped && silent.is_empty() {
            // Where the hold is not known yet, a cached password would still open a session after the count.
            is_dropped = drop_cached(&running, &cached, arguments.by_node.fleet).await?;
            if is_dropped {
                continue;
            }
        }
        let mut youngest = None;
        if let Some(age) = arguments.age {
            let (recent, more) = ask::<Recent>(&running, &answers, arguments.by_node.fleet).await?;
            silent.extend(more);
            let ages = recent.iter().flat_map(|one| [one.age_seconds, one.remembered_seconds]).flatten();
            youngest = ages.filter(|seconds| *seconds < age.as_secs_f64()).min_by(f64::total_cmp);
        }
        let is_settled = is_dropped && sessions == 0 && silent.is_empty() && youngest.is_none();
        if is_settled && was_settled {
            if arguments.json {
                let (login, dn) = (arguments.login.as_str(), &*entry.dn);
                let without_answer = Vec::new();
                say_json(&Waited { login, dn, done: true, sessions, youngest_answer_seconds: None, without_answer });
                return Ok(ExitCode::from(OK));
            }
            let mail = arguments.age.map_or(String::new(), |age| format!(", and Postfix got no server for {age:?}"));
            say(format!("{shown} has no session{mail}"));
            return Ok(ExitCode::from(OK));
        }
        if Instant::now() >= until {
            silent.sort_unstable();
            silent.dedup();
            if arguments.json {
                let (login, dn) = (arguments.login.as_str(), &*entry.dn);
                let (youngest_answer_seconds, without_answer) = (youngest, silent);
                say_json(&Waited { login, dn, done: false, sessions, youngest_answer_seconds, without_answer });
                return Ok(ExitCode::from(FAILED));
            }
            let silent =
                if silent.is_empty() { String::new() } else { format!("; no answer of {}", silent.join(", ")) };
            let mail = youngest.map_or(String::new(), |age| format!("; Postfix may have got a server {age:.0} s ago"));
            return Err(fail(FAILED, format!("{shown} has {}{mail}{silent}", count(sessions, "session"))));
        }
        was_settled = is_settled || arguments.age.is_none();
        let words = format!("{shown} has {}", count(sessions, "session"));
        progress::note(&words);
        sleep(PAUSE).await;
    }
}

/// Drops what is cached of the user; returns whether every process has.
async fn drop_cached(running: &Running, path: &str, fleet: bool) -> Result<bool, ExitCode> {
    if !fleet {
        return Ok(running.ask_all::<Dropped>("POST", path).await?.is_complete());
    }
    let replies: Vec<NodeReply<Value>> = running.ask("POST", &format!("/fleet{path}")).await?;
    Ok(replies.iter().all(|reply| reply.error.is_none()))
}

/// What every process answers, and the nodes that do not.
async fn ask<T: DeserializeOwned>(
    running: &Running,
    path: &str,
    fleet: bool,
) -> Result<(Vec<T>, Vec<String>), ExitCode> {
    if !fleet {
        let answers = running.ask_all::<T>("GET", path).await?;
        let silent = if answers.is_complete() { Vec::new() } else { vec!["a process of an upgrade".to_owned()] };
        return Ok((answers.all, silent));
    }
    let replies: Vec<NodeReply<T>> = running.ask("GET", &format!("/fleet{path}")).await?;
    let silent = replies.iter().filter(|reply| reply.answer.is_none());
    let silent = silent.map(|reply| Escaped(reply.node.as_bytes()).to_string()).collect();
    Ok((replies.into_iter().filter_map(|reply| reply.answer).collect(), silent))
}

//! `usher history NAME`: the last login attempts of a user, as the running usher remembers them.

use std::path::Path;
use std::process::ExitCode;

use super::fleet::{self, ByNode};
use super::running::{Running, say, say_json, table, with_query};
use super::{NO_USER, fail};
use crate::base::clock::date;
use crate::diagnose::table::Shown;
use crate::login::history::Attempt;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The login name as typed, in any case, or the DN
    login: String,
    #[command(flatten)]
    by_node: ByNode,
    /// One JSON array instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) async fn history(config: &Path, arguments: &Args) -> Result<ExitCode, ExitCode> {
    let running = Running::of(config)?;
    let path = with_query("/history", [("login", arguments.login.as_str())]);
    if arguments.by_node.fleet {
        return fleet::ask(&running, ("GET", &path), arguments.json, |attempts: Vec<Attempt>| text(&attempts)).await;
    }
    let answers = running.ask_all::<Vec<Attempt>>("GET", &path).await?;
    let code = answers.code();
    let mut attempts: Vec<Attempt> = answers.all.into_iter().flatten().collect();
    attempts.sort_by_key(|attempt| attempt.last);
    if arguments.json {
        say_json(&attempts);
    } else if !attempts.is_empty() {
        say(text(&attempts));
    }
    if attempts.is_empty() {
        let why = format!("no login attempt of {} is remembered", Shown(&arguments.login));
        return Ok(if arguments.json { ExitCode::from(NO_USER) } else { fail(NO_USER, why) });
    }
    Ok(code)
}

fn text(attempts: &[Attempt]) -> String {
    let row = |attempt: &Attempt| {
        let times = if attempt.count == 1 {
            String::new()
        } else {
            format!("{} times since {}", attempt.count, time(attempt.first))
        };
        // What the backend said explains more than what the client has read.
        let backend_reply = attempt.backend_reply.as_ref();
        let words = if backend_reply.is_empty() {
            attempt.reply.to_string()
        } else {
            format!("{} ({backend_reply})", attempt.reply)
        };
        let acting = attempt.acting.as_ref().map(|actor| format!(" by {actor}")).unwrap_or_default();
        let tried = attempt.tried_by_uid.map(|uid| format!(" tried by uid {uid}")).unwrap_or_default();
        let cells = [
            time(attempt.last),
            attempt.result.to_string(),
            format!("{}{acting}{tried}", attempt.protocol),
            attempt.client.to_string(),
            attempt.program.to_string(),
            attempt.backend.as_deref().unwrap_or("-").to_owned(),
            [words.trim(), times.as_str()]
                .iter()
                .filter(|part| !part.is_empty())
                .copied()
                .collect::<Vec<_>>()
                .join("; "),
        ];
        cells.map(|cell| Shown(&cell).to_string()).to_vec()
    };
    let rows: Vec<_> = attempts.iter().map(row).collect();
    table(&["TIME (UTC)", "RESULT", "PROTOCOL", "CLIENT", "PROGRAM", "BACKEND", "REPLY"], &rows)
}

fn time(unix: u64) -> String {
    let seconds = unix % 86_400;
    let day = date(i64::try_from(unix).unwrap_or(i64::MAX));
    format!("{day} {:02}:{:02}:{:02}", seconds / 3_600, seconds % 3_600 / 60, seconds % 60)
}

//! What `--fleet` is to every command: each living node is asked, and what it answers is printed under its name.

use std::process::ExitCode;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::running::{Running, say, say_json};
use super::{FAILED, OK, output};
use crate::admin::control::{NodeReply, encode};
use crate::diagnose::table::{Shown, ShownLines};

/// Asks every node of the fleet.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(super) struct ByNode {
    /// Ask every node of the fleet, and print by node
    #[arg(long)]
    pub(super) fleet: bool,
}

/// Asks every node, and prints its answers by node: as `show` has them, or as one JSON array. A node that does not
/// answer is named; then the exit code is 1.
///
/// # Errors
/// The exit code, after the reason was printed.
pub(super) async fn ask<T: DeserializeOwned>(
    running: &Running,
    (method, path): (&str, &str),
    json: bool,
    show: impl Fn(T) -> String,
) -> Result<ExitCode, ExitCode> {
    tell(running.ask(method, &format!("/fleet{path}")).await?, json, show, |_| true)
}

/// The same, where an answer may be a no: then the exit code is 1, too.
///
/// # Errors
/// As [`ask`].
pub(super) async fn ask_whether<T: DeserializeOwned>(
    running: &Running,
    (method, path): (&str, &str),
    json: bool,
    show: impl Fn(T) -> String,
    is_yes: impl Fn(&T) -> bool,
) -> Result<ExitCode, ExitCode> {
    tell(running.ask(method, &format!("/fleet{path}")).await?, json, show, is_yes)
}

/// Asks one node.
///
/// # Errors
/// As [`ask`].
pub(super) async fn ask_node<T: DeserializeOwned>(
    running: &Running,
    node: &str,
    (method, path): (&str, &str),
    json: bool,
    show: impl Fn(T) -> String,
) -> Result<ExitCode, ExitCode> {
    tell(running.ask(method, &format!("/nodes/{}{path}", encode(node))).await?, json, show, |_| true)
}

fn tell<T: DeserializeOwned>(
    replies: Vec<NodeReply<Value>>,
    json: bool,
    show: impl Fn(T) -> String,
    is_yes: impl Fn(&T) -> bool,
) -> Result<ExitCode, ExitCode> {
    let is_complete = replies.iter().all(|reply| reply.error.is_none() && reply.omitted == 0);
    if json {
        say_json(&replies);
    }
    let mut all_yes = true;
    let several = |node: &str| replies.iter().filter(|reply| reply.node == node).count() > 1;
    for reply in &replies {
        let process = if several(&reply.node) { format!(" (process {})", reply.process) } else { String::new() };
        let name = format!("{}{process}", Shown(&reply.node));
        let error = match &reply.answer {
            Some(answer) => match serde_json::from_value::<T>(answer.clone()) {
                Ok(answer) if json => {
                    all_yes &= is_yes(&answer);
                    None
                }
                Ok(answer) => {
                    all_yes &= is_yes(&answer);
                    say(format!("{name}\n{}", indented(&show(answer))));
                    (reply.omitted > 0).then(|| format!("{} more: the answer is larger than 1 MiB", reply.omitted))
                }
                Err(error) => {
                    all_yes = false;
                    Some(format!("unexpected answer: {error}"))
                }
            },
            None => reply.error.clone(),
        };
        if let Some(error) = error {
            output::complaint(format_args!("usher: {name}: {}", ShownLines(&error)));
        }
    }
    Ok(ExitCode::from(if is_complete && all_yes { OK } else { FAILED }))
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

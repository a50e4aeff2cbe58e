//! `usher lookup`: the running usher's answers to Postfix for an address.

use std::path::Path;
use std::process::ExitCode;

use super::fleet::{self, ByNode};
use super::running::{Running, say, say_json, with_query};
use super::{FAILED, NO_USER, OK, fail};
use crate::admin::control::{Looked, MapReply};
use crate::telemetry::log::Escaped;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The mail address, as Postfix would ask for it
    address: String,
    #[command(flatten)]
    by_node: ByNode,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(super) async fn lookup(file: &Path, arguments: &Args) -> Result<ExitCode, ExitCode> {
    let running = Running::of(file)?;
    let path = with_query("/lookup", [("address", arguments.address.as_str())]);
    if arguments.by_node.fleet {
        return fleet::ask(&running, ("GET", &path), arguments.json, |looked: Looked| text(&looked)).await;
    }
    let looked: Looked = running.ask("GET", &path).await?;
    if arguments.json {
        say_json(&looked);
    } else {
        say(text(&looked));
    }
    match looked.transport.result.as_str() {
        "ok" => Ok(ExitCode::from(OK)),
        "not_found" => Ok(ExitCode::from(NO_USER)),
        "temp" => Ok(ExitCode::from(FAILED)),
        other => Err(fail(FAILED, format!("unexpected answer: {}", Escaped(other.as_bytes())))),
    }
}

fn text(looked: &Looked) -> String {
    let escaped = |text: &str| Escaped(text.as_bytes()).to_string();
    let map = |name: &str, reply: &MapReply| {
        let answer = match (&reply.value, reply.result.as_str()) {
            (Some(value), _) => format!("OK {}", escaped(value)),
            (None, "not_found") => "NOTFOUND".to_owned(),
            (None, _) => "TEMP".to_owned(),
        };
        format!("{name}  {answer} ({})", escaped(&reply.reason))
    };
    let mut lines = vec![map("transport", &looked.transport), map("recipient", &looked.recipient)];
    if let Some(dn) = &looked.dn {
        let hosts = looked.mail_host.iter().map(|host| escaped(host)).collect::<Vec<_>>().join(", ");
        lines.push(format!("entry      {} (mailHost: {hosts})", escaped(dn)));
    }
    if let Some(address) = &looked.found_as {
        lines.push(format!("found as   {}", escaped(address)));
    }
    if let Some(backend) = &looked.backend {
        lines.push(format!("backend    {}", escaped(backend)));
    }
    if let Some(cause) = &looked.cause {
        lines.push(format!("cause      {}", escaped(cause)));
    }
    if looked.by != "usher" {
        lines.push(format!("by         {}", escaped(&looked.by)));
    }
    lines.join("\n")
}

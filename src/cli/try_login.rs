//! `usher try NAME`: a whole login through the running usher, with the time of each phase.

use std::io::{BufRead as _, Read as _};
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use hyper::body::Bytes;
use serde::Serialize;
use tokio::signal::ctrl_c;
use tokio::task::spawn_blocking;

use super::explain_running::code;
use super::running::{Running, say, say_json};
use super::{NO_INPUT, SYSTEM, fail, output};
use crate::base::secret::Secret;
use crate::base::sys::terminal::Hidden;
use crate::diagnose::table::Shown;
use crate::frontend::session::trial::{TrialPhase, TrialResult};

/// More is no password.
const LONGEST: u64 = 4_096;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The login name, as a client would type it
    login: String,
    /// The protocol: imap, pop3, submission or managesieve
    #[arg(long, value_name = "NAME", default_value = "imap")]
    protocol: String,
    /// The client's address: where the login is to come from; for root alone
    #[arg(long, value_name = "ADDRESS")]
    from: Option<IpAddr>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// The body of the request.
#[derive(Serialize)]
struct Request<'a> {
    login: &'a str,
    password: &'a str,
    protocol: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<IpAddr>,
}

pub(super) async fn try_login(config: &Path, arguments: &Args) -> Result<ExitCode, ExitCode> {
    let running = Running::of(config)?;
    let password = password(&arguments.login).await?;
    let Ok(text) = std::str::from_utf8(password.expose()) else {
        return Err(fail(NO_INPUT, "the password is no UTF-8"));
    };
    let Args { login, protocol, from, .. } = arguments;
    let body = serde_json::to_vec(&Request { login, password: text, protocol, from: *from });
    let body = Bytes::from(body.map_err(|error| fail(SYSTEM, error))?);
    let result: TrialResult = running.send("POST", "/try", body).await?;
    if arguments.json {
        say_json(&result);
    } else {
        say(text_of(arguments, &result));
    }
    Ok(ExitCode::from(code(if result.result == "ok" { "routed" } else { &result.result })))
}

/// Asks for the password at the terminal, which does not show it, or reads the first line of another input.
async fn password(login: &str) -> Result<Secret, ExitCode> {
    let hidden = Hidden::standard_input().map_err(|error| fail(SYSTEM, format!("the terminal: {error}")))?;
    if hidden.is_some() {
        output::prompt(format_args!("Password of {}: ", Shown(login)));
    }
    let read = spawn_blocking(|| {
        let mut line = Vec::with_capacity(1_024);
        std::io::stdin().lock().take(LONGEST).read_until(b'\n', &mut line).map(|_| Secret::without_line_end(line))
    });
    let password = tokio::select! {
        read = read => read,
        _ = ctrl_c() => {
            drop(hidden);
            return Err(ExitCode::from(130));
        }
    };
    drop(hidden);
    match password {
        Ok(Ok(password)) if !password.is_empty() => Ok(password),
        Ok(Err(error)) => Err(fail(NO_INPUT, format!("no password: {error}"))),
        Ok(Ok(_)) | Err(_) => Err(fail(NO_INPUT, "no password was given")),
    }
}

fn text_of(arguments: &Args, result: &TrialResult) -> String {
    let mut lines = vec![format!("{} by {}", Shown(&arguments.login), Shown(&arguments.protocol))];
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            lines.push(format!("  {name:<16}{}", Shown(value)));
        }
    };
    let or_empty = |value: &Option<String>| value.clone().unwrap_or_default();
    line("directory", &or_empty(&result.directory));
    line("entry", &or_empty(&result.dn));
    line("mail host", &result.mail_host.join(", "));
    line("decided by", &or_empty(&result.by));
    line("limit", &or_empty(&result.limited_by));
    for TrialPhase { phase, ms, server } in &result.phases {
        line(&phase.replace('_', " "), &format!("{ms:.1} ms  {}", server.as_deref().unwrap_or_default()));
    }
    line("logs in as", &or_empty(&result.backend_login));
    line("directory says", &or_empty(&result.directory_message));
    line("backend says", &or_empty(&result.backend_reply));
    line("total", &format!("{:.1} ms", result.total_ms));
    line("session", &result.session);
    for (index, reply) in result.reply.lines().enumerate() {
        line(if index == 0 { "client reads" } else { "" }, reply);
    }
    line("result", &result.result);
    lines.join("\n")
}

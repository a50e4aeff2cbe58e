//! `usher explain LOGIN`: what a login would meet now in the running usher, and what by the configuration file, and why.
//! Asks for no password unless it is given one.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::explain_file::{Explanation, Proof};
use super::explain_running::code as code_of;
use super::running::{code_of as code_of_error, say, say_json};
use super::{FAILED, OK, directories, either, explain_all, explain_running, fail, fail_config, output, progress};
use crate::admin::control::{self, ControlError, Status};
use crate::config::{self, Config};
use crate::diagnose::table::Shown;
use crate::login::explain::running::RunningVerdict;
use crate::tls::certificate;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The login name, as a client would type it
    #[arg(required_unless_present_any = ["all", "token_stdin"])]
    login: Option<String>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Read the user's password from standard input and bind with it
    #[arg(long, conflicts_with = "all")]
    password_stdin: bool,
    /// The client's address: whether the entry permits a login from there
    #[arg(long, value_name = "ADDRESS", conflicts_with = "all")]
    from: Option<IpAddr>,
    /// Read a token from standard input and explain what it leads to; LOGIN is the name that a client writes beside it
    #[arg(long, conflicts_with_all = ["all", "password_stdin", "certificate"])]
    token_stdin: bool,
    /// Whether the user's entry lists the first certificate in this file (PEM), as a login with it requires
    #[arg(long, value_name = "FILE", conflicts_with_all = ["all", "password_stdin"])]
    certificate: Option<PathBuf>,
    /// Explain every user of the directory, or those in --users
    #[arg(long, conflicts_with = "login")]
    all: bool,
    /// The login name of a user that acts for this mailbox: whether it may
    #[arg(long, value_name = "LOGIN", conflicts_with = "all")]
    acting: Option<String>,
    /// By the configuration file alone, whether usher runs or not
    #[arg(long, conflicts_with_all = ["all", "running"])]
    file_only: bool,
    #[command(flatten)]
    all_users: explain_all::Args,
    #[command(flatten)]
    running: explain_running::Args,
}

/// What the running usher says.
#[derive(Debug, Default)]
struct Now {
    verdict: Option<RunningVerdict>,
    /// Why there is no verdict.
    error: Option<ControlError>,
    /// Whether it has another configuration in force than the file.
    file_differs: bool,
}

impl Now {
    async fn of(file: &Path, socket: &Path, login: &str, from: Option<IpAddr>) -> Self {
        match control::ask(socket, "GET", &explain_running::path(login, from)).await {
            Ok(verdict) => {
                let status = control::ask::<Status>(socket, "GET", "/status").await;
                Self { verdict: Some(verdict), error: None, file_differs: status.is_ok_and(|now| differs(file, &now)) }
            }
            Err(error) => Self { verdict: None, error: Some(error), file_differs: false },
        }
    }
}

/// Whether the file is not the one that is in force.
fn differs(file: &Path, running: &Status) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    running.file_differs || real(file) != real(Path::new(&running.file))
}

/// What a list of users by the file does not show: that another configuration is in force, and mail servers that take no
/// logins now.
async fn note_running(file: &Path, socket: &Path) {
    let Ok(running) = control::ask::<Status>(socket, "GET", "/status").await else { return };
    if differs(file, &running) {
        let place = file.display().to_string();
        output::complaint(format_args!(
            "usher: {} is not what is in force: this is after a reload of it",
            Shown(&place)
        ));
    }
    for backend in running.backends.iter().filter(|backend| backend.state != "up") {
        let state = match backend.state.as_str() {
            "draining" => "out of service now: its users",
            "refusing" => "refusing every login now: its users",
            "partly_down" => "partly down now: some of its users",
            _ => "down now: its users",
        };
        output::complaint(format_args!(
            "usher: {} is {state} cannot log in, whatever the list shows",
            Shown(&backend.name)
        ));
    }
}

pub(super) async fn explain(file: &Path, arguments: &Args) -> ExitCode {
    if let (true, Some(login)) = (arguments.running.running, &arguments.login) {
        let asked = (login.as_str(), arguments.from);
        return either(explain_running::explain(file, asked, arguments.running, arguments.json).await);
    }
    let loaded = config::load(file);
    let control = match &loaded {
        Ok(config) => config.control.as_ref(),
        Err(mistakes) => mistakes.draft.as_ref().and_then(|draft| draft.control.as_ref()),
    };
    // A token is judged by the running usher only when it sees it.
    let asked = arguments.login.as_ref().filter(|_| !arguments.token_stdin && !arguments.file_only);
    let socket = control.map(|control| control.path.clone());
    let now = match (asked, &socket) {
        (Some(login), Some(socket)) => {
            // A user that acts for another has networks of its own.
            let from = arguments.from.filter(|_| arguments.acting.is_none());
            progress::waiting("waiting for the running usher", Now::of(file, socket, login, from)).await
        }
        (Some(_), None) if loaded.is_ok() => {
            let place = Shown(&file.display().to_string()).to_string();
            output::complaint(format_args!("usher: by {place} alone: it has no control socket (control.path)"));
            Now::default()
        }
        (Some(_) | None, _) => Now::default(),
    };
    match loaded {
        Ok(config) if arguments.all => {
            let code = by_file(file, config, arguments, now).await;
            if let Some(socket) = socket {
                note_running(file, &socket).await;
            }
            code
        }
        Ok(config) => by_file(file, config, arguments, now).await,
        Err(mistakes) => {
            // An edit that is not finished does not hide what is in force.
            if let Some(verdict) = &now.verdict {
                if arguments.json {
                    say_json(&Both {
                        running: Some(verdict),
                        running_error: None,
                        file_differs: Some(true),
                        file: None,
                    });
                } else {
                    say(explain_running::text(verdict, " now, in the running usher"));
                }
            }
            let code = fail_config(&mistakes.problems);
            now.verdict.map_or(code, |verdict| ExitCode::from(code_of(&verdict.result)))
        }
    }
}

async fn by_file(file: &Path, mut config: Config, arguments: &Args, now: Now) -> ExitCode {
    let proof = match &arguments.certificate {
        None if arguments.password_stdin => Proof::PasswordFromStdin,
        None => Proof::None,
        Some(path) => match certificate::first(path) {
            Ok(certificate) => {
                // Whether or not a listener takes it.
                config.directories.iter_mut().for_each(|directory| directory.reads_certificates = true);
                Proof::Certificate(certificate)
            }
            Err(error) => return fail(FAILED, error),
        },
    };
    let is_proven = arguments.acting.is_some() || !matches!(proof, Proof::None);
    let realms = match directories::open(&config) {
        Ok(realms) => realms,
        Err(code) => return code,
    };
    let login = match &arguments.login {
        None if arguments.token_stdin => Some(String::new()),
        login => login.clone(),
    };
    let Some(login) = &login else {
        return explain_all::explain(&config, &realms, &arguments.all_users, arguments.json).await;
    };
    let from = arguments.from.map(|address| address.to_canonical());
    let acting = arguments.acting.as_deref();
    // Whoever acts for a mailbox has networks of its own.
    let mut found = Explanation::of(login, from.filter(|_| acting.is_none()));
    let by_file = if arguments.token_stdin {
        match found.ask_by_token(&config, &realms).await {
            Ok(code) => code,
            Err(code) => return code,
        }
    } else {
        let asked = found.ask_by_name((&config, &realms), proof, acting.map(|actor| (actor, from)));
        progress::waiting("asking the directory", asked).await
    };
    let code = match &now.verdict {
        Some(now) if !now.is_routed() || !is_proven => code_of(&now.result),
        Some(_) => by_file,
        // A process that does not answer is no proof that the user could log in.
        None => match &now.error {
            Some(error) if by_file == OK && !error.is_absence() => code_of_error(error),
            Some(_) | None => by_file,
        },
    };
    let Now { verdict, error, file_differs } = now;
    if arguments.json {
        let error = error.as_ref().map(ToString::to_string);
        let differs = verdict.is_some().then_some(file_differs);
        say_json(&Both { running: verdict.as_ref(), running_error: error, file_differs: differs, file: Some(&found) });
        return ExitCode::from(code);
    }
    let place = Shown(&file.display().to_string()).to_string();
    let name = if login.is_empty() { "token".to_owned() } else { Shown(login).to_string() };
    match &verdict {
        Some(verdict) => {
            say(explain_running::text(verdict, " now, in the running usher"));
            let whole = file_differs || is_proven;
            let heading = if file_differs { "after a reload of" } else { "in the directory, by" };
            output::print(format!("{name} {heading} {place}\n{}", found.text(whole)));
        }
        None => {
            if let Some(error) = error {
                output::complaint(format_args!("usher: by {place} alone: {error}"));
            }
            output::print(format!("{name}\n{}", found.text(true)));
        }
    }
    ExitCode::from(code)
}

/// The JSON of both verdicts: the fields of that of the file, and those about the running usher.
#[derive(Serialize)]
struct Both<'a> {
    /// The verdict of the running usher; nothing if it was not asked, or did not answer.
    running: Option<&'a RunningVerdict>,
    /// Why it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    running_error: Option<String>,
    /// Whether the file differs from the configuration in force.
    file_differs: Option<bool>,
    #[serde(flatten)]
    file: Option<&'a Explanation>,
}

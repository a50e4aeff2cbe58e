//! The commands: one thin file each, and the exit codes they share (sysexits.h).

// These panic if the reader is gone: `output` does not.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod backends;
mod cache;
mod check;
mod confirm;
#[cfg(feature = "demo")]
mod demo;
mod directories;
mod drain;
mod explain;
mod explain_all;
mod explain_file;
mod explain_running;
mod fleet;
mod history;
mod import_users;
mod init;
mod kick;
mod lookup;
mod manual;
mod output;
mod pages;
mod progress;
mod ready;
mod reload;
mod run;
mod running;
mod schema;
mod sessions;
mod status;
mod trace;
mod try_login;
mod wait;

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use pages::Page;

use crate::base::sys::journal::{Priority, is_journal};
use crate::diagnose::table::ShownLines;

/// Turns of tasks after which a thread looks at its sockets again, if it never runs out of them. A session
/// that downloads at full speed is always ready and takes a quarter of a millisecond: a login beside
/// eight of them is to be seen within some milliseconds.
const TURNS: u32 = 13;

/// It is done, and the answer is yes.
const OK: u8 = 0;
/// It is done, and the answer is no.
const FAILED: u8 = 1;
/// The arguments are wrong.
const USAGE: u8 = 64;
/// The directory's entry leads to no mail server, or is not as the command needs it.
const DATA: u8 = 65;
/// A file that was named as input cannot be read.
const NO_INPUT: u8 = 66;
/// Nothing is known by this name.
const NO_USER: u8 = 67;
/// A server is not available.
const UNAVAILABLE: u8 = 69;
/// usher has a defect that it cannot go on with.
const SOFTWARE: u8 = 70;
/// The system does not allow it: an address that cannot be bound.
const SYSTEM: u8 = 71;
/// Not permitted: the control socket, or what the user wants.
const NO_PERMISSION: u8 = 77;
/// The configuration has mistakes.
const CONFIG: u8 = 78;

/// A login proxy for IMAP, POP3, submission and ManageSieve with LDAP routing.
#[derive(Debug, Parser)]
#[command(name = "usher", version, arg_required_else_help = false)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// The configuration file.
    #[arg(long, short, global = true, value_name = "FILE", default_value = "/etc/usher/config.yaml")]
    config: PathBuf,
    /// No progress and no advice on standard error; errors and warnings stay.
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT; SIGHUP reloads (the default command)
    Run(run::Args),
    /// Write a starter configuration to standard output
    Init(init::Args),
    /// Write a JSON Schema of the configuration, with which editors complete and check it
    Schema(schema::Args),
    /// Check the configuration and every file it names, and report all mistakes at once
    Check(check::Args),
    /// Show where a user would be routed, and why
    Explain(explain::Args),
    /// Log in as a user through the running usher, and show each phase with its time
    Try(try_login::Args),
    /// Convert the users.txt of an nginx configuration into LDIF that sets the mail host of all users
    ImportUsers(import_users::Args),
    /// List or count the sessions of the running usher
    Sessions(sessions::Args),
    /// Show the last login attempts of a user
    History(history::Args),
    /// Close sessions of the running usher gracefully
    Kick(kick::Args),
    /// Show the dialogues of chosen sessions up to the login as they happen, without passwords
    Trace(trace::Args),
    /// Show the state of the mail servers, or take one out of service
    Backends(backends::Args),
    /// Show what the running usher has cached for a user, or drop it
    Cache(cache::Args),
    /// Apply changes of many users that the brake of the running usher holds
    Confirm(confirm::Args),
    /// Show how the running usher is, or every node of the fleet
    Status(status::Args),
    /// Wait until a held user has no session
    Wait(wait::Args),
    /// Show the running usher's answers to Postfix for a mail address
    Lookup(lookup::Args),
    /// Reload the configuration file of the running usher
    Reload(reload::ReloadArgs),
    /// Replace the running usher by the installed program; sessions stay
    Upgrade(reload::Args),
    /// Shut the running usher down as SIGTERM does, or only make /ready reply 503
    Drain(drain::Args),
    /// Check whether the running usher takes logins: what /ready replies, as exit code
    Ready(ready::Args),
    /// Write a shell's completions to standard output
    Completions(manual::CompletionsArgs),
    /// Write the manual: usher(8), or a page for each command
    Man(manual::ManArgs),
    /// Start a directory, two mail servers and usher on this machine, and show a login
    #[cfg(feature = "demo")]
    Demo(demo::Args),
}

/// The whole program. `settled` is called once the process is who it will be, before it has a second thread:
/// threads that are started earlier would keep what it gives up.
#[must_use]
pub fn main(settled: fn()) -> ExitCode {
    let parsed = command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) => {
            // `--help` and `--version` come this way too, and are no mistakes.
            let code = if error.use_stderr() { USAGE } else { OK };
            output::note(error.print());
            return output::exit_code(ExitCode::from(code));
        }
    };
    output::set_quiet(arguments.quiet);
    let mut command = arguments.command.unwrap_or_else(|| Command::Run(run::Args::default()));
    if let Command::Run(run) = &mut command {
        if run.detach {
            return run::detach(&arguments.config, run);
        }
        run.inherit();
    }
    if let Command::Run(run) = &command
        && let Err(code) = run::give_up_privileges(&arguments.config, run)
    {
        return code;
    }
    settled();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = match runtime.enable_all().event_interval(TURNS).build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(SYSTEM, format!("no runtime: {error}")),
    };
    let config = arguments.config;
    // What serves goes on without its output.
    let serves = is_service(&command);
    let code = runtime.block_on(async {
        match command {
            Command::Run(arguments) => run::run(config, &arguments).await,
            Command::Init(arguments) => init::init(&arguments, &config),
            Command::Schema(schema::Args {}) => schema::schema(),
            Command::Check(arguments) => check::check(&config, &arguments).await,
            Command::Explain(arguments) => explain::explain(&config, &arguments).await,
            Command::Try(arguments) => either(try_login::try_login(&config, &arguments).await),
            Command::ImportUsers(arguments) => import_users::import_users(&config, &arguments).await,
            Command::Sessions(arguments) => either(sessions::sessions(&config, &arguments).await),
            Command::History(arguments) => either(history::history(&config, &arguments).await),
            Command::Kick(arguments) => either(kick::kick(&config, &arguments).await),
            Command::Trace(arguments) => either(trace::trace(&config, &arguments).await),
            Command::Backends(arguments) => either(backends::backends(&config, &arguments).await),
            Command::Cache(arguments) => either(cache::cache(&config, &arguments).await),
            Command::Confirm(arguments) => either(confirm::confirm(&config, &arguments).await),
            Command::Status(arguments) => either(status::status(&config, &arguments).await),
            Command::Wait(arguments) => either(wait::wait(&config, &arguments).await),
            Command::Lookup(arguments) => either(lookup::lookup(&config, &arguments).await),
            Command::Reload(arguments) => either(reload::reload(&config, &arguments).await),
            Command::Upgrade(arguments) => either(reload::upgrade(&config, &arguments).await),
            Command::Drain(arguments) => either(drain::drain(&config, &arguments).await),
            Command::Ready(arguments) => either(ready::ready(&config, &arguments).await),
            Command::Completions(arguments) => manual::completions(&arguments),
            Command::Man(arguments) => manual::man(&arguments),
            #[cfg(feature = "demo")]
            Command::Demo(arguments) => demo::demo(&arguments).await,
        }
    });
    // Blocking work that is still under way (a resolver) must not hold up the end.
    runtime.shutdown_background();
    if serves { code } else { output::exit_code(code) }
}

/// The commands, with what `--help` says beyond their options.
fn command() -> clap::Command {
    fn with_help(command: clap::Command, path: &str) -> clap::Command {
        let command = match Page::of(if path.is_empty() { "usher" } else { path }) {
            Some(page) => command.after_help(page.help()),
            None => command,
        };
        let names: Vec<String> = command.get_subcommands().map(|part| part.get_name().to_owned()).collect();
        names.into_iter().fold(command, |command, name| {
            let path = format!("{path} {name}").trim().to_owned();
            command.mut_subcommand(name, |part| with_help(part, &path))
        })
    }
    with_help(Cli::command(), "")
}

/// Whether the command serves until a signal ends it.
const fn is_service(command: &Command) -> bool {
    match command {
        Command::Run(_) => true,
        #[cfg(feature = "demo")]
        Command::Demo(_) => true,
        Command::Init(_)
        | Command::Schema(_)
        | Command::Check(_)
        | Command::Explain(_)
        | Command::Try(_)
        | Command::ImportUsers(_)
        | Command::Sessions(_)
        | Command::History(_)
        | Command::Kick(_)
        | Command::Trace(_)
        | Command::Backends(_)
        | Command::Cache(_)
        | Command::Confirm(_)
        | Command::Status(_)
        | Command::Wait(_)
        | Command::Lookup(_)
        | Command::Reload(_)
        | Command::Upgrade(_)
        | Command::Drain(_)
        | Command::Ready(_)
        | Command::Completions(_)
        | Command::Man(_) => false,
    }
}

/// The exit code, whichever way it came.
fn either(code: Result<ExitCode, ExitCode>) -> ExitCode {
    code.unwrap_or_else(|code| code)
}

/// Says on standard error why a command failed.
fn fail(code: u8, why: impl Display) -> ExitCode {
    complain(Priority::Error, &format!("usher: {why}"));
    ExitCode::from(code)
}

/// Says something on standard error; if that is the journal, each line has this priority.
fn complain(priority: Priority, text: &str) {
    let prefix = if is_journal(io::stderr()) { priority.prefix() } else { "" };
    for line in ShownLines(text).to_string().lines() {
        output::complaint(format_args!("{prefix}{line}"));
    }
}

/// Says every mistake of the configuration on standard error.
fn fail_config(problems: &[crate::config::Problem]) -> ExitCode {
    for problem in problems {
        complain(Priority::Error, &problem.to_string());
    }
    fail(CONFIG, format!("the configuration has {}", count(problems.len(), "mistake")))
}

/// `1 mistake`, `2 mistakes`.
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn arguments_of_all_commands_are_consistent() {
        super::Cli::command().debug_assert();
    }
}

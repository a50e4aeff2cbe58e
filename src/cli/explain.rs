//! `usher explain LOGIN`: where a user would be sent, and why, from the configuration and the
//! directory as they are now. Asks for no password unless it is given one.

use std::fmt::{self, Write as _};
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;

use super::{DATA, FAILED, NO_PERMISSION, NO_USER, OK, UNAVAILABLE, fail, fail_config};
use crate::admin::control::{self, User};
use crate::config::{self, Config};
use crate::directory::{Directory as _, DirectoryError, Entry, Ldap, Login, Trouble};
use crate::files;
use crate::metrics::Metrics;
use crate::outcome::Refusal;
use crate::proto::PROTOCOLS;
use crate::route;
use crate::secret::Secret;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The login name, as a client would type it
    login: String,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Read the user's password from standard input and bind with it
    #[arg(long)]
    password_stdin: bool,
}

/// What is known about a login, as far as it came.
#[derive(Debug, Default, Serialize)]
struct Explanation {
    login: String,
    question: String,
    /// The server that answered.
    server: Option<String>,
    /// The attribute that names the mail server.
    attribute: String,
    servers: Vec<Looked>,
    dn: Option<String>,
    mail_host: Vec<String>,
    backend: Option<String>,
    by_default: bool,
    backend_login: Option<String>,
    /// The protocols that the entry may use.
    may_use: Vec<&'static str>,
    serves: Vec<String>,
    /// Whether the directory holds the user: then nobody is let in.
    held: bool,
    /// What the running usher knows; nothing if none could be asked.
    running: Option<User>,
    /// `routed`, or the reason of refusal as in the log and the metrics.
    result: String,
    explanation: String,
}

/// What a look at a directory server found.
#[derive(Debug, Serialize)]
struct Looked {
    server: String,
    /// Why it is not used; nothing if it is.
    trouble: Option<String>,
}

pub(super) async fn explain(file: &Path, arguments: &Arguments) -> ExitCode {
    let config = match config::load(file) {
        Ok(config) => config,
        Err(mistakes) => return fail_config(&mistakes.problems),
    };
    // Only the directory's files: who may ask where a user goes need not read the TLS keys.
    let directory = match files::directory(&config.directory, &config.place) {
        Ok(tls) => Ldap::new(&config.directory, tls, Arc::new(Metrics::new())),
        Err(problems) => return fail_config(&problems),
    };
    let attribute = config.directory.mail_host_attribute.clone();
    let mut told = Explanation { login: arguments.login.clone(), attribute, ..Explanation::default() };
    let code = match Login::parse(arguments.login.as_bytes()) {
        None => {
            told.refused(&Refusal::UnusableName, "no login name: it is empty, too long or holds a control character")
        }
        Some(login) => {
            told.question = directory.question(&login);
            told.look(&directory).await;
            let code = told.ask(&config, &directory, &login, arguments.password_stdin).await;
            if let Some(control) = &config.control {
                let path = format!("/users/{}", control::hex(login.as_str().as_bytes()));
                told.running = control::ask(&control.path, "GET", &path).await.ok();
            }
            code
        }
    };
    if arguments.json {
        match serde_json::to_string_pretty(&told) {
            Ok(text) => println!("{text}"),
            Err(error) => return fail(FAILED, error),
        }
    } else {
        print!("{}", told.text(&config.directory.mail_host_attribute));
    }
    ExitCode::from(code)
}

impl Explanation {
    fn refused(&mut self, refusal: &Refusal, why: impl Into<String>) -> u8 {
        refusal.label().clone_into(&mut self.result);
        self.explanation = why.into();
        DATA
    }

    /// Every server, also those that would not be asked now.
    async fn look(&mut self, directory: &Ldap) {
        for (server, look) in directory.survey().await {
            self.servers
                .push(Looked { server: server.to_string(), trouble: look.err().map(|error| error.to_string()) });
        }
    }

    async fn ask(&mut self, config: &Config, directory: &Ldap, login: &Login, with_password: bool) -> u8 {
        let found = if with_password {
            let mut bytes = Vec::new();
            // What cannot be read is no password.
            let _ = std::io::stdin().read_to_end(&mut bytes);
            let password = Secret::from_file(bytes);
            if password.is_empty() {
                self.refused(&Refusal::EmptyPassword, "the password is empty: it would not be sent to the directory");
                return NO_PERMISSION;
            }
            if std::str::from_utf8(password.expose()).is_err() || password.expose().contains(&0) {
                let why = "the password is not UTF-8 or holds NUL: LDAP cannot carry it";
                self.refused(&Refusal::UnusablePassword, why);
                return NO_PERMISSION;
            }
            let (answer, trace) = directory.authenticate(login, &password, &|_| false).await;
            (answer.map(|identity| identity.entry().clone()), trace)
        } else {
            directory.look_up(login).await
        };
        let (found, trace) = found;
        self.server = trace.server.map(|server| server.to_string());
        match found {
            Ok(entry) => self.route(config, &entry, login),
            Err(error) => self.not_found(&error),
        }
    }

    fn not_found(&mut self, error: &DirectoryError) -> u8 {
        match error {
            DirectoryError::NoEntry => {
                self.refused(&Refusal::UnknownUser, "the directory has no such entry");
                NO_USER
            }
            DirectoryError::SeveralEntries => self.refused(
                &Refusal::SeveralEntries,
                "several entries match, so it cannot be told who this is; make the filter or the names unique",
            ),
            DirectoryError::InvalidCredentials { dn, .. } | DirectoryError::RefusedBefore { dn } => {
                self.dn = (!dn.is_empty()).then(|| dn.to_string());
                self.refused(&Refusal::WrongPassword, "the directory refused the password");
                NO_PERMISSION
            }
            DirectoryError::Account { dn, state, proven } => {
                self.dn = Some(dn.to_string());
                let hint = if *proven { "" } else { " (it says so to everybody: the password may be right or wrong)" };
                let refusal = Refusal::Account { state: *state, proven: *proven };
                self.refused(&refusal, format!("{error}{hint}"));
                NO_PERMISSION
            }
            DirectoryError::CannotTell(trouble) => {
                let hint = match trouble {
                    Trouble::NoServiceAccount => {
                        "; with user_dn only the user may read the entry: give bind_dn a service account, or use --password-stdin"
                    }
                    Trouble::Connection { .. }
                    | Trouble::Timeout
                    | Trouble::Busy
                    | Trouble::ServiceBind { .. }
                    | Trouble::Result { .. }
                    | Trouble::Malformed { .. }
                    | Trouble::Canary { .. } => "",
                };
                self.refused(&Refusal::DirectoryUnavailable, format!("{error}{hint}"));
                UNAVAILABLE
            }
        }
    }

    fn route(&mut self, config: &Config, entry: &Entry, login: &Login) -> u8 {
        self.dn = Some(entry.dn.to_string());
        self.mail_host.clone_from(&entry.mail_hosts);
        self.held = entry.marks.held;
        let directory = &config.directory;
        let attribute = &directory.mail_host_attribute;
        let backend_login = route::backend_login(directory.login_attribute.as_deref(), entry, login);
        let protocols = PROTOCOLS.iter().filter(|protocol| route::allowed(&directory.allow, entry, protocol).is_ok());
        self.may_use = protocols.map(|protocol| protocol.name).collect();
        if self.may_use.is_empty() {
            let why = match &directory.allow.attribute {
                _ if !entry.in_group => "the entry does not match allow_filter".to_owned(),
                Some(attribute) => format!("no value of {attribute} allows any protocol"),
                None => "no protocol is allowed".to_owned(),
            };
            return self.refused(&Refusal::NotAllowed, why);
        }
        let route = match route::route(&config.routing, entry) {
            Ok(route) => route,
            Err(refusal) => {
                let why = if refusal == Refusal::NoMailHost {
                    format!("the entry has no {attribute}, and no routing.default is configured")
                } else if refusal == Refusal::SeveralMailHosts {
                    format!("the values of {attribute} name different backends")
                } else {
                    format!("no backend has this {attribute} among its hosts")
                };
                return self.refused(&refusal, why);
            }
        };
        let backend_login = match backend_login {
            Ok(backend_login) => backend_login,
            Err(refusal) => {
                let login_attribute = directory.login_attribute.as_deref().unwrap_or_default();
                return self.refused(&refusal, format!("the entry has no usable {login_attribute}, or several"));
            }
        };
        self.backend = Some(route.backend.name.clone());
        self.by_default = route.by_default;
        self.backend_login = Some(backend_login.as_str().to_owned());
        let endpoints = route.backend.endpoints.iter();
        self.serves = endpoints
            .map(|endpoint| {
                let addresses: Vec<_> = endpoint.addresses.iter().map(ToString::to_string).collect();
                format!("{} at {}", endpoint.protocol.name, addresses.join(" or "))
            })
            .collect();
        "routed".clone_into(&mut self.result);
        let why =
            if route.by_default { format!("no {attribute}, so routing.default") } else { format!("its {attribute}") };
        self.explanation = format!("would be sent to {} ({why})", route.backend.name);
        OK
    }

    fn text(&self, attribute: &str) -> String {
        let mut text = format!("{}\n", self.login.escape_debug());
        let mut line = |name: &str, value: &str| {
            if !value.is_empty() {
                let _ = writeln!(text, "  {name:<13}{}", Shown(value));
            }
        };
        for Looked { server, trouble } in &self.servers {
            match trouble {
                // Most of them name it.
                Some(trouble) if trouble.starts_with(server) => line("server", trouble),
                Some(trouble) => line("server", &format!("{server}: {trouble}")),
                None => line("server", &format!("{server}: well")),
            }
        }
        line("asked", &self.question);
        line("answered by", self.server.as_deref().unwrap_or_default());
        line("entry", self.dn.as_deref().unwrap_or_default());
        line(attribute, &self.mail_host.join(", "));
        line("may use", &self.may_use.join(", "));
        line("backend", self.backend.as_deref().unwrap_or_default());
        line("serves", &self.serves.join(", "));
        line("logs in as", self.backend_login.as_deref().unwrap_or_default());
        line("held", if self.held { "yes: nobody is let in until the directory releases the user" } else { "" });
        line("result", &self.result);
        line("", &self.explanation);
        if let Some(running) = &self.running {
            let cached = running
                .cached_seconds
                .map_or("no decision is cached".to_owned(), |age| format!("the decision is cached since {age} s"));
            let held = if running.held { "; held" } else { "" };
            line("running", &format!("watch {}; {cached}; {} sessions{held}", running.watch, running.sessions));
            if let Some(kept) = &running.kept_by_brake {
                line("brake", &format!("stays at {} until `usher confirm`", kept.join(", ")));
            }
        }
        text
    }
}

/// A value as it is, so that a filter can be copied from a terminal; what would move its cursor or is
/// invisible is escaped.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '"' | '\'' | '\\' => f.write_char(character),
            _ => write!(f, "{}", character.escape_debug()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_copied() {
        assert_eq!(Shown(r#"(uid=al\2a) "x" 'y'"#).to_string(), r#"(uid=al\2a) "x" 'y'"#);
        assert_eq!(Shown("a\r\n\x1b[2J\u{202e}").to_string(), r"a\r\n\u{1b}[2J\u{202e}");
    }
}

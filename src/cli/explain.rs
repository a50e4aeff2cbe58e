//! `usher explain LOGIN`: where a user would be sent, and why, from the configuration and the
//! directory as they are now. Asks for no password unless it is given one.

use std::fmt::Write as _;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;

use super::{DATA, FAILED, NO_PERMISSION, NO_USER, OK, UNAVAILABLE, either, fail, fail_config};
use super::{directories, explain_all, explain_running, output};
use crate::admin::control::{self, User};
use crate::base::clock::unix_now;
use crate::base::credential::{
    CertificateDigest, CertificateProof, ClientCertificate, Credential, CredentialSecret, Login,
};
use crate::base::secret::Secret;
use crate::config::{self, Config, TokenLogin};
use crate::config_files;
use crate::diagnose::table::{Shown, ShownJson};
use crate::directory::{Authority, DirectoryError, NameKind, NoFloor, Trace};
use crate::login::acting::{self, Actor, MailboxRight};
use crate::login::explain::Verdict;
use crate::login::realms::{RealmCore, Realms};
use crate::outcome::{ActingFault, Refusal};
use crate::routing;
use crate::telemetry::metrics::Metrics;
use crate::tls::certificate;
use crate::token::{Tokens, unverified};

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
    #[command(flatten)]
    all_users: explain_all::Args,
    #[command(flatten)]
    running: explain_running::Args,
}

/// The result of a lookup.
#[derive(Debug, Default, Serialize)]
struct Explanation {
    login: String,
    /// The issuer of a token that is valid.
    issuer: Option<String>,
    /// Its claim: name and value.
    claim: Option<String>,
    /// Why a token is refused.
    token_error: Option<&'static str>,
    /// What a token that is refused says of itself.
    token_unverified: Option<String>,
    query: String,
    /// The server that answered.
    server: Option<String>,
    /// Its last result, if that is not success.
    server_result: Option<String>,
    /// The directory's name, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    directory: Option<String>,
    /// The attribute that names the mail server.
    attribute: String,
    servers: Vec<ServerLookup>,
    dn: Option<String>,
    mail_host: Vec<String>,
    backend: Option<String>,
    by_default: bool,
    backend_login: Option<String>,
    /// The protocols that the entry may use.
    may_use: Vec<&'static str>,
    serves: Vec<String>,
    /// Whether the entry matches `password_filter`; nothing without a filter.
    may_use_password: Option<bool>,
    /// The networks that the entry permits; empty: all.
    networks: Vec<String>,
    /// The client's address.
    from: Option<IpAddr>,
    /// Whether the directory holds the user: then logins wait.
    held: bool,
    /// Whether the user who acts may do so; nothing if none was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    acting: Option<String>,
    /// The state in the running usher; nothing if it could not be queried.
    running: Option<User>,
    /// `routed`, or the reason of refusal as in the log and the metrics.
    result: String,
    explanation: String,
}

/// What the user is proven by.
enum Proof {
    /// Nothing: the entry is only looked up.
    None,
    /// A password that is read from standard input.
    PasswordFromStdin,
    /// This certificate.
    Certificate(CertificateDigest),
}

/// The result at one directory server.
#[derive(Debug, Serialize)]
struct ServerLookup {
    server: String,
    /// Why it is not used; nothing if it is.
    error: Option<String>,
}

pub(super) async fn explain(file: &Path, arguments: &Args) -> ExitCode {
    if let (true, Some(login)) = (arguments.running.running, &arguments.login) {
        let asked = (login.as_str(), arguments.from);
        return either(explain_running::explain(file, asked, arguments.running, arguments.json).await);
    }
    let mut config = match config::load(file) {
        Ok(config) => config,
        Err(mistakes) => return fail_config(&mistakes.problems),
    };
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
    // Whoever acts for a mailbox has networks of its own.
    let of_mailbox = from.filter(|_| arguments.acting.is_none());
    let mut explanation = Explanation { login: login.clone(), from: of_mailbox, ..Explanation::default() };
    let code = match Login::parse(login.as_bytes()) {
        name if arguments.token_stdin && (name.is_some() || login.is_empty()) => {
            let tokens = match config_files::issuers(&config.tokens, &config.place) {
                Ok(files) => Tokens::new(&config.tokens, files, &Arc::new(Metrics::new()), None),
                Err(problems) => return fail_config(&problems),
            };
            explanation.ask_by_token(&config, &realms, &tokens, name.as_ref()).await
        }
        None => explanation.judged(&config, Verdict::no_login()),
        Some(login) => {
            let mut code = match realms.locate(&login).await {
                Ok(realm) => {
                    explanation.asks(realm);
                    explanation.query = realm.describe_lookup(&login);
                    explanation.look(realm).await;
                    explanation.ask(&config, realm, &login, proof).await
                }
                Err(error) => explanation.judged(&config, Verdict::of_unlocated(&error)),
            };
            if let Some(actor) = &arguments.acting {
                let (words, refused) = acting_verdict(&config, &realms, actor, &login, from).await;
                explanation.acting = Some(words);
                code = if code == OK { refused } else { code };
            }
            if let Some(control) = &config.control {
                let path = format!("/users/{}", control::hex(login.as_str().as_bytes()));
                explanation.running = control::ask(&control.path, "GET", &path).await.ok();
            }
            code
        }
    };
    if arguments.json {
        match serde_json::to_string_pretty(&explanation) {
            Ok(text) => output::line(ShownJson(&text)),
            Err(error) => return fail(FAILED, error),
        }
    } else {
        output::print(explanation.text());
    }
    ExitCode::from(code)
}

impl Explanation {
    /// The directory that has the user.
    fn asks(&mut self, realm: &RealmCore) {
        self.directory = realm.realm.shown(&realm.settings).map(str::to_owned);
        self.attribute.clone_from(&realm.settings.mail_host_attribute);
    }

    /// Every server, including those that are marked down.
    async fn look(&mut self, realm: &RealmCore) {
        let Some(diagnosis) = realm.directory().diagnose() else { return };
        for (server, found) in diagnosis.probe_all().await {
            self.servers
                .push(ServerLookup { server: server.to_string(), error: found.err().map(|error| error.to_string()) });
        }
    }

    async fn ask(&mut self, config: &Config, realm: &RealmCore, login: &Login, proof: Proof) -> u8 {
        let directory = realm.directory();
        let found = if let Proof::Certificate(certificate) = proof {
            let certificate = ClientCertificate::new(certificate, CertificateProof::Key, None);
            let credential = Credential::new(login.clone(), CredentialSecret::ClientCertificate(certificate));
            let (answer, trace) = directory.authenticate(&credential, &|_| false, &NoFloor).await;
            (answer.map(|identity| identity.entry().clone()), trace)
        } else if matches!(proof, Proof::PasswordFromStdin) {
            let password = secret_from_stdin();
            if password.is_empty() {
                let why = "the password is empty: it would not be sent to the directory";
                return self.judged(config, Verdict::refused(Refusal::EmptyPassword, why));
            }
            if password.expose().contains(&0) {
                let why = "the password contains NUL: it would not be sent to the directory";
                return self.judged(config, Verdict::refused(Refusal::InvalidPassword, why));
            }
            let credential = Credential::new(login.clone(), CredentialSecret::Password(password));
            let (answer, trace) = directory.authenticate(&credential, &|_| false, &NoFloor).await;
            (answer.map(|identity| identity.entry().clone()), trace)
        } else {
            directory.find(login, NameKind::Login).await
        };
        let (found, trace) = found;
        self.take_answer(trace);
        self.may_use_password = match (&found, &realm.settings.password_filter) {
            (Ok(entry), Some(filter)) => directory.matches(&entry.dn, filter).await.0.ok(),
            (Err(DirectoryError::PasswordNotAllowed { .. }), _) => Some(false),
            (Ok(_) | Err(_), _) => None,
        };
        self.judged(config, Verdict::of(config, &realm.settings, found, login))
    }

    /// Verifies the token on standard input, and finds its entry.
    async fn ask_by_token(&mut self, config: &Config, realms: &Realms, tokens: &Tokens, name: Option<&Login>) -> u8 {
        tokens.run_due();
        let secret = secret_from_stdin();
        let token = match tokens.verify(&secret).await {
            Ok(token) => token,
            Err(error) => {
                self.token_unverified = unverified(&secret).map(|shown| {
                    shown.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", ")
                });
                self.token_error = Some(error.label());
                let words = format!("the token is not accepted: {}", error.label());
                return self.judged(config, Verdict::refused(Refusal::of_token(error), words));
            }
        };
        self.issuer = Some(token.issuer().to_owned());
        self.claim = Some(format!("{}={}", token.claim_name(), token.claim().as_str()));
        let realm = match realms.locate_token(&token).await {
            Ok(realm) => realm,
            Err(error) => return self.judged(config, Verdict::of_unlocated(&error)),
        };
        let Some(filter) = token.filter(realm.settings.find.filter()) else {
            return self.judged(config, Verdict::refused(Refusal::UnknownUser, "the claim lacks a part of the filter"));
        };
        let directory = realm.directory();
        self.asks(realm);
        self.look(realm).await;
        self.query.clone_from(&filter);
        let (found, trace) = directory.find_by(&filter).await;
        self.take_answer(trace);
        if let (Ok(entry), Some(name)) = (&found, name.filter(|name| *name != token.claim())) {
            match directory.find(name, NameKind::Login).await.0 {
                Ok(named) if named.key() == entry.key() => {}
                Err(error @ DirectoryError::Unavailable(_)) => {
                    return self.judged(config, Verdict::of(config, &realm.settings, Err(error), name));
                }
                Ok(_) | Err(_) => {
                    let words = "the name beside the token is not that of the entry which its claim leads to";
                    return self.judged(config, Verdict::refused(Refusal::AuthzidNotAllowed, words));
                }
            }
        }
        let state = found.as_ref().ok().and_then(|entry| entry.version.account_state(unix_now()));
        let mut verdict = Verdict::of(config, &realm.settings, found, token.claim());
        if let Some(state) = state {
            verdict.goal = Err(Refusal::Account { state, proven: true });
            verdict.words = format!("the entry says {}", state.label());
        } else if let Ok(goal) = &mut verdict.goal {
            let backend = config.routing.backends.iter().find(|backend| backend.name == goal.backend);
            match backend.map(|backend| (&backend.token, &backend.service)) {
                Some((TokenLogin::Forward { user_claim }, _)) => {
                    verdict.words.push_str("; the backend gets the token");
                    if let Some(claim) = user_claim {
                        token.text(claim).unwrap_or_default().clone_into(&mut goal.login);
                    }
                }
                Some((TokenLogin::Service, Some(_))) => verdict.words.push_str("; the service account logs in"),
                Some((TokenLogin::Service, None)) | None => {
                    verdict.words.push_str(", which has neither `service` nor `token: forward`");
                    verdict.goal = Err(Refusal::NoServiceLogin);
                }
            }
        }
        self.judged(config, verdict)
    }

    fn take_answer(&mut self, trace: Trace) {
        self.server_result = trace.result().filter(|result| result.code != 0).map(|result| result.to_string());
        self.server = trace.server.map(|server| server.to_string());
    }

    /// Takes over what is known; the exit code that goes with it.
    fn judged(&mut self, config: &Config, verdict: Verdict) -> u8 {
        let verdict = match self.from {
            Some(client) => verdict.for_client(client),
            None => verdict,
        };
        verdict.label().clone_into(&mut self.result);
        let Verdict { dn, mail_hosts, held, networks, may_use, goal, words } = verdict;
        self.networks = networks.map(|networks| networks.list()).unwrap_or_default();
        (self.dn, self.mail_host, self.held, self.may_use, self.explanation) = (dn, mail_hosts, held, may_use, words);
        let goal = match goal {
            Ok(goal) => goal,
            Err(refusal) => return code(&refusal),
        };
        let endpoints = config.routing.backends.iter().filter(|backend| backend.name == goal.backend);
        let endpoints = endpoints.flat_map(|backend| &backend.endpoints);
        self.serves = endpoints
            .map(|endpoint| {
                let addresses: Vec<_> = endpoint.addresses.iter().map(ToString::to_string).collect();
                format!("{} at {}", endpoint.protocol.name, addresses.join(" or "))
            })
            .collect();
        (self.backend, self.by_default, self.backend_login) = (Some(goal.backend), goal.by_default, Some(goal.login));
        OK
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n", Shown(if self.login.is_empty() { "token" } else { &self.login }));
        let mut line = |name: &str, value: &str| {
            if !value.is_empty() {
                let _ = writeln!(text, "  {name:<13}{}", Shown(value));
            }
        };
        for ServerLookup { server, error } in &self.servers {
            match error {
                // Most of them name it.
                Some(error) if error.starts_with(server) => line("server", error),
                Some(error) => line("server", &format!("{server}: {error}")),
                None => line("server", &format!("{server}: ok")),
            }
        }
        line("directory", self.directory.as_deref().unwrap_or_default());
        line("issuer", self.issuer.as_deref().unwrap_or_default());
        line("claim", self.claim.as_deref().unwrap_or_default());
        line("unverified", self.token_unverified.as_deref().unwrap_or_default());
        line("query", &self.query);
        line("answered by", self.server.as_deref().unwrap_or_default());
        line("answer", self.server_result.as_deref().unwrap_or_default());
        line("entry", self.dn.as_deref().unwrap_or_default());
        line(&self.attribute, &self.mail_host.join(", "));
        line("may use", &self.may_use.join(", "));
        let password = match self.may_use_password {
            Some(true) => "allowed by password_filter",
            Some(false) => "refused: the entry does not match password_filter",
            None => "",
        };
        line("password", password);
        line("networks", &self.networks.join(", "));
        line("from", &self.from.map_or_else(String::new, |client| client.to_string()));
        line("backend", self.backend.as_deref().unwrap_or_default());
        line("serves", &self.serves.join(", "));
        line("logs in as", self.backend_login.as_deref().unwrap_or_default());
        line("held", if self.held { "yes: logins wait until the directory releases the hold" } else { "" });
        line("acting", self.acting.as_deref().unwrap_or_default());
        line("result", &self.result);
        line("", &self.explanation);
        if let Some(running) = &self.running {
            let cached = running
                .cached_seconds
                .map_or("no cached decision".to_owned(), |age| format!("decision verified {age}s ago"));
            let held = if running.held { "; held" } else { "" };
            line("running", &format!("watch {}; {cached}; {} sessions{held}", running.watch, running.sessions));
            if let Some(kept) = &running.kept_by_brake {
                line("brake", &format!("stays at {} until `usher confirm`", kept.join(", ")));
            }
        }
        text
    }
}

/// A password or token; what cannot be read counts as absent.
fn secret_from_stdin() -> Secret {
    let mut bytes = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut bytes);
    Secret::without_line_end(bytes)
}

/// Whether a user may act for a mailbox, in words, and the exit code.
async fn acting_verdict(
    config: &Config,
    realms: &Realms,
    actor: &str,
    mailbox: &Login,
    from: Option<IpAddr>,
) -> (String, u8) {
    if !config.permits_acting() {
        let why = "no user may act for a mailbox: neither impersonation nor directory.grant_attribute is configured";
        return (why.to_owned(), NO_PERMISSION);
    }
    let Some(name) = Login::parse(actor.as_bytes()) else {
        return (format!("{actor} is no login name"), NO_USER);
    };
    let judged = async {
        let user = acting::target(realms, &name).await.map_err(|refusal| (&name, refusal))?;
        let target = acting::target(realms, mailbox).await.map_err(|refusal| (mailbox, refusal))?;
        if from.is_some_and(|client| !user.permits(client)) {
            return Err((&name, Refusal::NetworkNotAllowed));
        }
        let user = Actor { entry: &user, client: from, protocol: None };
        let judged = acting::judge(config, realms, user, (mailbox, &target)).await;
        let standing = judged.map_err(|refusal| (mailbox, refusal))?;
        // A mailbox without a route has a verdict of its own.
        let backend = routing::route(&config.routing, &target).ok().map(|route| route.backend);
        let backend = config.routing.backends.iter().find(|settings| Some(settings.name.as_str()) == backend);
        let is_without = backend.is_some_and(|settings| settings.acting_account().is_none());
        if is_without && matches!(standing, MailboxRight::May(_)) {
            return Err((mailbox, Refusal::ActingNotAllowed(ActingFault::NoServiceLogin)));
        }
        Ok(standing)
    };
    match judged.await {
        Ok(MailboxRight::Owner) => ("the mailbox is this user's own: an ordinary login".to_owned(), OK),
        Ok(MailboxRight::May(Authority::Administrator)) => {
            let limits = config.impersonation.administrators.as_ref();
            let protocols =
                limits.map(|limits| limits.protocols.iter().map(|protocol| protocol.name).collect::<Vec<_>>());
            (format!("{actor} may act as an administrator, in {}", protocols.unwrap_or_default().join(", ")), OK)
        }
        Ok(MailboxRight::May(Authority::Grant(value))) => {
            (format!("{actor} may act: the mailbox's entry names {value}"), OK)
        }
        Err((of, Refusal::ActingNotAllowed(ActingFault::UnknownTarget))) => {
            (format!("the directory has no entry for {}", of.as_str()), NO_USER)
        }
        Err((of, Refusal::ActingNotAllowed(ActingFault::AmbiguousTarget))) => {
            (format!("several entries match {}, or the one that does cannot be used", of.as_str()), DATA)
        }
        Err((_, Refusal::ActingNotAllowed(fault))) => (format!("{actor} may not act: {}", fault.text()), NO_PERMISSION),
        Err((_, refusal)) => (format!("not decided: {refusal}"), code(&refusal)),
    }
}

/// What a command exits with when this is why a login is refused.
fn code(refusal: &Refusal) -> u8 {
    match refusal {
        Refusal::UnknownUser => NO_USER,
        Refusal::WrongPassword
        | Refusal::EmptyPassword
        | Refusal::InvalidPassword
        | Refusal::NoPassword
        | Refusal::NetworkNotAllowed
        | Refusal::PasswordNotAllowed
        | Refusal::Token(_)
        | Refusal::WrongCertificate
        | Refusal::CertificateExpired
        | Refusal::CertificateRevoked
        | Refusal::CertificateUntrusted
        | Refusal::NoCertificateName
        | Refusal::ActingNotAllowed(_)
        | Refusal::Account { .. } => NO_PERMISSION,
        Refusal::DirectoryUnavailable | Refusal::TokenUnavailable(_) | Refusal::RevocationUnknown => UNAVAILABLE,
        Refusal::InvalidUsername
        | Refusal::NoServiceLogin
        | Refusal::AuthzidNotAllowed
        | Refusal::NotAllowed
        | Refusal::UnusableNetworks
        | Refusal::TokenTooLong
        | Refusal::SeveralEntries(_)
        | Refusal::UnusableEntry(_)
        | Refusal::NoMailHost
        | Refusal::SeveralMailHosts
        | Refusal::UnknownMailHost
        | Refusal::NoBackendLogin
        | Refusal::ProtocolNotServed
        | Refusal::BackendUnreachable
        | Refusal::BackendTls
        | Refusal::BackendTimeout
        | Refusal::BackendFault
        | Refusal::BackendBusy
        | Refusal::BackendDraining
        | Refusal::BackendRejected(_)
        | Refusal::BackendRefusesAll
        | Refusal::TlsRequired
        | Refusal::Limit
        | Refusal::Deadline
        | Refusal::Hold
        | Refusal::Kicked
        | Refusal::Draining
        | Refusal::Internal => DATA,
    }
}

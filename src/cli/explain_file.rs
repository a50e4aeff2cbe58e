//! What `usher explain LOGIN` finds by the configuration file and the directory as they are now.

use std::fmt::Write as _;
use std::io::Read as _;
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;

use serde::Serialize;

use super::explain_running::code;
use super::{DATA, NO_PERMISSION, NO_USER, OK, fail_config};
use crate::base::credential::{
    CertificateDigest, CertificateProof, ClientCertificate, Credential, CredentialSecret, Login,
};
use crate::base::secret::Secret;
use crate::config::{Config, TokenLogin};
use crate::config_files;
use crate::diagnose::table::Shown;
use crate::directory::{Authority, DirectoryError, Entry, NameKind, NoFloor, Trace};
use crate::login::acting::{self, Actor, MailboxRight};
use crate::login::explain::Verdict;
use crate::login::realms::{RealmCore, Realms};
use crate::outcome::{ActingFault, Refusal};
use crate::routing;
use crate::telemetry::metrics::Metrics;
use crate::token::{Tokens, unverified};

/// The result of a lookup.
#[derive(Debug, Default, Serialize)]
pub(super) struct Explanation {
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
    /// `routed`, or the reason of refusal as in the log and the metrics.
    result: String,
    explanation: String,
    /// What a client would read; nothing if it is routed.
    reply: Option<String>,
    /// Whether the directory's users may hear of the state of their accounts.
    #[serde(skip)]
    reveals: bool,
}

/// What the user is proven by.
pub(super) enum Proof {
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

impl Explanation {
    pub(super) fn of(login: &str, from: Option<IpAddr>) -> Self {
        Self { login: login.to_owned(), from, ..Self::default() }
    }

    /// Looks the name up; the exit code that goes with the verdict. `acting`: the name of a user that acts for this one,
    /// and its address.
    pub(super) async fn ask_by_name(
        &mut self,
        (config, realms): (&Config, &Realms),
        proof: Proof,
        acting: Option<(&str, Option<IpAddr>)>,
    ) -> u8 {
        let Some(login) = &Login::parse(self.login.as_bytes()) else {
            return self.judged(config, Verdict::no_login());
        };
        let code = match realms.locate(login).await {
            Ok(realm) => {
                self.asks(realm);
                self.query = realm.describe_lookup(login);
                self.look(realm).await;
                self.ask(config, realm, login, proof).await
            }
            Err(error) => self.judged(config, Verdict::of_unlocated(&error)),
        };
        let Some((actor, from)) = acting else { return code };
        let (words, refused) = acting_verdict(config, realms, actor, login, from).await;
        self.acting = Some(words);
        if code == OK { refused } else { code }
    }

    /// The directory that has the user.
    fn asks(&mut self, realm: &RealmCore) {
        self.directory = realm.realm.shown(&realm.settings).map(str::to_owned);
        self.attribute.clone_from(&realm.settings.mail_host_attribute);
        self.reveals = realm.settings.reveal_account_state;
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
        self.judged(config, Self::verdict(config, realm, found, login))
    }

    fn verdict(config: &Config, realm: &RealmCore, found: Result<Entry, DirectoryError>, login: &Login) -> Verdict {
        let version = found.as_ref().ok().map(|entry| entry.version.clone()).unwrap_or_default();
        Verdict::of(config, &realm.settings, found, login).for_account(&version, true)
    }

    /// Verifies the token on standard input, and finds its entry; the exit code that goes with the verdict.
    ///
    /// # Errors
    /// The exit code, after what is wrong with the configuration was printed.
    pub(super) async fn ask_by_token(&mut self, config: &Config, realms: &Realms) -> Result<u8, ExitCode> {
        let name = Login::parse(self.login.as_bytes());
        if name.is_none() && !self.login.is_empty() {
            return Ok(self.judged(config, Verdict::no_login()));
        }
        let files = config_files::issuers(&config.tokens, &config.place).map_err(|problems| fail_config(&problems))?;
        let tokens = Tokens::new(&config.tokens, files, &Arc::new(Metrics::new()), None);
        Ok(self.judge_token((config, realms), &tokens, name.as_ref()).await)
    }

    async fn judge_token(&mut self, (config, realms): (&Config, &Realms), tokens: &Tokens, name: Option<&Login>) -> u8 {
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
        let mut verdict = Self::verdict(config, realm, found, token.claim());
        if let Ok(goal) = &mut verdict.goal {
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
        let reply = verdict.reply(self.reveals);
        let reply = reply.map(|reply| if self.issuer.is_some() { reply.for_token() } else { reply });
        self.reply = reply.map(|reply| reply.text().to_owned());
        let Verdict { dn, mail_hosts, held, networks, may_use, goal, words } = verdict;
        self.networks = networks.map(|networks| networks.list()).unwrap_or_default();
        (self.dn, self.mail_host, self.held, self.may_use, self.explanation) = (dn, mail_hosts, held, may_use, words);
        let goal = match goal {
            Ok(goal) => goal,
            Err(refusal) => return code(refusal.label()),
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

    /// What was found, line by line. `whole`: with the verdict, which otherwise stands above it.
    pub(super) fn text(&self, whole: bool) -> String {
        let mut text = String::new();
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
        if whole {
            line("directory", self.directory.as_deref().unwrap_or_default());
        }
        line("issuer", self.issuer.as_deref().unwrap_or_default());
        line("claim", self.claim.as_deref().unwrap_or_default());
        line("unverified", self.token_unverified.as_deref().unwrap_or_default());
        line("query", &self.query);
        line("answered by", self.server.as_deref().unwrap_or_default());
        line("answer", self.server_result.as_deref().unwrap_or_default());
        if !whole {
            line("serves", &self.serves.join(", "));
            return text;
        }
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
        line("client reads", self.reply.as_deref().unwrap_or_default());
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
        Err((_, refusal)) => (format!("not decided: {refusal}"), code(refusal.label())),
    }
}

//! From what was typed to a [`Config`]: the sections, and what must fit between them.
//!
//! Each function reads all keys of its section before it gives up, so that all mistakes are found
//! in one pass. Defaults and ranges stand here and in `config.example.yaml`; a test compares them.

use std::path::PathBuf;
use std::sync::Arc;

use super::model::{
    Backend, CertificateMatch, Config, Directory, Draft, Endpoint, Find, Impersonation, Listener, Routing, TokenIssuer,
    TokenLogin,
};
use super::raw::Section;
use super::routing::{Surroundings, Taken};
use super::section::{Addresses, networks};
use super::{
    TextDigest, directory, fleet, impersonation, limits, listeners, names, process, routing, throttle, tls, tokens,
};
use crate::proto::ldap::{filter, template};
use crate::proto::{MechanismSet, Protocol};

/// Compiles the whole file, as far as it is sound.
pub(super) fn config(root: &Section<'_>, file: PathBuf) -> (Option<Config>, Draft) {
    let mut addresses = Addresses::default();
    let config_reload = process::config_reload(root);
    let hostname = root.get("hostname").map(|node| node.parsed(names::own_name));
    let tls = root.section("tls", tls::read).flatten();
    let listeners = listeners::read(root, tls.as_ref(), &mut addresses);
    let capabilities = root.section("capabilities", listeners::capabilities).flatten();
    let trusted = root.get("trusted").map_or(Some(Vec::new()), |node| networks(&node));
    let directory = root.section("directory", directory::read);
    let (mut directory, facts) =
        directory.map_or((None, directory::Facts::default()), |draft| (draft.directory, draft.facts));
    let tokens = root.get("tokens").map_or(Some(Vec::new()), |node| tokens::read(&node, directory.as_ref()));
    let surroundings = Surroundings { listeners: listeners.as_deref().unwrap_or_default(), directory: &facts };
    let mut taken = Taken::default();
    let routing = root.section("routing", |routing| routing::read(routing, &surroundings, &mut taken)).flatten();
    if let (Some(listeners), Some(_)) = (&listeners, &routing) {
        served(root, listeners, &taken.protocols);
    }
    if let Some(listeners) = &listeners {
        by_certificate(root, listeners, directory.as_mut(), routing.as_ref());
    }
    if let (Some(directory), Some(tokens), Some(listeners)) = (&mut directory, &tokens, &listeners) {
        directory.claim_attributes = claim_attributes(directory, tokens, listeners);
    }
    if let (Some(directory), Some(routing)) = (&directory, &routing)
        && routing.default.is_some()
        && directory.canary.is_none()
    {
        let message = "without `directory.canary`, a server that does not return mail hosts routes every user to the \
                       default: name an entry that every server must return";
        root.warn("routing.default", message);
    }
    if let (Some(directory), Some(tokens), Some(listeners)) = (&directory, &tokens, &listeners)
        && directory.password_filter.is_some()
        && tokens.is_empty()
        && listeners.iter().all(|listener| listener.client_login.is_none())
    {
        let message = "a user that does not match cannot log in at all: `tokens` has no issuer, and no listener has \
                       `client_login`";
        root.warn("directory.password_filter", message);
    }
    if let (Some(listeners), Some(tokens), Some(routing)) = (&listeners, &tokens, &routing) {
        token_logins(root, listeners, tokens, routing);
    }
    let acting =
        root.get("impersonation").map(|node| node.section(|section| impersonation::read(section, &facts)).flatten());
    if let Some(routing) = &routing {
        if acting.is_some() {
            impersonation::reachable(root, "impersonation", facts.login_attribute, &routing.backends);
        } else if facts.grant_attribute {
            impersonation::reachable(root, "directory.grant_attribute", facts.login_attribute, &routing.backends);
        } else {
            impersonation::unused(root, routing);
        }
    }
    let cache = root.section("cache", limits::cache).flatten();
    let limits = root.section("limits", limits::limits).flatten();
    let throttle = root.section("throttle", throttle::read).flatten();
    let drain = root.section("drain", limits::drain).flatten();
    let admin = root.section("admin", |admin| process::admin(admin, &mut addresses)).flatten();
    let control = root.get("control").and_then(|control| control.section(process::control).flatten());
    let auth_http = root.get("auth_http");
    let auth_http =
        auth_http.and_then(|node| node.section(|section| process::auth_http(section, &mut addresses)).flatten());
    if let (Some(_), Some(routing)) = (&auth_http, &routing) {
        reachable(root, routing);
    }
    let fleet = root.get("fleet").map(|node| node.section(fleet::read).flatten());
    let process = root.section("process", process::process).flatten();
    let log = root.section("log", process::log).flatten();
    let place = Arc::clone(root.place());
    let draft = Draft {
        listeners: listeners.clone().unwrap_or_default(),
        tls: tls.clone(),
        directories: directory.iter().cloned().collect(),
        tokens: tokens.clone(),
        routing: routing.clone(),
        admin: admin.clone(),
        control: control.clone(),
        auth_http: auth_http.clone(),
        fleet: fleet.clone().flatten(),
        place: Arc::clone(&place),
    };
    let config = || {
        Some(Config {
            file,
            digest: TextDigest::default(),
            config_reload: config_reload?,
            hostname: hostname.flatten(),
            listeners: listeners?,
            capabilities: capabilities?,
            tls: tls?,
            directories: vec![directory?],
            tokens: tokens?,
            trusted: trusted?,
            routing: routing?,
            impersonation: acting.unwrap_or_else(|| Some(Impersonation::default()))?,
            cache: cache?,
            limits: limits?,
            throttle: throttle?,
            drain: drain?,
            admin: admin?,
            control,
            auth_http,
            fleet: fleet.flatten(),
            process: process?,
            log: log?,
            warnings: Vec::new(),
            place,
        })
    };
    (config(), draft)
}

/// Warns of what keeps users with a token from logging in.
fn token_logins(root: &Section<'_>, listeners: &[Listener], tokens: &[TokenIssuer], routing: &Routing) {
    let offers = |listener: &Listener| listener.mechanisms.is_none_or(|set| set.meets(MechanismSet::TOKENS));
    if tokens.is_empty() {
        let listed = |listener: &&Listener| listener.mechanisms.is_some_and(|set| set.meets(MechanismSet::TOKENS));
        if listeners.iter().any(|listener| listed(&listener)) {
            root.warn("listeners", "`mechanisms` lists those of tokens, without effect: `tokens` has no issuer");
        }
        if routing.backends.iter().any(|backend| backend.token != TokenLogin::Service) {
            root.warn("routing.backends", "`token: forward` is without effect: `tokens` has no issuer");
        }
        return;
    }
    if !listeners.iter().any(offers) {
        root.warn("tokens", "no listener offers a mechanism of tokens: see `listeners[].mechanisms`");
    }
    let lacks_way = |backend: &&Backend| backend.token == TokenLogin::Service && backend.service.is_none();
    let without: Vec<_> = routing.backends.iter().filter(lacks_way).map(|backend| backend.name.as_str()).collect();
    if !without.is_empty() {
        let message = format!(
            "no user with a token can log in at {}: give the backend `service` or `token: forward`",
            without.join(", ")
        );
        root.warn("routing.backends", message);
    }
}

/// A listener whose protocol no backend serves is a door with nothing behind it.
fn served(root: &Section<'_>, listeners: &[Listener], protocols: &[&'static Protocol]) {
    for (index, listener) in listeners.iter().enumerate() {
        let name = listener.protocol.name;
        if !protocols.contains(&listener.protocol) {
            let message =
                format!("no backend serves it: add `{name}: {{address: .., tls: ..}}` to one, or remove this");
            root.problem(&format!("listeners[{index}].protocol"), message);
        }
    }
}

/// The attributes by which a claim or a certificate's address leads to an entry, each once.
fn claim_attributes(directory: &Directory, tokens: &[TokenIssuer], listeners: &[Listener]) -> Vec<String> {
    let by_address =
        |listener: &Listener| listener.client_login.is_some_and(|login| login.matching == CertificateMatch::SanEmail);
    let own = match &directory.find {
        Find::Search { filter, .. } if listeners.iter().any(by_address) => Some(filter),
        Find::Search { .. } | Find::UserDn { .. } | Find::Principal { .. } => None,
    };
    let filters = tokens.iter().map(|issuer| &issuer.filter).chain(own).map(template::filter_for_all);
    let domains =
        tokens.iter().filter(|issuer| !issuer.domains.is_empty()).map(|issuer| issuer.domain_attribute.clone());
    let mut names: Vec<String> = Vec::new();
    for name in filters.flat_map(|filter| filter::attributes(&filter)).chain(domains) {
        if !names.iter().any(|known| known.eq_ignore_ascii_case(&name)) {
            names.push(name);
        }
    }
    names
}

/// A login by certificate has no password: the service accounts of directory and backends have to do without.
fn by_certificate(
    root: &Section<'_>,
    listeners: &[Listener],
    directory: Option<&mut Directory>,
    routing: Option<&Routing>,
) {
    let logins = listeners.iter().enumerate().filter_map(|(index, listener)| Some((index, listener.client_login?)));
    let logins: Vec<_> = logins.collect();
    let key = |index: usize| format!("listeners[{index}].client_login");
    if let Some(directory) = directory {
        directory.reads_certificates = logins.iter().any(|(_, login)| login.matching == CertificateMatch::Certificate);
        // A search without a service account is anonymous.
        let is_searched = matches!(directory.find, Find::Search { .. }) || directory.find.service().is_some();
        for (index, _) in logins.iter().filter(|_| !is_searched) {
            root.problem(
                &key(*index),
                "needs `directory.bind_dn`: without a password only a service account finds the entry",
            );
        }
    }
    let backends = routing.into_iter().flat_map(|routing| &routing.backends);
    for backend in backends.filter(|backend| backend.service.is_none()) {
        if let Some((index, _)) = logins.first() {
            let message = format!(
                "the backend {} has no `service`: its users cannot log in by certificate, as there is no password to \
                 log them in with",
                backend.name
            );
            root.warn(&key(*index), message);
        }
    }
}

/// nginx speaks no TLS to backends: there must be somewhere that it can be sent.
fn reachable(root: &Section<'_>, routing: &Routing) {
    if !routing.backends.iter().flat_map(|backend| &backend.endpoints).any(Endpoint::takes_nginx) {
        root.warn(
            "auth_http",
            "nginx does not use TLS to backends, and no backend has a port for it: add `auth_http: {port: ..}` to one",
        );
    }
}

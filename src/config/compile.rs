//! From what was typed to a [`Config`]: the sections, and what must fit between them.
//!
//! Each function reads all keys of its section before it gives up, so that all mistakes are found
//! in one pass. Defaults and ranges stand here and in `config.example.yaml`; a test compares them.

use std::path::PathBuf;
use std::sync::Arc;

use super::model::{
    Backend, CertificateMatch, ClientLogin, Config, Directory, Draft, Endpoint, Find, Impersonation, Listener, Routing,
    TokenIssuer, TokenLogin,
};
use super::raw::Section;
use super::routing::{Surroundings, Taken};
use super::section::{Addresses, networks};
use super::{
    TextDigest, directories, fleet, impersonation, limits, listeners, names, process, routing, socketmap, throttle,
    tls, tokens,
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
    let directories::Drafts { mut directories, names, facts } = directories::read(root);
    directories::windows(root, directories.as_deref_mut(), &names);
    let tokens = root.get("tokens");
    let tokens = tokens.map_or(Some(Vec::new()), |node| tokens::read(&node, directories.as_deref(), &names));
    let surroundings = Surroundings { listeners: listeners.as_deref().unwrap_or_default(), directory: &facts };
    let mut taken = Taken::default();
    let routing = root.section("routing", |routing| routing::read(routing, &surroundings, &mut taken)).flatten();
    if let (Some(listeners), Some(_)) = (&listeners, &routing) {
        served(root, listeners, &taken.protocols);
    }
    if let Some(listeners) = &listeners {
        by_certificate(root, listeners, (directories.as_deref_mut(), &names), routing.as_ref());
    }
    let socketmap = root
        .get("socketmap")
        .map(|node| node.section(|section| socketmap::read(section, &mut addresses, directories.as_deref())).flatten());
    if let (Some(directories), Some(settings)) = (&mut directories, socketmap.as_ref().and_then(Option::as_ref)) {
        for directory in directories {
            socketmap::searchable(root, directory);
            directory.mail_filter = Some(settings.mail_filter.clone());
        }
    }
    if let Some(routing) = &routing {
        socketmap::delivered(root, socketmap.is_some(), &routing.backends);
    }
    if let (Some(directories), Some(tokens), Some(listeners)) = (&mut directories, &tokens, &listeners) {
        for directory in directories {
            directory.claim_attributes = claim_attributes(directory, tokens, listeners);
            directory.other_filters = other_filters(directory, tokens);
        }
    }
    if let (Some(directories), Some(routing)) = (&directories, &routing)
        && routing.default.is_some()
        && let Some(directory) = directories.iter().find(|directory| directory.canary.is_none())
    {
        let message = format!(
            "without `{}.canary`, a server that does not return mail hosts routes every user to the default: name an \
             entry that every server must return",
            directory.key
        );
        root.warn("routing.default", message);
    }
    if let (Some(directories), Some(tokens), Some(listeners)) = (&directories, &tokens, &listeners)
        && tokens.is_empty()
        && listeners.iter().all(|listener| listener.client_login.is_none())
    {
        let message = "a user that does not match cannot log in at all: `tokens` has no issuer, and no listener has \
                       `client_login`";
        for directory in directories.iter().filter(|directory| directory.password_filter.is_some()) {
            root.warn(&format!("{}.password_filter", directory.key), message);
        }
    }
    if let (Some(listeners), Some(tokens), Some(routing)) = (&listeners, &tokens, &routing) {
        token_logins(root, listeners, tokens, routing);
    }
    let acting =
        root.get("impersonation").map(|node| node.section(|one| impersonation::read(one, &facts, &names)).flatten());
    if let Some(routing) = &routing {
        let without_login = facts.without_login.as_deref();
        if acting.is_some() {
            impersonation::reachable(root, "impersonation", without_login, &routing.backends);
        } else if let Some(key) = &facts.with_grants {
            let key = format!("{key}.grant_attribute");
            impersonation::reachable(root, &key, without_login, &routing.backends);
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
        directories: directories.clone().unwrap_or_default(),
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
            directories: directories?,
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
            socketmap: socketmap.flatten(),
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

/// The attributes by which a claim, a certificate's address or a mail address leads to an entry, each once.
fn claim_attributes(directory: &Directory, tokens: &[TokenIssuer], listeners: &[Listener]) -> Vec<String> {
    let own = directory.find.filter();
    let may_be_own = |name: Option<&str>| name.is_none_or(|name| name == directory.name);
    let by_address = |listener: &Listener| {
        let login = listener.client_login.as_ref();
        login
            .is_some_and(|login| login.matching == CertificateMatch::SanEmail && may_be_own(login.directory.as_deref()))
    };
    let of_addresses = own.filter(|_| listeners.iter().any(by_address));
    let tokens = || tokens.iter().filter(|issuer| may_be_own(issuer.directory.as_deref()));
    let filters = tokens().filter_map(|issuer| issuer.filter.as_ref().or(own)).chain(of_addresses);
    let filters = filters.chain(&directory.mail_filter).map(template::filter_for_all);
    let domains = tokens().filter(|issuer| !issuer.domains.is_empty()).map(|issuer| issuer.domain_attribute.clone());
    let mut names: Vec<String> = Vec::new();
    for name in filters.flat_map(|filter| filter::attributes(&filter)).chain(domains) {
        if !names.iter().any(|known| known.eq_ignore_ascii_case(&name)) {
            names.push(name);
        }
    }
    names
}

/// Filters for all entries that tokens and mail addresses lead to, each once, without that of the users. An entry that was
/// found by one of them and is not followed would look deleted after each refresh.
fn other_filters(directory: &Directory, tokens: &[TokenIssuer]) -> Vec<String> {
    let own = directory.find.filter().map(template::filter_for_all);
    let tokens = tokens.iter().filter(|issuer| issuer.directory.as_ref().is_none_or(|name| *name == directory.name));
    let filters = tokens.filter_map(|issuer| issuer.filter.as_ref()).chain(&directory.mail_filter);
    let mut others: Vec<String> = Vec::new();
    for filter in filters.map(template::filter_for_all) {
        if Some(&filter) != own.as_ref() && !others.contains(&filter) {
            others.push(filter);
        }
    }
    others
}

/// A login by certificate has no password: the service accounts of directory and backends have to do without.
fn by_certificate(
    root: &Section<'_>,
    listeners: &[Listener],
    (directories, names): (Option<&mut [Directory]>, &[String]),
    routing: Option<&Routing>,
) {
    let logins = listeners.iter().enumerate();
    let logins = logins.filter_map(|(index, listener)| Some((index, listener.client_login.as_ref()?)));
    let logins: Vec<_> = logins.collect();
    let key = |index: usize| format!("listeners[{index}].client_login");
    for (index, login) in &logins {
        if let Some(name) = login.directory.as_deref().filter(|name| !names.iter().any(|known| known == name)) {
            let message = format!("no directory `{}`: write one of {}", name.escape_debug(), names.join(", "));
            root.problem(&format!("{}.directory", key(*index)), message);
        }
    }
    for directory in directories.into_iter().flatten() {
        let is_own = |login: &ClientLogin| login.directory.as_deref().is_none_or(|name| name == directory.name);
        let own: Vec<_> = logins.iter().filter(|(_, login)| is_own(login)).collect();
        // A search without a service account is anonymous.
        let is_searched = matches!(directory.find, Find::Search { .. }) || directory.find.service().is_some();
        for (index, _) in own.iter().filter(|_| !is_searched) {
            let message =
                format!("needs `{}.bind_dn`: without a password only a service account finds the entry", directory.key);
            root.problem(&key(*index), message);
        }
        directory.reads_certificates = own.iter().any(|(_, login)| login.matching == CertificateMatch::Certificate);
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

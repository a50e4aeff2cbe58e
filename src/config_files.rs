//! The contents of the files that a config names: certificates, keys, CAs and passwords.
//!
//! `check`, `run` and a reload read them in the same way and report every mistake with the config's line and
//! key. A config that cannot be used is read as far as its sections are sound, so that one `usher check` finds
//! the mistakes of both.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::pki_types::ServerName;
use zeroize::Zeroizing;

use crate::backend::{BackendFiles, Service};
use crate::base::clock::unix_now;
use crate::base::privileges::{self, User};
use crate::base::secret::Secret;
use crate::base::sys;
use crate::base::sys::paths::check_folder;
use crate::base::sys::secret_files::exposure;
use crate::config::{self, CertificateFiles, Config, Draft, KeySource, Place, Problem, SocketmapPlace, TokenIssuer};
use crate::directory::DirectoryTls;
use crate::fleet::{FleetFiles, Sealer};
use crate::tls::certificate;
use crate::tls::client::ClientTls;
use crate::tls::clients::RevocationLists;
use crate::tls::key_lines::KeyLines;
use crate::tls::server::ServerTls;
use crate::token::{IssuerFiles, KeySet, LARGEST_SET};

/// Room for a password, so that none leaves a part of it behind while it is read.
const PASSWORD_ROOM: usize = 4_096;

/// The contents of a config's files.
#[derive(Debug)]
pub(crate) struct Files {
    /// TLS towards clients.
    pub tls: ServerTls,
    /// TLS towards each directory, in order, as far as its servers want it.
    pub directories: Vec<DirectoryTls>,
    /// Of each backend, by name.
    pub backends: HashMap<String, BackendFiles>,
    /// Of each issuer of tokens, in order.
    pub issuers: Vec<IssuerFiles>,
    /// The key that nginx has to send, if configured.
    pub auth_http_key: Option<Secret>,
    /// Of the fleet, if configured.
    pub fleet: Option<FleetFiles>,
    /// Their fingerprint just before they were read.
    pub fingerprint: Fingerprint,
    /// What `check` warns of.
    pub warnings: Vec<Problem>,
}

/// A hash of all files of a config: equal as long as no content, owner or mode has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Hashes every file that a config names. An unreadable file is part of the hash.
    #[must_use]
    pub(crate) fn of(config: &Config) -> Self {
        let mut all = digest::Context::new(&digest::SHA256);
        for path in paths(config) {
            if let Ok(about) = fs::metadata(path) {
                let numbers = [about.mode(), about.uid(), about.gid()].map(u32::to_be_bytes);
                all.update(numbers.as_flattened());
            }
            match certificate::read(path) {
                Ok(content) => {
                    let mut one = digest::Context::new(&digest::SHA256);
                    one.update(&content);
                    // As in `base/credential.rs`: no copy of the end of a password or a key stays on the stack.
                    one.update(&[0; digest::MAX_BLOCK_LEN]);
                    all.update(one.finish().as_ref());
                }
                Err(_) => all.update(b"unreadable"),
            }
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(all.finish().as_ref());
        Self(bytes)
    }
}

/// Every file that a config names.
fn paths(config: &Config) -> Vec<&Path> {
    let config::Config { tls, directories, routing, .. } = config;
    let mut pairs: Vec<&CertificateFiles> = tls.certificates.iter().collect();
    let mut paths: Vec<&PathBuf> = tls.client_ca.iter().chain(&tls.ticket_keys_file).collect();
    for directory in directories {
        pairs.extend(&directory.client_certificate);
        paths.extend(&directory.ca);
        paths.extend(directory.find.service().map(|service| &service.password_file));
    }
    paths.extend(&tls.crl);
    paths.extend(config.listeners.iter().flat_map(|listener| listener.clients.ca.iter().chain(&listener.clients.crl)));
    for issuer in &config.tokens {
        paths.extend(&issuer.ca);
        paths.extend(issuer.introspection.iter().map(|introspection| &introspection.client_secret_file));
        if let Some(KeySource::File(file)) = &issuer.keys {
            paths.push(file);
        }
    }
    paths.extend(config.auth_http.iter().filter_map(|settings| settings.key_file.as_ref()));
    if let Some(fleet) = &config.fleet {
        paths.extend(fleet.password_file.iter().chain(&fleet.ca));
        paths.push(&fleet.secret_file);
    }
    for backend in &routing.backends {
        pairs.extend(&backend.client_certificate);
        paths.extend(&backend.ca);
        let accounts =
            backend.service.iter().chain(&backend.impersonation_service).chain(backend.health.probe.account());
        paths.extend(accounts.map(|account| &account.password_file));
    }
    paths.extend(pairs.iter().flat_map(|pair| [&pair.chain, &pair.key]));
    paths.into_iter().map(PathBuf::as_path).collect()
}

impl Files {
    /// Reads every file that a config names.
    ///
    /// # Errors
    /// Every mistake in them.
    pub(crate) fn read(config: &Config) -> Result<Self, Vec<Problem>> {
        // Before the reading, so that a change meanwhile is found at the next check.
        let fingerprint = Fingerprint::of(config);
        let place = &config.place;
        let mut problems = Vec::new();
        let tls = ServerTls::build(&config.tls, &config.listeners, place).map_err(|more| problems.extend(more));
        let directories = directories(&config.directories, place).map_err(|more| problems.extend(more));
        let backends = backends(&config.routing, place).map_err(|more| problems.extend(more));
        let issuers = issuers(&config.tokens, place).map_err(|more| problems.extend(more));
        let (user, absent) = process(&config.process, place);
        problems.extend(absent);
        problems.extend(control(config.control.as_ref(), user, place));
        problems.extend(socketmap(config.socketmap.as_ref(), user, place));
        let auth_http_key = auth_http_key(config.auth_http.as_ref(), place).map_err(|problem| problems.push(problem));
        let fleet = config.fleet.as_ref().map(|settings| fleet(settings, place)).transpose();
        let fleet = fleet.map_err(|more| problems.extend(more));
        match (tls, directories, backends, issuers, auth_http_key, fleet) {
            (Ok(tls), Ok(directories), Ok(backends), Ok(issuers), Ok(auth_http_key), Ok(fleet))
                if problems.is_empty() =>
            {
                let warnings = warnings(config).into_iter().chain(outdated(config, &tls)).collect();
                Ok(Self { tls, directories, backends, issuers, auth_http_key, fleet, fingerprint, warnings })
            }
            (_, _, _, _, _, _) => Err(problems),
        }
    }
}

/// The mistakes in the files named by the valid sections of an invalid config.
#[must_use]
pub(crate) fn problems(draft: &Draft) -> Vec<Problem> {
    let place = &draft.place;
    let tls = draft.tls.as_ref().and_then(|tls| ServerTls::build(tls, &draft.listeners, place).err());
    let directory = directories(&draft.directories, place).err();
    let backends = draft.routing.as_ref().and_then(|routing| backends(routing, place).err());
    let issuers = draft.tokens.as_ref().and_then(|settings| issuers(settings, place).err());
    let control = control(draft.control.as_ref(), None, place);
    let key = auth_http_key(draft.auth_http.as_ref(), place).err();
    let fleet = draft.fleet.as_ref().and_then(|settings| fleet(settings, place).err());
    [tls, directory, backends, issuers, fleet].into_iter().flatten().flatten().chain(control).chain(key).collect()
}

/// The socket's folder may come with the start (`RuntimeDirectory=`), its group does not.
fn control(control: Option<&config::Control>, user: Option<u32>, place: &Place) -> Vec<Problem> {
    let Some(control) = control else { return Vec::new() };
    socket("control", (&control.path, control.group.as_deref()), user, place)
}

/// The same for the socket of Postfix.
fn socketmap(socketmap: Option<&config::Socketmap>, user: Option<u32>, place: &Place) -> Vec<Problem> {
    match socketmap.map(|settings| &settings.place) {
        Some(SocketmapPlace::Unix(unix)) => socket("socketmap", (&unix.path, unix.group.as_deref()), user, place),
        Some(SocketmapPlace::Address(_)) | None => Vec::new(),
    }
}

/// The mistakes in the path and the group of a Unix socket.
fn socket(section: &str, (path, group): (&Path, Option<&str>), user: Option<u32>, place: &Place) -> Vec<Problem> {
    let group = group
        .and_then(|group| sys::group_id(group).err())
        .map(|error| place.problem(&format!("{section}.group"), format!("{error}; create it, or name another")));
    let folder = path.parent().and_then(|folder| check_folder(folder, user).err());
    let folder = folder.map(|error| place.problem(&format!("{section}.path"), error.to_string()));
    group.into_iter().chain(folder).collect()
}

/// Resolves the user to switch to. A process that has already switched does not ask the user database, which
/// may be unreachable.
fn process(process: &config::Process, place: &Place) -> (Option<u32>, Option<Problem>) {
    let Some(name) = &process.user else { return (None, None) };
    match User::find(name, process.group.as_deref()) {
        Ok(user) => (Some(user.uid()), None),
        Err(_) if !privileges::is_root() => (None, None),
        Err(error) => (None, Some(place.problem("process.user", error.to_string()))),
    }
}

/// The key that nginx has to send.
fn auth_http_key(settings: Option<&config::AuthHttp>, place: &Place) -> Result<Option<Secret>, Problem> {
    let file = settings.and_then(|settings| settings.key_file.as_ref());
    let key = file.map(|file| password(file)).transpose();
    key.map_err(|message| place.problem("auth_http.key_file", message))
}

/// TLS towards each directory.
///
/// # Errors
/// Every mistake in their files.
pub(crate) fn directories(directories: &[config::Directory], place: &Place) -> Result<Vec<DirectoryTls>, Vec<Problem>> {
    let mut problems = Vec::new();
    let read = |settings| directory(settings, place).map_err(|more| problems.extend(more)).ok();
    let all = directories.iter().filter_map(read).collect();
    if problems.is_empty() { Ok(all) } else { Err(problems) }
}

/// TLS towards a directory, as far as its servers want it.
///
/// # Errors
/// Every mistake in the directory's files.
fn directory(directory: &config::Directory, place: &Place) -> Result<DirectoryTls, Vec<Problem>> {
    let mut problems = Vec::new();
    // The directory reads this file when it binds, and again when a bind is refused; here it is only checked,
    // so that a restart does not fail on it.
    let service = directory.find.service();
    if let Some(Err(message)) = service.as_ref().map(|service| password(&service.password_file)) {
        problems.push(place.problem(&format!("{}.bind_password_file", directory.key), message));
    }
    let mut pins: Vec<_> = directory.servers.iter().filter(|server| server.has_tls(directory.starttls)).collect();
    // One configuration, and one store of tickets, for all servers that are verified in the same way.
    pins.sort_by_key(|server| &server.pin_sha256);
    pins.dedup_by_key(|server| &server.pin_sha256);
    let mut tls = DirectoryTls::default();
    let mut faults = None;
    for pins in pins.into_iter().map(|server| &server.pin_sha256) {
        let settings = ClientTls {
            ca: directory.ca.clone(),
            client_certificate: directory.client_certificate.clone(),
            pins: pins.clone(),
            alpn: None,
            groups: directory.groups.clone(),
            key: directory.key.clone(),
        };
        match settings.build(place) {
            Ok(config) if pins.is_empty() => tls.verify(config),
            Ok(config) => tls.pin(pins.clone(), config),
            // The files are the same for all: their mistakes are reported once.
            Err(more) => drop(faults.get_or_insert(more)),
        }
    }
    problems.extend(faults.into_iter().flatten());
    if problems.is_empty() { Ok(tls) } else { Err(problems) }
}

fn backends(routing: &config::Routing, place: &Place) -> Result<HashMap<String, BackendFiles>, Vec<Problem>> {
    let mut problems = Vec::new();
    let numbered = routing.backends.iter().enumerate();
    let backends = numbered.filter_map(|(index, settings)| {
        let key = format!("routing.backends[{index}]");
        let files = backend(settings, &key, place).map_err(|more| problems.extend(more)).ok()?;
        Some((settings.name.clone(), files))
    });
    let backends = backends.collect();
    if problems.is_empty() { Ok(backends) } else { Err(problems) }
}

fn backend(settings: &config::Backend, key: &str, place: &Place) -> Result<BackendFiles, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut endpoints = Vec::with_capacity(settings.endpoints.len());
    for endpoint in &settings.endpoints {
        let tls = ClientTls {
            ca: settings.ca.clone(),
            client_certificate: settings.client_certificate.clone(),
            pins: settings.pin_sha256.clone(),
            groups: settings.groups.clone(),
            alpn: endpoint.protocol.alpn.filter(|_| endpoint.protocol.alpn_to_backends),
            key: key.to_owned(),
        };
        match (ServerName::try_from(endpoint.server_name.clone()), tls.build(place)) {
            (Ok(name), Ok(tls)) => endpoints.push((name, tls)),
            // The files are the same for every protocol: their mistakes are reported once.
            (Ok(_), Err(more)) if problems.is_empty() => problems.extend(more),
            (Ok(_), Err(_)) => {}
            (Err(_), _) => {
                let key = format!("{key}.{}.server_name", endpoint.protocol.name);
                problems.push(place.problem(&key, "this is neither a DNS name nor an IP address"));
            }
        }
    }
    let mut account = |account: &config::BackendService, name: &str| match password(&account.password_file) {
        Ok(password) => Some(Service { login: account.login.clone(), password }),
        Err(message) => {
            problems.push(place.problem(&format!("{key}.{name}.password_file"), message));
            None
        }
    };
    let service = settings.service.as_ref().and_then(|service| account(service, "service"));
    let acting = settings.impersonation_service.as_ref();
    let impersonation = acting.and_then(|service| account(service, "impersonation_service"));
    let probe = settings.health.probe.account().and_then(|probe| account(probe, "probe_account"));
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(BackendFiles { tls: endpoints, service, impersonation, probe })
}

/// What the files of each issuer of tokens hold.
///
/// # Errors
/// Everything that is wrong with them.
pub(crate) fn issuers(settings: &[TokenIssuer], place: &Place) -> Result<Vec<IssuerFiles>, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut files = Vec::with_capacity(settings.len());
    for (index, issuer) in settings.iter().enumerate() {
        let key = format!("tokens[{index}]");
        let is_fetched = matches!(issuer.keys, Some(KeySource::Url(_) | KeySource::Discovery(_)));
        let tls = (is_fetched || issuer.introspection.is_some()).then(|| {
            let settings = ClientTls { ca: issuer.ca.clone(), key: key.clone(), ..ClientTls::default() };
            settings.build(place).map_err(|more| problems.extend(more)).ok()
        });
        let secret = issuer.introspection.as_ref().map(|introspection| password(&introspection.client_secret_file));
        let client_secret = match secret.transpose() {
            Ok(secret) => secret,
            Err(message) => {
                problems.push(place.problem(&format!("{key}.introspection.client_secret_file"), message));
                None
            }
        };
        let keys = match &issuer.keys {
            Some(KeySource::File(file)) => match key_set(file) {
                Ok(keys) => Some(Arc::new(keys)),
                Err(message) => {
                    problems.push(place.problem(&format!("{key}.jwks"), message));
                    None
                }
            },
            Some(KeySource::Url(_) | KeySource::Discovery(_)) | None => None,
        };
        files.push(IssuerFiles { tls: tls.flatten(), keys, client_secret });
    }
    if problems.is_empty() { Ok(files) } else { Err(problems) }
}

/// What the files of the fleet hold.
///
/// # Errors
/// Everything that is wrong with them.
pub(crate) fn fleet(settings: &config::Fleet, place: &Place) -> Result<FleetFiles, Vec<Problem>> {
    let mut problems = Vec::new();
    let tls = settings.uses_tls().then(|| {
        let tls = ClientTls { ca: settings.ca.clone(), key: "fleet".to_owned(), ..ClientTls::default() };
        tls.build(place).map_err(|more| problems.extend(more)).ok()
    });
    let password = settings.password_file.as_ref().map(|file| password(file)).transpose();
    let password = password.map_err(|message| problems.push(place.problem("fleet.password_file", message)));
    let mut secret = |message: String| problems.push(place.problem("fleet.secret_file", message));
    let sealer = KeyLines::read(&settings.secret_file).map_err(|error| secret(error.to_string()));
    let sealer = sealer.and_then(|lines| {
        Sealer::new(&lines, &settings.name).map_err(|_| secret("no keys can be derived from it".to_owned()))
    });
    match (password, sealer) {
        (Ok(password), Ok(sealer)) if problems.is_empty() => {
            Ok(FleetFiles { tls: tls.flatten(), password, sealer: Arc::new(sealer) })
        }
        (_, _) => Err(problems),
    }
}

/// A JSON Web Key Set from a file.
fn key_set(path: &Path) -> Result<KeySet, String> {
    let text = certificate::read(path).map_err(|error| error.to_string())?;
    if text.len() > LARGEST_SET {
        return Err(format!(
            "{} is larger than {} KiB: is this a JSON Web Key Set?",
            path.display(),
            LARGEST_SET >> 10
        ));
    }
    KeySet::parse(&text).map_err(|error| {
        let path = path.display();
        format!(
            "{path}: {error}; save the provider's JSON Web Key Set there, from the `jwks_uri` of its discovery document"
        )
    })
}

/// A password from a file, without the line end that an editor puts behind it.
fn password(path: &Path) -> Result<Secret, String> {
    let unreadable =
        |error: io::Error| format!("{} cannot be read: {error}; {}", path.display(), sys::unreadable_advice(&error));
    let (file, metadata) = sys::open_regular(path).map_err(unreadable)?;
    if let Some(exposure) = exposure(path, &metadata).filter(|exposure| !exposure.is_harmless()) {
        return Err(exposure.to_string());
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(PASSWORD_ROOM + 1));
    let limit = u64::try_from(PASSWORD_ROOM).unwrap_or(u64::MAX);
    file.take(limit).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() == PASSWORD_ROOM {
        return Err(format!("{} has {PASSWORD_ROOM} bytes or more: is this a password?", path.display()));
    }
    Secret::from_file(std::mem::take(&mut bytes)).map_err(|error| format!("{} {error}", path.display()))
}

/// Every file with a secret that a config names, by its key.
fn secrets(config: &Config) -> Vec<(String, &Path)> {
    let config::Config { tls, directories, routing, .. } = config;
    let mut all: Vec<(String, &Path)> = Vec::new();
    for (index, pair) in tls.certificates.iter().enumerate() {
        all.push((format!("tls.certificates[{index}].key"), &pair.key));
    }
    all.extend(tls.ticket_keys_file.iter().map(|file| ("tls.ticket_keys_file".to_owned(), file.as_path())));
    for directory in directories {
        let key = |name: &str| format!("{}.{name}", directory.key);
        let pair = directory.client_certificate.iter();
        all.extend(pair.map(|pair| (key("client_certificate.key"), pair.key.as_path())));
        let account = directory.find.service();
        all.extend(account.map(|account| (key("bind_password_file"), account.password_file.as_path())));
    }
    for (index, backend) in routing.backends.iter().enumerate() {
        let key = |name: &str| format!("routing.backends[{index}].{name}");
        let pair = backend.client_certificate.iter();
        all.extend(pair.map(|pair| (key("client_certificate.key"), pair.key.as_path())));
        let service = backend.service.iter();
        all.extend(service.map(|account| (key("service.password_file"), account.password_file.as_path())));
        let impersonation = backend.impersonation_service.iter();
        all.extend(
            impersonation.map(|account| (key("impersonation_service.password_file"), account.password_file.as_path())),
        );
        let probe = backend.health.probe.account().into_iter();
        all.extend(probe.map(|account| (key("probe_account.password_file"), account.password_file.as_path())));
    }
    for (index, issuer) in config.tokens.iter().enumerate() {
        let introspection = issuer.introspection.iter();
        let key = format!("tokens[{index}].introspection.client_secret_file");
        all.extend(introspection.map(|settings| (key.clone(), settings.client_secret_file.as_path())));
    }
    let key_file = config.auth_http.iter().filter_map(|settings| settings.key_file.as_deref());
    all.extend(key_file.map(|file| ("auth_http.key_file".to_owned(), file)));
    if let Some(fleet) = &config.fleet {
        all.push(("fleet.secret_file".to_owned(), &fleet.secret_file));
        all.extend(fleet.password_file.iter().map(|file| ("fleet.password_file".to_owned(), file.as_path())));
    }
    all
}

/// Secrets whose mode is accepted only because of where they are.
fn warnings(config: &Config) -> Vec<Problem> {
    let warning = |(key, path): (String, &Path)| {
        let (_, metadata) = sys::open_regular(path).ok()?;
        Some(config.problem(&key, exposure(path, &metadata)?.to_string()))
    };
    secrets(config).into_iter().filter_map(warning).collect()
}

/// Revocation lists that are no longer valid: no client certificate is accepted by them.
fn outdated(config: &Config, tls: &ServerTls) -> Vec<Problem> {
    let now = i64::try_from(unix_now()).unwrap_or(i64::MAX);
    let by_listener = config.listeners.iter().enumerate();
    let named = by_listener.map(|(index, listener)| (format!("listeners[{index}].crl"), &listener.clients.crl));
    let warning = |RevocationLists { path, .. }: RevocationLists| {
        let is_common = config.tls.crl.as_ref() == Some(&path);
        let key = if is_common {
            "tls.crl".to_owned()
        } else {
            named.clone().find(|(_, crl)| crl.as_ref() == Some(&path)).map(|(key, _)| key)?
        };
        let message = format!(
            "a list in {} is no longer valid (nextUpdate): clients that show a certificate are refused until the file \
             is renewed",
            path.display()
        );
        Some(config.problem(&key, message))
    };
    tls.revocation_lists().filter(|lists| lists.end <= now).filter_map(warning).collect()
}

mod readable;
#[cfg(test)]
mod tests;

pub(crate) use readable::{ServiceUser, unreadable};

//! The configuration: from the operator's YAML to values the rest of usher can trust.
//!
//! [`load`] reads the file, collects *every* mistake with its line and key, and returns a
//! [`Config`] in which each value is checked, each path is absolute and each default is filled in.
//! Files that the config names (certificates, passwords) are read by the modules that need them;
//! their mistakes are reported through [`Config::problem`], so that they carry line and key as well.
//! Nothing else in usher touches YAML.

mod compile;
mod digest;
mod directories;
mod directory;
mod directory_servers;
mod fleet;
mod impersonation;
mod limits;
mod listeners;
mod locate;
mod model;
mod names;
mod parts;
mod probe;
mod process;
mod raw;
mod renamed;
mod routing;
mod schema;
mod section;
mod socketmap;
mod throttle;
mod tls;
mod tokens;
mod units;
mod url;
mod watch;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::proto::ldap::dn;
use crate::proto::ldap::template::{self, Template, UserName};

pub(crate) use digest::TextDigest;
pub(crate) use model::{
    Address, AddressBalance, Administrators, Allow, AuthHttp, AuthHttpTarget, Backend, BackendService, Balance, Cache,
    CertificateFiles, CertificateMatch, ClientAddress, ClientAuth, ClientCertificates, ClientLogin, Config,
    ConfigReload, Connections, Control, DeliveryWhenDisabled, Directory, DirectoryServer, DisabledBy, DomainPattern,
    Draft, Ehlo, Endpoint, FailedLogins, Find, Fleet, Forward, Group, Health, HttpUrl, Introspection, KeySource,
    LdapScheme, Limit, LimitRule, Limits, Listener, ListenerTls, Log, LogFormat, LogLevel, Memory, Mode, OnChange,
    OnReturn, OnUnavailable, PasswordSpraying, Probe, Process, Routing, ServiceAccount, Socketmap, SocketmapPlace, Srv,
    SrvTarget, StoreAddress, Throttle, Tls, TlsVersion, TokenIssuer, TokenLogin, UnixPlace, Watch, WatchMode,
    WindowsDomain,
};
#[cfg(test)]
pub(crate) use model::{Canary, Drain};
pub(crate) use names::host_key;
pub(crate) use routing::LONGEST_REPLY;
pub(crate) use schema::schema;
pub(crate) use section::collide;
#[cfg(test)]
pub(crate) use tests::sound_directory;

/// A duration as it is written in the configuration, for arguments of commands.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn duration(text: &str) -> Result<std::time::Duration, String> {
    units::DURATION.parse(text).map(std::time::Duration::from_millis).map_err(|error| error.to_string())
}

/// A DN with placeholders as `user_dn` has it, for arguments of commands.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn dn_template(text: &str) -> Result<Template, String> {
    match template::parse_user_dn(text) {
        Ok(UserName::Dn(template)) => Ok(template),
        Ok(UserName::Principal(_)) => Err("not a DN like uid={login},ou=people,dc=example,dc=com".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A base DN as in the configuration, for arguments of commands.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn base_dn(text: &str) -> Result<String, String> {
    dn::base_dn(text).map_err(|error| error.to_string())
}

/// An attribute's name as in the configuration, for arguments of commands.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn attribute(text: &str) -> Result<String, String> {
    names::attribute(text).map_err(|error| error.to_string())
}

/// An address, or a network as `address/bits`, as it is written in the configuration.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn network(text: &str) -> Result<IpNet, String> {
    names::network(text).map_err(|error| error.to_string())
}

use ipnet::IpNet;

use crate::base::secret::PasswordFileError;
use crate::base::sys;

use locate::Lines;
use parts::{Part, Sources};
use raw::{Node, Report};

/// A config file is some kilobytes; larger ones are a mistake, and the bound keeps what YAML's
/// aliases can do within limits.
const LARGEST_FILE: u64 = 1 << 20;

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The config file, as it was named to usher.
    pub file: PathBuf,
    /// The line (from 1), where it is known.
    pub line: Option<u64>,
    /// The key path, such as `listeners[0].address`; empty for the file as a whole.
    pub key: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    /// `config.yaml:12: tls.certificates[0].key: message`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl Config {
    /// A mistake that shows only outside of this module, such as an unreadable certificate, with the
    /// file and the line of the key. The key is a path such as `tls.certificates[0].key`; if it is
    /// not in the file, the line is that of the nearest thing around it.
    #[must_use]
    pub fn problem(&self, key: &str, message: impl Into<String>) -> Problem {
        self.place.problem(key, message)
    }

    /// The longest time of a whole decision.
    #[must_use]
    pub fn longest_decision(&self) -> std::time::Duration {
        self.directories.iter().map(|directory| directory.timeout).max().unwrap_or_default()
    }

    /// Whether any user may act for another user's mailbox.
    #[must_use]
    pub fn permits_acting(&self) -> bool {
        self.impersonation.administrators.is_some()
            || self.directories.iter().any(|directory| directory.grant_attribute.is_some())
    }
}

/// The file's name and where its keys stand.
#[derive(Debug)]
pub struct Place {
    file: PathBuf,
    lines: Lines,
    /// The files of `routing.backends_from`.
    parts: Vec<Part>,
}

impl Place {
    /// A problem at a key: see [`Config::problem`].
    #[must_use]
    pub fn problem(&self, key: &str, message: impl Into<String>) -> Problem {
        // Unknown keys are the operator's own words: they must not move a terminal's cursor.
        let shown = |key: &str| key.chars().take(200).map(|c| if c.is_control() { '?' } else { c }).collect();
        match self.part(key) {
            Some((part, own)) => {
                let problem = part.problem(own, message);
                Problem { key: shown(&problem.key), ..problem }
            }
            None => {
                let line = if key.is_empty() { None } else { self.lines.of(key) };
                Problem { file: self.file.clone(), line, key: shown(key), message: message.into() }
            }
        }
    }

    /// The file of `routing.backends_from` that a key is in, and the key there.
    fn part(&self, key: &str) -> Option<(&Part, String)> {
        self.parts.iter().find_map(|part| Some((part, part.key(key)?)))
    }

    /// A key of these files for the message of another one: `name in line 3`, with its file if it is in another.
    fn other(&self, key: &str, of: &str) -> String {
        let (this, other) = (self.problem(of, ""), self.problem(key, ""));
        let line = other.line.map(|line| format!(" in line {line}")).unwrap_or_default();
        let file = if this.file == other.file { String::new() } else { format!(" of {}", other.file.display()) };
        format!("{}{line}{file}", other.key)
    }

    /// The files beside the config file.
    pub(crate) fn part_files(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(Part::file)
    }
}

/// Why there is no [`Config`].
#[derive(Debug)]
pub struct Mistakes {
    /// Every mistake that was found, in the order of the file; never empty.
    pub problems: Vec<Problem>,
    /// What is sound all the same, unless the file is no YAML.
    pub draft: Option<Box<Draft>>,
}

impl From<Problem> for Mistakes {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem], draft: None }
    }
}

/// Reads and checks a config file.
///
/// # Errors
/// Every mistake that was found.
pub(crate) fn load(file: &Path) -> Result<Config, Mistakes> {
    match read(file) {
        Ok(text) => parse_sources(file, Sources::of(text, file)),
        Err(message) => Err(Problem { file: file.to_owned(), line: None, key: String::new(), message }.into()),
    }
}

/// Checks a config that was read already; `file` is its name in problems, and its directory what
/// relative paths are relative to. No other file is read.
///
/// # Errors
/// As [`load`].
pub fn parse(file: &Path, text: &str) -> Result<Config, Mistakes> {
    parse_sources(file, Sources { text: text.to_owned(), folder: None })
}

fn parse_sources(file: &Path, sources: Sources) -> Result<Config, Mistakes> {
    let digest = sources.digest();
    let (mut place, root) = document(file, &sources.text);
    let mut root = root.map_err(|problems| Mistakes { problems, draft: None })?;
    let mut warnings = Vec::new();
    if let Some(folder) = sources.folder {
        let included = parts::include(&mut place, &mut root, folder);
        warnings = included.map_err(|problems| Mistakes { problems, draft: None })?;
    }
    let place = Arc::new(place);
    if root.is_null() {
        return Err(place.problem("", "the file is empty: start from config.example.yaml").into());
    }
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let report = Report {
        place,
        directory: absolute.parent().map(Path::to_owned).unwrap_or_default(),
        problems: RefCell::default(),
        warnings: RefCell::new(warnings),
        probe: None,
    };
    let (config, draft) = Node::root(&report, &root).section(|root| compile::config(root, absolute)).unzip();
    let in_order = |found: RefCell<Vec<Problem>>| {
        let mut found = found.into_inner();
        // The config file first, then the others by name.
        found.sort_by(|one, other| {
            let order = |problem: &Problem| (problem.file != file, problem.line.unwrap_or(u64::MAX));
            let ((is_part, line), (other_part, other_line)) = (order(one), order(other));
            is_part.cmp(&other_part).then_with(|| one.file.cmp(&other.file)).then(line.cmp(&other_line))
        });
        found
    };
    let Report { place, problems, warnings, .. } = report;
    let problems = in_order(problems);
    match config.flatten() {
        Some(config) if problems.is_empty() => Ok(Config { digest, warnings: in_order(warnings), place, ..config }),
        Some(_) | None => Err(Mistakes { problems, draft: draft.map(Box::new) }),
    }
}

/// The keys and values of a file, or why it has none.
fn document(file: &Path, text: &str) -> (Place, Result<serde_yaml::Value, Vec<Problem>>) {
    let (lines, duplicates) = Lines::read(text);
    let place = Place { file: file.to_owned(), lines, parts: Vec::new() };
    let value = serde_yaml::from_str(text).map_err(|error| match duplicates.is_empty() {
        true => vec![place.syntax(&error)],
        false => duplicates.into_iter().map(|twice| place.twice(twice)).collect(),
    });
    (place, value)
}

impl Place {
    fn twice(&self, twice: locate::Duplicate) -> Problem {
        let message = format!("given twice, first in line {}: keep one", twice.first);
        Problem { line: Some(twice.line), ..self.problem(&twice.path, message) }
    }

    /// What the YAML parser says, unless its words might repeat a value.
    fn syntax(&self, error: &serde_yaml::Error) -> Problem {
        let text = error.to_string();
        let tells = ["invalid type: ", "invalid value: ", "duplicate entry"].iter().any(|words| text.contains(words));
        let message = if tells {
            "not YAML: a value does not fit its tag, or a key is given twice".to_owned()
        } else if text.contains("more than one document") {
            "more than one YAML document: keep everything in one, without `---` between".to_owned()
        } else {
            format!("not YAML: {text}")
        };
        let line = error.location().and_then(|at| u64::try_from(at.line()).ok());
        Problem { line, ..self.problem("", message) }
    }
}

/// Reads the file, or says why not and what to do.
fn read(file: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let opened = sys::open_regular(file).and_then(|(file, _)| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes));
    opened.map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            "no such file: name it with --config, or copy config.example.yaml there".to_owned()
        } else if error.kind() == io::ErrorKind::PermissionDenied {
            "not readable for the user that runs usher: check owner and mode".to_owned()
        } else {
            format!("cannot be read: {error}")
        }
    })?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > LARGEST_FILE) {
        return Err("larger than 1 MiB: is this the config?".to_owned());
    }
    utf8(bytes)
}

/// The text of a file, or what it is instead.
fn utf8(bytes: Vec<u8>) -> Result<String, String> {
    match PasswordFileError::of_encoding(&bytes) {
        Some(PasswordFileError::Utf16) => Err(format!("the file {}", PasswordFileError::Utf16)),
        Some(_) | None => String::from_utf8(bytes).map_err(|_| "not UTF-8 text: save it as UTF-8".to_owned()),
    }
}

/// The path of a key in the mapping at `parent`.
fn join(parent: &str, key: &str) -> String {
    match (parent, key) {
        ("", key) => key.to_owned(),
        (parent, "") => parent.to_owned(),
        (parent, key) => format!("{parent}.{key}"),
    }
}

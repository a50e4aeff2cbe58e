//! From an nginx recipe's users.txt to the LDIF that sets the mail host of all users.
//!
//! A name is set for the one entry that a login by that name finds, asked for as a login is. Nothing is
//! invented: a name without an entry, or with several, is reported and left out. Since the recipe's script may
//! have sent people elsewhere than its file says, those are reported too: their mail is there.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt as _, stream};
use tokio::sync::mpsc;

use super::nginx::Recipe;
use super::{AT_ONCE, list, look_up};
use crate::base::credential::Login;
use crate::config::{Config, host_key};
use crate::diagnose::table::Shown;
use crate::directory::{DirectoryError, Entry, ListedUser, UnavailableCause};
use crate::login::realms::{RealmCore, Realms};
use crate::proto::ldap::template::{self, Template};
use crate::routing;

/// The directory that gets the LDIF.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// All of them.
    pub realms: &'a Realms,
    /// This one.
    pub realm: &'a RealmCore,
}

impl Asked<'_> {
    /// Whether a login by this name is looked up there.
    fn may_have(self, name: &Login) -> bool {
        self.realms.may_have(self.realm, name)
    }
}

/// Where the names of a file, and all others, are sent: values of `mail_host_attribute`.
#[derive(Debug, Clone)]
pub(crate) struct Hosts {
    /// Users in the file.
    pub backend: String,
    /// All other users.
    pub default: Option<String>,
}

/// What is to become of the directory, and what an operator must know.
#[derive(Debug, Default)]
pub(crate) struct Import {
    /// Whose mail host is to be set.
    pub changes: Vec<Change>,
    /// What was noticed, in order.
    pub remarks: Vec<Remark>,
    /// How many entries say already what they should.
    pub settled: usize,
    /// How many others have no mail host, and would have none afterwards.
    pub without: usize,
}

/// An entry whose mail host is to be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// The entry.
    pub dn: String,
    /// The value.
    pub mail_host: String,
}

/// Something to be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Remark {
    /// No login can be this name.
    NoLogin(String, usize),
    /// No entry has this name.
    Unknown(String, usize),
    /// Several entries have this name.
    Several(String, usize),
    /// The directory shows the entry of this name in no way that usher reads.
    Unreadable(String),
    /// Two names of the file are one entry's: the later, and the line of the earlier.
    SameEntry(String, usize, usize),
    /// A name stands in the file twice.
    Duplicate(usize, usize),
    /// A line without a name.
    Blank(usize),
    /// A line that is no UTF-8.
    NotText(usize),
    /// A line with blanks around its name.
    Padded(usize),
    /// The recipe's `strpos` finds this name within another, and sent it where that one goes.
    Within {
        /// Who.
        login: String,
        /// The name in the file, and its line.
        name: String,
        /// The line.
        line: usize,
    },
    /// The name at the very beginning of the file: `strpos` answers 0, which a careless script takes for no.
    First(String),
    /// The entry has another mail host now, which is replaced.
    Replaced(String, Vec<String>),
    /// An entry that the file does not name has a mail host that leads elsewhere than the default.
    Elsewhere(String, Vec<String>),
}

impl Remark {
    /// Whether it needs a decision before the import is correct.
    #[must_use]
    pub(crate) const fn is_problem(&self) -> bool {
        match self {
            Self::NoLogin(..)
            | Self::Unknown(..)
            | Self::Several(..)
            | Self::Unreadable(_)
            | Self::NotText(_)
            | Self::Within { .. }
            | Self::Elsewhere(..) => true,
            Self::SameEntry(..)
            | Self::Duplicate(..)
            | Self::Blank(_)
            | Self::Padded(_)
            | Self::First(_)
            | Self::Replaced(..) => false,
        }
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLogin(name, line) => {
                write!(
                    f,
                    "line {line}: {} is not a valid login name: too long, or with a control character",
                    Shown(name)
                )
            }
            Self::Unknown(name, line) => write!(f, "line {line}: {} is not in the directory", Shown(name)),
            Self::Several(name, line) => {
                write!(f, "line {line}: {} matches several entries; make the name unique", Shown(name))
            }
            Self::Unreadable(name) => write!(f, "{} has more values than usher reads", Shown(name)),
            Self::SameEntry(name, line, earlier) => {
                write!(f, "line {line}: {} is the same entry as the name in line {earlier}", Shown(name))
            }
            Self::Duplicate(line, earlier) => write!(f, "line {line}: the same name as in line {earlier}"),
            Self::Blank(line) => write!(f, "line {line}: no name"),
            Self::NotText(line) => write!(f, "line {line}: not UTF-8, left out; save the file as UTF-8"),
            Self::Padded(line) => write!(f, "line {line}: blanks around the name, left out"),
            Self::Within { login, name, line } => write!(
                f,
                "{} is not in the file, but strpos finds it within {} (line {line}) and sent it there: if the mail \
                 is there, add a line for it",
                Shown(login),
                Shown(name)
            ),
            Self::First(name) => write!(
                f,
                "line 1: strpos finds {} at 0; a script that does not compare with `!== false` sent it to the default",
                Shown(name)
            ),
            Self::Replaced(dn, values) => write!(f, "{}: replaces {}", Shown(dn), Shown(&values.join(", "))),
            Self::Elsewhere(dn, values) => write!(
                f,
                "{} is not in the file and is routed to {}, not to the default: left as it is",
                Shown(dn),
                Shown(&values.join(", "))
            ),
        }
    }
}

/// What is wrong with the lines alone.
fn of_lines(recipe: &Recipe) -> Vec<(usize, Remark)> {
    let mut found: Vec<(usize, Remark)> = Vec::new();
    found.extend(recipe.blank.iter().map(|line| (*line, Remark::Blank(*line))));
    found.extend(recipe.not_text.iter().map(|line| (*line, Remark::NotText(*line))));
    found.extend(recipe.padded.iter().map(|line| (*line, Remark::Padded(*line))));
    found.extend(recipe.duplicates.iter().map(|(line, earlier)| (*line, Remark::Duplicate(*line, *earlier))));
    let first = recipe.names.first().filter(|name| name.line == 1);
    found.extend(first.map(|name| (1, Remark::First(name.text.clone()))));
    found
}

impl Import {
    /// Without a directory: each name's DN is what the template makes of it. `all_users` are all login names,
    /// if they are known.
    #[must_use]
    pub(crate) fn offline(recipe: &Recipe, dn: &Template, hosts: &Hosts, all_users: Option<&Recipe>) -> Self {
        let mut import = Self::default();
        let mut remarks = of_lines(recipe);
        for name in &recipe.names {
            let made = Login::parse(name.text.as_bytes()).and_then(|login| template::dn(dn, &login));
            match made {
                Some(dn) => import.changes.push(Change { dn, mail_host: hosts.backend.clone() }),
                None => remarks.push((name.line, Remark::NoLogin(name.text.clone(), name.line))),
            }
        }
        import.note(remarks);
        for login in all_users.iter().flat_map(|all_users| &all_users.names) {
            import.note_within(recipe, &login.text);
        }
        import
    }

    /// With the directory of this config. With `write_default`, users that are not in the file and have no mail host
    /// gets the default. `done` counts entries.
    ///
    /// # Errors
    /// The directory lookup failed: then nothing may be applied.
    pub(crate) async fn online(
        recipe: &Recipe,
        (config, realm, name_attribute): (&Config, Asked<'_>, Option<&str>),
        hosts: &Hosts,
        write_default: bool,
        done: &AtomicUsize,
    ) -> Result<Self, DirectoryError> {
        let mut import = Self::default();
        let mut remarks = of_lines(recipe);
        let mut named: HashMap<String, usize> = HashMap::new();
        let asked = recipe.names.iter().map(|name| async move {
            match Login::parse(name.text.as_bytes()) {
                Some(login) if !realm.may_have(&login) => (name, Some(Err(DirectoryError::NoEntry))),
                Some(login) => (name, Some(look_up(realm.realm.directory(), &login).await)),
                None => (name, None),
            }
        });
        let mut answers = stream::iter(asked).buffered(AT_ONCE);
        while let Some((name, answer)) = answers.next().await {
            done.fetch_add(1, Ordering::Relaxed);
            let (text, line) = (name.text.clone(), name.line);
            let remark = match answer {
                None => Remark::NoLogin(text, line),
                Some(Err(DirectoryError::NoEntry)) => Remark::Unknown(text, line),
                Some(Err(DirectoryError::SeveralEntries { .. })) => Remark::Several(text, line),
                Some(Err(
                    DirectoryError::UnusableEntry { .. }
                    | DirectoryError::Unavailable(UnavailableCause::Malformed { .. }),
                )) => Remark::Unreadable(text),
                Some(Ok(entry)) if entry.fault.is_some() => Remark::Unreadable(text),
                Some(Err(error)) => return Err(error),
                Some(Ok(entry)) => match named.get(&entry.dn.to_lowercase()) {
                    Some(earlier) => Remark::SameEntry(text, line, *earlier),
                    None => {
                        named.insert(entry.dn.to_lowercase(), line);
                        import.settle(&mut remarks, line, &entry, &hosts.backend);
                        continue;
                    }
                },
            };
            remarks.push((line, remark));
        }
        import.note(remarks);
        import.others(recipe, (config, realm, name_attribute), hosts, write_default, &named, done).await?;
        Ok(import)
    }

    /// Checks all users that the file does not name.
    async fn others(
        &mut self,
        recipe: &Recipe,
        (config, realm, name_attribute): (&Config, Asked<'_>, Option<&str>),
        hosts: &Hosts,
        write_default: bool,
        named: &HashMap<String, usize>,
        done: &AtomicUsize,
    ) -> Result<(), DirectoryError> {
        let leads = |value: &str| routing::backend_of(&config.routing, value);
        let default = hosts.default.as_deref();
        // Without the attribute they go to `routing.default`: if that is the recipe's default, nothing is to be done.
        let falls_there = default.is_some_and(|default| {
            let name = config.routing.default.as_deref();
            name.is_some() && leads(default) == name
        });
        let (sender, mut listed) = mpsc::channel(256);
        let (told, ()) = tokio::join!(list(realm.realm.directory(), name_attribute, sender), async {
            while let Some(ListedUser { dn, entry, names }) = listed.recv().await {
                done.fetch_add(1, Ordering::Relaxed);
                if named.contains_key(&dn.to_lowercase()) {
                    continue;
                }
                for name in &names {
                    if self.note_within(recipe, name) {
                        break;
                    }
                }
                if entry.fault.is_some() {
                    self.remarks.push(Remark::Unreadable(dn));
                    continue;
                }
                if entry.mail_hosts.is_empty() {
                    match default {
                        Some(default) if write_default => {
                            self.changes.push(Change { dn, mail_host: default.to_owned() });
                        }
                        _ => self.without += usize::from(!falls_there),
                    }
                    continue;
                }
                let goal = routing::route(&config.routing, &entry).ok().map(|route| route.backend);
                if default.is_some_and(|default| goal.is_none() || goal != leads(default)) {
                    self.remarks.push(Remark::Elsewhere(dn, entry.mail_hosts));
                }
            }
        });
        told.map_err(DirectoryError::Unavailable)
    }

    /// Sets an entry's mail host, unless it says so already.
    fn settle(&mut self, remarks: &mut Vec<(usize, Remark)>, line: usize, entry: &Entry, host: &str) {
        match entry.mail_hosts.as_slice() {
            [one] if host_key(one.trim()) == host_key(host) => self.settled += 1,
            others => {
                if !others.is_empty() {
                    remarks.push((line, Remark::Replaced(entry.dn.to_string(), others.to_vec())));
                }
                self.changes.push(Change { dn: entry.dn.to_string(), mail_host: host.to_owned() });
            }
        }
    }

    fn note(&mut self, mut remarks: Vec<(usize, Remark)>) {
        remarks.sort_by_key(|(line, _)| *line);
        self.remarks.extend(remarks.into_iter().map(|(_, remark)| remark));
    }

    fn note_within(&mut self, recipe: &Recipe, login: &str) -> bool {
        let Some(name) = recipe.within(login) else { return false };
        self.remarks.push(Remark::Within { login: login.to_owned(), name: name.text.clone(), line: name.line });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn names_become_dns_offline() {
        let recipe = Recipe::parse("joanna\na,ou=x+y\n\nJoanna\njosé\n".as_bytes());
        let all_users = Recipe::parse(b"ann\njoanna\nzoe\n");
        let dn = config::dn_template("uid={login},ou=people,dc=example,dc=com").unwrap();
        let hosts = Hosts { backend: "server4".to_owned(), default: None };
        let import = Import::offline(&recipe, &dn, &hosts, Some(&all_users));
        let dns: Vec<_> = import.changes.iter().map(|change| change.dn.as_str()).collect();
        let people = ",ou=people,dc=example,dc=com";
        assert_eq!(dns, ["uid=joanna", r"uid=a\2cou\3dx\2by", "uid=josé"].map(|rdn| format!("{rdn}{people}")));
        let within = Remark::Within { login: "ann".to_owned(), name: "joanna".to_owned(), line: 1 };
        let expected = [Remark::First("joanna".to_owned()), Remark::Blank(3), Remark::Duplicate(4, 1), within];
        assert_eq!(import.remarks, expected);
        assert_eq!(import.remarks.iter().filter(|remark| remark.is_problem()).count(), 1);
    }

    #[test]
    fn invalid_login_is_reported() {
        let long = "x".repeat(600);
        let recipe = Recipe::parse(format!("a\x07b\n{long}\n").as_bytes());
        let dn = config::dn_template("uid={login},dc=x").unwrap();
        let import = Import::offline(&recipe, &dn, &Hosts { backend: "server4".to_owned(), default: None }, None);
        assert!(import.changes.is_empty());
        assert_eq!(import.remarks.iter().filter(|remark| matches!(remark, Remark::NoLogin(..))).count(), 2);
        assert!(import.remarks.iter().all(|remark| !remark.to_string().contains('\x07')));
    }
}

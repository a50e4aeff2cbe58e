//! A filter of sessions: by user, backend, client, protocol and age, combined by AND.
//!
//! A filter is written as `key=value` pairs in a request's query and in the log.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::config;
use crate::proto;
use crate::sessions::registry::{EntryRef, Session};
use crate::telemetry::log::Escaped;
use ipnet::IpNet;

/// Matches sessions that meet every part that is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// The user: a login name as typed, in any case, or the entry's DN. Includes the user's sessions under
    /// other names, and those in which the user acts for another one's mailbox.
    pub user: Option<String>,
    /// The backend.
    pub backend: Option<String>,
    /// The client's network.
    pub client: Option<IpNet>,
    /// The protocol's name.
    pub protocol: Option<String>,
    /// The minimum age.
    pub older_than: Option<Duration>,
    /// The age limit.
    pub younger_than: Option<Duration>,
    /// The name of the directory that has the user.
    pub directory: Option<String>,
}

/// Why a part of a filter is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum FilterError {
    /// An empty value: most likely a variable in a script was not set.
    #[error("`{0}` is empty")]
    Empty(&'static str),
    /// An unknown protocol.
    #[error("unknown protocol `{0}`; supported are {known}", known = protocols())]
    Protocol(String),
    /// Not a network.
    #[error("invalid client `{text}`: {why}")]
    Client {
        /// As given.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// Not a duration.
    #[error("invalid age `{text}`: {why}")]
    Age {
        /// As given.
        text: String,
        /// What is wrong.
        why: String,
    },
}

fn protocols() -> String {
    proto::PROTOCOLS.iter().map(|protocol| protocol.name).collect::<Vec<_>>().join(", ")
}

impl Filter {
    /// The parts, by the names that they have in a query.
    pub(crate) const KEYS: [&'static str; 7] =
        ["user", "backend", "client", "protocol", "older_than", "younger_than", "directory"];

    /// Sets the part with this name; an unknown name is left to the caller.
    ///
    /// # Errors
    /// What is wrong with the value.
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<(), FilterError> {
        let age = |text: &str| {
            config::duration(text).map_err(|why| FilterError::Age { text: text.to_owned(), why }).map(Some)
        };
        let Some(known) = Self::KEYS.into_iter().find(|known| *known == key) else { return Ok(()) };
        if value.is_empty() {
            return Err(FilterError::Empty(known));
        }
        match known {
            "user" => self.user = Some(value.to_owned()),
            "backend" => self.backend = Some(value.to_owned()),
            "client" => {
                let network = config::network(value);
                let error = |why| FilterError::Client { text: value.to_owned(), why };
                self.client = Some(network.map_err(error)?);
            }
            "protocol" if proto::by_name(value).is_some() => self.protocol = Some(value.to_owned()),
            "protocol" => return Err(FilterError::Protocol(value.to_owned())),
            "older_than" => self.older_than = age(value)?,
            "directory" => self.directory = Some(value.to_owned()),
            _ => self.younger_than = age(value)?,
        }
        Ok(())
    }

    /// Whether a login name is that of the user: without white space at its ends, as logins are.
    #[must_use]
    pub(crate) fn is_name(user: &str, login: &str) -> bool {
        login.trim().eq_ignore_ascii_case(user.trim())
    }

    /// Whether it fits every session.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The matching sessions at this Unix second. `known` are the entries that the user's name is known to resolve
    /// to.
    #[must_use]
    pub(crate) fn choose(
        &self,
        mut sessions: Vec<Arc<Session>>,
        known: impl IntoIterator<Item = EntryRef>,
        now: u64,
    ) -> Vec<Arc<Session>> {
        // First: a name means no user of another directory.
        sessions.retain(|session| self.is_of_directory(session));
        if let Some(user) = &self.user {
            let mut entries: BTreeSet<EntryRef> =
                sessions.iter().flat_map(|session| session.entries_named(user)).collect();
            entries.extend(known);
            sessions.retain(|session| session.entries().any(|entry| entries.contains(&entry) || entry.is_dn(user)));
        }
        sessions.retain(|session| self.fits(session, now));
        sessions
    }

    fn is_of_directory(&self, session: &Session) -> bool {
        self.directory.as_ref().is_none_or(|name| session.entries().any(|entry| entry.is_in(name)))
    }

    fn fits(&self, session: &Session, now: u64) -> bool {
        let age = Duration::from_secs(now.saturating_sub(session.since));
        self.backend.as_ref().is_none_or(|backend| session.backend.as_ref() == backend)
            && self.protocol.as_ref().is_none_or(|protocol| session.protocol == *protocol)
            && self.client.is_none_or(|network| network.contains(&session.client.address()))
            && self.older_than.is_none_or(|limit| age >= limit)
            && self.younger_than.is_none_or(|limit| age < limit)
    }
}

/// As text for the log: `user=alice client=192.0.2.0/24`; `all` without any part.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("all");
        }
        let seconds = |age: Option<Duration>| age.map(|age| format!("{}s", age.as_secs()));
        let parts = [
            ("user", self.user.clone()),
            ("backend", self.backend.clone()),
            ("client", self.client.map(|network| network.to_string())),
            ("protocol", self.protocol.clone()),
            ("older_than", seconds(self.older_than)),
            ("younger_than", seconds(self.younger_than)),
            ("directory", self.directory.clone()),
        ];
        let mut space = "";
        for (key, value) in parts {
            if let Some(value) = value {
                write!(f, "{space}{key}={}", Escaped(Borrow::<str>::borrow(&value).as_bytes()))?;
                space = " ";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::registry::Registry;

    fn session(login: &str, dn: &str, client: &str, backend: &str, since: u64) -> Arc<Session> {
        Arc::new(Session {
            id: Registry::default().next_id(),
            login: login.into(),
            dn: dn.into(),
            acting: None,
            acting_dn: None,
            directory: None,
            acting_directory: None,
            client: client.parse().unwrap(),
            protocol: "imap".into(),
            backend: backend.into(),
            address: None,
            since,
        })
    }

    /// The matching users among some sessions, at second 1,000.
    fn chosen(pairs: &[(&str, &str)]) -> Vec<String> {
        let sessions = vec![
            session("alice", "uid=alice,dc=x", "192.0.2.7", "server3", 900),
            session("alice@example.com", "uid=Alice,dc=x", "2001:db8::7", "server3", 400),
            session("bob", "uid=bob,dc=x", "192.0.2.8", "server4", 990),
            session("alic", "uid=alic,dc=x", "198.51.100.1", "server4", 0),
        ];
        let mut filter = Filter::default();
        for (key, value) in pairs {
            filter.set(key, value).unwrap();
        }
        let known = filter.user.as_ref().filter(|user| *user == "robert").map(|_| EntryRef::new(None, "uid=bob,dc=x"));
        filter.choose(sessions, known, 1_000).iter().map(|session| session.login.to_string()).collect()
    }

    #[test]
    fn session_from_before_the_clock_was_put_back_has_begun() {
        let begun = session("alice", "uid=alice,dc=x", "192.0.2.1", "server3", 1_000);
        assert!(begun.has_begun_by(1_000, 1_010) && !begun.has_begun_by(999, 1_010));
        assert!(begun.has_begun_by(500, 510));
    }

    #[test]
    fn user_matches_under_every_name() {
        for name in ["alice", "ALICE@Example.com", "uid=alice,dc=x", "UID=ALICE,DC=X"] {
            assert_eq!(chosen(&[("user", name)]), ["alice", "alice@example.com"], "{name}");
        }
        assert_eq!(chosen(&[("user", "robert")]), ["bob"], "what the cache knows of a name counts");
        assert_eq!(
            chosen(&[("user", " alice\u{a0}")]),
            ["alice", "alice@example.com"],
            "as the log has what was typed"
        );
        assert!(chosen(&[("user", "ali")]).is_empty() && chosen(&[("user", " ")]).is_empty());
    }

    #[test]
    fn every_condition_must_match() {
        assert_eq!(chosen(&[]).len(), 4);
        assert_eq!(chosen(&[("backend", "server4")]), ["bob", "alic"]);
        assert_eq!(chosen(&[("client", "192.0.2.0/24")]), ["alice", "bob"]);
        assert_eq!(chosen(&[("client", "2001:db8::/32")]), ["alice@example.com"]);
        assert_eq!(chosen(&[("client", "192.0.2.8")]), ["bob"]);
        assert_eq!(chosen(&[("older_than", "10m")]), ["alice@example.com", "alic"]);
        assert_eq!(chosen(&[("younger_than", "10m"), ("older_than", "100s")]), ["alice"]);
        assert!(chosen(&[("protocol", "pop3")]).is_empty());
        assert!(chosen(&[("user", "bob"), ("backend", "server3")]).is_empty());
    }

    #[test]
    fn user_of_one_directory_is_none_of_another_with_the_same_dn() {
        let of = |directory: Option<&'static str>, login: &str| {
            let session = session(login, "uid=alice,dc=x", "192.0.2.7", "server3", 900);
            Arc::new(Session { directory: directory.map(Into::into), ..Session::clone(&session) })
        };
        let all = vec![of(Some("corp"), "alice@corp"), of(Some("corp"), "a@corp"), of(Some("other"), "alice@other")];
        let chosen = |pairs: &[(&str, &str)], known: Option<EntryRef>| -> Vec<String> {
            let mut filter = Filter::default();
            pairs.iter().for_each(|(key, value)| filter.set(key, value).unwrap());
            filter.choose(all.clone(), known, 1_000).iter().map(|session| session.login.to_string()).collect()
        };
        assert_eq!(chosen(&[("user", "alice@corp")], None), ["alice@corp", "a@corp"]);
        assert_eq!(chosen(&[("user", "x")], Some(EntryRef::new(Some("other"), "uid=Alice,dc=x"))), ["alice@other"]);
        assert_eq!(chosen(&[("directory", "corp")], None), ["alice@corp", "a@corp"]);
        assert_eq!(chosen(&[("directory", "other"), ("user", "uid=alice,dc=x")], None), ["alice@other"]);
        assert_eq!(chosen(&[("user", "uid=alice,dc=x")], None).len(), 3, "a DN without its directory is that of both");
        assert!(chosen(&[("directory", "default")], None).is_empty());
    }

    #[test]
    fn mistake_is_reported_as_a_message() {
        let wrong = |key: &str, value: &str| Filter::default().set(key, value).unwrap_err().to_string();
        assert_eq!(wrong("user", ""), "`user` is empty");
        assert_eq!(
            wrong("protocol", "http"),
            "unknown protocol `http`; supported are imap, pop3, submission, managesieve"
        );
        assert!(wrong("client", "192.0.2.1/24").starts_with("invalid client `192.0.2.1/24`: "));
        assert!(wrong("older_than", "10").starts_with("invalid age `10`: "));
    }

    #[test]
    fn filter_is_described_in_the_log() {
        let mut filter = Filter::default();
        assert_eq!(filter.to_string(), "all");
        for (key, value) in [("user", "a\nb"), ("client", "192.0.2.0/24"), ("older_than", "2m")] {
            filter.set(key, value).unwrap();
        }
        assert_eq!(filter.to_string(), "user=a\\nb client=192.0.2.0/24 older_than=120s");
    }
}

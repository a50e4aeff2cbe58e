//! The difference between two versions of an entry: values of watched attributes, never the mere fact of a
//! modification. With a password policy each wrong guess modifies an entry, and with lastbind each successful
//! login does.
//!
//! [`compare`] is the only function that decides what this means for a session: when a change is reported,
//! when a session is listed, and before a login is answered. Pure: takes the time as a parameter.

use std::sync::Arc;

use crate::config::{OnChange, Routing, Watch};
use crate::directory::{Authority, Entry, UserActing};
use crate::outcome::{AccountState, Refusal};
use crate::proto;
use crate::proto::ldap::dn;
use crate::routing;
use crate::sessions::registry::{Session, SessionBasis, TerminationReason};
use crate::telemetry::labels::DirectoryChange;

/// The backend of an entry, or why it has none.
pub(super) type RouteTarget = Result<Arc<str>, &'static str>;

/// The changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Another place: the old one and the new.
    pub(super) moved: Option<(RouteTarget, RouteTarget)>,
    pub(super) login: bool,
    /// Disabled (true) or enabled.
    pub(super) disabled: Option<bool>,
    /// Held (true) or released.
    pub(super) held: Option<bool>,
    pub(super) password: bool,
    pub(super) lockout: bool,
    /// The policy state of the password.
    pub(super) policy: bool,
    pub(super) renamed: bool,
    /// The networks that the user may log in from.
    pub(super) networks: bool,
    /// Another relevant attribute, or another spelling of the same mail host.
    pub(super) other: bool,
    /// The version is newer without a visible change: the password may have changed.
    pub(super) unexplained: bool,
}

impl Difference {
    /// Compares two versions. `exact`: every modification is reported separately, so that one caused by a login
    /// has changed nothing else. `now`: Unix seconds.
    pub(super) fn between(old: &Entry, new: &Entry, routing: &Routing, exact: bool, now: u64) -> Self {
        let (from, to) = (route_target(routing, old), route_target(routing, new));
        let (before, after) = (&old.version, &new.version);
        let mut difference = Self {
            login: old.logins != new.logins,
            disabled: (before.account_state(now).is_some() != after.account_state(now).is_some())
                .then_some(after.account_state(now).is_some()),
            held: (before.held != after.held).then_some(after.held),
            password: before.password_changed != after.password_changed,
            lockout: before.lockout != after.lockout,
            policy: before.password_policy != after.password_policy,
            renamed: old.dn != new.dn,
            networks: old.networks != new.networks,
            other: before.policy_digest != after.policy_digest
                || before.expires != after.expires
                || (from == to && old.mail_hosts != new.mail_hosts),
            ..Self::default()
        };
        if from != to {
            difference.moved = Some((from, to));
        }
        let explained = difference.is_some() || (exact && before.login_activity != after.login_activity);
        // A policy that records password changes would have recorded one.
        let aged = before.shows_password_age() || after.shows_password_age();
        difference.unexplained = before.revision != after.revision && !aged && !explained;
        difference
    }

    /// Whether anything has changed.
    pub(super) fn is_some(&self) -> bool {
        self.moves() || self.disabled.is_some() || self.held.is_some() || self.lockout || self.policy || self.forgets()
    }

    /// Whether its backend or backend login has changed.
    pub(super) fn moves(&self) -> bool {
        self.moved.is_some() || self.login
    }

    /// Whether it counts towards the brake.
    pub(super) fn is_braked(&self) -> bool {
        self.moves() || self.disabled == Some(true)
    }

    /// Whether the cached decision is obsolete.
    pub(super) fn forgets(&self) -> bool {
        self.moves()
            || self.disabled.is_some()
            || self.held.is_some()
            || self.password
            || self.renamed
            || self.networks
            || self.other
            || self.unexplained
    }

    /// The metric labels, each once.
    pub(super) fn kinds(&self) -> Vec<DirectoryChange> {
        let kinds = [
            (self.moved.is_some(), DirectoryChange::Move),
            (self.login, DirectoryChange::Login),
            (self.disabled == Some(true), DirectoryChange::Disable),
            (self.disabled == Some(false), DirectoryChange::Enable),
            (self.held == Some(true), DirectoryChange::Hold),
            (self.held == Some(false), DirectoryChange::Release),
            (self.password, DirectoryChange::Password),
            (self.lockout || self.policy, DirectoryChange::Lockout),
            (self.renamed, DirectoryChange::Rename),
            (self.networks, DirectoryChange::Networks),
            (self.other, DirectoryChange::Other),
            (self.unexplained, DirectoryChange::Unexplained),
        ];
        kinds.into_iter().filter_map(|(is, kind)| is.then_some(kind)).collect()
    }
}

/// The newest known state of an entry.
#[derive(Debug, Clone, Copy)]
pub(super) enum Newest<'a> {
    /// This version is in force.
    Entry(&'a Entry),
    /// The entry is deleted.
    Deleted,
}

/// The consequence of the newest version of an entry for one of its sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Consequence {
    /// The session must be listed under another DN.
    pub(super) renamed: bool,
    /// Why the session must end, the most serious reason first; empty: it continues.
    pub(super) reasons: Vec<TerminationReason>,
}

/// What the newest version of an entry means for one of its sessions, compared with the version that the session was
/// logged in with. `now`: Unix seconds.
///
/// A session whose route changed by a reload alone continues: its entry leads to the same backend as
/// before.
pub(super) fn compare(
    session: &Session,
    basis: &SessionBasis,
    newest: Newest<'_>,
    routing: &Routing,
    now: u64,
) -> Consequence {
    let Newest::Entry(entry) = newest else {
        return Consequence { renamed: false, reasons: vec![TerminationReason::Deleted] };
    };
    let closed = entry.version.account_state(now);
    // An administrator may act for a mailbox that is closed: only one that was open then is closed by a change.
    let was_closed = basis.acting.is_some() && basis.entry.version.account_state(session.since).is_some();
    let closed = closed.filter(|_| !was_closed);
    let is_revoked = basis.acting.as_ref().is_some_and(|acting| match &acting.authority {
        Authority::Grant(value) => !entry.grants.iter().any(|grant| **grant == **value),
        Authority::Administrator => false,
    });
    let (led, leads) = (route_target(routing, &basis.entry), route_target(routing, entry));
    let is_elsewhere = led != leads && leads.as_ref().ok() != Some(&session.backend);
    let is_same_login = matches!(entry.logins.as_slice(), [login] if **login == *basis.backend_login);
    let is_renamed_there = basis.entry.logins != entry.logins && !is_same_login;
    let reasons = [
        // First: a client elsewhere learns nothing of the account. The networks of a user who acts for this one are its own.
        (basis.acting.is_none() && !entry.permits(session.client.address()), TerminationReason::Network),
        (entry.version.held, TerminationReason::Hold),
        (closed == Some(AccountState::Disabled), TerminationReason::Disabled),
        (closed == Some(AccountState::AccountExpired), TerminationReason::Expired),
        (basis.certificate.is_some_and(|certificate| !entry.lists(certificate)), TerminationReason::CertificateRemoved),
        (is_revoked, TerminationReason::GrantRevoked),
        (is_elsewhere || is_renamed_there, TerminationReason::Moved),
        (
            basis.acting.is_none() && basis.entry.version.password_changed != entry.version.password_changed,
            TerminationReason::PasswordChanged,
        ),
    ];
    let reasons = reasons.into_iter().filter_map(|(is, why)| is.then_some(why)).collect();
    Consequence { renamed: session.dn != entry.dn, reasons }
}

/// What the newest version of the entry of a user means for a session in which that user acts for another one: where
/// its own mail is does not count.
pub(super) fn compare_acting(session: &Session, acting: &UserActing, newest: Newest<'_>, now: u64) -> Consequence {
    let Newest::Entry(entry) = newest else {
        return Consequence { renamed: false, reasons: vec![TerminationReason::Deleted] };
    };
    let closed = entry.version.account_state(now);
    let renamed = acting.entry.dn != entry.dn;
    // After a rename the mailbox's entry names a DN or a login that is another entry's, or no one's.
    let is_revoked = match &acting.authority {
        Authority::Grant(value) if dn::is_dn(value) => !dn::is_same(value, &entry.dn),
        Authority::Grant(_) => acting.entry.logins != entry.logins,
        Authority::Administrator => false,
    };
    let reasons = [
        (!entry.permits(session.client.address()), TerminationReason::Network),
        (closed == Some(AccountState::Disabled), TerminationReason::Disabled),
        (closed == Some(AccountState::AccountExpired), TerminationReason::Expired),
        (
            acting.certificate.is_some_and(|certificate| !entry.lists(certificate)),
            TerminationReason::CertificateRemoved,
        ),
        (is_revoked, TerminationReason::GrantRevoked),
        (acting.entry.version.password_changed != entry.version.password_changed, TerminationReason::PasswordChanged),
    ];
    Consequence { renamed, reasons: reasons.into_iter().filter_map(|(is, why)| is.then_some(why)).collect() }
}

impl Consequence {
    /// Why the session ends, given the configuration and its protocol.
    pub(super) fn ends(&self, session: &Session, watch: &Watch) -> Option<TerminationReason> {
        let follows_moves = proto::by_name(&session.protocol).is_none_or(|protocol| protocol.follows_moves);
        let is_wanted =
            |why: &TerminationReason| is_wanted(*why, watch) && (*why != TerminationReason::Moved || follows_moves);
        self.reasons.iter().copied().find(is_wanted)
    }
}

/// Whether sessions end for this reason, according to the configuration.
pub(super) fn is_wanted(why: TerminationReason, watch: &Watch) -> bool {
    let choice = match why {
        TerminationReason::Moved => watch.on_move,
        TerminationReason::Disabled | TerminationReason::Expired | TerminationReason::Deleted => watch.on_disable,
        TerminationReason::PasswordChanged => watch.on_password_change,
        TerminationReason::Network
        | TerminationReason::CertificateRemoved
        | TerminationReason::GrantRevoked
        | TerminationReason::Hold
        | TerminationReason::Drain
        | TerminationReason::Kicked
        | TerminationReason::BackendDrained
        | TerminationReason::AddressReturned => OnChange::Close,
    };
    choice == OnChange::Close
}

/// The backend of an entry.
pub(super) fn route_target(routing: &Routing, entry: &Entry) -> RouteTarget {
    let route = routing::route(routing, entry);
    route.map(|route| route.backend.into()).map_err(|refusal: Refusal| refusal.label())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::credential::{CertificateDigest, Login};
    use crate::directory::EntryVersion;

    const NOW: u64 = 1_000;

    fn routing() -> Routing {
        Routing { default: None, backends: Vec::new() }
    }

    fn entry(change: impl FnOnce(&mut Entry)) -> Entry {
        let mut entry = Entry::for_tests("uid=a", &["server3"]);
        entry.version = EntryVersion { revision: Some("1".into()), login_activity: 1, ..EntryVersion::default() };
        change(&mut entry);
        entry
    }

    fn difference(exact: bool, change: impl FnOnce(&mut Entry)) -> Difference {
        let changed = entry(|entry| {
            entry.version.revision = Some("2".into());
            change(entry);
        });
        Difference::between(&entry(|_| {}), &changed, &routing(), exact, NOW)
    }

    #[test]
    fn session_of_a_user_who_acts_depends_on_both_entries() {
        let value = "uid=helper,o=x";
        let grant = Authority::Grant(value.into());
        let entry = Entry { logins: vec!["helper".to_owned()], ..Entry::for_tests(value, &[]) };
        let acting = |authority| {
            let name = Login::parse(b"helper").unwrap();
            Arc::new(UserActing { name, entry: Arc::new(entry.clone()), authority, certificate: None })
        };
        let mut basis = SessionBasis { acting: Some(acting(grant)), ..SessionBasis::for_tests("uid=a") };
        let mut session: Session = serde_json::from_value(serde_json::json!({
            "id": "06AAAAAAAAAAA", "login": "a", "dn": "uid=a", "client": "192.0.2.1", "protocol": "imap",
            "backend": "server3", "since": 0,
        }))
        .unwrap();
        session.acting = Some("helper".into());
        let mailbox = |change: fn(&mut Entry)| {
            let mut entry = Entry::for_tests("uid=a", &[]);
            entry.grants = vec!["other".to_owned(), "uid=helper,o=x".to_owned()];
            change(&mut entry);
            entry
        };
        let of_mailbox = |basis: &SessionBasis, entry: &Entry| {
            compare(&session, basis, Newest::Entry(entry), &routing(), NOW).reasons
        };
        assert_eq!(of_mailbox(&basis, &mailbox(|_| {})), []);
        let revoked = mailbox(|entry| entry.grants.truncate(1));
        assert_eq!(of_mailbox(&basis, &revoked), [TerminationReason::GrantRevoked]);
        let disabled = mailbox(|entry| entry.version.disabled = true);
        assert_eq!(of_mailbox(&basis, &disabled), [TerminationReason::Disabled]);
        let password = mailbox(|entry| entry.version.password_changed = Some(1));
        assert_eq!(of_mailbox(&basis, &password), [], "it is not this password that has opened the mailbox");

        let of_user = |acting: &UserActing, change: fn(&mut Entry)| {
            let mut entry = Entry { mail_hosts: vec!["server9".to_owned()], ..entry.clone() };
            change(&mut entry);
            compare_acting(&session, acting, Newest::Entry(&entry), NOW).reasons
        };
        let user = basis.acting.clone().unwrap();
        assert_eq!(of_user(&user, |_| {}), [], "its own mail does not count");
        assert_eq!(of_user(&user, |entry| entry.version.disabled = true), [TerminationReason::Disabled]);
        assert_eq!(of_user(&user, |entry| entry.dn = "uid=new,o=x".into()), [TerminationReason::GrantRevoked]);
        let password = of_user(&user, |entry| entry.version.password_changed = Some(1));
        assert_eq!(password, [TerminationReason::PasswordChanged]);
        let login: fn(&mut Entry) = |entry| entry.logins = vec!["other".to_owned()];
        assert_eq!(of_user(&user, login), [], "it is named by its DN");
        let by_name = acting(Authority::Grant("helper".into()));
        assert_eq!(of_user(&by_name, login), [TerminationReason::GrantRevoked]);
        let digest = CertificateDigest::of(b"one");
        let by_certificate = UserActing { certificate: Some(digest), ..UserActing::clone(&user) };
        assert_eq!(of_user(&by_certificate, |_| {}), [TerminationReason::CertificateRemoved]);
        let listing: fn(&mut Entry) = |entry| entry.certificates = vec![CertificateDigest::of(b"one")];
        assert_eq!(of_user(&by_certificate, listing), []);
        let gone = compare_acting(&session, &user, Newest::Deleted, NOW).reasons;
        assert_eq!(gone, [TerminationReason::Deleted]);

        // An administrator needs no grant, and may act for a mailbox that was disabled before.
        basis.acting = Some(acting(Authority::Administrator));
        assert_eq!(of_mailbox(&basis, &revoked), []);
        basis.entry = Arc::new(disabled.clone());
        assert_eq!(of_mailbox(&basis, &disabled), []);
        let renamed = of_user(&acting(Authority::Administrator), |entry| entry.dn = "uid=new,o=x".into());
        assert_eq!(renamed, []);
    }

    #[test]
    fn recorded_failed_login_is_no_change() {
        assert!(!difference(true, |entry| entry.version.login_activity = 2).is_some());
        // Where several modifications are reported as one, the password may be among them.
        assert_eq!(difference(false, |entry| entry.version.login_activity = 2).kinds(), [DirectoryChange::Unexplained]);
        // A lockout does not end sessions.
        let lockout = difference(true, |entry| (entry.version.login_activity, entry.version.lockout) = (2, 5));
        assert!(lockout.is_some() && !lockout.forgets() && !lockout.is_braked());
    }

    #[test]
    fn unexplained_change_is_read_again() {
        assert_eq!(difference(true, |_| {}).kinds(), [DirectoryChange::Unexplained]);
        // A policy that counts failures also records the first change of a password.
        assert!(
            !difference(false, |entry| (entry.version.login_activity, entry.version.has_policy_attributes) = (2, true))
                .is_some()
        );
        // Unless the server exposes when passwords change.
        let with = |version: &str| {
            entry(|entry| {
                (entry.version.revision, entry.version.password_changed) = (Some(version.into()), Some(7));
            })
        };
        assert!(!Difference::between(&with("1"), &with("2"), &routing(), true, NOW).is_some());
        assert!(!Difference::between(&entry(|_| {}), &entry(|_| {}), &routing(), true, NOW).is_some());
    }

    #[test]
    fn session_by_certificate_ends_when_the_entry_does_not_list_it() {
        let (one, other) = (CertificateDigest::of(b"one"), CertificateDigest::of(b"other"));
        let listing = |all: &[CertificateDigest]| entry(|entry| entry.certificates = all.to_vec());
        let reasons = |certificate, newest: &Entry| {
            let session = Session {
                id: crate::sessions::registry::Registry::default().next_id(),
                login: "alice".into(),
                dn: "uid=a".into(),
                acting: None,
                acting_dn: None,
                directory: None,
                acting_directory: None,
                client: "192.0.2.1".parse().unwrap(),
                protocol: "imap".into(),
                backend: "server3".into(),
                address: None,
                since: NOW,
            };
            let basis = SessionBasis { certificate, ..SessionBasis::for_tests("uid=a") };
            compare(&session, &basis, Newest::Entry(newest), &routing(), NOW).reasons
        };
        let removed = TerminationReason::CertificateRemoved;
        assert!(!reasons(Some(one), &listing(&[other, one])).contains(&removed));
        for left in [&[other][..], &[]] {
            assert!(reasons(Some(one), &listing(left)).contains(&removed));
            assert!(!reasons(None, &listing(left)).contains(&removed), "a session by password continues");
        }
        assert!(is_wanted(removed, &Watch::off()));
    }

    #[test]
    fn changed_values_are_changes() {
        let kinds = |change: fn(&mut Entry)| difference(true, change).kinds();
        assert_eq!(kinds(|entry| entry.version.password_changed = Some(1)), [DirectoryChange::Password]);
        assert_eq!(kinds(|entry| entry.version.disabled = true), [DirectoryChange::Disable]);
        assert_eq!(kinds(|entry| entry.version.held = true), [DirectoryChange::Hold]);
        assert_eq!(kinds(|entry| entry.version.policy_digest = 1), [DirectoryChange::Other]);
        assert_eq!(
            kinds(|entry| entry.networks = entry.clone().permitting(&["192.0.2.0/24"]).networks),
            [DirectoryChange::Networks]
        );
        assert_eq!(kinds(|entry| entry.dn = "uid=b".into()), [DirectoryChange::Rename]);
        assert_eq!(kinds(|entry| entry.logins.push("b".into())), [DirectoryChange::Login]);
        // Without such a backend the route is the same: none.
        assert_eq!(kinds(|entry| entry.mail_hosts = vec!["server4".into()]), [DirectoryChange::Other]);
        assert_eq!(kinds(|entry| entry.mail_hosts.clear()), [DirectoryChange::Move]);
    }
}

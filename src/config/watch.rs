//! The keys of the `directory` section that say how it is followed, and what follows from a change;
//! and the one list of the attributes whose values count.

use super::model::{Directory, DisabledBy, Find, OnChange, TemplatePart, Watch, WatchMode};
use super::names;
use super::raw::Section;
use super::units::{HOUR, SECOND};

/// Reads the keys.
pub(super) fn read(directory: &Section<'_>, service: Option<bool>) -> Option<Watch> {
    let modes =
        [("auto", WatchMode::Auto), ("sync", WatchMode::Sync), ("poll", WatchMode::Poll), ("off", WatchMode::Off)];
    let mode = directory.get("watch").map_or(Some(WatchMode::Auto), |node| {
        let mode = node.word(&modes);
        if matches!(mode, Some(WatchMode::Sync | WatchMode::Poll)) && service == Some(false) {
            node.problem(
                "with `user_dn` alone no account may read the directory: add `bind_dn` and `bind_password_file`",
            );
        }
        mode
    });
    let poll_interval = directory.duration("poll_interval", 30 * SECOND, SECOND..=HOUR);
    let words = [("close", OnChange::Close), ("keep", OnChange::Keep)];
    let choice = |key, default| directory.get(key).map_or(Some(default), |node| node.word(&words));
    let on_move = choice("on_move", OnChange::Close);
    let on_disable = choice("on_disable", OnChange::Close);
    let on_password_change = choice("on_password_change", OnChange::Keep);
    // One word only: whoever guesses a password five times must not end its owner's sessions.
    let on_lockout = directory.get("on_lockout").map_or(Some(()), |node| node.word(&[("keep", ())]));
    let brake = directory.get("brake").is_some().then(|| directory.integer("brake", 200, 1..=1_000_000));
    let hold_attribute = directory.get("hold_attribute").map(|node| node.parsed(names::attribute));
    let hold_timeout = directory.duration("hold_timeout", 8 * SECOND, SECOND / 10..=9 * SECOND);
    on_lockout?;
    Some(Watch {
        mode: mode?,
        poll_interval: poll_interval?,
        on_move: on_move?,
        on_disable: on_disable?,
        on_password_change: on_password_change?,
        brake: match brake {
            Some(limit) => Some(limit?),
            None => None,
        },
        hold_attribute: match hold_attribute {
            Some(name) => Some(name?),
            None => None,
        },
        hold_timeout: hold_timeout?,
    })
}

/// What the value of a watched attribute means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// The mail server.
    MailHost,
    /// The name at the backend.
    Login,
    /// Held while it has a value.
    Hold,
    /// It decides about a login in some other way.
    Decides,
    /// It changes with the password: pwdChangedTime, pwdLastSet.
    Password,
    /// What its owner may use.
    Allow,
    /// There while the account is locked after wrong passwords.
    Lockout,
    /// pwdReset, an administrator has set the password; pwdPolicySubentry, which policy it has.
    Policy,
    /// pwdFailureTime: wrong passwords, counted by a policy of the draft.
    Failures,
    /// The same, counted by another server.
    Count,
    /// pwdAccountLockedTime: a lock-out, or an administrator's lock (draft-behera section 5.3.3).
    Locked,
    /// nsAccountLock: switched off when true.
    Switch,
    /// userAccountControl: switched off when bit 2 is set.
    Control,
    /// accountExpires: expired from then on, in steps of 100 ns since 1601; 0 and the largest: never.
    Expires,
    /// shadowExpire: expired from then on, in days since 1970; none above 0: never.
    ExpiresDay,
    /// krbPrincipalExpiration: expired from then on, a generalized time.
    ExpiresTime,
    /// Logins, good and bad, change it: it explains why an entry was modified.
    Noise,
    /// It stays the same when the entry gets another DN, as text of 32 hexadecimal digits.
    Id,
    /// The same, as 16 bytes.
    Guid,
    /// entryCSN, which orders versions of an entry.
    Csn,
    /// modifyTimestamp, which orders them by the second.
    Modified,
    /// Who modified the entry last.
    Modifier,
}

/// The attributes that show whether a rejected password may be correct by now.
const PASSWORDS: [(&str, Meaning); 12] = [
    ("pwdChangedTime", Meaning::Password),
    ("pwdLastSet", Meaning::Password),
    ("passwordExpirationTime", Meaning::Password),
    ("lockoutTime", Meaning::Lockout),
    ("accountUnlockTime", Meaning::Lockout),
    ("pwdReset", Meaning::Policy),
    ("pwdPolicySubentry", Meaning::Policy),
    ("pwdFailureTime", Meaning::Failures),
    ("badPwdCount", Meaning::Count),
    ("passwordRetryCount", Meaning::Count),
    ("entryCSN", Meaning::Csn),
    ("modifyTimestamp", Meaning::Modified),
];
/// The attributes that look-ups read, too, where the directory is followed.
const FOLLOWED: [(&str, Meaning); 3] =
    [("entryUUID", Meaning::Id), ("nsUniqueId", Meaning::Id), ("objectGUID", Meaning::Guid)];
/// More of those that only explain.
const NOISE: [&str; 5] = ["pwdLastSuccess", "authTimestamp", "badPasswordTime", "lastLogon", "logonCount"];

impl DisabledBy {
    fn watched(self) -> (String, Meaning) {
        let meaning = match self {
            Self::NsAccountLock => Meaning::Switch,
            Self::UserAccountControl => Meaning::Control,
            Self::PwdAccountLockedTime => Meaning::Locked,
            Self::AccountExpires => Meaning::Expires,
            Self::ShadowExpire => Meaning::ExpiresDay,
            Self::KrbPrincipalExpiration => Meaning::ExpiresTime,
        };
        let name = Self::ALL.iter().find(|(_, one)| *one == self).map_or("", |(name, _)| *name);
        (name.to_owned(), meaning)
    }
}

impl Directory {
    /// The attributes that are read of an entry, each with its meaning: what a decision needs and,
    /// where the directory is followed, everything whose change counts. An attribute may have several
    /// meanings.
    #[must_use]
    pub fn watched(&self) -> Vec<(String, Meaning)> {
        let mut watched = vec![(self.mail_host_attribute.clone(), Meaning::MailHost)];
        watched.extend(self.login_attribute.clone().map(|name| (name, Meaning::Login)));
        watched.extend(self.watch.hold_attribute.clone().map(|name| (name, Meaning::Hold)));
        watched.extend(self.allow.attribute.clone().map(|name| (name, Meaning::Allow)));
        watched.extend(self.disabled_by.iter().map(|one| one.watched()));
        // Where the name alone says whom to bind, nothing is read before the bind.
        if matches!(self.find, Find::Search { .. }) || self.is_followed() {
            watched.extend(PASSWORDS.map(|(name, meaning)| (name.to_owned(), meaning)));
            if !self.disabled_by.contains(&DisabledBy::PwdAccountLockedTime) {
                watched.push(("pwdAccountLockedTime".to_owned(), Meaning::Lockout));
            }
        }
        if self.is_followed() {
            watched.extend(FOLLOWED.map(|(name, meaning)| (name.to_owned(), meaning)));
            watched.extend(NOISE.map(|name| (name.to_owned(), Meaning::Noise)));
        }
        watched
    }

    /// Whether the directory is followed: wanted, and possible with an account that may read.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        let may_read = match &self.find {
            Find::Search { .. } => true,
            Find::UserDn { service, .. } | Find::Principal { service, .. } => service.is_some(),
        };
        self.watch.mode != WatchMode::Off && may_read
    }

    /// Where the users are: the base of searches, or what stands behind the last placeholder of
    /// `user_dn`.
    #[must_use]
    pub fn users_base(&self) -> String {
        match &self.find {
            Find::Search { base, .. } | Find::Principal { base, .. } => base.clone(),
            Find::UserDn { template, .. } => match template.parts.last() {
                // The rest of the RDN that the placeholder stands in ends with its comma.
                Some(TemplatePart::Text(text)) => {
                    text.split_once(',').map(|(_, base)| base.to_owned()).unwrap_or_default()
                }
                Some(TemplatePart::Login | TemplatePart::Local | TemplatePart::Domain) | None => String::new(),
            },
        }
    }

    /// A filter for every user that the configured one could find: each placeholder becomes `*`. Where
    /// that is no filter, every entry.
    #[must_use]
    pub fn users_filter(&self) -> String {
        let every = || "(objectClass=*)".to_owned();
        let Find::Search { filter, .. } = &self.find else { return every() };
        let mut text = String::new();
        for part in &filter.parts {
            match part {
                TemplatePart::Text(fixed) => text.push_str(fixed),
                TemplatePart::Login | TemplatePart::Local | TemplatePart::Domain => {
                    // Two adjacent stars are invalid, and only an equality has stars.
                    let operator =
                        text.rfind('=').and_then(|at| at.checked_sub(1)).and_then(|at| text.as_bytes().get(at));
                    if matches!(operator, Some(b':' | b'~' | b'<' | b'>')) {
                        return every();
                    }
                    if !text.ends_with('*') {
                        text.push('*');
                    }
                }
            }
        }
        if ldap3::parse_filter(&text).is_ok() { text } else { every() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sound_directory;
    use super::*;

    #[test]
    fn filter_for_all_users_has_wildcards_for_names() {
        for (filter, all) in [
            ("(uid={login})", "(uid=*)"),
            ("(|(uid={login})(mail={login}))", "(|(uid=*)(mail=*))"),
            ("(&(objectClass=user)(mail={local}@{domain})(!(x=1)))", "(&(objectClass=user)(mail=*@*)(!(x=1)))"),
            ("(mail={local}{domain})", "(mail=*)"),
            ("(cn:caseExactMatch:={login})", "(objectClass=*)"),
            ("(uid>={login})", "(objectClass=*)"),
        ] {
            let directory = sound_directory(&format!("base: 'dc=x', filter: '{filter}'"));
            assert_eq!(directory.users_filter(), all);
        }
    }

    #[test]
    fn template_yields_the_base_of_the_users() {
        let account = "bind_dn: 'cn=u', bind_password_file: p";
        for (template, base) in [
            ("uid={local},ou=people,dc=example,dc=com", "ou=people,dc=example,dc=com"),
            ("uid={local}+c=de,ou=people", "ou=people"),
            ("uid={local},dc={domain}", ""),
        ] {
            let directory = sound_directory(&format!("user_dn: '{template}', {account}"));
            assert_eq!((directory.users_base().as_str(), directory.is_followed()), (base, true));
            assert_eq!(directory.users_filter(), "(objectClass=*)");
        }
    }

    #[test]
    fn polled_search_requests_the_attributes_of_a_decision() {
        let names = |keys: &str| {
            let watched = sound_directory(&format!("base: 'dc=x', filter: '(uid={{login}})', {keys}")).watched();
            let (passwords, names): (Vec<_>, Vec<_>) = watched
                .into_iter()
                .map(|(name, _)| name)
                .partition(|name| PASSWORDS.iter().any(|(known, _)| name == known));
            // Whether a refused password may be right by now.
            assert_eq!(passwords.len(), PASSWORDS.len());
            let (disabled, names): (Vec<_>, Vec<_>) =
                names.into_iter().partition(|name| DisabledBy::ALL.iter().any(|(known, _)| name == known));
            assert_eq!(disabled, ["nsAccountLock", "userAccountControl", "pwdAccountLockedTime", "accountExpires"]);
            names
        };
        assert_eq!(names("watch: off"), ["mailHost"]);
        let keys = "watch: off, login_attribute: uid, hold_attribute: hold, allow_attribute: allow";
        assert_eq!(names(keys), ["mailHost", "uid", "hold", "allow"]);
        assert!(names("watch: auto").contains(&"entryUUID".to_owned()));
        let alone = sound_directory("user_dn: 'uid={login},dc=x'");
        assert!(!alone.is_followed() && alone.watched().len() == 5);
        let none = sound_directory("user_dn: 'uid={login},dc=x', disabled_by: []");
        assert_eq!(none.watched().len(), 1);
        // A permanent lock is a lockout then, which is the reason of a rejected password.
        let other = sound_directory("base: 'dc=x', filter: '(uid={login})', disabled_by: [shadowexpire]");
        let watched = other.watched();
        let meaning = |name: &str| watched.iter().find(|(known, _)| known == name).map(|(_, meaning)| *meaning);
        assert_eq!(meaning("pwdAccountLockedTime"), Some(Meaning::Lockout));
        assert_eq!(meaning("shadowExpire"), Some(Meaning::ExpiresDay));
        assert_eq!(meaning("nsAccountLock"), None);
    }
}

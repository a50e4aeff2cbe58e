//! The `directory` section: servers, and how a login name becomes an entry.

use std::collections::BTreeMap;
use std::time::Duration;

use super::model::{Allow, Balance, Canary, Connections, Directory, DisabledBy, Find, ServiceAccount};
use super::raw::{Node, Section};
use super::section::{certificate, groups};
use super::units::{DAY, HOUR, KIB, MIB, MINUTE, SECOND};
use super::{directory_servers, names, watch};
use crate::outcome::AccountState;
use crate::proto::ldap::template::{self, TemplatePart, UserName};
use crate::proto::ldap::{dn, filter};
use crate::proto::{PROTOCOLS, Protocol};

/// The section as far as it could be read.
pub(super) struct Draft {
    /// All of it, if it is sound.
    pub(super) directory: Option<Directory>,
    /// What other sections are checked against, even if something else here is wrong.
    pub(super) facts: Facts,
}

/// What other sections are checked against.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// The time of a whole decision, if it could be read.
    pub(super) timeout: Option<Duration>,
    /// Whether the directory gives the name at the backend.
    pub(super) login_attribute: bool,
    /// Whether the directory names the users that may act for a mailbox.
    pub(super) grant_attribute: bool,
    /// Whether usher itself may read entries.
    pub(super) may_read: bool,
}

/// Reads the section.
pub(super) fn read(directory: &Section<'_>) -> Draft {
    let starttls = directory.flag("starttls", false);
    let plaintext = directory.flag("plaintext", false);
    let srv_targets = directory_servers::srv_targets(directory);
    let servers = directory_servers::read(directory, starttls, plaintext);
    let resolver = directory_servers::resolver(directory);
    let ca = directory.get("ca").map(|node| node.path());
    let client_certificate = directory.get("client_certificate").map(|node| certificate(&node));
    let groups = groups(directory);
    let find = find(directory);
    let mail_host_attribute = directory.get("mail_host_attribute");
    let mail_host_attribute = mail_host_attribute.map_or(Some("mailHost".into()), |node| node.parsed(names::attribute));
    let login_attribute = directory.get("login_attribute").map(|node| node.parsed(names::attribute));
    let networks_attribute = directory.get("networks_attribute").map(|node| node.parsed(names::attribute));
    let grant_attribute = directory.get("grant_attribute").map(|node| node.parsed(names::attribute));
    let timeout = directory.duration("timeout", 5 * SECOND, SECOND / 10..=10 * SECOND);
    // A shorter `timeout` lowers this default, so that only one of them has to be set.
    let most = timeout.and_then(|whole| u64::try_from(whole.as_millis()).ok()).unwrap_or(10 * SECOND);
    let attempt_timeout = directory.duration("attempt_timeout", (6 * SECOND / 5).min(most), SECOND / 20..=10 * SECOND);
    if let (Some(whole), Some(one)) = (timeout, attempt_timeout)
        && one > whole
    {
        directory.problem("attempt_timeout", "longer than `timeout`, of which it is a part: shorten it");
    }
    let max_message = directory.size("max_message", MIB, 16 * KIB..=64 * MIB);
    let allow = allow(directory);
    let password_filter = directory.get("password_filter").map(|node| node.parsed(filter::fixed));
    if password_filter.is_some() && find.as_ref().is_some_and(|find| !may_read(find)) {
        directory.problem(
            "password_filter",
            "needs `bind_dn`: the service account looks the entry up before a password is sent",
        );
    }
    let words = [("first", Balance::First), ("round_robin", Balance::RoundRobin)];
    let balance = directory.get("balance").map_or(Some(Balance::First), |node| node.word(&words));
    let connections = directory.section("connections", connections).flatten();
    let canary = directory.get("canary").map(|node| node.section(|section| canary(section, find.as_ref())).flatten());
    if networks_attribute.is_some() && canary.is_none() {
        let message = format!(
            "without `{}.canary`, a lost access rule for this attribute would let all users in from everywhere: name an \
             entry that has a value of it",
            directory.key()
        );
        directory.warn("networks_attribute", message);
    }
    if networks_attribute.is_some() && find.as_ref().is_some_and(|find| !may_read(find)) {
        let message = "without `bind_dn` the attribute is read as the user: a user that cannot read it is let in from \
                       everywhere";
        directory.warn("networks_attribute", message);
    }
    let reveal_account_state = directory.flag("reveal_account_state", false);
    let disabled_by = directory.get("disabled_by").map(|node| disabled_by(&node));
    let results = results(directory);
    let may_read = find.as_ref().map(may_read);
    let watch = watch::read(directory, may_read);
    if grant_attribute.is_some() && may_read == Some(false) {
        let message =
            "with `user_dn`, only a service account can look up the mailbox: give `bind_dn` one, or remove this";
        directory.problem("grant_attribute", message);
    }
    let facts = Facts {
        timeout,
        login_attribute: login_attribute.is_some(),
        grant_attribute: grant_attribute.is_some(),
        // What could not be read is a mistake of its own.
        may_read: may_read.unwrap_or(true),
    };
    let all = || {
        Some(Directory {
            name: Directory::DEFAULT_NAME.to_owned(),
            key: directory.key().to_owned(),
            domains: Vec::new(),
            // Set with those of all directories.
            windows_domains: Vec::new(),
            servers: servers?,
            srv_targets: srv_targets?,
            resolver: resolver?,
            starttls: starttls?,
            ca: ca.flatten(),
            client_certificate: client_certificate.flatten(),
            groups: groups?,
            plaintext: plaintext?,
            find: find?,
            mail_host_attribute: mail_host_attribute?,
            login_attribute: login_attribute.flatten(),
            networks_attribute: flat(networks_attribute)?,
            grant_attribute: flat(grant_attribute)?,
            allow: allow?,
            password_filter: flat(password_filter)?,
            timeout: timeout?,
            attempt_timeout: attempt_timeout?,
            max_message: max_message?,
            balance: balance?,
            connections: connections?,
            canary: canary.flatten(),
            reveal_account_state: reveal_account_state?,
            disabled_by: disabled_by.unwrap_or_else(|| Some(DisabledBy::DEFAULT.to_vec()))?,
            watch: watch?,
            results: results?,
            // Set with the listeners.
            mail_filter: None,
            reads_certificates: false,
            claim_attributes: Vec::new(),
            other_filters: Vec::new(),
        })
    };
    Draft { directory: all(), facts }
}

/// `allow_attribute`, `allow_values` and `allow_filter`.
fn allow(directory: &Section<'_>) -> Option<Allow> {
    let attribute = directory.get("allow_attribute").map(|node| node.parsed(names::attribute));
    let given = directory.get("allow_values");
    if let (Some(node), None) = (&given, &attribute) {
        node.problem("needs `allow_attribute`: the attribute that has these values");
    }
    let of_protocol = |values: &Section<'_>, protocol: &Protocol| match values.get(protocol.name) {
        Some(node) => {
            let items = node.one_or_more()?;
            Some(items.iter().filter_map(|item| item.text().map(str::to_lowercase)).collect())
        }
        None => Some(vec![protocol.name.to_owned()]),
    };
    let read = |values: &Section<'_>| {
        let values = PROTOCOLS.iter().map(|protocol| (protocol.name, of_protocol(values, protocol)));
        let values: Vec<_> = values.collect();
        values.into_iter().map(|(name, values)| Some((name, values?))).collect::<Option<BTreeMap<_, _>>>()
    };
    let values = directory.section("allow_values", read).flatten();
    let filter = directory.get("allow_filter").map(|node| node.parsed(filter::fixed));
    Some(Allow { attribute: flat(attribute)?, values: values?, filter: flat(filter)? })
}

/// The attributes that count, each once; an empty list: none does.
fn disabled_by(node: &Node<'_>) -> Option<Vec<DisabledBy>> {
    let (mut list, mut sound) = (Vec::new(), true);
    for item in node.any_list()? {
        match item.word(&DisabledBy::ALL) {
            Some(one) if list.contains(&one) => {
                item.problem("listed twice: keep one");
                sound = false;
            }
            Some(one) => list.push(one),
            None => sound = false,
        }
    }
    sound.then_some(list)
}

/// Absent is sound; a value that could not be read is not.
fn flat<T>(read: Option<Option<T>>) -> Option<Option<T>> {
    match read {
        Some(None) => None,
        Some(value) => Some(value),
        None => Some(None),
    }
}

/// Results of a bind that some servers give instead of a policy control.
const RESULTS: [(&str, u32); 3] = [("result_19", 19), ("result_50", 50), ("result_53", 53)];

/// The results that mean a state of the account; the others count as an outage.
fn results(directory: &Section<'_>) -> Option<BTreeMap<u32, AccountState>> {
    let mut words = vec![("unavailable", None)];
    words.extend(AccountState::ALL.map(|state| (state.label(), Some(state))));
    let (mut results, mut sound) = (BTreeMap::new(), true);
    for (key, code) in RESULTS {
        let Some(node) = directory.get(key) else { continue };
        match node.word(&words) {
            Some(Some(state)) => drop(results.insert(code, state)),
            Some(None) => {}
            None => sound = false,
        }
    }
    sound.then_some(results)
}

/// `base` and `filter`, or `user_dn`.
fn find(directory: &Section<'_>) -> Option<Find> {
    let service = service(directory);
    let given = ["base", "filter", "user_dn"].map(|key| directory.get(key));
    let [base_node, filter_node, user_dn_node] = &given;
    let base = base_node.as_ref().map(|node| node.parsed(dn::base_dn));
    let filter = filter_node.as_ref().map(|node| node.parsed(template::parse_filter));
    let user_dn = user_dn_node.as_ref().map(|node| node.parsed(template::parse_user_dn));
    match (base, filter, user_dn) {
        (Some(base), None, Some(Some(UserName::Principal(template)))) => {
            Some(Find::Principal { template, base: base?, service })
        }
        (None, None, Some(Some(UserName::Principal(_)))) => {
            directory.problem(
                "user_dn",
                "a principal name needs `base`: the entry with this userPrincipalName is read there",
            );
            None
        }
        (Some(base), Some(filter), None) => Some(Find::Search { service, base: base?, filter: filter? }),
        (None, None, Some(Some(UserName::Dn(template)))) => Some(Find::UserDn { template, service }),
        (_, None, Some(None)) => None,
        (None, None, None) => {
            directory.problem("", "how users are found is missing: add `base` and `filter`, or `user_dn`");
            None
        }
        (_, _, Some(_)) => {
            directory.problem("user_dn", "replaces `base` and `filter`: keep either this or those");
            None
        }
        (Some(_), None, None) => {
            directory.problem("filter", "missing: `base` needs one, such as \"(uid={login})\"");
            None
        }
        (None, Some(_), None) => {
            directory.problem("base", "missing: `filter` needs one, such as ou=people,dc=example,dc=com");
            None
        }
    }
}

/// Whether usher itself may read entries: as its account, or anonymously.
const fn may_read(find: &Find) -> bool {
    match find {
        Find::Search { .. } => true,
        Find::UserDn { service, .. } | Find::Principal { service, .. } => service.is_some(),
    }
}

/// `bind_dn` and `bind_password_file`; without both, usher searches anonymously.
fn service(directory: &Section<'_>) -> Option<ServiceAccount> {
    let (dn, file) = (directory.get("bind_dn"), directory.get("bind_password_file"));
    match (&dn, &file) {
        (Some(_), None) => {
            directory.problem("bind_password_file", "missing: name the file with the password of `bind_dn`")
        }
        (None, Some(_)) => directory.problem("bind_dn", "missing: name the account of `bind_password_file`"),
        (Some(_), Some(_)) | (None, None) => {}
    }
    let dn = dn.as_ref().and_then(|node| node.parsed(dn::bind_name));
    let password_file = file.as_ref().and_then(Node::path);
    Some(ServiceAccount { dn: dn?, password_file: password_file? })
}

fn connections(connections: &Section<'_>) -> Option<Connections> {
    let max = connections.integer("max", 16, 1..=1_000);
    // One is ready by default; a smaller `max` than `min` can only be the operator's own.
    let min = connections.integer("min", 1, 0..=1_000);
    if let (Some(min), Some(max)) = (min, max)
        && min > max
    {
        connections.problem("min", "more than `max`: fewer can be kept ready, or more allowed");
    }
    let idle_timeout = connections.duration("idle_timeout", 30 * SECOND, SECOND / 10..=HOUR);
    let max_age = connections.duration("max_age", 30 * MINUTE, SECOND..=DAY);
    let max_operations = connections.integer("max_operations", 100_000, 1..=10_000_000);
    Some(Connections {
        min: min?,
        max: max?,
        idle_timeout: idle_timeout?,
        max_age: max_age?,
        max_operations: max_operations?,
    })
}

/// An entry that usher could never ask for would put every server out of use.
fn canary(canary: &Section<'_>, find: Option<&Find>) -> Option<Canary> {
    let login = canary.required("login", "the login name of an entry that every server must return");
    let mail_host = canary.required("mail_host", "the mail host of that entry, which must not change");
    let filled = |node: Node<'_>| {
        let text = node.text()?;
        if text.is_empty() || text.len() > 512 {
            node.problem("a name has 1 to 512 bytes");
            return None;
        }
        Some(text.to_owned())
    };
    let (login, mail_host) = (login.and_then(filled), mail_host.and_then(filled));
    let template = find.map(|find| match find {
        Find::Search { filter, .. } => filter,
        Find::UserDn { template, .. } | Find::Principal { template, .. } => template,
    });
    if let (Some(login), Some(template)) = (&login, template) {
        let (local, domain) = login.rsplit_once('@').unwrap_or((login, ""));
        let lacks = |part: &TemplatePart| match part {
            TemplatePart::Text(_) | TemplatePart::Login => false,
            TemplatePart::Local => local.is_empty(),
            TemplatePart::Domain => domain.is_empty(),
        };
        if template.parts.iter().any(lacks) {
            canary.problem(
                "login",
                "lacks a part that the template uses ({local} or {domain}): write it as a client would",
            );
        }
    }
    if let Some(Find::UserDn { service: None, .. } | Find::Principal { service: None, .. }) = find {
        canary.problem("", "with `user_dn`, only a service account can read it: give `bind_dn` one, or remove this");
    }
    Some(Canary { login: login?, mail_host: mail_host? })
}

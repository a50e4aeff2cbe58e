//! The `directories` section, or `directory` for one alone: which names each has, and what must fit between them.

use std::time::Duration;

use super::directory::{self, Facts};
use super::model::{Directory, DomainPattern, Find, WindowsDomain};
use super::names;
use super::raw::{Node, Section, Unique};
use crate::proto::ldap::template::{self, TemplatePart};

/// The directories as far as they could be read.
#[derive(Default)]
pub(super) struct Drafts {
    /// All of them, if they are sound.
    pub(super) directories: Option<Vec<Directory>>,
    /// Their names, even if something else is wrong.
    pub(super) names: Vec<String>,
    /// What other sections are checked against.
    pub(super) facts: AllFacts,
}

/// What other sections are checked against, even if something else in a directory is wrong.
#[derive(Debug, Default)]
pub(super) struct AllFacts {
    /// The time of the longest decision, if it could be read.
    pub(super) timeout: Option<Duration>,
    /// The path of a directory that does not give the name at the backend.
    pub(super) without_login: Option<String>,
    /// The path of a directory that names the users which may act for a mailbox.
    pub(super) with_grants: Option<String>,
    /// The path of a directory in which usher itself may not read entries.
    pub(super) without_reading: Option<String>,
}

impl AllFacts {
    fn add(&mut self, key: &str, facts: &Facts) {
        self.timeout = self.timeout.max(facts.timeout);
        let first = |place: &mut Option<String>, is: bool| {
            if is && place.is_none() {
                *place = Some(key.to_owned());
            }
        };
        first(&mut self.without_login, !facts.login_attribute);
        first(&mut self.with_grants, facts.grant_attribute);
        first(&mut self.without_reading, !facts.may_read);
    }
}

/// Reads whichever of the two is there.
pub(super) fn read(root: &Section<'_>) -> Drafts {
    let list = root.get("directories");
    if let (Some(node), Some(_)) = (&list, root.get("directory")) {
        node.problem("takes the place of `directory`: move that into the list, or remove this");
        // Mistakes in the other one are shown with it.
        root.section("directory", directory::read);
        return Drafts::default();
    }
    let Some(node) = list else {
        let mut drafts = Drafts { names: vec![Directory::DEFAULT_NAME.to_owned()], ..Drafts::default() };
        let Some(draft) = root.section("directory", directory::read) else { return drafts };
        drafts.facts.add("directory", &draft.facts);
        return Drafts { directories: draft.directory.map(|one| vec![one]), ..drafts };
    };
    let mut drafts = Drafts::default();
    let Some(items) = node.list() else { return drafts };
    let is_several = items.len() > 1;
    let mut unique = Unique::default();
    let mut read = |item: &Node<'_>| {
        item.section(|section| {
            let name =
                section.required("name", "what this directory is called in the log and in metrics, such as corp");
            let name = name.and_then(|node| {
                let name = node.parsed(names::directory_name)?;
                unique.check(&name, &node);
                Some(name)
            });
            let domains = domains(section, is_several);
            let draft = directory::read(section);
            drafts.facts.add(item.key(), &draft.facts);
            drafts.names.extend(name.clone());
            Some(Directory { name: name?, domains: domains?, ..draft.directory? })
        })
        .flatten()
    };
    let all: Vec<_> = items.iter().map(&mut read).collect();
    let all: Option<Vec<_>> = all.into_iter().collect();
    drafts.directories = all.filter(|all| shared(&items, all));
    drafts
}

/// Reads `windows_domains`, and gives each to its directory.
pub(super) fn windows(root: &Section<'_>, directories: Option<&mut [Directory]>, names: &[String]) {
    let Some(entries) = root.get("windows_domains").and_then(|node| node.entries()) else { return };
    let mut unique = Unique::default();
    let mut read = Vec::new();
    for (name, node) in entries {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !(1..=15).contains(&name.len()) || !name.bytes().all(is_part) {
            node.problem("write the NetBIOS name of a domain: 1 to 15 letters, digits, `-`, `_`, `.`");
        }
        unique.check(&name.to_ascii_lowercase(), &node);
        let domain = node.section(|section| {
            let directory = match (section.get("directory"), names) {
                (Some(node), _) => named(&node, names),
                (None, [only]) => Some(only.clone()),
                (None, _) => {
                    section.problem(
                        "directory",
                        format!("missing: which directory has its users, of {}", names.join(", ")),
                    );
                    None
                }
            };
            let hint = "how a user of it is found, such as \"(sAMAccountName={local})\"";
            let filter = section.required("filter", hint).and_then(|node| {
                let filter = node.parsed(template::parse_filter)?;
                if filter.parts.iter().any(|part| matches!(part, TemplatePart::Login | TemplatePart::Domain)) {
                    node.problem("write {local}: what is behind the backslash; there is no other part");
                    return None;
                }
                Some(filter)
            });
            Some((directory?, filter?))
        });
        read.extend(domain.flatten().map(|(directory, filter)| (node, directory, name.to_ascii_lowercase(), filter)));
    }
    let directories = directories.unwrap_or_default();
    for (node, named, name, filter) in read {
        let Some(directory) = directories.iter_mut().find(|one| one.name == named) else { continue };
        let key = &directory.key;
        if directory.find.filter().is_none() {
            node.problem(format!("a Windows name is searched for: give `{key}` a `base` and a `filter`"));
        }
        if directory.login_attribute.is_none() {
            node.problem(format!("needs `{key}.login_attribute`: a Windows name is no name at a mail server"));
        }
        directory.windows_domains.push(WindowsDomain { name, filter });
    }
}

/// The domains of a directory's users.
fn domains(section: &Section<'_>, is_several: bool) -> Option<Vec<DomainPattern>> {
    let Some(node) = section.get("domains") else {
        if !is_several {
            return Some(Vec::new());
        }
        let message = "missing: the domain of a login name chooses among several directories; list those of this one, \
                       such as [example.com, \"*.example.org\"], with \"\" for names without one";
        section.problem("domains", message);
        return None;
    };
    let items = node.one_or_more()?;
    let mut unique = Unique::default();
    let read = |item: &Node<'_>| {
        let pattern = item.parsed(names::domain_pattern)?;
        unique.check(&item.text()?.to_ascii_lowercase(), item);
        Some(pattern)
    };
    let patterns: Vec<_> = items.iter().map(read).collect();
    patterns.into_iter().collect()
}

/// A name that two directories may have is searched in both: usher itself has to be able to.
fn shared(items: &[Node<'_>], all: &[Directory]) -> bool {
    let mut sound = true;
    for (item, one) in items.iter().zip(all) {
        let can_search = matches!(one.find, Find::Search { .. }) || one.find.service().is_some();
        let with = all.iter().find(|other| other.name != one.name && overlap(&one.domains, &other.domains));
        if let Some(other) = with.filter(|_| !can_search) {
            item.problem(format!(
                "shares a domain with {}, so that a name is searched in both before a password is sent: give `bind_dn` \
                 an account, or use `base` and `filter`",
                other.name
            ));
            sound = false;
        }
    }
    sound
}

/// Whether there is a name of both.
fn overlap(one: &[DomainPattern], other: &[DomainPattern]) -> bool {
    let below = |domain: &str, suffix: &str| domain.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'));
    let meet = |one: &DomainPattern, other: &DomainPattern| match (one, other) {
        (DomainPattern::None, DomainPattern::None) => true,
        (DomainPattern::Exact(one), DomainPattern::Exact(other)) => one == other,
        (DomainPattern::Exact(domain), DomainPattern::Suffix(suffix))
        | (DomainPattern::Suffix(suffix), DomainPattern::Exact(domain)) => below(domain, suffix),
        (DomainPattern::Suffix(one), DomainPattern::Suffix(other)) => {
            one == other || below(one, other) || below(other, one)
        }
        (DomainPattern::None, _) | (_, DomainPattern::None) => false,
    };
    one.iter().any(|one| other.iter().any(|other| meet(one, other)))
}

/// The directory that a key of another section names.
pub(super) fn named(node: &Node<'_>, names: &[String]) -> Option<String> {
    let name = node.text()?;
    if names.iter().any(|known| known == name) {
        return Some(name.to_owned());
    }
    node.problem(format!("no directory has this name: write one of {}", names.join(", ")));
    None
}

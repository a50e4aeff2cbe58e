//! What is asked of a directory with these settings: the requests for a login name, the attributes that are read, and
//! the users that a search for all of them finds.

use std::sync::Arc;

use crate::base::credential::Login;
use crate::config::{self, DisabledBy, Find, WindowsDomain};
use crate::directory::Realm;
use crate::directory::ldap::query::{Scope, SearchRequest};
use crate::directory::ldap::schema::Attributes;
use crate::proto::ldap::attributes::{
    ALIASED, AttributeRole, CERTIFICATES, IDENTIFIERS, LOGIN_ACTIVITY, PASSWORDS, SECRETS,
};
use crate::proto::ldap::filter::{self, ANY_ENTRY};
use crate::proto::ldap::naming::{self, Naming};
use crate::proto::ldap::template::{self, Template};
use crate::telemetry::labels::DirectoryOperation;

/// The attribute that disables an account, with its role.
fn disabling(attribute: DisabledBy) -> (String, AttributeRole) {
    let role = match attribute {
        DisabledBy::NsAccountLock => AttributeRole::DisabledFlag,
        DisabledBy::UserAccountControl => AttributeRole::UserAccountControl,
        DisabledBy::PwdAccountLockedTime => AttributeRole::Locked,
        DisabledBy::AccountExpires => AttributeRole::Expires,
        DisabledBy::ShadowExpire => AttributeRole::ExpiresDay,
        DisabledBy::KrbPrincipalExpiration => AttributeRole::ExpiresTime,
    };
    let name = DisabledBy::ALL.iter().find(|(_, one)| *one == attribute).map_or("", |(name, _)| *name);
    (name.to_owned(), role)
}

/// The attributes that are read of an entry, each with its role: those of a login decision and, if the directory is
/// watched, those whose changes count. An attribute may have several roles.
pub(super) fn attributes_of(settings: &config::Directory) -> Vec<(String, AttributeRole)> {
    let mut read = vec![(settings.mail_host_attribute.clone(), AttributeRole::MailHost)];
    read.extend(settings.login_attribute.clone().map(|name| (name, AttributeRole::Login)));
    read.extend(settings.grant_attribute.clone().map(|name| (name, AttributeRole::Grant)));
    read.extend(settings.watch.hold_attribute.clone().map(|name| (name, AttributeRole::Hold)));
    read.extend(settings.networks_attribute.clone().map(|name| (name, AttributeRole::Networks)));
    read.extend(settings.allow.attribute.clone().map(|name| (name, AttributeRole::Allow)));
    if settings.reads_certificates {
        read.push((CERTIFICATES.to_owned(), AttributeRole::Certificate));
    }
    read.extend(settings.disabled_by.iter().map(|attribute| disabling(*attribute)));
    // If the name alone determines the bind DN, nothing is read before the bind.
    if matches!(settings.find, Find::Search { .. }) || settings.is_followed() {
        read.extend(PASSWORDS.map(|(name, role)| (name.to_owned(), role)));
        if !settings.disabled_by.contains(&DisabledBy::PwdAccountLockedTime) {
            read.push(("pwdAccountLockedTime".to_owned(), AttributeRole::Lockout));
        }
    }
    if settings.is_followed() {
        // The server evaluates the filters; the values show that a cached decision may no longer match them. Each once: of
        // two, the digests would cancel each other out.
        let mut compared: Vec<String> = Vec::new();
        let of_passwords = settings.password_filter.iter().flat_map(|filter| filter::attributes(filter));
        for name in of_passwords.chain(settings.claim_attributes.iter().cloned()) {
            let is = |known: &str| known.eq_ignore_ascii_case(&name);
            // An entry's id is always the same.
            let is_left_out = SECRETS.iter().any(|secret| is(secret)) || IDENTIFIERS.iter().any(|(id, _)| is(id));
            if !is_left_out && !compared.iter().any(|known| is(known)) {
                compared.push(name);
            }
        }
        read.extend(compared.into_iter().map(|name| (name, AttributeRole::Compared)));
        read.extend(IDENTIFIERS.map(|(name, role)| (name.to_owned(), role)));
        read.extend(LOGIN_ACTIVITY.map(|name| (name.to_owned(), AttributeRole::LoginActivity)));
    }
    read.push((ALIASED.to_owned(), AttributeRole::Alias));
    if matches!(settings.find, Find::Principal { .. }) {
        read.push(("userPrincipalName".to_owned(), AttributeRole::Principal));
    }
    read
}

/// The same, for requests.
pub(super) fn wanted(settings: &config::Directory) -> Attributes {
    let mut allow_values: Vec<_> = settings.allow.values.values().flatten().cloned().collect();
    allow_values.sort_unstable();
    allow_values.dedup();
    Attributes {
        allow_values,
        rest: None,
        principal: None,
        roles: attributes_of(settings),
        realm: Realm::named(&settings.name),
        named_by_dn: matches!(settings.find, Find::UserDn { .. }),
    }
}

/// The base of all users.
pub(super) fn users_base(find: &Find) -> String {
    match find {
        Find::Search { base, .. } | Find::Principal { base, .. } => base.clone(),
        Find::UserDn { template, .. } => template::base_of(template),
    }
}

/// The filter of a search for this login name: a Windows name (`EXAMPLE\alice`) is looked up by what its domain says.
/// `None`: the name lacks a part that the filter requires.
pub(super) fn search_filter(settings: &config::Directory, filter: &Template, login: &Login) -> Option<String> {
    let windows = WindowsDomain::split(login.as_str()).and_then(|(domain, local)| {
        let domain = settings.windows_domains.iter().find(|known| known.is(domain))?;
        Some((&domain.filter, local))
    });
    let Some((filter, local)) = windows else { return template::filter(filter, login) };
    // No account has these in its name: they would make another name of it.
    let local = Some(local).filter(|local| !local.contains(['@', '\\', '/']));
    let local = local.and_then(|local| Login::parse(local.as_bytes()).filter(|parsed| parsed.as_str() == local))?;
    template::filter(filter, &local)
}

/// A filter for all entries whose changes count: also those that a Windows name, a token or a mail address leads to.
pub(super) fn followed_filter(settings: &config::Directory) -> String {
    let users = users_filter(&settings.find);
    let windows = settings.windows_domains.iter().map(|one| template::filter_for_all(&one.filter));
    let others: String = windows.chain(settings.other_filters.iter().cloned()).collect();
    if others.is_empty() || users == ANY_ENTRY { users } else { format!("(|{users}{others})") }
}

/// A filter for all users.
pub(super) fn users_filter(find: &Find) -> String {
    match find {
        Find::Search { filter, .. } => template::filter_for_all(filter),
        Find::UserDn { .. } | Find::Principal { .. } => ANY_ENTRY.to_owned(),
    }
}

/// The attributes that name users, in the order in which a login is compared with them. Empty if the settings do
/// not determine them.
pub(super) fn naming(find: &Find) -> Vec<Naming> {
    match find {
        Find::Search { filter, .. } => naming::of_filter(filter),
        Find::UserDn { template, .. } => naming::of_dn(template),
        Find::Principal { template, .. } => naming::of_principal(template),
    }
}

/// If the name alone determines the bind DN: that DN, and the request for its entry.
pub(super) fn request_by_name(
    find: &Find,
    login: &Login,
    attributes: &Arc<Attributes>,
) -> Option<(String, SearchRequest)> {
    match find {
        Find::Search { .. } => None,
        Find::UserDn { template, .. } => {
            let dn = template::dn(template, login)?;
            Some((dn.clone(), read(dn, attributes)))
        }
        Find::Principal { template, base, .. } => {
            let name = template::principal(template, login)?;
            let filter = format!("(userPrincipalName={})", ldap3::ldap_escape(name.as_str()));
            let attributes = Arc::new(Attributes { principal: Some(name.clone()), ..Attributes::clone(attributes) });
            Some((name, SearchRequest { operation: DirectoryOperation::Read, ..search(base, filter, &attributes) }))
        }
    }
}

/// The request for the canary's entry, if one is configured.
pub(super) fn canary_request(settings: &config::Directory, attributes: &Arc<Attributes>) -> Option<SearchRequest> {
    let login = Login::parse(settings.canary.as_ref()?.login.as_bytes())?;
    match &settings.find {
        Find::Search { base, filter, .. } => Some(search(base, template::filter(filter, &login)?, attributes)),
        Find::UserDn { .. } | Find::Principal { .. } => Some(request_by_name(&settings.find, &login, attributes)?.1),
    }
}

/// Describes the lookup of this login: the filter and base, or the DN.
pub(super) fn describe(settings: &config::Directory, login: &Login, attributes: &Arc<Attributes>) -> String {
    let find = &settings.find;
    let described = match find {
        Find::Search { base, filter, .. } => {
            search_filter(settings, filter, login).map(|filter| format!("search for {filter} under {base}"))
        }
        Find::UserDn { template, .. } => template::dn(template, login).map(|dn| format!("read {dn}")),
        Find::Principal { base, .. } => request_by_name(find, login, attributes)
            .map(|(_, query)| format!("search for {} under {base}", query.filter)),
    };
    described.unwrap_or_else(|| {
        "no lookup: the name lacks a part that the template requires, or has a character that it does not allow"
            .to_owned()
    })
}

pub(super) fn search(base: &str, filter: String, attributes: &Arc<Attributes>) -> SearchRequest {
    let attributes = Arc::clone(attributes);
    SearchRequest {
        operation: DirectoryOperation::Search,
        base: base.to_owned(),
        scope: Scope::Subtree,
        filter,
        attributes,
    }
}

pub(super) fn read(dn: String, attributes: &Arc<Attributes>) -> SearchRequest {
    let attributes = Arc::clone(attributes);
    SearchRequest {
        operation: DirectoryOperation::Read,
        base: dn,
        scope: Scope::Base,
        filter: ANY_ENTRY.to_owned(),
        attributes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sound_directory;

    #[test]
    fn windows_name_is_looked_up_by_its_domain_alone() {
        let mut directory = config::sound_directory("base: dc=x, filter: '(|(uid={login})(mail={login}))'");
        let filter = template::parse_filter("(sAMAccountName={local})").unwrap();
        directory.windows_domains.push(WindowsDomain { name: "example".to_owned(), filter });
        let Find::Search { filter, .. } = directory.find.clone() else { panic!("a search") };
        let search = |name: &str| search_filter(&directory, &filter, &Login::parse(name.as_bytes()).unwrap());
        assert_eq!(search("EXAMPLE\\alice").as_deref(), Some("(sAMAccountName=alice)"));
        assert_eq!(search("example\\o'neil*)").as_deref(), Some("(sAMAccountName=o'neil\\2a\\29)"));
        for none in ["EXAMPLE\\", "EXAMPLE\\a@b", "EXAMPLE\\a\\b", "EXAMPLE\\a/b", "EXAMPLE\\ a"] {
            assert_eq!(search(none), None, "{none}");
        }
        // Another domain is no Windows domain: the name is taken as it is.
        assert_eq!(search("OTHER\\alice").as_deref(), Some("(|(uid=OTHER\\5calice)(mail=OTHER\\5calice))"));
        assert_eq!(search("alice").as_deref(), Some("(|(uid=alice)(mail=alice))"));
        let followed = followed_filter(&directory);
        assert_eq!(followed, "(|(|(uid=*)(mail=*))(sAMAccountName=*))");
        directory.windows_domains.clear();
        assert_eq!(followed_filter(&directory), "(|(uid=*)(mail=*))");
        directory.other_filters = vec!["(entryUUID=*)".to_owned(), "(proxyAddresses=smtp:*)".to_owned()];
        assert_eq!(followed_filter(&directory), "(|(|(uid=*)(mail=*))(entryUUID=*)(proxyAddresses=smtp:*))");
    }

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
            assert_eq!(users_filter(&directory.find), all);
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
            assert_eq!((users_base(&directory.find).as_str(), directory.is_followed()), (base, true));
            assert_eq!(users_filter(&directory.find), "(objectClass=*)");
        }
    }

    #[test]
    fn polled_search_requests_the_attributes_of_a_decision() {
        let names = |keys: &str| {
            let watched = attributes_of(&sound_directory(&format!("base: 'dc=x', filter: '(uid={{login}})', {keys}")));
            let (passwords, names): (Vec<_>, Vec<_>) = watched
                .into_iter()
                .map(|(name, _)| name)
                .partition(|name| PASSWORDS.iter().any(|(known, _)| name == known));
            // Whether a refused password may be right by now.
            assert_eq!(passwords.len(), PASSWORDS.len());
            let (aliased, names): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name == ALIASED);
            assert_eq!(aliased.len(), 1);
            let (disabled, names): (Vec<_>, Vec<_>) =
                names.into_iter().partition(|name| DisabledBy::ALL.iter().any(|(known, _)| name == known));
            assert_eq!(disabled, ["nsAccountLock", "userAccountControl", "pwdAccountLockedTime", "accountExpires"]);
            names
        };
        assert_eq!(names("watch: off"), ["mailHost"]);
        let keys =
            "watch: off, login_attribute: uid, hold_attribute: hold, networks_attribute: nets, allow_attribute: allow";
        assert_eq!(names(keys), ["mailHost", "uid", "hold", "nets", "allow"]);
        let filter = "password_filter: '(|(loginMethod=password)(userPassword=*))'";
        assert_eq!(names(&format!("watch: off, {filter}")), ["mailHost"]);
        let followed = names(&format!("watch: poll, {filter}"));
        assert!(followed.contains(&"loginMethod".to_owned()) && !followed.contains(&"userPassword".to_owned()));
        let claimed = |attributes: &[&str]| {
            let mut settings = sound_directory(&format!(
                "base: 'dc=x', filter: '(uid={{login}})', bind_dn: 'cn=u', bind_password_file: p, {filter}, watch: poll"
            ));
            settings.claim_attributes = attributes.iter().map(|name| (*name).to_owned()).collect();
            let read = attributes_of(&settings).into_iter();
            read.filter(|(_, role)| *role == AttributeRole::Compared).map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(claimed(&["mail", "LOGINMETHOD", "entryUUID", "unicodePwd"]), ["loginMethod", "mail"]);
        assert!(names("watch: auto").contains(&"entryUUID".to_owned()));
        let alone = sound_directory("user_dn: 'uid={login},dc=x'");
        assert!(!alone.is_followed() && attributes_of(&alone).len() == 6);
        let none = sound_directory("user_dn: 'uid={login},dc=x', disabled_by: []");
        assert_eq!(attributes_of(&none).len(), 2);
        // A permanent lock is a lockout then, which is the reason of a rejected password.
        let other = sound_directory("base: 'dc=x', filter: '(uid={login})', disabled_by: [shadowexpire]");
        let watched = attributes_of(&other);
        let meaning = |name: &str| watched.iter().find(|(known, _)| known == name).map(|(_, meaning)| *meaning);
        assert_eq!(meaning("pwdAccountLockedTime"), Some(AttributeRole::Lockout));
        assert_eq!(meaning("shadowExpire"), Some(AttributeRole::ExpiresDay));
        assert_eq!(meaning("nsAccountLock"), None);
    }

    #[test]
    fn filter_yields_the_attributes_that_name_a_user() {
        for (keys, names) in [
            ("base: 'dc=x', filter: '(uid={login})'", vec![("uid", "")]),
            ("base: 'dc=x', filter: '(|(uid={login})(mail={login}))'", vec![("uid", ""), ("mail", "")]),
            ("base: 'dc=x', filter: '(&(objectClass=user)(mail={local}@{domain})(!(x=1)))'", vec![("mail", "")]),
            (
                "base: 'dc=x', filter: '(|(uid={local})(mail={login}@example.com))'",
                vec![("uid", ""), ("mail", "@example.com")],
            ),
            ("base: 'dc=x', filter: '(cn:caseExactMatch:={login})'", vec![]),
            ("base: 'dc=x', filter: '(mail={login}*)'", vec![]),
            ("base: 'dc=x', filter: '(mail=x{login})'", vec![]),
            ("user_dn: 'uid={local},ou=people,dc=x'", vec![("uid", "")]),
            ("user_dn: 'uid={login}'", vec![("uid", "")]),
            ("user_dn: '{login}@ad.example.com', base: 'dc=x'", vec![("userPrincipalName", "@ad.example.com")]),
        ] {
            let naming = naming(&sound_directory(keys).find);
            let found: Vec<_> =
                naming.iter().map(|naming| (naming.attribute.as_str(), naming.suffix.as_str())).collect();
            assert_eq!(found, names, "{keys}");
        }
    }

    #[test]
    fn login_is_the_value_without_the_template_suffix() {
        let naming = super::naming(&sound_directory("user_dn: '{login}@ad.example.com', base: 'dc=x'").find);
        assert_eq!(naming[0].login("alice@ad.example.com"), Some("alice"));
        assert_eq!(naming[0].login("alice@example.org"), None);
        assert_eq!(naming[0].login("@ad.example.com"), None);
    }
}

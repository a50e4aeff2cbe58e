//! The `impersonation` section, and `directory.grant_attribute`.

use super::*;
use crate::config::model::Impersonation;

const SECTION: &str = "impersonation: {admins: [\"uid=admin,dc=x\"], networks: [192.0.2.0/24]}\n";

/// SOUND, whose backends both have a service account, with this text behind it.
fn with(more: &str) -> String {
    let service = "    - name: server3\n      service: {login: usher, password_file: s.password}\n";
    format!("{}{more}", replaced("    - name: server3\n", service))
}

#[track_caller]
fn wrong(section: &str, key: &str, phrase: &str) {
    let text = with(section);
    only_problem(&text, marked(&text), key, phrase);
}

#[test]
fn administrators_have_defaults() {
    let config = parse_text(&with(SECTION)).unwrap();
    assert_eq!(config.warnings, []);
    let Impersonation { administrators, separator } = config.impersonation.clone();
    let administrators = administrators.unwrap();
    assert_eq!((separator, administrators.dns.as_slice()), (Some('*'), &["uid=admin,dc=x".to_owned()][..]));
    let names: Vec<_> = administrators.protocols.iter().map(|protocol| protocol.name).collect();
    assert_eq!((names.as_slice(), administrators.include_disabled), (&["imap"][..], false));
    assert_eq!((administrators.filter, administrators.target_filter), (None, None));
    assert!(config.permits_acting());
    let off = parse_text(SOUND).unwrap();
    assert!(!off.permits_acting() && off.impersonation.administrators.is_none());
}

#[test]
fn every_key_is_read() {
    let text = with(
        "impersonation: {admins: 'uid=a,dc=x', admin_filter: '(o=a)', networks: 192.0.2.1, target_filter: '(o=t)', \
         protocols: [imap, submission], separator: '%', include_disabled: true}\n",
    );
    let Impersonation { administrators, separator } = parse_text(&text).unwrap().impersonation;
    let Administrators { filter, target_filter, protocols, include_disabled, .. } = administrators.unwrap();
    assert_eq!((separator, include_disabled, protocols.len()), (Some('%'), true, 2));
    assert_eq!((filter.as_deref(), target_filter.as_deref()), (Some("(o=a)"), Some("(o=t)")));
    let none = parse_text(&with(&SECTION.replace("networks", "separator: '', networks"))).unwrap();
    assert_eq!(none.impersonation.separator, None);
}

#[test]
fn mistakes_are_reported() {
    let key = "impersonation";
    wrong("impersonation: {networks: 192.0.2.0/24} # HERE\n", key, "needs `admins`");
    wrong("impersonation: {separator: '%'} # HERE\n", key, "needs `admins`");
    let line = |more: &str| format!("impersonation:\n  admins: ['uid=a,dc=x']\n  networks: [192.0.2.0/24]\n{more}");
    let networks = "impersonation: {admins: ['uid=a,dc=x']} # HERE\n";
    wrong(networks, "impersonation.networks", "list the networks");
    for (more, key, phrase) in [
        ("  admin_filter: \"(uid={login})\" # HERE\n", "impersonation.admin_filter", "the same for every user"),
        ("  target_filter: mail # HERE\n", "impersonation.target_filter", "not a filter"),
        ("  protocols: [smtp] # HERE\n", "impersonation.protocols[0]", "write one of"),
        ("  protocols: [] # HERE\n", "impersonation.protocols", "empty"),
        ("  protocols: [imap, imap] # HERE\n", "impersonation.protocols[1]", "already used"),
        ("  separator: '**' # HERE\n", "impersonation.separator", "write one of"),
        ("  separator: '@' # HERE\n", "impersonation.separator", "write one of"),
        ("  separator: x # HERE\n", "impersonation.separator", "write one of"),
        ("  include_disabled: 1 # HERE\n", "impersonation.include_disabled", "true"),
        ("  admin: x # HERE\n", "impersonation.admin", "did you mean `admins`"),
    ] {
        wrong(&line(more), key, phrase);
    }
    wrong("impersonation: {admins: [admin], networks: 192.0.2.1} # HERE\n", "impersonation.admins[0]", "not a DN");
    wrong("impersonation: {admins: [''], networks: 192.0.2.1} # HERE\n", "impersonation.admins[0]", "not a DN");
    wrong("impersonation: {admins: [], networks: 192.0.2.1} # HERE\n", "impersonation.admins", "empty");
    let twice = "impersonation: {admins: ['o=a', 'O=A'], networks: 192.0.2.1} # HERE\n";
    wrong(twice, "impersonation.admins[1]", "already used");
}

#[test]
fn directory_must_name_users_at_the_backend() {
    let only = "  service: {login: usher, password_file: s.password}\n";
    for (key, text) in [
        ("impersonation", format!("{SOUND}{}", SECTION.trim_end().to_owned() + " # HERE\n")),
        (
            "directory.grant_attribute",
            replaced("  login_attribute: uid\n", "  grant_attribute: grant # HERE\n  login_attribute: uid\n"),
        ),
    ] {
        let text = text.replace("      service: {login: usher, password_file: server4.password}\n", "");
        only_problem(&text, marked(&text), key, "no backend has");
        let own = "      impersonation_service: {login: acting, password_file: a.password}\n    - name: server4\n";
        let text = text.replace("    - name: server4\n", own).replace("  login_attribute: uid\n", "");
        let problems = parse_text(&text).unwrap_err();
        let found = problems.iter().find(|problem| problem.key == key).unwrap();
        assert!(found.message.contains("needs `directory.login_attribute`"), "{only}: {problems:#?}");
    }
}

#[test]
fn suspicious_settings_are_warned_of() {
    let warned = |text: &str, key: &str, phrase: &str| {
        let warnings = parse_text(text).unwrap().warnings;
        let found = warnings.iter().find(|warning| warning.key == key).unwrap_or_else(|| panic!("{key}: {warnings:?}"));
        assert!(found.message.contains(phrase), "{found}");
    };
    warned(&format!("{SOUND}{SECTION}"), "impersonation", "no effect for mailboxes at server3");
    let all = SECTION.replace("192.0.2.0/24", "\"::/0\"");
    warned(&with(&all), "impersonation.networks", "everywhere");
    let account = "    - name: server3\n      impersonation_service: {login: a, password_file: a.password}\n";
    let unused = replaced("    - name: server3\n", account);
    warned(&unused, "routing.backends[0].impersonation_service", "without effect");
}

#[test]
fn grants_need_a_directory_that_usher_reads() {
    let found = "  base: ou=people,dc=example,dc=com\n  filter: (|(uid={local})(mail={login}))\n";
    let account = "  bind_dn: cn=usher,dc=example,dc=com\n  bind_password_file: ldap.password\n";
    let user_dn = "  user_dn: \"uid={login},dc=x\"\n  grant_attribute: grant # HERE\n";
    let text = replaced(found, user_dn)
        .replace(account, "")
        .replace("  canary: {login: canary@example.com, mail_host: server3}\n", "");
    let problems = parse_text(&text).unwrap_err();
    let found: Vec<_> = problems.iter().map(|problem| (problem.key.as_str(), problem.line)).collect();
    assert_eq!(found, [("directory.grant_attribute", marked(&text))], "{problems:#?}");
    assert!(problems[0].message.contains("only a service account"), "{problems:#?}");
}

#[test]
fn separator_of_grants_can_be_chosen() {
    let grants = with("impersonation: {separator: '%'}\n");
    let grants = grants.replace("  login_attribute: uid\n", "  login_attribute: uid\n  grant_attribute: grant\n");
    let config = parse_text(&grants).unwrap();
    assert_eq!((config.impersonation.separator, config.warnings.as_slice()), (Some('%'), &[][..]));
    assert!(config.impersonation.administrators.is_none() && config.permits_acting());
}

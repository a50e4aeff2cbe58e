//! The section `socketmap` and `delivery`.

use super::*;

/// Every key, for a port.
const SOCKETMAP: &str = "socketmap: {address: \"127.0.0.1:9950\", allow: 192.0.2.0/24, domains: [Example.com, \"*.Example.ORG\"], \
                         mail_filter: \"(proxyAddresses=smtp:{login})\", recipient_delimiter: \"+-\", \
                         delivery_when_disabled: reject, max_connections: 7}\n";

/// A sound config with this section.
fn with(socketmap: &str) -> String {
    delivering(&format!("{SOUND}{socketmap}"))
}

#[track_caller]
fn refused(socketmap: &str, key: &str, phrase: &str) {
    let problems = parse_text(&with(&format!("socketmap: {{{socketmap}}}\n"))).expect_err("accepted");
    let found = problems.iter().any(|problem| problem.key == key && problem.message.contains(phrase));
    assert!(found && problems[0].line.is_some(), "{socketmap}: {problems:?}");
}

#[test]
fn every_key_is_read() {
    let config = parse_text(&with(SOCKETMAP)).unwrap();
    let socketmap = config.socketmap.unwrap();
    assert_eq!(socketmap.place, SocketmapPlace::Address("127.0.0.1:9950".parse().unwrap()));
    assert_eq!(socketmap.allow, ["192.0.2.0/24".parse().unwrap()]);
    let has = |domain: &str| socketmap.domains.iter().any(|known| known.has(domain));
    assert!(has("example.com") && has("a.example.org") && has("a.b.example.org"));
    for domain in ["sub.example.com", "example.org", "aexample.org", ".example.org", "example.com.", ""] {
        assert!(!has(domain), "{domain}");
    }
    assert_eq!((&*socketmap.recipient_delimiter, socketmap.max_connections), ("+-", 7));
    assert_eq!(socketmap.when_disabled, DeliveryWhenDisabled::Reject);
    assert_eq!(config.directories[0].mail_filter, Some(socketmap.mail_filter));
    assert_eq!(config.directories[0].claim_attributes, ["proxyAddresses"], "a change of it is followed");
    assert_eq!(config.directories[0].other_filters, ["(proxyAddresses=smtp:*)"], "and so are the entries it finds");
    assert_eq!(config.routing.backends[0].delivery.as_deref(), Some("lmtp:inet:server3.example.com:24"));

    let config = parse_text(&with("socketmap: {address: \"[::1]:9950\", domains: example.com}\n")).unwrap();
    let socketmap = config.socketmap.unwrap();
    assert!(socketmap.allow.iter().any(|network| network.contains(&"127.0.0.1".parse::<std::net::IpAddr>().unwrap())));
    assert!(!socketmap.allow.iter().any(|network| network.contains(&"192.0.2.1".parse::<std::net::IpAddr>().unwrap())));
    assert_eq!((&*socketmap.recipient_delimiter, socketmap.max_connections), ("", 1_000));
    assert_eq!(socketmap.when_disabled, DeliveryWhenDisabled::Keep);
    assert_eq!(config.directories[0].claim_attributes, ["mail"]);
    assert_eq!(parse_text(SOUND).unwrap().directories[0].mail_filter, None);

    for (keys, mode) in [("group: postfix", 0o660), ("mode: \"0666\"", 0o666), ("group: postfix, mode: \"660\"", 0o660)]
    {
        let text = with(&format!("socketmap: {{path: spool/usher, {keys}, domains: example.com}}\n"));
        let SocketmapPlace::Unix(unix) = parse_text(&text).unwrap().socketmap.unwrap().place else { panic!("{keys}") };
        assert_eq!((unix.path, unix.mode), ("/etc/usher/spool/usher".into(), mode), "{keys}");
    }
}

#[test]
fn mistakes_are_reported() {
    let place = "address: \"127.0.0.1:9950\"";
    let domains = "domains: example.com";
    refused(domains, "socketmap.address", "missing: write an IP address and a port");
    refused(&format!("address: localhost, {domains}"), "socketmap.address", "write an IP address and a port");
    refused(&format!("address: \"[::1]:9931\", {domains}"), "admin.address", "already used by socketmap.address");
    refused(&format!("{place}, path: a, mode: \"0666\", {domains}"), "socketmap.path", "replaces `address`");
    refused(&format!("path: a, {domains}"), "socketmap.path", "needs `group`");
    refused(&format!("path: \"/{}\", mode: \"0666\", {domains}", "x".repeat(107)), "socketmap.path", "longer than 107");
    refused(&format!("{place}, group: postfix, {domains}"), "socketmap.group", "needs `path`");
    for mode in ["0777", "0400", "0066", "8", "rw-rw----", "00666", "0o66", "+666"] {
        refused(&format!("path: a, mode: \"{mode}\", {domains}"), "socketmap.mode", "write an octal mode");
    }
    refused(place, "socketmap.domains", "missing: name the domains");
    for domain in ["\"\"", "\"*\"", "\"*.\"", "\".example.com\"", "a@example.com", "\"*.*.org\"", "\"exa mple.com\""] {
        refused(&format!("{place}, domains: {domain}"), "socketmap.domains", "");
    }
    refused(&format!("{place}, domains: [example.com, EXAMPLE.com]"), "socketmap.domains[1]", "");
    for delimiter in ["@", ".", "a", "++", "é", "\\\""] {
        let keys = format!("{place}, {domains}, recipient_delimiter: \"{delimiter}\"");
        refused(&keys, "socketmap.recipient_delimiter", "write the delimiters");
    }
    refused(&format!("{place}, {domains}, mail_filter: \"(mail=x)\""), "socketmap.mail_filter", "");
    refused(&format!("{place}, {domains}, mail_filter: \"mail={{login}}\""), "socketmap.mail_filter", "");
    refused(&format!("{place}, {domains}, delivery_when_disabled: drop"), "socketmap.delivery_when_disabled", "`keep`");
    refused(&format!("{place}, {domains}, max_connections: 0"), "socketmap.max_connections", "1 to 10000");
    refused(&format!("{place}, {domains}, allow: localhost"), "socketmap.allow", "an address or a network");
}

#[test]
fn every_backend_says_where_mail_goes() {
    let text = format!("{SOUND}{SOCKETMAP}");
    let keys: Vec<String> = parse_text(&text).unwrap_err().into_iter().map(|problem| problem.key).collect();
    assert_eq!(keys, ["routing.backends[0].delivery", "routing.backends[1].delivery"]);
    let delivery = "delivery: \"lmtp:inet:server3.example.com:24\"";
    for wrong in ["server3", "lmtp inet:a", ":24", "lmtp:a b", "lm/tp:a", "lmtp:\u{e9}", ""] {
        let text = with(SOCKETMAP).replacen(delivery, &format!("delivery: \"{wrong}\""), 1);
        let problems = parse_text(&text).unwrap_err();
        assert!(problems[0].key == "routing.backends[0].delivery", "{wrong}: {problems:?}");
        assert!(problems[0].message.contains("write a transport and a next hop"), "{problems:?}");
    }
    for right in ["smtp:[192.0.2.3]:24", "relay:server3.example.com", "local:", "lmtp:unix:private/lmtp"] {
        assert!(
            parse_text(&with(SOCKETMAP).replacen(delivery, &format!("delivery: \"{right}\""), 1)).is_ok(),
            "{right}"
        );
    }
    let warnings = parse_text(&delivering(SOUND)).unwrap().warnings;
    assert!(warnings.iter().all(|warning| warning.message.contains("there is no `socketmap`")), "{warnings:?}");
    assert_eq!(warnings.len(), 2);
}

#[test]
fn suspicious_values_are_reported() {
    let warnings = |keys: &str| {
        let config = parse_text(&with(&format!("socketmap: {{{keys}, domains: example.com}}\n"))).unwrap();
        config.warnings.into_iter().map(|warning| warning.key).collect::<Vec<_>>()
    };
    assert_eq!(warnings("address: \"127.0.0.1:9950\", allow: 0.0.0.0/0"), ["socketmap.allow"]);
    assert_eq!(warnings("path: a, mode: \"0666\", allow: 192.0.2.1"), ["socketmap.allow"]);
    assert!(warnings("address: \"0.0.0.0:9950\", allow: 192.0.2.1").is_empty());
}

#[test]
fn addresses_are_searched_by_usher_itself() {
    let find = "  base: ou=people,dc=example,dc=com\n  filter: (|(uid={local})(mail={login}))\n";
    let account = "  bind_dn: cn=usher,dc=example,dc=com\n  bind_password_file: ldap.password\n";
    let problem = |find_by: &str, keeps_account: bool| {
        let text = with(SOCKETMAP).replacen(find, find_by, 1);
        let text = if keeps_account { text } else { text.replacen(account, "", 1) };
        let problems = parse_text(&text).err().unwrap_or_default();
        problems.into_iter().find(|problem| problem.key == "socketmap.mail_filter").map(|problem| problem.message)
    };
    assert_eq!(problem(find, false), None, "an anonymous search");
    let by_dn = "  user_dn: \"uid={local},ou=people,dc=example,dc=com\"\n";
    assert_eq!(problem(by_dn, true), None);
    assert!(problem(by_dn, false).unwrap().contains("needs `directory.bind_dn`"));
    assert!(problem("  user_dn: \"uid={local}\"\n", true).unwrap().contains("needs `directory.base`"));
}

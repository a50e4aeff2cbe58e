//! The shipped example.

use super::*;
use crate::base::labels::Label as _;

const EXAMPLE: &str = include_str!("../../../config.example.yaml");

#[test]
fn example_loads_without_warnings() {
    let config = parse_text(EXAMPLE).unwrap();
    assert_eq!(config.warnings, []);
    assert_eq!(config.routing.backends.len(), 2);
}

/// The value of `key:` in the example, commented out or not.
fn values(key: &str) -> Vec<&'static str> {
    let lines = EXAMPLE.lines().flat_map(|line| line.split(['{', '}', ',']));
    let bare = lines.map(|piece| piece.trim_start_matches([' ', '#', '-']));
    bare.filter_map(|piece| piece.strip_prefix(key)?.strip_prefix(':')).map(str::trim).collect()
}

/// The sections of a file with an unknown key in each: each message lists the existing ones.
pub(super) fn every_section() -> Vec<Problem> {
    // An unknown key in each section of SOUND makes the error list the existing ones.
    let acting = "impersonation: {admins: ['o=a'], networks: 192.0.2.1}\n";
    let fleet = "fleet: {name: mail, store: 'redis://[::1]', secret_file: fleet.secret}\n";
    let socketmap = "socketmap: {address: '127.0.0.1:9950', domains: a.example}\n";
    let mut text = delivering(&format!("{SOUND}{TOKENS}{acting}{fleet}{socketmap}"));
    for (from, to) in [
        ("  - issuer: https://idp", "  - zzz: 1\n    issuer: https://idp"),
        ("introspection: {", "introspection: {zzz: 1, "),
        ("tls: implicit}\n", "tls: implicit, zzz: 1}\n"),
        ("chain: tls", "zzz: 1\n      chain: tls"),
        ("  min_version", "  zzz: 1\n  min_version"),
        ("servers: [", "servers: [{url: 'ldap://z', zzz: 1}, "),
        ("  starttls: true", "  zzz: 1\n  starttls: true"),
        ("  default", "  zzz: 1\n  default"),
        ("- name: server4", "- zzz: 1\n      name: server4"),
        ("{login: usher", "{zzz: 1, login: usher"),
        ("{login: probe", "{zzz: 1, login: probe"),
        ("address: server4", "zzz: 1\n        address: server4"),
        ("{ttl", "{zzz: 1, ttl"),
        ("{min", "{zzz: 1, min"),
        ("canary: {", "canary: {zzz: 1, "),
        ("  connections: 100", "  zzz: 1\n  connections: 100"),
        ("  ipv4_prefix", "  zzz: 1\n  ipv4_prefix"),
        ("{mode: enforce, free_failures", "{zzz: 1, mode: enforce, free_failures"),
        ("{mode: enforce, limit", "{zzz: 1, mode: enforce, limit"),
        ("{delay", "{zzz: 1, delay"),
        ("admin: {", "admin: {zzz: 1, "),
        ("{path", "{zzz: 1, path"),
        ("auth_http: {address: \"", "auth_http: {zzz: 1, address: \""),
        ("auth_http: {address: 127", "auth_http: {zzz: 1, address: 127"),
        ("{user", "{zzz: 1, user"),
        ("{format", "{zzz: 1, format"),
        ("impersonation: {", "impersonation: {zzz: 1, "),
        ("fleet: {", "fleet: {zzz: 1, "),
        ("socketmap: {", "socketmap: {zzz: 1, "),
        ("log:", "zzz: 1\nlog:"),
    ] {
        assert!(text.contains(from), "{from}");
        text = text.replacen(from, to, 1);
    }
    let problems = parse_text(&text).unwrap_err();
    assert_eq!(problems.len(), 30, "{problems:#?}");
    problems
}

#[test]
fn example_has_every_key() {
    let problems = every_section();
    let mut count = 0;
    for problem in problems {
        let (_, keys) = problem.message.split_once("allowed here: ").expect("a list of keys");
        let mut listed = std::collections::BTreeSet::new();
        for key in keys.split(", ") {
            assert!(listed.insert(key), "`{key}` is listed twice in {}", problem.message);
            assert!(!values(key).is_empty(), "`{key}` of {} is not in config.example.yaml", problem.key);
            count += 1;
        }
    }
    assert!(count > 60, "only {count} keys");
}

#[test]
fn commented_values_are_the_defaults() {
    let same = |key: &str, from: &str| {
        let text = EXAMPLE.replacen(&format!("# {key}: "), &format!("{key}: "), 1);
        assert_ne!(text, EXAMPLE, "{key} is not commented out");
        let config = parse_text(&text).unwrap();
        let default = parse_text(EXAMPLE).unwrap();
        let part = |config: &Config| match from {
            "tls" => format!("{:?}", config.tls),
            "directory" => format!("{:?}", config.directories[0]),
            "routing" => format!("{:?}", config.routing),
            "throttle" => format!("{:?}", config.throttle),
            "file" => format!("{:?}", config.config_reload),
            _ => format!("{:?}", config.limits),
        };
        assert_eq!(part(&config), part(&default), "{key}");
    };
    same("config_reload", "file");
    same("groups", "tls");
    same("reload_interval", "tls");
    same("plaintext", "directory");
    for key in ["balance", "connections", "reveal_account_state", "disabled_by", "result_19", "result_50", "result_53"]
    {
        same(key, "directory");
    }
    same("on_unavailable", "limits");
    for key in ["ipv4_prefix", "ipv6_prefix", "capacity", "forget_every", "known_network_ttl"] {
        same(key, "throttle");
    }
    for rule in LimitRule::ALL {
        same(rule.label(), "throttle");
    }
    for key in ["pass_backend_refusals", "probe", "probe_interval", "failures", "slow_start", "logins_in_flight"] {
        same(key, "routing");
    }
    for key in [
        "unauthenticated",
        "proxy_header_timeout",
        "handshake_timeout",
        "prelogin_timeout",
        "refusal_delay",
        "bad_commands",
        "max_backend_greeting",
    ] {
        same(key, "limits");
    }
}

#[test]
fn commented_keys_are_valid() {
    // Each separately, as an operator would remove its `#`.
    for (key, more) in [
        ("config_reload:", None),
        ("hostname:", None),
        ("user_dn: \"{login}@", Some(("  filter: \"(|(uid={login})(mail={login}))\"\n", ""))),
        ("networks_attribute:", Some(("# canary: {", "canary: {"))),
        ("allow_attribute:", None),
        ("allow_values:", Some(("# allow_attribute", "allow_attribute"))),
        ("allow_filter:", None),
        ("capabilities:", None),
        ("trusted:", None),
        ("- {protocol: imap, address: \"192.0.2.11:10993\"", None),
        ("cipher_suites:", None),
        ("client_ca:", None),
        ("client_certificate: {chain: tls", None),
        ("client_auth: optional", Some(("# client_ca", "client_ca"))),
        ("crl: tls/client-ca.crl", Some(("# client_ca", "client_ca"))),
        ("default:", Some(("# canary: {", "canary: {"))),
        ("service:", None),
        ("probe_account:", Some(("# probe: greeting", "probe: login"))),
        ("group:", None),
        ("auth_http: {address", Some(("# auth_http: {port: 143}", "auth_http: {port: 143}"))),
        ("exempt:", None),
        ("source:", None),
        ("ticket_keys_file:", None),
        ("pin_sha256:", Some(("      ca: ca.pem\n", ""))),
        ("client_certificate: {chain: c.pem", None),
        ("groups: [x25519, secp256r1, secp384r1]", None),
        ("groups: [x25519, secp256r1]", None),
        ("canary:", None),
        ("user_dn:", Some(("  base: ou=people,dc=example,dc=com\n  filter: \"(|(uid={login})(mail={login}))\"\n", ""))),
    ] {
        let mut text = EXAMPLE.replacen(&format!("# {key}"), key, 1);
        assert_ne!(text, EXAMPLE, "{key}");
        if let Some((from, to)) = more {
            assert!(text.contains(from), "{from}");
            text = text.replacen(from, to, 1);
        }
        let warnings = parse_text(&text).map(|config| config.warnings);
        assert_eq!(warnings, Ok(Vec::new()), "{key}");
    }
}

#[test]
fn commented_issuers_are_valid() {
    let (before, rest) = EXAMPLE.split_once("# tokens:\n").unwrap();
    let (lines, behind) = rest.split_once("\n\n").unwrap();
    let lines: String = lines.lines().map(|line| format!("{}\n", line.strip_prefix("# ").unwrap())).collect();
    let config = parse_text(&forwarding(&format!("{before}tokens:\n{lines}\n{behind}"))).unwrap();
    assert_eq!(config.tokens.len(), 2);
    let [warning] = config.warnings.as_slice() else { panic!("{:?}", config.warnings) };
    assert_eq!(warning.key, "tokens[1].login_claim");
}

#[test]
fn commented_fleet_is_valid() {
    let (before, rest) = EXAMPLE.split_once("# fleet:\n").unwrap();
    let (lines, behind) = rest.split_once("\n\n").unwrap();
    let lines: String = lines.lines().map(|line| format!("{}\n", line.strip_prefix("# ").unwrap())).collect();
    let config = parse_text(&format!("{before}fleet:\n{lines}\n{behind}")).unwrap();
    assert_eq!(config.warnings, []);
    let fleet = config.fleet.unwrap();
    let default = "fleet: {name: mail, store: \"rediss://store.example.com\", secret_file: fleet.secret, node: mail1}";
    let default = parse_text(&format!("{EXAMPLE}\n{default}\n")).unwrap().fleet.unwrap();
    assert_eq!((fleet.timeout, fleet.node), (default.timeout, default.node));
    assert_eq!(fleet.stores, default.stores);
    assert!(fleet.user.is_some() && fleet.password_file.is_some() && fleet.ca.is_some());
}

#[test]
fn commented_socketmap_is_valid() {
    let (before, rest) = EXAMPLE.split_once("# socketmap:\n").unwrap();
    let (lines, behind) = rest.split_once("\n\n").unwrap();
    let lines: String = lines.lines().map(|line| format!("{}\n", line.strip_prefix("# ").unwrap())).collect();
    let with = |lines: &str| {
        let text = format!("{before}socketmap:\n{lines}\n{behind}");
        let text = text.replacen("      # delivery:", "      delivery:", 1);
        parse_text(&text.replacen("    - name: server4\n", "    - name: server4\n      delivery: \"lmtp:x\"\n", 1))
            .unwrap()
    };
    let (config, short) = (with(&lines), with("  address: \"127.0.0.1:9950\"\n  domains: [example.com]\n"));
    assert_eq!(config.warnings, []);
    let (shown, default) = (config.socketmap.unwrap(), short.socketmap.unwrap());
    assert_eq!((shown.mail_filter, shown.max_connections), (default.mail_filter, default.max_connections));
    assert_eq!(shown.when_disabled, default.when_disabled);
}

#[test]
fn commented_password_filter_is_valid_beside_an_issuer() {
    let text = EXAMPLE.replacen("# password_filter:", "password_filter:", 1);
    assert_ne!(text, EXAMPLE);
    let issuer = "{issuer: \"https://idp.example.com\", audience: mail, login_claim: oid}";
    let config = parse_text(&forwarding(&format!("{text}\ntokens: [{issuer}]\n")));
    assert_eq!(config.map(|config| config.warnings), Ok(Vec::new()));
    let warnings = parse_text(&text).unwrap().warnings;
    let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
    assert_eq!(warning.key, "directory.password_filter");
}

#[test]
fn documented_issuers_are_accepted() {
    let text = include_str!("../../../docs/tokens.md");
    let pieces = text.split("```yaml\n").skip(1).filter_map(|piece| piece.split("```").next());
    let (issuers, backends): (Vec<&str>, Vec<&str>) = pieces.partition(|piece| piece.starts_with("tokens:"));
    assert_eq!((issuers.len(), backends.len()), (2, 1));
    for piece in &issuers {
        let config = parse_text(&forwarding(&format!("{EXAMPLE}{piece}")));
        assert_eq!(config.map(|config| config.warnings), Ok(Vec::new()), "{piece}");
    }
    // A backend that gets the token.
    let head = "listeners: [{protocol: imap, address: '127.0.0.1:993', tls: implicit}]
tls: {certificates: [{chain: c.pem, key: k.pem}]}
directory: {servers: ['ldaps://one'], base: dc=x, filter: '(uid={login})'}
";
    let config = parse_text(&format!("{head}{}{}", issuers[0], backends[0]));
    assert_eq!(config.map(|config| config.warnings), Ok(Vec::new()));
}

#[test]
fn commented_impersonation_and_grants_are_valid() {
    let (before, rest) = EXAMPLE.split_once("# impersonation:\n").unwrap();
    let (lines, behind) = rest.split_once("\n\n").unwrap();
    let lines: String = lines.lines().map(|line| format!("{}\n", line.strip_prefix("# ").unwrap())).collect();
    let mut text = format!("{before}impersonation:\n{lines}\n{behind}");
    for key in ["grant_attribute", "canary", "impersonation_service"] {
        let shown = text.replacen(&format!("# {key}: "), &format!("{key}: "), 1);
        assert_ne!(shown, text, "{key}");
        text = shown;
    }
    let config = parse_text(&text).unwrap();
    assert!(config.impersonation.administrators.is_some() && config.directories[0].grant_attribute.is_some());
    let [warning] = config.warnings.as_slice() else { panic!("{:?}", config.warnings) };
    assert!(warning.message.contains("no effect for mailboxes at server4"), "{warning}");
}

#[test]
fn commented_listener_with_client_login_is_valid() {
    let line = "- {protocol: imap, address: \"192.0.2.1:3993\"";
    let config = parse_text(&EXAMPLE.replacen(&format!("# {line}"), line, 1)).unwrap();
    let listener = config.listeners.last().unwrap();
    assert!(
        listener.client_login.is_some() && listener.clients.crl.is_some() && config.directories[0].reads_certificates
    );
    // The backends of the example have no service account.
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    assert!(config.warnings.iter().all(|warning| warning.message.contains("has no `service`")));
}

#[test]
fn documentation_snippets_are_accepted() {
    let rest = "listeners: [{protocol: imap, address: \"[::]:993\", tls: implicit}]
tls: {certificates: [{chain: c.pem, key: k.pem}]}
routing: {backends: [{name: server3, imap: {address: \"server3.example.com:993\", tls: implicit}}]}
";
    let text = include_str!("../../../docs/directory.md");
    let pieces: Vec<&str> = text.split("```yaml\n").skip(1).filter_map(|piece| piece.split("```").next()).collect();
    assert!(pieces.len() >= 5, "{pieces:?}");
    for piece in pieces {
        // A snippet about a part of the section replaces only that part.
        let whole =
            "directory:\n  servers: [\"ldaps://ldap1.example.com\"]\n  base: dc=x\n  filter: \"(uid={login})\"\n";
        let piece =
            if piece.contains("servers:") { piece.to_owned() } else { piece.replacen("directory:\n", whole, 1) };
        let forwards = piece.contains("\ntokens:");
        let rest = if forwards { rest.replacen("server3, ", "server3, token: forward, ", 1) } else { rest.to_owned() };
        // Users that act for a mailbox need an account there.
        let service = "server3, service: {login: usher, password_file: p}, ";
        let delivery = "server3, delivery: \"lmtp:inet:server3.example.com:24\", ";
        let rest = if piece.contains("socketmap:") { rest.replacen("server3, ", delivery, 1) } else { rest };
        let rest = if piece.contains("grant_attribute") { rest.replacen("server3, ", service, 1) } else { rest };
        let config = parse_text(&format!("{piece}{rest}"));
        assert_eq!(config.map(|config| config.warnings), Ok(Vec::new()), "{piece}");
    }
}

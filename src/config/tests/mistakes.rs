//! The report of each mistake.

use std::fs;

use super::*;

const SECOND_LISTENER: &str = "  - {protocol: imap, address: \"[::]:143\", tls: starttls}";

#[track_caller]
fn second_listener(listener: &str, key: &str, phrase: &str) {
    mistake(SECOND_LISTENER, &format!("  - {listener} # HERE"), &format!("listeners[1]{key}"), phrase);
}

#[test]
fn listener_mistakes_are_reported() {
    second_listener("{address: \"[::]:143\", tls: starttls}", ".protocol", "missing: write `imap`");
    second_listener("{protocol: nntp, address: \"[::]:143\", tls: starttls}", ".protocol", "write one of `imap`");
    second_listener("{protocol: imap, tls: starttls}", ".address", "missing: write an IP address");
    second_listener("{protocol: imap, address: \"mail:143\", tls: starttls}", ".address", "such as \"[::]:993\"");
    second_listener("{protocol: imap, address: \"[::]\", tls: starttls}", ".address", "such as \"[::]:993\"");
    second_listener("{protocol: imap, address: 143, tls: starttls}", ".address", "a text: put it in quotes");
    second_listener("{protocol: imap, address: \"[::]:143\"}", ".tls", "missing: write `implicit`");
    second_listener("{protocol: imap, address: \"[::]:143\", tls: none}", ".tls", "`implicit`, `starttls`");
    for name in ["", "a:b", "imap s", &"x".repeat(65)] {
        let listener = format!("{{protocol: imap, address: \"[::]:143\", tls: starttls, socket: \"{name}\"}}");
        second_listener(&listener, ".socket", if name.is_empty() { "" } else { "1 to 64 letters" });
    }
    second_listener("imap", "", "expected keys with values");
    second_listener("!imap {}", "", "a value with a tag");
}

#[test]
fn proxy_and_webmail_mistakes_are_reported() {
    let listener = |more: &str| format!("{{protocol: imap, address: \"[::]:143\", tls: starttls, {more}}}");
    second_listener(&listener("proxy_header: required"), ".trusted", "missing: list the networks of your proxies");
    second_listener(
        &listener("proxy_header: on, trusted: 192.0.2.1"),
        ".proxy_header",
        "write one of `off`, `required`",
    );
    second_listener(&listener("proxy_header: required, trusted: []"), ".trusted", "the list is empty");
    let trusted = |trusted: &str| listener(&format!("proxy_header: required, trusted: {trusted}"));
    second_listener(&trusted("[192.0.2.1/24]"), ".trusted[0]", "no bit set behind the prefix");
    second_listener(&trusted("proxy.example.com"), ".trusted", "an address or a network");
    let suspicious = |text: String, phrase: &str| {
        suspicion(SECOND_LISTENER, &format!("  - {text} # HERE"), "listeners[1].trusted", phrase);
    };
    suspicious(trusted("0.0.0.0/0"), "every address is trusted");
    suspicious(listener("trusted: 192.0.2.1"), "without effect");
    mistake("[198.51.100.9,", "[webmail, # HERE\n ", "trusted[0]", "an address or a network");
    let endpoint = "tls: implicit, server_name";
    let forward = |word: &str| format!("tls: implicit, forward: {word}, # HERE\n       server_name");
    let key = "routing.backends[0].imap.forward";
    mistake(
        endpoint,
        &forward("xclient"),
        key,
        "imap has no such command: write `id`, `proxy_v1`, `proxy_v2` or `none`",
    );
    // Each protocol has one command at the most.
    let sieve = "tls: implicit, server_name: x.example.com}\n      managesieve: {address: \"x.example.com:4190\", \
                 tls: starttls, forward: id, # HERE\n       server_name";
    let key_of_sieve = "routing.backends[0].managesieve.forward";
    mistake(endpoint, sieve, key_of_sieve, "managesieve has no such command: write `xclient`, `proxy_v1`");
    let ehlo = "tls: implicit, ehlo: client, # HERE\n       server_name";
    mistake(endpoint, ehlo, "routing.backends[0].imap.ehlo", "imap has no such command: remove it");
    let ehlo = "tls: implicit, server_name: x.example.com}\n      submission: {address: \"x.example.com:587\", \
                tls: starttls, ehlo: usher, # HERE\n       server_name";
    mistake(endpoint, ehlo, "routing.backends[0].submission.ehlo", "write one of `own`, `client`");
    mistake(endpoint, &forward("proxy"), key, "write one of `none`, `proxy_v1`, `proxy_v2`, `id`, `xclient`");
}

#[test]
fn colliding_listeners_are_reported() {
    for address in ["[::]:993", "[2001:db8::1]:993", "192.0.2.1:993", "[::ffff:192.0.2.1]:993"] {
        let listener = format!("{{protocol: imap, address: \"{address}\", tls: implicit}}");
        second_listener(&listener, ".address", "already used by listeners[0].address");
    }
    let specific = "{protocol: imap, address: \"192.0.2.1:993\", tls: implicit}";
    second_listener(
        specific,
        ".address",
        "([::] takes IPv4 too, unless 0.0.0.0 is configured at the port): change one",
    );
    sound(
        "\"[::]:993\", tls: implicit}\n  - {protocol: imap, address: \"[::]:143\", tls: starttls}",
        "\"[::]:993\", tls: implicit}\n  - {protocol: imap, address: \"0.0.0.0:993\", tls: implicit}",
    );
    mistake("\"[::1]:9931\"}", "\"127.0.0.1:143\"} # HERE", "admin.address", "already used by listeners[1].address");
    sound(
        "\"[::]:993\", tls: implicit}\n  - {protocol: imap, address: \"[::]:143\", tls: starttls}",
        "\"192.0.2.1:993\", tls: implicit}\n  - {protocol: imap, address: \"192.0.2.2:993\", tls: implicit}",
    );
    sound(
        "\"[::]:993\", tls: implicit}\n  - {protocol: imap, address: \"[::]:143\", tls: starttls}",
        "\"0.0.0.0:993\", tls: implicit}\n  - {protocol: imap, address: \"[::1]:993\", tls: implicit}",
    );
}

#[test]
fn missing_listeners_are_reported() {
    let text = replaced("listeners:\n", "x:\n");
    let problems = parse_text(&text).unwrap_err();
    assert_eq!((problems[0].key.as_str(), problems[0].line), ("x", Some(2)));
    assert_eq!((problems[1].key.as_str(), problems[1].line), ("listeners", None));
    assert!(problems[1].message.contains("missing: add `- {protocol: imap"), "{}", problems[1]);
    let text = "listeners: []\n";
    let problems = parse_text(text).unwrap_err();
    assert!(problems[0].to_string().starts_with("/etc/usher/config.yaml:1: listeners: the list is empty"));
}

#[test]
fn tls_mistakes_are_reported() {
    mistake("  min_version: \"1.3\"", "  min_version: 1.1 # HERE", "tls.min_version", "`1.2`, `1.3`");
    mistake("[X25519, P-384]", "[] # HERE", "tls.groups", "the list is empty");
    mistake("[X25519, P-384]", "[X25519, P-521] # HERE", "tls.groups[1]", "`X25519MLKEM768`");
    mistake(
        "[X25519, P-384]",
        "\n   - P-384\n   - secp384r1 # HERE",
        "tls.groups[1]",
        "already used by tls.groups[0] in line 11",
    );
    mistake("[TLS_AES_256_GCM_SHA384]", "[] # HERE", "tls.cipher_suites", "the list is empty");
    let unknown = "[TLS_AES_256_GCM_SHA384, TLS_RSA_WITH_AES_128_CBC_SHA] # HERE";
    mistake("[TLS_AES_256_GCM_SHA384]", unknown, "tls.cipher_suites[1]", "TLS_CHACHA20_POLY1305_SHA256");
    let old = "[TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256] # HERE";
    mistake("[TLS_AES_256_GCM_SHA384]", old, "tls.cipher_suites", "add a TLS 1.3 suite");
    mistake(
        "  client_ca: clients.pem\n  client_auth: required",
        "  client_auth: required # HERE",
        "tls.client_auth",
        "needs `client_ca`",
    );
    mistake("client_auth: required", "client_auth: always # HERE", "tls.client_auth", "`off`, `optional`, `required`");
    mistake("client_ca: clients.pem", "client_ca: # HERE", "tls.client_ca", "the value is missing");
    mistake("client_ca: clients.pem", "client_ca: \"\" # HERE", "tls.client_ca", "the path is empty");
    mistake("client_ca: clients.pem", "client_ca: ~/clients.pem # HERE", "tls.client_ca", "not expanded");
    mistake("client_ca: clients.pem", "client_ca: $HOME/clients.pem # HERE", "tls.client_ca", "not expanded");
    mistake("client_ca: clients.pem", "client_ca: /x/${HOST}.pem # HERE", "tls.client_ca", "not expanded");
    mistake("client_ca: clients.pem", "client_ca: \"a\\nb\" # HERE", "tls.client_ca", "control character");
}

#[test]
fn certificate_mistakes_are_reported() {
    let pair = "certificates:\n    - chain: tls/fullchain.pem\n      key: /etc/tls/privkey.pem";
    mistake(pair, "certificates: [] # HERE", "tls.certificates", "the list is empty");
    mistake(pair, "certificates: # HERE", "tls.certificates", "the value is missing");
    mistake(pair, "certificates: {chain: a, key: b} # HERE", "tls.certificates", "a list (each item begins with `- `)");
    mistake(pair, "certificates:\n   - chain: a # HERE", "tls.certificates[0].key", "missing: name the PEM file");
    mistake(pair, "certificates:\n   - key: a # HERE", "tls.certificates[0].chain", "missing: name the PEM file");
    mistake(
        "tls:\n  certificates:\n    - chain: tls/fullchain.pem\n      key: /etc/tls/privkey.pem",
        "tls: # HERE",
        "tls.certificates",
        "missing: add `- {chain",
    );
}

const PIN: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
const SERVERS: &str = "[\"ldap://ldap1.example.com\", \"ldap://[2001:db8::1]:3389\"]";

#[test]
fn directory_server_mistakes_are_reported() {
    let key = "directory.servers";
    mistake(SERVERS, "[] # HERE", key, "the list is empty");
    mistake(&format!("directory:\n  servers: {SERVERS}"), "directory: # HERE", key, "missing: name at least one");
    mistake(SERVERS, "ldap1.example.com # HERE", key, "write ldap://host");
    mistake(
        SERVERS,
        "[ldap://a, \"ldap://b/dc=example\"] # HERE",
        "directory.servers[1]",
        "the base DN goes into `base`",
    );
    mistake(SERVERS, "\"ldap://2001:db8::1\" # HERE", key, "in brackets");
    mistake(
        SERVERS,
        "[ldap://a, \"ldap://A:389\"] # HERE",
        "directory.servers[1]",
        "already used by directory.servers[0]",
    );
    mistake(SERVERS, "[ldap://a, ldaps://b] # HERE", "directory.servers[1]", "`starttls: true`, or remove");
    let one = |server: &str, key: &str, phrase: &str| {
        mistake(SERVERS, &format!("[{server}] # HERE"), &format!("directory.servers[0]{key}"), phrase);
    };
    one("{server_name: a.example.com}", ".url", "missing: write the server's URL");
    one("{url: a.example.com}", ".url", "write ldap://host");
    one("{url: ldaps://a}", ".url", "`starttls: true`, or remove");
    one("{url: ldap://a, server_name: \"a b\"}", ".server_name", "not a host name or IP address");
    one("{url: ldap://a, pin_sha256: abc}", ".pin_sha256", "44 characters");
    one("{url: ldap://a, pin_sha256: []}", ".pin_sha256", "the list is empty");
    one("{url: ldap://a, sni: b}", ".sni", "allowed here: url, server_name, pin_sha256");
    one("{url: \"ldapi://%2Frun%2Fldapi\", server_name: a}", ".server_name", "shows no certificate: remove it");
    one("7", "", "found a number, but expected a text");
    mistake(
        SERVERS,
        "[ldap://a, {url: \"ldap://A:389\"}] # HERE",
        "directory.servers[1].url",
        "already used by directory.servers[0]",
    );
    mistake(
        &format!("{SERVERS}\n  starttls: true"),
        &format!("[{{url: ldap://127.0.0.1, pin_sha256: \"{PIN}\"}}] # HERE"),
        "directory.servers[0].pin_sha256",
        "this server is reached without TLS",
    );
    mistake(
        &format!("{SERVERS}\n  starttls: true"),
        "[ldap://127.0.0.1, ldap://b] # HERE",
        "directory.servers[1]",
        "`plaintext: true`",
    );
    mistake(
        "starttls: true",
        "starttls: yes # HERE",
        "directory.starttls",
        "found a text, but expected `true` or `false`",
    );
}

#[test]
fn mistakes_about_servers_by_dns_are_reported() {
    let name = "srv:_ldap._tcp.example.com";
    let one = |server: &str, key: &str, phrase: &str| {
        mistake(SERVERS, &format!("[{server}] # HERE"), &format!("directory.servers[0]{key}"), phrase);
    };
    one("\"srv:ldap.example.com\"", "", "such as srv:_ldap._tcp.example.com");
    one("\"srv:_ldap._tcp.example.com:389\"", "", "the records name the port");
    one("{url: \"ldaps+srv:_ldap._tcp.example.com:x\"}", ".url", "a number from 1 to 65535");
    one("\"ldaps+srv:_ldap._tcp.example.com\"", "", "`starttls: true`, or remove");
    one("\"srv:_ldap._tcp.corp\"", "", "list the servers' names in `srv_targets`");
    let twice = format!("[\"{name}\", \"SRV:_ldap._tcp.example.com\"] # HERE");
    mistake(SERVERS, &twice, "directory.servers[1]", "already used by directory.servers[0]");
    let text = replaced(SERVERS, &format!("[\"{name}\"]")).replace("  ca: ldap-ca.pem\n", "");
    let problems = parse_text(&text).unwrap_err();
    assert!(problems.len() == 1 && problems[0].key == "directory.ca", "{problems:#?}");
    assert!(problems[0].message.contains("DNS, which nothing signs"), "{problems:#?}");

    let more = |key: &str, value: &str| format!("[\"{name}\"]\n  {key}: {value} # HERE");
    for (key, value, at, phrase) in [
        ("srv_targets", "[\"*.net\"]", "[0]", "\"*.example.net\" for all hosts"),
        ("srv_targets", "[192.0.2.1]", "[0]", "write a host such as"),
        ("srv_targets", "[]", "", "the list is empty"),
        ("resolver", "dns.example.com", "", "the IP address of a DNS server"),
        ("resolver", "[192.0.2.53, \"192.0.2.54:0\"]", "[1]", "with :port if it is not 53"),
        ("resolver", "\"0.0.0.0\"", "", "the IP address of a DNS server"),
    ] {
        mistake(SERVERS, &more(key, value), &format!("directory.{key}{at}"), phrase);
    }
    let many = (0..65).map(|number| format!("dc{number}.example.net")).collect::<Vec<_>>().join(", ");
    mistake(SERVERS, &more("srv_targets", &format!("[{many}]")), "directory.srv_targets", "more than 64");
    suspicion(
        SERVERS,
        &format!("{SERVERS}\n  srv_targets: dc1.example.net # HERE"),
        "directory.srv_targets",
        "no server is named by SRV records",
    );
    // The records are reached with StartTLS, whether or not the key says so; a pin stands in for the authority.
    let config =
        sound(SERVERS, &format!("[\"{name}\"]\n  srv_targets: \"*.Example.net.\"\n  resolver: \"192.0.2.53\""));
    assert_eq!(config.directories[0].srv_targets, [SrvTarget::Below("example.net".to_owned())]);
    assert_eq!(config.directories[0].resolver, ["192.0.2.53:53".parse().unwrap()]);
    let pinned = format!("[{{url: \"{name}\", pin_sha256: \"{PIN}\"}}]");
    let text = replaced(SERVERS, &pinned).replace("  ca: ldap-ca.pem\n", "").replace("  starttls: true\n", "");
    let config = parse_text(&text).unwrap();
    assert!(config.directories[0].servers[0].has_tls(false) && config.warnings.is_empty(), "{:#?}", config.warnings);
}

#[test]
fn user_lookup_mistakes_are_reported() {
    let (base, filter) = ("  base: ou=people,dc=example,dc=com", "  filter: (|(uid={local})(mail={login}))");
    let both = format!("{base}\n{filter}");
    let dn = "uid={login},dc=x";
    mistake(&both, &format!("{both}\n  user_dn: {dn} # HERE"), "directory.user_dn", "either this or those");
    mistake(&both, &format!("{base}\n  user_dn: {dn} # HERE"), "directory.user_dn", "either this or those");
    // A missing key is reported at its section.
    let directory = Some(14);
    only_problem(&replaced(&both, ""), directory, "directory", "`base` and `filter`, or `user_dn`");
    only_problem(&replaced(base, ""), directory, "directory.base", "missing: `filter` needs one");
    only_problem(&replaced(filter, ""), directory, "directory.filter", "missing: `base` needs one");
    mistake(base, "  base: people # HERE", "directory.base", "not a DN (RFC 4514)");
    for (filter, phrase) in [
        ("(uid={user})", "unknown placeholder {user}: there are {login}, {local} and {domain}"),
        ("(uid=alice)", "names no user"),
        ("(o={domain})", "names no user"),
        ("uid={login}", "not a filter (RFC 4515)"),
        ("(uid={login}", "not a filter (RFC 4515)"),
        ("({login}=x)", "placeholders in values only"),
        ("(uid={login)", "brace"),
    ] {
        mistake("(|(uid={local})(mail={login}))", &format!("\"{filter}\" # HERE"), "directory.filter", phrase);
    }
    mistake(&both, "  user_dn: \"dc=x\" # HERE", "directory.user_dn", "names no user");
    mistake(&both, "  user_dn: \"{login}@example.com\" # HERE", "directory.user_dn", "needs `base`");
}

#[test]
fn service_account_mistakes_are_reported() {
    let (dn, file) = ("  bind_dn: cn=usher,dc=example,dc=com\n", "  bind_password_file: ldap.password\n");
    only_problem(&replaced(dn, ""), Some(14), "directory.bind_dn", "missing: name the account");
    only_problem(&replaced(file, ""), Some(14), "directory.bind_password_file", "missing: name the file");
    mistake("cn=usher,dc=example,dc=com", "usher # HERE", "directory.bind_dn", "not a DN");
    mistake("cn=usher,dc=example,dc=com", "\"\" # HERE", "directory.bind_dn", "not a DN");
}

#[test]
fn attribute_mistakes_are_reported() {
    mistake("mailServer", "mail host # HERE", "directory.mail_host_attribute", "letters, digits and hyphens");
    mistake("login_attribute: uid", "login_attribute: 0.9.2342 # HERE", "directory.login_attribute", "attribute name");
    let networks = "login_attribute: uid\n  networks_attribute: \"allow nets\" # HERE";
    mistake("login_attribute: uid", networks, "directory.networks_attribute", "attribute name");
}

#[test]
fn durations_out_of_range_are_reported() {
    mistake(
        "attempt_timeout: 700ms",
        "attempt_timeout: 4s # HERE",
        "directory.attempt_timeout",
        "longer than `timeout`",
    );
    mistake(
        "attempt_timeout: 700ms",
        "attempt_timeout: 10ms # HERE",
        "directory.attempt_timeout",
        "write 50ms to 10s (default 1200ms)",
    );
    mistake(
        "balance: round_robin",
        "max_message: 4KiB # HERE",
        "directory.max_message",
        "write 16KiB to 64MiB (default 1MiB)",
    );
    mistake(
        "  timeout: 3s",
        "  timeout: 11s # HERE",
        "directory.timeout",
        "out of range: write 100ms to 10s (default 5s)",
    );
    mistake("  timeout: 3s", "  timeout: 0s # HERE", "directory.timeout", "out of range");
    mistake("  timeout: 3s", "  timeout: 3 # HERE", "directory.timeout", "needs a unit: write it like 30s");
    mistake("  timeout: 3s", "  timeout: \"3\" # HERE", "directory.timeout", "needs a unit");
    mistake("  timeout: 3s", "  timeout: 3 s # HERE", "directory.timeout", "without a blank");
    mistake("  timeout: 3s", "  timeout: [3s] # HERE", "directory.timeout", "found a list, but expected a duration");
    mistake("max: 8,", "max: 0, # HERE\n   ", "directory.connections.max", "write 1 to 1000 (default 16)");
    mistake("{min: 2, max", "{min: 9, # HERE\n    max", "directory.connections.min", "more than `max`");
    mistake(
        "max_operations: 5000}",
        "max_operations: 0} # HERE",
        "directory.connections.max_operations",
        "out of range",
    );
    mistake("stale: 2h", "stale: 30s # HERE\n ", "cache.stale", "shorter than `ttl`");
    mistake("ttl: 1m", "ttl: 2d # HERE\n ", "cache.ttl", "write 100ms to 1d (default 5m)");
    mistake("ttl: 1m,", "ttl: 0s, # HERE\n ", "cache.ttl", "out of range");
    mistake(
        "negative_ttl: 5s,",
        "negative_ttl: 2h, # HERE\n ",
        "cache.negative_ttl",
        "write 100ms to 1h (default 30s)",
    );
    mistake("capacity: 10}", "capacity: 0} # HERE", "cache.capacity", "write 1 to 10000000 (default 100000)");
    for (from, to, phrase) in [
        ("connections: 100", "connections: 0", "write 1 to 1000000 (default 60000)"),
        ("connections: 100", "connections: -5", "out of range"),
        ("connections: 100", "connections: 1.5", "out of range"),
        ("connections: 100", "connections: \"100\"", "a whole number without quotes"),
        ("handshake_timeout: 5s", "handshake_timeout: 1h", "write 100ms to 5m (default 10s)"),
        ("login_timeout: 20s", "login_timeout: 11m", "write 100ms to 10m (default 30s)"),
        ("prelogin_timeout: 40s", "prelogin_timeout: 2h", "write 100ms to 1h (default 1m)"),
        ("failed_logins: 5", "failed_logins: 101", "write 1 to 100 (default 3)"),
        ("bad_commands: 4", "bad_commands: 0", "write 1 to 1000 (default 10)"),
        ("max_backend_greeting: 1MiB", "max_backend_greeting: 1GiB", "write 1KiB to 16MiB (default 64KiB)"),
        ("max_backend_greeting: 1MiB", "max_backend_greeting: 65536", "a size needs a unit"),
        ("max_backend_greeting: 1MiB", "max_backend_greeting: 64KB", "units: B, KiB, MiB, GiB"),
        ("idle_timeout: 1h", "idle_timeout: 0s", "write 1s to 7d (default 65m)"),
    ] {
        let (key, _) = from.split_once(':').unwrap();
        mistake(&format!("  {from}"), &format!("  {to} # HERE"), &format!("limits.{key}"), phrase);
    }
    mistake("{delay: 1s,", "{delay: 11m, # HERE\n ", "drain.delay", "write 0 to 10m (default 0)");
    mistake(
        "deadline: 10s, max_closes_per_second: 7, upgrade_deadline: 2h}",
        "deadline: 25h} # HERE",
        "drain.deadline",
        "write 0 to 1d (default 30s)",
    );
}

#[test]
fn backend_name_and_host_mistakes_are_reported() {
    let name = "    - name: server4\n";
    mistake(
        name,
        "    - name: server3 # HERE\n      hosts: other\n",
        "routing.backends[1].name",
        "`server3` is already used by routing.backends[0].name in line 43",
    );
    mistake("- name: server4\n", "- name: Server4 # HERE\n", "routing.backends[1].name", "a-z, 0-9");
    mistake(
        "- name: server3\n      hosts: [server3, Server3.Example.COM.]",
        "- hosts: x # HERE",
        "routing.backends[0].name",
        "missing: write a short name",
    );
    let hosts = "hosts: [server3, Server3.Example.COM.]";
    mistake(hosts, "hosts: [] # HERE", "routing.backends[0].hosts", "the list is empty");
    mistake(
        hosts,
        "hosts: [a, A.] # HERE",
        "routing.backends[0].hosts[1]",
        "`a` is already used by routing.backends[0].hosts[0]",
    );
    mistake(hosts, "hosts: [a b] # HERE", "routing.backends[0].hosts[0]", "mailHost value");
    mistake(hosts, "hosts: 3 # HERE", "routing.backends[0].hosts", "found a number, but expected a list");
    for (key, words) in [("balance", "`first`, `user_hash`"), ("on_return", "`keep`, `close`")] {
        let path = format!("routing.backends[0].imap.{key}");
        let name = "server_name: server3.example.com}";
        mistake(name, &format!("server_name: server3.example.com, {key}: random}} # HERE"), &path, words);
    }
    let both = "hosts: [SERVER3.example.com] # HERE";
    mistake(
        "pin_sha256",
        &format!("{both}\n      pin_sha256"),
        "routing.backends[1].hosts[0]",
        "already used by routing.backends[0].hosts[1]",
    );
    // The name of a backend without `hosts` is its host.
    mistake(
        "- name: server4",
        "- name: server3.example.com # HERE",
        "routing.backends[1].name",
        "already used by routing.backends[0].hosts[1]",
    );
}

#[test]
fn networks_without_a_canary_are_suspicious() {
    let text = replaced("  login_attribute: uid", "  networks_attribute: nets # HERE\n  login_attribute: uid");
    assert_eq!(parse_text(&text).unwrap().warnings, []);
    let text = text
        .replace("  canary: {login: canary@example.com, mail_host: server3}\n", "")
        .replace("  default: server3\n", "");
    let warnings = parse_text(&text).unwrap().warnings;
    let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
    assert_eq!((warning.key.as_str(), warning.line), ("directory.networks_attribute", marked(&text)), "{warning}");
    assert!(warning.message.contains("directory.canary"), "{warning}");
}

#[test]
fn networks_read_as_the_user_are_suspicious() {
    let alone = "listeners: [{protocol: imap, address: '127.0.0.1:993', tls: implicit}]
tls: {certificates: [{chain: c.pem, key: k.pem}]}
routing: {backends: [{name: server3, hosts: [server3], imap: {address: '192.0.2.3:993', tls: implicit}}]}
directory:
  servers: ['ldaps://one']
  user_dn: 'uid={login},dc=x'
  networks_attribute: nets # HERE
";
    let told = |text: &str| {
        let warnings = parse_text(text).unwrap().warnings;
        warnings.into_iter().find(|warning| warning.message.contains("read as the user"))
    };
    let warning = told(alone).unwrap();
    assert_eq!((warning.key.as_str(), warning.line), ("directory.networks_attribute", marked(alone)), "{warning}");
    assert_eq!(told(&format!("{alone}  bind_dn: cn=usher\n  bind_password_file: p\n")), None);
}

#[test]
fn password_filter_needs_a_service_account() {
    let text = replaced(
        "  base: ou=people,dc=example,dc=com\n  filter: (|(uid={local})(mail={login}))",
        "  user_dn: uid={local},ou=people,dc=example,dc=com\n  password_filter: (employeeType=legacy) # HERE",
    );
    let key = "directory.password_filter";
    // With one only the lack of another way in is suspicious.
    let warnings = parse_text(&text).unwrap().warnings;
    let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
    assert_eq!((warning.key.as_str(), warning.line), (key, marked(&text)), "{warning}");
    assert!(warning.message.contains("`tokens` has no issuer"), "{warning}");
    let text = text.replace("  bind_dn: cn=usher,dc=example,dc=com\n  bind_password_file: ldap.password\n", "");
    let problems = parse_text(&text).unwrap_err();
    let problem = problems.iter().find(|problem| problem.key == key).unwrap();
    assert_eq!(problem.line, marked(&text), "{problem}");
    assert!(problem.message.contains("needs `bind_dn`"), "{problem}");
}

#[test]
fn routing_default_mistakes_are_reported() {
    let text = replaced("default: server3", "default: server3 # HERE")
        .replace("  canary: {login: canary@example.com, mail_host: server3}\n", "");
    let warnings = parse_text(&text).unwrap().warnings;
    let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
    assert_eq!((warning.key.as_str(), warning.line), ("routing.default", marked(&text)), "{warning}");
    assert!(warning.message.contains("directory.canary"), "{warning}");
    mistake("default: server3", "default: server5 # HERE", "routing.default", "there are: server3, server4");
    mistake("default: server3", "default: [server3] # HERE", "routing.default", "expected a text");
    let text = "routing: {backends: []}";
    let problems = parse_text(text).unwrap_err();
    assert!(problems.iter().any(|p| p.key == "routing.backends" && p.message.contains("empty")), "{problems:#?}");
}

#[test]
fn backend_endpoint_mistakes_are_reported() {
    let key = "routing.backends[0].imap";
    let imap = "      imap: {address: \"192.0.2.3:993\", tls: implicit, server_name: server3.example.com}";
    let endpoint = |endpoint: &str, part: &str, phrase: &str| {
        mistake(imap, &format!("      imap: {endpoint} # HERE"), &format!("{key}{part}"), phrase);
    };
    endpoint("{tls: implicit}", ".address", "missing: write host and port");
    endpoint("{address: \"server3\", tls: implicit}", ".address", "write a host and a port");
    endpoint("{address: \"server3:0\", tls: implicit}", ".address", "from 1 to 65535");
    endpoint("{address: \"2001:db8::1:993\", tls: implicit}", ".address", "in brackets");
    endpoint("{address: \"server3:993\"}", ".tls", "missing: write `implicit`");
    endpoint("{address: \"server3:993\", tls: plaintext}", ".tls", "`plaintext-insecure`");
    endpoint(
        "{address: \"server3:993\", tls: implicit, server_name: \"*.example.com\"}",
        ".server_name",
        "not a host name",
    );
    endpoint("{address: \"server3:993\", tls: implicit, sni: x}", ".sni", "allowed here: address, tls, server_name");
    endpoint("server3:993", "", "expected keys with values");
    only_problem(&replaced(imap, ""), Some(43), "routing.backends[0]", "serves no protocol: add `imap`");
}

#[test]
fn backend_address_mistakes_are_reported() {
    let key = "routing.backends[0].imap.address";
    let address = "\"192.0.2.3:993\",";
    mistake(address, "[], # HERE\n       ", key, "the list is empty");
    let twice = "[\"a:993\", \"A:993\"], # HERE\n       ";
    mistake(address, twice, &format!("{key}[1]"), "`a:993` is already used");
    mistake(address, "[\"a:993\", \"a\"], # HERE\n       ", &format!("{key}[1]"), "write a host and a port");
    mistake(address, "[\"a:993\", \"[::1]:993\"], # HERE\n       ", &format!("{key}[1]"), "usher's own listeners");
    let many: Vec<_> = (1..=17).map(|n| format!("\"a:{n}\"")).collect();
    mistake(address, &format!("[{}], # HERE\n       ", many.join(", ")), key, "more than 16 addresses");
    let hosts = "address: [server4.example.com:143, mail4.example.com:143] # HERE";
    let text = replaced("address: server4.example.com:143", hosts);
    let problems = parse_text(&text).unwrap_err();
    assert!(problems.len() == 1 && problems[0].key == "routing.backends[1].imap.server_name", "{problems:#?}");
    assert!(problems[0].message.contains("there are several hosts"), "{problems:#?}");
}

#[test]
fn probe_mistakes_are_reported() {
    let key = |key: &str| format!("routing.backends[0].{key}");
    mistake("probe: tcp", "probe: ping # HERE", &key("probe"), "`off`, `tcp`, `greeting`, `login`");
    mistake("probe: tcp", "probe: false # HERE", &key("probe"), "expected a text");
    mistake("probe: tcp", "probe: login # HERE", &key("probe"), "needs `probe_account`");
    mistake(
        "probe_interval: 1m",
        "probe_interval: 500ms # HERE",
        &key("probe_interval"),
        "write 1s to 1h (default 10s)",
    );
    mistake("failures: 5", "failures: 0 # HERE", &key("failures"), "write 1 to 100 (default 3)");
    mistake("slow_start: 0s", "slow_start: 11m # HERE", &key("slow_start"), "write 0 to 10m (default 10s)");
    let in_flight = "logins_in_flight: 0 # HERE";
    mistake("logins_in_flight: 20", in_flight, &key("logins_in_flight"), "write 1 to 100000 (default 200)");
    let account = "{login: probe, password_file: probe.password}";
    mistake(account, "{login: probe} # HERE", "routing.backends[1].probe_account.password_file", "missing");
    mistake(
        account,
        "{password: x, # HERE\n        login: p, password_file: x}",
        "routing.backends[1].probe_account.password",
        "passwords are not allowed in the configuration",
    );
}

#[test]
fn source_address_mistakes_are_reported() {
    let key = "routing.backends[0].source";
    let from = "logins_in_flight: 20";
    let to = |list: &str| format!("{from}\n      source: [{list}] # HERE");
    for (bad, at) in
        [("eth0", "[0]"), ("0.0.0.0", "[0]"), ("192.0.2.1, \"::ffff:192.0.2.1\"", "[1]"), ("224.0.0.1", "[0]")]
    {
        mistake(from, &to(bad), &format!("{key}{at}"), "write an IP address of this machine");
    }
    mistake(from, &to("192.0.2.31, 192.0.2.31"), &format!("{key}[1]"), "already used");
    mistake(from, &to("\"2001:db8::31\""), key, "no IPv4 address, and 192.0.2.3:993 has no other: add one");
    mistake(from, &to(""), key, "the list is empty");
}

#[test]
fn backend_loop_is_reported() {
    for address in ["localhost:993", "127.0.0.1:993", "[::1]:143", "[::]:143"] {
        let imap = format!("\"{address}\", # HERE\n       ");
        mistake("\"192.0.2.3:993\",", &imap, "routing.backends[0].imap.address", "usher's own listeners");
    }
}

#[test]
fn mistakes_in_the_groups_of_servers_are_reported() {
    let pin = "pin_sha256: [47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=]";
    for (section, before, blanks) in [("directory", "servers: ", "  "), ("routing.backends[1]", pin, "      ")] {
        let with = |groups: &str| format!("groups: {groups} # HERE\n{blanks}{before}");
        mistake(before, &with("[]"), &format!("{section}.groups"), "the list is empty");
        mistake(before, &with("[x25519, P-521]"), &format!("{section}.groups[1]"), "`X25519MLKEM768`, `x25519`");
        mistake(before, &with("admins"), &format!("{section}.groups"), "write one of `X25519MLKEM768`");
        mistake(before, &with("[P-256, prime256v1]"), &format!("{section}.groups[1]"), "already used by");
        let config = sound(before, &format!("groups: [x25519, P-256]\n{blanks}{before}"));
        let groups =
            if section == "directory" { &config.directories[0].groups } else { &config.routing.backends[1].groups };
        assert_eq!(*groups, [Group::X25519, Group::Secp256r1]);
    }
}

#[test]
fn mistake_in_the_only_backend_of_a_protocol_is_one_problem() {
    let text = replaced(SECOND_LISTENER, "  - {protocol: pop3, address: \"[::]:110\", tls: starttls}");
    let pop3 = |pop3: &str, groups: &str| {
        text.replacen("      imap:\n", &format!("      groups: {groups}\n      pop3: {pop3}\n      imap:\n"), 1)
    };
    let sound = "{address: \"192.0.2.4:110\", tls: starttls}";
    let text = pop3(sound, "[] # HERE");
    only_problem(&text, marked(&text), "routing.backends[1].groups", "the list is empty");
    let text = pop3("{address: \"192.0.2.4:110\", tls: none} # HERE", "[x25519]");
    only_problem(&text, marked(&text), "routing.backends[1].pop3.tls", "write one of `implicit`");
}

#[test]
fn pin_mistakes_are_reported() {
    let pin = "[47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=]";
    mistake(pin, "47DEQpj8HBSa # HERE", "routing.backends[1].pin_sha256", "base64 form of a SHA-256");
    mistake(pin, "[] # HERE", "routing.backends[1].pin_sha256", "the list is empty");
    let text = "[47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=, x] # HERE";
    mistake(pin, text, "routing.backends[1].pin_sha256[1]", "base64 form of a SHA-256");
}

#[test]
fn service_account_requires_names_from_the_directory() {
    let text = replaced("  login_attribute: uid\n", "").replace("server4.password}", "server4.password} # HERE");
    let key = "routing.backends[1].service";
    only_problem(&text, marked(&text), key, "needs `directory.login_attribute`");
    only_problem(&text, marked(&text), key, "could log in as any user");
    let service = "{login: usher, password_file: server4.password}";
    mistake(service, "{login: usher} # HERE", "routing.backends[1].service.password_file", "missing");
    mistake(service, "{password_file: x} # HERE", "routing.backends[1].service.login", "missing");
    mistake(service, "{login: \"\", password_file: x} # HERE", "routing.backends[1].service.login", "empty");
}

#[test]
fn timeouts_beyond_ten_seconds_are_reported() {
    mistake("timeout: 6s", "timeout: 7001ms # HERE", "routing.backends[0].timeout", "longer than 10s");
    sound("timeout: 6s", "timeout: 7s");
    // The default counts too: 6.5 s and 4 s.
    let text = replaced("  timeout: 3s", "  timeout: 6500ms").replace("timeout: 6s", "timeout: 1s");
    only_problem(&text, Some(54), "routing.backends[1].timeout", "longer than 10s");
}

#[test]
fn other_mistakes_are_reported() {
    mistake(
        "admin: {address: \"[::1]:9931\"}",
        "admin: {address: \"9930\"} # HERE",
        "admin.address",
        "an IP address and a port",
    );
    for (hosts, key) in [("[a.example, \"b c\"]", "admin.hosts[1]"), ("192.0.2.1", "admin.hosts")] {
        let admin = format!("admin: {{address: \"[::1]:9931\", hosts: {hosts}}} # HERE");
        mistake("admin: {address: \"[::1]:9931\"}", &admin, key, "write a host name");
    }
    mistake("{user: usher, group", "{user: a b, # HERE\n group", "process.user", "write a user name of letters");
    mistake(
        "{user: usher, group: mail",
        "{user: usher, group: a b # HERE\n ",
        "process.group",
        "write a group name of letters",
    );
    mistake("control: {path: control.sock, group: mail}", "control: # HERE", "control.path", "missing: write the path");
    let nginx = "auth_http: {address: \"127.0.0.1:9940\", allow: 127.0.0.1, key_file: nginx.key}";
    mistake(nginx, "auth_http: {allow: 127.0.0.1} # HERE", "auth_http.address", "missing: write an IP address");
    mistake(nginx, "auth_http: {address: \"127.0.0.1:9940\"} # HERE", "auth_http.allow", "missing: name");
    let taken = "auth_http: {address: \"[::1]:9931\", allow: 127.0.0.1} # HERE";
    mistake(nginx, taken, "auth_http.address", "already used by admin.address");
    let hop = "auth_http: {address: 127.0.0.1, port: 1143}";
    let key = "routing.backends[1].imap.auth_http";
    mistake(hop, "auth_http: {port: 0} # HERE", &format!("{key}.port"), "write 1 to 65535");
    mistake(hop, "auth_http: {address: localhost} # HERE", &format!("{key}.address"), "write an IP address");
    let far = "auth_http: {address: \"192.0.2.1:9940\", allow: 192.0.2.1} # HERE";
    suspicion(nginx, far, "auth_http.address", "in clear");
    let all = "auth_http: {address: \"127.0.0.1:9940\", allow: 0.0.0.0/0} # HERE";
    suspicion(nginx, all, "auth_http.allow", "any host may send requests");
    for network in ["127.0.0.1", "127.0.0.0/8", "\"::1\"", "\"::/1\"", "126.0.0.0/7", "[192.0.2.1, 127.0.0.2]"] {
        let unkeyed = format!("auth_http: {{address: \"127.0.0.1:9940\", allow: {network}}} # HERE");
        suspicion(nginx, &unkeyed, "auth_http.allow", "any user of this machine may send requests");
    }
    let text = replaced(hop, "auth_http: {}");
    let warnings = parse_text(&text).unwrap().warnings;
    assert!(
        matches!(warnings.as_slice(), [one] if one.message.contains("no backend has a port for it")),
        "{warnings:?}"
    );
    let long = "x".repeat(100);
    mistake("control.sock", &format!("{long} # HERE\n "), "control.path", "longer than 107 bytes");
    mistake("group: mail}", "group: \"m m\"} # HERE", "control.group", "name of letters");
    mistake("config_reload: auto", "config_reload: always # HERE", "config_reload", "`manual`, `auto`");
    mistake("format: json,", "format: xml, # HERE\n ", "log.format", "`text`, `json`");
    mistake("client_address: full}", "client_address: none} # HERE", "log.client_address", "`full`, `network`");
    mistake("level: debug,", "level: verbose, # HERE\n ", "log.level", "`error`, `warn`, `info`, `debug`, `trace`");
    mistake(
        "drain: {delay: 1s, deadline: 10s, max_closes_per_second: 7, upgrade_deadline: 2h}",
        "drain: 10s # HERE",
        "drain",
        "found a text, but expected keys with values",
    );
}

#[test]
fn unknown_keys_are_reported_with_a_suggestion() {
    mistake(
        "  idle_timeout",
        "  idle_timout: 1h # HERE\n  idle_timeout",
        "limits.idle_timout",
        "did you mean `idle_timeout`? allowed here: connections, ",
    );
    // The name of a file with a secret, misspelt, is no secret.
    mistake(
        "  bind_dn",
        "  bind_passwordfile: x # HERE\n  bind_dn",
        "directory.bind_passwordfile",
        "did you mean `bind_password_file`?",
    );
    mistake("log:", "loging: x # HERE\nlog:", "loging", "unknown key");
    mistake("log:", "Log: x # HERE\nlog:", "Log", "did you mean `log`?");
    mistake("log:", "1: x # HERE\nlog:", "1", "unknown key");
    only_problem(&replaced("log:", "[a]: x\nlog:"), None, "", "a key must be text");
}

#[test]
fn inline_passwords_are_refused_and_never_repeated() {
    for (from, to, key, file) in [
        ("  bind_dn", "  bind_password: hunter2 # HERE\n  bind_dn", "directory.bind_password", "`bind_password_file`"),
        ("  bind_dn", "  bindpw: hunter2 # HERE\n  bind_dn", "directory.bindpw", "`bind_password_file`"),
        (
            "{login: usher",
            "{password: hunter2, # HERE\n  login: usher",
            "routing.backends[1].service.password",
            "`password_file`",
        ),
        ("log:", "secret: hunter2 # HERE\nlog:", "secret", "put it into a file"),
    ] {
        mistake(from, to, key, file);
        mistake(from, to, key, "passwords are not allowed in the configuration");
    }
}

/// No message repeats a value of any key.
#[test]
fn values_are_never_repeated() {
    let lines: Vec<_> = SOUND.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        for (start, _) in line.match_indices(": ") {
            for value in [
                "hunter2 {x",
                "[hunter2]",
                "{hunter2: hunter2}",
                "!!int hunter2",
                "!hunter2 x",
                "\"hunter2\\n\"",
                "*hunter2",
                "'hunter2",
                "hunter2${x}",
            ] {
                let rest = &line[start + 2..];
                let end = rest.find([',', '}']).unwrap_or(rest.len());
                let changed = format!("{}: {value}{}", &line[..start], &rest[end..]);
                let mut text = lines.clone();
                text[at] = &changed;
                for problem in parse_text(&text.join("\n")).err().into_iter().flatten() {
                    let harmless = problem.key.ends_with("hunter2");
                    assert!(harmless || !problem.to_string().contains("hunter2"), "{changed}\n{problem}");
                }
            }
        }
    }
}

#[test]
fn all_mistakes_are_reported_in_file_order() {
    let text = SOUND
        .replace("tls: starttls}", "tls: maybe}")
        .replace("  timeout: 3s", "  timeout: 3")
        .replace("- name: server4", "- nam: server4")
        .replace("format: json", "format: xml")
        .replace("attempt_timeout: 700ms", "attempt_timeout: no");
    let keys: Vec<_> = parse_text(&text).unwrap_err().into_iter().map(|problem| problem.key).collect();
    assert_eq!(
        keys,
        [
            "listeners[1].tls",
            "directory.timeout",
            "directory.attempt_timeout",
            "routing.backends[1].name",
            "routing.backends[1].nam",
            "log.format",
        ]
    );
}

#[test]
fn invalid_yaml_is_reported() {
    let at = |text: &str, line, phrase| only_problem(text, line, "", phrase);
    at("a: 1\nb: [1, 2\nc: 3\n", Some(3), "not YAML: ");
    at("a: 1\n\tb: 2\n", Some(2), "not YAML: ");
    at("a: *nowhere\n", Some(1), "unknown anchor");
    at("a: 1\n---\nb: 2\n", None, "more than one YAML document");
    at("", None, "the file is empty");
    at("# only a comment\n", None, "the file is empty");
    at("just words\n", None, "expected keys with values");
    at(&"[".repeat(10_000), Some(1), "not YAML: ");
    at("a: !!int hunter2\n", Some(1), "does not fit its tag");
}

#[test]
fn alias_bomb_is_bounded() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let items = vec![format!("*a{}", level - 1); 9].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    let problems = parse_text(&text).unwrap_err();
    assert!(problems[0].message.contains("repetition limit"), "{}", problems[0]);
}

#[test]
fn duplicate_keys_are_reported() {
    let text = replaced("  starttls: true", "  starttls: true\n  starttls: false").replace("log:", "cache: {}\nlog:");
    let problems: Vec<_> = parse_text(&text).unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "/etc/usher/config.yaml:17: directory.starttls: given twice, first in line 16: keep one",
            "/etc/usher/config.yaml:98: cache: given twice, first in line 65: keep one",
        ]
    );
}

#[test]
fn merge_keys_are_not_merged() {
    mistake("  connections: 100\n", "  <<: {connections: 100} # HERE\n", "limits.<<", "merge keys are not supported");
}

#[test]
fn unreadable_files_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let reported = |name: &str| {
        let problems = load(&directory.path().join(name)).unwrap_err();
        let [problem] = problems.problems.as_slice() else { panic!("{problems:#?}") };
        assert_eq!((problem.line, problem.key.as_str()), (None, ""));
        problem.message.clone()
    };
    assert!(reported("missing.yaml").contains("no such file: name it with --config"));
    assert!(reported(".").contains("cannot be read"));
    fs::write(directory.path().join("latin1.yaml"), b"a: gr\xfc\xdfe\n").unwrap();
    assert!(reported("latin1.yaml").contains("not UTF-8"));
    let utf16: Vec<u8> = "a: 1\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(directory.path().join("utf16.yaml"), utf16).unwrap();
    assert!(reported("utf16.yaml").contains("the file is UTF-16 text"));
    fs::write(directory.path().join("large.yaml"), vec![b'#'; 1_048_577]).unwrap();
    assert!(reported("large.yaml").contains("larger than 1 MiB"));
    fs::write(directory.path().join("empty.yaml"), b"").unwrap();
    assert!(reported("empty.yaml").contains("the file is empty"));
}

#[test]
fn config_file_is_read_from_disk() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.yaml");
    // With the byte order mark and line ends of Windows editors.
    fs::write(&file, format!("\u{feff}{}", SOUND.replace('\n', "\r\n"))).unwrap();
    let config = load(&file).unwrap();
    assert_eq!(config.file, file);
    assert_eq!(config.tls.client_ca, Some(directory.path().join("clients.pem")));
    assert_eq!(config.problem("tls.min_version", "x").line, Some(9));
}

#[test]
fn throttle_mistakes_are_reported() {
    let exempt = |text: &str, key: &str| {
        mistake(
            "exempt: [192.0.2.0/24, \"2001:db8::7\"]",
            &format!("exempt: {text} # HERE"),
            key,
            "a network, such as",
        );
    };
    exempt("192.0.2.1/24", "throttle.exempt");
    exempt("[192.0.2.0/24, 192.0.2.0/33]", "throttle.exempt[1]");
    exempt("[office]", "throttle.exempt[0]");
    exempt("[\"::ffff:192.0.2.1\"]", "throttle.exempt[0]");
    let more = "balance: round_robin\n  allow_attribute: x\n ";
    mistake(
        "balance: round_robin",
        "allow_values: {imap: [x]} # HERE",
        "directory.allow_values",
        "needs `allow_attribute`",
    );
    mistake(
        "balance: round_robin",
        &format!("{more} allow_filter: \"(uid={{login}})\" # HERE"),
        "directory.allow_filter",
        "the same for every user",
    );
    mistake("balance: round_robin", "allow_filter: memberOf # HERE", "directory.allow_filter", "not a filter");
    let filter = |text: &str, phrase: &str| {
        mistake("balance: round_robin", &format!("{text} # HERE"), "directory.password_filter", phrase);
    };
    filter("password_filter: \"(uid={login})\"", "the same for every user");
    filter("password_filter: loginMethod=password", "not a filter");
    filter("password_filter: \"(loginMethod=password\"", "not a filter");
    filter("password_filter: \"\"", "not a filter");
    filter("password_filter: [\"(a=b)\"]", "expected a text");
    let found = "base: ou=people,dc=example,dc=com\n  filter: (|(uid={local})(mail={login}))";
    mistake(found, "user_dn: \"{login}@ad.example.com\" # HERE", "directory.user_dn", "userPrincipalName");
    mistake(found, "base: dc=x\n  user_dn: \"{login}@{domain}@x\" # HERE", "directory.user_dn", "principal name");
    let cache = SOUND.lines().find(|line| line.starts_with("cache:")).unwrap();
    let shorter = "cache: {negative_ttl: 5s, negative_ttl_max: 1s} # HERE";
    mistake(cache, shorter, "cache.negative_ttl_max", "shorter than");
    mistake("balance: round_robin", "result_53: locked # HERE", "directory.result_53", "`account_locked`");
    mistake("ipv4_prefix: 24", "ipv4_prefix: 33 # HERE", "throttle.ipv4_prefix", "write 8 to 32 (default 32)");
    mistake("forget_every: 2m", "forget_every: 2 # HERE", "throttle.forget_every", "needs a unit");
    let rule = |key: &str, text: &str, found: &str, phrase: &str| {
        let line = SOUND.lines().find(|line| line.trim_start().starts_with(&format!("{key}: {{mode"))).unwrap();
        mistake(line, &format!("  {key}: {text} # HERE"), &format!("throttle.{key}{found}"), phrase);
    };
    rule("handshakes", "{mode: off}", ".mode", "`enforce`, `dry_run`");
    rule("sessions_per_user", "{limit: 0}", ".limit", "write 1 to 1000000 (default 60)");
    rule("failed_logins_per_user", "{max_delay: 6s}", ".max_delay", "write 100ms to 5s (default 4s)");
    rule("failed_logins_per_user", "{first_delay: 3s, max_delay: 2s}", ".first_delay", "longer than `max_delay`");
    rule("logins_per_second", "{per: 3}", ".per", "unknown key");
    rule("password_spraying", "{names_per_minute: 241}", ".names_per_minute", "write 1 to 240 (default 30)");
    rule("password_spraying", "{max_delay: 6s}", ".max_delay", "write 100ms to 5s (default 4s)");
    rule("password_spraying", "{first_delay: 3s, max_delay: 2s}", ".first_delay", "longer than `max_delay`");
    rule("password_spraying", "{free_failures: 3}", ".free_failures", "unknown key");
}

#[test]
fn impossible_canary_is_reported() {
    let canary = "canary: {login: canary@example.com, mail_host: server3}";
    let key = "directory.canary";
    mistake(canary, "canary: {login: canary} # HERE", "directory.canary.mail_host", "missing: the mail host");
    mistake(canary, "canary: {login: \"\", mail_host: x} # HERE", "directory.canary.login", "1 to 512 bytes");
    let filter = "filter: (|(uid={local})(mail={login}))";
    let text = replaced(filter, "filter: (mail={local}@{domain})")
        .replace(canary, "canary: {login: canary, mail_host: x} # HERE");
    only_problem(&text, marked(&text), "directory.canary.login", "lacks a part");
    let text = replaced(canary, "canary: {login: canary, mail_host: x} # HERE");
    let text =
        text.replace("  bind_dn: cn=usher,dc=example,dc=com\n  bind_password_file: ldap.password\n", "").replace(
            "  base: ou=people,dc=example,dc=com\n  filter: (|(uid={local})(mail={login}))",
            "  user_dn: \"uid={login},dc=x\"",
        );
    only_problem(&text, marked(&text), key, "only a service account can read it");
}

#[test]
fn server_name_must_be_a_host_name() {
    for name in ["192.0.2.1", "\"2001:db8::1\"", "mail example.com", "\"\""] {
        mistake(
            "hostname: mail.example.com",
            &format!("hostname: {name} # HERE"),
            "hostname",
            "such as mail.example.com",
        );
    }
}

#[test]
fn advertised_list_must_consist_of_capabilities() {
    let key = "capabilities.imap[0]";
    for (capability, phrase) in [
        ("STARTTLS", "cannot be advertised for imap"),
        ("\"ID  x\"", "single spaces"),
        ("\"caf\u{e9}\"", "printable words"),
        ("\"\"", "printable words"),
    ] {
        let with = format!("hostname: mail.example.com\ncapabilities: {{imap: [{capability}]}} # HERE");
        mistake("hostname: mail.example.com", &with, key, phrase);
    }
    let with = "hostname: mail.example.com\ncapabilities: {imap: []} # HERE";
    mistake("hostname: mail.example.com", with, "capabilities.imap", "the list is empty");
    let with = "hostname: mail.example.com\ncapabilities: {submission: [X-EXPS]} # HERE";
    mistake("hostname: mail.example.com", with, "capabilities.submission[0]", "cannot be advertised for submission");
    let long: Vec<String> = (0..5).map(|n| format!("LIMITS X{n}{}", "x".repeat(900))).collect();
    let with = format!("hostname: mail.example.com\ncapabilities: {{submission: [{}]}} # HERE", long.join(", "));
    mistake("hostname: mail.example.com", &with, "capabilities.submission", "longer than 4096 bytes");
    let with = "hostname: mail.example.com\ncapabilities: {nntp: [ID]} # HERE";
    mistake("hostname: mail.example.com", with, "capabilities.nntp", "unknown key");
}

#[test]
fn old_name_of_a_key_is_an_error_that_names_the_new_one() {
    let old = [
        ("  client_auth: required", "  client_certificate: required # HERE", "tls.client_certificate"),
        ("  balance: round_robin", "  bind_connections: 8 # HERE", "directory.bind_connections"),
        ("idle_timeout: 20s, ", "idle: 20s, # HERE\n    ", "directory.connections.idle"),
        ("max_age: 10m, ", "age: 10m, # HERE\n    ", "directory.connections.age"),
        ("max_operations: 5000}", "operations: 5000} # HERE", "directory.connections.operations"),
        ("slow_start: 0s", "ramp: 0s # HERE", "routing.backends[0].ramp"),
        ("max_backend_greeting: 1MiB", "backend_untagged: 1MiB # HERE", "limits.backend_untagged"),
        ("prelogin_timeout: 40s", "conversation_timeout: 40s # HERE", "limits.conversation_timeout"),
        ("free_failures: 30, ", "free: 30, # HERE\n    ", "throttle.failed_logins_per_prefix.free"),
        ("free_failures: 7, ", "free: 7, # HERE\n    ", "throttle.failed_logins_per_user.free"),
        ("known_network_ttl: 7d", "known_for: 7d # HERE", "throttle.known_for"),
        ("trusted: [198.51.100.9, \"2001:db8:9::/64\"]", "trusted_networks: 198.51.100.9 # HERE", "trusted_networks"),
    ];
    for (from, to, path) in old {
        let new = renamed::key(path).unwrap_or_else(|| panic!("{path} is not in the table"));
        mistake(from, to, path, &format!("renamed: write `{new}`"));
    }
    for (pattern, _) in renamed::all() {
        assert!(old.iter().any(|(_, _, path)| path.replace("[0]", "[]") == pattern), "{pattern} has no example here");
    }
    assert_eq!(renamed::key("routing.backends[12].ramp"), Some("slow_start"));
    for other in ["ramp", "routing.backends[].ramp", "routing.backends[0].imap.ramp", "limits.ramp", "trusted"] {
        assert_eq!(renamed::key(other), None, "{other}");
    }
}

#[test]
fn old_word_is_an_error_that_names_the_new_one() {
    let words = [("cannot_tell", "unavailable"), ("not_now", "outside_logon_hours"), ("not_here", "wrong_workstation")];
    for key in ["result_19", "result_50", "result_53"] {
        for (old, new) in words {
            let to = format!("balance: round_robin\n  {key}: {old} # HERE");
            let phrase = format!("`{old}` was renamed: write `{new}`");
            mistake("balance: round_robin", &to, &format!("directory.{key}"), &phrase);
        }
    }
    mistake("balance: round_robin", "balance: not_now # HERE", "directory.balance", "write one of");
}

#[test]
fn listener_has_client_certificates_of_its_own() {
    let line = "  - {protocol: imap, address: \"[::]:993\", tls: implicit}";
    let with = |keys: &str| format!("  - {{protocol: imap, address: \"[::]:993\", tls: implicit, {keys}}} # HERE");
    let clients = |keys: &str| {
        let clients = &sound(line, &with(keys)).listeners[0].clients;
        let name = |path: &Option<std::path::PathBuf>| {
            path.as_ref().map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        };
        (clients.auth, name(&clients.ca), name(&clients.crl))
    };
    let (common, own) = (Some("clients.pem".to_owned()), Some("own.pem".to_owned()));
    assert_eq!(clients("client_auth: optional"), (ClientAuth::Optional, common.clone(), None));
    assert_eq!(clients("crl: a.crl"), (ClientAuth::Required, common, Some("a.crl".into())));
    assert_eq!(clients("client_ca: own.pem"), (ClientAuth::Optional, own.clone(), None));
    assert_eq!(
        clients("client_ca: own.pem, client_auth: required, crl: b.crl"),
        (ClientAuth::Required, own, Some("b.crl".into()))
    );
    let wrong = |keys: &str, key: &str, words: &str| mistake(line, &with(keys), &format!("listeners[0].{key}"), words);
    wrong("client_auth: always", "client_auth", "`off`, `optional`, `required`");
    wrong("client_ca: \"\"", "client_ca", "the path is empty");
    wrong("crl: ~/a.crl", "crl", "not expanded");
    wrong("client_login: {}", "client_login.match", "missing: write `certificate`");
    wrong("client_login: {match: cn}", "client_login.match", "`certificate`, `san_email`");
    wrong("client_login: {match: certificate, ignore_authzid: 1}", "client_login.ignore_authzid", "`true` or `false`");
    wrong("client_login: {match: certificate, crl: x}", "client_login.crl", "unknown key");
    wrong("client_auth: off, client_login: {match: certificate}", "client_login", "needs `client_ca`");
    let own = "needs a `client_ca` of this listener";
    wrong("client_login: {match: san_email}", "client_login", own);
    let unlisted = "without effect: `mechanisms` does not list EXTERNAL";
    wrong("client_login: {match: certificate}, mechanisms: [PLAIN, LOGIN]", "client_login", unlisted);
    wrong("mechanisms: [PLAIN, EXTERNAL]", "mechanisms", "EXTERNAL needs `client_login`");
    wrong("client_ca: clients.pem, client_login: {match: san_email}", "client_login", own);
    let sound = with("client_ca: own.pem, client_login: {match: san_email}");
    suspicion(line, &sound, "listeners[0].client_login", "the backend server3 has no `service`");
    let without = SOUND.replace("  client_ca: clients.pem\n  client_auth: required\n", "  crl: a.crl # HERE\n");
    let problems = parse_text(&without).unwrap_err();
    assert!(
        problems.iter().any(|problem| problem.key == "tls.crl" && problem.message.contains("needs `client_ca`")),
        "{problems:?}"
    );
}

#[test]
fn client_auth_needs_a_ca_unless_it_is_off() {
    let ca = "  client_ca: clients.pem\n  client_auth: required";
    for word in ["optional", "required"] {
        mistake(ca, &format!("  client_auth: {word} # HERE"), "tls.client_auth", "needs `client_ca`");
    }
    assert_eq!(sound(ca, "  client_auth: off").tls.client_auth, ClientAuth::Off);
    assert_eq!(sound(ca, "  client_ca: clients.pem").tls.client_auth, ClientAuth::Optional);
    suspicion(ca, "  client_ca: clients.pem # HERE\n  client_auth: off", "tls.client_ca", "without effect");
}

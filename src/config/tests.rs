//! Whole files: the values of a valid one, and the report of each mistake.
//!
//! A mistake is made by replacing a part of [`SOUND`]. The line that the problem must name is the
//! one that ends in `# HERE`.

use super::*;

/// Every key of the config except `user_dn`, one per line where it matters.
const SOUND: &str = r#"
listeners:
  - {protocol: imap, address: "[::]:993", tls: implicit}
  - {protocol: imap, address: "[::]:143", tls: starttls}
tls:
  certificates:
    - chain: tls/fullchain.pem
      key: /etc/tls/privkey.pem
  min_version: "1.3"
  groups: [X25519, P-384]
  cipher_suites: [TLS_AES_256_GCM_SHA384]
  client_ca: clients.pem
  client_auth: required
directory:
  servers: ["ldap://ldap1.example.com", "ldap://[2001:db8::1]:3389"]
  starttls: true
  plaintext: false
  ca: ldap-ca.pem
  client_certificate: {chain: lc.pem, key: lk.pem}
  bind_dn: cn=usher,dc=example,dc=com
  bind_password_file: ldap.password
  base: ou=people,dc=example,dc=com
  filter: (|(uid={local})(mail={login}))
  mail_host_attribute: mailServer
  login_attribute: uid
  timeout: 3s
  attempt_timeout: 700ms
  balance: round_robin
  connections: {min: 2, max: 8, idle_timeout: 20s, max_age: 10m, max_operations: 5000}
  canary: {login: canary@example.com, mail_host: server3}
  watch: off
  poll_interval: 1m
  on_move: keep
  on_disable: keep
  on_lockout: keep
  on_password_change: close
  brake: 500
  hold_attribute: mailHold
  hold_timeout: 5s
routing:
  default: server3
  backends:
    - name: server3
      hosts: [server3, Server3.Example.COM.]
      ca: backend-ca.pem
      client_certificate: {chain: c.pem, key: k.pem}
      imap: {address: "192.0.2.3:993", tls: implicit, server_name: server3.example.com}
      timeout: 6s
      probe: tcp
      probe_interval: 1m
      failures: 5
      slow_start: 0s
      logins_in_flight: 20
    - name: server4
      pin_sha256: [47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=]
      service: {login: usher, password_file: server4.password}
      pass_backend_refusals: false
      probe: login
      probe_account: {login: probe, password_file: probe.password}
      imap:
        auth_http: {address: 127.0.0.1, port: 1143}
        address: server4.example.com:143
        tls: starttls
cache: {ttl: 1m, negative_ttl: 5s, stale: 2h, capacity: 10}
limits:
  connections: 100
  proxy_header_timeout: 2s
  handshake_timeout: 5s
  login_timeout: 20s
  prelogin_timeout: 40s
  refusal_delay: 1s
  failed_logins: 5
  bad_commands: 4
  max_backend_greeting: 1MiB
  idle_timeout: 1h
  on_unavailable: reply_and_close
throttle:
  ipv4_prefix: 24
  ipv6_prefix: 48
  exempt: [192.0.2.0/24, "2001:db8::7"]
  capacity: 5000
  forget_every: 2m
  known_network_ttl: 7d
  failed_logins_per_prefix: {mode: enforce, free_failures: 30, first_delay: 1s, max_delay: 3s}
  failed_logins_per_user: {mode: dry_run, free_failures: 7, limit: 4, first_delay: 100ms, max_delay: 2s}
  password_spraying: {mode: enforce, names_per_minute: 8, first_delay: 200ms, max_delay: 5s}
  connections_per_prefix: {mode: enforce, limit: 11}
  handshakes: {mode: dry_run, limit: 12}
  handshakes_per_prefix: {mode: enforce, limit: 13}
  sessions_per_user: {mode: dry_run, limit: 14}
  sessions_per_user_and_prefix: {mode: enforce, limit: 15}
  logins_per_second: {mode: dry_run, limit: 16}
drain: {delay: 1s, deadline: 10s, max_closes_per_second: 7, upgrade_deadline: 2h}
admin: {address: "[::1]:9931"}
control: {path: control.sock, group: mail}
process: {user: usher, group: mail, debug: true}
log: {format: json, level: debug, client_address: full}
config_reload: auto
hostname: mail.example.com
trusted: [198.51.100.9, "2001:db8:9::/64"]
auth_http: {address: "127.0.0.1:9940", allow: 127.0.0.1, key_file: nginx.key}
"#;

/// The same text with `delivery` in both backends.
fn delivering(text: &str) -> String {
    let mut text = text.to_owned();
    for (at, host) in [("      logins_in_flight: 20\n", "server3"), ("      pass_backend_refusals: false\n", "server4")]
    {
        assert!(text.contains(at), "{at}");
        text = text.replacen(at, &format!("{at}      delivery: \"lmtp:inet:{host}.example.com:24\"\n"), 1);
    }
    text
}

/// Every key of `tokens`, to stand behind [`SOUND`].
const TOKENS: &str = "\
tokens:
  - issuer: https://idp.example.com/realms/corp
    jwks: jwks.json
    audience: [mail, imap]
    clients: thunderbird
    scopes: [openid, mail]
    login_claim: sub
    filter: (entryUUID={claim})
    domains: [example.com, Example.NET]
    domain_attribute: mailAlternateAddress
  - issuer: https://login.microsoftonline.com/2d4e3b11-7b7d-4b1b-8f7e-0a6d0c2f8a11/v2.0
    discovery: https://idp.internal.example.com:8443/x
    audience: api://mail
    login_claim: oid
    domains: example.org
    ca: idp-ca.pem
    proxy: 'http://proxy.example.com:3128/'
    introspection: {url: 'https://idp.example.com/introspect', client_id: usher, client_secret_file: idp.secret}
";

/// The same with backends that get tokens.
fn forwarding(text: &str) -> String {
    let add = |text: String, name: &str| {
        let line = format!("    - name: {name}\n");
        text.replacen(&line, &format!("{line}      token: forward\n"), 1)
    };
    add(add(text.to_owned(), "server3"), "server4")
}

fn parse_text(text: &str) -> Result<Config, Vec<Problem>> {
    parse(Path::new("/etc/usher/config.yaml"), text).map_err(|mistakes| mistakes.problems)
}

fn replaced(from: &str, to: &str) -> String {
    assert!(SOUND.contains(from), "{from:?} is not in SOUND");
    SOUND.replacen(from, to, 1)
}

/// The line that ends in `# HERE`.
fn marked(text: &str) -> Option<u64> {
    text.lines().zip(1..).find(|(line, _)| line.ends_with("# HERE")).map(|(_, number)| number)
}

/// One replacement makes exactly one problem, in the marked line, at this key, with this phrase.
#[track_caller]
fn mistake(from: &str, to: &str, key: &str, phrase: &str) {
    let text = replaced(from, to);
    only_problem(&text, marked(&text), key, phrase);
}

/// The text has exactly one problem, in this line, at this key, with this phrase.
#[track_caller]
fn only_problem(text: &str, line: Option<u64>, key: &str, phrase: &str) {
    let problems = parse_text(text).map(|config| config.warnings).expect_err("accepted");
    let [problem] = problems.as_slice() else { panic!("not one problem: {problems:#?}") };
    assert_eq!((problem.line, problem.key.as_str()), (line, key), "{problem}");
    assert!(problem.message.contains(phrase), "{problem}");
}

/// One replacement makes exactly one warning.
#[track_caller]
fn suspicion(from: &str, to: &str, key: &str, phrase: &str) {
    let text = replaced(from, to);
    let warnings = parse_text(&text).expect("refused").warnings;
    let [warning] = warnings.as_slice() else { panic!("not one warning: {warnings:#?}") };
    assert_eq!((warning.key.as_str(), warning.line), (key, marked(&text)), "{warning}");
    assert!(warning.message.contains(phrase), "{warning}");
}

#[track_caller]
fn sound(from: &str, to: &str) -> Config {
    let config = parse_text(&replaced(from, to)).expect("refused");
    assert_eq!(config.warnings, []);
    config
}

/// The directory section of a valid config with these keys.
#[track_caller]
pub(crate) fn sound_directory(keys: &str) -> Directory {
    let text = format!(
        "listeners: [{{protocol: imap, address: '127.0.0.1:993', tls: implicit}}]
tls: {{certificates: [{{chain: c.pem, key: k.pem}}]}}
directory: {{servers: ['ldaps://one'], {keys}}}
routing: {{backends: [{{name: server3, imap: {{address: '192.0.2.3:993', tls: implicit}}}}]}}
"
    );
    parse_text(&text).expect("refused").directories.remove(0)
}

mod directories;
mod impersonation;

mod values;

mod mistakes;
mod socketmap;
mod tokens;

mod example;
mod fleet;
mod schema;

//! Configurations with files that are right, wrong, missing or too open.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::config::parse;

fn secret(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn mistakes_of_the_config_and_its_files_are_reported_together() {
    let folder = tempfile::tempdir().unwrap();
    let one = rcgen::generate_simple_self_signed(vec!["one.example".to_owned()]).unwrap();
    let two = rcgen::generate_simple_self_signed(vec!["two.example".to_owned()]).unwrap();
    fs::write(folder.path().join("one.pem"), one.cert.pem()).unwrap();
    secret(&folder.path().join("two.key"), &two.signing_key.serialize_pem());
    secret(&folder.path().join("empty"), "\n");
    let text = "listeners: [{protocol: imap, address: '127.0.0.1:993', tls: implicit}]
tls: {certificates: [{chain: one.pem, key: two.key}]}
directory:
  servers: ['ldaps://ldap.example']
  ca: absent.pem
  bind_dn: cn=usher
  bind_password_file: empty
  base: dc=example
  filter: '(uid={login})'
routing:
  backends: [{name: server3, ca: absent.pem, imap: {address: '192.0.2.3:993', tls: implicit}}]
limits: {connections: none}
control: {path: control.sock, group: there-is-no-such-group}
";
    let mistakes = parse(&folder.path().join("config.yaml"), text).unwrap_err();
    let mut all = mistakes.problems;
    all.extend(problems(&mistakes.draft.unwrap()));
    let reported: Vec<_> = all.iter().map(|problem| (problem.key.as_str(), problem.line.unwrap())).collect();
    let expected = [
        ("limits.connections", 12),
        ("tls.certificates[0].key", 2),
        ("directory.bind_password_file", 7),
        ("directory.ca", 5),
        ("routing.backends[0].ca", 11),
        ("control.group", 13),
    ];
    assert_eq!(reported, expected, "{all:#?}");
}

const CONFIG: &str = "listeners: [{protocol: imap, address: '127.0.0.1:993', tls: implicit}]
tls: {certificates: [{chain: one.pem, key: one.key}]}
directory:
  servers: ['ldap://127.0.0.1']
  bind_dn: cn=usher
  bind_password_file: password
  base: dc=example
  filter: '(uid={login})'
routing:
  backends:
    - name: server3
      ca: ca.pem
      imap: {address: '192.0.2.3:993', tls: implicit}
      probe: login
      probe_account: {login: watcher, password_file: probe.password}
";

/// A folder with what [`CONFIG`] names.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let one = rcgen::generate_simple_self_signed(vec!["one.example".to_owned()]).unwrap();
    fs::write(folder.path().join("one.pem"), one.cert.pem()).unwrap();
    secret(&folder.path().join("one.key"), &one.signing_key.serialize_pem());
    fs::write(folder.path().join("ca.pem"), one.cert.pem()).unwrap();
    for name in ["password", "probe.password"] {
        secret(&folder.path().join(name), "service");
    }
    folder
}

#[test]
fn secrets_readable_by_others_are_refused() {
    let folder = folder();
    let config = parse(&folder.path().join("config.yaml"), CONFIG).unwrap();
    Files::read(&config).unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    for name in ["one.key", "password"] {
        fs::set_permissions(folder.path().join(name), Permissions::from_mode(0o644)).unwrap();
    }
    let problems = Files::read(&config).unwrap_err();
    let reported: Vec<_> = problems.iter().map(|problem| (problem.key.as_str(), problem.line.unwrap())).collect();
    assert_eq!(reported, [("tls.certificates[0].key", 2), ("directory.bind_password_file", 6)]);
    for problem in &problems {
        assert!(problem.message.contains("mode 0644") && problem.message.contains("run `chmod 640 /"), "{problem}");
    }
}

#[test]
fn secrets_readable_by_others_are_accepted_with_a_warning_in_a_closed_folder() {
    let text = CONFIG.replace("{cert", "{ticket_keys_file: ticket.keys, cert")
        + "      client_certificate: {chain: one.pem, key: client.key}\n"
        + "      service: {login: usher, password_file: service.password}\n"
        + "auth_http: {address: '127.0.0.1:9940', allow: 127.0.0.1, key_file: nginx.key}\n";
    let text = text
        .replace("  base: ", "  client_certificate: {chain: one.pem, key: ldap.key}\n  login_attribute: uid\n  base: ");
    let text = text.replace("ldap://", "ldaps://");
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    for name in ["ldap.key", "client.key"] {
        fs::copy(path("one.key"), path(name)).unwrap();
    }
    for name in ["service.password", "nginx.key"] {
        secret(&path(name), "service");
    }
    secret(&path("ticket.keys"), &format!("{}\n", "QUJD".repeat(16)));
    let config = parse(&path("config.yaml"), &text).unwrap();
    assert_eq!(Files::read(&config).unwrap().warnings, []);
    let expected = [
        ("tls.certificates[0].key", "one.key"),
        ("tls.ticket_keys_file", "ticket.keys"),
        ("directory.client_certificate.key", "ldap.key"),
        ("directory.bind_password_file", "password"),
        ("routing.backends[0].client_certificate.key", "client.key"),
        ("routing.backends[0].service.password_file", "service.password"),
        ("routing.backends[0].probe_account.password_file", "probe.password"),
        ("auth_http.key_file", "nginx.key"),
    ];
    for (_, name) in expected {
        fs::set_permissions(path(name), Permissions::from_mode(0o444)).unwrap();
    }
    for mode in [0o700, 0o750] {
        fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
        let warnings = Files::read(&config).unwrap().warnings;
        let keys: Vec<_> = warnings.iter().map(|warning| warning.key.as_str()).collect();
        assert_eq!(keys, expected.map(|(key, _)| key));
        let words = format!("(mode {mode:04o}) is closed to others: run `chmod 640 /");
        assert!(warnings.iter().all(|warning| warning.line.is_some() && warning.message.contains(&words)));
    }
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let mut refused: Vec<_> = Files::read(&config).unwrap_err().into_iter().map(|problem| problem.key).collect();
    let mut all = expected.map(|(key, _)| key.to_owned());
    refused.sort();
    all.sort();
    assert_eq!(refused, all);
}

#[test]
fn unusable_password_files_are_reported_with_cause_and_remedy() {
    let folder = folder();
    let config = parse(&folder.path().join("config.yaml"), CONFIG).unwrap();
    let path = folder.path().join("password");
    for (content, words) in [
        (&b"\xff\xfes\0\n\0"[..], "is UTF-16 text, as PowerShell's `>` and some editors write it: convert it with"),
        (b"\xef\xbb\xbfsecret\n", "begins with a byte order mark"),
        (b"\n", "is empty; put the password into its first line"),
        (b"a\0b", "holds NUL bytes"),
        (b"p\xe4ssword", "is not UTF-8"),
        (b"secret\n\n", "has more than one line"),
    ] {
        fs::write(&path, content).unwrap();
        let problems = Files::read(&config).unwrap_err();
        assert_eq!((problems.len(), problems[0].key.as_str()), (1, "directory.bind_password_file"));
        let words = format!("{} {words}", path.display());
        assert!(problems[0].message.starts_with(&words), "{}", problems[0].message);
    }
    fs::remove_file(&path).unwrap();
    let missing = Files::read(&config).unwrap_err();
    assert!(
        missing[0].message.ends_with("it must exist and be readable by the user that usher runs as"),
        "{missing:?}"
    );
    fs::create_dir(&path).unwrap();
    let problems = Files::read(&config).unwrap_err();
    assert!(problems[0].message.contains("it is a folder, not a regular file; name the file itself"), "{problems:?}");
}

#[test]
fn fingerprint_depends_only_on_content_owner_and_mode() {
    let folder = folder();
    let config = parse(&folder.path().join("config.yaml"), CONFIG).unwrap();
    let first = Fingerprint::of(&config);
    assert_eq!(Files::read(&config).unwrap().fingerprint, first);
    for name in ["one.pem", "one.key", "ca.pem", "password", "probe.password"] {
        let path = folder.path().join(name);
        let (content, mode) = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().permissions());
        fs::write(&path, "another").unwrap();
        let changed = Fingerprint::of(&config);
        assert_ne!(changed, first, "{name}");
        fs::remove_file(&path).unwrap();
        assert!(![first, changed].contains(&Fingerprint::of(&config)), "{name}");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o604)).unwrap();
        assert_ne!(Fingerprint::of(&config), first, "{name}");
        fs::set_permissions(&path, mode).unwrap();
        assert_eq!(Fingerprint::of(&config), first, "{name}");
    }
}

/// Only root can ask what another user may read, and only root needs to.
#[test]
fn files_that_the_user_of_the_service_cannot_read_are_named() {
    if !privileges::is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    mode(folder.path(), 0o755);
    let file = folder.path().join("usher.yaml");
    let text = "listeners: [{protocol: imap, address: '127.0.0.1:993', tls: implicit}]
tls: {certificates: [{chain: absent.pem, key: absent.key}]}
directory: {servers: ['ldaps://ldap.example'], base: dc=example, filter: '(uid={login})'}
routing: {backends: [{name: one, imap: {address: '192.0.2.3:993', tls: implicit}}]}
";
    fs::write(&file, text).unwrap();
    let mut config = parse(&file, text).unwrap();
    config.process.user = Some("nobody".into());
    let user = ServiceUser::of(&config).unwrap();
    assert_eq!(user, ServiceUser::Named("nobody".to_owned()));
    let found = |config: &Config| {
        let problems = unreadable(config, &user).unwrap();
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    // Files that do not exist are another mistake.
    assert_eq!(found(&config), Vec::<String>::new());
    mode(&file, 0o600);
    let [problem] = found(&config).try_into().unwrap();
    let name = file.display();
    assert!(problem.contains(&format!("the user nobody cannot read {name}: run `chgrp ")), "{problem}");
    assert!(problem.ends_with(&format!(" {name} && chmod 640 {name}`")), "{problem}");
    mode(&file, 0o644);
    mode(folder.path(), 0o700);
    let folder = folder.path().display();
    let problems = found(&config);
    assert!(problems.iter().all(|problem| problem.contains(&format!("its folder {folder} is closed"))), "{problems:?}");
    assert!(!problems.is_empty());
    // Files of backends that can be read, in a folder that cannot be listed.
    mode(file.parent().unwrap(), 0o755);
    let parts = file.with_file_name("backends.d");
    fs::create_dir(&parts).unwrap();
    fs::write(parts.join("one.yaml"), "{name: one, imap: {address: '192.0.2.3:993', tls: implicit}}\n").unwrap();
    fs::write(&file, format!("{}routing: {{backends_from: backends.d}}\n", text.split("routing").next().unwrap()))
        .unwrap();
    let with_parts = crate::config::load(&file).unwrap();
    assert_eq!(found(&with_parts), Vec::<String>::new());
    mode(&parts, 0o711);
    let [problem] = found(&with_parts).try_into().unwrap();
    let parts = parts.display();
    assert!(problem.contains(&format!("routing.backends_from: the user nobody cannot list {parts}: run")), "{problem}");
    assert!(problem.ends_with(&format!(" {parts} && chmod g+rx {parts}`")), "{problem}");
    // The other threads stay root.
    assert!(privileges::is_root());
    config.process.user = None;
    assert_eq!(ServiceUser::of(&config), None);
    config.file = "/etc/usher/config.yaml".into();
    assert!(ServiceUser::of(&config).is_some());
}

//! `usher init`: a configuration that `usher check` takes, and that users log in with.

use crate::kit::process::{run, write_secret};
use crate::kit::usher::BINARY;
use crate::kit::{Config, Imap, Usher, dovecot, password_of, shared, slapd};

#[test]
fn starter_configuration_passes_check_and_serves() {
    let config = Config::shared();
    let pair = &shared().usher;
    let (ca, password) = (shared().certificates.ca(), config.path("ldap.password"));
    let text = |path: &std::path::Path| path.display().to_string();
    let backend = format!("server3=server3.example.com:{}", 993);
    let url = slapd().tls_url();
    let arguments = [
        "init",
        "--ldap",
        &url,
        "--base",
        "dc=example,dc=com",
        "--bind-dn",
        "cn=usher,ou=services,dc=example,dc=com",
        "--bind-password-file",
        &text(&password),
        "--ca",
        &text(&ca),
        "--backend",
        &backend,
        "--certificate",
        &text(&pair.chain),
        "--key",
        &text(&pair.key),
    ];
    let written = run(BINARY, &arguments, b"").succeeded();
    assert!(written.stderr.contains("sudo usher check") && written.stderr.contains("systemctl enable"), "{written:?}");
    write_secret(&config.path("starter.yaml"), &written.stdout);
    let file = config.path("starter.yaml").display().to_string();
    run(BINARY, &["check", "--config", &file], b"").succeeded();
    // The ports of this machine in place of those of a mail server.
    let ports = [("[::]:993", "127.0.0.1:0"), ("[::]:143", "127.0.0.1:0"), ("127.0.0.1:9930", "127.0.0.1:0")];
    let served = ports.iter().fold(written.stdout, |text, (from, to)| text.replace(from, to));
    let served = served
        .replace("server3.example.com:993", &format!("127.0.0.1:{}", dovecot().imaps))
        .replace("/run/usher/control.sock", &text(&config.path("control.sock")));
    let mut config = config.replaced(serde_yaml::from_str(&served).unwrap());
    config.change("/log", serde_json::json!({"format": "json", "level": "debug"}));
    let usher = Usher::start(config);
    Imap::tls(usher.imaps_port()).login("alice", &password_of("alice")).ok();
}

#[test]
fn mistake_in_an_argument_writes_nothing() {
    let arguments = ["init", "--ldap", "ldaps://one", "--base", "people", "--certificate", "c", "--key", "k"];
    for (more, said) in [
        (&["--backend", "server3"][..], "NAME=HOST:PORT"),
        (&["--backend", "server3=one:993"], "directory.base"),
        (&[], "--backend"),
    ] {
        let output = run(BINARY, &[&arguments[..], more].concat(), b"");
        assert_eq!((output.code, output.stdout.as_str()), (64, ""), "{output:?}");
        assert!(output.stderr.contains(said), "{output:?}");
    }
}

#[test]
fn example_passes_check_once_its_four_files_exist() {
    let config = Config::shared();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.yaml");
    let file = config.file("example.yaml", std::fs::read(example).unwrap()).display().to_string();
    let check = || run(BINARY, &["check", "--config", &file], b"");
    let missing = check();
    assert_eq!(missing.code, 78, "{missing:#?}");
    let pair = &shared().usher;
    std::fs::create_dir_all(config.path("tls")).unwrap();
    config.file("tls/fullchain.pem", std::fs::read(&pair.chain).unwrap());
    write_secret(&config.path("tls/privkey.pem"), std::fs::read_to_string(&pair.key).unwrap());
    write_secret(&config.path("ldap.password"), "secret");
    config.file("ca.pem", std::fs::read(shared().certificates.ca()).unwrap());
    check().succeeded();
}

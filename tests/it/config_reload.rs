//! `config_reload: auto`: a changed config file is taken over without a command, and one with a mistake never.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::kit::certs::{Leaf, Pair};
use crate::kit::scripted::Scripted;
use crate::kit::{Config, Usher, shared, slapd};
use crate::reload_drain::{login, named};

const TAKEN_OVER: &str = "reloaded: changed configuration file";
const REFUSED: &str = "a changed configuration file is invalid; the previous one stays active";

fn leaf(name: &str) -> Pair {
    shared().certificates.leaf(name, Leaf::server(&["usher.example.com"]))
}

/// Copies this pair to files by this name.
fn install(config: &Config, pair: &Pair, name: &str) -> Value {
    let copy = |from: &PathBuf, end| {
        config.file(&format!("{name}.{end}"), std::fs::read(from).unwrap());
        format!("{name}.{end}")
    };
    json!({"chain": copy(&pair.chain, "pem"), "key": copy(&pair.key, "key")})
}

/// Waits until files were checked twice from now on, by certificates that change in between.
fn wait_for_two_checks(usher: &Usher, pairs: [&Pair; 2], name: &str) {
    for pair in pairs {
        let before = usher.metric("usher_certificate_reloads_total", &[("result", "ok")]);
        install(&usher.config, pair, name);
        usher.wait_metric("usher_certificate_reloads_total", &[("result", "ok")], before + 1.0);
    }
}

fn count(usher: &Usher, message: &str) -> usize {
    usher.logged().iter().filter(|line| line["message"] == message).count()
}

fn wait_refused(usher: &Usher, words: &str) {
    usher.wait_log(REFUSED, |line| line["problem"].as_str().is_some_and(|problem| problem.contains(words)));
    assert_eq!(usher.metric("usher_config_last_reload_successful", &[]), 0.0);
}

#[test]
fn changed_file_is_taken_over_without_a_command_and_an_invalid_one_never() {
    let (old, new) = (named("old"), named("new"));
    let (first, second) = (leaf("config-reload-1"), leaf("config-reload-2"));
    let config = Config::with_directory(slapd()).scripted(&old);
    let served = install(&config, &first, "served");
    let config = config.set("/tls/certificates", json!([served])).set("/tls/reload_interval", "1s");
    let mut usher = Usher::start(config.set("/config_reload", "auto"));
    let (mut session, said) = login(&usher);
    assert!(said.ends_with("this is old"), "{said}");
    usher.config.change("/routing/backends/0/imap/address", format!("127.0.0.1:{}", new.port));
    let file = usher.config.write();
    usher.wait_log(TAKEN_OVER, |_| true);
    session.command("NOOP").is("OK did NOOP");
    assert!(login(&usher).1.ends_with("this is new"));

    // Its mistake is reported once; the files of the configuration in force are followed meanwhile.
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{good}no_such_key: 1\n")).unwrap();
    wait_refused(&usher, "no_such_key: unknown key");
    wait_for_two_checks(&usher, [&second, &first], "served");
    assert_eq!(count(&usher, REFUSED), 1);
    std::fs::write(&file, &good[..good.len() / 2]).unwrap();
    wait_refused(&usher, "usher.yaml");
    usher.config.change("/admin/address", "127.0.0.1:9");
    usher.config.write();
    wait_refused(&usher, "needs a restart");
    std::fs::remove_file(&file).unwrap();
    wait_refused(&usher, "no such file");
    assert!(login(&usher).1.ends_with("this is new"));
    std::fs::write(&file, &good).unwrap();
    usher.wait_log("the configuration file is again the one in force", |_| true);
    assert_eq!(usher.metric("usher_config_last_reload_successful", &[]), 1.0);

    // It may name what comes later.
    usher.config.change("/admin/address", "127.0.0.1:0");
    usher.config.change("/tls/certificates", json!([{"chain": "later.pem", "key": "later.key"}]));
    usher.config.write();
    wait_refused(&usher, "later.pem");
    assert_eq!(count(&usher, TAKEN_OVER), 1);
    install(&usher.config, &second, "later");
    usher.wait_nth_log(2, TAKEN_OVER, |_| true);
    assert_eq!(login(&usher).0.connection().peer_certificates().unwrap()[0], second.certificates()[0]);
    assert_eq!(usher.metric("usher_config_last_reload_successful", &[]), 1.0);
    session.command("NOOP").is("OK did NOOP");

    // The last that is taken over is the one that says so.
    usher.config.change("/config_reload", "manual");
    usher.config.write();
    usher.wait_nth_log(3, TAKEN_OVER, |_| true);
    usher.config.change("/limits/failed_logins", 7);
    usher.config.write();
    wait_for_two_checks(&usher, [&first, &second], "later");
    assert_eq!(count(&usher, TAKEN_OVER), 3);
    assert_eq!(usher.hup()["message"], "reloaded");
}

#[test]
fn folder_of_backends_is_followed_and_a_half_written_file_changes_nothing() {
    let (old, new) = (named("old"), named("new"));
    let config = Config::with_directory(slapd()).scripted(&old).set("/tls/reload_interval", "1s");
    let text = std::fs::read_to_string(config.write()).unwrap();
    let backend = serde_yaml::from_str::<Value>(&text).unwrap()["routing"]["backends"][0].clone();
    let at = |server: &Scripted| {
        let mut backend = backend.clone();
        backend["imap"]["address"] = format!("127.0.0.1:{}", server.port).into();
        serde_yaml::to_string(&backend).unwrap()
    };
    let config = config.without("/routing/backends").set("/routing/backends_from", "backends.d/");
    let folder = config.path("backends.d");
    std::fs::create_dir(&folder).unwrap();
    let (file, whole) = (folder.join("server3.yaml"), at(&new));
    std::fs::write(&file, at(&old)).unwrap();
    let usher = Usher::start(config.set("/config_reload", "auto"));
    let (mut session, said) = login(&usher);
    assert!(said.ends_with("this is old"), "{said}");

    // Half of it, and then nothing at all: logged once each.
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    wait_refused(&usher, "server3.yaml");
    std::fs::write(&file, "").unwrap();
    wait_refused(&usher, "server3.yaml: expected backends");
    let refused = count(&usher, REFUSED);
    assert!(login(&usher).1.ends_with("this is old"));
    std::fs::write(&file, &whole).unwrap();
    usher.wait_log(TAKEN_OVER, |_| true);
    assert!(login(&usher).1.ends_with("this is new"));
    session.command("NOOP").is("OK did NOOP");
    assert_eq!(count(&usher, REFUSED), refused);

    // A new file, and one that takes its place.
    let named = |name: &str| whole.replace("server3", name);
    std::fs::write(folder.join("server4.yaml"), named("server4")).unwrap();
    usher.wait_nth_log(2, TAKEN_OVER, |_| true);
    let backends = || usher.command(&["backends"]).succeeded().stdout;
    assert!(backends().contains("server4"));
    std::fs::remove_file(folder.join("server4.yaml")).unwrap();
    usher.wait_nth_log(3, TAKEN_OVER, |_| true);
    assert!(!backends().contains("server4"));
    std::fs::rename(&folder, usher.config.path("away")).unwrap();
    wait_refused(&usher, "routing.backends_from: ");
    assert!(login(&usher).1.ends_with("this is new"));
    std::fs::rename(usher.config.path("away"), &folder).unwrap();
    usher.wait_log("the configuration file is again the one in force", |_| true);
}

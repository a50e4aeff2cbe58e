//! The way from 0.1.0: `usher check` names each key and word of its configuration that is another now, with the line
//! and what to write, and nothing else; and the commands work with a process of 0.1.0.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;

use serde_json::json;

use crate::cli::make_files;
use crate::kit::Config;
use crate::kit::client::base64;
use crate::kit::usher::command;

const OLD: &str = include_str!("upgrade/0.1.0.yaml");

/// What is said of each key, in the order of the file.
const SAID: &[(&str, &str)] = &[
    ("capabilities.imap[0]", "cannot be advertised for imap: remove it"),
    ("capabilities.imap[1]", "cannot be advertised for imap: remove it"),
    ("trusted_networks", "this key was renamed: write `trusted`"),
    ("tls.client_certificate", "this key was renamed: write `client_auth`"),
    ("directory.connections.idle", "this key was renamed: write `idle_timeout`"),
    ("directory.connections.age", "this key was renamed: write `max_age`"),
    ("directory.connections.operations", "this key was renamed: write `max_operations`"),
    ("directory.result_19", "`cannot_tell` was renamed: write `unavailable`"),
    ("directory.result_50", "`not_now` was renamed: write `outside_logon_hours`"),
    ("directory.result_53", "`not_here` was renamed: write `wrong_workstation`"),
    ("routing.backends[0].ramp", "this key was renamed: write `slow_start`"),
    ("routing.backends[1].ramp", "this key was renamed: write `slow_start`"),
    ("limits.conversation_timeout", "this key was renamed: write `prelogin_timeout`"),
    ("limits.backend_untagged", "this key was renamed: write `max_backend_greeting`"),
    ("throttle.failed_logins_per_prefix.free", "this key was renamed: write `free_failures`"),
    ("throttle.failed_logins_per_user.free", "this key was renamed: write `free_failures`"),
    ("throttle.known_for", "this key was renamed: write `known_network_ttl`"),
];

/// The configuration with this text, and the files that it names.
fn config(text: &str) -> Config {
    let config = Config::with_url("ldap://127.0.0.1");
    config.write_text(text);
    make_files(&serde_yaml::from_str(text).unwrap(), &config.path(""));
    config.file("tls/ticket.keys", base64(&(0..48).collect::<Vec<u8>>()));
    config
}

#[test]
fn check_names_what_has_changed_and_following_it_suffices() {
    let old = config(OLD);
    let said = command(&old, &["check"], b"");
    assert_eq!(said.code, 78, "{said:#?}");
    let file = format!("{}:", old.path("usher.yaml").display());
    let mut lines: Vec<String> = OLD.lines().map(str::to_owned).collect();
    let mut keys = Vec::new();
    for mistake in said.stderr.lines().filter_map(|line| line.strip_prefix(&file)) {
        let (number, rest) = mistake.split_once(": ").unwrap();
        let (key, advice) = rest.split_once(": ").unwrap();
        keys.push((key, advice));
        let line = &mut lines[number.parse::<usize>().unwrap() - 1];
        // What an administrator does with it: in the line of that number, the old word becomes the one in the advice.
        let quoted: Vec<&str> = advice.split('`').skip(1).step_by(2).collect();
        *line = match quoted[..] {
            [new] => line.replace(&format!("{}:", key.rsplit('.').next().unwrap()), &format!("{new}:")),
            [word, new] => line.replace(word, new),
            _ => String::new(),
        };
    }
    assert_eq!(keys, SAID);
    command(&config(&lines.join("\n")), &["check"], b"").succeeded();
}

/// 0.1.0 knows no arguments of a reload and an upgrade, and no status: its replies are these.
#[test]
fn process_of_0_1_0_reloads_and_upgrades() {
    let mut config = Config::with_url("ldap://127.0.0.1");
    let path = config.path("old.sock");
    config.change("/control", json!({"path": path}));
    config.write();
    let listener = UnixListener::bind(&path).unwrap();
    let answering = std::thread::spawn(move || {
        let mut asked = Vec::new();
        while asked.len() < 5 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut bytes = [0; 1024];
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                let read = stream.read(&mut bytes).unwrap();
                assert_ne!(read, 0, "{asked:?}");
                request.extend_from_slice(&bytes[..read]);
            }
            let request = String::from_utf8(request).unwrap();
            let target = request.split(' ').nth(1).unwrap().to_owned();
            let (status, body) = match &*target {
                "/reload" | "/upgrade" => ("200 OK", r#"{"done":true,"problems":[]}"#),
                "/status" => ("404 Not Found", r#"{"error":"there is nothing by this path"}"#),
                _ => ("400 Bad Request", r#"{"error":"`config` is no argument of this, or was given twice"}"#),
            };
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
            stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
            asked.push(target);
        }
        asked
    });
    for (name, done) in [("reload", "reloaded\n"), ("upgrade", "upgraded\n")] {
        let said = command(&config, &[name], b"").succeeded();
        assert_eq!(said.stdout, done, "{said:?}");
    }
    let said = command(&config, &["status"], b"");
    assert!(
        said.code == 69 && said.stderr.contains("of an earlier version") && said.stderr.contains("usher upgrade"),
        "{said:?}"
    );
    let asked = answering.join().unwrap();
    assert!(asked[1] == "/reload" && asked[3] == "/upgrade", "{asked:?}");
}

//! `usher check --connect` about certificates that no verifier accepts, and about a device that drops a handshake
//! of two packets: the same servers as backend and as directory.

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;

use serde_json::{Value, json};

use crate::kit::process::{Running, Server, folder, free_port, run};
use crate::kit::usher::command;
use crate::kit::{Config, dovecot, slapd};

/// Both are `localhost`, the one name that needs no resolver.
const HOST: &str = "localhost";

/// `openssl s_server` with `k.pem` of a folder, on a free port. It has one connection at a time, and waits in it for a
/// request of HTTP.
fn s_server(folder: &Path) -> (Running, u16) {
    let port = free_port();
    let arguments = format!("s_server -accept {port} -cert k.pem -key k.key -www -cipher ALL:@SECLEVEL=0");
    let command = ["sh", "-c", "cd \"$0\" && exec openssl $1", &folder.display().to_string(), &arguments];
    let server =
        Server { command: command.map(ToString::to_string).to_vec(), environment: Vec::new(), log: None, end: "KILL" };
    let (running, output) = server.start();
    let mut lines = output.lines();
    assert!(lines.any(|line| line.unwrap().starts_with("ACCEPT")), "s_server listens");
    // The pipe stays open for what it writes of its connections.
    std::thread::spawn(move || lines.count());
    (running, port)
}

/// Makes `k.pem` and `k.key`, by an authority `ca.pem`.
fn issue(folder: &Path, key: &str, extensions: &str, more: &str) {
    let openssl = |arguments: &str| {
        let script = ["-c", "cd \"$0\" && exec openssl $1", &folder.display().to_string(), arguments];
        run("sh", &script, b"").succeeded()
    };
    std::fs::write(folder.join("extensions"), extensions).unwrap();
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 900 -subj /CN=authority");
    openssl(&format!("req -new -newkey {key} -nodes -keyout k.key -out k.csr -subj /CN={HOST}"));
    let extensions = if extensions.is_empty() { "" } else { "-extfile extensions" };
    openssl(&format!(
        "x509 -req -in k.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 90 {extensions} {more} -out k.pem"
    ));
}

/// What `check --connect` finds of the backend's TLS and of the directory's connection at these ports.
fn findings([backend, directory]: [u16; 2], ca: &Path, groups: Option<Value>) -> [Value; 2] {
    let url = format!("ldaps://{HOST}:{directory}");
    let mut config = Config::with_url(&url)
        .set("/directory/ca", json!(ca))
        .backend("server3", backend, &["server3"])
        .set("/routing/backends/0/ca", json!(ca))
        .set("/routing/backends/0/timeout", "500ms")
        .set("/routing/backends/0/imap/server_name", HOST);
    if let Some(groups) = groups {
        config = config.set("/directory/groups", groups.clone()).set("/routing/backends/0/groups", groups);
    }
    config.write();
    let said = command(&config, &["check", "--connect", "--json"], b"");
    let report: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:#?}"));
    let subjects = report["subjects"].as_array().unwrap();
    [("backend", "tls"), ("directory", "connection")].map(|(kind, check)| {
        let subject = subjects.iter().find(|subject| subject["kind"] == kind).unwrap();
        let mut findings = subject["findings"].as_array().unwrap().iter();
        let named = findings.clone().find(|finding| finding["check"] == check);
        // Where TLS does not end, it is the last of what was tried.
        named.or_else(|| findings.next_back()).unwrap_or_else(|| panic!("{report:#}")).clone()
    })
}

#[test]
fn unusable_certificates_are_reported_with_a_command_that_makes_good_ones() {
    let named = "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n";
    for (what, key, extensions, more, reason, advice) in [
        (
            "an authority",
            "rsa:2048",
            "subjectAltName=DNS:localhost\nbasicConstraints=CA:TRUE\n",
            "",
            "its certificate is that of an authority (CA:TRUE)",
            "issue one for the server alone (basicConstraints CA:FALSE)",
        ),
        (
            "CN alone",
            "rsa:2048",
            "basicConstraints=CA:FALSE\n",
            "",
            "no name as subjectAltName, only the CN localhost",
            "issue it again with its name as subjectAltName",
        ),
        (
            "another name",
            "rsa:2048",
            "subjectAltName=DNS:ldap.example.net\nbasicConstraints=CA:FALSE\n",
            "",
            "not for localhost",
            "`server_name`",
        ),
        ("of no time", "rsa:2048", named, "-days -1", "ends before it begins", "renew the certificate on that server"),
        (
            "RSA 1024",
            "rsa:1024",
            named,
            "",
            "its key is too short: RSA with 1024 bits",
            "have a new key: RSA from 2048 bits",
        ),
        ("SHA-1", "rsa:2048", named, "-sha1", "is signed with SHA-1", "signed with SHA-256 or better"),
        ("X.509 v1", "rsa:2048", "", "", "its certificate is X.509 v1", "as X.509 v3 with a name"),
    ] {
        let folder = folder("certificates");
        issue(&folder, key, extensions, more);
        let (_server, port) = s_server(&folder);
        let found = findings([port, port], &folder.join("ca.pem"), None);
        let commands = found.each_ref().map(|finding| {
            assert_eq!(finding["state"], "problem", "{what}: {finding:#}");
            let text = finding.to_string();
            assert!(text.contains(reason) && text.contains(advice), "{what}: {finding:#}");
            // No pin helps against a short key, and a name needs none.
            let pin = !matches!(what, "RSA 1024" | "another name");
            assert_eq!(text.contains("pin_sha256"), pin, "{what}: {finding:#}");
            let advice = finding["advice"].as_str().unwrap();
            let command = advice.split('`').find(|part| part.starts_with("openssl req ")).unwrap();
            command.to_owned()
        });
        assert!(found[0].to_string().contains("the backend's `ca` then names server.pem"), "{:#}", found[0]);
        assert!(found[1].to_string().contains("directory.ca then names server.pem"), "{:#}", found[1]);
        // What the command makes is accepted by both.
        assert_eq!(commands[0], commands[1]);
        let folder = crate::kit::process::folder("certificates");
        run("sh", &["-c", &format!("cd \"$0\" && {}", commands[0]), &folder.display().to_string()], b"").succeeded();
        for (made, served) in [("server.pem", "k.pem"), ("server.key", "k.key")] {
            std::fs::copy(folder.join(made), folder.join(served)).unwrap();
        }
        let servers = [s_server(&folder), s_server(&folder)];
        let ports = servers.each_ref().map(|(_, port)| *port);
        for finding in findings(ports, &folder.join("server.pem"), None) {
            assert_eq!(finding["state"], "ok", "{what}: {finding:#}");
        }
    }
}

/// A device that drops what follows the first packet of a connection's first message.
fn one_packet(to: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || pass(client, to));
        }
    });
    port
}

fn pass(mut client: TcpStream, to: u16) -> std::io::Result<()> {
    let mut first = [0; 5];
    client.read_exact(&mut first)?;
    if u16::from_be_bytes([first[3], first[4]]) > 1400 {
        // It waits for the rest, for as long as the client does.
        return std::io::copy(&mut client, &mut std::io::sink()).map(drop);
    }
    let mut server = TcpStream::connect(("127.0.0.1", to))?;
    server.write_all(&first)?;
    let (mut back, mut behind) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut back, &mut behind);
        behind.shutdown(Shutdown::Write)
    });
    std::io::copy(&mut client, &mut server)?;
    server.shutdown(Shutdown::Write)
}

#[test]
fn dropped_hybrid_handshake_is_reported_and_groups_avoid_it() {
    let folder = folder("certificates");
    issue(&folder, "rsa:2048", "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n", "");
    let servers = [s_server(&folder), s_server(&folder)];
    let ports = [one_packet(servers[0].1), one_packet(servers[1].1)];
    let ca = folder.join("ca.pem");
    let [backend, directory] = findings(ports, &ca, None);
    for (finding, advice) in [
        (&backend, "try `groups: [x25519, secp256r1, secp384r1]` for server3"),
        (&directory, "try `directory.groups: [x25519, secp256r1, secp384r1]`"),
    ] {
        assert_eq!(finding["state"], "problem", "{finding:#}");
        let text = finding.to_string();
        assert!(text.contains("X25519MLKEM768") && text.contains(advice), "{finding:#}");
    }
    assert_eq!(backend["check"], "tls", "{backend:#}");
    // With them both get through, and another fault is no longer reported as this one.
    let [backend, directory] = findings(ports, &ca, Some(json!(["x25519", "P-256"])));
    for finding in [&backend, &directory] {
        assert_eq!(finding["state"], "ok", "{finding:#}");
        assert!(!finding.to_string().contains("X25519MLKEM768"), "{finding:#}");
    }
}

#[test]
fn backend_and_directory_work_with_other_groups() {
    let config = Config::with_directory(slapd())
        .backend("server3", dovecot().imaps, &["server3", "server3.example.com"])
        .set("/directory/groups", json!(["P-256"]))
        .set("/routing/backends/0/groups", json!(["secp384r1", "X25519"]));
    let usher = crate::kit::Usher::start(config);
    crate::kit::Imap::tls(usher.imaps_port()).login("alice", &crate::kit::password_of("alice")).ok();
}

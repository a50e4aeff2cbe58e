//! `log.client_address: network`: in a whole run no line has a client's whole address, except those that are an audit.

use serde_json::{Value, json};

use crate::auth_http;
use crate::kit::client::base64;
use crate::kit::issuer::ScriptedIssuer;
use crate::kit::scripted::{GREETING, Scripted};
use crate::kit::users::SERVICE_PASSWORD;
use crate::kit::{Config, Imap, Usher, password_of, slapd};
use crate::token_login::oauthbearer;
use crate::trace::Tracer;

const CLIENT: [u8; 4] = [127, 66, 77, 88];
const ADDRESS: &str = "127.66.77.88";
const NETWORK: &str = "127.66.77.0/24";
const ADDRESS6: &str = "2001:db8:1:2::88";
const NETWORK6: &str = "2001:db8:1::/48";
const PROXY: [u8; 4] = [127, 0, 0, 20];
const ALICE_DN: &str = "uid=alice,ou=people,dc=example,dc=com";

/// A server that names the client in its refusals, and accepts alice.
fn naming_the_client() -> Scripted {
    Scripted::tls(|peer| {
        peer.send(GREETING);
        let Some(tag) = peer.take_login() else { return };
        if peer.number == 1 {
            peer.send(format!("{tag} OK [CAPABILITY IMAP4rev1] welcome\r\n"));
            peer.reply_to_everything();
        } else {
            peer.send(format!("{tag} NO [CONTACTADMIN] no mail for {ADDRESS}\r\n"));
        }
    })
}

fn config(backend: &Scripted) -> Config {
    Config::with_directory(slapd())
        .scripted(backend)
        .set("/log/client_address", "network")
        .set("/listeners/1/proxy_header", "required")
        .set("/listeners/1/trusted", "127.0.0.20")
        .set("/limits/bad_commands", 2)
        .set("/auth_http", json!({"address": "127.0.0.1:0", "allow": ["127.0.0.1"]}))
        .set(
            "/throttle/failed_logins_per_user",
            json!({
                "mode": "enforce", "free_failures": 1, "first_delay": "4s", "max_delay": "4s",
            }),
        )
}

/// A connection to the listener behind the proxy, of this client.
fn behind_proxy(usher: &Usher, header: &str) -> Imap {
    let mut imap = Imap::silent_from(PROXY, usher.imap_port());
    imap.send(header);
    imap.greeting = imap.line();
    imap.command("STARTTLS").ok();
    imap.start_tls();
    imap
}

/// The lines that have this text in any field, without those of administrators.
fn lines_with(usher: &Usher, text: &str) -> Vec<Value> {
    let has = |line: &Value| line["message"] != "admin command" && line.to_string().contains(text);
    usher.logged().into_iter().filter(has).collect()
}

#[test]
fn whole_address_is_in_no_log_line_list_or_trace() {
    let (server, issuer) = (naming_the_client(), ScriptedIssuer::start());
    let usher = Usher::start(issuer.configured(config(&server)));
    let mut tracer = Tracer::start(&usher, &["--client", ADDRESS]);
    // A session, from its login to its end.
    let mut imap = Imap::tls_from(CLIENT, usher.imaps_port());
    imap.command(&format!("ID (\"name\" \"x\" \"x-originating-ip\" \"{ADDRESS}\")")).ok();
    imap.login("alice", &password_of("alice")).ok();
    assert_eq!(usher.login("alice")["client"], NETWORK);
    let sessions = usher.command(&["sessions", "--json"]).succeeded().stdout;
    assert_eq!(serde_json::from_str::<Value>(&sessions).unwrap()[0]["client"], NETWORK);
    let sessions = usher.command(&["sessions", "--client", ADDRESS]).succeeded().stdout;
    assert!(sessions.contains(NETWORK) && !sessions.contains(ADDRESS), "{sessions}");
    imap.command("LOGOUT").ok();
    assert_eq!(usher.wait_log("end", |_| true)["client"], NETWORK);
    tracer.wait_text("login accepted");
    let traced = tracer.shown().join("\n");
    assert!(traced.contains(NETWORK) && !traced.contains(ADDRESS), "{traced}");
    // Refusals: of the directory, of the limits, of a token, of the server, of TLS, before a login.
    let mut imap = Imap::tls_from(CLIENT, usher.imaps_port());
    imap.login("bob", "wrong").is("NO [AUTHENTICATIONFAILED]");
    let mut others = [0, 1].map(|_| Imap::tls_from(CLIENT, usher.imaps_port()));
    others.iter_mut().enumerate().for_each(|(n, imap)| imap.send(format!("a LOGIN bob guess{n}\r\n")));
    usher.wait_log("login rate limit reached", |line| line["client"] == NETWORK);
    let mut imap = Imap::tls_from(CLIENT, usher.imaps_port());
    imap.send(format!("a AUTHENTICATE OAUTHBEARER {}\r\n", oauthbearer("anna", "no.token.atall")));
    usher.wait_log("login", |line| line["result"] == "token_refused" && line["client"] == NETWORK);
    let mut imap = Imap::tls_from(CLIENT, usher.imaps_port());
    imap.login("alice", &password_of("alice")).is("NO");
    let refused = usher.wait_log("login", |line| line["login"] == "alice" && line["result"] != "ok");
    assert!(refused["backend_reply"].as_str().unwrap().contains(&format!("no mail for {NETWORK}")), "{refused}");
    Imap::silent_from(CLIENT, usher.imaps_port()).send("this is no TLS\r\n\r\n");
    usher.wait_log("TLS handshake failed", |line| line["client"] == NETWORK);
    drop(Imap::tls_from(CLIENT, usher.imaps_port()));
    usher.wait_log("disconnected before login", |line| line["client"] == NETWORK);
    // A header of an untrusted host, and those of the proxy.
    Imap::silent_from(CLIENT, usher.imap_port()).send("PROXY UNKNOWN\r\n");
    let line = usher.wait_log("connection closed: no valid PROXY header from a trusted proxy", |_| true);
    assert_eq!(line["proxy"], NETWORK);
    let mut imap = behind_proxy(&usher, &format!("PROXY TCP4 {ADDRESS} 192.0.2.1 40000 143\r\n"));
    imap.login("clara", "wrong");
    assert_eq!(usher.login("clara")["client"], NETWORK);
    let mut imap = behind_proxy(&usher, &format!("PROXY TCP6 ::ffff:{ADDRESS} 2001:db8::1 40000 143\r\n"));
    imap.login("mapped", "wrong");
    assert_eq!(usher.login("mapped")["client"], NETWORK);
    let mut imap = behind_proxy(&usher, &format!("PROXY TCP6 {ADDRESS6} 2001:db8::1 40000 143\r\n"));
    imap.login("six", "wrong");
    assert_eq!(usher.login("six")["client"], NETWORK6);
    // nginx, and an untrusted host in its place.
    let port = auth_http::port(&usher);
    let question = auth_http::question("nginx", "wrong", "imap", 1, "").replace("192.0.2.7", ADDRESS);
    assert!(auth_http::raw([127, 0, 0, 1], port, &question).contains("Auth-Status"));
    assert_eq!(usher.login("nginx")["client"], NETWORK);
    assert_eq!(auth_http::raw(CLIENT, port, &question), "");
    let line = usher.wait_log("connection closed: address is not in auth_http.allow", |_| true);
    assert_eq!(line["peer"], NETWORK);
    for whole in [ADDRESS, ADDRESS6] {
        assert_eq!(lines_with(&usher, whole), Vec::<Value>::new());
    }
}

#[test]
fn audit_keeps_the_whole_address_and_a_reload_changes_the_rest_at_once() {
    let server = Scripted::accepting();
    let config = config(&server);
    let service = json!({"login": "usher", "password_file": config.file("backend.password", SERVICE_PASSWORD)});
    let mut usher = Usher::start(
        config
            .set("/routing/backends/0/impersonation_service", service)
            .set("/impersonation", json!({"admins": [ALICE_DN], "networks": ["127.0.0.1/32"]}))
            .set("/directory/login_attribute", "uid"),
    );
    // One user acts for another, without permission from here.
    let mut imap = Imap::tls_from(CLIENT, usher.imaps_port());
    imap.command(&format!("AUTHENTICATE PLAIN {}", base64(format!("bob\0alice\0{}", password_of("alice")).as_bytes())));
    let line = usher.wait_log("login", |line| line["acting"] == "alice");
    assert_eq!(line["client"], ADDRESS, "{line}");
    // A command of an administrator.
    let _ = usher.command(&["kick", "--client", ADDRESS]);
    let line = usher.wait_log("admin command", |line| line["cmd"] == "kick");
    assert!(line["what"].as_str().unwrap().contains(ADDRESS), "{line}");
    assert_eq!(lines_with(&usher, ADDRESS).len(), 1);
    let found = usher.command(&["check"]);
    assert_eq!(found.code, 0, "{found:#?}");
    assert!(format!("{}{}", found.stdout, found.stderr).contains("fail2ban"), "{found:#?}");

    usher.config.change("/log/client_address", "full");
    usher.config.write();
    assert_eq!(usher.hup()["message"], "reloaded");
    Imap::tls_from(CLIENT, usher.imaps_port()).login("anna", "wrong").is("NO [AUTHENTICATIONFAILED]");
    assert_eq!(usher.login("anna")["client"], ADDRESS);
    usher.config.change("/log/client_address", "network");
    usher.config.write();
    assert_eq!(usher.hup()["message"], "reloaded");
    Imap::tls_from(CLIENT, usher.imaps_port()).login("ben", "wrong").is("NO [AUTHENTICATIONFAILED]");
    assert_eq!(usher.login("ben")["client"], NETWORK);
}

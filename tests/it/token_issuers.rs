//! The issuers of tokens: their keys by HTTPS, through a proxy and from a file, and what `check` says of them.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use crate::kit::issuer::{Conduct, DISCOVERY, INTROSPECTION, KEYS, ScriptedIssuer};
use crate::kit::signer::Signer;
use crate::kit::usher::command;
use crate::kit::{Config, Usher, shared};

const USABLE: &str = "usher_token_keys";
const FETCHED: &str = "usher_token_keys_last_fetch_successful";

const UNFETCHED: &str = "keys of token issuer cannot be fetched; its tokens are not accepted";

/// What `check` says.
fn check(config: &Config, more: &[&str]) -> (i32, String) {
    config.write();
    let said = command(config, &[&["check"], more].concat(), b"");
    (said.code, format!("{}{}", said.stdout, said.stderr))
}

fn reason(line: &Value) -> &str {
    line["reason"].as_str().unwrap_or_default()
}

fn with_issuer(settings: Value) -> Config {
    Config::shared().set("/tokens", json!([settings]))
}

#[test]
fn keys_are_fetched_at_the_start_by_discovery() {
    let issuer = ScriptedIssuer::start();
    let usher = Usher::start(issuer.configured(Config::shared()));
    let name = issuer.issuer();
    usher.wait_metric(USABLE, &[("issuer", &name)], 1.0);
    assert_eq!(usher.metric(FETCHED, &[("issuer", &name)]), 1.0);
    assert_eq!((issuer.requests(DISCOVERY).len(), issuer.requests(KEYS).len()), (1, 1));
}

#[test]
fn keys_are_fetched_only_where_the_certificate_is_verified() {
    let issuer = ScriptedIssuer::start();
    let mut settings = issuer.settings();
    settings["ca"] = json!(shared().certificates.wrong_ca());
    let usher = Usher::start(with_issuer(settings));
    let name = issuer.issuer();
    usher.wait_metric(FETCHED, &[("issuer", &name)], 0.0);
    assert_eq!(usher.metric(USABLE, &[("issuer", &name)]), 0.0);
    let line = usher.wait_log(UNFETCHED, |_| true);
    assert!(reason(&line).starts_with("TLS: "), "{line}");
    assert!(issuer.requests(DISCOVERY).is_empty());
}

#[test]
fn outage_at_the_start_ends_by_itself() {
    let issuer = ScriptedIssuer::start();
    issuer.set_conduct(KEYS, Conduct::Status(302, "Location: /elsewhere\r\n"));
    let usher = Usher::start(issuer.configured(Config::shared()));
    let name = issuer.issuer();
    usher.wait_metric(FETCHED, &[("issuer", &name)], 0.0);
    assert!(issuer.requests("/elsewhere").is_empty(), "a redirect was followed");
    issuer.set_conduct(KEYS, Conduct::Sound);
    usher.wait_metric(USABLE, &[("issuer", &name)], 1.0);
    usher.wait_metric(FETCHED, &[("issuer", &name)], 1.0);
}

#[test]
fn keys_in_a_file_are_watched_as_certificates_are() {
    let (one, two) = (Signer::new("ES256", "one"), Signer::new("EdDSA", "two"));
    let settings = json!({
        "issuer": "https://idp.example.com", "jwks": "jwks.json", "audience": "mail", "login_claim": "sub",
    });
    let config = with_issuer(settings).set("/tls/reload_interval", "1s");
    let file = config.path("jwks.json");
    let write = |text: String| std::fs::write(&file, text).unwrap();
    write(json!({"keys": [one.jwk()]}).to_string());
    let usher = Usher::start(config);
    let labels = [("issuer", "https://idp.example.com")];
    assert_eq!(usher.metric(USABLE, &labels), 1.0);
    write(json!({"keys": [one.jwk(), two.jwk()]}).to_string());
    usher.wait_metric(USABLE, &labels, 2.0);
    write("{\"keys\": [".to_owned());
    usher.wait_metric("usher_certificate_last_reload_successful", &[], 0.0);
    assert_eq!(usher.metric(USABLE, &labels), 2.0);
    usher.wait_log("a changed file is invalid; its previous content stays active", |line| {
        line["problem"].as_str().is_some_and(|problem| problem.contains("tokens[0].jwks"))
    });
}

/// A proxy that connects to any port of this machine, and reports what it was asked.
fn proxy(answer: &'static str) -> (u16, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && client.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let port = target.rsplit(':').next().and_then(|port| port.parse().ok());
            let _ = sender.send(head);
            let _ = client.write_all(answer.as_bytes());
            let Some(Ok(mut server)) = port.map(|port: u16| TcpStream::connect(("127.0.0.1", port))) else { continue };
            let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            std::thread::spawn(move || std::io::copy(&mut client, &mut server));
        }
    });
    (port, requests)
}

#[test]
fn proxy_leads_to_the_issuer_and_sees_no_request() {
    let issuer = ScriptedIssuer::start();
    let (port, requests) = proxy("HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n");
    let mut settings = issuer.settings();
    settings["proxy"] = json!(format!("http://127.0.0.1:{port}"));
    let usher = Usher::start(with_issuer(settings));
    let name = issuer.issuer();
    usher.wait_metric(USABLE, &[("issuer", &name)], 1.0);
    let head = format!("CONNECT localhost:{0} HTTP/1.1\r\nHost: localhost:{0}\r\n\r\n", issuer.port);
    assert_eq!(requests.iter().take(2).collect::<Vec<_>>(), [head.clone(), head]);
}

#[test]
fn proxy_that_refuses_is_reported() {
    let issuer = ScriptedIssuer::start();
    let (port, _requests) = proxy("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
    let mut settings = issuer.settings();
    settings["proxy"] = json!(format!("127.0.0.1:{port}"));
    let usher = Usher::start(with_issuer(settings));
    let line = usher.wait_log(UNFETCHED, |_| true);
    assert!(reason(&line).starts_with("the proxy answered HTTP/1.1 407"), "{line}");
    assert!(issuer.requests(DISCOVERY).is_empty());
}

#[test]
fn check_reports_the_files_of_issuers_by_line_and_key() {
    let issuer = ScriptedIssuer::start();
    let mut settings = issuer.settings();
    settings["jwks"] = json!("jwks.json");
    settings.as_object_mut().unwrap().remove("ca");
    settings["introspection"] =
        json!({"url": issuer.url(INTROSPECTION), "client_id": "usher", "client_secret_file": "idp.secret"});
    let config = with_issuer(settings);
    let (code, text) = check(&config, &[]);
    assert_eq!(code, 78, "{text}");
    assert!(text.contains("tokens[0].jwks: cannot read"), "{text}");
    assert!(text.contains("tokens[0].introspection.client_secret_file: "), "{text}");
    std::fs::write(config.path("jwks.json"), json!({"keys": [{"kty": "oct", "k": "AAAA"}]}).to_string()).unwrap();
    std::fs::write(config.path("idp.secret"), "hunter2").unwrap();
    let (_, text) = check(&config, &[]);
    assert!(text.contains("no usable key for signatures in it (key_type)"), "{text}");
    assert!(text.contains("others can read or change (mode 0644)") && !text.contains("hunter2"), "{text}");
}

#[test]
fn check_connect_asks_the_issuer() {
    let issuer = ScriptedIssuer::start();
    let mut settings = issuer.settings();
    settings["discovery"] = json!(issuer.issuer());
    settings["introspection"] =
        json!({"url": issuer.url(INTROSPECTION), "client_id": "usher", "client_secret_file": "idp.secret"});
    let config = with_issuer(settings);
    config.file("idp.secret", "hunter2\n");
    let (_, text) = check(&config, &["--connect"]);
    assert!(text.contains(&format!("issuer {}\n", issuer.issuer())), "{text}");
    assert!(text.contains("ok       keys          1 usable key\n"), "{text}");
    assert!(text.contains("ok       introspection answers that a token which was made up is not active"), "{text}");
    issuer.set_conduct(DISCOVERY, Conduct::Text(json!({"issuer": "https://evil.example"}).to_string()));
    issuer.set_conduct(INTROSPECTION, Conduct::Status(401, ""));
    let (_, text) = check(&config, &["--connect"]);
    assert!(
        text.contains("problem  keys          the discovery document is of another issuer: https://evil.example"),
        "{text}"
    );
    assert!(text.contains("problem  introspection the answer has status 401"), "{text}");
    assert!(text.contains("refuses `client_id` or its secret"), "{text}");
}

//! A real OpenID provider on loopback: npm's `oidc-provider`, which `tests/run` installs under `target/`.

use std::path::Path;

use serde_json::{Value, json};

use super::process::{Running, Server, folder, free_port, run, unpacked, wait_for_port};
use super::{Config, start_deadline};

/// A provider, with the keys of its last start.
pub(crate) struct Provider {
    port: u16,
    running: Option<Running>,
}

/// A file beside the tests.
fn file(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/provider").join(name).display().to_string()
}

impl Provider {
    /// Starts it on a port of its own.
    pub(crate) fn start() -> Self {
        start_deadline();
        let mut provider = Self { port: free_port(), running: None };
        provider.start_again();
        provider
    }

    /// Starts it on the same port, with new keys and without a memory of tokens.
    pub(crate) fn start_again(&mut self) {
        self.stop();
        let modules = unpacked("oidc-provider").display().to_string();
        let command = ["node".to_owned(), file("provider.mjs"), modules, self.port.to_string()].to_vec();
        let log = folder("oidc-provider").join("log");
        self.running = Some(Server { command, environment: vec![], log: Some(log.clone()), end: "TERM" }.start().0);
        wait_for_port(self.port, &log);
    }

    /// Ends it.
    pub(crate) fn stop(&mut self) {
        self.running = None;
    }

    /// The exact value of `iss`.
    pub(crate) fn issuer(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The configuration with this issuer alone: the scope and the audience `mail`, entries by `sub`, introspection.
    pub(crate) fn configured(&self, mut config: Config) -> Config {
        config.file("idp.secret", "usher-secret");
        let introspection = json!({
            "url": format!("{}/token/introspection", self.issuer()),
            "client_id": "usher",
            "client_secret_file": "idp.secret",
        });
        let issuer = json!({
            "issuer": self.issuer(),
            // Without it, introspection is asked about every token.
            "discovery": self.issuer(),
            "audience": "mail",
            "scopes": ["mail"],
            "login_claim": "sub",
            "filter": "(entryUUID={claim})",
            "introspection": introspection,
        });
        config.change("/tokens", json!([issuer]));
        config
    }

    /// Logs a user in by its page, for a token that is meant for this resource, or for none; what the mail client gets.
    pub(crate) fn user(&self, sub: &str, resource: Option<&str>) -> Value {
        let resource = resource.map(|name| format!("urn:example:{name}"));
        self.answer(&[&["user", sub], resource.as_deref().as_slice()].concat())
    }

    /// An access token of a user for this resource.
    pub(crate) fn token(&self, sub: &str, resource: &str) -> String {
        text(&self.user(sub, Some(resource))["access_token"])
    }

    /// The token of a program, without a user.
    pub(crate) fn robot(&self, resource: &str) -> String {
        text(&self.answer(&["robot", &format!("urn:example:{resource}")])["access_token"])
    }

    /// Revokes a token.
    pub(crate) fn revoke(&self, token: &str) {
        self.answer(&["revoke", token]);
    }

    fn answer(&self, arguments: &[&str]) -> Value {
        let (script, port) = (file("client.py"), self.port.to_string());
        let said = run("python3", &[&[&*script, &*port], arguments].concat(), b"").succeeded().stdout;
        serde_json::from_str(&said).unwrap_or_default()
    }
}

/// A text of JSON.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

//! Configurations for usher: defaults for the shared servers, changed key by key.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::certs::Pair;
use super::process::{folder, write_secret};
use super::scripted::Scripted;
use super::slapd::Slapd;
use super::users::{SERVICE_DN, SERVICE_PASSWORD, SUFFIX};
use super::{cyrus, dovecot, shared, slapd};

/// A configuration file and its folder. A clone has its own folder, with copies
/// of the files: two processes never share a socket.
#[derive(Debug)]
pub(crate) struct Config {
    folder: PathBuf,
    value: Value,
}

impl Clone for Config {
    fn clone(&self) -> Self {
        let folder = folder("usher");
        for file in std::fs::read_dir(&self.folder).unwrap().flatten() {
            if file.file_type().unwrap().is_file() {
                std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
            }
        }
        Self { folder, value: self.value.clone() }
    }
}

impl Config {
    /// The shared directory, with server3 on Dovecot and server4 on Cyrus.
    pub(crate) fn shared() -> Self {
        let config = Self::with_directory(slapd());
        config.backend("server3", dovecot().imaps, &["server3", "server3.example.com"]).backend(
            "server4",
            cyrus().imaps,
            &["server4", "server4.example.com"],
        )
    }

    /// This directory, without backends.
    pub(crate) fn with_directory(slapd: &Slapd) -> Self {
        Self::with_url(&slapd.tls_url())
    }

    /// A directory at this URL, without backends.
    pub(crate) fn with_url(url: &str) -> Self {
        let folder = folder("usher");
        // A path relative to the configuration file, as documented.
        write_secret(&folder.join("ldap.password"), format!("{SERVICE_PASSWORD}\n"));
        let value = json!({
            "listeners": [
                {"protocol": "imap", "address": "127.0.0.1:0", "tls": "implicit"},
                {"protocol": "imap", "address": "127.0.0.1:0", "tls": "starttls"},
            ],
            "tls": {"certificates": [shared().usher.yaml()]},
            "directory": {
                "servers": [url],
                "ca": shared().certificates.ca(),
                "bind_dn": SERVICE_DN,
                "bind_password_file": "ldap.password",
                "base": SUFFIX,
                "filter": "(|(uid={login})(mail={login}))",
                // Operation counts in a test then contain those of logins only.
                "watch": "off",
            },
            "routing": {"backends": []},
            // Tests that do not measure refusals need not wait for their delay.
            "limits": {"refusal_delay": "100ms"},
            "admin": {"address": "127.0.0.1:0"},
            "control": {"path": "control.sock"},
            "drain": {"deadline": "5s"},
            "log": {"format": "json", "level": "debug"},
        });
        Self { folder, value }
    }

    /// Adds a backend on loopback with implicit TLS, which presents the certificate of
    /// `{name}.example.com`. Probes are off, so that a script sees logins only.
    pub(crate) fn backend(mut self, name: &str, port: u16, hosts: &[&str]) -> Self {
        let backend = json!({
            "name": name,
            "hosts": hosts,
            "ca": shared().certificates.ca(),
            "probe": "off",
            "imap": {
                "address": format!("127.0.0.1:{port}"),
                "tls": "implicit",
                "server_name": format!("{name}.example.com"),
            },
        });
        self.value["routing"]["backends"].as_array_mut().unwrap().push(backend);
        self
    }

    /// Another protocol instead of IMAP: two listeners, and the ports of server3 and server4.
    pub(crate) fn speaking(mut self, protocol: &str, ports: &[u16]) -> Self {
        for (listener, tls) in ["implicit", "starttls"].iter().enumerate() {
            let address = json!({"protocol": protocol, "address": "127.0.0.1:0", "tls": tls});
            self.change(&format!("/listeners/{listener}"), address);
        }
        for (index, port) in ports.iter().enumerate() {
            let name = format!("server{}.example.com", index + 3);
            let address = format!("127.0.0.1:{port}");
            let endpoint = json!({"address": address, "tls": "implicit", "server_name": name});
            self.change(&format!("/routing/backends/{index}/{protocol}"), endpoint);
        }
        self
    }

    /// Adds a scripted peer as server3.
    pub(crate) fn scripted(self, backend: &Scripted) -> Self {
        self.backend("server3", backend.port, &["server3"])
    }

    /// Sets a key given as a JSON pointer such as `/cache/ttl`.
    pub(crate) fn set(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        self.change(pointer, value);
        self
    }

    /// As [`Config::set`], in place, for a reload: [`Config::write`] afterwards.
    pub(crate) fn change(&mut self, pointer: &str, value: impl Into<Value>) {
        let mut place = &mut self.value;
        for step in pointer.split('/').skip(1) {
            place = match step.parse::<usize>() {
                Ok(index) => &mut place[index],
                Err(_) => &mut place[step],
            };
        }
        *place = value.into();
    }

    /// Removes a key.
    pub(crate) fn without(mut self, pointer: &str) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.value.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
        self
    }

    /// The same files with another configuration.
    pub(crate) fn replaced(self, value: Value) -> Self {
        Self { value, ..self }
    }

    /// One listener with implicit TLS, and a fixed port for it and for the side port, so that a second
    /// process listens where the first did.
    pub(crate) fn with_ports(self) -> (Self, u16) {
        let [imaps, admin] = [(); 2].map(|()| super::process::free_port());
        let listener = json!([{"protocol": "imap", "address": format!("127.0.0.1:{imaps}"), "tls": "implicit"}]);
        let config = self.set("/listeners", listener);
        (config.set("/admin/address", format!("127.0.0.1:{admin}")), imaps)
    }

    /// The user's DN by a template, without a service account.
    pub(crate) fn user_dn(mut self, template: &str) -> Self {
        for key in ["bind_dn", "bind_password_file", "base", "filter"] {
            self = self.without(&format!("/directory/{key}"));
        }
        self.set("/directory/user_dn", template)
    }

    /// One listener with this certificate.
    pub(crate) fn certificate(self, pair: &Pair) -> Self {
        self.set("/tls/certificates", json!([pair.yaml()]))
    }

    /// Writes the file and returns its path.
    pub(crate) fn write(&self) -> PathBuf {
        self.write_text(&serde_yaml::to_string(&self.value).unwrap())
    }

    /// Writes another text to the path of the file.
    pub(crate) fn write_text(&self, text: &str) -> PathBuf {
        let file = self.path("usher.yaml");
        std::fs::write(&file, text).unwrap();
        file
    }

    /// A path in the configuration's folder.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a file beside the configuration, readable by its owner only.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        write_secret(&path, content);
        path
    }
}

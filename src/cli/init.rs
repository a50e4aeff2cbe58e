//! `usher init`: a starter configuration from a few facts. It asks nothing and writes no file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{OK, USAGE, fail, output};
use crate::config;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A directory server: ldaps://HOST, or ldap://HOST for StartTLS; several in order of preference
    #[arg(long, value_name = "URL", required = true)]
    ldap: Vec<String>,
    /// The DN below which users are searched
    #[arg(long, value_name = "DN")]
    base: String,
    /// The account that searches; without it searches are anonymous
    #[arg(long, value_name = "DN", requires = "bind_password_file")]
    bind_dn: Option<String>,
    /// The file with its password
    #[arg(long, value_name = "FILE", requires = "bind_dn")]
    bind_password_file: Option<PathBuf>,
    /// The filter that finds a user by the typed name
    #[arg(long, value_name = "FILTER", default_value = "(|(uid={login})(mail={login}))")]
    filter: String,
    /// A mail server, by the value of mailHost that names it
    #[arg(long, value_name = "NAME=HOST:PORT", required = true)]
    backend: Vec<String>,
    /// The certificate chain that clients see, in PEM
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The authority that directory and mail servers have their certificates from, if the system does not know it
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// A backend at one port.
struct Served<'a> {
    name: &'a str,
    host: &'a str,
    port: u16,
    protocol: &'static str,
    tls: &'static str,
}

/// The ports that say protocol and TLS (RFC 8314 section 7, RFC 5804 section 1.1).
const PORTS: [(u16, &str, &str); 7] = [
    (993, "imap", "implicit"),
    (143, "imap", "starttls"),
    (995, "pop3", "implicit"),
    (110, "pop3", "starttls"),
    (465, "submission", "implicit"),
    (587, "submission", "starttls"),
    (4190, "managesieve", "starttls"),
];

impl<'a> Served<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!("--backend {text}: {why}; write NAME=HOST:PORT, such as server3=server3.example.com:993")
        };
        let (name, place) = text.split_once('=').ok_or_else(|| wrong("there is no `=`"))?;
        let (host, port) = place.rsplit_once(':').ok_or_else(|| wrong("there is no port"))?;
        let port: u16 = port.parse().map_err(|_| wrong("the port is no number from 1 to 65535"))?;
        if name.is_empty() || host.is_empty() {
            return Err(wrong("a part is empty"));
        }
        let known = PORTS.iter().find(|(known, ..)| *known == port);
        let (_, protocol, tls) = known.ok_or_else(|| {
            let ports: Vec<_> = PORTS.iter().map(|(port, ..)| port.to_string()).collect();
            format!(
                "--backend {text}: port {port} says neither protocol nor TLS; give one of {}, and change `address` in the \
                 configuration",
                ports.join(", ")
            )
        })?;
        Ok(Self { name, host, port, protocol, tls })
    }
}

pub(super) fn init(arguments: &Args, file: &Path) -> ExitCode {
    let text = match starter(arguments) {
        Ok(text) => text,
        Err(problems) => {
            problems.iter().for_each(|problem| output::complaint(format_args!("usher: {problem}")));
            return fail(USAGE, "no configuration was written");
        }
    };
    output::print(&text);
    let file = file.display();
    output::advise(format_args!(
        "Next, with the text above as {file} (root:usher, 0640):\n  \
         sudo usher check                  # mistakes of the configuration and its files\n  \
         sudo usher check --connect        # and of the servers in it\n  \
         sudo usher explain alice          # where a user would be routed\n  \
         sudo systemctl enable --now usher\n  \
         sudo usher try alice              # a whole login, with her password"
    ));
    ExitCode::from(OK)
}

/// The configuration, which `usher check` accepts once its files exist.
///
/// # Errors
/// Every mistake in the arguments.
fn starter(arguments: &Args) -> Result<String, Vec<String>> {
    let mut problems = Vec::new();
    let served: Vec<Served<'_>> = arguments
        .backend
        .iter()
        .filter_map(|text| Served::parse(text).map_err(|problem| problems.push(problem)).ok())
        .collect();
    for (at, one) in served.iter().enumerate() {
        if served.iter().take(at).any(|other| other.name == one.name && other.protocol == one.protocol) {
            problems.push(format!("--backend: {} has two ports of {}; keep one", one.name, one.protocol));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let text = render(arguments, &served);
    match config::parse(Path::new("config.yaml"), &text) {
        Ok(_) => Ok(text),
        Err(mistakes) => {
            Err(mistakes.problems.iter().map(|problem| format!("{}: {}", problem.key, problem.message)).collect())
        }
    }
}

/// A text in double quotes, which YAML reads as JSON does.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The path of a file, whatever folder the configuration is put into.
fn path(file: &Path) -> String {
    quoted(&std::path::absolute(file).unwrap_or_else(|_| file.to_owned()).display().to_string())
}

fn render(arguments: &Args, served: &[Served<'_>]) -> String {
    let mut text = String::from(
        "# yaml-language-server: $schema=usher.schema.json\n\
         # The line above is for editors: `usher schema > usher.schema.json` writes the schema beside this file.\n\
         # Every key is explained in config.example.yaml (/usr/share/doc/usher).\n\n\
         # Where clients connect. With port 143 or 110 they must use STARTTLS before they log in.\nlisteners:\n",
    );
    for protocol in ["imap", "pop3", "submission", "managesieve"] {
        if !served.iter().any(|one| one.protocol == protocol) {
            continue;
        }
        for (port, _, tls) in PORTS.iter().filter(|(_, of, _)| *of == protocol) {
            let _ = writeln!(text, "  - {{protocol: {protocol}, address: \"[::]:{port}\", tls: {tls}}}");
        }
    }
    let _ = write!(
        text,
        "\n# What clients see. A renewed certificate is used without a command.\ntls:\n  certificates:\n    \
         - {{chain: {}, key: {}}}\n\n# Users log in by an LDAP bind, and are routed by mailHost.\ndirectory:\n  servers:\n",
        path(&arguments.certificate),
        path(&arguments.key)
    );
    for url in &arguments.ldap {
        let _ = writeln!(text, "    - {}", quoted(url));
    }
    if arguments.ldap.iter().any(|url| url.starts_with("ldap://")) {
        text.push_str("  starttls: true\n");
    }
    if let Some(ca) = &arguments.ca {
        let _ = writeln!(text, "  ca: {}", path(ca));
    }
    match (&arguments.bind_dn, &arguments.bind_password_file) {
        (Some(name), Some(file)) => {
            let _ = write!(
                text,
                "  # This account reads the users, and nothing else.\n  bind_dn: {}\n  bind_password_file: {}\n",
                quoted(name),
                path(file)
            );
        }
        _ => text.push_str(
            "  # Searches are anonymous. With an account that reads the users, changes of the directory are followed:\n  \
             # bind_dn: cn=usher,ou=services,dc=example,dc=com\n  # bind_password_file: /etc/usher/ldap.password\n",
        ),
    }
    let _ = write!(
        text,
        "  base: {}\n  filter: {}\n  mail_host_attribute: mailHost\n  \
         # The name that the mail server gets, if it is not the typed one:\n  # login_attribute: uid\n\n\
         # The mail servers. `hosts`: the values of mailHost that lead to it.\nrouting:\n  backends:\n",
        quoted(&arguments.base),
        quoted(&arguments.filter)
    );
    let mut names: Vec<&str> = Vec::new();
    for Served { name, .. } in served {
        if names.contains(name) {
            continue;
        }
        names.push(name);
        let own = || served.iter().filter(|one| one.name == *name);
        let mut hosts = vec![quoted(name)];
        for one in own() {
            let host = quoted(one.host);
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
        let _ = write!(text, "    - name: {}\n      hosts: [{}]\n", quoted(name), hosts.join(", "));
        if let Some(ca) = &arguments.ca {
            let _ = writeln!(text, "      ca: {}", path(ca));
        }
        for Served { host, port, protocol, tls, .. } in own() {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            let _ = writeln!(
                text,
                "      {protocol}: {{address: {}, tls: {tls}, server_name: {}}}",
                quoted(&format!("{host}:{port}")),
                quoted(bare)
            );
        }
    }
    text.push_str(
        "  # Users whose entry has no mailHost are refused, unless one server is for all of them:\n  # default: server3\n\n\
         # How long a decision is used without asking again.\ncache: {ttl: 5m, negative_ttl: 30s}\n\n\
         # Status page, /metrics, /live, /ready.\nadmin: {address: \"127.0.0.1:9930\"}\n\n\
         # For `usher sessions`, `usher reload` and the other commands.\ncontrol: {path: /run/usher/control.sock}\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Args,
    }

    fn arguments(more: &[&str]) -> Args {
        let base = ["init", "--certificate", "c.pem", "--key", "k.pem"];
        Command::try_parse_from(base.iter().chain(more)).unwrap().arguments
    }

    #[test]
    fn configuration_is_sound_whatever_the_values_are() {
        for more in [
            &["--ldap", "ldaps://one", "--base", "dc=x", "--backend", "server3=server3.example.com:993"][..],
            &[
                "--ldap",
                "ldap://one",
                "--ldap",
                "ldap://two",
                "--base",
                "ou=a b #c: d,dc=x",
                "--backend",
                "a=[2001:db8::1]:143",
            ],
            &[
                "--ldap",
                "ldaps://one",
                "--base",
                "dc=x",
                "--bind-dn",
                "cn=u: \\, {x}",
                "--bind-password-file",
                "p w#d",
                "--ca",
                "ca.pem",
                "--filter",
                "(uid={login})",
                "--backend",
                "a=h:993",
                "--backend",
                "b=h2:143",
                "--backend",
                "a=h:995",
                "--backend",
                "a=h:587",
                "--backend",
                "b=h2:4190",
            ],
        ] {
            let arguments = arguments(more);
            let text = starter(&arguments).unwrap_or_else(|problems| panic!("{problems:?}"));
            let config = config::parse(Path::new("config.yaml"), &text).unwrap();
            assert_eq!(config.directories[0].servers.len(), arguments.ldap.len());
            assert!(config.directories[0].servers.iter().all(|server| server.has_tls(config.directories[0].starttls)));
        }
    }

    #[test]
    fn mistakes_name_the_argument_or_the_key() {
        let directory = ["--ldap", "ldaps://one", "--base", "dc=x", "--backend"];
        for (backend, said) in [
            ("server3", "there is no `=`"),
            ("server3=host", "there is no port"),
            ("server3=host:x", "no number"),
            ("server3=host:0", "port 0"),
            ("server3=host:2525", "change `address`"),
            ("=host:993", "a part is empty"),
        ] {
            let found = starter(&arguments(&[&directory[..], &[backend]].concat())).unwrap_err().concat();
            assert!(found.contains(said) && found.contains("--backend"), "{backend}: {found}");
        }
        for (more, said) in [
            (&["--ldap", "http://one", "--base", "dc=x", "--backend", "a=h:993"][..], "directory.servers"),
            (&["--ldap", "ldaps://one", "--base", "people", "--backend", "a=h:993"], "directory.base"),
            (
                &["--ldap", "ldaps://one", "--base", "dc=x", "--filter", "(uid=x)", "--backend", "a=h:993"],
                "directory.filter",
            ),
            (
                &["--ldap", "ldaps://one", "--base", "dc=x", "--backend", "a=h:993", "--backend", "a=h:143"],
                "two ports of imap",
            ),
        ] {
            let found = starter(&arguments(more)).unwrap_err().concat();
            assert!(found.contains(said), "{said}: {found}");
        }
    }
}

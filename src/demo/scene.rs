//! Sets the demo's scene: certificates, the directory, two mail servers and usher itself, as a
//! child process with a configuration in a temporary folder.
//!
//! usher runs exactly as an operator would run it, `usher run --config FILE`; the demo has no way
//! into it but its doors. Dropping the [`Scene`] ends everything and deletes the folder.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::authority::Authority;
use super::directory::Directory;
use super::issuer::{ISSUER, Issuer};
use super::ldif;
use super::mailbox::Mailbox;
use super::post::{Post, Service};
use super::{ADMIN, LDIF};

/// The mail servers' names, as the people's mailHost spells them.
pub(crate) const SERVERS: [&str; 2] = ["server3", "server4"];
/// How long usher's cache keeps a decision here, in seconds: short, so that a move is soon seen.
pub(crate) const CACHE_SECONDS: u64 = 3;

/// From the start of the process until its listeners are bound.
const START: Duration = Duration::from_secs(30);
/// From SIGTERM to the end of the process, above the drain deadline of the demo's configuration.
const STOP: Duration = Duration::from_secs(10);

/// Everything that runs.
pub(crate) struct Scene {
    /// The embedded directory.
    pub(crate) ldap: SocketAddr,
    /// The mail servers, in the order of [`SERVERS`].
    pub(crate) servers: Vec<Server>,
    /// usher with implicit TLS.
    pub(crate) imaps: SocketAddr,
    /// usher with STARTTLS.
    pub(crate) imap: SocketAddr,
    /// usher for fetching by POP3, with implicit TLS.
    pub(crate) pop3s: SocketAddr,
    /// usher for sending, with implicit TLS.
    pub(crate) submissions: SocketAddr,
    /// usher for filters, with implicit TLS.
    pub(crate) sieves: SocketAddr,
    /// usher's side port.
    pub(crate) admin: SocketAddr,
    /// TLS for clients of usher.
    pub(crate) tls: Arc<ClientConfig>,
    /// The usher that runs.
    pub(crate) program: PathBuf,
    /// alice's token.
    pub(crate) token: String,
    usher: Child,
    /// The demo's own servers; they end when this is dropped.
    _serving: JoinSet<()>,
    folder: TempDir,
}

/// Where a mail server speaks what, all of it with implicit TLS.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Server {
    pub(crate) imap: SocketAddr,
    pub(crate) pop3: SocketAddr,
    pub(crate) submission: SocketAddr,
    pub(crate) sieve: SocketAddr,
}

/// Why the scene could not be set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SceneError {
    /// A file, a socket or a process.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A certificate could not be made.
    #[error("a certificate could not be made")]
    Certificate(#[from] rcgen::Error),
    /// A certificate was made and is not usable.
    #[error("a certificate cannot be used")]
    Tls(#[from] rustls::Error),
    /// The demo's LDIF.
    #[error("deploy/demo.ldif, {0}")]
    Ldif(#[from] ldif::LdifError),
    /// usher ended, or did not get ready in time.
    #[error("usher did not get ready; its log:\n{log}")]
    NotReady {
        /// What it wrote.
        log: String,
    },
}

impl Scene {
    /// Starts everything and waits until usher is ready.
    pub(crate) async fn set() -> Result<Self, SceneError> {
        // Only its owner may enter, whatever the umask says: it will hold keys.
        let owner_only = Permissions::from_mode(0o700);
        let folder = tempfile::Builder::new().prefix("usher-demo-").permissions(owner_only).tempdir()?;
        let authority = Authority::new()?;
        let mut serving = JoinSet::new();

        let directory = Directory::new(ldif::parse(LDIF)?, ADMIN);
        let listener = bind().await?;
        let ldap = listener.local_addr()?;
        serving.spawn(directory.clone().serve(listener));

        let issuer = Issuer::new()?;
        let mut servers = Vec::new();
        for name in SERVERS {
            let certificate = authority.certify(&[&format!("{name}.demo.example")])?;
            let acceptor = TlsAcceptor::from(certificate.server()?);
            let [imap, pop3, submission, sieve] = [bind().await?, bind().await?, bind().await?, bind().await?];
            servers.push(Server {
                imap: imap.local_addr()?,
                pop3: pop3.local_addr()?,
                submission: submission.local_addr()?,
                sieve: sieve.local_addr()?,
            });
            let mailbox = Mailbox::new(name, directory.clone()).accepting(&issuer.token);
            serving.spawn(mailbox.serve(imap, acceptor.clone()));
            for (service, listener) in
                [(Service::Pop3, pop3), (Service::Submission, submission), (Service::ManageSieve, sieve)]
            {
                serving.spawn(Post::new(name, service, directory.clone()).serve(listener, acceptor.clone()));
            }
        }

        let certificate = authority.certify(&["usher.demo.example", "localhost", "127.0.0.1"])?;
        for (name, content) in [
            ("ca.pem", authority.pem()),
            ("usher.pem", certificate.chain_pem),
            ("usher.key", certificate.key_pem),
            ("ldap.password", "demo-usher\n".to_owned()),
            ("jwks.json", issuer.keys),
        ] {
            write(&folder.path().join(name), &content)?;
        }
        let doors @ [imaps, imap, pop3s, submissions, sieves, admin] = free_ports().await?;
        write(&folder.path().join("usher.yaml"), &configuration(doors, ldap, &servers))?;

        let program = std::env::current_exe()?;
        let usher = start(&program, folder.path()).await?;
        let tls = authority.client()?;
        Ok(Self {
            ldap,
            servers,
            imaps,
            imap,
            pop3s,
            submissions,
            sieves,
            admin,
            tls,
            program,
            token: issuer.token,
            usher,
            _serving: serving,
            folder,
        })
    }

    /// usher's address for this.
    pub(crate) fn door(&self, service: Service) -> SocketAddr {
        match service {
            Service::Pop3 => self.pop3s,
            Service::Submission => self.submissions,
            Service::ManageSieve => self.sieves,
        }
    }

    /// A file in the demo's folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Waits until usher ends by itself, which it should not.
    pub(crate) async fn usher_ended(&mut self) -> io::Result<ExitStatus> {
        self.usher.wait().await
    }

    /// Stops usher as systemd would, with SIGTERM, and waits for it; then everything else ends.
    pub(crate) async fn end(mut self) -> io::Result<ExitStatus> {
        let id = self.usher.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(id) = id {
            rustix::process::kill_process(id, rustix::process::Signal::TERM)?;
        }
        timeout(STOP, self.usher.wait()).await?
    }
}

/// Starts usher and keeps its log in `usher.log`, until it says that it is ready.
async fn start(program: &Path, folder: &Path) -> Result<Child, SceneError> {
    let (reader, writer) = io::pipe()?;
    let log = folder.join("usher.log");
    let file = File::create(&log)?;
    let (tell, ready) = oneshot::channel();
    // A thread, not a task: the pipe blocks, and the thread ends with usher.
    std::thread::spawn(move || keep_log(BufReader::new(reader), file, tell));

    // A process group of its own: Ctrl-C is for the demo, which then stops usher in order.
    let usher = Command::new(program)
        .args(["run", "--allow-root", "--config"])
        .arg(folder.join("usher.yaml"))
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    match timeout(START, ready).await {
        Ok(Ok(())) => Ok(usher),
        _ => Err(SceneError::NotReady { log: std::fs::read_to_string(&log).unwrap_or_default() }),
    }
}

/// Copies usher's log to the file; `ready` hears of the line that says so, or is dropped at the end.
fn keep_log(mut log: impl io::BufRead, mut file: File, ready: oneshot::Sender<()>) {
    let mut ready = Some(ready);
    let mut line = Vec::new();
    while log.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        // A full disk must not stop usher: the pipe is read on.
        let _ = file.write_all(&line);
        let said = serde_json::from_slice::<serde_json::Value>(&line).unwrap_or_default();
        if [said.get("message"), said.pointer("/fields/message")].contains(&Some(&"ready".into()))
            && let Some(ready) = ready.take()
        {
            // The receiver is gone if the demo has given up already.
            let _ = ready.send(());
        }
        line.clear();
    }
}

/// A port of the demo's own.
async fn bind() -> io::Result<TcpListener> {
    TcpListener::bind("127.0.0.1:0").await
}

/// Ports that are free now; they are let go together just before usher binds them.
async fn free_ports<const N: usize>() -> io::Result<[SocketAddr; N]> {
    let mut held = Vec::new();
    let mut free = [SocketAddr::from(([127, 0, 0, 1], 0)); N];
    for address in &mut free {
        let listener = TcpListener::bind(*address).await?;
        *address = listener.local_addr()?;
        held.push(listener);
    }
    Ok(free)
}

/// Writes a file that only its owner may read.
fn write(path: &Path, content: &str) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content.as_bytes())
}

/// The configuration, for usher and for the newcomer's eyes.
fn configuration(doors: [SocketAddr; 6], ldap: SocketAddr, servers: &[Server]) -> String {
    let [imaps, imap, pop3s, submissions, sieves, admin] = doors;
    let backends: String = SERVERS.iter().zip(servers).map(|(name, server)| backend(name, *server)).collect();
    format!(
        r#"# usher's configuration in the demo. A real one differs in names and addresses only:
# see config.example.yaml for every key. Relative paths are relative to this file.
listeners:
  - {{protocol: imap, address: "{imaps}", tls: implicit}}
  - {{protocol: imap, address: "{imap}", tls: starttls}}
  - {{protocol: pop3, address: "{pop3s}", tls: implicit}}
  - {{protocol: submission, address: "{submissions}", tls: implicit}}
  - {{protocol: managesieve, address: "{sieves}", tls: implicit}}
tls:
  certificates: [{{chain: usher.pem, key: usher.key}}]
directory:
  servers: ["ldap://{ldap}"]     # in the clear: usher allows that on loopback alone
  bind_dn: cn=usher,ou=services,dc=demo,dc=example
  bind_password_file: ldap.password
  base: ou=people,dc=demo,dc=example
  filter: "(|(uid={{login}})(mail={{login}}))"
  mail_host_attribute: mailHost
  watch: off                     # the demo's own directory cannot tell what changes
tokens:                          # an identity provider, whose users log in with its tokens
  - issuer: {ISSUER}
    jwks: jwks.json
    audience: mail
    login_claim: email           # a real one names users by a claim that never changes
    filter: "(mail={{claim}})"
routing:
  backends:
{backends}cache: {{ttl: {CACHE_SECONDS}s, negative_ttl: {CACHE_SECONDS}s, capacity: 1000}}   # short, so that the demo can show a move
limits: {{connections: 200}}
drain: {{delay: 0s, deadline: 1s}}
admin: {{address: "{admin}"}}
control: {{path: control.sock}}
log: {{format: json, level: info}}
"#
    )
}

fn backend(name: &str, server: Server) -> String {
    let Server { imap, pop3, submission, sieve } = server;
    format!(
        r#"    - name: {name}
      hosts: [{name}, {name}.demo.example]
      ca: ca.pem
      token: forward             # the server gets the token, too
      imap: {{address: "{imap}", tls: implicit, server_name: {name}.demo.example}}
      pop3: {{address: "{pop3}", tls: implicit, server_name: {name}.demo.example}}
      submission: {{address: "{submission}", tls: implicit, server_name: {name}.demo.example}}
      managesieve: {{address: "{sieve}", tls: implicit, server_name: {name}.demo.example}}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::super::client::{Client, Door};
    use super::*;

    #[test]
    fn configuration_is_yaml_with_the_given_addresses() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let server = |port| Server {
            imap: address(port),
            pop3: address(port + 1),
            submission: address(port + 2),
            sieve: address(port + 3),
        };
        let text = configuration([1, 2, 3, 4, 5, 7].map(address), address(6), &[server(10), server(20)]);
        let yaml: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(yaml["listeners"][1]["address"], "127.0.0.1:2");
        assert_eq!(yaml["directory"]["servers"][0], "ldap://127.0.0.1:6");
        assert_eq!(yaml["directory"]["filter"], "(|(uid={login})(mail={login}))");
        assert_eq!(yaml["routing"]["backends"][1]["submission"]["address"], "127.0.0.1:22");
        assert_eq!(yaml["routing"]["backends"][0]["managesieve"]["address"], "127.0.0.1:13");
        assert_eq!(yaml["cache"]["ttl"], "3s");
    }

    #[test]
    fn log_is_kept_and_readiness_recognized_in_either_json_form() {
        for (line, heard) in [
            ("{\"message\":\"ready\"}", true),
            ("{\"level\":\"INFO\",\"fields\":{\"message\":\"ready\"}}", true),
            ("{\"message\":\"not ready\"}", false),
            ("ready", false),
        ] {
            let (tell, mut ready) = oneshot::channel();
            let file = tempfile::NamedTempFile::new().unwrap();
            keep_log(format!("first\n{line}\n").as_bytes(), file.reopen().unwrap(), tell);
            assert_eq!(ready.try_recv().is_ok(), heard, "{line}");
            assert_eq!(std::fs::read_to_string(file.path()).unwrap(), format!("first\n{line}\n"));
        }
    }

    /// The demo's client reads the demo's mail over verified TLS; a name that is not in the
    /// certificate is refused.
    #[tokio::test]
    async fn client_and_mail_server_interoperate() {
        let authority = Authority::new().unwrap();
        let directory = Directory::new(ldif::parse(LDIF).unwrap(), ADMIN);
        let mut serving = JoinSet::new();
        let mut addresses = Vec::new();
        for name in ["127.0.0.1", "127.0.0.2"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            let acceptor = TlsAcceptor::from(authority.certify(&[name]).unwrap().server().unwrap());
            serving.spawn(Mailbox::new("server4", directory.clone()).serve(listener, acceptor));
        }
        let tls = authority.client().unwrap();
        let mut client = Client::connect(addresses[0], Arc::clone(&tls), Door::Implicit).await.unwrap();
        assert!(!client.login("bob", "wrong").await.unwrap().is_ok());
        assert!(client.login("bob", "builder").await.unwrap().is_ok());
        assert_eq!(client.subject().await.unwrap(), "Welcome to server4, bob");
        client.logout().await;
        let error = Client::connect(addresses[1], tls, Door::Implicit).await.unwrap_err();
        assert!(error.to_string().contains("certificate"), "{error}");
    }
}

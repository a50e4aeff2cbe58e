//! Cyrus, which plays server4. Debian's package conflicts with Dovecot's, so `tests/run` unpacks
//! it under `target/`.

use std::path::PathBuf;

use super::certs::Pair;
use super::process::{Running, Server, folder, free_port, require, run, unpacked, wait_for_port};
use super::users::{SERVICE_PASSWORD, all_users};

/// A Cyrus with its own folder and ports.
pub(crate) struct Cyrus {
    _running: Running,
    /// Implicit TLS.
    pub(crate) imaps: u16,
    /// STARTTLS.
    pub(crate) imap: u16,
    /// ManageSieve, by STARTTLS.
    pub(crate) sieve: u16,
    pop3s: u16,
    pop3: u16,
    /// The path of pop3d, which an older unpacked package may lack.
    pop3d: PathBuf,
}

/// The realm of its password file.
const SERVER_NAME: &str = "server4.example.com";

impl Cyrus {
    /// Every user gets a mailbox at the first login; `usher` may log in as any user.
    pub(crate) fn start(pair: &Pair) -> Self {
        Self::start_with(pair, true)
    }

    /// As [`Cyrus::start`]; whether its processes resume each other's TLS sessions, as they do if
    /// OpenSSL keeps them in Cyrus' own database instead of tickets.
    pub(crate) fn start_with(pair: &Pair, shares_sessions: bool) -> Self {
        let unpacked = unpacked("cyrus");
        let folder = folder("cyrus");
        let path = |name: &str| folder.join(name).display().to_string();
        let root = rustix::process::getuid().is_root();
        let user =
            if root { "cyrus".to_owned() } else { run("id", &["-un"], b"").succeeded().stdout.trim().to_owned() };
        // The user cyrus may not have access to a checkout in a home directory.
        run("cp", &["-r", &unpacked.join("usr").display().to_string(), &path("usr")], b"").succeeded();
        for name in ["lib", "lib/db", "lib/socket", "spool", "sieve", "run", "run/proc", "run/lock", "run/socket"] {
            std::fs::create_dir(folder.join(name)).unwrap();
        }
        // A copy of the key for the user cyrus, which will own the folder.
        let key = path("tls.key");
        std::fs::copy(&pair.key, &key).unwrap();
        let [imaps, imap, sieve, pop3s, pop3] = std::array::from_fn(|_| free_port());
        let config = format!(
            r"configdirectory: {folder}/lib
proc_path: {folder}/run/proc
mboxname_lockpath: {folder}/run/lock
defaultpartition: default
partition-default: {folder}/spool
cyrus_user: {user}
unixhierarchysep: yes
virtdomains: off
allowplaintext: no
failedloginpause: 0
sasl_mech_list: PLAIN LOGIN
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_sasldb_path: {folder}/sasldb2
proxyservers: usher
autocreate_quota: 0
autocreate_post: yes
autocreate_inbox_folders: Sent
servername: {SERVER_NAME}
tls_server_cert: {chain}
tls_server_key: {key}
tls_versions: tls1_2 tls1_3
idlesocket: {folder}/run/socket/idle
sievedir: {folder}/sieve
lmtpsocket: {folder}/run/socket/lmtp
notifysocket: {folder}/run/socket/notify
",
            folder = folder.display(),
            chain = pair.chain.display(),
        );
        std::fs::write(folder.join("imapd.conf"), config).unwrap();
        // A child of Cyrus exits when its client disconnects before TLS is up, and the next one
        // starts only when a client waits. On a busy machine, where that takes longer
        // than usher waits, every child would get a closed connection: hence some are kept ready for
        // the soak test.
        let service = |name: &str, program: &str, port: u16, options: &str, ready: u32| {
            let program = path(&format!("usr/lib/cyrus/bin/{program}"));
            let arguments = format!("{program}{options} -C {}", path("imapd.conf"));
            format!("  {name} cmd=\"{arguments}\" listen=\"127.0.0.1:{port}\" prefork={ready} maxchild=100\n")
        };
        let services = service("imap", "imapd", imap, "", 1) + &service("imaps", "imapd", imaps, " -s", 4);
        let services = services + &service("sieve", "timsieved", sieve, "", 1);
        let pop3d = unpacked.join("usr/lib/cyrus/bin/pop3d");
        let pop3_services = service("pop3", "pop3d", pop3, "", 1) + &service("pop3s", "pop3d", pop3s, " -s", 1);
        let services = services + if pop3d.exists() { &pop3_services } else { "" };
        std::fs::write(folder.join("cyrus.conf"), format!("START {{\n}}\nSERVICES {{\n{services}}}\nEVENTS {{\n}}\n"))
            .unwrap();
        let openssl = "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = everywhere\n[everywhere]\n";
        let tickets = if shares_sessions { "Options = -SessionTicket\n" } else { "" };
        std::fs::write(folder.join("openssl.cnf"), format!("{openssl}{tickets}")).unwrap();
        let people = all_users().into_iter().map(|person| (person.uid, person.password));
        for (uid, password) in people.chain([("usher".to_owned(), SERVICE_PASSWORD.to_owned())]) {
            // The SASL tools refuse a name with such characters.
            if uid.bytes().all(|byte| byte.is_ascii_alphanumeric()) && password.len() < 500 {
                let arguments = ["-p", "-c", "-f", &path("sasldb2"), "-u", SERVER_NAME, &uid];
                run("saslpasswd2", &arguments, password.as_bytes()).succeeded();
            }
        }
        if root {
            run("chown", &["-R", "cyrus:mail", &folder.display().to_string()], b"").succeeded();
        }
        let command = [path("usr/lib/cyrus/bin/master"), "-C".into(), path("imapd.conf")];
        let more = ["-M".into(), path("cyrus.conf"), "-D".into(), "-p".into(), path("run/master.pid")];
        let log = folder.join("log");
        let architecture = run("gcc", &["-print-multiarch"], b"").succeeded().stdout;
        let libraries = path(&format!("usr/lib/{}", architecture.trim()));
        let server = Server {
            command: command.into_iter().chain(more).collect(),
            environment: vec![
                ("LD_LIBRARY_PATH", libraries),
                ("CYRUS_USER", user),
                ("OPENSSL_CONF", path("openssl.cnf")),
            ],
            log: Some(log.clone()),
            end: "TERM",
        };
        let running = server.start().0;
        let pop3_ports = if pop3d.exists() { &[pop3s, pop3][..] } else { &[] };
        [imaps, imap, sieve].iter().chain(pop3_ports).for_each(|port| wait_for_port(*port, &log));
        Self { _running: running, imaps, imap, sieve, pop3s, pop3, pop3d }
    }

    /// POP3: the ports of implicit TLS and of STARTTLS.
    pub(crate) fn pop3(&self) -> (u16, u16) {
        require(&self.pop3d);
        (self.pop3s, self.pop3)
    }
}

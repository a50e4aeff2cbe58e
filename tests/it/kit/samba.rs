//! A real Active Directory domain controller: Samba's, which listens at the fixed ports 389 and 636. It runs in a network
//! namespace of its own, and a relay leads to it from a free port of loopback.

use std::fmt::Write as _;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::certs::Leaf;
use super::netns::Namespace;
use super::process::{Output, Running, Server, folder, run};
use super::{shared, wait_limit};

/// The naming context.
pub(crate) const DOMAIN: &str = "DC=ad,DC=example,DC=com";
/// The password of every account.
pub(crate) const PASSWORD: &str = "Correct.horse.1";
/// May do anything.
pub(crate) const ADMINISTRATOR: &str = "administrator@ad.example.com";
/// As a service account is: an ordinary user.
pub(crate) const READER: &str = "reader@ad.example.com";

/// The controller of `ad.example.com`.
pub(crate) struct Samba {
    /// Where LDAP with TLS is.
    pub(crate) port: u16,
    _running: Running,
    _namespace: Namespace,
}

impl Samba {
    /// A new domain with `OU=people`, `OU=left` and the user `reader`.
    pub(crate) fn start() -> Self {
        let (folder, namespace) = (folder("samba"), Namespace::new());
        let place = |name: &str| folder.join(name).display().to_string();
        let target = format!("--targetdir={}", place("dc"));
        let password = format!("--adminpass={PASSWORD}");
        let arguments = [
            "domain",
            "provision",
            &target,
            "--realm=AD.EXAMPLE.COM",
            "--domain=AD",
            "--server-role=dc",
            "--dns-backend=NONE",
            "--host-name=dc1",
            "--host-ip=127.0.0.1",
            "--option=interfaces=lo",
            "--option=bind interfaces only=yes",
            &password,
        ];
        run("samba-tool", &arguments, b"").succeeded();
        let pair = shared().certificates.leaf("samba", Leaf::server(&["dc1.ad.example.com", "127.0.0.1"]));
        let options = [
            "server services=ldap".to_owned(),
            "dsdb:schema update allowed=yes".to_owned(),
            format!("tls keyfile={}", pair.key.display()),
            format!("tls certfile={}", pair.chain.display()),
            format!("tls cafile={}", shared().certificates.ca().display()),
            format!("log file={}", place("log.samba")),
            format!("ncalrpc dir={}", place("ncalrpc")),
            format!("pid directory={}", place("pid")),
        ];
        let mut command = namespace.command().map(str::to_owned).to_vec();
        command.extend(["samba", "--interactive", "--model=single", "--configfile"].map(str::to_owned));
        command.push(place("dc/etc/smb.conf"));
        command.extend(options.map(|option| format!("--option={option}")));
        let server = Server { command, environment: Vec::new(), log: Some(folder.join("log")), end: "KILL" };
        let running = server.start().0;
        let port = relay(&namespace);
        let samba = Self { port, _running: running, _namespace: namespace };
        samba.wait(&folder.join("log"));
        for unit in ["people", "left"] {
            samba.modify(&format!("dn: OU={unit},{DOMAIN}\nchangetype: add\nobjectClass: organizationalUnit\n"));
        }
        samba.add("reader", "");
        // A domain without a deleted object does not show whether an account may see any.
        samba.add("gone", "");
        samba.modify(&format!("dn: {}\nchangetype: delete\n", Self::dn("gone")));
        samba
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("ldaps://127.0.0.1:{}", self.port)
    }

    /// The DN of a user.
    pub(crate) fn dn(name: &str) -> String {
        format!("CN={name},OU=people,{DOMAIN}")
    }

    /// Adds a user with these further lines of LDIF.
    pub(crate) fn add(&self, name: &str, more: &str) {
        let password: Vec<u8> = format!("\"{PASSWORD}\"").encode_utf16().flat_map(u16::to_le_bytes).collect();
        let mut ldif = format!("dn: {}\nchangetype: add\nobjectClass: user\n", Self::dn(name));
        writeln!(ldif, "sAMAccountName: {name}\nuserPrincipalName: {name}@ad.example.com").unwrap();
        writeln!(ldif, "userAccountControl: 512\nunicodePwd:: {}\n{more}", STANDARD.encode(password)).unwrap();
        self.modify(&ldif);
    }

    /// Sets the attribute that names the mail server.
    pub(crate) fn move_to(&self, name: &str, server: &str) {
        self.replace(name, "physicalDeliveryOfficeName", server);
    }

    /// Replaces a value of a user.
    pub(crate) fn replace(&self, name: &str, attribute: &str, value: &str) {
        let dn = Self::dn(name);
        self.modify(&format!("dn: {dn}\nchangetype: modify\nreplace: {attribute}\n{attribute}: {value}\n"));
    }

    /// Applies a change as the administrator.
    pub(crate) fn modify(&self, ldif: &str) {
        self.tool("ldapmodify", &[], ldif.as_bytes()).succeeded();
    }

    fn tool(&self, program: &str, arguments: &[&str], input: &[u8]) -> Output {
        let ca = format!("LDAPTLS_CACERT={}", shared().certificates.ca().display());
        let url = self.url();
        let first = [&ca, program, "-x", "-H", &url, "-D", ADMINISTRATOR, "-w", PASSWORD, "-o", "nettimeout=5"];
        run("env", &[first.as_slice(), arguments].concat(), input)
    }

    fn wait(&self, log: &PathBuf) {
        let deadline = std::time::Instant::now() + wait_limit(std::time::Duration::from_secs(60));
        while self.tool("ldapsearch", &["-s", "base", "-b", DOMAIN, "1.1"], b"").code != 0 {
            let said = || std::fs::read_to_string(log).unwrap_or_default();
            assert!(std::time::Instant::now() < deadline, "samba does not answer: {}", said());
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

/// Leads connections to a free port of loopback to port 636 of the namespace.
fn relay(namespace: &Namespace) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connect = namespace.connector(636);
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            // Dropped, as a refused connection is.
            let Ok(far) = connect() else { continue };
            let (from, to) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            std::thread::spawn(move || carry(from, to));
            std::thread::spawn(move || carry(far, near));
        }
    });
    port
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

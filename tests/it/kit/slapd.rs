//! OpenLDAP's slapd with the test people in it.

use std::path::{Path, PathBuf};

use rustix::process::Signal;

use super::certs::Pair;
use super::people::{Person, SERVICE_DN, SERVICE_PASSWORD, SUFFIX, everybody};
use super::process::{Running, Server, folder, free_port, read_text, require, run, wait_for_port};
use super::world;

/// The rootdn's password, for the tests' own changes.
const ROOT: [&str; 4] = ["-D", "cn=root,dc=example,dc=com", "-w", "root"];

/// A slapd of its own folder and ports.
pub(crate) struct Slapd {
    folder: PathBuf,
    running: Option<Running>,
    pub(crate) port: u16,
    pub(crate) tls_port: u16,
}

impl Slapd {
    /// One for a test alone, which may stop, freeze and change it.
    pub(crate) fn private() -> Self {
        let certificates = &world().certificates;
        Self::start(&certificates.ca(), &world().ldap, "")
    }

    /// One with more lines for the head of slapd.conf.
    pub(crate) fn start(ca: &Path, pair: &Pair, global: &str) -> Self {
        require(Path::new("/usr/sbin/slapd"));
        let folder = folder("slapd");
        std::fs::create_dir(folder.join("data")).unwrap();
        // An empty password with a DN is a good bind here (RFC 4513 5.1.2): usher must not rely on
        // a server that refuses it.
        let config = format!(
            r#"include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include /etc/ldap/schema/misc.schema
modulepath /usr/lib/ldap
moduleload back_mdb
threads 4
allow bind_anon_dn
TLSCACertificateFile {ca}
TLSCertificateFile {chain}
TLSCertificateKeyFile {key}
{global}
database mdb
suffix "{SUFFIX}"
rootdn "cn=root,{SUFFIX}"
rootpw root
directory {folder}/data
maxsize 16777216
dbnosync
index uid,mail eq
access to attrs=userPassword by anonymous auth by * none
access to dn.subtree="ou=closed,{SUFFIX}" by dn.exact="{SERVICE_DN}" search by * none
access to dn.subtree="ou=open,{SUFFIX}" by * read
access to * by dn.exact="{SERVICE_DN}" read by self read by * none
"#,
            ca = ca.display(),
            chain = pair.chain.display(),
            key = pair.key.display(),
            folder = folder.display(),
        );
        std::fs::write(folder.join("slapd.conf"), config).unwrap();
        let mut ldif = format!("dn: {SUFFIX}\nobjectClass: domain\ndc: example\n\n");
        for ou in ["services", "people", "open", "closed"] {
            ldif.push_str(&format!("dn: ou={ou},{SUFFIX}\nobjectClass: organizationalUnit\nou: {ou}\n\n"));
        }
        ldif.push_str(&format!(
            "dn: {SERVICE_DN}\nobjectClass: applicationProcess\nobjectClass: simpleSecurityObject\n"
        ));
        ldif.push_str(&format!("cn: usher\nuserPassword: {SERVICE_PASSWORD}\n\n"));
        ldif.extend(everybody().iter().map(Person::ldif));
        let file = folder.join("slapd.conf").display().to_string();
        run("/usr/sbin/slapadd", &["-q", "-f", &file], ldif.as_bytes()).succeeded();
        let mut slapd = Self { folder, running: None, port: free_port(), tls_port: free_port() };
        slapd.start_again();
        slapd
    }

    /// Starts it on the same ports, after [`Slapd::stop`].
    pub(crate) fn start_again(&mut self) {
        let urls = format!("{} {} {}", self.url(), self.tls_url(), self.socket_url());
        let config = self.folder.join("slapd.conf").display().to_string();
        let words = ["/usr/sbin/slapd", "-d", "stats", "-f", &config, "-h", &urls];
        let command = words.map(String::from).to_vec();
        let server = Server { command, environment: vec![], log: Some(self.log()), end: "TERM" };
        self.running = Some(server.start().0);
        wait_for_port(self.port, &self.log());
        wait_for_port(self.tls_port, &self.log());
    }

    /// Ends it; connections are reset and refused.
    pub(crate) fn stop(&mut self) {
        self.running = None;
    }

    /// Stops its time: connections stay, nothing answers.
    pub(crate) fn freeze(&self) {
        self.running.as_ref().expect("running").signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.running.as_ref().expect("running").signal(Signal::CONT);
    }

    /// `ldap://`.
    pub(crate) fn url(&self) -> String {
        format!("ldap://127.0.0.1:{}", self.port)
    }

    /// `ldaps://`.
    pub(crate) fn tls_url(&self) -> String {
        format!("ldaps://127.0.0.1:{}", self.tls_port)
    }

    /// `ldapi://`.
    pub(crate) fn socket_url(&self) -> String {
        format!("ldapi://{}", self.folder.join("socket").display().to_string().replace('/', "%2F"))
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Everything it logged.
    pub(crate) fn logged(&self) -> String {
        read_text(&self.log())
    }

    /// How many simple binds as this DN it was asked for, by its own log.
    pub(crate) fn binds(&self, dn: &str) -> usize {
        let needle = format!("BIND dn=\"{dn}\" method=128");
        self.logged().lines().filter(|line| line.contains(&needle)).count()
    }

    /// How many searches it was asked for whose line in the log holds this.
    pub(crate) fn searches(&self, needle: &str) -> usize {
        self.logged().lines().filter(|line| line.contains(" SRCH base=") && line.contains(needle)).count()
    }

    /// Changes entries by LDIF.
    pub(crate) fn modify(&self, ldif: &str) {
        let url = self.url();
        run("ldapmodify", &[&["-x", "-H", &url], &ROOT[..]].concat(), ldif.as_bytes()).succeeded();
    }

    /// Adds a person.
    pub(crate) fn add(&self, person: &Person) {
        let url = self.url();
        run("ldapadd", &[&["-x", "-H", &url], &ROOT[..]].concat(), person.ldif().as_bytes()).succeeded();
    }

    /// Sets an attribute, or removes it where there is no value.
    pub(crate) fn set(&self, person: &Person, attribute: &str, value: Option<&str>) {
        let value = value.map(|value| format!("{attribute}: {value}\n")).unwrap_or_default();
        self.modify(&format!("dn: {}\nchangetype: modify\nreplace: {attribute}\n{value}", person.dn()));
    }
}

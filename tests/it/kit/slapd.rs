//! OpenLDAP's slapd with the test users.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::certs::Pair;
use super::process::{Running, Server, folder, free_port, read_text, require, run, wait_for_port};
use super::users::{SERVICE_DN, SERVICE_PASSWORD, SUFFIX, User, all_users};
use super::{shared, wait_limit};

/// The rootdn's password, for the tests' own changes.
const ROOT: [&str; 4] = ["-D", "cn=root,dc=example,dc=com", "-w", "root"];

/// Additional settings of a slapd.
#[derive(Default)]
pub(crate) struct Options<'a> {
    /// Another CA than the shared one.
    pub(crate) ca: Option<&'a Path>,
    /// Another certificate than the shared one.
    pub(crate) pair: Option<&'a Pair>,
    /// Modules to load: `syncprov`, `ppolicy`.
    pub(crate) modules: &'a [&'a str],
    /// Lines for the head of slapd.conf, before the database: schema and global settings.
    pub(crate) global: &'a str,
    /// `access` lines before the default ones.
    pub(crate) access: &'a str,
    /// Lines for the end of the database: overlays, limits, `lastbind on`.
    pub(crate) database: &'a str,
    /// More entries, as LDIF, after the default ones.
    pub(crate) entries: &'a str,
    /// It is a replica and begins empty; `entries` is not used.
    pub(crate) replica_of: Option<ReplicaOf<'a>>,
}

/// Lifts the size limit of the service account and makes the database a provider of RFC 4533. Goes into
/// [`Options::database`], with `syncprov` in [`Options::modules`].
pub(crate) const SYNCPROV: &str = r#"limits dn.exact="cn=usher,ou=services,dc=example,dc=com" size=unlimited time=unlimited
overlay syncprov
"#;

/// The provider of a replica; it needs [`SYNCPROV`].
#[derive(Clone, Copy)]
pub(crate) enum ReplicaOf<'a> {
    /// Within milliseconds.
    AtOnce(&'a Slapd),
    /// Polls at the start and then at this interval in seconds: so far it lags.
    Every(u8, &'a Slapd),
}

impl ReplicaOf<'_> {
    fn syncrepl(self) -> String {
        let (kind, provider) = match self {
            Self::AtOnce(provider) => ("refreshAndPersist retry=\"1 +\"".into(), provider),
            Self::Every(seconds, provider) => {
                (format!("refreshOnly interval=00:00:00:{seconds:02} retry=\"1 +\""), provider)
            }
        };
        format!(
            r#"syncrepl rid=001 provider={url} searchbase="{SUFFIX}" bindmethod=simple binddn="cn=root,{SUFFIX}" credentials=root type={kind}
"#,
            url = provider.url(),
        )
    }
}

/// A slapd with its own folder and ports.
pub(crate) struct Slapd {
    folder: PathBuf,
    running: Option<Running>,
    pub(crate) port: u16,
    pub(crate) tls_port: u16,
}

impl Slapd {
    /// A server for one test, which may stop, freeze and change it.
    pub(crate) fn private() -> Self {
        Self::with(Options::default())
    }

    /// A server with these options.
    pub(crate) fn with(options: Options<'_>) -> Self {
        require(Path::new("/usr/sbin/slapd"));
        let folder = folder("slapd");
        std::fs::create_dir(folder.join("data")).unwrap();
        let certificates = &shared().certificates;
        let ca = options.ca.map_or_else(|| certificates.ca(), Path::to_owned);
        let pair = options.pair.unwrap_or(&shared().ldap);
        let modules: String = options.modules.iter().map(|name| format!("moduleload {name}\n")).collect();
        // An empty password with a DN is a successful bind here (RFC 4513 5.1.2): usher must not rely on
        // a server that refuses it.
        let config = format!(
            r#"include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include /etc/ldap/schema/misc.schema
modulepath /usr/lib/ldap
moduleload back_mdb
{modules}threads 4
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
maxsize 67108864
dbnosync
index uid,mail,entryUUID,entryCSN eq
{access}
access to attrs=userPassword by anonymous auth by * none
access to dn.subtree="ou=closed,{SUFFIX}" by dn.exact="{SERVICE_DN}" search by * none
access to dn.subtree="ou=open,{SUFFIX}" by * read
access to * by dn.exact="{SERVICE_DN}" read by self read by * none
{follows}
{database}
"#,
            ca = ca.display(),
            chain = pair.chain.display(),
            key = pair.key.display(),
            folder = folder.display(),
            global = options.global,
            access = options.access,
            database = options.database,
            follows = options.replica_of.map(ReplicaOf::syncrepl).unwrap_or_default(),
        );
        std::fs::write(folder.join("slapd.conf"), config).unwrap();
        if options.replica_of.is_none() {
            let file = folder.join("slapd.conf").display().to_string();
            run("/usr/sbin/slapadd", &["-q", "-f", &file], content(options.entries).as_bytes()).succeeded();
        }
        let mut slapd = Self { folder, running: None, port: free_port(), tls_port: free_port() };
        slapd.start_again();
        if options.replica_of.is_some() {
            // A refresh sends entries in order.
            let last = all_users().last().expect("there are users").clone();
            slapd.wait_for(&last.dn(), &format!("uid: {}", last.uid));
        }
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

    /// Stops it; connections are reset and refused.
    pub(crate) fn stop(&mut self) {
        self.running = None;
    }

    /// Copies its data, after [`Slapd::stop`].
    pub(crate) fn back_up(&self) {
        self.copy("data", "backup");
    }

    /// Restores the copy, after [`Slapd::stop`].
    pub(crate) fn restore(&self) {
        std::fs::remove_dir_all(self.folder.join("data")).unwrap();
        self.copy("backup", "data");
    }

    fn copy(&self, from: &str, to: &str) {
        std::fs::create_dir(self.folder.join(to)).unwrap();
        for file in std::fs::read_dir(self.folder.join(from)).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), self.folder.join(to).join(file.file_name())).unwrap();
        }
    }

    /// Freezes it: connections stay open, nothing replies.
    pub(crate) fn freeze(&self) {
        self.running.as_ref().expect("running").signal(Signal::STOP);
    }

    /// Lets it continue.
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

    /// Its log so far.
    pub(crate) fn logged(&self) -> String {
        read_text(&self.log())
    }

    /// Waits until this many lines of its log contain this.
    pub(crate) fn wait_logged(&self, needle: &str, lines: usize) {
        let deadline = Instant::now() + wait_limit(Duration::from_secs(20));
        while self.logged().lines().filter(|line| line.contains(needle)).count() < lines {
            assert!(Instant::now() < deadline, "slapd never logged {needle:?} {lines} times:\n{}", self.logged());
            // A log file offers no event to wait for.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The number of simple bind requests as this DN, by its own log.
    pub(crate) fn binds(&self, dn: &str) -> usize {
        let needle = format!("BIND dn=\"{dn}\" method=128");
        self.logged().lines().filter(|line| line.contains(&needle)).count()
    }

    /// The number of searches whose log line contains this.
    pub(crate) fn searches(&self, needle: &str) -> usize {
        self.logged().lines().filter(|line| line.contains(" SRCH base=") && line.contains(needle)).count()
    }

    /// Binds directly with a wrong password.
    pub(crate) fn refuses(&self, dn: &str, password: &str) {
        let url = self.url();
        let output = run("ldapwhoami", &["-x", "-H", &url, "-D", dn, "-w", password], b"");
        assert_ne!(output.code, 0, "{dn} is accepted");
    }

    /// Changes entries by LDIF.
    pub(crate) fn modify(&self, ldif: &str) {
        let url = self.url();
        run("ldapmodify", &[&["-x", "-H", &url], &ROOT[..]].concat(), ldif.as_bytes()).succeeded();
    }

    /// Changes entries after [`Slapd::stop`], unseen by followers: on a socket of its own.
    pub(crate) fn modify_offline(&self, ldif: &str) {
        let hidden = format!("ldapi://{}", self.folder.join("hidden").display().to_string().replace('/', "%2F"));
        let config = self.folder.join("slapd.conf").display().to_string();
        let words = ["/usr/sbin/slapd", "-d", "stats", "-f", &config, "-h", &hidden];
        let command = words.map(String::from).to_vec();
        let server = Server { command, environment: vec![], log: Some(self.log()), end: "TERM" };
        let _running = server.start().0;
        let deadline = Instant::now() + wait_limit(Duration::from_secs(20));
        while std::os::unix::net::UnixStream::connect(self.folder.join("hidden")).is_err() {
            assert!(Instant::now() < deadline, "slapd does not start:\n{}", self.logged());
            std::thread::sleep(Duration::from_millis(10));
        }
        run("ldapmodify", &[&["-x", "-H", &hidden], &ROOT[..]].concat(), ldif.as_bytes()).succeeded();
    }

    /// Adds a user.
    pub(crate) fn add(&self, person: &User) {
        let url = self.url();
        run("ldapadd", &[&["-x", "-H", &url], &ROOT[..]].concat(), person.ldif().as_bytes()).succeeded();
    }

    /// The attributes of an entry as its administrator reads them, in the lines of `ldapsearch`,
    /// or nothing if there is no such entry.
    pub(crate) fn read(&self, dn: &str, attributes: &[&str]) -> String {
        let url = self.url();
        let words = ["-x", "-LLL", "-o", "ldif-wrap=no", "-H", &url, "-s", "base", "-b", dn];
        run("ldapsearch", &[&words, &ROOT[..], attributes].concat(), b"").stdout
    }

    /// Waits until an entry has this line, as a replica does some time after its provider.
    pub(crate) fn wait_for(&self, dn: &str, line: &str) {
        let deadline = Instant::now() + wait_limit(Duration::from_secs(20));
        while !self.read(dn, &["*", "+"]).lines().any(|shown| shown == line) {
            assert!(Instant::now() < deadline, "{dn} does not have {line}; its log:\n{}", self.logged());
            // A replica offers no event to wait for.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sets an attribute, or removes it without a value.
    pub(crate) fn set(&self, person: &User, attribute: &str, value: Option<&str>) {
        let value = value.map(|value| format!("{attribute}: {value}\n")).unwrap_or_default();
        self.modify(&format!("dn: {}\nchangetype: modify\nreplace: {attribute}\n{value}", person.dn()));
    }
}

/// The default entries, and more.
fn content(more: &str) -> String {
    let mut ldif = format!("dn: {SUFFIX}\nobjectClass: domain\ndc: example\n\n");
    for ou in ["services", "people", "open", "closed"] {
        ldif.push_str(&format!("dn: ou={ou},{SUFFIX}\nobjectClass: organizationalUnit\nou: {ou}\n\n"));
    }
    ldif.push_str(&format!("dn: {SERVICE_DN}\nobjectClass: applicationProcess\nobjectClass: simpleSecurityObject\n"));
    ldif.push_str(&format!("cn: usher\nuserPassword: {SERVICE_PASSWORD}\n\n"));
    ldif.extend(all_users().iter().map(User::ldif));
    ldif.push_str(more);
    ldif
}

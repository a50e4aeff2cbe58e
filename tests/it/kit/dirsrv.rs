//! 389 Directory Server (ns-slapd) with a few users, configured in its own folder: no
//! system service, no root, one port on loopback.

use std::path::Path;

use super::process::{Running, Server, folder, free_port, require, run, wait_for_port};
use super::users::{SERVICE_DN, SERVICE_PASSWORD, SUFFIX, User};

const SERVER: &str = "/usr/sbin/ns-slapd";
const DATA: &str = "/usr/share/dirsrv/data";
/// The password of `cn=root`, hashed: the configuration accepts no other form.
const ROOT_HASH: &str = "{SSHA}k4gOyLGjOEySGD8vDPh581JBde5zYWx0c2FsdA==";
const ROOT: [&str; 4] = ["-D", "cn=root", "-w", "rootroot"];

/// A 389-DS, which ends when dropped.
pub(crate) struct DirSrv {
    _running: Running,
    port: u16,
}

impl DirSrv {
    /// A server with these users, added before this password policy.
    pub(crate) fn start(policy: &[(&str, &str)], people: &[User]) -> Self {
        Self::with_plugins(&[], policy, people)
    }

    /// The same, with plug-ins that are switched off by default.
    pub(crate) fn with_plugins(plugins: &[&str], policy: &[(&str, &str)], people: &[User]) -> Self {
        require(Path::new(SERVER));
        let (folder, port) = (folder("dirsrv"), free_port());
        for name in ["config/schema", "certs", "ldif", "bak", "run", "inst", "log", "db", "tmp", "lock"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        std::fs::copy("/etc/dirsrv/schema/99user.ldif", folder.join("config/schema/99user.ldif")).unwrap();
        let mut config = dse(&folder, port);
        for name in plugins {
            let entry = config.find(&format!("dn: cn={name},cn=plugins,cn=config")).expect("a plug-in of the package");
            let off = entry + config[entry..].find("nsslapd-pluginenabled: off").expect("it is off");
            config.replace_range(off.."nsslapd-pluginenabled: off".len() + off, "nsslapd-pluginenabled: on");
        }
        std::fs::write(folder.join("config/dse.ldif"), config).unwrap();
        let words = [SERVER, "-d", "0", "-D"].map(String::from).to_vec();
        let paths = [folder.join("config"), "-i".into(), folder.join("run/pid")];
        let command = words.into_iter().chain(paths.map(|path| path.display().to_string())).collect();
        let log = folder.join("log/console");
        let server = Server { command, environment: vec![], log: Some(log), end: "TERM" };
        let running = server.start().0;
        wait_for_port(port, &folder.join("log/errors"));
        let server = Self { _running: running, port };
        let mut ldif = format!("dn: {SUFFIX}\nobjectClass: domain\ndc: example\n");
        ldif.push_str(&format!(
            "aci: (targetattr!=\"userPassword\")(version 3.0; acl \"usher\"; allow (read,search,compare) userdn=\"ldap:///{SERVICE_DN}\";)\n\n",
        ));
        for ou in ["services", "people"] {
            ldif.push_str(&format!("dn: ou={ou},{SUFFIX}\nobjectClass: organizationalUnit\nou: {ou}\n\n"));
        }
        ldif.push_str(&format!(
            "dn: {SERVICE_DN}\nobjectClass: applicationProcess\nobjectClass: simpleSecurityObject\n\
             cn: usher\nuserPassword: {SERVICE_PASSWORD}\n\n"
        ));
        ldif.extend(people.iter().map(User::ldif));
        server.as_root("ldapadd", &ldif);
        // Set last: otherwise every password, the service account's too, would count as set by the administrator.
        let policy = policy.iter().map(|(name, value)| format!("replace: {name}\n{name}: {value}\n"));
        let policy: Vec<String> = policy.collect();
        server.as_root("ldapmodify", &format!("dn: cn=config\nchangetype: modify\n{}", policy.join("-\n")));
        server
    }

    /// `ldap://`.
    pub(crate) fn url(&self) -> String {
        format!("ldap://127.0.0.1:{}", self.port)
    }

    /// Changes an attribute of a user as the administrator, or removes it without a value.
    pub(crate) fn set(&self, person: &User, attribute: &str, value: Option<&str>) {
        let value = value.map(|value| format!("{attribute}: {value}\n")).unwrap_or_default();
        let dn = person.dn();
        self.as_root("ldapmodify", &format!("dn: {dn}\nchangetype: modify\nreplace: {attribute}\n{value}"));
    }

    /// Changes entries or the schema by LDIF.
    pub(crate) fn modify(&self, ldif: &str) {
        self.as_root("ldapmodify", ldif);
    }

    fn as_root(&self, program: &str, ldif: &str) {
        run(program, &[&["-x", "-H", &self.url()], &ROOT[..]].concat(), ldif.as_bytes()).succeeded();
    }
}

/// The configuration that `dscreate` would write, from the package's templates.
fn dse(folder: &Path, port: u16) -> String {
    let template = |name: &str| std::fs::read_to_string(Path::new(DATA).join(name)).unwrap();
    let user = run("id", &["-un"], b"").succeeded().stdout;
    let folder = folder.display();
    let mut text = template("template-dse.ldif") + &template("template-suffix-db.ldif");
    for (name, value) in [
        ("schema_dir", format!("{folder}/config/schema")),
        ("config_dir", format!("{folder}/config")),
        ("db_home_dir", format!("{folder}/db")),
        ("cert_dir", format!("{folder}/certs")),
        ("ds_port", format!("{port}\nnsslapd-listenhost: 127.0.0.1")),
        ("ds_user", user.trim().to_owned()),
        ("ds_passwd", ROOT_HASH.to_owned()),
        ("ds_suffix", SUFFIX.to_owned()),
        ("ds_bename", "userRoot".to_owned()),
        ("db_lib", "bdb".to_owned()),
        ("fqdn", "localhost".to_owned()),
        ("rootdn", "cn=root".to_owned()),
        ("ldapi", format!("{folder}/socket")),
        ("ldapi_enabled", "off".to_owned()),
        ("ldapi_autobind", "off".to_owned()),
    ] {
        text = text.replace(&format!("%{name}%"), &value);
    }
    for name in ["lock", "tmp", "ldif", "bak", "run", "inst", "log", "db"] {
        text = text.replace(&format!("%{name}_dir%"), &format!("{folder}/{name}"));
    }
    text
}

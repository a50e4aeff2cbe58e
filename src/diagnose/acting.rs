//! Whether the users that may act for a mailbox can do so: what neither the file nor a single login shows.

use super::{Finding, State};
use crate::config::{self, Config, Find};
use crate::directory::{DirectoryError, UnavailableCause};
use crate::login::realms::Realms;
use crate::proto::ldap::dn::is_within;
use crate::proto::ldap::result::NO_SUCH_OBJECT;

/// How many administrators are looked up.
const LOOKED_UP: usize = 100;
/// Every entry matches it.
const ANY: &str = "(objectClass=*)";

/// The findings, if any user may act for a mailbox.
pub(super) async fn findings(config: &Config, realms: &Realms) -> Vec<Finding> {
    if !config.permits_acting() {
        return Vec::new();
    }
    let mut findings = administrators(config, realms).await;
    let without = config.routing.backends.iter().filter(|backend| backend.acting_account().is_none());
    let without: Vec<_> = without.map(|backend| backend.name.as_str()).collect();
    findings.push(match without.as_slice() {
        [] => Finding::ok("acting", "every backend has an account for users that act for a mailbox"),
        names => {
            let found = format!("no account for users that act for a mailbox at {}", names.join(", "));
            let advice = "such logins are refused there (acting_refused=no_service_login): give the backend \
                          `impersonation_service` or `service`";
            Finding::new("acting", State::Warning, found).advised(advice)
        }
    });
    findings
}

/// Whether the directory has the entries of the administrators that are named by DN.
async fn administrators(config: &Config, realms: &Realms) -> Vec<Finding> {
    let Some(settings) = &config.impersonation.administrators else { return Vec::new() };
    let of_admins = realms.all().iter().find(|realm| realm.settings.name == settings.directory);
    let Some(realm) = of_admins else { return Vec::new() };
    let (mut findings, mut found) = (Vec::new(), 0);
    for dn in settings.dns.iter().take(LOOKED_UP) {
        match realm.directory().matches(dn, ANY).await.0 {
            Ok(true) => {
                found += 1;
                findings.extend(outside(&realm.settings, dn));
            }
            Ok(false) => findings.push(missing(dn)),
            Err(DirectoryError::Unavailable(cause)) if is_missing(&cause) => findings.push(missing(dn)),
            // The finding about the directory has the advice, and its other servers were asked already.
            Err(error) => {
                findings.push(Finding::new("administrators", State::Note, format!("{dn}: not looked up: {error}")));
                break;
            }
        }
    }
    if found > 0 {
        let entries = if found == 1 { "1 entry".to_owned() } else { format!("{found} entries") };
        findings.insert(0, Finding::ok("administrators", format!("{entries} of impersonation.admins found")));
    }
    findings
}

/// An administrator logs in as every user does: its name is searched below the base.
fn outside(settings: &config::Directory, dn: &str) -> Option<Finding> {
    let (Find::Search { base, .. } | Find::Principal { base, .. }) = &settings.find else { return None };
    let found = format!("impersonation.admins: {dn} is not below {base} (directory.base)");
    let advice =
        "it cannot log in, because its name is not found there: name an entry below the base, or move the base up";
    (!is_within(dn, base)).then(|| Finding::new("administrators", State::Warning, found).advised(advice))
}

fn is_missing(cause: &UnavailableCause) -> bool {
    matches!(cause.code(), Some(NO_SUCH_OBJECT))
}

fn missing(dn: &str) -> Finding {
    let found = format!("impersonation.admins: the directory has no entry {dn}");
    let advice = "no user acts by this DN: is it spelt right, and may usher's service account read the entry?";
    Finding::new("administrators", State::Warning, found).advised(advice)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::directory::Directory;
    use crate::directory::memory::Memory;

    #[tokio::test]
    async fn missing_administrators_and_accounts_are_found() {
        let text = "listeners: [{protocol: imap, address: '127.0.0.1:993', tls: implicit}]
tls: {certificates: [{chain: c.pem, key: k.pem}]}
directory: {servers: ['ldaps://one'], base: dc=x, filter: '(uid={login})', login_attribute: uid, watch: off}
routing:
  backends:
    - {name: one, service: {login: usher, password_file: p}, imap: {address: '192.0.2.3:993', tls: implicit}}
    - {name: two, imap: {address: '192.0.2.4:993', tls: implicit}}
impersonation: {admins: ['uid=here,dc=x', 'uid=gone,dc=x'], networks: [192.0.2.0/24]}
";
        let config = config::parse(Path::new("/c.yaml"), text).unwrap();
        let memory = Memory::new();
        let realms = Realms::new(&config, vec![Arc::clone(&memory) as Arc<dyn Directory>], None);
        memory.set_match(ANY, "uid=here,dc=x");
        let found = findings(&config, &realms).await;
        let states: Vec<_> = found.iter().map(|finding| (finding.check, finding.state)).collect();
        let (administrators, acting) = ("administrators", "acting");
        let expected = [(administrators, State::Ok), (administrators, State::Warning), (acting, State::Warning)];
        assert_eq!(states, expected, "{found:#?}");
        assert!(found[0].found.contains("1 entry") && found[1].found.contains("uid=gone,dc=x"), "{found:#?}");
        assert!(found[2].found.ends_with("at two"), "{found:#?}");
        let elsewhere = text.replace("base: dc=x", "base: 'ou=people,dc=x'");
        let elsewhere = config::parse(Path::new("/c.yaml"), &elsewhere).unwrap();
        let outside = Realms::new(&elsewhere, vec![Arc::clone(&memory) as Arc<dyn Directory>], None);
        let found = findings(&elsewhere, &outside).await;
        assert!(
            found[1].state == State::Warning && found[1].found.contains("is not below ou=people,dc=x"),
            "{found:#?}"
        );
        memory.set_outage(true);
        let found = findings(&config, &realms).await;
        assert_eq!((found[0].check, found[0].state, found.len()), (administrators, State::Note, 2), "{found:#?}");
        let off = config::parse(Path::new("/c.yaml"), text.split("impersonation").next().unwrap()).unwrap();
        assert_eq!(findings(&off, &realms).await, []);
    }
}

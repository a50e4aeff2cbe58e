//! Attributes that restrict a login, and filters that it must match: who reads them, and where.

use super::*;
use crate::directory::{Floor, Freshness};

/// A server that shows the networks of alice to the service account, and not to alice.
fn hiding(account: &str) -> impl Fn(&Recorded) -> Vec<ScriptedReply> + Send + Sync + use<> {
    let (account, bound_as) = (account.to_owned(), std::sync::Mutex::new(std::collections::HashMap::new()));
    move |seen| {
        let mut bound_as = bound_as.lock().unwrap();
        if let Some((dn, _)) = seen.bind() {
            bound_as.insert(seen.connection, dn.to_owned());
        }
        match seen.base() {
            Some(_) => {
                let mut shown: Vec<(&str, &[&[u8]])> = vec![("mailHost", &[b"server3"]), ("uid", &[b"alice"])];
                if bound_as.get(&seen.connection) == Some(&account) {
                    shown.push(("nets", &[b"192.0.2.0/24"]));
                    shown.push(("hold", &[b"yes"]));
                }
                vec![entry("uid=alice,dc=x", &shown), done(Code::Success)]
            }
            None => alice(seen),
        }
    }
}

#[tokio::test]
async fn service_account_reads_what_restricts_a_user_bound_by_name() {
    let (_folder, _, account) = service(b"service");
    let dn = account.as_ref().unwrap().dn.clone();
    for attribute in ["nets", "hold", ""] {
        let server = Scripted::start(hiding(&dn)).await;
        let mut settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], templated(account.clone()));
        settings.networks_attribute = (attribute == "nets").then(|| "nets".to_owned());
        settings.watch.hold_attribute = (attribute == "hold").then(|| "hold".to_owned());
        let under = Under::test(&settings, Tuning::default());
        let identity = under.alice().await.unwrap();
        let permits = identity.entry().permits("198.51.100.1".parse().unwrap());
        assert_eq!((permits, identity.entry().version.held), (attribute != "nets", attribute == "hold"), "{attribute}");
        // No request more than before, and no bind of the service account where nothing restricts.
        let services = server.binds().iter().filter(|(_, name, _)| *name == dn).count();
        assert_eq!((server.searches().len(), services), (1, usize::from(!attribute.is_empty())), "{attribute}");
    }
}

/// Shows this host, and hangs up when it is asked whether the entry matches the filter.
fn checking(host: &'static [u8], breaks: bool) -> impl Fn(&Recorded) -> Vec<ScriptedReply> + Send + Sync {
    move |seen| match &seen.op {
        LdapOp::SearchRequest(request) if format!("{:?}", request.filter).contains("staff") && breaks => {
            vec![ScriptedReply::Close]
        }
        LdapOp::SearchRequest(_) => {
            vec![entry("uid=alice,dc=x", &[("mailHost", &[host]), ("uid", &[b"alice"])]), done(Code::Success)]
        }
        _ => alice(seen),
    }
}

/// Only `server4` is the newest.
struct Newest;

impl Floor for Newest {
    fn freshness(&self, shown: &Entry, _: &str) -> Freshness {
        match shown.mail_hosts.first().map(String::as_str) {
            Some("server4") => Freshness::CaughtUp,
            _ => Freshness::Behind(Arc::new(Entry::for_tests("uid=alice,dc=x", &["server4"]))),
        }
    }

    fn concerns(&self, _: &str) -> bool {
        true
    }

    fn followed(&self) -> Option<Arc<str>> {
        None
    }
}

#[tokio::test]
async fn filter_fails_over_to_a_server_that_is_not_behind() {
    for (second, is_current) in [(&b"server4"[..], true), (b"server3", false)] {
        let servers =
            [Scripted::start(checking(b"server4", true)).await, Scripted::start(checking(second, false)).await];
        let urls = || servers.iter().map(|server| server.server(LdapScheme::Ldap, "127.0.0.1")).collect();
        // A token's entry.
        let mut settings = settings(urls(), searching(None));
        settings.allow.filter = Some("(group=staff)".to_owned());
        let found = within(Under::test(&settings, Tuning::default()).ldap.find_by("(uid=alice)")).await.0;
        assert_eq!(found.is_ok(), is_current, "{found:?}");
        assert!(found.is_err() || found.unwrap().in_group);
        // The filter before a bind.
        (settings.password_filter, settings.allow.filter) = (settings.allow.filter.take(), None);
        let under = Under::test(&settings, Tuning::default());
        let credential = Credential::for_tests("alice", "right");
        let result = within(under.ldap.authenticate(&credential, &|_| false, &Newest)).await.0;
        assert_eq!(result.is_ok(), is_current, "{result:?}");
        if !is_current {
            assert!(matches!(result, Err(DirectoryError::Unavailable(_))), "an outage is no refusal");
            assert!(servers.iter().all(|server| server.binds().iter().all(|(_, dn, _)| !dn.starts_with("uid=alice"))));
        }
    }
}

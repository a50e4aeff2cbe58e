//! What names mean, and which users may act for which mailbox.

use std::path::Path;

use super::*;
use crate::config;
use crate::directory::Directory;
use crate::directory::memory::Memory;
use crate::outcome::AccountState;
use crate::proto;

fn config(directory: &str, impersonation: &str) -> Config {
    let text = format!(
        "listeners: [{{protocol: imap, address: '127.0.0.1:993', tls: implicit}}]
tls: {{certificates: [{{chain: c.pem, key: k.pem}}]}}
directory:
  servers: ['ldaps://one']
  base: dc=x
  filter: '(uid={{login}})'
  login_attribute: uid
  bind_dn: cn=usher,dc=x
  bind_password_file: p
  canary: {{login: canary, mail_host: server3}}
  watch: off
{directory}
routing:
  backends:
    - name: server3
      service: {{login: master, password_file: p}}
      probe: login
      probe_account: {{login: probe, password_file: p}}
      imap: {{address: '192.0.2.3:993', tls: implicit}}
{impersonation}
"
    );
    config::parse(Path::new("/c.yaml"), &text).unwrap()
}

const ADMIN: &str = "impersonation: {admins: ['UID=admin, dc=x'], admin_filter: '(o=admins)', networks: [192.0.2.0/24], target_filter: '(o=mail)'}";
const GRANTS: &str = "  grant_attribute: grant";

fn login(name: &str) -> Login {
    Login::parse(name.as_bytes()).unwrap()
}

fn named(config: &Config, typed: &str, authzid: &str) -> Result<(String, Option<(String, bool)>), Refusal> {
    let (own, acting) = names(config, typed.as_bytes(), authzid.as_bytes())?;
    let acting = acting.map(|acting| (acting.target.as_str().to_owned(), acting.whole.is_some()));
    Ok((own.as_str().to_owned(), acting))
}

#[test]
fn names_say_who_acts_for_whom() {
    let on = config("", ADMIN);
    let own = |name: &str| Ok((name.to_owned(), None));
    let acting = |actor: &str, target: &str, whole| Ok((actor.to_owned(), Some((target.to_owned(), whole))));
    assert_eq!(named(&on, "admin", ""), own("admin"));
    assert_eq!(named(&on, "admin", "admin"), own("admin"), "authzid equal to authcid is an ordinary login");
    assert_eq!(named(&on, " admin", "admin"), own("admin"));
    assert_eq!(named(&on, "a*b", "a*b"), own("a*b"), "said twice, a name is never split");
    assert_eq!(named(&on, "admin", "alice"), acting("admin", "alice", false));
    assert_eq!(named(&on, "o*brien", "alice"), acting("o*brien", "alice", false), "authzid: the name is whole");
    assert_eq!(named(&on, "admin", "o*brien"), acting("admin", "o*brien", false));
    assert_eq!(named(&on, "alice*admin", ""), acting("admin", "alice", true));
    assert_eq!(named(&on, "o*brien*admin", ""), acting("admin", "o*brien", true), "the last separator");
    assert_eq!(named(&on, "alice*o*brien", ""), acting("brien", "alice*o", true));
    for no_names in ["*admin", "alice*", "*", " * ", "**"] {
        let found = named(&on, no_names, "").unwrap();
        let whole = no_names.trim();
        assert_eq!(found, (whole.to_owned(), None), "{no_names:?}");
    }
    assert_eq!(named(&on, "admin", "al\0ice"), Err(Refusal::InvalidUsername));
    assert_eq!(named(&on, "", "alice"), Err(Refusal::InvalidUsername));
    let off = config("", "");
    assert_eq!(named(&off, "alice*admin", ""), own("alice*admin"));
    assert_eq!(named(&off, "admin", "alice"), Err(Refusal::AuthzidNotAllowed));
    let none = config("", &ADMIN.replace("target_filter", "separator: '', target_filter"));
    assert_eq!(named(&none, "alice*admin", ""), own("alice*admin"));
    assert_eq!(named(&config(GRANTS, ""), "alice*bob", ""), acting("bob", "alice", true));
}

/// A directory with some users: the name is the uid.
fn directory() -> Arc<Memory> {
    let memory = Memory::new();
    for name in ["admin", "group", "alice", "bob", "canary", "probe", "master", "shared"] {
        memory.add(name, "sesame", entry(name));
        memory.set_match("(o=mail)", &format!("uid={name},dc=x"));
    }
    memory.set_match("(o=admins)", "uid=group,dc=x");
    memory
}

fn entry(name: &str) -> Entry {
    Entry { logins: vec![name.to_owned()], ..Entry::for_tests(&format!("uid={name},dc=x"), &["server3"]) }
}

fn realms(config: &Config, memory: &Arc<Memory>) -> Realms {
    Realms::new(config, vec![Arc::clone(memory) as Arc<dyn Directory>], None)
}

struct Question<'a> {
    config: &'a Config,
    memory: &'a Arc<Memory>,
    client: &'a str,
    protocol: &'a str,
}

impl Question<'_> {
    async fn ask(&self, actor: &str, mailbox: &str) -> Result<MailboxRight, Refusal> {
        let (name, mailbox) = (login(actor), login(mailbox));
        let realms = realms(self.config, self.memory);
        let user = target(&realms, &name).await?;
        let found = target(&realms, &mailbox).await?;
        let client = Some(self.client.parse().unwrap());
        let user = Actor { entry: &user, client, protocol: proto::by_name(self.protocol) };
        judge(self.config, &realms, user, (&mailbox, &found)).await
    }
}

fn refused<T>(fault: ActingFault) -> Result<T, Refusal> {
    Err(Refusal::ActingNotAllowed(fault))
}

#[tokio::test]
async fn accounts_of_many_backends_are_no_mailboxes_under_any_name() {
    let (mut config, memory) = (config("", ADMIN), directory());
    let first = config.routing.backends[0].clone();
    for number in 10..60 {
        let mut backend = first.clone();
        backend.service.as_mut().unwrap().login = format!("service{number}");
        config.routing.backends.push(backend);
    }
    // The last one of them, by another name of its entry.
    memory.add("service59", "sesame", Entry { logins: Vec::new(), ..entry("last") });
    memory.add("other", "sesame", Entry { logins: Vec::new(), ..entry("last") });
    memory.set_match("(o=mail)", "uid=last,dc=x");
    let question = Question { config: &config, memory: &memory, client: "192.0.2.7", protocol: "imap" };
    assert_eq!(question.ask("admin", "other").await, refused(ActingFault::SystemAccount));
}

#[tokio::test]
async fn administrators_act_for_users_only() {
    let (config, memory) = (config("", ADMIN), directory());
    let question = Question { config: &config, memory: &memory, client: "192.0.2.7", protocol: "imap" };
    let may = Ok(MailboxRight::May(Authority::Administrator));
    assert_eq!(question.ask("admin", "alice").await, may, "by DN, in another spelling");
    assert_eq!(question.ask("group", "alice").await, may, "by filter");
    assert_eq!(question.ask("bob", "alice").await, refused(ActingFault::NotPermitted));
    assert_eq!(question.ask("admin", "group").await, refused(ActingFault::Administrator));
    assert_eq!(question.ask("group", "admin").await, refused(ActingFault::Administrator));
    for account in ["canary", "probe", "master"] {
        assert_eq!(question.ask("admin", account).await, refused(ActingFault::SystemAccount), "{account}");
    }
    assert_eq!(question.ask("admin", "missing").await, refused(ActingFault::UnknownTarget));
    assert_eq!(question.ask("admin", "admin").await, Ok(MailboxRight::Owner));
    // Other names of the same entries.
    memory.add("watchdog", "sesame", Entry { logins: vec!["Probe".to_owned()], ..entry("watchdog") });
    memory.set_match("(o=mail)", "uid=watchdog,dc=x");
    memory.add("bird", "sesame", entry("canary"));
    memory.add("root", "sesame", entry("admin"));
    for account in ["watchdog", "bird"] {
        assert_eq!(question.ask("admin", account).await, refused(ActingFault::SystemAccount), "{account}");
    }
    assert_eq!(question.ask("group", "root").await, refused(ActingFault::Administrator));
    assert_eq!(question.ask("admin", "root").await, Ok(MailboxRight::Owner));
    // An alias that is another user's name leads to no mailbox.
    memory.add("alice", "other", entry("bob"));
    assert_eq!(question.ask("admin", "alice").await, refused(ActingFault::AmbiguousTarget));
}

#[tokio::test]
async fn administrators_act_under_their_conditions_only() {
    let (config, memory) = (config("", ADMIN), directory());
    let at = |client, protocol| Question { config: &config, memory: &memory, client, protocol };
    assert_eq!(at("198.51.100.1", "imap").ask("admin", "alice").await, refused(ActingFault::Network));
    assert_eq!(at("192.0.2.7", "pop3").ask("admin", "alice").await, refused(ActingFault::Protocol));
    memory.modify("alice", |entry| entry.version.disabled = true);
    assert_eq!(at("192.0.2.7", "imap").ask("admin", "alice").await, refused(ActingFault::Disabled));
    let disabled = super::tests::config("", &ADMIN.replace("target_filter", "include_disabled: true, target_filter"));
    let question = Question { config: &disabled, memory: &memory, client: "192.0.2.7", protocol: "imap" };
    assert_eq!(question.ask("admin", "alice").await, Ok(MailboxRight::May(Authority::Administrator)));
    // Rights that are lost are lost for the next attempt.
    memory.clear_matches();
    assert_eq!(at("192.0.2.7", "imap").ask("admin", "bob").await, refused(ActingFault::TargetFilter));
    assert_eq!(at("192.0.2.7", "imap").ask("group", "bob").await, refused(ActingFault::NotPermitted));
    memory.set_outage(true);
    let user = Actor { entry: &entry("admin"), client: None, protocol: None };
    let judged = judge(&config, &realms(&config, &memory), user, (&login("bob"), &entry("bob"))).await;
    assert_eq!(judged, Err(Refusal::DirectoryUnavailable), "an outage is no verdict");
}

#[tokio::test]
async fn mailbox_names_who_may_act_for_it() {
    let (config, memory) = (config(GRANTS, ""), directory());
    let question = Question { config: &config, memory: &memory, client: "198.51.100.1", protocol: "submission" };
    let grants = |values: &[&str]| {
        let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        memory.modify("shared", |entry| entry.grants = values);
    };
    assert_eq!(question.ask("bob", "shared").await, refused(ActingFault::NotPermitted));
    for value in ["bob", "UID=bob, dc=x"] {
        grants(&["", "missing", value]);
        assert_eq!(
            question.ask("bob", "shared").await,
            Ok(MailboxRight::May(Authority::Grant(value.into()))),
            "{value}"
        );
        assert_eq!(question.ask("alice", "shared").await, refused(ActingFault::NotPermitted));
        assert_eq!(question.ask("shared", "bob").await, refused(ActingFault::NotPermitted), "one way only");
    }
    // A name means whom a login by it would mean: not an alias of two, nor part of another name.
    memory.add("robert", "sesame", entry("bob"));
    assert_eq!(question.ask("robert", "shared").await, Ok(MailboxRight::May(Authority::Grant("UID=bob, dc=x".into()))));
    grants(&["bob"]);
    assert_eq!(question.ask("robert", "shared").await, Ok(MailboxRight::May(Authority::Grant("bob".into()))));
    memory.add("bob", "sesame", entry("alice"));
    assert_eq!(question.ask("robert", "shared").await, refused(ActingFault::NotPermitted), "ambiguous by now");
    for not_bob in ["bo", "*", "uid=bob", "uid=bob,dc=y", "bob,dc=x", "(uid=bob)", "BOBBY"] {
        grants(&[not_bob]);
        assert_eq!(question.ask("robert", "shared").await, refused(ActingFault::NotPermitted), "{not_bob}");
    }
    // What may not be a mailbox by office may not by consent.
    memory.modify("probe", |entry| entry.grants = vec!["robert".to_owned()]);
    assert_eq!(question.ask("robert", "probe").await, refused(ActingFault::SystemAccount));
    grants(&["robert"]);
    memory.modify("shared", |entry| entry.version.expires = Some(1));
    assert_eq!(entry_state(&config, &memory, "shared").await, Some(AccountState::AccountExpired));
    assert_eq!(question.ask("robert", "shared").await, refused(ActingFault::Disabled));
}

async fn entry_state(config: &Config, memory: &Arc<Memory>, name: &str) -> Option<AccountState> {
    target(&realms(config, memory), &login(name)).await.unwrap().version.account_state(unix_now())
}

#[tokio::test]
async fn user_without_the_protocol_acts_in_it_by_no_grant() {
    let config = config("  grant_attribute: grant\n  allow_attribute: may", "");
    let memory = directory();
    memory.modify("shared", |entry| entry.grants = vec!["bob".to_owned()]);
    memory.modify("bob", |entry| entry.allowed = vec!["imap".to_owned()]);
    let at = |protocol| Question { config: &config, memory: &memory, client: "192.0.2.7", protocol };
    assert_eq!(at("imap").ask("bob", "shared").await, Ok(MailboxRight::May(Authority::Grant("bob".into()))));
    assert_eq!(at("pop3").ask("bob", "shared").await, refused(ActingFault::NotPermitted));
}

#[tokio::test]
async fn administrator_of_one_directory_acts_in_another_only_where_the_configuration_says_so() {
    let text = |more: &str| {
        let directory = |name: &str| {
            format!(
                "{{name: {name}, domains: [{name}.example], servers: ['ldaps://one'], base: dc=x, filter: '(uid={{login}})', \
                 login_attribute: uid, grant_attribute: grant, watch: off}}"
            )
        };
        format!(
            "listeners: [{{protocol: imap, address: '127.0.0.1:993', tls: implicit}}]
tls: {{certificates: [{{chain: c.pem, key: k.pem}}]}}
directories: [{}, {}]
routing: {{backends: [{{name: server3, service: {{login: master, password_file: p}}, imap: {{address: '192.0.2.3:993', tls: implicit}}}}]}}
impersonation: {{directory: corp, admins: ['uid=admin,dc=x'], networks: [192.0.2.0/24]{more}}}
",
            directory("corp"),
            directory("partner")
        )
    };
    let users = |realm: &str| {
        let memory = Memory::new();
        for name in ["admin", "alice", "bob"] {
            let mut entry = entry(name);
            entry.version.realm = crate::directory::Realm::named(realm);
            entry.grants = vec!["bob@partner.example".to_owned()];
            memory.add(&format!("{name}@{realm}.example"), "sesame", entry);
        }
        memory
    };
    let (corp, partner) = (users("corp"), users("partner"));
    let ask = async |more: &str, actor: &str, mailbox: &str| {
        let config = config::parse(Path::new("/c.yaml"), &text(more)).unwrap();
        let both = [&corp, &partner].map(|one| Arc::clone(one) as Arc<dyn Directory>).to_vec();
        let realms = Realms::new(&config, both, None);
        let (name, mailbox) = (login(actor), login(mailbox));
        let user = target(&realms, &name).await?;
        let found = target(&realms, &mailbox).await?;
        let client = Some("192.0.2.7".parse().unwrap());
        let user = Actor { entry: &user, client, protocol: proto::by_name("imap") };
        judge(&config, &realms, user, (&mailbox, &found)).await
    };
    let (admin, may) = ("admin@corp.example", Ok(MailboxRight::May(Authority::Administrator)));
    assert_eq!(ask("", admin, "alice@corp.example").await, may);
    assert_eq!(ask("", admin, "alice@partner.example").await, refused(ActingFault::TargetDirectory));
    let both = ", target_directories: [corp, partner]";
    assert_eq!(ask(both, admin, "alice@partner.example").await, may);
    let only = ", target_directories: partner";
    assert_eq!(ask(only, admin, "alice@corp.example").await, refused(ActingFault::TargetDirectory));
    // The same DN is no administrator, no owner and no user that an entry names, in another directory.
    for more in ["", both] {
        assert_eq!(
            ask(more, "admin@partner.example", "alice@partner.example").await,
            refused(ActingFault::NotPermitted)
        );
        assert_eq!(ask(more, "admin@partner.example", "alice@corp.example").await, refused(ActingFault::NotPermitted));
        assert_eq!(ask(more, "alice@partner.example", "alice@corp.example").await, refused(ActingFault::NotPermitted));
        assert_eq!(ask(more, "bob@corp.example", "alice@partner.example").await, refused(ActingFault::NotPermitted));
        // A name means whom a login by it means, and not the same user name in the mailbox's directory.
        assert_eq!(ask(more, "bob@corp.example", "alice@corp.example").await, refused(ActingFault::NotPermitted));
        let granted = ask(more, "bob@partner.example", "alice@partner.example").await;
        assert!(matches!(granted, Ok(MailboxRight::May(Authority::Grant(_)))), "{granted:?}");
    }
    assert_eq!(ask(both, admin, "admin@corp.example").await, Ok(MailboxRight::Owner));
    assert_eq!(ask(both, admin, "admin@partner.example").await, may, "of another directory: a user as any");
    assert_eq!(ask("", admin, "alice@other.example").await, refused(ActingFault::UnknownTarget));
}

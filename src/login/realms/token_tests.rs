//! The decision by a token: which entry, whatever the client calls itself, and what is remembered of it.

use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::base::clock::unix_now;
use crate::base::credential::{CredentialSecret, Login, TokenForm};
use crate::base::secret::Secret;
use crate::config::{self, Config, KeySource, TokenIssuer};
use crate::directory::memory::Memory;
use crate::directory::{Availability, Directory, Entry, EntryVersion};
use crate::login::authn::Authenticator;
use crate::outcome::AccountState;
use crate::proto::ldap::template;
use crate::telemetry::metrics::Metrics;
use crate::token::tests::signer::Signer;
use crate::token::{IssuerFiles, KeySet, Tokens};

const ISSUER: &str = "https://idp.example.com";
const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));
const DN: &str = "uid=alice,ou=people";
/// How long a refusal is remembered.
const MOMENT: Duration = Duration::from_secs(5);

const CONFIG: &str = "listeners: [{protocol: imap, address: '127.0.0.1:993', tls: implicit}]
tls: {certificates: [{chain: c.pem, key: k.pem}]}
directory: {servers: ['ldaps://one'], base: dc=x, filter: '(uid={login})', watch: off}
routing: {backends: [{name: server3, imap: {address: '192.0.2.3:993', tls: implicit}}]}
";

static SIGNER: LazyLock<Signer> = LazyLock::new(|| Signer::new("ES256", "one"));

struct Setup {
    directory: Arc<Memory>,
    realms: Realms,
}

fn setup() -> Setup {
    let directory = Memory::with_user("alice", "sesame", Entry::for_tests(DN, &["server3"]));
    directory.set_mail("alice", "alice@example.com");
    let settings = config::Cache {
        ttl: Duration::from_secs(300),
        negative_ttl: Duration::from_secs(30),
        negative_ttl_max: Duration::from_secs(900),
        stale: Duration::from_secs(3_600),
        capacity: 100,
    };
    let issuer = TokenIssuer {
        issuer: ISSUER.to_owned(),
        keys: Some(KeySource::File("jwks.json".into())),
        introspection: None,
        audience: vec!["mail".to_owned()],
        clients: Vec::new(),
        scopes: Vec::new(),
        login_claim: "upn".to_owned(),
        unverified_email: false,
        directory: None,
        filter: Some(template::parse_claim_filter("(mail={claim})").unwrap()),
        domains: Vec::new(),
        domain_attribute: "mail".to_owned(),
        ca: None,
        proxy: None,
    };
    let keys = KeySet::parse(json!({"keys": [SIGNER.jwk()]}).to_string().as_bytes()).unwrap();
    let files = IssuerFiles { keys: Some(Arc::new(keys)), ..IssuerFiles::default() };
    let tokens = Tokens::new(&[issuer], vec![files], &Arc::new(Metrics::new()), None);
    let config = Config { cache: settings, ..config::parse(Path::new("/c.yaml"), CONFIG).unwrap() };
    let realms = Realms::new(&config, vec![Arc::clone(&directory) as Arc<dyn Directory>], None);
    Setup { directory, realms: realms.with_tokens(Arc::new(tokens)) }
}

fn claims(upn: &str) -> Value {
    json!({"iss": ISSUER, "aud": "mail", "sub": "1", "azp": "client", "upn": upn, "exp": unix_now() + 300})
}

fn credential(name: &str, token: &str) -> Credential {
    let name = if name.is_empty() { Login::absent() } else { Login::parse(name.as_bytes()).unwrap() };
    let (token, form) = (Secret::copy_of(token.as_bytes()), TokenForm::OAuthBearer);
    Credential::new(name, CredentialSecret::Token(BearerToken { token, form }))
}

impl Setup {
    fn authn(&self) -> &Authenticator {
        &self.realms.all()[0].authn
    }

    async fn decision(&self, name: &str, token: &str) -> AuthDecision {
        self.realms.decide(&credential(name, token), CLIENT, LookupMode::Cached).await
    }

    /// With a token for this user.
    async fn decide(&self, name: &str, upn: &str) -> (Option<Refusal>, DecidedBy) {
        let decision = self.decision(name, &SIGNER.token(&claims(upn))).await;
        (decision.result.err(), decision.by)
    }
}

#[tokio::test(start_paused = true)]
async fn token_leads_to_the_entry_of_its_claim() {
    let setup = setup();
    let token = SIGNER.token(&claims("alice@example.com"));
    let decision = setup.decision("", &token).await;
    let proven = decision.result.unwrap();
    assert_eq!((&*proven.identity.entry().dn, decision.by), (DN, DecidedBy::Directory));
    assert_eq!(proven.name(&Login::absent()).as_str(), "alice@example.com");
    assert!(setup.realms.is_current(&proven));
    // Another token of the same user asks the directory no more.
    assert_eq!(setup.decide("", "alice@example.com").await, (None, DecidedBy::Cache));
    assert_eq!(setup.decide("alice", "alice@example.com").await, (None, DecidedBy::Directory), "another name");
    assert_eq!(setup.directory.binds(), 0);
}

#[tokio::test(start_paused = true)]
async fn name_beside_a_token_is_the_same_entry_or_refused() {
    let setup = setup();
    setup.directory.add("bob", "sesame", Entry::for_tests("uid=bob,ou=people", &["server3"]));
    for same in ["", "alice@example.com", "alice"] {
        assert_eq!(setup.decide(same, "alice@example.com").await.0, None, "{same}");
    }
    // The same for a user that exists and for one that does not.
    for other in ["bob", "carol", "bob@example.com"] {
        for _ in 0..2 {
            let refused = Some(Refusal::AuthzidNotAllowed);
            assert_eq!(setup.decide(other, "alice@example.com").await, (refused, DecidedBy::Directory), "{other}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bad_token_asks_no_directory_and_is_no_password() {
    let setup = setup();
    setup.directory.set_outage(true);
    let expired = SIGNER.token(&{
        let mut claims = claims("alice@example.com");
        claims["exp"] = json!(unix_now() - 300);
        claims
    });
    for (token, error) in
        [(expired.as_str(), TokenError::Expired), ("garbage", TokenError::UnknownIssuer), ("", TokenError::Malformed)]
    {
        let decision = setup.decision("alice", token).await;
        assert_eq!((decision.result.err(), decision.by), (Some(Refusal::Token(error)), DecidedBy::Usher));
    }
    setup.directory.set_outage(false);
    // A password that was proven opens nothing as a token, nor a token as a password.
    assert!(
        setup.realms.decide(&Credential::for_tests("alice", "sesame"), CLIENT, LookupMode::Cached).await.result.is_ok()
    );
    assert!(setup.decision("alice", "sesame").await.result.is_err());
    let token = SIGNER.token(&claims("alice@example.com"));
    assert!(setup.decision("alice", &token).await.result.is_ok());
    let as_password = setup.realms.decide(&Credential::for_tests("alice", token), CLIENT, LookupMode::Cached).await;
    assert_eq!(as_password.result.err(), Some(Refusal::WrongPassword));
}

#[tokio::test(start_paused = true)]
async fn state_of_the_entry_counts_and_a_change_is_seen_at_once() {
    let setup = setup();
    assert_eq!(setup.decide("", "alice@example.com").await.1, DecidedBy::Directory);
    setup.directory.set_version("alice", EntryVersion { disabled: true, ..EntryVersion::default() });
    setup.authn().cache().forget(&Entry::for_tests(DN, &[]));
    let disabled = Some(Refusal::Account { state: AccountState::Disabled, proven: true });
    assert_eq!(setup.decide("", "alice@example.com").await, (disabled, DecidedBy::Directory));
    setup.directory.set_version("alice", EntryVersion { expires: Some(1), ..EntryVersion::default() });
    tokio::time::advance(MOMENT).await;
    let expired = Some(Refusal::Account { state: AccountState::AccountExpired, proven: true });
    assert_eq!(setup.decide("", "alice@example.com").await, (expired, DecidedBy::Directory));
    setup.directory.remove("alice");
    tokio::time::advance(MOMENT).await;
    assert_eq!(setup.decide("", "alice@example.com").await, (Some(Refusal::UnknownUser), DecidedBy::Directory));
}

#[tokio::test(start_paused = true)]
async fn account_that_expires_while_cached_is_looked_up_again() {
    let setup = setup();
    let soon = i64::try_from(unix_now()).unwrap() + 1_000;
    setup.directory.set_version("alice", EntryVersion { expires: Some(soon), ..EntryVersion::default() });
    assert_eq!(setup.decide("", "alice@example.com").await.0, None);
    assert_eq!(setup.decide("", "alice@example.com").await.1, DecidedBy::Cache);
    tokio::time::advance(Duration::from_secs(301)).await;
    assert_eq!(setup.decide("", "alice@example.com").await.1, DecidedBy::Directory, "past cache.ttl");
    setup.authn().cache().drop_all();
    assert_eq!(setup.decide("", "alice@example.com").await.1, DecidedBy::Directory, "after `usher cache clear`");
}

#[tokio::test(start_paused = true)]
async fn claim_that_matches_several_entries_or_none_is_refused() {
    let setup = setup();
    setup.directory.add("bob", "sesame", Entry::for_tests("uid=bob,ou=people", &["server3"]));
    setup.directory.set_mail("bob", "alice@example.com");
    let decision = setup.decision("", &SIGNER.token(&claims("alice@example.com"))).await;
    assert!(matches!(decision.result, Err(Refusal::SeveralEntries(_))) && decision.other_dn.is_some());
    assert_eq!(setup.decide("", "carol@example.com").await.0, Some(Refusal::UnknownUser));
}

#[tokio::test(start_paused = true)]
async fn outage_of_the_directory_is_no_bad_token_and_remembered_users_get_in() {
    let setup = setup();
    setup.directory.set_outage(true);
    setup.directory.set_availability(Availability::Unreachable);
    assert_eq!(setup.decide("", "alice@example.com").await.0, Some(Refusal::DirectoryUnavailable));
    setup.directory.set_outage(false);
    assert_eq!(setup.decide("", "alice@example.com").await, (None, DecidedBy::Directory));
    tokio::time::advance(Duration::from_secs(301)).await;
    setup.directory.set_outage(true);
    assert_eq!(setup.decide("", "alice@example.com").await, (None, DecidedBy::Stale));
    setup.directory.set_availability(Availability::Recovering);
    assert_eq!(setup.decide("", "alice@example.com").await, (None, DecidedBy::Stale), "after the lookup failed");
    let credential = credential("", &SIGNER.token(&claims("alice@example.com")));
    let again = setup.realms.decide(&credential, CLIENT, LookupMode::Directory).await;
    assert_eq!(again.result.err(), Some(Refusal::DirectoryUnavailable));
}

#[tokio::test(start_paused = true)]
async fn held_user_is_found_held_by_the_claim() {
    let setup = setup();
    setup.directory.set_version("alice", EntryVersion { held: true, ..EntryVersion::default() });
    let token = SIGNER.token(&claims("alice@example.com"));
    let proven = setup.decision("", &token).await.result.unwrap();
    assert_eq!(setup.authn().is_held(&Login::absent(), &proven, None).await, Some(true));
    assert_eq!(setup.decide("", "alice@example.com").await.1, DecidedBy::Directory, "not cached");
    setup.directory.set_version("alice", EntryVersion::default());
    assert_eq!(setup.authn().is_held(&Login::absent(), &proven, None).await, Some(false));
}

#[tokio::test(start_paused = true)]
async fn networks_of_the_entry_count_for_tokens_cached_or_not() {
    let setup = setup();
    assert_eq!(setup.decide("", "alice@example.com").await.0, None);
    setup.directory.modify("alice", |entry| *entry = entry.clone().permitting(&["198.51.100.0/24"]));
    setup.authn().cache().forget(&Entry::for_tests(DN, &[]));
    let refused = |by| (Some(Refusal::NetworkNotAllowed), by);
    for by in [DecidedBy::Directory, DecidedBy::Negative] {
        assert_eq!(setup.decide("", "alice@example.com").await, refused(by));
    }
    tokio::time::advance(MOMENT).await;
    assert_eq!(setup.decide("", "alice@example.com").await, refused(DecidedBy::Directory), "asked again");
    let token = SIGNER.token(&claims("alice@example.com"));
    let there = "198.51.100.7".parse().unwrap();
    for by in [DecidedBy::Directory, DecidedBy::Cache] {
        let decision = setup.realms.decide(&credential("", &token), there, LookupMode::Cached).await;
        assert!(decision.result.is_ok());
        assert!(decision.by == by || decision.by == DecidedBy::Cache);
    }
    assert_eq!(setup.decide("", "alice@example.com").await.0, Some(Refusal::NetworkNotAllowed), "cached for others");
}

#[tokio::test(start_paused = true)]
async fn name_beside_a_token_is_compared_for_a_client_elsewhere_too() {
    let setup = setup();
    setup.directory.add("bob", "sesame", Entry::for_tests("uid=bob,ou=people", &["server3"]));
    setup.directory.modify("alice", |entry| *entry = entry.clone().permitting(&["198.51.100.0/24"]));
    let token = SIGNER.token(&claims("alice@example.com"));
    for _ in 0..2 {
        let elsewhere = setup.decide("bob", "alice@example.com").await;
        assert_eq!(elsewhere, (Some(Refusal::NetworkNotAllowed), DecidedBy::Directory));
        // What the first one has found is not remembered under bob's name.
        let there = "198.51.100.7".parse().unwrap();
        let decision = setup.realms.decide(&credential("bob", &token), there, LookupMode::Cached).await;
        assert_eq!(decision.result.err(), Some(Refusal::AuthzidNotAllowed));
    }
}

#[tokio::test(start_paused = true)]
async fn networks_or_mail_host_that_vanish_without_an_edit_open_nothing_to_tokens() {
    let with = |edit: u8, change: fn(&mut Entry)| {
        let revision = Some(format!("2026112614000{edit}.000001Z#000000#001#000000").into());
        let mut entry = Entry::for_tests(DN, &["server3"]).permitting(&["192.0.2.0/24"]);
        entry.version = EntryVersion { revision, ..EntryVersion::default() };
        change(&mut entry);
        entry
    };
    for hide in [|entry: &mut Entry| entry.networks = None, |entry: &mut Entry| entry.mail_hosts.clear()] {
        let setup = setup();
        setup.directory.modify("alice", |entry| *entry = with(1, |_| ()));
        assert_eq!(setup.decide("", "alice@example.com").await.0, None);
        setup.directory.modify("alice", |entry| *entry = with(1, hide));
        setup.authn().cache().forget(&Entry::for_tests(DN, &[]));
        assert_eq!(setup.decide("", "alice@example.com").await.0, Some(Refusal::DirectoryUnavailable));
        // An edit has taken it away.
        setup.directory.modify("alice", |entry| *entry = with(2, hide));
        assert_eq!(setup.decide("", "alice@example.com").await.0, None);
    }
}

#[tokio::test(start_paused = true)]
async fn token_of_a_user_without_an_entry_costs_one_search_in_five_seconds() {
    let setup = setup();
    let unknown = |by| (Some(Refusal::UnknownUser), by);
    assert_eq!(setup.decide("", "carol@example.com").await, unknown(DecidedBy::Directory));
    // Another token of the same user, and whatever name is beside it.
    for name in ["", "alice", "carol", "carol@example.com"] {
        assert_eq!(setup.decide(name, "carol@example.com").await, unknown(DecidedBy::Negative), "{name}");
    }
    assert_eq!(setup.directory.searches(), 1);
    assert_eq!(setup.decide("", "dave@example.com").await, unknown(DecidedBy::Directory), "another user");
    // A decision that must not rest on what is remembered.
    setup.directory.add("carol", "x", Entry::for_tests("uid=carol,ou=people", &["server3"]));
    setup.directory.set_mail("carol", "carol@example.com");
    assert_eq!(setup.decide("", "carol@example.com").await, unknown(DecidedBy::Negative));
    let credential = credential("", &SIGNER.token(&claims("carol@example.com")));
    assert!(setup.realms.decide(&credential, CLIENT, LookupMode::Directory).await.result.is_ok());
    setup.authn().cache().drop_all();
    assert_eq!(setup.decide("", "carol@example.com").await, (None, DecidedBy::Directory), "found: no refusal is left");
    // The new mailbox of the other is found soon, or at once after `usher cache clear`.
    setup.directory.add("dave", "x", Entry::for_tests("uid=dave,ou=people", &["server3"]));
    setup.directory.set_mail("dave", "dave@example.com");
    tokio::time::advance(MOMENT).await;
    assert_eq!(setup.decide("", "dave@example.com").await, (None, DecidedBy::Directory));
    assert_eq!(setup.decide("", "erin@example.com").await.1, DecidedBy::Directory);
    setup.authn().cache().drop_all();
    assert_eq!(setup.decide("", "erin@example.com").await.1, DecidedBy::Directory);
}

#[tokio::test(start_paused = true)]
async fn outage_is_not_remembered_as_a_refusal_nor_a_refusal_as_an_outage() {
    let setup = setup();
    setup.directory.set_outage(true);
    assert_eq!(setup.decide("", "alice@example.com").await.0, Some(Refusal::DirectoryUnavailable));
    setup.directory.set_outage(false);
    assert_eq!(setup.decide("", "alice@example.com").await, (None, DecidedBy::Directory));
    assert_eq!(setup.decide("", "carol@example.com").await.0, Some(Refusal::UnknownUser));
    setup.directory.set_outage(true);
    tokio::time::advance(MOMENT).await;
    assert_eq!(setup.decide("", "carol@example.com").await.0, Some(Refusal::DirectoryUnavailable));
}

#[tokio::test(start_paused = true)]
async fn fifty_connections_with_the_same_token_cost_one_search() {
    let setup = setup();
    setup.directory.add("bob", "sesame", Entry::for_tests("uid=bob,ou=people", &["server3"]));
    // The second one also for the name beside the token; the third one leads to no user.
    for (name, upn, searches) in [("", "alice@example.com", 1), ("bob", "bob@example.com", 2), ("", "carol", 1)] {
        setup.directory.set_mail("bob", "bob@example.com");
        let before = setup.directory.searches();
        let token = SIGNER.token(&claims(upn));
        let decisions = futures_util::future::join_all((0..50).map(|_| setup.decision(name, &token))).await;
        assert!(decisions.iter().all(|decision| decision.result.is_ok() == (upn != "carol")), "{upn}");
        assert_eq!(setup.directory.searches() - before, searches, "{upn}");
    }
    // Users of different tokens share no answer.
    setup.authn().cache().drop_all();
    let tokens = ["alice@example.com", "bob@example.com"].map(|upn| SIGNER.token(&claims(upn)));
    let decisions = futures_util::future::join_all(tokens.iter().map(|token| setup.decision("", token))).await;
    let dns: Vec<_> = decisions.iter().map(|decision| decision.dn.as_deref()).collect();
    assert_eq!(dns, [Some(DN), Some("uid=bob,ou=people")]);
}

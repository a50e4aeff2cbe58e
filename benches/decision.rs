//! The cost of a decision: cached or not, with few and with many users in the cache.
//!
//! The directory is an LDAP server in this process that accepts everything at once, over
//! loopback: a lookup costs the time of usher, the kernel and this server, without a password hash.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a program for developers, and criterion's macros"
)]

#[path = "../tests/it/kit/signer.rs"]
#[allow(dead_code, clippy::indexing_slicing, reason = "tests use the rest")]
mod signer;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use signer::Signer;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use futures_util::{SinkExt as _, StreamExt as _};
use ldap3_proto::proto::{LdapBindResponse, LdapOp, LdapResult};
use ldap3_proto::{LdapCodec, LdapFilter, LdapMsg, LdapPartialAttribute, LdapResultCode, LdapSearchResultEntry};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::Framed;
use usher::internals::Cache;
use usher::internals::Metrics;
use usher::internals::Secret;
use usher::internals::TokenVerifier;
use usher::internals::TrackedEntries;
use usher::internals::{Authenticator, DecidedBy, LookupMode};
use usher::internals::{Credential, CredentialSecret, Login};
use usher::internals::{DirectoryTls, open_directory};

/// Where every client is.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Number of concurrent lookups while the cache is filled.
const FILLING: usize = 16;

/// Replies to every request with success.
async fn serve(tcp: TcpStream) {
    tcp.set_nodelay(true).unwrap();
    let mut framed = Framed::new(tcp, LdapCodec::default());
    let done = || LdapResult {
        code: LdapResultCode::Success,
        matcheddn: String::new(),
        message: String::new(),
        referral: Vec::new(),
    };
    while let Some(Ok(message)) = framed.next().await {
        let answers = match message.op {
            LdapOp::BindRequest(_) => vec![LdapOp::BindResponse(LdapBindResponse { res: done(), saslcreds: None })],
            LdapOp::SearchRequest(search) => {
                let found = match search.filter {
                    LdapFilter::Equality(_, uid) => Some(LdapOp::SearchResultEntry(LdapSearchResultEntry {
                        dn: format!("uid={uid},dc=example"),
                        attributes: vec![LdapPartialAttribute {
                            atype: "mailHost".into(),
                            vals: vec![b"server3".into()],
                        }],
                    })),
                    _ => None,
                };
                found.into_iter().chain([LdapOp::SearchResultDone(done())]).collect()
            }
            _ => Vec::new(),
        };
        for op in answers {
            framed.send(LdapMsg { msgid: message.msgid, op, ctrl: Vec::new() }).await.unwrap();
        }
    }
}

async fn directory() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp));
        }
    });
    address
}

fn authenticator(directory: SocketAddr) -> Authenticator {
    let text = format!(
        "listeners: [{{protocol: imap, address: '127.0.0.1:0', tls: implicit}}]
tls: {{certificates: [{{chain: chain.pem, key: key.pem}}]}}
directory: {{servers: ['ldap://{directory}'], base: dc=example, filter: '(uid={{login}})', watch: off}}
routing: {{backends: [{{name: server3, imap: {{address: '127.0.0.1:9', tls: implicit}}}}]}}
cache: {{ttl: 1d, capacity: 1000000}}
"
    );
    let config = usher::internals::config::parse(Path::new("bench.yaml"), &text).unwrap();
    let directory =
        open_directory(config.directories.first().unwrap(), DirectoryTls::default(), Arc::new(Metrics::new()));
    let known = Arc::new(TrackedEntries::new(1_000_000, Duration::from_secs(600)));
    Authenticator::new(directory, Arc::new(Cache::new(&config.cache)), known, 1_000)
}

/// An attempt of this user, as a frontend makes it.
fn user(number: usize, password: &Secret) -> Credential {
    let login = Login::parse(format!("user{number}").as_bytes()).unwrap();
    Credential::new(login, CredentialSecret::Password(password.clone()))
}

async fn fill(authn: &Authenticator, password: &Secret, users: usize) {
    let decided = futures_util::stream::iter(0..users)
        .map(|n| async move { authn.decide(&user(n, password), CLIENT, LookupMode::Cached).await.result.is_ok() })
        .buffer_unordered(FILLING);
    assert!(decided.all(std::future::ready).await, "the directory accepts");
}

/// A token is verified at each login: nothing of it is cached.
fn tokens(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut group = criterion.benchmark_group("token");
    for algorithm in ["ES256", "RS256", "EdDSA"] {
        let signer = Signer::new(algorithm, "one");
        let keys = serde_json::json!({"keys": [signer.jwk()]});
        let verifier = TokenVerifier::new(keys.to_string().as_bytes()).unwrap();
        let claims = serde_json::json!({
            "iss": "https://idp.example.com",
            "aud": ["mail", "account"],
            "sub": "5b1c9c2e-3f0a-4f57-9a5e-0f0e2c1d7a11",
            "azp": "thunderbird",
            "scope": "openid email offline_access",
            "email": "user1@example.com",
            "email_verified": true,
            "iat": 1_700_000_000_u64,
            "exp": 4_000_000_000_u64,
        });
        let token = Secret::copy_of(signer.token(&claims).as_bytes());
        group.bench_function(BenchmarkId::new("verified", algorithm), |bencher| {
            bencher.iter(|| assert!(runtime.block_on(verifier.verify(black_box(&token)))));
        });
    }
}

fn decision(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let address = runtime.block_on(directory());
    let password = Secret::copy_of(b"secret word");
    let mut group = criterion.benchmark_group("decision");
    for users in [10, 10_000, 100_000] {
        let authn = authenticator(address);
        runtime.block_on(fill(&authn, &password, users));
        let mut next = 0;
        group.bench_function(BenchmarkId::new("cached", users), |bencher| {
            bencher.iter(|| {
                // An order that defeats the CPU caches.
                next = (next + 7_919) % users;
                let decision = authn.recall(&user(next, &password), CLIENT).unwrap();
                assert_eq!(decision.by, DecidedBy::Cache);
                black_box(decision)
            });
        });
        let mut fresh = users;
        group.bench_function(BenchmarkId::new("not cached: search and bind", users), |bencher| {
            bencher.iter(|| {
                fresh += 1;
                let decision = runtime.block_on(authn.decide(&user(fresh, &password), CLIENT, LookupMode::Cached));
                assert_eq!(decision.by, DecidedBy::Directory);
                decision
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decision, tokens);
criterion_main!(benches);

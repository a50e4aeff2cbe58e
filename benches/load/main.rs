//! Load on any IMAP login proxy: the cost of a login, an idle session and a gibibyte.
//!
//! It connects to a server's implicit-TLS port like a client and reads the server's CPU and memory from
//! `/proc`; it does not depend on usher. `load stub` is a mail server for use behind the proxy, and
//! `load certificates` creates the certificates of both.
//!
//! ```sh
//! cargo bench --bench load -- logins --address 127.0.0.1:993 --pid 1234 --user 'user{}' --password word
//! ```
//!
//! `benches/peers/run` sets up several proxies and measures them side by side; `docs/developer/benchmarks.md`
//! has results.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a program for developers"
)]

#[path = "../../tests/it/kit/signer.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod signer;

mod client;
mod measure;
mod proc;
mod report;
mod stub;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde_json::json;

use client::{Endpoint, Group};
use measure::{Bench, Users};
use proc::Tree;
use report::Figures;
use signer::Signer;

/// Number of clients, each with its own tickets.
const CLIENTS: usize = 256;

#[derive(Parser)]
#[command(name = "load", about = "Load on an IMAP login proxy")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Logins: CPU time and duration of each. Each ends with a LOGOUT.
    Logins {
        #[command(flatten)]
        target: Target,
        /// Number of logins.
        #[arg(long, default_value_t = 2_000)]
        number: usize,
        /// Number of concurrent clients; each starts its next login when the last one has ended.
        #[arg(long, default_value_t = 32)]
        at_a_time: usize,
        /// Logins per second instead, independent of their duration.
        #[arg(long)]
        rate: Option<f64>,
        /// Number of logins before the measurement.
        #[arg(long, default_value_t = 100)]
        warm_up: usize,
    },
    /// Idle sessions: memory while they are open and after they have ended, and the cost of a
    /// login while they are open.
    Idle {
        #[command(flatten)]
        target: Target,
        /// Number of sessions.
        #[arg(long, default_value_t = 9_000)]
        sessions: usize,
        /// Number of timed logins while they are open; 0 for none.
        #[arg(long, default_value_t = 1_000)]
        logins: usize,
        /// Seconds for which memory is observed after all sessions have ended.
        #[arg(long, default_value_t = 30)]
        watch: u64,
    },
    /// Bulk transfers through concurrent sessions.
    Bulk {
        #[command(flatten)]
        target: Target,
        #[arg(long, default_value_t = 8)]
        sessions: usize,
        /// MiB for each session.
        #[arg(long, default_value_t = 512)]
        mib: u64,
        /// From the client to the server (APPEND).
        #[arg(long)]
        up: bool,
    },
    /// Logins one at a time, alone and during downloads.
    Mixed {
        #[command(flatten)]
        target: Target,
        #[arg(long, default_value_t = 8)]
        sessions: usize,
        /// Number of timed logins in each of the two phases.
        #[arg(long, default_value_t = 500)]
        logins: usize,
    },
    /// A mail server that accepts every login: prints its address and serves until terminated.
    Stub {
        #[arg(long, default_value = "127.0.0.1:0")]
        address: SocketAddr,
        #[arg(long)]
        chain: PathBuf,
        #[arg(long)]
        key: PathBuf,
    },
    /// Creates a CA (ca.pem) and a certificate with its key for each name (NAME.pem, NAME.key), P-256.
    Certificates { folder: PathBuf, names: Vec<String> },
    /// Creates an issuer's key set (jwks.json) and a token for each number of a user (tokens), ES256.
    Tokens {
        folder: PathBuf,
        #[arg(long)]
        issuer: String,
        #[arg(long, default_value_t = 1_000)]
        users: usize,
    },
    /// Prints a Markdown table of a file of `--json` lines.
    Table {
        file: PathBuf,
        /// The proxies, one column each; ratios are to the first.
        #[arg(long, value_delimiter = ',')]
        fronts: Vec<String>,
        /// The figures, by name; default: all.
        #[arg(long, value_delimiter = ';')]
        only: Vec<String>,
    },
}

#[derive(Args)]
struct Target {
    /// The server's implicit-TLS port.
    #[arg(long)]
    address: SocketAddr,
    /// The server name that clients send (SNI).
    #[arg(long, default_value = "usher.example.com")]
    name: String,
    /// The server's processes; their descendants are included.
    #[arg(long = "pid", required = true)]
    pids: Vec<u32>,
    /// The user name; `{}` is replaced by a number.
    #[arg(long, default_value = "user{}")]
    user: String,
    #[arg(long, default_value = "password")]
    password: String,
    /// A file of tokens, one a line, for login by OAUTHBEARER in place of a password.
    #[arg(long)]
    tokens: Option<PathBuf>,
    /// Number of users, used in turn.
    #[arg(long, default_value_t = 1_000)]
    users: usize,
    /// The number of the first user.
    #[arg(long, default_value_t = 0)]
    first_user: usize,
    /// Resume TLS sessions, like a mail program that has connected before.
    #[arg(long)]
    resume: bool,
    /// The group for the key exchange.
    #[arg(long, value_enum, default_value_t = Group::X25519)]
    group: Group,
    /// The stub behind the server, which reports how many of its handshakes were resumed.
    #[arg(long)]
    stub: Option<SocketAddr>,
    /// One line of JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Name of the server in the results.
    #[arg(long, default_value = "")]
    front: String,
    /// Name of the measurement in the results.
    #[arg(long, default_value = "")]
    row: String,
    /// Number of the repetition.
    #[arg(long, default_value_t = 0)]
    round: u32,
}

impl Target {
    fn bench(&self) -> io::Result<Bench> {
        let endpoint = || Endpoint::new(self.address, &self.name, self.group, self.resume);
        let stub = self.stub.map(|stub| Endpoint::new(stub, "localhost", Group::X25519, false)).transpose()?;
        let tokens = self.tokens.as_ref().map(std::fs::read_to_string).transpose()?.unwrap_or_default();
        Ok(Bench {
            endpoints: (0..CLIENTS).map(|_| endpoint()).collect::<io::Result<_>>()?,
            users: Users {
                name: self.user.clone(),
                password: self.password.clone(),
                first: self.first_user,
                number: self.users.max(1),
                tokens: Arc::new(tokens.lines().map(str::to_owned).collect()),
            },
            tree: Tree::new(&self.pids)?,
            stub,
        })
    }

    fn figures(&self, row: &str) -> Figures {
        Figures::new(&self.front, if self.row.is_empty() { row } else { &self.row }, self.round)
    }
}

fn main() -> ExitCode {
    // cargo bench adds an argument; `cargo test --benches` passes none, and nothing is measured.
    let arguments: Vec<String> = std::env::args().filter(|word| word != "--bench").collect();
    if arguments.len() == 1 && std::env::args().len() == 1 {
        return ExitCode::SUCCESS;
    }
    match run(Arguments::parse_from(arguments).command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> io::Result<()> {
    let files = proc::raise_open_files();
    let (target, mut figures) = match &command {
        Command::Stub { address, chain, key } => return stub::serve(*address, chain, key),
        Command::Certificates { folder, names } => return certificates(folder, names),
        Command::Tokens { folder, issuer, users } => return tokens(folder, issuer, *users),
        Command::Table { file, fronts, only } => return report::table(file, fronts, only),
        Command::Logins { target, .. } => (target, target.figures("logins")),
        Command::Idle { target, sessions, .. } => {
            if files < *sessions as u64 + 600 {
                return Err(io::Error::other(format!(
                    "{sessions} sessions need more than {files} open files (ulimit -n)"
                )));
            }
            (target, target.figures("idle"))
        }
        Command::Bulk { target, .. } => (target, target.figures("bulk")),
        Command::Mixed { target, .. } => (target, target.figures("mixed")),
    };
    let bench = target.bench()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match &command {
            Command::Logins { number, at_a_time, rate, warm_up, .. } => {
                bench.logins(*number, *at_a_time, *rate, *warm_up, &mut figures).await
            }
            Command::Idle { sessions, logins, watch, .. } => {
                bench.idle(*sessions, *logins, Duration::from_secs(*watch), &mut figures).await
            }
            Command::Bulk { sessions, mib, up, .. } => bench.bulk(*sessions, *mib, *up, &mut figures).await,
            Command::Mixed { sessions, logins, .. } => bench.mixed(*sessions, *logins, &mut figures).await,
            Command::Stub { .. } | Command::Certificates { .. } | Command::Tokens { .. } | Command::Table { .. } => {
                Ok(())
            }
        }
    })?;
    figures.print(target.json)
}

/// Access tokens with the claims that providers write; `sub` is `user` and a number.
fn tokens(folder: &std::path::Path, issuer: &str, users: usize) -> io::Result<()> {
    let signer = Signer::new("ES256", "benchmark");
    let tokens = (0..users).map(|number| {
        signer.token(&json!({
            "iss": issuer,
            "aud": ["mail", "account"],
            "sub": format!("user{number}"),
            "azp": "thunderbird",
            "sid": "b0b8f4a2-6a52-4d0b-9c66-0f2b8b6f2a40",
            "scope": "openid profile email offline_access",
            "name": "User of a Benchmark",
            "preferred_username": format!("user{number}"),
            "email": format!("user{number}@example.com"),
            "email_verified": true,
            "realm_access": {"roles": ["offline_access", "default-roles-corp"]},
            "iat": 1_700_000_000_u64,
            "exp": 4_000_000_000_u64,
        }))
    });
    let lines: String = tokens.map(|token| token + "\n").collect();
    std::fs::write(folder.join("jwks.json"), json!({"keys": [signer.jwk()]}).to_string())?;
    std::fs::write(folder.join("tokens"), lines)
}

/// ECDSA P-256, the common type of issued certificates.
fn certificates(folder: &std::path::Path, names: &[String]) -> io::Result<()> {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
    std::fs::create_dir_all(folder)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "CA of a benchmark");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let new_key = || KeyPair::generate().map_err(io::Error::other);
    let ca = CertifiedIssuer::self_signed(params, new_key()?).map_err(io::Error::other)?;
    std::fs::write(folder.join("ca.pem"), ca.pem())?;
    for name in names {
        let mut params = CertificateParams::new(vec![name.clone()]).map_err(io::Error::other)?;
        params.distinguished_name.push(DnType::CommonName, name);
        let key = new_key()?;
        let certificate = params.signed_by(&key, &ca).map_err(io::Error::other)?;
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem())?;
        let file = folder.join(format!("{name}.key"));
        std::fs::write(&file, key.serialize_pem())?;
        std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    }
    Ok(())
}

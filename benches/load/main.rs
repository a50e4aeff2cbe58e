//! Load on an IMAP login proxy, whichever it is: what a login, an idle session and a gibibyte cost it.
//!
//! It speaks to a server's implicit-TLS port as clients do and reads the server's CPU and memory from
//! `/proc`; it knows nothing about usher. `load stub` is a mail server to put behind the proxy, and
//! `load certificates` makes what both need.
//!
//! ```sh
//! cargo bench --bench load -- logins --address 127.0.0.1:993 --pid 1234 --user 'user{}' --password word
//! ```
//!
//! `benches/peers/run` sets up several proxies and measures them side by side; `docs/benchmarks.md`
//! has results.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a program for developers"
)]

mod client;
mod measure;
mod proc;
mod report;
mod stub;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use client::{Door, Group};
use measure::{Bench, Users};
use proc::Tree;
use report::Figures;

/// Clients with tickets of their own.
const DOORS: usize = 256;

#[derive(Parser)]
#[command(name = "load", about = "Load on an IMAP login proxy")]
struct Words {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Logins: CPU for each, and how long they take. Each ends with a LOGOUT.
    Logins {
        #[command(flatten)]
        target: Target,
        /// How many logins.
        #[arg(long, default_value_t = 2_000)]
        number: usize,
        /// How many at a time, each client beginning its next login when the last has ended.
        #[arg(long, default_value_t = 32)]
        at_a_time: usize,
        /// So many per second instead, however long they take.
        #[arg(long)]
        rate: Option<f64>,
        /// Logins beforehand that are not counted.
        #[arg(long, default_value_t = 100)]
        warm_up: usize,
    },
    /// Sessions that do nothing: memory while they are there and when they have left, and what a
    /// login costs among them.
    Idle {
        #[command(flatten)]
        target: Target,
        /// How many sessions.
        #[arg(long, default_value_t = 9_000)]
        sessions: usize,
        /// How many logins are timed among them; 0 for none.
        #[arg(long, default_value_t = 1_000)]
        logins: usize,
        /// How many seconds its memory is watched when all have left.
        #[arg(long, default_value_t = 30)]
        watch: u64,
    },
    /// Bytes through sessions at the same time.
    Bulk {
        #[command(flatten)]
        target: Target,
        #[arg(long, default_value_t = 8)]
        sessions: usize,
        /// MiB for each session.
        #[arg(long, default_value_t = 512)]
        mib: u64,
        /// From the client to the server, as an APPEND does.
        #[arg(long)]
        up: bool,
    },
    /// Logins one at a time, alone and beside downloads.
    Mixed {
        #[command(flatten)]
        target: Target,
        #[arg(long, default_value_t = 8)]
        sessions: usize,
        /// How many logins are timed, twice.
        #[arg(long, default_value_t = 500)]
        logins: usize,
    },
    /// A mail server that lets everybody in: prints its address, and serves until it is ended.
    Stub {
        #[arg(long, default_value = "127.0.0.1:0")]
        address: SocketAddr,
        #[arg(long)]
        chain: PathBuf,
        #[arg(long)]
        key: PathBuf,
    },
    /// A CA (ca.pem) and a certificate with its key for each name (NAME.pem, NAME.key), P-256.
    Certificates { folder: PathBuf, names: Vec<String> },
    /// A Markdown table of a file of `--json` lines.
    Table {
        file: PathBuf,
        /// The columns; ratios are to the first.
        #[arg(long, value_delimiter = ',')]
        fronts: Vec<String>,
        /// The figures, by name; all if none is named.
        #[arg(long, value_delimiter = ';')]
        only: Vec<String>,
    },
}

#[derive(Args)]
struct Target {
    /// The server's implicit-TLS port.
    #[arg(long)]
    address: SocketAddr,
    /// The name that clients ask for (SNI).
    #[arg(long, default_value = "usher.example.com")]
    name: String,
    /// The server's processes: these and all that descend from them.
    #[arg(long = "pid", required = true)]
    pids: Vec<u32>,
    /// A user; `{}` becomes a number.
    #[arg(long, default_value = "user{}")]
    user: String,
    #[arg(long, default_value = "password")]
    password: String,
    /// How many users take turns.
    #[arg(long, default_value_t = 1_000)]
    users: usize,
    /// The number of the first of them.
    #[arg(long, default_value_t = 0)]
    first_user: usize,
    /// Resume TLS sessions, as a mail program does that has connected before.
    #[arg(long)]
    resume: bool,
    /// The group for the key exchange.
    #[arg(long, value_enum, default_value_t = Group::X25519)]
    group: Group,
    /// The stub behind the server: tells how many of its handshakes were resumed.
    #[arg(long)]
    stub: Option<SocketAddr>,
    /// One line of JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// What the server is called.
    #[arg(long, default_value = "")]
    front: String,
    /// What the measurement is called.
    #[arg(long, default_value = "")]
    row: String,
    /// Which repetition it is.
    #[arg(long, default_value_t = 0)]
    round: u32,
}

impl Target {
    fn bench(&self) -> io::Result<Bench> {
        let door = || Door::new(self.address, &self.name, self.group, self.resume);
        let stub = self.stub.map(|stub| Door::new(stub, "localhost", Group::X25519, false)).transpose()?;
        Ok(Bench {
            doors: (0..DOORS).map(|_| door()).collect::<io::Result<_>>()?,
            users: Users {
                name: self.user.clone(),
                password: self.password.clone(),
                first: self.first_user,
                number: self.users.max(1),
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
    // cargo adds a word of its own; without any there is nothing to do (`cargo test --benches`).
    let words: Vec<String> = std::env::args().filter(|word| word != "--bench").collect();
    if words.len() == 1 && std::env::args().len() == 1 {
        return ExitCode::SUCCESS;
    }
    match run(Words::parse_from(words).command) {
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
            Command::Stub { .. } | Command::Certificates { .. } | Command::Table { .. } => Ok(()),
        }
    })?;
    figures.print(target.json)
}

/// ECDSA P-256 throughout, as issuers give it today.
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

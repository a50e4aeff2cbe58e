//! The time of a login during a flood from one network: usher, nginx mail and Dovecot side by side.
//!
//! Each proxy runs alone in front of the same Dovecot on loopback. A client at 127.0.0.2 logs in
//! repeatedly; then 127.0.0.9 opens silent connections, starts handshakes that never complete and
//! guesses passwords, and the client logs in as many times again. The result is the ratio.
//! `docs/developer/benchmarks.md` has results and lists what to install.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a program for developers"
)]

#[path = "../tests/it/kit/mod.rs"]
#[allow(dead_code, unused_imports, reason = "a part of the tests' kit")]
mod kit;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::sleep;

use kit::dovecot::Dovecot;
use kit::process::{Running, Server, folder, free_port, require, wait_for_port};
use kit::{Config, Usher, client, password_of, shared};

const CLIENT: [u8; 4] = [127, 0, 0, 2];
const FLOOD: [u8; 4] = [127, 0, 0, 9];
/// Silent connections.
const HALF_OPEN: usize = 600;
/// Handshakes of a byte a second.
const SLOW: usize = 300;
/// Connections that guess passwords.
const GUESSING: usize = 50;
/// How many logins are timed at a time.
const LOGINS: usize = 100;
/// A login that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Duration of the flood before the logins are timed.
const WARM_UP: Duration = Duration::from_secs(5);
/// Where Debian's nginx is unpacked: it is not installed, and no service is started.
const NGINX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/flood");

/// Counts of the flood.
#[derive(Debug, Default)]
struct Done {
    connections: AtomicU64,
    guesses: AtomicU64,
}

fn main() {
    // `cargo test --benches` runs this without the argument.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    println!("{HALF_OPEN} silent connections, {SLOW} slow handshakes, {GUESSING} guessers from one address;");
    println!("{LOGINS} logins of another address before and during it, milliseconds\n");
    println!(
        "| proxy | no flood: median | p95 | flood: median | p95 | failed | ratio of medians | connections/s | guesses/s |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let mail = kit::dovecot();
    let usher = Usher::start(config(mail));
    let port = usher.imaps_port();
    row("usher, as shipped", port);
    drop(usher);
    let config = ["connections_per_prefix", "handshakes_per_prefix"]
        .into_iter()
        .fold(config(mail), |config, rule| config.set(&format!("/throttle/{rule}"), json!({"mode": "enforce"})))
        .set("/throttle/failed_logins_per_prefix", json!({"mode": "enforce"}));
    let usher = Usher::start(config);
    let port = usher.imaps_port();
    row("usher, rules per network enforced", port);
    drop(usher);
    let (_nginx, port) = nginx(mail);
    row("nginx 1.22 mail", port);
    for (name, service) in [
        ("Dovecot 2.3 proxy, as shipped", ""),
        (
            "Dovecot 2.3 proxy, high-performance mode",
            "service_count = 0\n  process_min_avail = 2\n  client_limit = 2000",
        ),
    ] {
        let (_dovecot, port) = dovecot_proxy(mail, service);
        row(name, port);
    }
}

fn config(mail: &Dovecot) -> Config {
    Config::with_directory(kit::slapd())
        .backend("server3", mail.imaps, &["server3"])
        .set("/log", json!({"format": "json"}))
}

/// Times a proxy and prints its row, in a separate thread: the kit's deadline is that of a test.
fn row(name: &str, port: u16) {
    std::thread::scope(|scope| {
        let timed = scope.spawn(|| {
            // One-time initialization is not timed.
            logins(port, 5);
            let quiet = logins(port, LOGINS);
            let done = Arc::new(Done::default());
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            flood(&runtime, port, &done);
            std::thread::sleep(WARM_UP);
            let (began, before) =
                (Instant::now(), (done.connections.load(Ordering::Relaxed), done.guesses.load(Ordering::Relaxed)));
            let flooded = logins(port, LOGINS);
            let lasted = began.elapsed().as_secs_f64();
            let rate = |counter: &AtomicU64, before| (counter.load(Ordering::Relaxed) - before) as f64 / lasted;
            let rates = (rate(&done.connections, before.0), rate(&done.guesses, before.1));
            runtime.shutdown_background();
            (quiet, flooded, rates)
        });
        let (quiet, flooded, rates) = timed.join().unwrap();
        let ms = |share: f64, times: &[Duration]| {
            let at = ((times.len() - 1) as f64 * share).round() as usize;
            times[at].as_secs_f64() * 1_000.0
        };
        let failed = flooded.iter().filter(|time| **time >= TIMEOUT).count();
        let (before, during) = (ms(0.5, &quiet), ms(0.5, &flooded));
        println!(
            "| {name} | {before:.1} | {:.1} | {during:.1} | {:.1} | {failed} | {:.2} | {:.0} | {:.1} |",
            ms(0.95, &quiet),
            ms(0.95, &flooded),
            during / before,
            rates.0,
            rates.1
        );
    });
}

/// The times of `number` logins, sorted: from connecting to OK. A failed login counts as
/// [`TIMEOUT`]; after five failures in a row the remaining logins count as failed.
fn logins(port: u16, number: usize) -> Vec<Duration> {
    let tls = client::Tls::default().config();
    let (mut times, mut failures) = (Vec::new(), 0);
    for _ in 0..number {
        if failures == 5 {
            times.push(TIMEOUT);
            continue;
        }
        let began = Instant::now();
        let took = login(port, Arc::clone(&tls)).map(|()| began.elapsed()).filter(|took| *took < TIMEOUT);
        failures = if took.is_some() { 0 } else { failures + 1 };
        times.push(took.unwrap_or(TIMEOUT));
    }
    times.sort();
    times
}

/// A login with a full handshake, like that of a client that has just started.
fn login(port: u16, tls: Arc<rustls::ClientConfig>) -> Option<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).ok()?;
    socket.bind(&SocketAddr::from((CLIENT, 0)).into()).ok()?;
    socket.connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)).into(), TIMEOUT).ok()?;
    let mut stream = std::net::TcpStream::from(socket);
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    let mut tls = rustls::ClientConfig::clone(&tls);
    tls.resumption = rustls::client::Resumption::disabled();
    let name = ServerName::try_from("usher.example.com").unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(tls), name).unwrap();
    let mut stream = BufReader::new(rustls::Stream::new(&mut connection, &mut stream));
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let command = format!("a LOGIN alice {}\r\n", password_of("alice"));
    stream.get_mut().write_all(command.as_bytes()).ok()?;
    while !line.starts_with("a ") {
        line.clear();
        stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
    }
    line.starts_with("a OK").then_some(())
}

/// Starts the flood; it ends with its runtime.
fn flood(runtime: &tokio::runtime::Runtime, port: u16, done: &Arc<Done>) {
    let tls = tokio_rustls::TlsConnector::from(client::Tls::default().config());
    for n in 0..HALF_OPEN + SLOW + GUESSING {
        let (done, tls) = (Arc::clone(done), tls.clone());
        runtime.spawn(async move {
            for attempt in 0_u64.. {
                // A connection that was closed is reopened after a second.
                sleep(Duration::from_millis(if attempt == 0 { n as u64 } else { 1_000 })).await;
                let Ok(tcp) = connect(port).await else { continue };
                done.connections.fetch_add(1, Ordering::Relaxed);
                match n {
                    n if n < HALF_OPEN => wait(tcp).await,
                    n if n < HALF_OPEN + SLOW => drip(tcp).await,
                    _ => guess(tcp, &tls, &format!("{n}-{attempt}"), &done).await.unwrap_or_default(),
                }
            }
        });
    }
}

async fn connect(port: u16) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((FLOOD, 0)))?;
    socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await
}

async fn wait(mut tcp: TcpStream) {
    let _ = tcp.read(&mut [0; 64]).await;
}

/// The header of a record of 512 bytes, then one byte of it a second.
async fn drip(mut tcp: TcpStream) {
    let mut sent = tcp.write_all(&[22, 3, 1, 2, 0, 1]).await;
    while sent.is_ok() {
        sleep(Duration::from_secs(1)).await;
        sent = tcp.write_all(&[0]).await;
    }
}

/// Guesses passwords until the connection is closed: of the client's user and of others.
async fn guess(tcp: TcpStream, tls: &tokio_rustls::TlsConnector, word: &str, done: &Done) -> std::io::Result<()> {
    let name = ServerName::try_from("usher.example.com").unwrap();
    let stream = tls.connect(name, tcp).await?;
    let (reader, mut writer) = tokio::io::split(stream);
    let mut lines = tokio::io::BufReader::new(reader).lines();
    lines.next_line().await?;
    for n in 0.. {
        let login = if n % 2 == 0 { "alice".to_owned() } else { format!("user{word}") };
        writer.write_all(format!("a LOGIN {login} guess-{word}-{n}\r\n").as_bytes()).await?;
        writer.flush().await?;
        loop {
            match lines.next_line().await? {
                Some(line) if line.starts_with("a ") => break,
                Some(_) => {}
                None => return Ok(()),
            }
        }
        done.guesses.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Debian's nginx with its mail module, in front of the mail server's clear-text port: it has no TLS
/// to backends. A small HTTP server in this process checks passwords.
fn nginx(mail: &Dovecot) -> (Running, u16) {
    let unpack = "set -e; mkdir -p \"$1/packages\"; cd \"$1/packages\"; [ -e ../usr/sbin/nginx ] || {
        apt-get -qq download nginx libnginx-mod-mail; for package in *.deb; do dpkg -x \"$package\" ..; done; }";
    kit::process::run("sh", &["-c", unpack, "sh", NGINX], b"").succeeded();
    let (folder, port) = (folder("nginx"), free_port());
    let auth = auth_http(mail.imap);
    let config = format!(
        "load_module {NGINX}/usr/lib/nginx/modules/ngx_mail_module.so;
user nobody nogroup;
worker_processes auto;
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 2048; }}
mail {{
  server_name usher.example.com;
  auth_http 127.0.0.1:{auth}/;
  proxy_pass_error_message on;
  ssl_certificate {chain};
  ssl_certificate_key {key};
  server {{ listen 127.0.0.1:{port} ssl backlog=4096; protocol imap; }}
}}
",
        folder = folder.display(),
        chain = shared().usher.chain.display(),
        key = shared().usher.key.display(),
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let nginx = format!("{NGINX}/usr/sbin/nginx");
    let file = file.display().to_string();
    let prefix = folder.display().to_string();
    let error_log = folder.join("error.log").display().to_string();
    let command = [&nginx, "-e", &error_log, "-p", &prefix, "-c", &file].map(String::from).to_vec();
    let log = folder.join("output");
    let running = Server { command, environment: vec![], log: Some(log.clone()), end: "TERM" }.start().0;
    wait_for_port(port, &log);
    (running, port)
}

/// nginx's authentication protocol: alice's password is correct, every other one is wrong.
fn auth_http(backend: u16) -> u16 {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream, backend));
        }
    });
    port
}

fn answer(stream: std::net::TcpStream, backend: u16) {
    let expected = [("auth-user", "alice".to_owned()), ("auth-pass", password_of("alice"))];
    let mut right = 0;
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
        let (name, value) = line.split_once(':').unwrap_or_default();
        let header = (name.to_ascii_lowercase(), value.trim());
        right += usize::from(expected.iter().any(|(name, value)| header == ((*name).to_owned(), value)));
        line.clear();
    }
    let headers = match right {
        2 => format!("Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: {backend}\r\n"),
        // As in nginx's documentation.
        _ => "Auth-Status: Invalid login or password\r\nAuth-Wait: 3\r\n".to_owned(),
    };
    let _ = (&stream).write_all(format!("HTTP/1.0 200 OK\r\n{headers}\r\n").as_bytes());
}

/// A second Dovecot that proxies to the first one over TLS.
fn dovecot_proxy(mail: &Dovecot, service: &str) -> (Running, u16) {
    require(&PathBuf::from("/usr/sbin/dovecot"));
    let (folder, port) = (folder("proxy"), free_port());
    let config = format!(
        "base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
protocols = imap
listen = 127.0.0.1
ssl = required
ssl_cert = <{chain}
ssl_key = <{key}
auth_mechanisms = plain login
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {folder}/passwords
}}
service imap-login {{
  {service}
  inet_listener imap {{
    port = 0
  }}
  inet_listener imaps {{
    port = {port}
    ssl = yes
  }}
}}
",
        folder = folder.display(),
        chain = shared().usher.chain.display(),
        key = shared().usher.key.display(),
    );
    let file = folder.join("dovecot.conf");
    std::fs::write(&file, config).unwrap();
    let password = password_of("alice");
    let mail = mail.imaps;
    // Its login processes cannot read a CA file from their chroot: TLS without verification.
    let line = format!("alice:{{PLAIN}}{password}::::::proxy=y host=127.0.0.1 port={mail} ssl=any-cert\n");
    std::fs::write(folder.join("passwords"), line).unwrap();
    let command = ["/usr/sbin/dovecot", "-F", "-c", &file.display().to_string()].map(String::from).to_vec();
    let log = folder.join("output");
    let running = Server { command, environment: vec![], log: Some(log.clone()), end: "TERM" }.start().0;
    wait_for_port(port, &log);
    (running, port)
}

//! A mail client of a page: it logs in over verified TLS and reads the welcome mail's subject.
//! Beside it the HTTP request that reads usher's metrics.
//!
//! Every wait has a deadline and every answer a limit: a broken usher fails the demo, it does not
//! hang it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// One answer, or one handshake. usher promises its own within ten seconds.
const PATIENCE: Duration = Duration::from_secs(15);
/// The most that one answer may bring.
const LIMIT: u64 = 1024 * 1024;

/// Where TLS begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// At the first byte.
    Implicit,
    /// By STARTTLS.
    StartTls,
}

/// A connection to an IMAP server.
#[derive(Debug)]
pub(crate) struct Client {
    wire: BufReader<TlsStream<TcpStream>>,
    commands: u32,
}

/// What a server said to one command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The untagged lines, joined.
    pub untagged: String,
    /// The tagged line without its tag, such as `OK done`.
    pub tagged: String,
}

impl Answer {
    /// Whether the command succeeded.
    #[must_use]
    pub(crate) fn is_ok(&self) -> bool {
        self.tagged.split(' ').next() == Some("OK")
    }
}

impl Client {
    /// Connects, verifies the server's certificate for the address, and reads the greeting.
    ///
    /// # Errors
    /// Whatever keeps the connection from being ready for a login, time included.
    pub(crate) async fn connect(address: SocketAddr, tls: Arc<ClientConfig>, door: Door) -> io::Result<Self> {
        let connecting = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let mut plain = BufReader::new(stream);
            if door == Door::StartTls {
                line(&mut plain).await?;
                let answer = exchange(&mut plain, "s", "STARTTLS").await?;
                if !answer.is_ok() {
                    return Err(io::Error::other(answer.tagged));
                }
            }
            let name = ServerName::IpAddress(address.ip().into());
            let mut wire = BufReader::new(TlsConnector::from(tls).connect(name, plain.into_inner()).await?);
            if door == Door::Implicit {
                line(&mut wire).await?;
            }
            Ok(Self { wire, commands: 0 })
        };
        timeout(PATIENCE, connecting).await?
    }

    /// Sends a command and waits for its tagged answer.
    ///
    /// # Errors
    /// A closed connection, or no answer in time.
    pub(crate) async fn command(&mut self, text: &str) -> io::Result<Answer> {
        self.commands += 1;
        let tag = format!("demo{}", self.commands);
        timeout(PATIENCE, exchange(&mut self.wire, &tag, text)).await?
    }

    /// Logs in; the answer says whether it succeeded.
    ///
    /// # Errors
    /// As for [`Client::command`].
    pub(crate) async fn login(&mut self, login: &str, password: &str) -> io::Result<Answer> {
        self.command(&format!("LOGIN \"{login}\" \"{password}\"")).await
    }

    /// Reads the subject of the first mail.
    ///
    /// # Errors
    /// As for [`Client::command`], and a mailbox without such a mail.
    pub(crate) async fn subject(&mut self) -> io::Result<String> {
        self.command("SELECT INBOX").await?;
        let answer = self.command("FETCH 1 BODY.PEEK[HEADER.FIELDS (SUBJECT)]").await?;
        let subject = answer.untagged.lines().find_map(|line| line.strip_prefix("Subject: "));
        subject.map(str::to_owned).ok_or_else(|| io::Error::other("the mailbox has no welcome mail"))
    }

    /// Says goodbye.
    pub(crate) async fn logout(mut self) {
        // The demo is done with this connection either way.
        let _ = self.command("LOGOUT").await;
    }
}

async fn exchange(wire: &mut (impl AsyncBufRead + AsyncWrite + Unpin), tag: &str, text: &str) -> io::Result<Answer> {
    wire.write_all(format!("{tag} {text}\r\n").as_bytes()).await?;
    wire.flush().await?;
    let mut answer = Answer::default();
    loop {
        let line = line(wire).await?;
        if let Some(rest) = line.strip_prefix(tag).and_then(|rest| rest.strip_prefix(' ')) {
            rest.trim_end().clone_into(&mut answer.tagged);
            return Ok(answer);
        }
        answer.untagged.push_str(&line);
        if answer.untagged.len() as u64 > LIMIT {
            return Err(io::Error::other("the answer does not end"));
        }
    }
}

/// A line with its end.
async fn line(wire: &mut (impl AsyncBufRead + Unpin)) -> io::Result<String> {
    let mut bytes = Vec::new();
    wire.take(LIMIT).read_until(b'\n', &mut bytes).await?;
    if bytes.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a server says to all this, sent at once over verified TLS, until it closes.
///
/// # Errors
/// A refused connection, or no end in time.
pub(crate) async fn converse(address: SocketAddr, tls: Arc<ClientConfig>, said: &str) -> io::Result<String> {
    let conversing = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::IpAddress(address.ip().into());
        let mut wire = TlsConnector::from(tls).connect(name, stream).await?;
        wire.write_all(said.as_bytes()).await?;
        wire.flush().await?;
        let mut heard = Vec::new();
        wire.take(LIMIT).read_to_end(&mut heard).await?;
        Ok(String::from_utf8_lossy(&heard).into_owned())
    };
    timeout(PATIENCE, conversing).await?
}

/// The body of `GET path` at usher's side port.
///
/// # Errors
/// A refused connection, no answer in time, or a status other than 200.
pub(crate) async fn http_get(address: SocketAddr, path: &str) -> io::Result<String> {
    let asking = async {
        let mut stream = TcpStream::connect(address).await?;
        // HTTP/1.0: the body ends with the connection and never comes in chunks.
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.take(LIMIT).read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
        match head.split(' ').nth(1) {
            Some("200") => Ok(body.to_owned()),
            _ => Err(io::Error::other(head.lines().next().unwrap_or_default().to_owned())),
        }
    };
    timeout(PATIENCE, asking).await?
}

//! A ManageSieve client that sends the given bytes unchanged, over the connection of the IMAP client.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::client::{Imap, Tls};

/// A connection.
pub(crate) struct Sieve {
    connection: Imap,
    /// The capabilities of the greeting, one per line, with the reply that ends them.
    pub(crate) greeting: Vec<String>,
}

impl Sieve {
    /// Connects over TLS and reads the greeting.
    pub(crate) fn tls(port: u16) -> Self {
        Self::greeted(Imap::tls(port))
    }

    /// As [`Sieve::tls`], with other TLS settings; the error of the handshake.
    pub(crate) fn try_tls(port: u16, tls: &Tls) -> std::io::Result<Self> {
        Imap::try_tls(port, tls).map(Self::greeted)
    }

    /// Connects without TLS and reads the greeting.
    pub(crate) fn plain(port: u16) -> Self {
        Self::greeted(Imap::plain(port))
    }

    /// As [`Sieve::tls`], from this address and with a PROXY header before TLS.
    pub(crate) fn with_header(from: [u8; 4], port: u16, header: &[u8]) -> Self {
        Self::greeted(Imap::with_header(from, port, header))
    }

    fn greeted(connection: Imap) -> Self {
        let first = connection.greeting.clone();
        let mut sieve = Self { connection, greeting: Vec::new() };
        sieve.greeting = sieve.answer_from(first);
        sieve
    }

    /// STARTTLS and the capability list that follows under TLS.
    pub(crate) fn start_tls(&mut self) -> Vec<String> {
        assert!(self.command("STARTTLS")[0].starts_with("OK"));
        self.connection.start_tls();
        self.answer()
    }

    /// Sends bytes in one write.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.connection.send(bytes);
    }

    /// Reads up to the next reply, which is the last of the lines. Literals are kept inside their lines.
    pub(crate) fn answer(&mut self) -> Vec<String> {
        let first = self.connection.line();
        self.answer_from(first)
    }

    fn answer_from(&mut self, mut line: String) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            while let Some(size) = super::client::literal_size(&line) {
                line.push_str(&String::from_utf8_lossy(&self.connection.bytes(size)));
                line.push_str(&self.connection.line());
            }
            let last = ["OK", "NO", "BYE"].iter().any(|word| line.split(' ').next() == Some(word));
            lines.push(line);
            if last {
                return lines;
            }
            line = self.connection.line();
        }
    }

    /// Sends a command and reads its reply.
    pub(crate) fn command(&mut self, command: &str) -> Vec<String> {
        self.send(format!("{command}\r\n"));
        self.answer()
    }

    /// AUTHENTICATE PLAIN with an initial response; the one line of its reply.
    pub(crate) fn authenticate(&mut self, login: &str, password: &str) -> String {
        let message = STANDARD.encode(format!("\0{login}\0{password}"));
        let mut answer = self.command(&format!("AUTHENTICATE \"PLAIN\" \"{message}\""));
        assert_eq!(answer.len(), 1, "no list and nothing else: {answer:?}");
        answer.remove(0)
    }

    /// Expects the connection to end.
    pub(crate) fn expect_clean_end(&mut self) {
        self.connection.expect_clean_end();
    }
}

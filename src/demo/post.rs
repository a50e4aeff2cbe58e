//! The other protocols of the demo's mail servers: POP3 (RFC 1939), to fetch the welcome mail,
//! submission (RFC 6409), to hand in a mail that goes nowhere, and ManageSieve (RFC 5804), to read
//! the filter script that all users share.
//!
//! It is for the demo only, and only what usher and a plain client need of each: a line in, a reply
//! out. A bad peer ends its own connection.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::directory::Directory;
use super::welcome::Message;
use super::{IDLE, WRITE};

/// The longest line.
const LIMIT: u64 = 4096;

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// Fetching mail.
    Pop3,
    /// Handing in mail.
    Submission,
    /// Filters.
    ManageSieve,
}

/// A mail server: its name, what it speaks, and where its people's passwords are.
#[derive(Debug, Clone)]
pub(crate) struct Post {
    name: Arc<str>,
    service: Service,
    directory: Directory,
}

impl Post {
    /// A server of this name for all users of the directory.
    #[must_use]
    pub(crate) fn new(name: &str, service: Service, directory: Directory) -> Self {
        Self { name: name.into(), service, directory }
    }

    /// Serves over implicit TLS until the task is dropped.
    pub(crate) async fn serve(self, listener: TcpListener, acceptor: TlsAcceptor) {
        super::serve(listener, move |stream| converse(stream, acceptor.clone(), Dialogue::new(self.clone()))).await;
    }
}

/// One client, from its handshake until it says QUIT, falls silent or talks nonsense.
async fn converse(stream: TcpStream, acceptor: TlsAcceptor, mut dialogue: Dialogue) {
    let Ok(Ok(tls)) = timeout(WRITE, acceptor.accept(stream)).await else { return };
    let mut wire = BufReader::new(tls);
    let mut reply = dialogue.greeting();
    loop {
        let sent = timeout(WRITE, async {
            wire.write_all(reply.as_bytes()).await?;
            wire.flush().await
        });
        if !matches!(sent.await, Ok(Ok(()))) || dialogue.over {
            break;
        }
        let mut line = Vec::new();
        match timeout(IDLE, (&mut wire).take(LIMIT).read_until(b'\n', &mut line)).await {
            Ok(Ok(_)) if line.ends_with(b"\n") => reply = dialogue.step(String::from_utf8_lossy(&line).trim_end()),
            _ => break,
        }
    }
    let _ = timeout(WRITE, wire.shutdown()).await;
}

/// The conversation with one client: a line in, a reply out.
#[derive(Debug)]
struct Dialogue {
    server: Post,
    /// The welcome mail of whoever has logged in.
    message: Option<Message>,
    /// In the text of a mail.
    mail: bool,
    over: bool,
}

impl Dialogue {
    fn new(server: Post) -> Self {
        Self { server, message: None, mail: false, over: false }
    }

    fn greeting(&self) -> String {
        let name = &self.server.name;
        match self.server.service {
            Service::Pop3 => format!("+OK {name} of the usher demo\r\n"),
            Service::Submission => format!("220 {name} of the usher demo\r\n"),
            Service::ManageSieve => {
                let list = "\"SASL\" \"PLAIN\"\r\n\"SIEVE\" \"fileinto\"\r\n\"VERSION\" \"1.0\"";
                format!("\"IMPLEMENTATION\" \"{name} of the usher demo\"\r\n{list}\r\nOK\r\n")
            }
        }
    }

    fn step(&mut self, line: &str) -> String {
        if self.mail {
            self.mail = line != ".";
            return if self.mail { String::new() } else { format!("250 2.0.0 {} took the mail\r\n", self.server.name) };
        }
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let verb = verb.to_ascii_uppercase();
        self.over = matches!(verb.as_str(), "QUIT" | "LOGOUT");
        match self.server.service {
            Service::Pop3 => self.pop3(&verb, rest),
            Service::Submission => self.submission(&verb, rest),
            Service::ManageSieve => self.sieve(&verb, rest),
        }
    }

    fn pop3(&mut self, verb: &str, rest: &str) -> String {
        if verb == "AUTH" && self.message.is_none() {
            return match self.log_in(rest) {
                true => format!("+OK logged in on {}\r\n", self.server.name),
                false => "-ERR [AUTH] no such person, or not this password\r\n".to_owned(),
            };
        }
        match (verb, rest, &self.message) {
            ("CAPA", ..) => "+OK\r\nSASL PLAIN\r\nTOP\r\nUIDL\r\nPIPELINING\r\nRESP-CODES\r\n.\r\n".to_owned(),
            ("STAT", _, Some(message)) => format!("+OK 1 {}\r\n", message.whole().len()),
            ("LIST", "", Some(message)) => format!("+OK\r\n1 {}\r\n.\r\n", message.whole().len()),
            ("LIST", "1", Some(message)) => format!("+OK 1 {}\r\n", message.whole().len()),
            ("UIDL", "", Some(_)) => "+OK\r\n1 welcome\r\n.\r\n".to_owned(),
            ("UIDL", "1", Some(_)) => "+OK 1 welcome\r\n".to_owned(),
            // No line of it begins with a dot.
            ("RETR", "1", Some(message)) => format!("+OK\r\n{}.\r\n", message.whole()),
            ("TOP", _, Some(message)) if rest.starts_with("1 ") => format!("+OK\r\n{}.\r\n", message.header()),
            ("NOOP" | "RSET" | "QUIT", ..) => "+OK\r\n".to_owned(),
            _ => "-ERR not here, or not now\r\n".to_owned(),
        }
    }

    fn submission(&mut self, verb: &str, rest: &str) -> String {
        let reply = match (verb, self.message.is_some()) {
            ("EHLO" | "HELO", _) => {
                return format!(
                    "250-{}\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250 AUTH PLAIN\r\n",
                    self.server.name
                );
            }
            ("AUTH", false) if self.log_in(rest) => "235 2.7.0 logged in",
            ("AUTH", false) => "535 5.7.8 no such person, or not this password",
            ("MAIL" | "RCPT", true) | ("NOOP" | "RSET", _) => "250 2.0.0 fine",
            ("MAIL" | "RCPT" | "DATA", false) => "530 5.7.0 log in first",
            ("DATA", true) => {
                self.mail = true;
                "354 go on, end with a dot"
            }
            ("QUIT", _) => "221 2.0.0 goodbye",
            _ => "503 5.5.1 not here, or not now",
        };
        format!("{reply}\r\n")
    }

    fn sieve(&mut self, verb: &str, rest: &str) -> String {
        if verb == "AUTHENTICATE" && self.message.is_none() {
            return match self.log_in(&rest.replace('"', "")) {
                true => format!("OK \"logged in on {}\"\r\n", self.server.name),
                false => "NO \"no such person, or not this password\"\r\n".to_owned(),
            };
        }
        match (verb, rest, &self.message) {
            ("CAPABILITY", ..) => self.greeting(),
            ("LISTSCRIPTS", _, Some(_)) => "\"welcome\" ACTIVE\r\nOK\r\n".to_owned(),
            ("GETSCRIPT", "\"welcome\"", Some(_)) => {
                let script = format!("# filters on {}\r\nkeep;\r\n", self.server.name);
                format!("{{{}}}\r\n{script}\r\nOK\r\n", script.len())
            }
            ("NOOP" | "LOGOUT", ..) => "OK\r\n".to_owned(),
            _ => "NO \"not here, or not now\"\r\n".to_owned(),
        }
    }

    /// `PLAIN` with its initial response.
    fn log_in(&mut self, arguments: &str) -> bool {
        let response = arguments.strip_prefix("PLAIN ").and_then(|text| STANDARD.decode(text).ok());
        let text = response.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
        let parts: Vec<&str> = text.split('\0').collect();
        let ["", login, password] = parts.as_slice() else { return false };
        let user = self.server.directory.verify(login, password);
        self.message = user.map(|user| Message::welcome(&self.server.name, &user));
        self.message.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ADMIN, LDIF, ldif};
    use super::*;

    fn said(service: Service, lines: &[&str]) -> Vec<String> {
        let directory = Directory::new(ldif::parse(LDIF).unwrap(), ADMIN);
        let mut dialogue = Dialogue::new(Post::new("server3", service, directory));
        let mut replies = vec![dialogue.greeting()];
        replies.extend(lines.iter().map(|line| dialogue.step(line)));
        assert!(dialogue.over, "it can be ended");
        assert!(replies.iter().all(|reply| reply.is_empty() || reply.ends_with("\r\n")), "{replies:?}");
        replies
    }

    #[test]
    fn welcome_mail_can_be_fetched_after_login() {
        let wrong = format!("AUTH PLAIN {}", STANDARD.encode("\0alice\0wrong"));
        let right = format!("AUTH PLAIN {}", STANDARD.encode("\0alice\0wonderland"));
        let lines = ["RETR 1", &wrong, &right, "STAT", "RETR 1", "RETR 2", "TOP 1 0", "QUIT"];
        let replies = said(Service::Pop3, &lines);
        let starts = ["+OK", "-ERR", "-ERR [AUTH]", "+OK", "+OK 1 ", "+OK\r\nDate: ", "-ERR", "+OK\r\nDate: ", "+OK"];
        assert!(replies.iter().zip(starts).all(|(reply, start)| reply.starts_with(start)), "{replies:?}");
        assert!(replies[5].contains("Subject: Welcome to server3, alice\r\n") && replies[5].ends_with("\r\n.\r\n"));
    }

    #[test]
    fn script_can_be_read_after_login() {
        let login =
            |password| format!("AUTHENTICATE \"PLAIN\" \"{}\"", STANDARD.encode(format!("\0alice\0{password}")));
        let (wrong, right) = (login("wrong"), login("wonderland"));
        let lines =
            ["LISTSCRIPTS", &wrong, &right, "LISTSCRIPTS", "GETSCRIPT \"welcome\"", "GETSCRIPT \"x\"", "LOGOUT"];
        let replies = said(Service::ManageSieve, &lines);
        let starts = [
            "\"IMPLEMENTATION\" ",
            "NO ",
            "NO ",
            "OK ",
            "\"welcome\" ",
            "{29}\r\n# filters on server3\r\n",
            "NO ",
            "OK",
        ];
        assert!(replies.iter().zip(starts).all(|(reply, start)| reply.starts_with(start)), "{replies:?}");
    }

    #[test]
    fn mail_can_be_submitted_after_login() {
        let wrong = format!("AUTH PLAIN {}", STANDARD.encode("\0bob\0wrong"));
        let right = format!("AUTH PLAIN {}", STANDARD.encode("\0bob\0builder"));
        let lines = ["EHLO x", "MAIL FROM:<a@b>", &wrong, &right, "MAIL FROM:<a@b>", "DATA", "QUIT", ".", "QUIT"];
        let replies = said(Service::Submission, &lines);
        let starts = ["220", "250-", "530", "535", "235", "250", "354", "", "250 2.0.0 server3 took the mail", "221"];
        assert!(replies.iter().zip(starts).all(|(reply, start)| reply.starts_with(start)), "{replies:?}");
    }
}

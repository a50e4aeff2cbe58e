//! Drives both halves of any protocol through the public traits and checks invariants for any input; shared by
//! the fuzz targets, the corpus test and the known-answer scripts. Not part of the product: built for tests and
//! with the feature `fuzz` alone. Panics when an invariant is violated.

use core::net::SocketAddr;

use super::{
    Back, BackSettings, BackStep, BackTls, ClientGreeting, Credentials, Front, FrontSettings, MechanismSet, OUTPUT,
    Origin, Protocol, SaslOffer, Step, Welcome,
};
use crate::base::credential::{BearerToken, CredentialSecret, TokenForm};
use crate::base::secret::{Secret, SecretBuf};
use crate::outcome::Refusal;

/// usher's own name in a trial.
pub(crate) const HOST: &str = "usher.example.com";
/// The session id in a trial.
pub(crate) const SESSION: &str = "S7Q2X";

/// A client at this address and port.
///
/// # Panics
/// It is no address and port.
#[must_use]
pub(crate) fn calling(client: &str) -> Origin {
    let client = client.parse().expect("an address and a port");
    Origin { client, local: SocketAddr::from(([192, 0, 2, 1], 993)), session: SESSION.to_owned(), greeting: None }
}

/// The decision about a login attempt.
#[derive(Debug, Clone)]
pub(crate) enum ScriptedDecision {
    /// Refuse it and go on.
    Refuse(Refusal),
    /// Accept it, which ends the dialogue.
    Accept(Welcome),
}

/// The most output of one step: [`OUTPUT`] and one answer, which has the tag of a command or a list of 4 KiB.
const MOST_OUTPUT: usize = OUTPUT + 13 * 1024;

/// A client's dialogue and its transcript.
pub(crate) struct FrontRun {
    front: Box<dyn Front>,
    input: SecretBuf,
    decisions: Box<dyn Iterator<Item = ScriptedDecision>>,
    over: bool,
    refused: Vec<Refusal>,
    /// What was sent, a line each, and every step as a line that starts with `=>`.
    pub transcript: String,
}

impl FrontRun {
    /// Greets. `decisions` are taken in order; when they are used up, passwords are wrong.
    #[must_use]
    pub(crate) fn new(
        protocol: &Protocol,
        settings: FrontSettings<'_>,
        decisions: impl Iterator<Item = ScriptedDecision> + 'static,
    ) -> Self {
        let mut front = (protocol.front)(settings);
        let mut out = SecretBuf::new();
        front.greet(&mut out);
        let mut transcript = String::new();
        record(&out, &mut transcript);
        Self {
            front,
            input: SecretBuf::new(),
            decisions: Box::new(decisions),
            over: false,
            refused: Vec::new(),
            transcript,
        }
    }

    /// Gives the dialogue these bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
        while !self.over {
            let mut out = SecretBuf::new();
            let step = self.front.step(&mut self.input, &mut out);
            assert!(out.len() <= MOST_OUTPUT, "{} bytes were gathered by one step", out.len());
            record(&out, &mut self.transcript);
            while let Some(refusal) = self.front.take_local_refusal() {
                self.refused.push(refusal);
            }
            match step {
                Step::NeedMore => {
                    assert!(self.input.is_empty(), "asked for more and left {} bytes", self.input.len());
                    return;
                }
                // The output is sent; nothing of it appears in what follows.
                Step::Flush => {}
                // A client that waits for the handshake: what is left comes after it.
                Step::StartTls => {
                    note(&mut self.transcript, "=> tls");
                    self.front.tls_started();
                }
                Step::Attempt(credentials) => self.decide(&credentials),
                Step::Quit(quit) => {
                    self.over = true;
                    note(&mut self.transcript, &format!("=> quit {quit:?}"));
                }
            }
        }
    }

    fn decide(&mut self, credentials: &Credentials) {
        let Credentials { login, secret, authzid } = credentials;
        let (kind, secret) = match secret {
            CredentialSecret::Password(password) => ("attempt", password.expose()),
            CredentialSecret::Token(BearerToken { token, .. }) => ("token attempt", token.expose()),
            CredentialSecret::ClientCertificate(_) => ("certificate attempt", &b""[..]),
        };
        let parts = [login, secret, authzid].map(|part| format!(" \"{}\"", shown(part)));
        note(&mut self.transcript, &format!("=> {kind}{}", parts.concat()));
        let mut out = SecretBuf::new();
        match self.decisions.next().unwrap_or(ScriptedDecision::Refuse(Refusal::WrongPassword)) {
            ScriptedDecision::Refuse(refusal) => self.front.refused(&refusal.reply(true), &mut out),
            ScriptedDecision::Accept(welcome) => {
                self.front.accepted(&welcome, &mut out);
                self.over = true;
            }
        }
        record(&out, &mut self.transcript);
    }

    /// The transcript, with what is left for the backend, the logins that were refused without an
    /// attempt, and the client's identification.
    #[must_use]
    pub(crate) fn finish(mut self) -> String {
        if self.over && !self.input.is_empty() && !self.transcript.contains("=> quit") {
            note(&mut self.transcript, &format!("=> left {}", shown(self.input.as_slice())));
        }
        for refusal in &self.refused {
            note(&mut self.transcript, &format!("=> refused unasked: {refusal}"));
        }
        if let Some(id) = self.front.client_id() {
            note(&mut self.transcript, &format!("=> id \"{}\" \"{}\"", id.name, id.version));
        }
        self.transcript
    }
}

/// A backend's dialogue and its transcript.
pub(crate) struct BackRun {
    back: Box<dyn Back>,
    input: SecretBuf,
    over: bool,
    /// As [`FrontRun::transcript`].
    pub transcript: String,
}

impl BackRun {
    /// Waits for the greeting.
    #[must_use]
    pub(crate) fn new(protocol: &Protocol, settings: BackSettings) -> Self {
        let back = (protocol.back)(settings);
        let mut trial = Self { back, input: SecretBuf::new(), over: false, transcript: String::new() };
        trial.feed(b"");
        trial
    }

    /// Gives the dialogue these bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
        while !self.over {
            let mut out = SecretBuf::new();
            let step = self.back.step(&mut self.input, &mut out);
            record(&out, &mut self.transcript);
            let parts = match step {
                BackStep::NeedMore => {
                    assert!(self.input.is_empty(), "asked for more and left {} bytes", self.input.len());
                    return;
                }
                BackStep::StartTls => {
                    note(&mut self.transcript, "=> tls");
                    self.back.tls_started();
                    continue;
                }
                BackStep::Ready(welcome) => {
                    if !welcome.untagged.is_empty() {
                        note(&mut self.transcript, &format!("=> untagged {}", shown(&welcome.untagged)));
                    }
                    format!("ready [{}] {}", shown(&welcome.capabilities), shown(&welcome.text))
                }
                BackStep::Refused(words) => {
                    let reported = words.challenge.map(|error| format!(" after {}", error.error())).unwrap_or_default();
                    format!("refused [{}] {}{reported}", words.code, words.text)
                }
                BackStep::Fault(fault) => format!("fault {fault:?}"),
            };
            note(&mut self.transcript, &format!("=> {}", parts.trim_end()));
            self.over = true;
        }
    }

    /// Lets the time pass that the dialogue waits for a silent backend.
    ///
    /// # Panics
    /// It waits until the deadline.
    #[cfg(test)]
    pub(crate) fn stay_silent(&mut self) {
        self.back.patience().expect("it does not wait for more than the deadline");
        let mut out = SecretBuf::new();
        self.back.request_after_silence(&mut out);
        record(&out, &mut self.transcript);
    }

    /// The transcript, and what is left for the client after a login.
    #[must_use]
    pub(crate) fn finish(mut self) -> String {
        if self.transcript.contains("=> ready") && !self.input.is_empty() {
            note(&mut self.transcript, &format!("=> left {}", shown(self.input.as_slice())));
        }
        self.transcript
    }
}

/// Writes what was sent, one line each, the bytes that do not print escaped.
fn record(out: &SecretBuf, transcript: &mut String) {
    for line in out.as_slice().split_inclusive(|byte| *byte == b'\n') {
        let whole = line.strip_suffix(b"\r\n");
        note(transcript, &shown(whole.unwrap_or(line)));
        assert!(whole.is_some(), "half a line was sent: {}", shown(line));
    }
}

fn note(transcript: &mut String, line: &str) {
    transcript.push_str(line);
    transcript.push('\n');
}

/// Bytes as a script writes them: what does not print, and a space that could be overlooked at the
/// end, is escaped.
fn shown(bytes: &[u8]) -> String {
    let one = |byte: &u8| match byte {
        b'\r' => "\\r".to_owned(),
        b'\n' => "\\n".to_owned(),
        b' '..=b'~' => char::from(*byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    };
    let text: String = bytes.iter().map(one).collect();
    text.strip_suffix(' ').map_or(text.clone(), |start| format!("{start}\\x20"))
}

/// The common part of every protocol's fuzz target for a client: the first byte chooses the settings, the
/// second the size of pieces, the rest is what the client sends. The dialogue must do the same for the input
/// whole, in pieces and byte by byte, never try a login in the clear, and send only what is `sound`.
pub(crate) fn front(protocol: &Protocol, data: &[u8], sound: fn(&str) -> bool) {
    let [choice, size, sent @ ..] = data else { return };
    let settings = FrontSettings {
        host: HOST,
        session: SESSION,
        capabilities: None,
        tls: choice & 1 != 0,
        starttls: choice & 2 == 0,
        bad_commands: u32::from(choice >> 4),
        sasl: SaslOffer { mechanisms: MechanismSet::PASSWORDS.or(MechanismSet::TOKENS), hints: None },
    };
    let accepting = choice & 4 != 0;
    let run = |size: usize| {
        let welcome = Welcome { capabilities: b"IMAP4rev1 IDLE".to_vec(), ..Welcome::default() };
        let decisions = accepting.then_some(ScriptedDecision::Accept(welcome));
        let mut trial = FrontRun::new(protocol, settings, decisions.into_iter());
        sent.chunks(size).for_each(|piece| trial.feed(piece));
        trial.finish()
    };
    let whole = run(sent.len().max(1));
    assert_eq!(run(usize::from(*size).max(1)), whole, "pieces make a difference");
    assert_eq!(run(1), whole, "single bytes make a difference");

    let mut tls = settings.tls;
    for line in whole.lines() {
        tls |= line == "=> tls";
        let sound = if line.starts_with("=> attempt ") || line.starts_with("=> token attempt ") {
            tls
        } else {
            line.starts_with("=>") || sound(line)
        };
        assert!(sound, "forbidden output, or a login in the clear: {line}");
    }
}

/// How many bytes of untagged lines a backend may send in a trial.
const LIMIT: usize = 300;

/// As [`front`], the rest being what a backend sends. Besides, nothing but what is `harmless` may leave
/// before TLS where TLS is required, and success must have been received: `success` is in what was sent.
pub(crate) fn back(protocol: &Protocol, data: &[u8], harmless: fn(&str) -> bool, success: &[u8]) {
    let [choice, size, sent @ ..] = data else { return };
    let run = |size: usize| {
        let greeting = (choice & 16 != 0).then(|| ClientGreeting { name: "[192.0.2.7]".to_owned(), extended: false });
        let token = match choice >> 5 {
            1 => Some(TokenForm::OAuthBearer),
            2 => Some(TokenForm::XOAuth2),
            _ => None,
        };
        let forwarded = || Origin { greeting: greeting.clone(), ..calling("198.51.100.7:4711") };
        let settings = BackSettings {
            tls: if choice & 1 != 0 { BackTls::StartTls } else { BackTls::Implicit },
            login: b"alice".to_vec(),
            password: Secret::copy_of(if choice & 2 != 0 { b"p\xc3\xa4ss" } else { b"pass" }),
            token,
            service: (choice & 4 != 0 && token.is_none()).then(|| b"proxy".to_vec()),
            untagged_limit: LIMIT,
            forward: (choice & 8 != 0).then(forwarded),
            host: HOST.into(),
            initial_response: true,
            ehlo: greeting.clone(),
        };
        let mut trial = BackRun::new(protocol, settings);
        sent.chunks(size).for_each(|piece| trial.feed(piece));
        trial.finish()
    };
    let whole = run(sent.len().max(1));
    assert_eq!(run(usize::from(*size).max(1)), whole, "pieces make a difference");
    assert_eq!(run(1), whole, "single bytes make a difference");

    let mut secured = choice & 1 == 0;
    for line in whole.lines() {
        secured |= line == "=> tls";
        assert!(secured || line.starts_with("=>") || harmless(line), "in the clear: {line}");
        if let Some(ready) = line.strip_prefix("=> ready [") {
            let said = sent.to_ascii_uppercase().windows(success.len()).any(|said| said == success);
            assert!(secured && said, "success without a reply of the backend");
            let listed = ready.split(']').next().unwrap_or_default().to_ascii_uppercase();
            assert!(!listed.split(' ').any(|word| word == "UNAUTHENTICATE" || word.starts_with("AUTH=")), "{line}");
        }
        // Escaping makes four characters of a byte at the most.
        assert!(!line.starts_with("=> untagged") || line.len() <= 4 * LIMIT + 12, "too much was kept");
    }
}

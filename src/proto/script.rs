//! Known-answer scripts: a dialogue line by line, with the steps expected of usher.
//!
//! In a client's script `C:` is what the client sends and `S:` what usher answers; in a backend's script `S:`
//! is what the backend sends and `C:` what usher sends. A line is sent with CRLF, or without when its letter is
//! small (`c:`, `s:`), and may hold `\r`, `\n`, `\0`, `\\` and `\xhh`. `=>` is a step of the dialogue, `<=` the
//! decision about an attempt.
//!
//! Each script is played in lockstep (nothing comes early or late), whole, byte by byte and split
//! at each place into two: the transcript is always the same.

use super::trial::{BackRun, FrontRun, ScriptedDecision};
use super::{BackSettings, FrontSettings, Protocol};

/// Plays a client's script with and without its greeting, which most leave out. `decision` says what
/// the words behind `<=` mean.
#[track_caller]
pub(super) fn client(
    protocol: &Protocol,
    settings: FrontSettings<'_>,
    decision: fn(&str) -> ScriptedDecision,
    text: &str,
) {
    let mut script = Script::parse(text, 'C');
    let greeting = FrontRun::new(protocol, settings, std::iter::empty()).transcript;
    if !script.transcript.starts_with(&greeting) {
        script.transcript.insert_str(0, &greeting);
        script.sent.iter_mut().for_each(|(_, before)| before.insert_str(0, &greeting));
    }
    let trial = || {
        let decisions: Vec<ScriptedDecision> = script.decisions.iter().map(|words| decision(words)).collect();
        FrontRun::new(protocol, settings, decisions.into_iter())
    };
    let mut lockstep = trial();
    for (bytes, before) in &script.sent {
        assert_eq!(&lockstep.transcript, before, "before {}", clipped(bytes));
        lockstep.feed(bytes);
    }
    assert_eq!(lockstep.finish(), script.transcript);
    for cut in script.cuts() {
        let mut trial = trial();
        cut.iter().for_each(|piece| trial.feed(piece));
        let pieces: Vec<_> = cut.iter().map(|piece| clipped(piece)).collect();
        assert_eq!(trial.finish(), script.transcript, "cut into {pieces:?}");
    }
}

/// Plays a backend's script.
#[track_caller]
pub(super) fn backend(protocol: &Protocol, settings: &BackSettings, text: &str) {
    let script = Script::parse(text, 'S');
    let mut lockstep = BackRun::new(protocol, settings.clone());
    for (bytes, before) in &script.sent {
        assert_eq!(&lockstep.transcript, before, "before {}", clipped(bytes));
        lockstep.feed(bytes);
    }
    assert_eq!(lockstep.finish(), script.transcript);
    for cut in script.cuts() {
        let mut trial = BackRun::new(protocol, settings.clone());
        cut.iter().for_each(|piece| trial.feed(piece));
        let pieces: Vec<_> = cut.iter().map(|piece| clipped(piece)).collect();
        assert_eq!(trial.finish(), script.transcript, "cut into {pieces:?}");
    }
}

/// A script, parsed.
struct Script {
    /// What is sent, and the transcript that must be there before it is.
    sent: Vec<(Vec<u8>, String)>,
    /// The whole transcript.
    transcript: String,
    /// The words behind `<=`.
    decisions: Vec<String>,
}

impl Script {
    /// `sender` is the side that the script plays: `C` or `S`.
    fn parse(text: &str, sender: char) -> Self {
        let mut script = Self { sent: Vec::new(), transcript: String::new(), decisions: Vec::new() };
        for line in text.lines().map(str::trim_start).filter(|line| !line.is_empty()) {
            let (who, what) = line.split_once(' ').unwrap_or((line, ""));
            match who.trim_end_matches(':') {
                "=>" => script.transcript += &format!("{line}\n"),
                "<=" => script.decisions.push(what.to_owned()),
                side if side == sender.to_string() => {
                    script.sent.push((unescape(&format!("{what}\\r\\n")), script.transcript.clone()));
                }
                side if side == sender.to_ascii_lowercase().to_string() => {
                    script.sent.push((unescape(what), script.transcript.clone()));
                }
                "C" | "S" => script.transcript += &format!("{what}\n"),
                _ => panic!("no such line in a script: {line}"),
            }
        }
        script
    }

    fn bytes(&self) -> Vec<u8> {
        self.sent.iter().flat_map(|(bytes, _)| bytes).copied().collect()
    }

    /// The input in every way to cut it: whole, byte by byte, and in two. Long input is cut at
    /// every place near its ends and at some between.
    fn cuts(&self) -> Vec<Vec<Vec<u8>>> {
        let bytes = self.bytes();
        let mut cuts = vec![vec![bytes.clone()], bytes.chunks(1).map(<[u8]>::to_vec).collect()];
        let near = |place: &usize| {
            bytes.len() < 1000 || *place < 100 || bytes.len() - place < 100 || place.is_multiple_of(4099)
        };
        for place in (0..bytes.len()).filter(near) {
            cuts.push(vec![bytes[..place].to_vec(), bytes[place..].to_vec()]);
        }
        cuts
    }
}

/// Bytes for a failed test's message.
fn clipped(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(100)];
    format!("{} ({} bytes)", start.escape_ascii(), bytes.len())
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next().unwrap() {
                b'r' => b'\r',
                b'n' => b'\n',
                b'0' => 0,
                b'\\' => b'\\',
                b'x' => {
                    let digits = [rest.next().unwrap(), rest.next().unwrap()];
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                other => panic!("no such escape: {}", char::from(other)),
            },
            byte => byte,
        });
    }
    bytes
}

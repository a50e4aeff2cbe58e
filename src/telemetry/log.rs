//! Logging: one line per event, escaped and bounded, and never a reason to wait.
//!
//! Lines go through a bounded queue to standard output; when the reader of that pipe stops, lines are dropped
//! and counted, and no login stalls. Whatever came from outside is bounded by [`Bounded`]; each field is escaped
//! once, by the format, and quoted by how it was recorded, never by what its text looks like. The writer itself
//! lets no control character pass, so that no name, certificate or server can forge a line or a field (CWE-117).
//! [`Repeats`] keeps one outage from filling the disk. Libraries log from warn up only: their traces may
//! contain a password. Timestamps are UTC (RFC 3339). For the journal, each line begins with its priority.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::io::{self, BufWriter};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, Level, Metadata};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{Registry, reload};

use crate::base::sys::journal::{Priority, is_journal};
#[cfg(test)]
use crate::config::ClientAddress;
use crate::config::{self, LogFormat, LogLevel};
use crate::telemetry::client_address;

/// How many lines wait for a slow output; a line has some hundred bytes, a few thousand at most.
const QUEUE: usize = 8_192;

/// How many bytes are written at once, at most: lines enough, and no login waits for them.
const WRITE: usize = 64 * 1024;

/// How long the writing thread sleeps after a write. Lines that arrive meanwhile are one write, and none of
/// them wakes the thread: each would cost a login several system calls.
const BATCH_INTERVAL: Duration = Duration::from_millis(10);

/// How many bytes of an outside value are shown.
const SHOWN: usize = 256;

/// Identical outage lines are written once in this time.
const QUIET: Duration = Duration::from_secs(10);

/// How many different outage lines are tracked.
const OUTAGES: usize = 1_024;

/// The modules that log the state of directories, backends, the fleet and their users, whether or not a user logs in.
const SERVER_STATE: [&str; 7] = [
    concat!(env!("CARGO_CRATE_NAME"), "::backend"),
    concat!(env!("CARGO_CRATE_NAME"), "::directory"),
    concat!(env!("CARGO_CRATE_NAME"), "::tracking"),
    concat!(env!("CARGO_CRATE_NAME"), "::token"),
    concat!(env!("CARGO_CRATE_NAME"), "::fleet"),
    concat!(env!("CARGO_CRATE_NAME"), "::server::fleet_brake"),
    concat!(env!("CARGO_CRATE_NAME"), "::telemetry::held_back"),
];

/// Starts logging to standard output for the whole process. A second call (tests) changes nothing that is
/// written, but returns a valid guard.
#[must_use = "dropping the guard stops the log"]
pub(crate) fn init(settings: &config::Log) -> Guard {
    let (dispatch, guard) = build(settings, io::stdout(), is_journal(io::stdout()));
    let _ = tracing::dispatcher::set_global_default(dispatch);
    client_address::show(settings.client_address);
    guard
}

/// A guard of a log without output, for tests of other modules.
#[cfg(test)]
pub(crate) fn unread() -> Guard {
    let settings = config::Log { format: LogFormat::Text, level: LogLevel::Error, client_address: ClientAddress::Full };
    build(&settings, io::sink(), false).1
}

/// `to_journal`: whether each line is to begin with its priority.
fn build(settings: &config::Log, output: impl io::Write + Send + 'static, to_journal: bool) -> (Dispatch, Guard) {
    let (queue, worker) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUE)
        .thread_name("log")
        .finish(BatchingWriter { lines: BufWriter::with_capacity(WRITE, output) });
    let dropped = queue.error_counter();
    let (filter, level) = reload::Layer::new(filter(settings.level));
    let registry = tracing_subscriber::registry().with(filter);
    let pid = std::process::id();
    let writer = OneLine { queue, format: settings.format, to_journal, priority: None, pid };
    let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_target(false).with_writer(writer);
    let dispatch = match settings.format {
        LogFormat::Text => Dispatch::new(registry.with(layer.fmt_fields(KeyValue))),
        LogFormat::Json => Dispatch::new(registry.with(layer.json().flatten_event(true).with_span_list(false))),
    };
    (dispatch, Guard { dropped, level, worker: Mutex::new(Some(worker)) })
}

/// Keeps the log running; dropping it writes out what is queued (for a second at most).
#[derive(Debug)]
pub(crate) struct Guard {
    dropped: ErrorCounter,
    level: reload::Handle<Targets, Registry>,
    worker: Mutex<Option<WorkerGuard>>,
}

impl Guard {
    /// How many lines were lost because the output was stuck: `usher_log_dropped_total`.
    #[must_use]
    pub(crate) fn dropped(&self) -> usize {
        self.dropped.dropped_lines()
    }

    /// Writes out what is queued (for a second at most) and ends the log. To be called at the end of the
    /// process, even if other tasks still hold the guard: they are not waited for.
    pub(crate) fn close(&self) {
        drop(self.worker.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Changes what is written, at a reload; the format stays.
    pub(crate) fn set(&self, settings: &config::Log) {
        client_address::show(settings.client_address);
        // This fails only when the subscriber is gone, and with it every line.
        let _ = self.level.reload(filter(settings.level));
    }

    /// Writes no more lines about the state of directories and backends: after an upgrade the new process has the same
    /// ones. Those of sessions and logins stay.
    pub(crate) fn leave_servers_to_successor(&self) {
        let _ = self.level.modify(|filter| {
            let known = std::mem::take(filter);
            *filter = SERVER_STATE.iter().fold(known, |filter, module| filter.with_target(*module, LevelFilter::OFF));
        });
    }
}

fn filter(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_target(env!("CARGO_CRATE_NAME"), level)
}

/// The fields of a text line, as `name=value` behind the message. A value that was recorded as a string is
/// always quoted, every other one where it would not be read back as one value.
#[derive(Debug, Clone, Copy)]
struct KeyValue;

impl<'writer> FormatFields<'writer> for KeyValue {
    fn format_fields<R: RecordFields>(&self, out: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = FieldWriter { out, text: String::new(), is_first: true, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

struct FieldWriter<'writer> {
    out: Writer<'writer>,
    /// A value is written here first: only then is known whether it has to be quoted.
    text: String,
    is_first: bool,
    result: fmt::Result,
}

impl FieldWriter<'_> {
    fn write(&mut self, field: &Field, value: fmt::Arguments<'_>, is_string: bool) {
        if self.result.is_ok() {
            self.result = self.try_write(field, value, is_string);
        }
    }

    fn try_write(&mut self, field: &Field, value: fmt::Arguments<'_>, is_string: bool) -> fmt::Result {
        self.text.clear();
        self.text.write_fmt(value)?;
        if !std::mem::take(&mut self.is_first) {
            self.out.write_char(' ')?;
        }
        // `r#type` is how Rust spells a field whose name is a keyword.
        let name = field.name().strip_prefix("r#").unwrap_or(field.name());
        let is_quoted = if name == "message" {
            // The message ends where the first `name=` begins.
            has_special(&self.text, " ")
        } else {
            write!(self.out, "{name}=")?;
            is_string || self.text.is_empty() || has_special(&self.text, "")
        };
        if is_quoted { write!(self.out, "{:?}", self.text) } else { self.out.write_str(&self.text) }
    }
}

impl Visit for FieldWriter<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(field, format_args!("{value}"), field.name() != "message");
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.write(field, format_args!("{value:?}"), false);
    }
}

/// Whether a text has to be quoted to be read back as one value: it has a blank, a quote, an equals sign, a
/// brace (which ends a span's fields), or what is no printable character, except those in `allowed`.
fn has_special(text: &str, allowed: &str) -> bool {
    text.chars().any(|one| match one {
        ' ' | '"' | '=' | '{' | '}' => !allowed.contains(one),
        _ => !is_printable(one),
    })
}

/// Whether a character stands for itself: no control, nothing that is invisible, that turns the writing
/// direction round, or that changes the character before it.
#[must_use]
pub(crate) fn is_printable(character: char) -> bool {
    match character {
        ' '..='~' => true,
        // It escapes what is not printable, and nothing else beyond ASCII.
        _ => !character.is_ascii() && character.escape_debug().len() == 1,
    }
}

/// Writes a character as JSON escapes it in a string (RFC 8259 section 7).
///
/// # Errors
/// Those of `out`.
pub(crate) fn escape_json(out: &mut impl fmt::Write, character: char) -> fmt::Result {
    let units = &mut [0; 2];
    character.encode_utf16(units).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
}

/// Sends each event as one line to the queue: the last guard against forged lines.
#[derive(Debug, Clone)]
struct OneLine {
    queue: NonBlocking,
    format: LogFormat,
    to_journal: bool,
    /// The priority of the event, for the journal.
    priority: Option<Priority>,
    /// This process: during an upgrade two write to one log.
    pid: u32,
}

/// The output of the thread that writes: it is given the lines one by one, and flushed when there are no
/// more.
struct BatchingWriter<W: io::Write> {
    lines: BufWriter<W>,
}

impl<W: io::Write> io::Write for BatchingWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()?;
        std::thread::sleep(BATCH_INTERVAL);
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for OneLine {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Self {
        let priority = match *event.level() {
            Level::ERROR => Priority::Error,
            Level::WARN => Priority::Warning,
            Level::INFO => Priority::Info,
            _ => Priority::Debug,
        };
        Self { priority: self.to_journal.then_some(priority), ..self.clone() }
    }
}

impl io::Write for OneLine {
    /// Takes one event, as the formatter hands it over: complete, with its line end.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = event.strip_suffix(b"\n").unwrap_or(event);
        let text = String::from_utf8_lossy(line);
        let prefix = self.priority.map_or("", Priority::prefix);
        let mut clean = String::with_capacity(prefix.len() + text.len() + 1);
        clean.push_str(prefix);
        for character in text.chars() {
            let _ = match (is_printable(character), self.format) {
                (true, _) => clean.write_char(character),
                // In JSON they can be in strings only. serde_json leaves DEL, the C1 controls and what
                // turns the writing direction round as they are.
                (false, LogFormat::Json) => escape_json(&mut clean, character),
                (false, LogFormat::Text) => write!(clean, "{}", character.escape_debug()),
            };
        }
        let pid = self.pid;
        // Writing to a String cannot fail.
        let _ = match self.format {
            LogFormat::Text => writeln!(clean, " usher_pid={pid}"),
            LogFormat::Json if clean.ends_with('}') => {
                clean.pop();
                writeln!(clean, ",\"usher_pid\":{pid}}}")
            }
            LogFormat::Json => writeln!(clean),
        };
        self.queue.write_all(clean.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.queue.flush()
    }
}

/// Bytes from outside, as the value of a log field: at most 256 of them, then `…`; each byte that is not UTF-8
/// as `\xff`. All characters stand as they are, because the format of the line escapes them: a parser of the
/// line gets back what the peer sent.
#[derive(Clone, Copy)]
pub(crate) struct Bounded<'a>(pub &'a [u8]);

impl fmt::Display for Bounded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_bounded(f, self.0, SHOWN, |f, character| f.write_char(character))
    }
}

/// As [`Bounded`], for a terminal, or within a longer text: every character that does not stand for itself is
/// escaped. A backslash stays, so that a DN or a filter can be copied.
#[derive(Clone, Copy)]
pub(crate) struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&EscapedUpTo(self.0, SHOWN), f)
    }
}

/// As [`Escaped`], with a bound of its own.
#[derive(Clone, Copy)]
pub(crate) struct EscapedUpTo<'a>(pub &'a [u8], pub usize);

impl fmt::Display for EscapedUpTo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_bounded(f, self.0, self.1, |f, character| match is_printable(character) {
            true => f.write_char(character),
            false => write!(f, "{}", character.escape_debug()),
        })
    }
}

fn write_bounded(
    f: &mut fmt::Formatter<'_>,
    bytes: &[u8],
    most: usize,
    write: impl Fn(&mut fmt::Formatter<'_>, char) -> fmt::Result,
) -> fmt::Result {
    let mut left = most;
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            let Some(rest) = left.checked_sub(character.len_utf8()) else { return f.write_char('…') };
            left = rest;
            write(f, character)?;
        }
        for byte in chunk.invalid() {
            let Some(rest) = left.checked_sub(1) else { return f.write_char('…') };
            left = rest;
            write!(f, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

/// Thins out identical outage lines.
#[derive(Debug, Default)]
pub(crate) struct Repeats(Mutex<HashMap<(&'static str, Box<str>), Repeat>>);

#[derive(Debug)]
struct Repeat {
    written: Instant,
    suppressed: u64,
}

impl Repeats {
    /// Whether the line about this fault (`what`) of this server (`name`) may be written now; if so, how many
    /// were suppressed since the last one.
    pub(crate) fn allow(&self, what: &'static str, name: &str) -> Option<u64> {
        let now = Instant::now();
        // The map is whole whatever panicked while holding it.
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (what, Box::from(name));
        if map.len() >= OUTAGES && !map.contains_key(&key) {
            map.retain(|_, repeat| now.duration_since(repeat.written) < QUIET);
            if map.len() >= OUTAGES {
                // Too many different ones at once: from here on they share a line per kind.
                key.1 = Box::default();
            }
        }
        let Some(repeat) = map.get_mut(&key) else {
            map.insert(key, Repeat { written: now, suppressed: 0 });
            return Some(0);
        };
        if now.duration_since(repeat.written) < QUIET {
            repeat.suppressed = repeat.suppressed.saturating_add(1);
            return None;
        }
        repeat.written = now;
        Some(std::mem::take(&mut repeat.suppressed))
    }
}

#[cfg(test)]
mod tests;

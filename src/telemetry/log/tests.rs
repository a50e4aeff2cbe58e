use std::io::Write as _;
use std::sync::Arc;
use std::sync::mpsc;

use serde_json::Value;
use tracing::{dispatcher, error, info, info_span};

use super::*;

mod fields;

/// The written bytes, shared with the log's thread.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn settings(format: LogFormat, level: LogLevel) -> config::Log {
    config::Log { format, level, client_address: ClientAddress::Full }
}

/// The log lines that `events` produce.
fn written(format: LogFormat, level: LogLevel, events: impl FnOnce(&Guard)) -> Vec<String> {
    written_to(false, format, level, events)
}

/// As [`written`], for the journal or not.
fn written_to(to_journal: bool, format: LogFormat, level: LogLevel, events: impl FnOnce(&Guard)) -> Vec<String> {
    let page = Page::default();
    let (dispatch, guard) = build(&settings(format, level), page.clone(), to_journal);
    dispatcher::with_default(&dispatch, || events(&guard));
    drop(guard);
    let bytes = page.0.lock().unwrap().clone();
    // Every line ends with the process; what is tested is before it.
    let own = match format {
        LogFormat::Text => format!(" usher_pid={}", std::process::id()),
        LogFormat::Json => format!(",\"usher_pid\":{}}}", std::process::id()),
    };
    let of = |line: &str| {
        let event = line.strip_suffix(&own).unwrap_or_else(|| panic!("{line}"));
        if format == LogFormat::Json { format!("{event}}}") } else { event.to_owned() }
    };
    String::from_utf8(bytes).unwrap().lines().map(of).collect()
}

#[test]
fn outside_bytes_are_escaped_and_bounded() {
    for (bytes, shown) in [
        (&b"alice@example.com"[..], "alice@example.com"),
        (br"cn=Smith\2C John", r"cn=Smith\2C John"),
        ("jürgen 日本".as_bytes(), "jürgen 日本"),
        (b"a\r\nb\0c\x1b[31m\x7f", r"a\r\nb\0c\u{1b}[31m\u{7f}"),
        (b"\\n is not a newline", r"\n is not a newline"),
        (b"\xff\xc3(\xe2\x82", r"\xff\xc3(\xe2\x82"),
        ("\u{85}\u{2028}\u{202e}\u{200b}".as_bytes(), r"\u{85}\u{2028}\u{202e}\u{200b}"),
        (br#"it's "quoted""#, r#"it's "quoted""#),
    ] {
        assert_eq!(Escaped(bytes).to_string(), shown);
    }
    assert_eq!(Escaped(&[b'x'; 256]).to_string(), "x".repeat(256));
    assert_eq!(Escaped(&[b'x'; 257]).to_string(), "x".repeat(256) + "…");
    assert_eq!(Escaped(&[0xff; 300]).to_string(), r"\xff".repeat(256) + "…");
    // A character is never cut.
    assert_eq!(Escaped("ä".repeat(200).as_bytes()).to_string(), "ä".repeat(128) + "…");
    assert_eq!(Bounded("a\r\n\\2C\u{202e}".as_bytes()).to_string(), "a\r\n\\2C\u{202e}", "the format escapes it");
    assert_eq!(Bounded(&[0xff; 300]).to_string(), r"\xff".repeat(256) + "…");
    assert_eq!(Bounded("ä".repeat(200).as_bytes()).to_string(), "ä".repeat(128) + "…");
}

#[test]
fn text_is_escaped_once_by_the_format() {
    let event = |_: &Guard| info!(dn = %Bounded(br"cn=Smith\2C John"), login = %Bounded(br"AD\alice"), "login");
    let text = written(LogFormat::Text, LogLevel::Info, event);
    assert!(text[0].ends_with(r#"login dn="cn=Smith\\2C John" login=AD\alice"#), "{text:?}");
    let json = written(LogFormat::Json, LogLevel::Info, event);
    assert!(json[0].contains(r#""dn":"cn=Smith\\2C John","login":"AD\\alice""#), "{json:?}");
}

#[test]
fn lines_for_the_journal_begin_with_their_priority() {
    let events = |_: &Guard| {
        error!("a");
        tracing::warn!(text = "two\n<3>lines", "b");
        info!("<3>c");
        tracing::debug!("d");
        tracing::trace!("e");
    };
    for format in [LogFormat::Text, LogFormat::Json] {
        let plain = written(format, LogLevel::Trace, events);
        let lines = written_to(true, format, LogLevel::Trace, events);
        let prefixes: Vec<_> = lines.iter().map(|line| &line[..3]).collect();
        assert_eq!(prefixes, ["<3>", "<4>", "<6>", "<7>", "<7>"], "{lines:?}");
        assert!(plain.iter().all(|line| !line.starts_with('<')), "{plain:?}");
        let begins = if format == LogFormat::Json { "{" } else { "20" };
        assert!(lines.iter().all(|line| line[3..].starts_with(begins)), "{lines:?}");
    }
}

#[test]
fn text_lines_have_time_level_span_and_fields() {
    let lines = written(LogFormat::Text, LogLevel::Info, |_| {
        let _span = info_span!("session", id = 7, client = "192.0.2.1").entered();
        info!(login = %Escaped(b"alice"), said = %Escaped(b"x result=ok"), empty = "", "login");
    });
    let [line] = &lines[..] else { panic!("{lines:?}") };
    let (time, rest) = line.split_once(' ').unwrap();
    assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
    assert_eq!(
        rest.trim_start(),
        r#"INFO session{id=7 client="192.0.2.1"}: login login=alice said="x result=ok" empty="""#
    );
}

#[test]
fn json_lines_are_flat_with_the_span() {
    let lines = written(LogFormat::Json, LogLevel::Info, |_| {
        let _span = info_span!("session", id = 7).entered();
        info!(login = %Escaped(b"a\xff\"b"), milliseconds = 12_u64, "login");
    });
    let [line] = &lines[..] else { panic!("{lines:?}") };
    let object: Value = serde_json::from_str(line).unwrap();
    assert_eq!(object["message"], "login");
    assert_eq!(object["login"], "a\\xff\"b");
    assert_eq!(object["milliseconds"], 12);
    assert_eq!(object["level"], "INFO");
    assert_eq!(object["span"]["id"], 7);
    assert!(object["timestamp"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn control_bytes_are_never_written() {
    let every: String = (0..=0x2_ffff).filter_map(char::from_u32).filter(|one| one.is_control()).collect();
    for format in [LogFormat::Text, LogFormat::Json] {
        let lines = written(format, LogLevel::Info, |_| {
            let _span = info_span!("session", bare = every, debug = ?every, shown = %every).entered();
            info!(bare = every, debug = ?every, shown = %every, escaped = %Escaped(every.as_bytes()), "{every}");
        });
        let [line] = &lines[..] else { panic!("{} lines", lines.len()) };
        assert!(!line.contains(char::is_control), "{line:?}");
        if format == LogFormat::Json {
            let object: Value = serde_json::from_str(line).unwrap();
            assert_eq!(object["bare"], every, "what was escaped is not lost");
        }
    }
}

#[test]
fn level_is_applied_and_can_be_changed() {
    let lines = written(LogFormat::Text, LogLevel::Warn, |guard| {
        info!("unheard");
        guard.set(&settings(LogFormat::Text, LogLevel::Debug));
        tracing::debug!("heard");
        guard.set(&settings(LogFormat::Text, LogLevel::Error));
        tracing::warn!("unheard again");
        error!("heard as well");
    });
    assert_eq!(lines.len(), 2, "{lines:?}");
}

#[test]
fn library_events_are_logged_from_warn_up() {
    let lines = written(LogFormat::Text, LogLevel::Trace, |_| {
        tracing::trace!(target: "hyper::proto", "password");
        info!(target: "ldap3", "password");
        tracing::warn!(target: "hyper::proto", "trouble");
    });
    assert_eq!(lines.len(), 1, "{lines:?}");
}

/// An output that blocks until it is released.
struct Stuck(mpsc::Receiver<()>);

impl io::Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Dropping the sender releases the output.
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn blocked_output_loses_lines_without_delay() {
    let (release, stuck) = mpsc::channel();
    let (dispatch, guard) = build(&settings(LogFormat::Text, LogLevel::Info), Stuck(stuck), false);
    let lines = 2 * QUEUE;
    // This would hang if a line waited for the output.
    dispatcher::with_default(&dispatch, || (0..lines).for_each(|line| info!(line, "login")));
    // The lines of the write in progress come on top of those in the queue; a line has
    // at least 45 bytes.
    let lost = guard.dropped();
    assert!((lines - QUEUE - WRITE / 45 - 1..=lines - QUEUE).contains(&lost), "{lost}");
    drop(release);
}

/// An output that counts its writes and lines.
#[derive(Clone, Default)]
struct Counted(Arc<Mutex<(usize, usize)>>);

impl io::Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut counted = self.0.lock().unwrap();
        counted.0 += 1;
        counted.1 += bytes.iter().filter(|byte| **byte == b'\n').count();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn concurrent_lines_are_one_write_and_none_is_lost() {
    let counted = Counted::default();
    let (dispatch, guard) = build(&settings(LogFormat::Text, LogLevel::Info), counted.clone(), false);
    dispatcher::with_default(&dispatch, || (0..1000).for_each(|line| info!(line, "login")));
    guard.close();
    let (writes, lines) = *counted.0.lock().unwrap();
    assert_eq!(lines, 1000);
    assert!(writes < 500, "{writes}");
}

/// A slow output.
struct Slow(Page);

impl io::Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        std::thread::sleep(Duration::from_millis(1));
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn last_lines_are_written_while_the_guard_is_still_shared() {
    let page = Page::default();
    let (dispatch, guard) = build(&settings(LogFormat::Text, LogLevel::Info), Slow(page.clone()), false);
    dispatcher::with_default(&dispatch, || (0..100).for_each(|line| info!(line, "end")));
    guard.close();
    assert_eq!(page.0.lock().unwrap().iter().filter(|byte| **byte == b'\n').count(), 100);
    drop(guard);
}

#[test]
fn event_is_one_write_to_the_queue() {
    let page = Page::default();
    let (queue, worker) = NonBlockingBuilder::default().finish(page.clone());
    let mut line = OneLine { queue, format: LogFormat::Text, to_journal: false, priority: None, pid: 7 };
    assert_eq!(line.write(b"a\nb\tc\n").unwrap(), 6);
    line.flush().unwrap();
    drop(worker);
    assert_eq!(*page.0.lock().unwrap(), b"a\\nb\\tc usher_pid=7\n");
}

#[tokio::test(start_paused = true)]
async fn repeated_outages_are_rate_limited() {
    let repeats = Repeats::default();
    assert_eq!(repeats.allow("directory", "ldap1"), Some(0));
    assert_eq!(repeats.allow("directory", "ldap2"), Some(0));
    assert_eq!(repeats.allow("backend", "ldap1"), Some(0));
    for _ in 0..5 {
        assert_eq!(repeats.allow("directory", "ldap1"), None);
    }
    tokio::time::advance(QUIET).await;
    assert_eq!(repeats.allow("directory", "ldap1"), Some(5));
    assert_eq!(repeats.allow("directory", "ldap1"), None);
    assert_eq!(repeats.allow("directory", "ldap2"), Some(0));
}

#[tokio::test(start_paused = true)]
async fn outage_memory_is_bounded() {
    let repeats = Repeats::default();
    for name in 0..OUTAGES {
        assert_eq!(repeats.allow("backend", &name.to_string()), Some(0));
    }
    assert_eq!(repeats.allow("backend", "one more"), Some(0));
    assert_eq!(repeats.allow("backend", "and another"), None);
    assert_eq!(repeats.0.lock().unwrap().len(), OUTAGES + 1);
    tokio::time::advance(QUIET).await;
    assert_eq!(repeats.allow("backend", "later"), Some(0));
    assert_eq!(repeats.0.lock().unwrap().len(), 1);
}

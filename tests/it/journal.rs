//! Priorities in front of lines for the journal, and only there.

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::kit::usher::BINARY;
use crate::kit::{Config, Usher};

/// Runs a command with the device and inode of one of its outputs in the environment, as systemd does.
fn under_journal(output: u8) -> [String; 4] {
    let stream = format!("$(stat -L -c %d:%i /proc/$$/fd/{output})");
    ["sh".into(), "-c".into(), format!("export JOURNAL_STREAM={stream}; exec \"$@\""), "sh".into()]
}

/// The priorities of the log lines by level.
fn priorities(usher: &Usher) -> Vec<(String, Option<u64>)> {
    let of = |line: &Value| {
        let level = line["level"].as_str()?.to_owned();
        Some((level, line["journal_priority"].as_u64()))
    };
    let mut found: Vec<_> = usher.logged().iter().filter_map(of).collect();
    found.sort();
    found.dedup();
    found
}

#[test]
fn log_lines_have_priorities_where_the_journal_reads_them() {
    let wrapper = under_journal(1);
    let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
    for format in ["text", "json"] {
        let mut usher = Usher::start_under(Config::shared().set("/log/format", format), &wrapper);
        usher.config.change("/limits", serde_json::json!({"bad_commands": 0}));
        usher.config.write();
        usher.hup();
        let found = priorities(&usher);
        let pair = |level: &str, priority| (level.to_owned(), Some(priority));
        assert!(found.contains(&pair("INFO", 6)) && found.contains(&pair("ERROR", 3)), "{format}: {found:?}");
        let expected = [("DEBUG", 7), ("ERROR", 3), ("INFO", 6), ("TRACE", 7), ("WARN", 4)];
        let is_right =
            |one: &(String, Option<u64>)| expected.iter().any(|(level, priority)| *one == pair(level, *priority));
        assert!(found.iter().all(is_right), "{format}: {found:?}");
    }
}

#[test]
fn log_lines_have_none_where_another_output_was_the_journal() {
    for stream in ["1:2", "", "garbage", "18446744073709551616:1"] {
        let usher = Usher::start_with(Config::shared(), vec![("JOURNAL_STREAM", stream.into())]);
        assert!(priorities(&usher).iter().all(|(_, priority)| priority.is_none()), "{stream}");
    }
}

#[test]
fn mistakes_at_the_start_have_priorities_line_by_line() {
    let config = Config::shared();
    let file = config.write_text("listeners: []\nlog: {format: xml}\n");
    let run = |wrapper: &[String]| {
        let (program, arguments) = wrapper.split_first().unwrap();
        // As systemd does: a socket.
        let (written, mut read) = UnixStream::pair().unwrap();
        let mut command = Command::new(program);
        command.args(arguments).args(["run", "--allow-root", "--config"]).arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::os::fd::OwnedFd::from(written));
        let mut child = command.spawn().unwrap();
        drop(command);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut read, &mut text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(78), "{text}");
        text
    };
    let mut wrapper = under_journal(2).to_vec();
    wrapper.push(BINARY.to_owned());
    let journal = run(&wrapper);
    assert!(journal.lines().count() > 2 && journal.lines().all(|line| line.starts_with("<3>")), "{journal}");
    let plain = run(&[BINARY.to_owned()]);
    assert_eq!(journal.replace("<3>", ""), plain);
    // Standard output is the journal, and standard error is not.
    let mut wrapper = under_journal(1).to_vec();
    wrapper.push(BINARY.to_owned());
    assert_eq!(run(&wrapper), plain);
}

//! `usher completions` and `usher man`: generated from the definitions of the commands.
//!
//! Options and their texts come from clap. The rest of a manual page (description, examples, exit codes,
//! files) is data in this file; a command without an entry still has a page.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::{
    CONFIG, DATA, FAILED, NO_INPUT, NO_PERMISSION, NO_USER, OK, SOFTWARE, SYSTEM, UNAVAILABLE, USAGE, output,
    output::CLOSED_PIPE,
};

/// The section of manuals for administration.
const SECTION: &str = "8";

#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell; save the output in its directory of completions
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Write a page for each command into this directory, instead of usher(8) to standard output
    directory: Option<PathBuf>,
}

/// What a page says beyond the options: paragraphs, and examples with what they are for.
struct Page {
    command: &'static str,
    paragraphs: &'static [&'static str],
    examples: &'static [(&'static str, &'static str)],
}

const PAGES: &[Page] = &[
    Page {
        command: "usher",
        paragraphs: &[
            "usher is a mail login proxy. Mail clients connect to it over TLS and log in by IMAP, POP3, submission \
             or ManageSieve. It verifies the password by an LDAP bind as that user, reads the user's mail server \
             from the directory (mailHost), logs in there over verified TLS, and then passes bytes unchanged in both \
             directions.",
            "It is configured by one YAML file; config.example.yaml documents each key. Commands other than run and \
             check send requests to the running usher over its control socket, which the same file names \
             (control.path).",
            "SIGHUP reloads the configuration; SIGTERM and SIGINT drain and stop, and a second signal stops at once.",
        ],
        examples: &[
            ("usher check", "report every mistake in /etc/usher/config.yaml, with its line and what to do"),
            ("usher run --config usher.yaml", "serve in the foreground"),
            ("usher explain alice@example.com", "show where alice is routed, and why"),
        ],
    },
    Page {
        command: "run",
        paragraphs: &[
            "Binds the listeners and serves. It does not become a background process; under systemd it reports when \
             it is ready (sd_notify). It does not run as root: it is started as a user of its own, or switches to \
             one (process.user).",
            "The log goes to standard output. SIGHUP reloads; SIGTERM and SIGINT drain as the section drain says, \
             and a second signal stops at once.",
        ],
        examples: &[("usher run --config /etc/usher/config.yaml", "what the systemd unit starts")],
    },
    Page {
        command: "init",
        paragraphs: &[
            "Writes a configuration with comments to standard output, which check accepts once the files that it names \
             exist. It asks nothing, contacts no server and writes no file; the next commands are said on standard \
             error.",
        ],
        examples: &[(
            "usher init --ldap ldaps://ldap1.example.com --base ou=people,dc=example,dc=com --backend \
             server3=server3.example.com:993 --certificate /etc/usher/fullchain.pem --key /etc/usher/privkey.pem > \
             config.yaml",
            "one directory server, one mail server",
        )],
    },
    Page {
        command: "schema",
        paragraphs: &[
            "Writes a JSON Schema of the configuration (draft-07) to standard output, with every key, its kind, its range \
             and its default, from the reader that check uses. Editors with yaml-language-server complete and check a file \
             that begins with the line `# yaml-language-server: $schema=usher.schema.json`.",
            "What the schema refuses, check refuses; check finds more: files that are missing, keys that need each other, \
             the syntax of filters and names.",
        ],
        examples: &[("usher schema > /etc/usher/usher.schema.json", "beside the configuration")],
    },
    Page {
        command: "check",
        paragraphs: &[
            "Reads the configuration and the certificates, keys and passwords that it names, as run and reload do. \
             All mistakes are reported at once, each with file, line, key and what to do. Nothing is changed.",
        ],
        examples: &[(
            "usher check --config new.yaml && mv new.yaml /etc/usher/config.yaml",
            "install only a valid file",
        )],
    },
    Page {
        command: "explain",
        paragraphs: &[
            "Shows what a login of this name meets now in the running usher, and what the directory says of it: the entry, \
             its mail host and the backend, or the reason of a refusal. If the configuration file differs from the one in \
             force, there is a second verdict: that after a reload. No password is needed.",
        ],
        examples: &[
            ("usher explain alice", "one user"),
            ("usher explain --json alice", "the same for a program"),
            ("usher explain --password-stdin alice < password.txt", "also bind as alice"),
            ("usher explain --all", "every user of the directory"),
        ],
    },
    Page {
        command: "import-users",
        paragraphs: &["Writes LDIF to standard output and changes nothing; ldapmodify(1) reads it."],
        examples: &[(
            "usher import-users users.txt --backend server4 --default server3 > move.ldif",
            "users in the file to server4, all others to server3",
        )],
    },
    Page {
        command: "sessions",
        paragraphs: &["Lists the sessions of the running usher, oldest first."],
        examples: &[
            ("usher sessions --user alice", "one user's sessions"),
            ("usher sessions --json | jq length", "their number"),
        ],
    },
    Page {
        command: "trace",
        paragraphs: &[
            "Shows the dialogues of chosen sessions with client and backend until the login is done, as they happen, \
             with TLS, the directory's answer and the route. Passwords are never shown: whatever is not known to be \
             harmless is the number of its bytes.",
            "Each line has the milliseconds since the session began, the session's id as in the log, the leg, and the \
             line. A reader that is too slow loses lines and is told how many; no login waits for it. The log has \
             a line of the beginning and of the end of a trace, with who asked.",
        ],
        examples: &[
            ("usher trace --user alice --for 10m", "alice, also under her other names"),
            ("usher trace --client 192.0.2.7", "one client, whoever logs in"),
            ("usher trace --backend server3 --json", "logins that go to server3, a JSON object a line"),
        ],
    },
    Page {
        command: "confirm",
        paragraphs: &[
            "When more users are moved, disabled or deleted in a minute than directory.brake allows, usher applies \
             none of these changes until this command confirms them. Each usher has its own brake.",
        ],
        examples: &[
            ("usher confirm", "apply the changes that the brake holds"),
            ("usher confirm --for 30m", "also apply changes of the next half hour"),
        ],
    },
    Page {
        command: "reload",
        paragraphs: &[
            "No session ends. A file with a mistake changes nothing: the mistakes are reported, and the previous \
             configuration stays active. A change that needs a restart is reported as a mistake.",
        ],
        examples: &[("systemctl reload usher", "the same, by the unit")],
    },
    Page {
        command: "upgrade",
        paragraphs: &[
            "Starts the program that is installed now, hands it the listening sockets, and the old process exits \
             when its sessions have ended, or at drain.upgrade_deadline. No connection is refused. If the new \
             process does not start, nothing has changed.",
        ],
        examples: &[("apt install ./usher_1.1.0_amd64.deb && usher upgrade", "a new version without a lost session")],
    },
];

/// What the commands exit with (sysexits.h).
const EXIT_CODES: [(u8, &str); 12] = [
    (OK, "Success."),
    (FAILED, "Failure, or a negative result; the reason is on standard error."),
    (USAGE, "The arguments are wrong."),
    (DATA, "The directory's entry cannot be used, such as one without a mail host."),
    (NO_INPUT, "A file that was named as input cannot be read."),
    (NO_USER, "The directory has no such user."),
    (UNAVAILABLE, "A server, or the running usher, does not respond."),
    (SOFTWARE, "Internal error; see the log and report it."),
    (SYSTEM, "A system error, such as an address that cannot be bound."),
    (NO_PERMISSION, "The password is wrong."),
    (CONFIG, "The configuration has mistakes; each is on standard error."),
    (CLOSED_PIPE, "The reader of standard output has closed it, as `| head` does."),
];

const FILES: [(&str, &str); 4] = [
    ("/etc/usher/config.yaml", "The configuration."),
    ("/usr/share/doc/usher/config.example.yaml", "Every key, with its default."),
    (
        "/run/usher/control.sock",
        "The control socket, if control.path is set; only its owner and control.group may use it.",
    ),
    ("/usr/share/doc/usher", "Operations, directories, high availability, the guarantees and their limits."),
];

/// Writes a shell's completions to standard output.
pub(super) fn completions(arguments: &CompletionsArgs) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::Cli::command(), "usher", &mut script);
    done(io::stdout().write_all(&script), "standard output")
}

/// Writes manual pages: one to standard output, or all of them into a directory.
pub(super) fn man(arguments: &ManArgs) -> ExitCode {
    let pages = pages();
    match &arguments.directory {
        None => {
            let whole = pages.first().map(|(_, page)| page.as_slice()).unwrap_or_default();
            done(io::stdout().write_all(whole), "standard output")
        }
        Some(directory) => done(write(directory, &pages), &directory.display().to_string()),
    }
}

fn done(outcome: io::Result<()>, place: &str) -> ExitCode {
    output::written(outcome, place).map_or_else(|code| code, |()| ExitCode::from(OK))
}

fn write(directory: &Path, pages: &[(String, Vec<u8>)]) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    pages.iter().try_for_each(|(name, page)| std::fs::write(directory.join(format!("{name}.{SECTION}")), page))
}

/// Every page with its name, that of usher itself first.
fn pages() -> Vec<(String, Vec<u8>)> {
    let mut command = super::Cli::command().disable_help_subcommand(true);
    command.build();
    let parts: Vec<_> = command.get_subcommands().filter(|part| !part.is_hide_set()).cloned().collect();
    let also: Vec<String> = parts.iter().map(|part| format!("usher-{}", part.get_name())).collect();
    let mut pages = vec![("usher".to_owned(), page(command, "usher", &also))];
    for (part, name) in parts.into_iter().zip(&also) {
        let short = part.get_name().to_owned();
        pages.push((name.clone(), page(part, &short, &["usher".to_owned()])));
    }
    pages
}

fn page(command: clap::Command, name: &str, also: &[String]) -> Vec<u8> {
    let known = PAGES.iter().find(|page| page.command == name);
    let whole = name == "usher";
    let title = if whole { name.to_owned() } else { format!("usher-{name}") };
    let has_options = command.get_arguments().any(|argument| !argument.is_hide_set());
    let source = concat!("usher ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command).title(title).section(SECTION).source(source).manual("usher manual");
    let mut out = Vec::new();
    let rendered = (|| {
        man.render_title(&mut out)?;
        man.render_name_section(&mut out)?;
        man.render_synopsis_section(&mut out)?;
        man.render_description_section(&mut out)?;
        paragraphs(known.map(|page| page.paragraphs).unwrap_or_default(), &mut out)?;
        if has_options {
            man.render_options_section(&mut out)?;
        }
        if whole {
            man.render_subcommands_section(&mut out)?;
            let codes = EXIT_CODES.map(|(code, meaning)| (code.to_string(), meaning));
            terms("EXIT STATUS", codes.iter().map(|(code, meaning)| (code.as_str(), *meaning)), &mut out)?;
            terms("FILES", FILES, &mut out)?;
        } else {
            section("EXIT STATUS", "0 on success; usher(8) has the other codes.", &mut out)?;
        }
        terms("EXAMPLES", known.map(|page| page.examples).unwrap_or_default().iter().copied(), &mut out)?;
        let also: Vec<String> = also.iter().map(|name| format!("{name}({SECTION})")).collect();
        section("SEE ALSO", &also.join(", "), &mut out)
    })();
    rendered.expect("memory takes every write");
    out
}

fn paragraphs(texts: &[&str], out: &mut dyn Write) -> io::Result<()> {
    let mut roff = Roff::new();
    for text in texts {
        roff.control("PP", []).text([roman(*text)]);
    }
    roff.to_writer(out)
}

fn section(title: &str, text: &str, out: &mut dyn Write) -> io::Result<()> {
    Roff::new().control("SH", [title]).text([roman(text)]).to_writer(out)
}

/// A list of terms with their meanings; nothing if it is empty.
fn terms<'a>(title: &str, terms: impl IntoIterator<Item = (&'a str, &'a str)>, out: &mut dyn Write) -> io::Result<()> {
    let mut roff = Roff::new();
    let mut terms = terms.into_iter().peekable();
    if terms.peek().is_some() {
        roff.control("SH", [title]);
    }
    for (term, meaning) in terms {
        roff.control("TP", []).text([bold(term)]).text([roman(meaning)]);
    }
    roff.to_writer(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_manual_pages_match() {
        let pages = pages();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for page in PAGES.iter().filter(|page| page.command != "usher") {
            assert!(names.contains(&format!("usher-{}", page.command).as_str()), "{}", page.command);
        }
        for (name, page) in &pages {
            let text = String::from_utf8(page.clone()).unwrap();
            for title in [".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION", ".SH \"EXIT STATUS\"", ".SH \"SEE ALSO\""] {
                assert!(text.contains(title), "{name}: {title}\n{text}");
            }
            assert!(!text.contains("take\\-over"), "{name}: what is hidden is in no manual");
        }
        assert!(names.contains(&"usher-run") && !names.contains(&"usher-help"), "{names:?}");
    }
}

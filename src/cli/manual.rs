//! `usher completions` and `usher man`: generated from the definitions of the commands.
//!
//! Options and their texts come from clap; description, examples and exit codes from `pages`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::pages::Page;
use super::{OK, output};

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
    clap_complete::generate(arguments.shell, &mut super::command(), "usher", &mut script);
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
    let mut command = super::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add_pages(&command, "", &mut pages);
    pages
}

/// Those of a command, and of the commands that belong to it.
fn add_pages(command: &clap::Command, path: &str, pages: &mut Vec<(String, Vec<u8>)>) {
    let whole = path.is_empty();
    let title = if whole { "usher".to_owned() } else { format!("usher-{}", path.replace(' ', "-")) };
    let parts: Vec<_> = command.get_subcommands().filter(|part| !part.is_hide_set()).collect();
    let below =
        |part: &clap::Command| if whole { part.get_name().to_owned() } else { format!("{path} {}", part.get_name()) };
    let also = parts.iter().map(|part| format!("usher-{}", below(part).replace(' ', "-")));
    let also: Vec<String> = (!whole).then(|| "usher".to_owned()).into_iter().chain(also).collect();
    let known = Page::of(if whole { "usher" } else { path });
    pages.push((title.clone(), page(command.clone().after_help(None::<&str>), known, title, &also)));
    for part in parts {
        add_pages(part, &below(part), pages);
    }
}

fn page(command: clap::Command, known: Option<&Page>, title: String, also: &[String]) -> Vec<u8> {
    let has_parts = command.has_subcommands();
    let has_options = command.get_arguments().any(|argument| !argument.is_hide_set());
    let is_whole = title == "usher";
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
        if has_parts {
            man.render_subcommands_section(&mut out)?;
        }
        let codes = known.map(Page::exit_codes).unwrap_or_default();
        let codes: Vec<_> = codes.iter().map(|(code, meaning)| (code.to_string(), *meaning)).collect();
        terms("EXIT STATUS", codes.iter().map(|(code, meaning)| (code.as_str(), *meaning)), &mut out)?;
        if is_whole {
            terms("FILES", FILES, &mut out)?;
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
    use std::collections::BTreeMap;

    use super::super::pages::{EXIT_CODES, PAGES};
    use super::*;

    /// Every command that is shown, with those that belong to others.
    fn commands() -> Vec<String> {
        fn add(command: &clap::Command, path: &str, all: &mut Vec<String>) {
            for part in command.get_subcommands().filter(|part| !part.is_hide_set()) {
                let name = format!("{path} {}", part.get_name()).trim().to_owned();
                add(part, &name, all);
                all.push(name);
            }
        }
        let mut all = vec!["usher".to_owned()];
        add(&super::super::command(), "", &mut all);
        all.sort();
        all
    }

    #[test]
    fn every_command_has_a_page_with_examples_and_exit_codes() {
        let mut known: Vec<_> = PAGES.iter().map(|page| page.command.to_owned()).collect();
        known.sort();
        assert_eq!(known, commands());
        for page in PAGES {
            assert!(!page.paragraphs.is_empty() && !page.examples.is_empty(), "{}", page.command);
            assert!(page.exit_codes().iter().any(|(code, _)| *code == OK), "{}", page.command);
            for (code, _) in page.exit_codes() {
                assert!(EXIT_CODES.iter().any(|(known, _)| *known == code), "{}: {code}", page.command);
            }
        }
        let pages = pages();
        for (name, page) in &pages {
            let text = String::from_utf8(page.clone()).unwrap();
            for title in [
                ".SH NAME",
                ".SH SYNOPSIS",
                ".SH DESCRIPTION",
                ".SH \"EXIT STATUS\"",
                ".SH EXAMPLES",
                ".SH \"SEE ALSO\"",
            ] {
                assert!(text.contains(title), "{name}: {title}\n{text}");
            }
            assert!(!text.contains("take\\-over"), "{name}: what is hidden is in no manual");
        }
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.contains(&"usher-run") && names.contains(&"usher-backends-drain"), "{names:?}");
        assert!(!names.contains(&"usher-help"), "{names:?}");
    }

    #[test]
    fn examples_are_commands_that_exist() {
        for (example, _) in PAGES.iter().flat_map(|page| page.examples) {
            let command = example.split(['|', '<', '>', '&']).next().unwrap();
            let parsed = super::super::command().try_get_matches_from(command.split_whitespace());
            assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
        }
    }

    /// Those that write a document of a format of their own, or serve, and those that only hold others.
    const WITHOUT_JSON: [&str; 9] =
        ["usher", "run", "init", "schema", "import-users", "completions", "man", "demo", "cache"];

    #[test]
    fn every_command_can_answer_in_json() {
        let mut command = super::super::command();
        command.build();
        for name in commands().iter().filter(|name| !WITHOUT_JSON.contains(&name.as_str())) {
            let found = name.split(' ').fold(&command, |command, part| command.find_subcommand(part).unwrap());
            assert!(found.get_arguments().any(|argument| argument.get_long() == Some("json")), "{name}");
        }
    }

    #[test]
    fn help_has_what_the_page_has() {
        let mut command = super::super::command();
        command.build();
        let backends = command.find_subcommand_mut("backends").unwrap();
        let help = backends.find_subcommand_mut("drain").unwrap().render_help().to_string();
        for part in ["Examples:\n  usher backends drain server3 ", "Exit codes: 0 logins are refused from now on; 1 "] {
            assert!(help.contains(part), "{part}\n{help}");
        }
    }

    #[test]
    fn manual_of_the_control_socket_has_the_same_exit_codes() {
        let page = include_str!("../../docs/control.md");
        let rows = page.lines().filter_map(|line| {
            let (code, meaning) = line.strip_prefix("| ")?.split_once(" | ")?;
            Some((code.parse::<u8>().ok()?, meaning.trim_end_matches(" |").to_owned()))
        });
        let rows: BTreeMap<_, _> = rows.collect();
        let known = EXIT_CODES.iter().map(|(code, meaning)| (*code, (*meaning).to_owned()));
        assert_eq!(rows, known.collect());
    }
}

//! `usher explain --all`: the routing of every user, as a table, CSV or JSON, and what differs from an nginx
//! recipe. Rows are written as they are found.

use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicUsize;

use serde::Serialize;

use super::import_users::{backend, check_names};
use super::{FAILED, NO_INPUT, OK, UNAVAILABLE, USAGE, fail, output, progress};
use crate::config::{self, Config};
use crate::diagnose::table::{Csv, Shown, ShownJson, thousands};
use crate::login::realms::Realms;
use crate::migrate::explain_all::{Against, AllUsers, ListingError, Row, Totals};
use crate::migrate::nginx::Recipe;

#[derive(Debug, clap::Args)]
#[group(id = "all_users")]
pub(super) struct Args {
    /// With --all: these login names, one a line, instead of the whole directory; - is standard input
    #[arg(long, value_name = "FILE", requires = "all")]
    users: Option<PathBuf>,
    /// With --all: CSV instead of a table
    #[arg(long, requires = "all", conflicts_with = "json")]
    csv: bool,
    /// With --all: compare with the users.txt of an nginx recipe, one name a line
    #[arg(long, value_name = "USERS.TXT", requires_all = ["all", "backend"])]
    against: Option<PathBuf>,
    /// With --against: the backend of the users in the file
    #[arg(long, value_name = "NAME", requires = "against")]
    backend: Option<String>,
    /// With --against: the backend of all other users [default: routing.default]
    #[arg(long, value_name = "NAME", requires = "against")]
    default: Option<String>,
    /// With --all: the attribute that holds the login name; what the filter compares with it by default
    #[arg(long, value_name = "ATTRIBUTE", requires = "all", value_parser = config::attribute)]
    login_attribute: Option<String>,
}

pub(super) async fn explain(config: &Config, realms: &Realms, arguments: &Args, json: bool) -> ExitCode {
    let read = |path: &Path| {
        Recipe::read(path).map_err(|error| fail(NO_INPUT, format!("{} cannot be read: {error}", path.display())))
    };
    let prepared = (|| {
        let against = against(config, arguments, read)?;
        let users = arguments.users.as_deref().map(read).transpose()?;
        if users.is_none() {
            check_names(realms.all(), arguments.login_attribute.as_deref())?;
        }
        Ok((against, users))
    })();
    let (against, users) = match prepared {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    let format = if json {
        Format::Json
    } else if arguments.csv {
        Format::Csv
    } else {
        Format::Table
    };
    let done = AtomicUsize::new(0);
    let (against, done) = (against.as_ref(), &done);
    let name_attribute = arguments.login_attribute.as_deref();
    let all_users = AllUsers { config, realms, name_attribute, against, done };
    let mut sheet = Sheet::new(format, against.is_some());
    let asked = async {
        let mut row = |row: &Row<'_>| kept(sheet.row(row));
        match &users {
            Some(names) => all_users.of_names(names, &mut row).await,
            None => all_users.of_directory(&mut row).await,
        }
    };
    let run = progress::watched(done, "users", true, asked).await;
    match run.and_then(|totals| kept(sheet.end(&totals)).then_some(totals).ok_or(ListingError::OutputClosed)) {
        Ok(totals) => ExitCode::from(if totals.refusals.is_empty() && totals.differences == 0 { OK } else { FAILED }),
        Err(error @ ListingError::Directory(_)) => {
            drop(sheet);
            fail(UNAVAILABLE, format!("the list is incomplete: {error}"))
        }
        // Such as `| head`: nothing is left to be said to.
        Err(ListingError::OutputClosed) => ExitCode::from(FAILED),
    }
}

/// Whether it was written.
fn kept(written: io::Result<()>) -> bool {
    let is_written = written.is_ok();
    output::note(written);
    is_written
}

/// What to compare with.
fn against(
    config: &Config,
    arguments: &Args,
    read: impl Fn(&Path) -> Result<Recipe, ExitCode>,
) -> Result<Option<Against>, ExitCode> {
    let (Some(file), Some(named)) = (&arguments.against, &arguments.backend) else { return Ok(None) };
    let Some(default) = arguments.default.as_ref().or(config.routing.default.as_ref()) else {
        return Err(fail(USAGE, "--default is required: the backend of all users that are not in the file"));
    };
    let backend_of = |given, argument| backend(config, given, argument).map(|backend| backend.name.clone());
    let (backend, default) = (backend_of(named, "--backend")?, backend_of(default, "--default")?);
    Ok(Some(Against { recipe: read(file)?, backend, default }))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Table,
    Csv,
    Json,
}

/// Where rows are written to.
struct Sheet {
    format: Format,
    /// Whether there is a recipe: a table then has what differs alone.
    compares: bool,
    rows: usize,
    out: BufWriter<Stdout>,
    /// Whether the output is a terminal.
    watched: bool,
}

/// A row as JSON.
#[derive(Serialize)]
struct Shape<'a> {
    login: &'a str,
    dn: Option<&'a str>,
    mail_host: &'a [String],
    backend: Option<&'a str>,
    by_default: bool,
    backend_login: Option<&'a str>,
    result: &'a str,
    explanation: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    differs: Option<bool>,
}

impl Sheet {
    fn new(format: Format, compares: bool) -> Self {
        let watched = io::stdout().is_terminal();
        Self { format, compares, rows: 0, out: BufWriter::new(io::stdout()), watched }
    }

    fn row(&mut self, row: &Row<'_>) -> io::Result<()> {
        let Row { login, verdict, expected } = row;
        let goal = verdict.goal.as_ref().ok();
        let (by_default, backend_login) = (goal.is_some_and(|goal| goal.by_default), goal.map(|goal| &*goal.login));
        let (dn, backend) = (verdict.dn.as_deref(), verdict.backend());
        if self.format == Format::Table && self.compares && !row.differs() {
            return Ok(());
        }
        let first = self.rows == 0;
        self.rows += 1;
        match self.format {
            Format::Table => {
                let expected = expected.unwrap_or_default();
                let mail_hosts = verdict.mail_hosts.join(" ");
                if first {
                    self.line(["LOGIN", "BACKEND", "EXPECTED", "RESULT", "MAIL HOST", "ENTRY"])?;
                }
                let dn = dn.unwrap_or_default();
                self.line([login, backend.unwrap_or("-"), expected, verdict.label(), &mail_hosts, dn])?;
            }
            Format::Csv => {
                if first {
                    self.csv_head()?;
                }
                let mail_hosts = verdict.mail_hosts.join(" ");
                let fields = [
                    login.as_str(),
                    dn.unwrap_or_default(),
                    &mail_hosts,
                    backend.unwrap_or_default(),
                    if by_default { "yes" } else { "no" },
                    backend_login.unwrap_or_default(),
                    verdict.label(),
                    &verdict.words,
                    expected.unwrap_or_default(),
                    if row.differs() { "yes" } else { "no" },
                ];
                let fields = if self.compares { fields.as_slice() } else { fields.get(..8).unwrap_or_default() };
                write!(self.out, "{}", Csv(fields))?;
            }
            Format::Json => {
                let (mail_host, result, explanation) = (&verdict.mail_hosts, verdict.label(), &verdict.words);
                let (expected, differs) = (*expected, expected.map(|_| row.differs()));
                #[rustfmt::skip]
                let shape = Shape { login, dn, mail_host, backend, by_default, backend_login, result, explanation, expected, differs };
                self.out.write_all(if first { b"{\"users\": [\n" } else { b",\n" })?;
                write!(self.out, "{}", ShownJson(&serde_json::to_string(&shape)?))?;
            }
        }
        if self.watched { self.out.flush() } else { Ok(()) }
    }

    fn csv_head(&mut self) -> io::Result<()> {
        let own = "login,dn,mail_host,backend,by_default,backend_login,result,explanation";
        writeln!(self.out, "{own}{}", if self.compares { ",expected,differs" } else { "" })
    }

    /// A line of the table; its last column may be as long as it is.
    fn line(&mut self, fields: [&str; 6]) -> io::Result<()> {
        let [login, backend, expected, result, mail_host, dn] = fields.map(|field| Shown(field).to_string());
        write!(self.out, "{login:<28} {backend:<14} ")?;
        if self.compares {
            write!(self.out, "{expected:<14} ")?;
        }
        writeln!(self.out, "{result:<20} {mail_host:<20} {dn}")
    }

    /// The counts: behind a table, in a JSON document, beside CSV.
    fn end(&mut self, totals: &Totals) -> io::Result<()> {
        match self.format {
            Format::Table => {
                if self.rows > 0 {
                    writeln!(self.out)?;
                }
                summary(&mut self.out, totals, self.compares)?;
            }
            Format::Csv => {
                if self.rows == 0 {
                    self.csv_head()?;
                }
                self.out.flush()?;
                summary(&mut io::stderr().lock(), totals, self.compares)?;
            }
            Format::Json => {
                self.out.write_all(if self.rows == 0 { b"{\"users\": [],\n" } else { b"\n],\n" })?;
                // The counts' own braces would close what is open.
                let counts = serde_json::to_string(totals)?;
                let counts = counts.strip_prefix('{').unwrap_or(&counts).replacen("\"users\"", "\"total\"", 1);
                writeln!(self.out, "{counts}")?;
            }
        }
        self.out.flush()
    }
}

fn summary(out: &mut impl Write, totals: &Totals, compares: bool) -> io::Result<()> {
    writeln!(out, "{:>9}  {}", thousands(totals.users), if totals.users == 1 { "user" } else { "users" })?;
    for (backend, number) in &totals.backends {
        writeln!(out, "{:>9}  to {}", thousands(*number), Shown(backend))?;
    }
    for (reason, number) in &totals.refusals {
        writeln!(out, "{:>9}  refused: {reason}", thousands(*number))?;
    }
    if compares {
        writeln!(out, "{:>9}  {} from the recipe", thousands(totals.differences), differ(totals.differences))?;
    }
    Ok(())
}

fn differ(number: usize) -> &'static str {
    if number == 1 { "differs" } else { "differ" }
}

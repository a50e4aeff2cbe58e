//! `usher import-users`: the users.txt of an nginx recipe as LDIF. Prints; changes nothing.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicUsize;

use super::directories;
use super::{FAILED, NO_INPUT, OK, UNAVAILABLE, USAGE, count, fail, fail_config, output, progress};
use crate::config::{self, Config, Find};
use crate::login::realms::RealmCore;
use crate::migrate::import::{Asked, Hosts, Import};
use crate::migrate::ldif::{Replace, comment};
use crate::migrate::nginx::Recipe;
use crate::proto::ldap::template::{Template, TemplatePart};

/// What most directories call a login name.
const USUAL_LOGIN: &str = "uid";
/// `mail_host_attribute` where nothing is configured.
const USUAL_HOST: &str = "mailHost";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The recipe's users.txt, one name a line; - is standard input
    #[arg(value_name = "USERS.TXT")]
    file: PathBuf,
    /// The directory that gets the LDIF, where there are several
    #[arg(long, value_name = "NAME")]
    directory: Option<String>,
    /// The backend of the users in the file: its name, or a value of the mail host attribute
    #[arg(long, value_name = "NAME")]
    backend: String,
    /// The backend of all other users [default: routing.default]
    #[arg(long, value_name = "NAME")]
    default: Option<String>,
    /// Write the default for all users that are not in the file and have no mail host
    #[arg(long)]
    write_default: bool,
    /// The base DN of the users; directory.base if it is not given
    #[arg(long, value_name = "DN", value_parser = config::base_dn)]
    base: Option<String>,
    /// The attribute that holds the login name; what the filter compares with it if it is not given
    #[arg(long, value_name = "ATTRIBUTE", value_parser = config::attribute)]
    login_attribute: Option<String>,
    /// The attribute to set; directory.mail_host_attribute if it is not given
    #[arg(long, value_name = "ATTRIBUTE", value_parser = config::attribute)]
    mail_host_attribute: Option<String>,
    /// Query no directory: build each DN from this, such as "uid={login},ou=people,dc=example,dc=com"
    #[arg(long, value_name = "TEMPLATE", value_parser = config::dn_template)]
    dn: Option<Template>,
    /// With --dn: all login names, one per line, to find users that the recipe's strpos routed elsewhere
    #[arg(long, value_name = "FILE", requires = "dn")]
    all_users: Option<PathBuf>,
}

pub(super) async fn import_users(file: &Path, arguments: &Args) -> ExitCode {
    let recipe = match read(&arguments.file) {
        Ok(recipe) => recipe,
        Err(code) => return code,
    };
    let template = match &arguments.dn {
        Some(template) => Some(template.clone()),
        // Without a configuration there is no directory to ask; where the users are is enough.
        None if !file.exists() => match &arguments.base {
            Some(base) => Some(template_below(base, arguments.login_attribute.as_deref().unwrap_or(USUAL_LOGIN))),
            None => {
                let words = "without a configuration give --base, or --dn \"uid={login},ou=people,dc=example,dc=com\"";
                return fail(USAGE, format!("{}: no such file; {words}", file.display()));
            }
        },
        None => None,
    };
    let Some(template) = template else { return online(file, arguments, &recipe).await };
    let all_users = match arguments.all_users.as_deref().map(read).transpose() {
        Ok(all_users) => all_users,
        Err(code) => return code,
    };
    let hosts = Hosts { backend: arguments.backend.clone(), default: arguments.default.clone() };
    let import = Import::offline(&recipe, &template, &hosts, all_users.as_ref());
    let attribute = arguments.mail_host_attribute.as_deref().unwrap_or(USUAL_HOST);
    finish(&import, attribute, arguments, "no directory was queried: ldapmodify reports DNs that do not exist")
}

fn read(path: &Path) -> Result<Recipe, ExitCode> {
    Recipe::read(path).map_err(|error| fail(NO_INPUT, format!("{} cannot be read: {error}", path.display())))
}

/// `uid={login},BASE`.
fn template_below(base: &str, attribute: &str) -> Template {
    let text = |text: String| TemplatePart::Text(text);
    let behind = if base.is_empty() { String::new() } else { format!(",{base}") };
    Template { parts: vec![text(format!("{attribute}=")), TemplatePart::Login, text(behind)] }
}

async fn online(file: &Path, arguments: &Args, recipe: &Recipe) -> ExitCode {
    let mut config = match config::load(file) {
        Ok(config) => config,
        Err(mistakes) => return fail_config(&mistakes.problems),
    };
    if let Some(attribute) = &arguments.mail_host_attribute {
        for directory in &mut config.directories {
            directory.mail_host_attribute.clone_from(attribute);
        }
    }
    let at = match place(&config, arguments.directory.as_deref()) {
        Ok(at) => at,
        Err(code) => return code,
    };
    if let Some(given) = &arguments.base
        && let Some(Find::Search { base, .. } | Find::Principal { base, .. }) =
            config.directories.get_mut(at).map(|directory| &mut directory.find)
    {
        base.clone_from(given);
    }
    let realms = match directories::open(&config) {
        Ok(realms) => realms,
        Err(code) => return code,
    };
    let default = arguments.default.as_ref().or(config.routing.default.as_ref());
    let hosts = host(&config, &arguments.backend, "--backend").and_then(|backend| {
        let default = default.map(|name| host(&config, name, "--default")).transpose()?;
        Ok(Hosts { backend, default })
    });
    let hosts = match hosts {
        Ok(hosts) => hosts,
        Err(code) => return code,
    };
    let attribute = arguments.login_attribute.as_deref();
    let Some(realm) = realms.all().get(at) else { return fail(USAGE, "no directory is configured") };
    if let Err(code) = check_names([realm], attribute) {
        return code;
    }
    let done = AtomicUsize::new(0);
    let asked = Import::online(
        recipe,
        (&config, Asked { realms: &realms, realm }, attribute),
        &hosts,
        arguments.write_default,
        &done,
    );
    match progress::watched(&done, "entries read", false, asked).await {
        Ok(import) => finish(&import, &realm.settings.mail_host_attribute, arguments, ""),
        Err(error) => fail(UNAVAILABLE, format!("nothing is printed: {error}")),
    }
}

/// Which directory gets the LDIF.
fn place(config: &Config, named: Option<&str>) -> Result<usize, ExitCode> {
    let names = || config.directories.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
    match (named, config.directories.as_slice()) {
        (None, [_]) => Ok(0),
        (None, _) => Err(fail(USAGE, format!("--directory is required: the one that gets the LDIF, of {}", names()))),
        (Some(name), all) => all.iter().position(|one| one.name == name).ok_or_else(|| {
            fail(USAGE, format!("--directory: the configuration has no directory {name}; it has {}", names()))
        }),
    }
}

/// Checks that the argument or the settings determine the attribute that names users.
pub(super) fn check_names<'a>(
    realms: impl IntoIterator<Item = &'a RealmCore>,
    attribute: Option<&str>,
) -> Result<(), ExitCode> {
    let lacks = |realm: &&RealmCore| realm.directory().users().is_none_or(|users| !users.determines_names());
    if attribute.is_none()
        && let Some(realm) = realms.into_iter().find(lacks)
    {
        let key = &realm.settings.key;
        let words = format!("{key}.filter does not determine the attribute of the login name: give --login-attribute");
        return Err(fail(USAGE, words));
    }
    Ok(())
}

/// The value of the mail host attribute that means this backend.
fn host(config: &Config, given: &str, argument: &str) -> Result<String, ExitCode> {
    let backend = backend(config, given, argument)?;
    let is_value = backend.hosts.contains(&config::host_key(given));
    Ok(if is_value { given.to_owned() } else { backend.hosts.first().cloned().unwrap_or_else(|| given.to_owned()) })
}

/// The backend of this name, or with this among its hosts.
pub(super) fn backend<'a>(config: &'a Config, given: &str, argument: &str) -> Result<&'a config::Backend, ExitCode> {
    let backends = &config.routing.backends;
    let named = backends.iter().find(|backend| backend.name == given);
    let found = named.or_else(|| backends.iter().find(|backend| backend.hosts.contains(&config::host_key(given))));
    found.ok_or_else(|| {
        let names: Vec<_> = backends.iter().map(|backend| backend.name.as_str()).collect();
        fail(USAGE, format!("{argument}: the configuration has no backend {given}; it has {}", names.join(", ")))
    })
}

/// Prints the LDIF, and what is to be known beside it.
fn finish(import: &Import, attribute: &str, arguments: &Args, beside: &str) -> ExitCode {
    if let Err(code) = output::written(print(import, attribute, arguments), "the LDIF cannot be written") {
        return code;
    }
    for remark in &import.remarks {
        output::complaint(remark);
    }
    if import.without > 0 {
        let entries = if import.without == 1 { "entry" } else { "entries" };
        output::complaint(format_args!(
            "{} other {entries} without {attribute}: put `routing.default` into the configuration, or add \
             --write-default",
            import.without
        ));
    }
    if !beside.is_empty() {
        output::complaint(beside);
    }
    let problems = import.remarks.iter().filter(|remark| remark.is_problem()).count();
    let changes = count(import.changes.len(), "change");
    output::complaint(format_args!("{changes}, {} already right, {problems} to decide", import.settled));
    ExitCode::from(if problems == 0 && import.without == 0 { OK } else { FAILED })
}

fn print(import: &Import, attribute: &str, arguments: &Args) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    writeln!(out, "version: 1")?;
    let name = arguments.file.display().to_string();
    writeln!(out, "{}", comment(&format!("{attribute} of the users in {name}, for ldapmodify")))?;
    for change in &import.changes {
        write!(out, "{}", Replace { dn: &change.dn, attribute, value: &change.mail_host })?;
    }
    out.flush()
}

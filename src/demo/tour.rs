//! The tour: logs in through usher as mail clients do, and shows the result of each step; then moves
//! a user; then leaves everything running for the newcomer.
//!
//! Every line it prints with a tick was checked: `--once` turns that into an exit code. Passwords
//! are printed because these people exist nowhere else.

use std::fmt::{Arguments, Display};
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ldap3::{LdapConnAsync, LdapConnSettings, Mod};
use tokio::signal::unix::{SignalKind, signal};

use super::client::{Client, Door, converse, http_get};
use super::post::Service;
use super::scene::{CACHE_SECONDS, SERVERS, Scene};
use super::{ADMIN, ADMIN_PASSWORD};
use crate::base::labels::Label as _;
use crate::telemetry::labels::DecisionBasis;

/// How the demo is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    /// Stop after the self-check instead of staying up.
    pub once: bool,
}

const BOB: &str = "uid=bob,ou=people,dc=demo,dc=example";
const BOB_PASSWORD: &str = "builder";

/// What should come of a login.
enum Expect {
    /// It lands on this server.
    Lands(&'static str),
    /// It is refused with this response code (RFC 5530).
    Refused(&'static str),
}

/// One login of the tour.
struct Step {
    title: &'static str,
    door: Door,
    login: &'static str,
    password: &'static str,
    expect: Expect,
    /// Who should decide it, as `usher_decisions_total` says.
    by: &'static str,
}

/// The logins, in order: each one shows something new.
const STEPS: [Step; 6] = [
    Step {
        title: "alice",
        door: Door::Implicit,
        login: "alice",
        password: "wonderland",
        expect: Expect::Lands("server3"),
        by: "directory",
    },
    Step {
        title: "alice again",
        door: Door::Implicit,
        login: "alice",
        password: "wonderland",
        expect: Expect::Lands("server3"),
        by: "cache",
    },
    Step {
        title: "bob, by STARTTLS",
        door: Door::StartTls,
        login: "bob@demo.example",
        password: BOB_PASSWORD,
        expect: Expect::Lands("server4"),
        by: "directory",
    },
    Step {
        title: "bob, wrong password",
        door: Door::Implicit,
        login: "bob",
        password: "bilder",
        expect: Expect::Refused("AUTHENTICATIONFAILED"),
        by: "directory",
    },
    Step {
        title: "bob, same mistake",
        door: Door::Implicit,
        login: "bob",
        password: "bilder",
        expect: Expect::Refused("AUTHENTICATIONFAILED"),
        by: "negative",
    },
    Step {
        title: "carol, no mailHost",
        door: Door::Implicit,
        login: "carol",
        password: "singer",
        expect: Expect::Refused("CONTACTADMIN"),
        by: "directory",
    },
];

/// What is said in the other protocols, all of it at once, and what must be heard.
const OTHERS: [(&str, Service, &str, &str); 3] = [
    (
        "alice, by POP3",
        Service::Pop3,
        "USER alice\r\nPASS wonderland\r\nRETR 1\r\nQUIT\r\n",
        "Welcome to server3, alice",
    ),
    (
        "alice's filters",
        Service::ManageSieve,
        "AUTHENTICATE \"PLAIN\" \"AGFsaWNlAHdvbmRlcmxhbmQ=\"\r\nGETSCRIPT \"welcome\"\r\nLOGOUT\r\n",
        "# filters on server3",
    ),
    (
        "alice sends a mail",
        Service::Submission,
        "EHLO demo.example\r\nAUTH PLAIN AGFsaWNlAHdvbmRlcmxhbmQ=\r\nMAIL FROM:<alice@demo.example>\r\n\
         RCPT TO:<bob@demo.example>\r\nDATA\r\nSubject: hello\r\n\r\nHello Bob\r\n.\r\nQUIT\r\n",
        "server3 took the mail",
    ),
];

/// What the steps must have left in the metrics at the least: title, series, count.
const COUNTED: [(&str, &str, u64); 5] = [
    ("logins", "usher_logins_total{protocol=\"imap\",result=\"ok\"}", 4),
    ("wrong passwords", "usher_logins_total{protocol=\"imap\",result=\"wrong_password\"}", 2),
    ("no mailHost", "usher_logins_total{protocol=\"imap\",result=\"no_mail_host\"}", 1),
    ("directory decided", "usher_decisions_total{by=\"directory\"}", 4),
    ("cache decided", "usher_decisions_total{by=\"cache\"}", 1),
];

/// Runs the demo: 0 only if every check held and usher stopped in order.
pub(crate) async fn run(options: Options) -> ExitCode {
    let mut stage = Stage::new();
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup()))
    else {
        stage.failed("signals", "cannot be heard");
        return ExitCode::FAILURE;
    };
    let stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    };
    tokio::pin!(stop);

    // Dropping the unfinished tour ends its servers and deletes its folder.
    let mut scene = tokio::select! {
        scene = tour(&mut stage) => scene,
        () = &mut stop => return ExitCode::FAILURE,
    };
    if let (false, Some(running)) = (options.once, &mut scene) {
        invite(&mut stage, running);
        tokio::select! {
            () = &mut stop => stage.say(format_args!("\nStopping.")),
            _ = running.usher_ended() => stage.failed("usher", "ended by itself; its log is deleted with the demo"),
        }
    }
    if let Some(scene) = scene {
        match scene.end().await {
            Ok(status) if status.success() => stage.held("usher stops on SIGTERM", "with exit code 0", ""),
            Ok(status) => stage.failed("usher stops on SIGTERM", status),
            Err(error) => stage.failed("usher stops on SIGTERM", error),
        }
    }
    stage.verdict()
}

/// Everything up to the end of the self-check; `None` if the scene could not be set.
async fn tour(stage: &mut Stage) -> Option<Scene> {
    stage.head("usher demo: one address for all mailboxes; the directory routes each user");
    let scene = match Scene::set().await {
        Ok(scene) => scene,
        Err(error) => {
            stage.failed("the demo cannot start", error);
            return None;
        }
    };
    stage.head("Running, on this machine only");
    let Scene { ldap, servers, imaps, imap, .. } = &scene;
    stage.row("directory", format_args!("ldap://{ldap}"), "alice: server3, bob: server4, carol: no mailHost");
    for (name, server) in SERVERS.iter().zip(servers) {
        stage.row(name, format_args!("imaps://{}", server.imap), "a small mail server");
    }
    stage.row(
        "usher",
        format_args!("imaps://{imaps}"),
        format_args!("in front of both (STARTTLS: port {})", imap.port()),
    );

    stage.head("Logging in, always at usher's address");
    for step in &STEPS {
        match take(&scene, step).await {
            Ok((what, note)) => stage.held(step.title, what, note),
            Err(why) => stage.failed(step.title, why),
        }
    }

    stage.head("With a token of an identity provider in place of a password");
    match take_token(&scene).await {
        Ok((what, note)) => stage.held("alice, XOAUTH2", what, note),
        Err(why) => stage.failed("alice, XOAUTH2", why),
    }

    stage.head("The same for POP3, for filters (ManageSieve) and for sending");
    for (title, service, said, heard) in OTHERS {
        match converse(scene.door(service), Arc::clone(&scene.tls), said).await {
            Ok(answers) if answers.contains(heard) => stage.held(title, format_args!("\"{heard}\""), ""),
            Ok(answers) => stage.failed(title, format_args!("expected \"{heard}\", got: {}", answers.escape_debug())),
            Err(error) => stage.failed(title, error),
        }
    }

    stage.head("Moving bob: mailHost becomes server3, in the directory only");
    match move_bob(&scene, "server3").await {
        Ok((what, note)) => stage.held("bob moves", what, note),
        Err(why) => stage.failed("bob moves", why),
    }

    stage.head("What usher counted");
    for (title, series, least) in COUNTED {
        match counted(&scene, series, least).await {
            Ok(count) => stage.held(title, count, series),
            Err(why) => stage.failed(title, why),
        }
    }
    Some(scene)
}

/// Takes a step and says what came of it, or why that is not what should have.
async fn take(scene: &Scene, step: &Step) -> Result<(String, String), String> {
    let told = |error: io::Error| error.to_string();
    let before = metrics(scene).await.map_err(told)?;
    let start = Instant::now();
    let address = if step.door == Door::Implicit { scene.imaps } else { scene.imap };
    let mut client = Client::connect(address, Arc::clone(&scene.tls), step.door).await.map_err(told)?;
    let answer = client.login(step.login, step.password).await.map_err(told)?;
    let took = start.elapsed();
    let what = match step.expect {
        Expect::Lands(_) if !answer.is_ok() => return Err(format!("expected to get in, got: {}", answer.tagged)),
        Expect::Lands(server) => {
            let subject = client.subject().await.map_err(told)?;
            if subject != format!("Welcome to {server}, {}", step.login.split('@').next().unwrap_or_default()) {
                return Err(format!("expected to land on {server}, but the first mail says: {subject}"));
            }
            format!("landed on {server}, \"{subject}\"")
        }
        Expect::Refused(code) => {
            if !answer.tagged.starts_with(&format!("NO [{code}]")) {
                return Err(format!("expected NO [{code}], got: {}", answer.tagged));
            }
            // A refusal must leave the connection usable, so that a person can try again.
            if !client.command("NOOP").await.map_err(told)?.is_ok() {
                return Err("the connection was of no use after the refusal".to_owned());
            }
            format!("refused, NO [{code}]")
        }
    };
    client.logout().await;
    let after = metrics(scene).await.map_err(told)?;
    let decisions = |text: &str, by: &str| sample(text, &format!("usher_decisions_total{{by=\"{by}\"}}"));
    let bases = DecisionBasis::ALL.iter().map(|basis| basis.label());
    let deciders: Vec<_> = bases.filter(|by| decisions(&after, by) > decisions(&before, by)).collect();
    if deciders != [step.by] {
        return Err(format!("{what}, but expected the decision by {:?}, not {deciders:?}", step.by));
    }
    let by = match step.by {
        "cache" => "by the cache",
        "negative" => "by the cache of wrong passwords",
        _ => "by the directory",
    };
    Ok((what, format!("decided {by}, {:.1} ms", took.as_secs_f64() * 1e3)))
}

/// Logs in with alice's token, without a name: the token says whose it is.
async fn take_token(scene: &Scene) -> Result<(String, String), String> {
    let told = |error: io::Error| error.to_string();
    let start = Instant::now();
    let mut client = Client::connect(scene.imaps, Arc::clone(&scene.tls), Door::Implicit).await.map_err(told)?;
    let message = STANDARD.encode(format!("user=\x01auth=Bearer {}\x01\x01", scene.token));
    let answer = client.command(&format!("AUTHENTICATE XOAUTH2 {message}")).await.map_err(told)?;
    let took = start.elapsed();
    if !answer.is_ok() {
        return Err(format!("expected to get in, got: {}", answer.tagged));
    }
    let subject = client.subject().await.map_err(told)?;
    client.logout().await;
    if subject != "Welcome to server3, alice" {
        return Err(format!("expected to land on server3, but the first mail says: {subject}"));
    }
    let note = format!("verified by the issuer's key, {:.1} ms", took.as_secs_f64() * 1e3);
    Ok((format!("landed on server3, \"{subject}\""), note))
}

/// Changes bob's mailHost over LDAP and logs in until bob is routed there: as soon as usher's cache
/// has forgotten the old decision.
async fn move_bob(scene: &Scene, server: &str) -> Result<(String, String), String> {
    let patience = Duration::from_secs(CACHE_SECONDS + 10);
    let wanted = format!("Welcome to {server}, bob");
    let moving = async {
        change_mail_host(scene, server).await.map_err(|error| error.to_string())?;
        let start = Instant::now();
        loop {
            let told = |error: io::Error| error.to_string();
            let mut client =
                Client::connect(scene.imaps, Arc::clone(&scene.tls), Door::Implicit).await.map_err(told)?;
            let answer = client.login("bob", BOB_PASSWORD).await.map_err(told)?;
            if !answer.is_ok() {
                return Err(format!("was refused: {}", answer.tagged));
            }
            let subject = client.subject().await.map_err(told)?;
            client.logout().await;
            if subject == wanted {
                let note = format!(
                    "after {:.1} s; this cache keeps decisions {CACHE_SECONDS} s",
                    start.elapsed().as_secs_f64()
                );
                return Ok((format!("landed on {server}, \"{subject}\""), note));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(patience, moving).await.unwrap_or_else(|_| Err(format!("did not land on {server} in time")))
}

/// The change as any LDAP tool would make it.
async fn change_mail_host(scene: &Scene, server: &str) -> Result<(), ldap3::LdapError> {
    let settings = LdapConnSettings::new().set_conn_timeout(Duration::from_secs(5));
    let (connection, mut ldap) = LdapConnAsync::with_settings(settings, &format!("ldap://{}", scene.ldap)).await?;
    ldap3::drive!(connection);
    ldap.simple_bind(ADMIN, ADMIN_PASSWORD).await?.success()?;
    ldap.modify(BOB, vec![Mod::Replace("mailHost", [server].into())]).await?.success()?;
    ldap.unbind().await
}

async fn metrics(scene: &Scene) -> io::Result<String> {
    http_get(scene.admin, "/metrics").await
}

/// A counter that must have reached `least`. usher may count a login a moment after its answer.
async fn counted(scene: &Scene, series: &str, least: u64) -> Result<u64, String> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let count = sample(&metrics(scene).await.map_err(|error| error.to_string())?, series).unwrap_or(0);
        if count >= least {
            return Ok(count);
        }
        if Instant::now() > deadline {
            return Err(format!("expected {least} or more, not {count}, in {series}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A counter's value in Prometheus' text.
fn sample(text: &str, series: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

/// Commands to copy.
fn invite(stage: &mut Stage, scene: &Scene) {
    let Scene { ldap, imaps, imap, pop3s, submissions, sieves, admin, .. } = scene;
    let file = |name: &str| scene.file(name).display().to_string();
    let (ca, config, program) = (file("ca.pem"), file("usher.yaml"), scene.program.display());
    stage.head("Yours now, until Ctrl-C (alice: wonderland, bob: builder, carol: singer)");
    for (title, command) in [
        ("read alice's mail", format!("curl --cacert {ca} -u alice:wonderland 'imaps://{imaps}/INBOX;MAILINDEX=1'")),
        ("read bob's mail", format!("curl --cacert {ca} -u bob:builder 'imaps://{imaps}/INBOX;MAILINDEX=1'")),
        ("fetch it by POP3", format!("curl --cacert {ca} -u alice:wonderland 'pop3s://{pop3s}/1'")),
        (
            "send one, which goes nowhere",
            format!(
                "printf 'Subject: hello\\n\\nHello Bob\\n' | curl --cacert {ca} -u alice:wonderland --mail-from \
                 alice@demo.example --mail-rcpt bob@demo.example -T - 'smtps://{submissions}'"
            ),
        ),
        (
            "read alice's filters",
            format!(
                "printf 'AUTHENTICATE \"PLAIN\" \"AGFsaWNlAHdvbmRlcmxhbmQ=\"\\r\\nGETSCRIPT \"welcome\"\\r\\nLOGOUT\\r\\n' | \
                 openssl s_client -quiet -ign_eof -verify_return_error -CAfile {ca} -connect {sieves}"
            ),
        ),
        (
            "speak IMAP yourself: a LOGIN alice wonderland",
            format!("openssl s_client -quiet -crlf -verify_return_error -CAfile {ca} -connect {imaps}"),
        ),
        (
            "the same by STARTTLS",
            format!("openssl s_client -quiet -crlf -starttls imap -verify_return_error -CAfile {ca} -connect {imap}"),
        ),
        ("sessions", format!("{program} sessions --config {config}")),
        ("where bob goes, and why", format!("{program} explain --config {config} bob")),
        (
            "move bob back (ldap-utils)",
            format!(
                "printf 'dn: {BOB}\\nchangetype: modify\\nreplace: mailHost\\nmailHost: server4\\n' \
                 | ldapmodify -x -H ldap://{ldap} -D {ADMIN} -w {ADMIN_PASSWORD}"
            ),
        ),
        ("the numbers", format!("curl -s http://{admin}/metrics | grep ^usher_")),
        ("usher's configuration", format!("less {config}")),
        ("usher's log", format!("tail -f {}", file("usher.log"))),
    ] {
        stage.command(title, &command);
    }
}

/// The output of the tour: aligned lines, coloured only on a terminal.
struct Stage {
    colour: bool,
    held: usize,
    failed: Vec<String>,
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";

impl Stage {
    fn new() -> Self {
        // https://no-color.org: set and not empty means no colour, also on a terminal.
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: io::stdout().is_terminal() && !unwanted, held: 0, failed: Vec::new() }
    }

    fn paint(&self, code: &str, text: impl Display) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// Prints a line. A reader that went away (`| head`) must not end the servers it left.
    fn say(&mut self, line: Arguments<'_>) {
        let _ = writeln!(io::stdout(), "{line}");
    }

    fn head(&mut self, text: &str) {
        let text = self.paint(BOLD, text);
        self.say(format_args!("\n{text}"));
    }

    fn row(&mut self, name: &str, address: impl Display, note: impl Display) {
        let note = self.paint(DIM, note);
        let address = address.to_string();
        self.say(format_args!("    {name:<22}  {address:<45}  {note}"));
    }

    fn held(&mut self, title: &str, what: impl Display, note: impl Display) {
        self.held += 1;
        let (tick, note, what) = (self.paint(GREEN, "ok"), self.paint(DIM, note), what.to_string());
        self.say(format_args!("{}", format!("{tick}  {title:<22}  {what:<45}  {note}").trim_end()));
    }

    fn failed(&mut self, title: &str, why: impl Display) {
        let cross = self.paint(RED, "NO");
        self.say(format_args!("{cross}  {title:<22}  {why}"));
        self.failed.push(title.to_owned());
    }

    fn command(&mut self, title: &str, command: &str) {
        let title = self.paint(DIM, format_args!("# {title}"));
        self.say(format_args!("{title}\n{command}"));
    }

    fn verdict(&mut self) -> ExitCode {
        if self.failed.is_empty() {
            let text = self.paint(GREEN, format_args!("All {} checks held.", self.held));
            self.say(format_args!("\n{text}"));
            return ExitCode::SUCCESS;
        }
        let total = self.failed.len() + self.held;
        let names = self.failed.join("; ");
        let text = self.paint(RED, format_args!("{} of {total} checks did not hold: {names}", self.failed.len()));
        self.say(format_args!("\n{text}"));
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_completely() {
        let text = "# HELP x\nusher_decisions_total{by=\"cache\"} 12\nusher_decisions_total{by=\"cache2\"} 7\n";
        assert_eq!(sample(text, "usher_decisions_total{by=\"cache\"}"), Some(12));
        assert_eq!(sample(text, "usher_decisions_total{by=\"directory\"}"), None);
    }

    #[test]
    fn steps_name_existing_deciders() {
        assert!(STEPS.iter().all(|step| DecisionBasis::ALL.iter().any(|basis| basis.label() == step.by)));
    }

    #[test]
    fn failed_step_fails_the_demo() {
        let mut stage = Stage::new();
        stage.held("a", "b", "c");
        assert_eq!(stage.verdict(), ExitCode::SUCCESS);
        stage.failed("a", "b");
        assert_eq!(stage.verdict(), ExitCode::FAILURE);
    }
}

//! What the commands say of themselves beyond their options: text, examples and exit codes, for `--help` and for the
//! manual pages alike.

use super::output::CLOSED_PIPE;
use super::{CONFIG, DATA, FAILED, NO_INPUT, NO_PERMISSION, NO_USER, OK, SOFTWARE, SYSTEM, UNAVAILABLE, USAGE};

/// Every exit code, with the one meaning that it has in all commands (sysexits.h).
pub(super) const EXIT_CODES: [(u8, &str); 12] = [
    (OK, "success, or the answer is yes"),
    (FAILED, "the answer is no, or only a part was done; standard error says why"),
    (USAGE, "the arguments are wrong, or are about something that is not configured"),
    (DATA, "the entry in the directory leads to no mail server, or is not as the command needs it"),
    (NO_INPUT, "a file that was named as input cannot be read"),
    (NO_USER, "nothing is known by this name: no such user, no such address, nothing cached"),
    (UNAVAILABLE, "a server, or the running usher, does not answer, or takes no logins now"),
    (SOFTWARE, "an internal error; the log has its place, please report it"),
    (SYSTEM, "the system refuses something, such as an address that cannot be bound"),
    (NO_PERMISSION, "not permitted: the control socket, or what the user wants (password, account, network, acting)"),
    (CONFIG, "the configuration has mistakes, or no control socket; standard error says which"),
    (CLOSED_PIPE, "the reader of standard output has closed it, as `| head` does"),
];

/// What a command says beyond its options.
pub(super) struct Page {
    /// The command, with the one that it belongs to: `backends drain`.
    pub command: &'static str,
    pub paragraphs: &'static [&'static str],
    /// Each with what it is for.
    pub examples: &'static [(&'static str, &'static str)],
    /// What an exit code means here, if more can be said than in general.
    pub codes: &'static [(u8, &'static str)],
    /// Whether it asks the running usher.
    pub asks_running: bool,
}

/// What every command that asks the running usher may exit with.
const RUNNING_CODES: &[(u8, &str)] = &[
    (USAGE, "the arguments are wrong"),
    (UNAVAILABLE, "usher does not run, or is shutting down"),
    (NO_PERMISSION, "the control socket may not be used"),
    (CONFIG, "the configuration has no control socket, or mistakes"),
];

impl Page {
    /// Of this command; nothing if it has none.
    pub(super) fn of(command: &str) -> Option<&'static Self> {
        PAGES.iter().find(|page| page.command == command)
    }

    /// What it may exit with, in order.
    pub(super) fn exit_codes(&self) -> Vec<(u8, &'static str)> {
        let more = if self.asks_running { RUNNING_CODES } else { &[] };
        let own = |code: u8| self.codes.iter().any(|(known, _)| *known == code);
        let mut codes: Vec<_> = self.codes.to_vec();
        codes.extend(more.iter().filter(|(code, _)| !own(*code)));
        codes.sort_by_key(|(code, _)| *code);
        codes
    }

    /// The end of the command's `--help`.
    pub(super) fn help(&self) -> String {
        let mut text = self.paragraphs.iter().map(|text| wrapped(text)).collect::<Vec<_>>().join("\n");
        text += "\nExamples:\n";
        let width = self.examples.iter().map(|(example, _)| example.len()).filter(|width| *width < 50).max();
        for (example, purpose) in self.examples {
            let width = width.unwrap_or_default();
            if example.len() > width {
                text += &format!("  {example}\n      {purpose}\n");
            } else {
                text += &format!("  {example:width$}  {purpose}\n");
            }
        }
        let codes = self.exit_codes().iter().map(|(code, meaning)| format!("{code} {meaning}")).collect::<Vec<_>>();
        text + "\n" + wrapped(&format!("Exit codes: {}.", codes.join("; "))).trim_end()
    }
}

/// Lines of a terminal.
fn wrapped(text: &str) -> String {
    const WIDTH: usize = 110;
    let (mut lines, mut line) = (String::new(), String::new());
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines += &line;
            lines.push('\n');
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    lines + &line + "\n"
}

/// Every command in the order of `usher --help`.
pub(super) const PAGES: &[Page] = &[
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
            ("usher explain alice@example.com", "whether alice could log in now, where she is routed, and why"),
        ],
        codes: &EXIT_CODES,
        asks_running: false,
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
        codes: &[
            (OK, "it was stopped"),
            (SOFTWARE, "a part that it needs failed repeatedly: the service manager starts it again"),
            (SYSTEM, "an address cannot be bound, or the user cannot be changed"),
            (CONFIG, "the configuration, or a file that it names, has mistakes"),
        ],
        asks_running: false,
    },
    Page {
        command: "init",
        paragraphs: &[
            "Writes a configuration with comments to standard output, which check accepts once the files that it names \
             exist. It asks nothing, contacts no server and writes no file; the next commands are said on standard \
             error.",
            "A backend is given once for each protocol that it serves; the port says which: 143 and 993 (IMAP), 110 and \
             995 (POP3), 587 and 465 (submission), 4190 (ManageSieve).",
        ],
        examples: &[
            (
                "usher init --ldap ldaps://ldap1.example.com --base ou=people,dc=example,dc=com \
                 --backend server3=server3.example.com:993 --certificate /etc/usher/fullchain.pem \
                 --key /etc/usher/privkey.pem > config.yaml",
                "one directory server, one mail server",
            ),
            (
                "usher init --ldap ldaps://ldap1.example.com --base ou=people,dc=example,dc=com \
                 --bind-dn cn=usher,ou=services,dc=example,dc=com --bind-password-file /etc/usher/ldap.password \
                 --backend server3=server3.example.com:993 --backend server4=server4.example.com:993 \
                 --certificate /etc/usher/fullchain.pem --key /etc/usher/privkey.pem > config.yaml",
                "with a service account and two mail servers",
            ),
        ],
        codes: &[(OK, "written"), (USAGE, "the arguments are wrong")],
        asks_running: false,
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
        codes: &[(OK, "written")],
        asks_running: false,
    },
    Page {
        command: "check",
        paragraphs: &[
            "Reads the configuration and the certificates, keys and passwords that it names, as run and reload do. \
             All mistakes are reported at once, each with file, line, key and what to do. Nothing is changed.",
            "With --connect it also connects to every directory server and mail server.",
        ],
        examples: &[
            ("usher check --config new.yaml && mv new.yaml /etc/usher/config.yaml", "install only a valid file"),
            ("usher check --connect --sample alice", "with the servers, and the lookup of one user"),
        ],
        codes: &[
            (OK, "no mistake; with --connect no server has a problem"),
            (USAGE, "the arguments are wrong"),
            (UNAVAILABLE, "a server has a problem"),
            (CONFIG, "the configuration has mistakes"),
        ],
        asks_running: false,
    },
    Page {
        command: "explain",
        paragraphs: &[
            "Shows what a login of this name meets now in the running usher (its cache, the state of the mail servers, \
             holds, locks, limits and the brake) and what a client would read, and what the directory says: the entry, its mail host and the backend, or the \
             reason of a refusal. If the configuration file differs from the one in force, there is a second verdict: that \
             after a reload. Without a running usher, and with --file-only, the file alone decides. No password is needed, \
             nothing is changed, and no limit counts it.",
            "The exit code is that of the first verdict; with --password-stdin, --certificate or --acting a refusal of \
             the second counts, too. If usher runs and does not answer, it is never 0. A token is judged by the file alone.",
            "With --all the list is that of the file and the directory; standard error names mail servers that take no \
             logins now, and says if the file is not the one in force.",
        ],
        examples: &[
            ("usher explain alice", "one user"),
            ("usher explain alice --from 192.0.2.7", "a login from this address"),
            ("usher explain --json alice", "the same for a program"),
            ("usher explain --password-stdin alice < password.txt", "also bind as alice"),
            ("usher explain --file-only --config new.yaml alice", "by a file that is not in force yet"),
            ("usher explain --all", "every user of the directory"),
        ],
        codes: &[
            (OK, "a login would reach its mail server"),
            (FAILED, "with --all: a user would be refused; with --fleet: a node would refuse the login"),
            (USAGE, "the arguments are wrong"),
            (DATA, "the entry leads to no mail server"),
            (NO_INPUT, "a list of users cannot be read"),
            (NO_USER, "no such user"),
            (UNAVAILABLE, "a server is down, drained, or the user is on hold"),
            (NO_PERMISSION, "the password, the account, the network, acting or, by a limit, the login is refused"),
            (CONFIG, "the configuration has mistakes, and usher does not run"),
        ],
        asks_running: false,
    },
    Page {
        command: "try",
        paragraphs: &[
            "Asks for the password, and the running usher logs in with it as a client behind TLS would: limits, directory, \
             mail server. Each phase is shown with its time and its server, then what the client would have read. The session \
             at the mail server is ended at once; nothing is relayed.",
            "It counts like every login, in limits, metrics and `usher history`; its line in the log has the caller's uid \
             (tried_by_uid). Without --from it comes from 127.0.0.1. Where standard input is no terminal, its first line is the \
             password.",
        ],
        examples: &[
            ("usher try alice", "by IMAP"),
            ("usher try alice --protocol pop3 --from 192.0.2.7", "by POP3, as from this address"),
            ("usher try alice --json < password.txt", "for a program"),
        ],
        codes: &[
            (OK, "the login succeeded"),
            (DATA, "the entry leads to no mail server"),
            (NO_INPUT, "no password was given"),
            (NO_USER, "no such user"),
            (UNAVAILABLE, "a server is down or drained, the user is on hold, or usher does not run"),
            (
                NO_PERMISSION,
                "the password, the account or the network is refused, a limit is reached, or the control \
                             socket may not be used",
            ),
        ],
        asks_running: true,
    },
    Page {
        command: "import-users",
        paragraphs: &["Writes LDIF to standard output and changes nothing; ldapmodify(1) reads it."],
        examples: &[(
            "usher import-users users.txt --backend server4 --default server3 > move.ldif",
            "users in the file to server4, all others to server3",
        )],
        codes: &[
            (OK, "the LDIF is complete"),
            (FAILED, "names are left that have no entry, or several"),
            (USAGE, "the arguments are wrong"),
            (NO_INPUT, "the file cannot be read"),
            (UNAVAILABLE, "the directory does not answer: the LDIF is incomplete"),
            (CONFIG, "the configuration has mistakes"),
        ],
        asks_running: false,
    },
    Page {
        command: "sessions",
        paragraphs: &["Lists the sessions of the running usher, oldest first."],
        examples: &[
            ("usher sessions --backend server3", "users on server3"),
            ("usher sessions --user alice", "alice, also under her other names"),
            ("usher sessions --client 192.0.2.0/24", "from one network"),
            ("usher sessions --older-than 1d --count=user", "users that stay for long, and how often"),
            ("usher sessions --count=backend,protocol", "how many are where"),
            ("usher sessions --fleet --user alice", "alice, at every node"),
        ],
        codes: &[(OK, "shown"), (FAILED, "shown, but a process of an upgrade or a node did not answer")],
        asks_running: true,
    },
    Page {
        command: "history",
        paragraphs: &[
            "The last 20 attempts of a user with their reasons, for those who cannot read the log. Attempts that are alike \
             and follow each other are one line with their number. usher keeps them in memory (34 MiB at most, users that have \
             not logged in for long are forgotten first), without passwords; a restart forgets them, and after an upgrade the \
             old process has its own until it ends.",
        ],
        examples: &[
            ("usher history alice", "why alice could not log in this morning"),
            ("usher history uid=alice,ou=people,dc=example,dc=com", "under all names that led to this entry"),
            ("usher history alice --json", "for a program"),
        ],
        codes: &[
            (OK, "shown"),
            (FAILED, "shown, but a process of an upgrade or a node did not answer"),
            (NO_USER, "no attempt is remembered under this name"),
        ],
        asks_running: true,
    },
    Page {
        command: "kick",
        paragraphs: &[
            "A session that is ended waits for a pause, three seconds at most, and the client is told in its protocol's \
             words to log in again. It may: a user that must stay out has to be disabled in the directory first, \
             and dropped from the cache here (`usher cache drop`). Without --over sessions end as fast as \
             drain.max_closes_per_second allows.",
        ],
        examples: &[
            ("usher kick --user alice", "alice, also under her other names"),
            ("usher kick --backend server3 --over 10m", "all sessions on server3, evenly over ten minutes"),
            ("usher kick --client 192.0.2.7 --dry-run", "the sessions that it would end"),
            ("usher kick --user alice --fleet", "alice, at every node; also at one that answers late"),
        ],
        codes: &[
            (OK, "the sessions are being ended"),
            (FAILED, "no session of this user, or a process of an upgrade or a node did not answer"),
        ],
        asks_running: true,
    },
    Page {
        command: "trace",
        paragraphs: &[
            "Shows the dialogues of chosen sessions with client and backend until the login is done, as they happen, \
             with TLS, the directory's answer and the route. Passwords are never shown: whatever is not known to be \
             harmless is the number of its bytes. Sessions that begin from now on are shown.",
            "Each line has the milliseconds since the session began, the session's id as in the log, the leg, and the \
             line. A reader that is too slow loses lines and is told how many; no login waits for it. The log has \
             a line of the beginning and of the end of a trace, with the caller's uid. Ctrl-C ends it, and so do a reload, \
             a drain and an upgrade.",
        ],
        examples: &[
            ("usher trace --user alice --for 10m", "alice, also under her other names"),
            ("usher trace --client 192.0.2.0/24", "everything from one network"),
            ("usher trace --backend server3 --json", "logins that go to server3, a JSON object a line"),
        ],
        codes: &[(OK, "its time was over"), (FAILED, "usher ended it")],
        asks_running: true,
    },
    Page {
        command: "backends",
        paragraphs: &[
            "A backend is up, down (none of its addresses takes logins), refusing (it refuses every login, or answers \
             none: its authentication is broken) or draining (`usher backends drain`). LOGINS are those under way there, \
             of as many as may be; ADDRESSES those in use, of all.",
        ],
        examples: &[
            ("usher backends", "one line for each"),
            ("usher backends --long", "every address and capability"),
            ("usher backends drain server3", "take one out of service"),
        ],
        codes: &[
            (OK, "all are up"),
            (FAILED, "one that is not draining is down or refusing, or a process of an upgrade did not answer"),
        ],
        asks_running: true,
    },
    Page {
        command: "backends drain",
        paragraphs: &[
            "Logins of its users are refused: \"Mail server is under maintenance, try again later\", with the \
             code that clients take for an outage. A user that is moved to another backend in the directory gets in there. \
             Its sessions are ended politely, oldest first. It stays so over `usher reload` and `usher upgrade`, until \
             `usher backends undrain`; a restart of usher forgets it. With --fleet every node does it, and the \
             fleet's store keeps it: a node that starts later does it, too, until `usher backends undrain --fleet`.",
        ],
        examples: &[
            ("usher backends drain server3", "as fast as drain.max_closes_per_second says"),
            ("usher backends drain server3 --rate 5", "five sessions a second"),
            ("usher backends drain server3 --rate 0", "no new login; sessions end by themselves"),
        ],
        codes: &[(OK, "logins are refused from now on"), (FAILED, "a process of an upgrade or a node did not answer")],
        asks_running: true,
    },
    Page {
        command: "backends undrain",
        paragraphs: &["Logins go there again, if the backend is up; the command says so if it is not."],
        examples: &[("usher backends undrain server3", "back into service")],
        codes: &[(OK, "done"), (FAILED, "a process of an upgrade or a node did not answer")],
        asks_running: true,
    },
    Page {
        command: "cache",
        paragraphs: &[
            "After a drop the user's next login is verified by the directory and cached again; open sessions \
             continue. Each drop also makes the next use of any opaque token ask its issuer again.",
        ],
        examples: &[
            ("usher cache show alice", "what is cached"),
            ("usher cache drop alice", "a departed user; then `usher kick --user alice`"),
        ],
        codes: &[
            (OK, "success, also if there was nothing to drop"),
            (FAILED, "a process of an upgrade or a node did not answer"),
            (NO_USER, "nothing is cached (show)"),
        ],
        asks_running: true,
    },
    Page {
        command: "cache show",
        paragraphs: &["Shows names, mail server, ages and the number of passwords, never a password."],
        examples: &[("usher cache show alice", "by any name that was typed, a mail address or a DN")],
        codes: &[
            (OK, "shown"),
            (FAILED, "a process of an upgrade or a node did not answer"),
            (NO_USER, "nothing is cached"),
        ],
        asks_running: true,
    },
    Page {
        command: "cache drop",
        paragraphs: &["The next login is verified by the directory."],
        examples: &[
            ("usher cache drop alice", "one user"),
            ("usher cache drop uid=alice,ou=people,dc=example,dc=com", "under all login names"),
            ("usher cache drop --all", "all logins are verified by the directory again"),
        ],
        codes: &[
            (OK, "dropped, or there was nothing to drop"),
            (FAILED, "a process of an upgrade or a node did not answer"),
        ],
        asks_running: true,
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
        codes: &[(OK, "applied, or nothing was held"), (FAILED, "a node did not answer")],
        asks_running: true,
    },
    Page {
        command: "status",
        paragraphs: &[
            "The running usher on one screen. The digest is that of the configuration in force without what differs between \
             nodes (names, addresses, files): two nodes with different digests decide differently.",
        ],
        examples: &[
            ("usher status", "this usher"),
            ("usher status --fleet", "every node"),
            ("usher status --json | jq .file_differs", "whether a reload is due"),
        ],
        codes: &[(OK, "shown"), (FAILED, "shown, but a node of the fleet did not answer")],
        asks_running: true,
    },
    Page {
        command: "wait",
        paragraphs: &[
            "The directory has to hold the user (directory.hold_attribute): otherwise a new session may begin at any \
             time. Sessions are not ended; `usher kick --user NAME --fleet` ends them. What is cached of the user is \
             dropped: an usher that has not heard of the hold yet asks the directory at the next login.",
            "With --age it also waits until no process has told Postfix the user's server within this time, so that \
             Postfix has delivered what it has asked about before the hold. A process that was started within this time \
             counts as if it had.",
        ],
        examples: &[(
            "usher wait bob --fleet --age 30s --timeout 5m",
            "bob moves: set the hold attribute, `usher kick --user bob --fleet`, this, copy the mailbox, then set mailHost \
             and delete the hold attribute",
        )],
        codes: &[
            (OK, "the user has no session"),
            (FAILED, "there are sessions, or answers to Postfix, after --timeout, or a node does not answer"),
            (DATA, "the directory does not hold the user"),
            (NO_USER, "no such user"),
            (UNAVAILABLE, "the directory does not answer, or usher does not run"),
        ],
        asks_running: true,
    },
    Page {
        command: "lookup",
        paragraphs: &[
            "The answers are those that Postfix gets now, from the cache too: `usher explain` says where a login leads.",
        ],
        examples: &[
            ("usher lookup bob@example.com", "the server of an address"),
            ("usher lookup bob+list@example.com --json", "for a program"),
        ],
        codes: &[
            (OK, "mail for the address goes to a server; with --fleet: every node has answered"),
            (FAILED, "it is deferred; with --fleet: a node did not answer"),
            (USAGE, "the arguments are wrong, or `socketmap` is not configured"),
            (NO_USER, "the address is not found"),
        ],
        asks_running: true,
    },
    Page {
        command: "reload",
        paragraphs: &[
            "No session ends. A file with a mistake changes nothing: the mistakes are reported, and the previous \
             configuration stays active. A change that needs a restart is reported as a mistake.",
        ],
        examples: &[
            ("usher reload", "take the changed file over"),
            ("usher reload --force", "also with a certificate that has expired"),
        ],
        codes: &[(OK, "reloaded"), (FAILED, "rejected: the previous configuration stays in force")],
        asks_running: true,
    },
    Page {
        command: "upgrade",
        paragraphs: &[
            "Starts the program that is installed now, hands it the listening sockets, and the old process exits \
             when its sessions have ended, or at drain.upgrade_deadline. No connection is refused. If the new \
             process does not start, nothing has changed.",
        ],
        examples: &[("usher upgrade", "after a new version was installed, without a lost session")],
        codes: &[(OK, "the new process serves"), (FAILED, "it does not: the old one goes on unchanged")],
        asks_running: true,
    },
    Page {
        command: "drain",
        paragraphs: &[
            "Without an option it is what SIGTERM and `systemctl stop` do: /ready replies 503, after drain.delay the \
             listeners are closed, sessions are ended one by one until drain.deadline, and the process ends with 0. \
             The command does not wait for that; `systemctl stop usher` does. systemd does not start it again.",
            "--ready-only changes what /ready says, and nothing else: a load balancer sends new clients elsewhere, \
             sessions and direct logins go on. It is forgotten by a restart and an upgrade.",
        ],
        examples: &[
            ("usher drain --ready-only", "the load balancer sends new clients elsewhere"),
            ("usher drain --undo", "it sends them here again"),
            ("usher drain", "shut down"),
        ],
        codes: &[(OK, "done"), (USAGE, "the arguments are wrong, or it is ending already (--undo)")],
        asks_running: true,
    },
    Page {
        command: "ready",
        paragraphs: &[
            "Requests /ready of the side port (admin.address), as a load balancer does, and prints the reply.",
        ],
        examples: &[("usher ready", "as a health check of a container")],
        codes: &[
            (OK, "ready"),
            (FAILED, "not ready: draining, taken out of service, or the directory has not replied since the start"),
            (USAGE, "the arguments are wrong"),
            (UNAVAILABLE, "no reply within 3 seconds"),
            (CONFIG, "the configuration has mistakes"),
        ],
        asks_running: false,
    },
    Page {
        command: "completions",
        paragraphs: &["The packages have them for bash, zsh and fish."],
        examples: &[("usher completions bash > /etc/bash_completion.d/usher", "for every user of bash")],
        codes: &[(OK, "written"), (USAGE, "the arguments are wrong")],
        asks_running: false,
    },
    Page {
        command: "man",
        paragraphs: &["The packages have the pages; `man usher` shows the first."],
        examples: &[
            ("usher man | man -l -", "read usher(8)"),
            ("usher man /usr/local/share/man/man8", "install every page"),
        ],
        codes: &[(OK, "written"), (SYSTEM, "a file cannot be written"), (USAGE, "the arguments are wrong")],
        asks_running: false,
    },
    #[cfg(feature = "demo")]
    Page {
        command: "demo",
        paragraphs: &[
            "Everything is made in a temporary folder and on loopback addresses, and is gone when it ends. Nothing on the \
             machine is changed.",
        ],
        examples: &[
            ("usher demo --once", "the self-check, whose result is the exit code"),
            ("usher demo", "until Ctrl-C"),
        ],
        codes: &[(OK, "it worked"), (FAILED, "a step failed, or a program that it needs is missing")],
        asks_running: false,
    },
];

//! What an examination of a directory server means.

use std::sync::Arc;
use std::time::Duration;

use super::certificate_advice::Verified;
use super::{Finding, State, Subject, certificates};
use crate::base::credential::Login;
use crate::config::{Config, Directory, DirectoryServer, LdapScheme, WatchMode};
use crate::diagnose::table::{Shown, thousands};
use crate::directory::{
    ConnectionFault, Entry, FollowedBy, ListedServer, LockoutPolicy, Realm, ResolvedName, SampleLookup,
    ServerDiagnosis, ServerResult, UnavailableCause, UserCount,
};
use crate::login::explain::{Verdict, account_advice, tls_advice};
use crate::proto::ldap::attributes::CERTIFICATES;
use crate::proto::ldap::result::{
    CONFIDENTIALITY_REQUIRED, NO_SUCH_OBJECT, SIZE_LIMIT, STRONGER_AUTH_REQUIRED, SUCCESS,
};
use crate::tls::HandshakeFailure;

/// The longest window that `throttle.forget_every` can be.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The advice about names of SRV records that lead to no server.
const NO_NAME: &str = "check the name with `dig srv NAME` from this machine; directory.resolver names other DNS servers than the \
                       system's";
/// The advice if nothing more is known.
const TRY_OPENSSL: &str = "try `openssl s_client -connect HOST:636` from this machine";
/// The advice about a server that closes the connection and says nothing.
const WRONG_PORT: &str = "ldaps:// is for the TLS port, usually 636, and ldap:// for the other, usually 389; otherwise try \
                          `openssl s_client -connect HOST:636` from this machine";
/// The advice about a handshake that may be what is not answered.
const LONG_HELLO: &str = "if `openssl s_client -groups X25519 -connect HOST:636` connects, a device on the way may drop a handshake that \
                          begins with two packets, as it does with X25519MLKEM768: try `directory.groups: [x25519, secp256r1, \
                          secp384r1]`";
/// LDAP results that say that a limit was met.
const LIMITS: [u32; 3] = [3, 4, 11];

/// What DNS says of a name, and which servers are used.
pub(super) fn named(directory: &Directory, known: &ResolvedName, listed: &[ListedServer]) -> Subject {
    let own = |server: &ListedServer| {
        let srv = server.srv.as_ref().filter(|srv| srv.name == known.name)?;
        Some(format!("{} (priority {}, weight {})", server.url, srv.priority, srv.weight))
    };
    let servers: Vec<_> = listed.iter().filter_map(own).collect();
    let shown = Shown(&servers.join(", ")).to_string();
    let name = known.name.split_once(':').map_or(&*known.name, |(_, name)| name);
    let mut findings = vec![match &known.fault {
        None => Finding::ok("srv", shown),
        Some(fault) if servers.is_empty() => Finding::problem("srv", fault.clone(), NO_NAME.replace("NAME", name)),
        Some(fault) => {
            let found = format!("{fault}; the last answer is still used: {shown}");
            Finding::new("srv", State::Warning, found).advised(NO_NAME.replace("NAME", name))
        }
    }];
    findings.extend(known.ignored.iter().map(|ignored| {
        let advice =
            "a host that is to get passwords although it is not in the domain must be in directory.srv_targets";
        Finding::new("srv", State::Warning, format!("not used: {}", Shown(ignored))).advised(advice)
    }));
    finished(directory, &known.name, findings)
}

pub(super) fn subject(
    config: &Config,
    directory: &Directory,
    examined: &ServerDiagnosis,
    sample: Option<&Login>,
) -> Subject {
    let mut findings = vec![connection(directory, examined)];
    findings.extend(examined.service.as_ref().map(|service| bound(directory, service)));
    if examined.service.as_ref().is_some_and(Result::is_ok) && examined.with_mail_host.is_none() {
        let words = "only users may read their entries: no further checks are possible without a service account";
        let advice = "give bind_dn and bind_password_file one that may read, for checks and for live changes";
        findings.push(Finding::new("base", State::Note, words).advised(advice));
    }
    let found = examined.sample.as_ref().is_some_and(|sample| sample.as_ref().is_ok_and(|one| one.entries > 0));
    findings.extend(examined.base.as_ref().map(|base| read_base(directory, &examined.users_base, base, found)));
    let chosen = sample.map(Login::as_str).or(directory.canary.as_ref().map(|canary| canary.login.as_str()));
    findings.extend(examined.sample.as_ref().map(|one| search(config, directory, one, chosen)));
    findings.extend(examined.with_mail_host.as_ref().map(|with| mail_host(config, directory, with.as_ref())));
    findings.extend(examined.with_certificate.as_ref().map(|with| listed_certificates(with.as_ref())));
    findings.extend(examined.canary.as_ref().map(canary));
    findings.extend(examined.changes.as_ref().map(|changes| followed(directory, changes)));
    findings.extend(examined.users.as_ref().map(|users| size(directory, users)));
    let users = examined.users.as_ref().and_then(|users| users.as_ref().ok());
    findings.extend(examined.password_users.as_ref().map(|matching| password_users(config, matching.as_ref(), users)));
    let lockout = examined.lockout.as_ref().and_then(|lockout| lockout.as_ref().ok()?.as_ref());
    findings.extend(lockout.map(|lockout| locking(config, lockout)));
    finished(directory, &examined.url, findings)
}

/// The findings about a server, or about a name that stands for some, with the keys of this directory.
fn finished(directory: &Directory, url: &str, mut findings: Vec<Finding>) -> Subject {
    for advice in findings.iter_mut().filter_map(|finding| finding.advice.as_mut()) {
        *advice = with_key(advice, &directory.key);
    }
    let name = match Realm::named(&directory.name).shown(directory) {
        Some(name) => format!("{name} {url}"),
        None => url.to_owned(),
    };
    Subject { kind: "directory", name, protocol: None, address: None, findings }
}

/// The advice with the path of this directory in place of that of the only one.
fn with_key(advice: &str, key: &str) -> String {
    // A page of the documentation is no key.
    let parts: Vec<_> =
        advice.split("docs/directory.").map(|part| part.replace("directory.", &format!("{key}."))).collect();
    parts.join("docs/directory.")
}

fn connection(directory: &Directory, examined: &ServerDiagnosis) -> Finding {
    let settings = directory;
    let server = examined.settings.as_ref();
    let has_tls = server.is_some_and(|server| server.has_tls(settings.starttls));
    match &examined.connection {
        Ok(Some(certificate)) => {
            let pinned = server.is_some_and(|server| !server.pin_sha256.is_empty());
            certificates::shown("connection", "TLS", std::slice::from_ref(certificate), pinned)
        }
        Ok(None) => match server.map(|server| server.scheme) {
            Some(LdapScheme::Ldapi) => Finding::ok("connection", "a socket of this machine"),
            Some(LdapScheme::Ldap) if !has_tls && settings.plaintext => Finding::new(
                "connection",
                State::Warning,
                "connected in the clear: passwords cross the network readably",
            )
            .advised("use ldaps:// or `starttls: true`"),
            Some(LdapScheme::Ldap) if !has_tls => Finding::ok("connection", "connected, on this machine"),
            Some(LdapScheme::Ldap | LdapScheme::Ldaps) | None => Finding::ok("connection", "TLS"),
        },
        Err(trouble) => {
            if let Some(advice) = server.and_then(|server| certificate_advice(trouble, server)) {
                return Finding::problem("connection", words(trouble), for_server(&advice, server));
            }
            let long = has_tls && settings.groups.iter().any(|group| group.is_long());
            let advice = if long && matches!(trouble, UnavailableCause::Timeout) {
                format!("{}; {LONG_HELLO}", advice(trouble))
            } else {
                advice(trouble).to_owned()
            };
            Finding::problem("connection", words(trouble), for_server(&advice, server))
        }
    }
}

/// The advice about a certificate that is refused.
fn certificate_advice(trouble: &UnavailableCause, server: &DirectoryServer) -> Option<String> {
    let UnavailableCause::Connection { fault: ConnectionFault::Tls(error), .. } = trouble else { return None };
    let HandshakeFailure::Certificate(fault) = error.failure else { return None };
    Some(Verified::Directory(server.name()).advice(fault))
}

/// The advice with the server's own address in the command.
fn for_server(advice: &str, server: Option<&DirectoryServer>) -> String {
    let Some(DirectoryServer { scheme, host, port, .. }) = server else { return advice.to_owned() };
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let address = match scheme {
        LdapScheme::Ldaps => format!("{host}:{port}"),
        LdapScheme::Ldap => format!("{host}:{port} -starttls ldap"),
        LdapScheme::Ldapi => return advice.to_owned(),
    };
    advice.replace("HOST:636", &address)
}

/// The trouble without the server's name, which stands above it.
fn words(trouble: &UnavailableCause) -> String {
    match trouble {
        UnavailableCause::Connection { fault, .. } => fault.to_string(),
        UnavailableCause::ServiceBind { result, .. } => format!("refused with {result}"),
        UnavailableCause::Result { operation, result, .. } => format!("{} failed with {result}", operation.label()),
        UnavailableCause::Malformed { .. } => "malformed reply".to_owned(),
        UnavailableCause::Canary { fault, .. } => fault.to_string(),
        UnavailableCause::Behind { .. } => "has not caught up with the last change".to_owned(),
        UnavailableCause::Hidden { .. } => "hides the mail host or the networks of an entry".to_owned(),
        UnavailableCause::Timeout
        | UnavailableCause::Busy
        | UnavailableCause::NoServer { .. }
        | UnavailableCause::HeldElsewhere
        | UnavailableCause::NoServiceAccount => trouble.to_string(),
    }
}

fn advice(trouble: &UnavailableCause) -> &'static str {
    if let UnavailableCause::Connection { fault: ConnectionFault::Tls(error), .. } = trouble
        && let Some(advice) = certificates::version_advice(error)
    {
        return advice;
    }
    match trouble {
        UnavailableCause::Connection { fault, .. } => match fault {
            ConnectionFault::Tls(error) => match error.failure {
                HandshakeFailure::NotTls => {
                    "ldaps:// is for the TLS port, usually 636; for 389 write ldap:// with `starttls: true`"
                }
                HandshakeFailure::Other => WRONG_PORT,
                HandshakeFailure::Certificate(_) | HandshakeFailure::Alert | HandshakeFailure::Incompatible => {
                    TRY_OPENSSL
                }
            },
            ConnectionFault::StartTls(_) => {
                "the server has no TLS for StartTLS: give it a certificate, or use ldaps://"
            }
            ConnectionFault::Notice(ServerResult {
                code: STRONGER_AUTH_REQUIRED | CONFIDENTIALITY_REQUIRED, ..
            }) => {
                "the server accepts connections with TLS only: write ldaps:// into directory.servers, or set \
                 directory.starttls to true"
            }
            ConnectionFault::Refused(_) => "is the directory running, and does it listen at this port?",
            ConnectionFault::Resolve(_) | ConnectionFault::NoAddress => {
                "the name cannot be resolved: check directory.servers and this machine's resolver"
            }
            ConnectionFault::PasswordFile { .. } => {
                "directory.bind_password_file must name a readable file with the password"
            }
            ConnectionFault::Closed => WRONG_PORT,
            ConnectionFault::Unreachable(_)
            | ConnectionFault::NoTls
            | ConnectionFault::Notice(_)
            | ConnectionFault::Io(_)
            | ConnectionFault::AnonymousBind
            | ConnectionFault::UnsendablePassword
            | ConnectionFault::InvalidFilter => TRY_OPENSSL,
        },
        UnavailableCause::Timeout | UnavailableCause::Busy => {
            "a firewall in between, or a server that is too slow: directory.attempt_timeout is the time for one answer"
        }
        UnavailableCause::NoServer { .. } => NO_NAME,
        UnavailableCause::ServiceBind { .. }
        | UnavailableCause::Result { .. }
        | UnavailableCause::Malformed { .. }
        | UnavailableCause::Canary { .. }
        | UnavailableCause::Behind { .. }
        | UnavailableCause::Hidden { .. }
        | UnavailableCause::HeldElsewhere
        | UnavailableCause::NoServiceAccount => "check the server's own log",
    }
}

fn bound(directory: &Directory, service: &Result<(), UnavailableCause>) -> Finding {
    let account = directory.find.service();
    let Err(trouble) = service else {
        let who = account.map_or_else(|| "anonymous: no bind_dn is set".to_owned(), |account| account.dn.clone());
        return Finding::ok("service bind", who);
    };
    let dn = account.map(|account| account.dn.as_str()).unwrap_or_default();
    let file = account.map(|account| account.password_file.display().to_string()).unwrap_or_default();
    let (found, what) = (format!("{dn}: {}", words(trouble)), trouble.code());
    let of_tls = trouble.result().and_then(|result| tls_advice(directory, result));
    match what {
        Some(49) => Finding::problem(
            "service bind",
            found,
            format!("the password in {file} is not that of this DN, or there is no such entry"),
        ),
        Some(_) if of_tls.is_some() => Finding::problem("service bind", found, of_tls.unwrap_or_default()),
        Some(53 | 19 | 50) => Finding::problem(
            "service bind",
            found,
            "the account may be locked, or may bind in another way only: check the server's own log",
        ),
        Some(_) => Finding::problem("service bind", found, "see `directory.bind_dn`, and the server's own log"),
        None => Finding::problem("service bind", found, advice(trouble)),
    }
}

fn read_base(
    directory: &Directory,
    dn: &str,
    base: &Result<(ServerResult, bool), UnavailableCause>,
    found: bool,
) -> Finding {
    match base {
        Ok((ServerResult { code: SUCCESS, .. }, true)) => Finding::ok("base", dn),
        Ok(_) if found => Finding::new(
            "base",
            State::Note,
            format!("{dn} itself is not returned; the entries below it are, which is sufficient"),
        ),
        Ok((result @ ServerResult { code: NO_SUCH_OBJECT, .. }, _)) => {
            let advice = "there is no such entry, or the service account may not see it: is the data loaded, is \
                          directory.base spelt right, do the access rules let the account read?";
            Finding::problem("base", format!("{dn}: no such entry ({result})"), advice)
        }
        Ok((result, _)) => {
            let advice = "the access rules must let the service account read this entry and what is below it";
            let advice = access_advice(directory, result).unwrap_or(advice);
            Finding::problem("base", format!("{dn} is not shown ({result})"), advice)
        }
        Err(trouble) => Finding::problem("base", format!("{dn}: {}", words(trouble)), advice(trouble)),
    }
}

fn search(
    config: &Config,
    directory: &Directory,
    sample: &Result<SampleLookup, UnavailableCause>,
    chosen: Option<&str>,
) -> Finding {
    let sample = match sample {
        Ok(sample) => sample,
        Err(trouble) => return Finding::problem("filter", words(trouble), advice(trouble)),
    };
    let filter = Shown(&sample.filter).to_string();
    // Of all users the first will do; of one login there may be no second.
    let own = sample.login.as_deref();
    let several = chosen.or(own).is_some() && (sample.entries > 1 || sample.result.code == SIZE_LIMIT);
    match (&sample.first, chosen) {
        _ if several => {
            let dns: Vec<_> = sample.first.iter().map(|entry| &entry.dn).chain(&sample.second).collect();
            let is_compat = |dn: &&Arc<str>| dn.to_ascii_lowercase().contains("cn=compat,");
            let advice = if dns.iter().any(is_compat) {
                "a login by this name is refused: FreeIPA shows each user once more below cn=compat; set \
                 directory.base to cn=accounts,... "
            } else {
                "a login by this name is refused: make the filter or the names unique"
            };
            let dns: Vec<_> = dns.into_iter().map(|dn| Shown(dn).to_string()).collect();
            let found = format!("{filter} finds several entries: {}", dns.join(" and "));
            // Without `--sample` it is not known whether this user matters.
            let state = if chosen.is_some() { State::Problem } else { State::Warning };
            Finding::new("filter", state, found).advised(advice.trim_end())
        }
        (Some(entry), _) => {
            let dn = Shown(&entry.dn).to_string();
            let login = chosen.and_then(|name| Login::parse(name.as_bytes()));
            let Some(login) = login else { return Finding::ok("filter", format!("{filter} finds {dn}")) };
            let verdict = Verdict::of_entry(config, directory, entry, &login);
            let found = format!("{filter} finds {dn}, which {}", verdict.words);
            if verdict.goal.is_ok() {
                Finding::ok("filter", found)
            } else {
                let found = format!("{filter} finds {dn}: {}", verdict.words);
                Finding::new("filter", State::Warning, found).advised(format!("see `usher explain {}`", login.as_str()))
            }
        }
        (None, Some(name)) => {
            let advice = access_advice(directory, &sample.result).map_or_else(
                || {
                    format!(
                        "is there an entry for {}? Is it below the base, may the service account search the \
                         attributes of the filter?",
                        Shown(name)
                    )
                },
                str::to_owned,
            );
            Finding::problem("filter", format!("{filter} finds no entry ({})", sample.result), advice)
        }
        (None, None) => {
            let advice = "no user could log in: check directory.base, directory.filter and the access rules for \
                          the service account";
            let advice = access_advice(directory, &sample.result).unwrap_or(advice);
            Finding::problem("filter", format!("{filter} finds no entry ({})", sample.result), advice)
        }
    }
}

/// What to do about a server that refuses searches over this connection; `None` if the result does not
/// say so.
fn access_advice(directory: &Directory, result: &ServerResult) -> Option<&'static str> {
    let is_anonymous = directory.find.service().is_none();
    // Active Directory has 1, 389-DS 48 (nsslapd-allow-anonymous-access), others 50 or 53.
    let anonymous = || {
        (is_anonymous && matches!(result.code, 1 | 48 | 50 | 53))
            .then_some("the server may refuse anonymous searches: set directory.bind_dn and bind_password_file")
    };
    tls_advice(directory, result).or_else(|| account_advice(result)).or_else(anonymous)
}

fn mail_host(
    config: &Config,
    directory: &Directory,
    with: Result<&(Option<Entry>, ServerResult), &UnavailableCause>,
) -> Finding {
    let attribute = &directory.mail_host_attribute;
    match with {
        Ok((Some(entry), _)) if !entry.mail_hosts.is_empty() => {
            let (value, dn) = (entry.mail_hosts.join(", "), Shown(&entry.dn).to_string());
            Finding::ok("mail host", format!("{attribute} is shown, such as {} of {dn}", Shown(&value)))
        }
        Ok((entry, result)) => {
            let found = match entry {
                Some(entry) => format!("{attribute} of {} may be searched but not read", Shown(&entry.dn)),
                None if result.code == SUCCESS => format!("no user shows {attribute}"),
                None => format!("no user shows {attribute} ({result})"),
            };
            let advice = "the service account must be allowed to search and read this attribute (in slapd.conf: \
                          `access to attrs=...` above the rule that hides it); or directory.mail_host_attribute is \
                          another, or no user has a value yet";
            match &config.routing.default {
                Some(default) => {
                    Finding::new("mail host", State::Warning, format!("{found}: all users go to {default}"))
                        .advised(advice)
                }
                None => Finding::problem("mail host", format!("{found}: no user can be routed"), advice),
            }
        }
        Err(trouble) => Finding::problem("mail host", words(trouble), advice(trouble)),
    }
}

/// Whether the certificates that entries list can be read: logins by certificate compare them.
fn listed_certificates(with: Result<&(Option<Entry>, ServerResult), &UnavailableCause>) -> Finding {
    let advice = "the service account must be allowed to search and read this attribute, or every login by certificate \
                  is refused and no session by one lasts: see \"Client certificates\" in docs/directory.md";
    match with {
        Ok((Some(entry), _)) if !entry.certificates.is_empty() => {
            Finding::ok("certificates", format!("{CERTIFICATES} is shown, such as that of {}", Shown(&entry.dn)))
        }
        Ok((Some(entry), _)) => {
            let found = format!("{CERTIFICATES} of {} may be searched but not read", Shown(&entry.dn));
            Finding::problem("certificates", found, advice)
        }
        Ok((None, result)) => {
            let result = if result.code == SUCCESS { String::new() } else { format!(" ({result})") };
            let found = format!("no user shows {CERTIFICATES}{result}: none can log in by certificate");
            Finding::new("certificates", State::Warning, found).advised(advice)
        }
        Err(trouble) => Finding::new("certificates", State::Warning, words(trouble)).advised(self::advice(trouble)),
    }
}

fn canary(shown: &Result<(), UnavailableCause>) -> Finding {
    match shown {
        Ok(()) => Finding::ok("canary", "shown as configured"),
        Err(trouble @ UnavailableCause::Canary { lacks: true, .. }) => Finding::problem(
            "canary",
            words(trouble),
            "a server that does not show it is not used, because it may hide it from all users: give the canary a value \
             of this attribute, and let bind_dn read it",
        ),
        Err(trouble @ UnavailableCause::Canary { lacks: false, .. }) => Finding::problem(
            "canary",
            words(trouble),
            "a server that does not return directory.canary is not used: search for it there as bind_dn; correct the \
             data, the access rules, or the canary's login and mail_host",
        ),
        Err(trouble) => Finding::problem("canary", words(trouble), advice(trouble)),
    }
}

fn followed(directory: &Directory, changes: &Result<FollowedBy, UnavailableCause>) -> Finding {
    let watch = &directory.watch;
    let note = |found: &str| Finding::new("live changes", State::Note, found);
    let (found, advice) = match changes {
        Ok(FollowedBy::Synchronization(result)) if matches!(result.code, SUCCESS | SIZE_LIMIT) => {
            return match watch.mode {
                WatchMode::Poll => note("content synchronization is available; `watch: poll` does not use it"),
                WatchMode::Auto | WatchMode::Sync | WatchMode::Off => {
                    Finding::ok("live changes", "content synchronization")
                }
            };
        }
        Ok(FollowedBy::Synchronization(result @ ServerResult { code: 12, .. })) => (
            format!("content synchronization is refused for this database ({result})"),
            "add `overlay syncprov` to the database",
        ),
        Ok(FollowedBy::Synchronization(result)) => (
            format!("content synchronization is refused ({result})"),
            "the service account must be allowed to synchronize: check its limits and access rules",
        ),
        Ok(FollowedBy::Numbers { .. }) if watch.mode == WatchMode::Sync => (
            "Active Directory has no content synchronization".to_owned(),
            "remove `watch: sync`: changes are polled by uSNChanged",
        ),
        Ok(FollowedBy::Numbers { sees_deleted }) => {
            let seconds = watch.poll_interval.as_secs();
            let found = format!("polling by uSNChanged every {seconds} s");
            return match sees_deleted {
                true => Finding::ok("live changes", format!("{found}, with deleted objects")),
                false => note(&format!("{found}; deletions are found every {} s", seconds.saturating_mul(10))).advised(
                    "let the service account read Deleted Objects (dsacls, docs/directory.md) to find deletions as \
                     fast as other changes, and to spare the server the comparison of all users",
                ),
            };
        }
        Ok(FollowedBy::Time) => {
            ("the server has no content synchronization".to_owned(), "load syncprov (OpenLDAP) or its plug-in (389-DS)")
        }
        Err(trouble) => (words(trouble), self::advice(trouble)),
    };
    match watch.mode {
        WatchMode::Sync => Finding::problem("live changes", format!("{found}, and `watch: sync` wants it"), advice),
        WatchMode::Auto | WatchMode::Poll | WatchMode::Off => {
            let found = format!("{found}: polling every {} s", watch.poll_interval.as_secs());
            Finding::new("live changes", State::Note, found).advised(advice)
        }
    }
}

/// Whether guesses can lock users out, by the directory's policy.
fn locking(config: &Config, lockout: &LockoutPolicy) -> Finding {
    let LockoutPolicy { policy, failures, window } = lockout;
    let within = window.map_or_else(String::new, |window| format!(" within {}", in_words(window)));
    let found = format!("{} locks an account after {failures} wrong passwords{within}", Shown(policy));
    let (throttle, rule) = (&config.throttle, &config.throttle.failed_logins_per_user);
    // Within the window one more is forgotten, and one is left for the owner.
    let most = failures.saturating_sub(2).max(1);
    let window = window.unwrap_or(DAY).min(DAY);
    let advice = format!(
        "`throttle.failed_logins_per_user: {{limit: {most}}}` with `throttle.forget_every: {}` keeps guesses from \
         locking users out; during an attack it also refuses users on unknown networks",
        in_words(window)
    );
    match rule.limit {
        None => Finding::new("lock-out", State::Note, found).advised(advice),
        Some(limit) if limit >= *failures || throttle.memory.forget_every < window => {
            let found = format!("{found}: throttle.failed_logins_per_user.limit allows as many");
            Finding::new("lock-out", State::Warning, found).advised(advice)
        }
        Some(_) => Finding::ok("lock-out", format!("{found}; the throttle refuses guesses before")),
    }
}

/// A duration as the config takes it.
fn in_words(duration: Duration) -> String {
    match duration.as_secs() {
        seconds if seconds % 3_600 == 0 => format!("{}h", seconds / 3_600),
        seconds if seconds % 60 == 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

fn size(directory: &Directory, users: &Result<UserCount, UnavailableCause>) -> Finding {
    let UserCount { users, result, more, paged } = match users {
        Ok(counted) => counted.clone(),
        Err(trouble) => return Finding::problem("size limit", words(trouble), advice(trouble)),
    };
    let (number, way) = (thousands(users), if paged { ", page by page" } else { "" });
    if LIMITS.contains(&result.code) {
        let found = format!("the server returns only the first {number} users ({result})");
        let advice = "raise the limits of the service account (in slapd.conf: `limits dn.exact=\"BIND_DN\" \
                      size=unlimited time=unlimited`), or changes of users are missed; logins are not affected";
        return match directory.watch.mode {
            WatchMode::Off => Finding::new("size limit", State::Note, found),
            WatchMode::Auto | WatchMode::Sync | WatchMode::Poll => Finding::problem("size limit", found, advice),
        };
    }
    if result.code != SUCCESS {
        return Finding::problem("size limit", format!("{result} after {number} users"), "check the server's own log");
    }
    let least = if more { "at least " } else { "" };
    Finding::ok("size limit", format!("{least}{number} users are shown{way}"))
}

/// The users that may log in with a password.
fn password_users(
    config: &Config,
    matching: Result<&UserCount, &UnavailableCause>,
    users: Option<&UserCount>,
) -> Finding {
    const NAME: &str = "passwords";
    let matching = match matching {
        Ok(counted) => counted,
        Err(trouble) => return Finding::problem(NAME, words(trouble), advice(trouble)),
    };
    let is_whole = |count: &UserCount| count.result.code == SUCCESS && !count.more;
    if matching.result.code != SUCCESS && !LIMITS.contains(&matching.result.code) {
        let found = format!("{} after {} users", matching.result, thousands(matching.users));
        return Finding::problem(NAME, found, "check directory.password_filter, and the server's own log");
    }
    let number = thousands(matching.users);
    let found = match users.filter(|users| is_whole(users) && is_whole(matching)) {
        Some(users) => {
            let others = thousands(users.users.saturating_sub(matching.users));
            format!("{number} of {} users match password_filter, {others} do not", thousands(users.users))
        }
        None if is_whole(matching) => format!("{number} users match password_filter"),
        None => format!("at least {number} users match password_filter"),
    };
    if matching.users > 0 {
        return Finding::ok(NAME, found);
    }
    let advice = "nobody can log in with a password: if that is not intended, is the attribute spelt right, and may the \
                  service account search it?";
    let state = if config.tokens.is_empty() { State::Problem } else { State::Warning };
    Finding::new(NAME, state, found).advised(advice)
}

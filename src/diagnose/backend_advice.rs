//! What to do about what an inspection of a mail server has found.

use std::time::Duration;

use super::certificate_advice::Verified;
use super::{Finding, State, certificates};
use crate::backend::diagnose::Observations;
use crate::backend::{Awaited, BackendError};
use crate::config::{self, Forward};
use crate::proto::proxy_header::Version;
use crate::proto::{BackFault, BackTls, ForwardMethod, software};
use crate::tls::HandshakeFailure;

/// A greeting that comes later is reported.
const LATE_GREETING: Duration = Duration::from_secs(1);
/// What a login needs after the greeting, on a server that has other logins.
const LOGIN: Duration = Duration::from_secs(2);

/// How long a login waits for a backend.
pub(super) struct Patience<'a> {
    backend: &'a str,
    timeout: Duration,
    directory: Duration,
}

impl<'a> Patience<'a> {
    pub(super) fn of(config: &config::Config, settings: &'a config::Backend) -> Self {
        Self { backend: &settings.name, timeout: settings.timeout, directory: config.longest_decision() }
    }

    /// Whether a login would have given up by then.
    pub(super) fn is_exceeded(&self, took: Duration) -> bool {
        took >= self.timeout
    }

    /// A greeting, as text, that was complete so long after the connection.
    pub(super) fn greeting(&self, text: String, after: Option<Duration>) -> Finding {
        match after.filter(|after| *after >= LATE_GREETING) {
            None => Finding::ok("greeting", text),
            Some(after) => {
                let found = format!("{text}; greets after {:.1} s", after.as_secs_f64());
                if self.is_exceeded(after) {
                    return self.too_slow("greeting", &found, after);
                }
                let advice = "every login waits for it: exempt usher's address from the delay at that server";
                Finding::new("greeting", State::Note, found).advised(advice)
            }
        }
    }

    /// A server that came so far in this time, which is more than a login waits.
    pub(super) fn too_slow(&self, check: &'static str, found: &str, took: Duration) -> Finding {
        let Self { backend, timeout, directory } = self;
        let longest = config::LONGEST_REPLY.as_secs();
        let needed = (took + LOGIN).as_secs() + 1;
        let exempt = "exempt usher's address from the delay at that server (Postfix: postscreen_access_list)";
        let advice = match longest.checked_sub(needed) {
            None | Some(0) => {
                format!("no `timeout` is long enough (with `directory.timeout` at most {longest}s): {exempt}")
            }
            Some(left) if *directory > Duration::from_secs(left) => format!(
                "set `timeout` of {backend} to {needed}s and `directory.timeout`, now {directory:?}, to {left}s: the two are at \
                 most {longest}s together; or {exempt}"
            ),
            Some(left) => format!(
                "set `timeout` of {backend} to {needed}s (`directory.timeout`, now {directory:?}, may then be up to {left}s); \
                 or {exempt}"
            ),
        };
        Finding::problem(check, format!("{found}, and `timeout` is {timeout:?}: no login succeeds"), advice)
    }
}

/// What Dovecot must know of usher, as far as it can be seen whether it does: without the clients' addresses it takes
/// usher for the client of all users.
pub(super) fn of_dovecot(
    settings: &config::Backend,
    endpoint: &config::Endpoint,
    sight: &Observations,
) -> Option<Finding> {
    let greeting = sight.greeting.as_deref()?;
    if !software::is_dovecot(greeting, &sight.identity, &sight.listed) {
        return None;
    }
    let own = sight.connected.map_or_else(|| "usher's address".to_owned(), |own| own.to_string());
    let line = format!("`login_trusted_networks = {own}`");
    match (endpoint.forward, endpoint.protocol.forward_method) {
        (Forward::Nothing, method) => {
            let found = format!(
                "this is Dovecot, to which all users come from {own} (`forward: none`): by default one rejected login delays \
                 its replies to all of them (auth penalty), and all devices of a user count as one address \
                 (mail_max_userip_connections)"
            );
            let (backend, protocol, word) = (&settings.name, endpoint.protocol.name, method.map_or("proxy_v2", word));
            let advice = format!(
                "write {line} in Dovecot's configuration, and `forward: {word}` in `{protocol}` of {backend}; see \
                 \"What a backend must know of usher\" in docs/operations.md"
            );
            Some(Finding::new("forward", State::Warning, found).advised(advice))
        }
        // Dovecot ignores in silence what addresses say that it does not trust. Before TLS it lists LOGINDISABLED to them;
        // 2.4 does so to all with `ssl = required`.
        (Forward::Dialogue, Some(ForwardMethod::Id)) => {
            let distrusted = greeting.windows(b"LOGINDISABLED".len()).any(|part| part == b"LOGINDISABLED");
            let (state, found) = match distrusted && endpoint.tls == BackTls::StartTls {
                true => (
                    State::Warning,
                    format!(
                        "this Dovecot seems not to trust {own}, and ignores the clients' addresses: it lists LOGINDISABLED \
                         before TLS, as to every address outside its login_trusted_networks (2.4 with `ssl = required`: to all)"
                    ),
                ),
                false => (
                    State::Note,
                    format!(
                        "Dovecot uses the clients' addresses only if it trusts {own}, which cannot be seen from here: if it does, \
                         its log has them as rip="
                    ),
                ),
            };
            Some(Finding::new("forward", state, found).advised(format!("{line} must be in Dovecot's configuration")))
        }
        // XCLIENT is offered to trusted addresses alone, and a header is accepted from them alone.
        (Forward::Dialogue | Forward::Header(_), _) => None,
    }
}

/// A protocol's own way to forward the client's address, as the configuration has it.
const fn word(method: ForwardMethod) -> &'static str {
    match method {
        ForwardMethod::Id => "id",
        ForwardMethod::Xclient => "xclient",
    }
}

/// usher and the server differ in whether there is a PROXY header: the other way works. `fault`: what came of the
/// configured way; `other`: what the server does the other way.
pub(super) fn header(endpoint: &config::Endpoint, fault: &str, other: &str) -> Finding {
    let own = endpoint.protocol.forward_method.map(word);
    let word = match endpoint.forward {
        Forward::Nothing => "none",
        Forward::Dialogue => own.unwrap_or("none"),
        Forward::Header(Version::V1) => "proxy_v1",
        Forward::Header(Version::V2) => "proxy_v2",
    };
    if matches!(endpoint.forward, Forward::Header(_)) {
        let found = format!(
            "usher sends a PROXY header (`forward: {word}`) and the server expects none at this port: without one {other} \
             (with it: {fault})"
        );
        let others = own.map(|own| format!("`{own}` or ")).unwrap_or_default();
        let advice = format!(
            "set `forward` to {others}`none`, or let this port of the server expect a header: Dovecot `haproxy = yes` and \
             usher in `haproxy_trusted_networks`, nginx `proxy_protocol`, Postfix `smtpd_upstream_proxy_protocol`"
        );
        return Finding::problem("proxy header", found, advice);
    }
    let found = format!(
        "the server expects a PROXY header at this port and usher sends none (`forward: {word}`): with one {other} \
         (without: {fault})"
    );
    let advice = "write `forward: proxy_v2`, or a port of the server that expects no header as `address` (Dovecot: without \
                  `haproxy = yes`; nginx: without `proxy_protocol`)";
    Finding::problem("proxy header", found, advice)
}

/// What to do about a fault that is the same with a PROXY header and without.
pub(super) fn either_header(error: &BackendError, endpoint: &config::Endpoint) -> String {
    let more = "it is the same with a PROXY header and without: where the server expects one, is usher in its trusted \
                networks (Dovecot: `haproxy_trusted_networks`)?";
    match of(error, endpoint) {
        advice if advice.is_empty() => more.to_owned(),
        advice => format!("{advice}; {more}"),
    }
}

/// What to do about a server that does not answer the first message of the handshake, where that is a long one.
pub(super) fn long_hello(
    error: &BackendError,
    settings: &config::Backend,
    endpoint: &config::Endpoint,
) -> Option<String> {
    let waits = matches!(error, BackendError::Timeout { awaited: Awaited::Tls, .. });
    let long = settings.groups.iter().any(|group| group.is_long());
    (waits && long).then(|| {
        format!(
            "a device on the way may drop a handshake that begins with two packets, as it does with X25519MLKEM768: try \
             `groups: [x25519, secp256r1, secp384r1]` for {}; otherwise {}",
            settings.name,
            of(error, endpoint)
        )
    })
}

/// What to do about a fault.
pub(super) fn of(error: &BackendError, endpoint: &config::Endpoint) -> String {
    if let BackendError::Tls { reason } = error {
        if let Some(advice) = certificates::version_advice(reason) {
            return advice.to_owned();
        }
        if let HandshakeFailure::Certificate(fault) = reason.failure {
            return Verified::Backend(&endpoint.server_name).advice(fault);
        }
    }
    words(error).to_owned()
}

/// What to do about a fault that is not about a certificate.
const fn words(error: &BackendError) -> &'static str {
    match error {
        BackendError::Resolve { .. } => "check the backend's `address` and this machine's resolver",
        BackendError::NoSource { .. } | BackendError::Source { .. } => {
            "set `source` to addresses that `ip address` lists"
        }
        BackendError::Loop { .. } => "write the mail server's own address: this one is usher's",
        BackendError::Connect { .. } => {
            "is the mail server running and listening on this port, does a firewall block the connection?"
        }
        BackendError::Tls { reason } => match reason.failure {
            HandshakeFailure::NotTls => "this port wants `tls: starttls`, or is another service's",
            HandshakeFailure::Certificate(_)
            | HandshakeFailure::Alert
            | HandshakeFailure::Incompatible
            | HandshakeFailure::Other => "",
        },
        BackendError::Timeout { awaited: Awaited::Greeting | Awaited::RestOfGreeting, .. } => {
            "a firewall in between, a server that is too slow, or one that greets later than usher may wait (`timeout` and \
             `directory.timeout` are at most 10s together): exempt usher's address from its delay"
        }
        BackendError::Timeout { .. } => {
            "a firewall in between, or a server that is too slow for the backend's `timeout`"
        }
        BackendError::Closed | BackendError::Broken { .. } => {
            "the server closed the connection: check its log; it may refuse this machine"
        }
        BackendError::Refused(_) => {
            "try a user's login: if the server refuses all of them its authentication is broken, see its log; otherwise check \
             probe_account and its password file"
        }
        BackendError::Fault(fault) => match fault {
            BackFault::Bye => "the server closes connections with a goodbye: check its log",
            BackFault::Preauth => "servers that require no password are not used",
            BackFault::NoStartTls => "let the server offer STARTTLS, or use its TLS port with `tls: implicit`",
            BackFault::Injection => "a device between usher and the server writes into the connection",
            BackFault::NoMechanism => "let the server offer PLAIN (a `service` needs it), or LOGIN, under TLS",
            BackFault::ForwardingRefused => "add usher to the server's trusted networks, or write `forward: none`",
            BackFault::Bad | BackFault::ProtocolViolation => "is this the port of this protocol?",
            BackFault::Referral => "write the server that it refers to as `address`",
            BackFault::TooLarge => "see limits.max_backend_greeting",
        },
        BackendError::NotServed
        | BackendError::LostInTls { .. }
        | BackendError::Down { .. }
        | BackendError::Refusing { .. }
        | BackendError::Full
        | BackendError::SlowStart
        | BackendError::NoServiceLogin
        | BackendError::TokenTooLong(_) => "",
    }
}

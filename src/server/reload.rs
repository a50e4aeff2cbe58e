//! A reload: everything the configuration says is built first; it replaces the snapshot in force as a whole, or
//! nothing changes.

use std::sync::Arc;

use futures_util::future::join_all;
use sd_notify::NotifyState;
use tracing::{error, info, warn};

use super::bind::{ListenerKey, collisions, listener_key, open_new};
use super::changed_config::ChangedConfig;
use super::changed_files::newly_expired;
use super::listening::Listening;
use super::prepare::prepare;
use super::sockets::{ipv4_wildcard, is_ipv6_wildcard, takes_ipv4};
use super::{Server, StartError};
use crate::admin::control::OrderResult;
use crate::base::clock::{date, unix_now};
use crate::config::TextDigest;
use crate::process::Snapshot;
use crate::trace::TraceEnd;

impl Server {
    /// Takes over the config file as it is now, or leaves everything as it was and says why.
    /// `force`: also with a certificate that has expired.
    pub(super) async fn reload(&mut self, force: bool) -> OrderResult {
        let outcome = self.reload_as(None, force).await;
        match &outcome {
            Ok(()) => info!(config = %self.file.display(), "reloaded"),
            Err(problems) => {
                self.shared.metrics.config_last_reload_successful.set(0);
                let _ = self.changed_config.refuse(problems);
                for problem in problems {
                    error!(problem, "reload failed; the previous configuration stays active");
                }
            }
        }
        outcome.map(|()| {
            let snapshot = self.shared.snapshot.load();
            let ends = snapshot.tls.certificates().iter().map(|served| served.not_after).min();
            let ends = ends.map_or_else(String::new, |end| format!(" (certificate valid until {})", date(end)));
            format!("reloaded: {}{ends}", self.file.display())
        })
    }

    /// Takes over the config file if it is sound and, with `expected`, has this text. Without problems in an error
    /// it has another one.
    pub(super) async fn reload_as(&mut self, expected: Option<TextDigest>, force: bool) -> Result<(), Vec<String>> {
        let _ = sd_notify::notify(&[NotifyState::Reloading, monotonic_now()]);
        let outcome = self.replace_snapshot(expected, force).await;
        let _ = sd_notify::notify(&[NotifyState::Ready]);
        outcome
    }

    async fn replace_snapshot(&mut self, expected: Option<TextDigest>, force: bool) -> Result<(), Vec<String>> {
        let (file, metrics) = (self.file.clone(), Arc::clone(&self.shared.metrics));
        let previous = self.shared.snapshot.load_full();
        let old = Arc::clone(&previous);
        // Files and certificates: milliseconds in which the sessions of this thread would wait.
        let prepared = self.reader.read(move || prepare(&file, &metrics, Some(&old))).await;
        // What it would find is about files that may be no longer meant.
        self.file_check = None;
        let snapshot = match prepared {
            Ok(Ok(snapshot)) => snapshot,
            Ok(Err(problems)) => return Err(problems.iter().map(ToString::to_string).collect()),
            Err(unread) => return Err(vec![unread.to_string()]),
        };
        if expected.is_some_and(|expected| snapshot.config.digest != expected) {
            return Err(Vec::new());
        }
        let expired = newly_expired(&previous, (&snapshot.config, &snapshot.tls));
        if !force && !expired.is_empty() {
            return Err(expired.iter().map(ToString::to_string).collect());
        }
        // What cannot change in a running process is refused with an error, not ignored.
        let fixed = [
            ("admin.address", previous.config.admin.address != snapshot.config.admin.address),
            ("control", previous.config.control != snapshot.config.control),
            ("fleet", previous.config.fleet != snapshot.config.fleet),
            ("process", previous.config.process != snapshot.config.process),
            ("log.format", previous.config.log.format != snapshot.config.log.format),
        ];
        let changed = fixed.iter().filter(|(_, changed)| *changed);
        let refused = changed.map(|(key, _)| {
            snapshot.config.problem(key, "this needs a restart; put the old value back to reload the rest").to_string()
        });
        let refused: Vec<String> =
            refused.chain(collisions(&snapshot.config, &self.listeners, Listening::takes_both)).collect();
        if !refused.is_empty() {
            return Err(refused);
        }
        // New listeners are bound before anything changes: if one fails, nothing has.
        let opened = open_new(&snapshot.config, &self.listeners, self.auth_http.as_ref(), self.socketmap.as_ref())
            .map_err(messages)?;
        let present = self.auth_http.as_ref().map(|(address, _)| *address);
        let stays = snapshot.config.auth_http.as_ref().map(|settings| settings.address) == present;
        let place = snapshot.config.socketmap.as_ref().map(|settings| &settings.place);
        let postfix_stays = place == self.socketmap.as_ref().map(|postfix| &postfix.place);
        self.apply_snapshot(&snapshot);
        self.refused = None;
        self.changed_config = ChangedConfig::default();
        self.shared.log.set(&snapshot.config.log);
        let wanted: Vec<ListenerKey> = snapshot.config.listeners.iter().map(listener_key).collect();
        let snapshot = Arc::new(snapshot);
        self.shared.snapshot.store(Arc::clone(&snapshot));
        self.shared.traces.end_all(TraceEnd::Reload);
        let config = &snapshot.config;
        let gone: Vec<ListenerKey> = self.listeners.keys().filter(|key| !wanted.contains(key)).copied().collect();
        let mut closed: Vec<Listening> = gone.iter().filter_map(|key| self.listeners.remove(key)).collect();
        for (address, protocol, _) in gone {
            info!(%address, protocol, "no longer listening");
        }
        for ((address, ..), listening) in &mut self.listeners {
            if is_ipv6_wildcard(*address) && !takes_ipv4(config, *address) {
                // Its half of IPv4 is accepted from by another listener.
                closed.push(listening.split(ipv4_wildcard(*address)));
            }
        }
        self.accept(opened.listeners);
        if !stays {
            closed.extend(self.auth_http.take().map(|(_, listening)| listening));
        }
        self.answer_nginx(opened.auth_http);
        if !postfix_stays && let Some(mut postfix) = self.socketmap.take() {
            postfix.remove_file();
            closed.push(postfix.listening);
        }
        self.answer_postfix(opened.socketmap);
        // Before the reply: another program may listen there from now on.
        join_all(closed.into_iter().map(Listening::close)).await;
        Ok(())
    }

    /// Adapts limits, drains and metrics to a snapshot that comes into force, and logs its warnings.
    pub(super) fn apply_snapshot(&self, snapshot: &Snapshot) {
        let metrics = &self.shared.metrics;
        metrics.know(&snapshot.config);
        self.shared.throttle.apply(&snapshot.config.throttle);
        self.shared.update_fleet(snapshot);
        let is_configured = |name: &str| snapshot.backends.get(name).is_some();
        for backend in self.shared.maintenance.keep(is_configured) {
            info!(backend = &*backend, "backend is no longer configured; its drain is over");
        }
        metrics.config_last_reload_successful.set(1);
        metrics.config_last_reload_success_timestamp.set(unix_now() as f64);
        for warning in &snapshot.config.warnings {
            warn!(%warning, "configuration warning");
        }
        self.report_certificates(snapshot);
    }

    /// Sets the metrics of its certificates and revocation lists, and logs the certificates that have expired.
    pub(super) fn report_certificates(&self, snapshot: &Snapshot) {
        let metrics = &self.shared.metrics;
        metrics.certificate_last_reload_successful.set(1);
        metrics.certificate_expiry.reset();
        for served in snapshot.tls.certificates() {
            let chain = served.chain.display().to_string();
            metrics.certificate_expiry.with_label_values(&[&chain]).set(served.not_after as f64);
            if served.expired {
                error!(chain, not_after = served.not_after, "certificate has expired and is still served: renew it");
            }
        }
        metrics.crl_next_update.reset();
        for lists in snapshot.tls.revocation_lists() {
            metrics.crl_next_update.with_label_values(&[&lists.path.display().to_string()]).set(lists.end as f64);
        }
    }
}

/// The mistakes of a configuration, or why an address cannot be bound.
fn messages(error: StartError) -> Vec<String> {
    match error {
        StartError::Config(problems) => problems.iter().map(ToString::to_string).collect(),
        StartError::Bind { .. } | StartError::Inherit(_) | StartError::Signals(_) => vec![error.to_string()],
    }
}

fn monotonic_now() -> NotifyState<'static> {
    NotifyState::monotonic_usec_now().unwrap_or(NotifyState::Status("reloading"))
}

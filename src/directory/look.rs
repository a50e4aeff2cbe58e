//! A look at a directory server: is it there, does it accept the service account, and does it show
//! the canary?
//!
//! The canary is an entry with a known mail host that every server must show. A server that lost
//! its data, its access rules or its way to the right subtree answers every question readily, and
//! wrongly: "no such user", "no mail host". Only such an entry tells that apart from the truth. It
//! is asked for whenever a search connection is made, at each look, and before "nothing" is believed.

use std::sync::Arc;
use std::sync::Mutex;

use tokio::time::Instant;
use tracing::{error, info};

use super::client::Client;
use super::connection::{Found, Question};
use super::health::Cause;
use super::lag::Lag;
use super::server::{Failure, Server, locked};
use super::{Trace, Trouble};

/// What a look asks for.
#[derive(Debug)]
pub(super) struct Look {
    question: Arc<Question>,
    /// The value that must be there; without a canary any answer will do.
    mail_host: Option<String>,
    canary: Mutex<Canary>,
    /// Read beside it, where it is of interest.
    pub(super) lag: Option<Lag>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Canary {
    shown_at: Option<Instant>,
    missing: bool,
}

impl Look {
    /// With `mail_host`, the question is for the canary.
    pub(super) fn new(question: Arc<Question>, mail_host: Option<String>) -> Self {
        Self { question, mail_host, canary: Mutex::default(), lag: None }
    }

    /// Whether there is a canary.
    pub(super) fn is_for_canary(&self) -> bool {
        self.mail_host.is_some()
    }

    /// Whether the server did not show the canary when it was asked last.
    pub(super) fn is_missing(&self) -> bool {
        locked(&self.canary).missing
    }

    fn is_shown(&self, found: &Found) -> bool {
        let Some(wanted) = &self.mail_host else { return true };
        let hosts = found.first.as_ref().map(|entry| entry.mail_hosts.as_slice()).unwrap_or_default();
        found.code == 0 && found.entries == 1 && hosts.iter().any(|host| host.eq_ignore_ascii_case(wanted))
    }
}

impl Server {
    /// Looks whether the server is well; what it finds is noted in `health`.
    pub(super) async fn look(self: &Arc<Self>) -> Result<(), Trouble> {
        let deadline = Instant::now() + self.patience.saturating_mul(2);
        if !self.health.is_in_use() || self.health.is_suspected() {
            // A fresh connection: an old one would tell about the past.
            *locked(&self.search) = None;
        }
        if self.needs_service {
            let mut trace = Trace::default();
            let shared = self.search_connection(deadline, &mut trace).await.map_err(Failure::trouble)?;
            // A connection that was just made has shown the canary.
            if shared.is_used() || !self.look.is_for_canary() {
                let answer = self.ask(&shared, &self.look.question, deadline, &mut trace).await;
                let found = answer.map_err(|fault| self.failed(self.look.question.operation, Cause::Look, &fault))?;
                self.seen(&found)?;
            } else {
                shared.mark_used();
            }
            self.measure_lag(&shared, deadline).await;
        } else {
            let mut connection = self.connect(deadline, &mut Trace::default()).await.map_err(Failure::trouble)?;
            self.show_itself(&mut connection, deadline).await?;
            self.keep(connection);
        }
        if self.health.looked_well() {
            info!(server = %self.url, "directory server is back");
        }
        self.top_up(deadline).await
    }

    /// Asks on a new connection what a look asks.
    pub(super) async fn show_itself(&self, connection: &mut Client, deadline: Instant) -> Result<(), Trouble> {
        let question = &self.look.question;
        let asked = connection.search(question, self.patience);
        let answer =
            self.observed(question.operation, deadline, &mut Trace::default(), asked, |found| found.code).await;
        let found = answer.map_err(|fault| self.failed(question.operation, Cause::Look, &fault))?;
        self.seen(&found)
    }

    /// Before an answer of nothing is believed: the canary, unless it was shown just now.
    pub(super) async fn confirm(self: &Arc<Self>, deadline: Instant) -> Result<(), Trouble> {
        let shown_at = locked(&self.look.canary).shown_at;
        if !self.look.is_for_canary() || shown_at.is_some_and(|shown| shown.elapsed() < self.tuning.canary) {
            return Ok(());
        }
        let mut trace = Trace::default();
        let shared = self.search_connection(deadline, &mut trace).await.map_err(Failure::trouble)?;
        let answer = self.ask(&shared, &self.look.question, deadline, &mut trace).await;
        let found = answer.map_err(|fault| self.failed(self.look.question.operation, Cause::Look, &fault))?;
        self.seen(&found)
    }

    /// Judges the answer to a look.
    fn seen(&self, found: &Found) -> Result<(), Trouble> {
        let operation = self.look.question.operation;
        self.verdict(operation, Cause::Look, found.code, Instant::now()).map_err(Failure::trouble)?;
        let shown = self.look.is_shown(found);
        let mut canary = locked(&self.look.canary);
        let changed = canary.missing == shown;
        canary.missing = !shown;
        if shown {
            canary.shown_at = Some(Instant::now());
        }
        drop(canary);
        if shown {
            if changed {
                info!(server = %self.url, "the directory server shows the canary again");
            }
            return Ok(());
        }
        if changed {
            let (code, entries) = (found.code, found.entries);
            error!(server = %self.url, code, entries, "the directory server does not show the canary: it is not used");
        }
        let trouble = Trouble::Canary { server: self.url.clone() };
        self.broke(Cause::Look, &trouble);
        Err(trouble)
    }
}

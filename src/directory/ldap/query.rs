//! A search request for one entry, and its result.

use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use ldap3::Scope;

use crate::directory::ldap::error::ConnectionError;
use crate::directory::ldap::health::OperationOrigin;
use crate::directory::ldap::ranges::Rest;
use crate::directory::ldap::schema::{self, Attributes, Shown};
use crate::directory::{Entry, ServerResult};
use crate::proto::ldap::filter::ANY_ENTRY;
use crate::proto::ldap::result::{NO_SUCH_OBJECT, SIZE_LIMIT, SUCCESS};
use crate::telemetry::labels::DirectoryOperation;

/// Messages that one search may bring: two entries and the references beside them.
pub(crate) const MAX_MESSAGES: usize = 1_000;

/// A search request.
#[derive(Debug)]
pub(crate) struct SearchRequest {
    /// `Search` or `Read`.
    pub(crate) operation: DirectoryOperation,
    /// The base DN.
    pub(crate) base: String,
    /// The scope.
    pub(crate) scope: Scope,
    /// The filter.
    pub(crate) filter: String,
    /// The attributes to read.
    pub(crate) attributes: Arc<Attributes>,
}

impl SearchRequest {
    /// The requested size limit and time limit in seconds.
    pub(crate) fn limits(&self, time_limit: Duration) -> (u32, u32) {
        let seconds = u32::try_from(time_limit.as_secs().saturating_add(1)).unwrap_or(u32::MAX).min(i32::MAX as u32);
        // Two are enough: one entry is a user, more are an ambiguity.
        (if self.scope == Scope::Base { 1 } else { 2 }, seconds)
    }

    /// The origin for this request.
    pub(crate) fn origin(&self) -> OperationOrigin {
        login_origin(self.operation, &[&self.base, &self.filter])
    }
}

/// The origin of a login's operation on this subject.
pub(crate) fn login_origin(operation: DirectoryOperation, subject: &[&str]) -> OperationOrigin {
    // A hash collision costs one probe.
    OperationOrigin::Login { operation, subject: schema::KEY.hash_one(subject) }
}

/// The result of a [`SearchRequest`].
#[derive(Debug)]
pub(crate) struct SearchResult {
    /// The result code.
    pub(crate) code: u32,
    /// The server's text beside another code than success.
    pub(crate) message: Option<Arc<str>>,
    /// Whether it was a read of one DN.
    pub(crate) is_read: bool,
    /// The number of entries.
    pub(crate) entries: usize,
    /// The first of them.
    pub(crate) first: Option<Entry>,
    /// What is left to be read of the first.
    rest: Option<Rest>,
    /// The DN of the second.
    pub(crate) second: Option<Arc<str>>,
    /// An entry of another principal name was found, which does not count.
    pub(crate) other: bool,
}

impl SearchResult {
    /// The result of a request, so far without entries.
    pub(crate) fn of(request: &SearchRequest) -> Self {
        let is_read = request.scope == Scope::Base;
        Self { code: SUCCESS, message: None, is_read, entries: 0, first: None, rest: None, second: None, other: false }
    }

    /// A found entry of which something is left to be read.
    pub(crate) fn unfinished(entry: Entry, rest: Rest) -> Self {
        let (code, message, second) = (SUCCESS, None, None);
        Self { code, message, is_read: true, entries: 1, first: Some(entry), rest: Some(rest), second, other: false }
    }

    /// Counts an entry; parses the first two.
    pub(crate) fn count(&mut self, parse: impl FnOnce() -> Option<Shown>) -> Result<(), ConnectionError> {
        if self.entries < 2 {
            let Shown { reported, rest, is_other } = parse().ok_or(ConnectionError::Malformed)?;
            if is_other {
                self.other = true;
                return Ok(());
            }
            self.entries += 1;
            match self.entries {
                1 => (self.first, self.rest) = (Some(reported.entry), rest),
                _ => self.second = Some(reported.entry.dn),
            }
        } else {
            self.entries += 1;
        }
        Ok(())
    }

    /// The request for what is left of the only entry; `None` if it is complete, or cannot be used anyway.
    pub(crate) fn rest_request(&self, operation: DirectoryOperation, attributes: &Attributes) -> Option<SearchRequest> {
        let (rest, entry) = (self.rest.as_ref()?, self.first.as_ref()?);
        if self.code != SUCCESS || self.entries != 1 || entry.fault.is_some() {
            return None;
        }
        let (base, filter) = (entry.dn.to_string(), ANY_ENTRY.to_owned());
        let attributes = Arc::new(attributes.only(rest));
        Some(SearchRequest { operation, base, scope: Scope::Base, filter, attributes })
    }

    /// Adds the next piece of the entry. If it does not come, the whole result is undecided: a part is no verdict.
    pub(crate) fn append(&mut self, piece: Self) -> Result<(), ConnectionError> {
        let rest = self.rest.take();
        if piece.code != SUCCESS {
            (self.code, self.message) = (piece.code, piece.message);
            return Ok(());
        }
        let (Some(rest), Some(entry), Some(more)) = (rest, &mut self.first, piece.first) else {
            return Err(ConnectionError::Malformed);
        };
        if !entry.dn.eq_ignore_ascii_case(&more.dn) {
            return Err(ConnectionError::Malformed);
        }
        schema::add_allowed(entry, &rest.attribute, more.allowed);
        if let Some(fault) = more.fault {
            schema::not_read(entry, *fault);
        }
        self.rest = piece.rest;
        Ok(())
    }

    /// Takes over the final result.
    pub(crate) fn end(&mut self, result: ServerResult) {
        (self.code, self.message) = (result.code, result.message);
        // A DN names one entry. With it nothing is missing: some servers say so as soon as the limit is reached.
        if self.is_read && self.entries == 1 && self.code == SIZE_LIMIT {
            (self.code, self.message) = (SUCCESS, None);
        }
    }

    /// The final result.
    pub(crate) fn result(&self) -> ServerResult {
        ServerResult { code: self.code, message: self.message.clone() }
    }

    /// Whether there is no such entry, or it has no mail host.
    pub(crate) fn lacks_mail_host(&self) -> bool {
        let nowhere = |entry: &Entry| entry.mail_hosts.is_empty();
        self.code == NO_SUCH_OBJECT || (self.code == SUCCESS && self.first.as_ref().is_none_or(nowhere))
    }
}

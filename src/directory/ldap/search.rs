//! Searches on a shared connection, message by message: the one loop over the replies to a search.
//!
//! Continuation references accompany entries (Active Directory always sends them) and are not followed. Success is only
//! reported if a final result says so. A search page by page is RFC 2696.

use std::future::Future;
use std::time::Duration;

use ldap3::adapters::{Adapter, PagedResults};
use ldap3::asn1::StructureTag;
use ldap3::controls::RawControl;
use ldap3::{ResultEntry, SearchOptions, SearchStream};
use tokio::time::{Instant, timeout_at};

use crate::directory::ldap::connection::Connection;
use crate::directory::ldap::error::ConnectionError;
use crate::directory::ldap::query::{MAX_MESSAGES, Scope, SearchRequest, SearchResult};
use crate::directory::ldap::ranges::Rest;
use crate::directory::ldap::schema::{Attributes, read_entry};
use crate::directory::{Entry, ServerResult};
use crate::proto::ldap::result::{NO_SUCH_OBJECT, SUCCESS};
use crate::telemetry::labels::DirectoryOperation;

/// Entries in a page.
const PAGE: i32 = 500;

/// What is searched for.
#[derive(Debug)]
pub(crate) struct Query<'a> {
    pub(crate) base: &'a str,
    pub(crate) scope: Scope,
    pub(crate) filter: &'a str,
    /// The requested attributes.
    pub(crate) names: Vec<&'a str>,
    pub(crate) options: QueryOptions,
}

/// How it is searched for.
#[derive(Debug, Default)]
pub(crate) struct QueryOptions {
    /// Page by page.
    pub(crate) paged: bool,
    /// The requested limit of entries; 0: none.
    pub(crate) size_limit: u32,
    /// The requested time limit in seconds; 0: none.
    pub(crate) time_limit: u32,
    pub(crate) control: Option<RawControl>,
    /// How long each message may take.
    pub(crate) silence: Option<Duration>,
    /// When the search must be complete.
    pub(crate) ends: Option<Instant>,
}

impl<'a> Query<'a> {
    /// The values of some attributes of one entry.
    pub(crate) fn read(base: &'a str, names: Vec<&'a str>) -> Self {
        Self { base, scope: Scope::Base, filter: "(objectClass=*)", names, options: QueryOptions::default() }
    }

    /// All entries that match below a base.
    pub(crate) fn below(base: &'a str, filter: &'a str, names: Vec<&'a str>, options: QueryOptions) -> Self {
        Self { base, scope: Scope::Subtree, filter, names, options }
    }
}

/// A search in progress. It must not be used after an error.
pub(crate) struct Search<'a> {
    connection: &'a Connection,
    replies: SearchStream<'a, &'a str, Vec<&'a str>>,
    silence: Option<Duration>,
    ends: Option<Instant>,
}

impl<'a> Search<'a> {
    /// Sends the request.
    pub(crate) async fn start(connection: &'a Connection, query: Query<'a>) -> Result<Self, ConnectionError> {
        let Query { base, scope, filter, names, options } = query;
        let QueryOptions { paged, size_limit, time_limit, control, silence, ends } = options;
        let limit = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let mut ldap = connection.handle();
        ldap.with_search_options(SearchOptions::new().sizelimit(limit(size_limit)).timelimit(limit(time_limit)));
        if let Some(control) = control {
            ldap.with_controls(control);
        }
        let mut adapters: Vec<Box<dyn Adapter<'a, &'a str, Vec<&'a str>> + 'a>> = Vec::new();
        if paged {
            adapters.push(Box::new(PagedResults::new(PAGE)));
        }
        let started = connection.contained(ldap.streaming_search_with(adapters, base, scope, filter, names));
        let replies = within(deadline(silence, ends), started).await?;
        Ok(Self { connection, replies, silence, ends })
    }

    /// The next entry, reference or intermediate response; `None` at the end. Cancel safe.
    pub(crate) async fn next_message(&mut self) -> Result<Option<ResultEntry>, ConnectionError> {
        within(deadline(self.silence, self.ends), self.connection.contained(self.replies.next())).await
    }

    /// The next entry, as its SearchResultEntry; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<StructureTag>, ConnectionError> {
        while let Some(message) = self.next_message().await? {
            if !message.is_ref() && !message.is_intermediate() {
                return Ok(Some(message.0));
            }
        }
        Ok(None)
    }

    /// The result, after the end. Without a final result its code is 88.
    pub(crate) async fn result(mut self) -> ServerResult {
        let result = self.replies.finish().await;
        ServerResult::new(result.rc, &result.text)
    }
}

/// When the next message must have arrived.
fn deadline(silence: Option<Duration>, ends: Option<Instant>) -> Option<Instant> {
    silence.map(|silence| Instant::now() + silence).into_iter().chain(ends).min()
}

async fn within<T>(
    deadline: Option<Instant>,
    reply: impl Future<Output = Result<T, ConnectionError>>,
) -> Result<T, ConnectionError> {
    match deadline {
        Some(deadline) => timeout_at(deadline, reply).await.unwrap_or(Err(ConnectionError::Timeout)),
        None => reply.await,
    }
}

/// Searches for one entry, and reads all of its pieces; any number of such searches may run at the same time.
pub(crate) async fn one(
    connection: &Connection,
    request: &SearchRequest,
    time_limit: Duration,
) -> Result<SearchResult, ConnectionError> {
    let mut found = answer(connection, request, time_limit).await?;
    complete(connection, (request.operation, &request.attributes), &mut found, time_limit).await?;
    Ok(found)
}

/// Reads what is left of a found entry.
pub(crate) async fn complete(
    connection: &Connection,
    (operation, attributes): (DirectoryOperation, &Attributes),
    found: &mut SearchResult,
    time_limit: Duration,
) -> Result<(), ConnectionError> {
    while let Some(next) = found.rest_request(operation, attributes) {
        found.append(answer(connection, &next, time_limit).await?)?;
    }
    Ok(())
}

/// The same for an entry that one of many messages has brought, before this deadline; `None` if it is gone.
pub(crate) async fn completed(
    connection: &Connection,
    attributes: &Attributes,
    (entry, rest): (Entry, Rest),
    ends: Instant,
) -> Result<Option<Entry>, ConnectionError> {
    let mut found = SearchResult::unfinished(entry, rest);
    let left = ends.saturating_duration_since(Instant::now());
    let read = complete(connection, (DirectoryOperation::Search, attributes), &mut found, left);
    within(Some(ends), read).await?;
    match found.code {
        SUCCESS => Ok(found.first),
        NO_SUCH_OBJECT => Ok(None),
        _ => Err(ConnectionError::Malformed),
    }
}

/// The answer to one request.
async fn answer(
    connection: &Connection,
    request: &SearchRequest,
    time_limit: Duration,
) -> Result<SearchResult, ConnectionError> {
    let (size_limit, time_limit) = request.limits(time_limit);
    let options = QueryOptions { size_limit, time_limit, ..QueryOptions::default() };
    let (wanted, names) = (&request.attributes, request.attributes.names());
    connection.count_operation();
    let query = Query { base: &request.base, scope: request.scope, filter: &request.filter, names, options };
    let mut search = Search::start(connection, query).await?;
    let mut found = SearchResult::of(request);
    let mut messages = 0;
    while let Some(message) = search.next_message().await? {
        messages += 1;
        if messages > MAX_MESSAGES {
            return Err(ConnectionError::Malformed);
        }
        if !message.is_ref() && !message.is_intermediate() {
            found.count(|| read_entry(message.0, wanted))?;
        }
    }
    found.end(search.result().await);
    Ok(found)
}

/// All entries of a search, each given to `take`; the result.
pub(crate) async fn each(
    connection: &Connection,
    query: Query<'_>,
    mut take: impl FnMut(StructureTag) -> Result<(), ConnectionError>,
) -> Result<ServerResult, ConnectionError> {
    let mut search = Search::start(connection, query).await?;
    while let Some(entry) = search.next().await? {
        take(entry)?;
    }
    Ok(search.result().await)
}

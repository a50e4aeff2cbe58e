//! Diagnoses every server, for `usher check --connect`: each step of a login and of the watch, one after the
//! other, with its result.
//!
//! Uses separate connections, opened and bound by the code that serves logins; no password but the service
//! account's is sent. `inspect` interprets the results.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use ldap3::controls::{RawControl, RefreshMode, SyncRequest};
use tokio::time::{Instant, timeout_at};

use crate::base::credential::Login;
use crate::config::{Find, WatchMode};
use crate::directory::diagnosis::ServerProbed;
use crate::directory::ldap::Ldap;
use crate::directory::ldap::changes::RootDse;
use crate::directory::ldap::connection::Connection;
use crate::directory::ldap::error::{ConnectionError, RequestError};
use crate::directory::ldap::listing;
use crate::directory::ldap::lockout;
use crate::directory::ldap::lookup::{self, read, request_by_name, search};
use crate::directory::ldap::query::{Scope, SearchRequest, SearchResult};
use crate::directory::ldap::schema;
use crate::directory::ldap::search::{self, Query, QueryOptions, Search};
use crate::directory::ldap::server::Server;
use crate::directory::{
    BoxFuture, Diagnosis, FollowedBy, ListedServer, SampleLookup, ServerDiagnosis, Trace, UnavailableCause, UserCount,
};
use crate::proto::ldap::attributes::CERTIFICATES;
use crate::proto::ldap::result::{SIZE_LIMIT, SUCCESS};
use crate::proto::ldap::template;

/// How long counting the users may take, and how many are counted.
const COUNTING: Duration = Duration::from_secs(10);
const MOST: usize = 200_000;

impl Diagnosis for Ldap {
    fn describe_lookup(&self, login: &Login) -> String {
        lookup::describe(self.settings(), login, self.attributes())
    }

    fn probe_all(&self) -> BoxFuture<'_, Vec<ServerProbed>> {
        Box::pin(async {
            self.server_set().look_up(false).await;
            let probes = self.servers().into_iter();
            join_all(probes.map(|server| async move { (server.url.clone(), server.run_probe().await) })).await
        })
    }

    fn examine<'a>(&'a self, sample: Option<&'a Login>) -> BoxFuture<'a, Vec<ServerDiagnosis>> {
        Box::pin(async move {
            self.server_set().look_up(true).await;
            let servers = self.servers();
            join_all(servers.iter().map(|server| self.diagnose_server(server, sample))).await
        })
    }

    fn servers(&self) -> Vec<ListedServer> {
        self.server_set().listed()
    }

    fn lag(&self, url: &str) -> Option<f64> {
        let servers = Self::servers(self);
        let server = servers.iter().find(|server| &*server.url == url)?;
        server.lag.as_ref()?.seconds()
    }
}

impl Ldap {
    async fn diagnose_server(&self, server: &Arc<Server>, sample: Option<&Login>) -> ServerDiagnosis {
        let deadline = || Instant::now() + server.endpoint.patience;
        let mut examined = ServerDiagnosis {
            url: Arc::clone(&server.url),
            settings: self.server_set().settings_of(server),
            users_base: lookup::users_base(&self.settings().find),
            connection: Err(UnavailableCause::Timeout),
            service: None,
            base: None,
            sample: None,
            with_mail_host: None,
            with_certificate: None,
            changes: None,
            users: None,
            password_users: None,
            lockout: None,
            canary: None,
        };
        examined.connection = match server.endpoint.connect(deadline(), &mut Trace::default()).await {
            Ok(connection) => Ok(connection.certificate()),
            Err(error) => Err(RequestError::cause(error)),
        };
        if examined.connection.is_err() {
            return examined;
        }
        let mut client = match server.service.open_bound().await {
            Ok(client) => client,
            Err(cause) => {
                examined.service = Some(Err(cause));
                return examined;
            }
        };
        examined.service = Some(Ok(()));
        let settings = self.settings();
        // Where only the user may read, no further step is possible.
        if settings.find.service().is_none() && !matches!(settings.find, Find::Search { .. }) {
            return examined;
        }
        if server.probe.has_canary() {
            examined.canary = Some(server.probe.send(&server.endpoint, &mut client, deadline()).await);
        }
        let connection = match server.service.shared(client).await {
            Ok(connection) => connection,
            Err(cause) => {
                examined.connection = Err(cause);
                return examined;
            }
        };
        let ask = async |query: SearchRequest| {
            let asked = search::one(&connection, &query, server.endpoint.patience);
            timeout_at(deadline(), asked)
                .await
                .unwrap_or(Err(ConnectionError::Timeout))
                .map_err(|error| error.unavailable(&server.url))
        };
        let (base, users) = (examined.users_base.clone(), lookup::users_filter(&settings.find));
        let attributes = self.attributes();
        // The root has no readable entry.
        if !base.is_empty() {
            let found = ask(read(base.clone(), attributes)).await;
            examined.base = Some(found.map(|found| (found.result(), found.entries > 0)));
        }
        let canary = settings.canary.as_ref().and_then(|canary| Login::parse(canary.login.as_bytes()));
        let query = match (sample.or(canary.as_ref()), &settings.find) {
            (None, _) => Some(search(&base, users.clone(), attributes)),
            (Some(login), Find::Search { base, filter, .. }) => {
                lookup::search_filter(settings, filter, login).map(|filter| search(base, filter, attributes))
            }
            (Some(login), find) => request_by_name(find, login, attributes).map(|(_, query)| query),
        };
        if let Some(query) = query {
            let filter = if query.scope == Scope::Base { query.base.clone() } else { query.filter.clone() };
            let found = ask(query).await;
            examined.sample = Some(found.map(|found| SampleLookup::of(filter, None, found)));
        }
        // The first of all users stands for them: is it the only one by its name?
        if let (None, None, Find::Search { base, filter, .. }) = (sample, &canary, &settings.find)
            && let Some(Ok(SampleLookup { first: Some(first), .. })) = &examined.sample
            && let Ok(Some(login)) = own_login(&connection, &first.dn, &settings.find, deadline()).await
            && let Some(filter) = template::filter(filter, &login)
            && let Ok(found) = ask(search(base, filter.clone(), attributes)).await
            && found.entries > 1
        {
            examined.sample = Some(Ok(SampleLookup::of(filter, Some(login.as_str().to_owned()), found)));
        }
        let having = async |attribute: &str| {
            let found = ask(search(&base, format!("(&{users}({attribute}=*))"), attributes)).await;
            found.map(|found| {
                let result = found.result();
                (found.first, result)
            })
        };
        examined.with_mail_host = Some(having(&settings.mail_host_attribute).await);
        if settings.reads_certificates {
            examined.with_certificate = Some(having(CERTIFICATES).await);
        }
        if settings.watch.mode != WatchMode::Off {
            let tried = followed_by(&connection, &base, &users).await;
            examined.changes = Some(tried.map_err(|error| error.unavailable(&server.url)));
        }
        let policies = lockout::strictest(&connection, &base).await;
        examined.lockout = Some(policies.map_err(|error| error.unavailable(&server.url)));
        let by_sync = matches!(
            &examined.changes,
            Some(Ok(FollowedBy::Synchronization(result))) if matches!(result.code, SUCCESS | SIZE_LIMIT)
        );
        let paged = !by_sync || settings.watch.mode == WatchMode::Poll;
        let count = async |filter: &str| {
            let counted = count(&connection, &base, filter, paged);
            let counted = timeout_at(Instant::now() + COUNTING.saturating_mul(2), counted).await;
            counted.unwrap_or(Err(ConnectionError::Timeout)).map_err(|error| error.unavailable(&server.url))
        };
        examined.users = Some(count(&users).await);
        if let Some(filter) = &settings.password_filter {
            examined.password_users = Some(count(&format!("(&{users}{filter})")).await);
        }
        examined
    }
}

/// The name by which an entry's user would log in.
async fn own_login(
    connection: &Connection,
    dn: &str,
    find: &Find,
    deadline: Instant,
) -> Result<Option<Login>, ConnectionError> {
    let (naming, mut names) = (lookup::naming(find), Vec::new());
    let attributes = naming.iter().map(|naming| naming.attribute.as_str()).collect();
    let options = QueryOptions { ends: Some(deadline), ..QueryOptions::default() };
    search::each(connection, Query { options, ..Query::read(dn, attributes) }, |entry| {
        let (_, values) = schema::parts(entry).ok_or(ConnectionError::Malformed)?;
        names = listing::names(&values, &naming);
        Ok(())
    })
    .await?;
    Ok(names.first().and_then(|name| Login::parse(name.as_bytes())))
}

impl SampleLookup {
    fn of(filter: String, login: Option<String>, found: SearchResult) -> Self {
        let result = found.result();
        let SearchResult { entries, first, second, .. } = found;
        Self { filter, login, result, entries, first, second }
    }
}

/// How changes can be followed. Content synchronization is requested, for one entry: that it is advertised says nothing
/// about this database.
async fn followed_by(connection: &Connection, base: &str, filter: &str) -> Result<FollowedBy, ConnectionError> {
    let until = Instant::now() + COUNTING;
    let root = timeout_at(until, RootDse::read(connection)).await.map_err(|_| ConnectionError::Timeout)??;
    if !root.syncs {
        return Ok(match root.usn {
            Some(_) => FollowedBy::Numbers { sees_deleted: root.sees_deleted(connection, base).await? },
            None => FollowedBy::Time,
        });
    }
    let request = SyncRequest { mode: RefreshMode::RefreshOnly, cookie: None, reload_hint: false };
    let request = RawControl { crit: true, ..request.into() };
    let options = QueryOptions { size_limit: 1, control: Some(request), ends: Some(until), ..QueryOptions::default() };
    let query = Query::below(base, filter, vec!["1.1"], options);
    let result = search::each(connection, query, |_| Ok(())).await?;
    Ok(FollowedBy::Synchronization(result))
}

/// Counts the users as the watch would read them.
async fn count(connection: &Connection, base: &str, filter: &str, paged: bool) -> Result<UserCount, ConnectionError> {
    let until = Instant::now() + COUNTING;
    let options = QueryOptions { paged, ends: Some(until), ..QueryOptions::default() };
    let mut search = Search::start(connection, Query::below(base, filter, vec!["1.1"], options)).await?;
    let mut users = 0;
    loop {
        if users >= MOST || Instant::now() >= until {
            return Ok(UserCount { users, result: SUCCESS.into(), more: true, paged });
        }
        match search.next().await {
            Ok(Some(_)) => users += 1,
            Ok(None) => break,
            Err(ConnectionError::Timeout) if users > 0 => {
                return Ok(UserCount { users, result: SUCCESS.into(), more: true, paged });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(UserCount { users, result: search.result().await, more: false, paged })
}

//! Requests on the control socket. A GET changes nothing; each POST is logged with the caller's uid.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::body::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;

use super::arguments::{Part, QueryArgs, Rejection, without_body};
use super::caller::{Caller, audit};
use super::client::NO_SUCH_PATH;
use super::lookup;
use super::status;
use super::trace::{self, ExtraTime};
use super::trial;
use super::{
    Cached, Confirmed, Dropped, Kicked, Leaving, Looked, Order, OrderResult, Outcome, Recent, Request, Status,
};
use crate::admin::overview::{self, Backend};
use crate::base::clock::unix_now;
use crate::base::credential::Login;
use crate::cache::CacheRecord;
use crate::frontend::session::trial::TrialResult;
use crate::login::explain::running::{self, RunningVerdict};
use crate::login::history::Attempt;
use crate::login::realms::RealmCore;
use crate::outcome::Refusal;
use crate::process::{Shared, Snapshot, Stage};
use crate::routing;
use crate::sessions::filter::Filter;
use crate::sessions::maintenance::Drain;
use crate::sessions::registry::{EntryRef, Session};
use crate::telemetry::log::Escaped;

/// Upper limit of a drain rate: more closes per second than any machine performs.
const FASTEST: u32 = 10_000;

type Answer<T> = Result<Json<T>, Rejection>;

#[derive(Clone)]
struct Control {
    shared: Arc<Shared>,
    orders: mpsc::Sender<Request>,
}

/// What this process answers by itself.
pub(super) fn router(shared: Arc<Shared>, orders: mpsc::Sender<Request>) -> Router {
    Router::new()
        .route("/sessions", get(sessions))
        .route("/kick", post(kick))
        .route("/backends", get(backends))
        .route("/backends/{name}/drain", post(drain_backend))
        .route("/backends/{name}/undrain", post(undrain_backend))
        .route("/cache", get(cached))
        .route("/cache/drop", post(drop_cached))
        .route("/lookup", get(look_up))
        .route("/history", get(history))
        .route("/answers", get(answers))
        .route("/explain", get(explain))
        .route("/confirm/{seconds}", post(confirm))
        .route("/trace", post(follow))
        .route("/drain", post(drain))
        .route("/status", get(status))
        .route("/reload", post(reload))
        .route("/upgrade", post(|control, caller, arguments| order(control, caller, arguments, Order::Upgrade)))
        .fallback(|| async { Rejection(StatusCode::NOT_FOUND, NO_SUCH_PATH.to_owned()) })
        .method_not_allowed_fallback(|| async {
            let words = "method not allowed: GET reads and POST changes";
            Rejection(StatusCode::METHOD_NOT_ALLOWED, words.to_owned())
        })
        .layer(middleware::from_fn(without_body))
        .route("/try", post(try_login).layer(DefaultBodyLimit::max(trial::BODY_LIMIT)))
        .with_state(Control { shared, orders })
}

impl Control {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// The sessions that match a filter, oldest first.
    fn chosen(&self, filter: &Filter) -> Result<Vec<Arc<Session>>, Rejection> {
        let (snapshot, sessions) = (self.snapshot(), self.shared.registry.sessions());
        if let Some(backend) = &filter.backend {
            // A backend that a reload removed may still have sessions.
            let has_sessions = || sessions.iter().any(|session| *session.backend == **backend);
            known_backend(&snapshot, backend).or_else(|error| if has_sessions() { Ok(()) } else { Err(error) })?;
        }
        Ok(filter.choose(sessions, cached_entries(&snapshot, filter), unix_now()))
    }

    /// The entries that the filter's user is known to have: of the cache, and of sessions under that name.
    fn entries(&self, filter: &Filter) -> Vec<EntryRef> {
        let Some(user) = &filter.user else { return Vec::new() };
        let sessions = self.shared.registry.sessions();
        let mut entries: Vec<_> = sessions.iter().flat_map(|session| session.entries_named(user)).collect();
        entries.extend(cached_entries(&self.snapshot(), filter));
        entries.retain(|entry| filter.directory.as_ref().is_none_or(|name| entry.is_in(name)));
        entries.sort_unstable();
        entries.dedup();
        entries
    }
}

/// The entries that the caches know the filter's user by.
fn cached_entries(snapshot: &Snapshot, filter: &Filter) -> Vec<EntryRef> {
    let Some(login) = filter.user.as_ref().and_then(|user| Login::parse(user.as_bytes())) else { return Vec::new() };
    let cached = snapshot.realms.cached(&login);
    cached.map(|(realm, _, dn)| EntryRef::new(realm.realm.shown(&realm.settings), &dn)).collect()
}

/// The directories that a request is about: the one that it names, or all.
fn directories<'a>(snapshot: &'a Snapshot, arguments: &mut QueryArgs) -> Result<Vec<&'a RealmCore>, Rejection> {
    let all = snapshot.realms.all();
    let Some(name) = arguments.take("directory") else { return Ok(all.iter().collect()) };
    let named: Vec<_> = all.iter().filter(|realm| realm.settings.name == name).collect();
    if named.is_empty() {
        let names: Vec<&str> = all.iter().map(|realm| realm.settings.name.as_str()).collect();
        let words = format!("unknown directory `{name}`; configured directories: {}", names.join(", "));
        return Err(Rejection::bad(words));
    }
    Ok(named)
}

fn known_backend(snapshot: &Snapshot, name: &str) -> Result<(), Rejection> {
    let names: Vec<&str> = snapshot.config.routing.backends.iter().map(|backend| backend.name.as_str()).collect();
    if names.contains(&name) {
        return Ok(());
    }
    let words = format!("unknown backend `{name}`; configured backends: {}", names.join(", "));
    Err(Rejection::bad(words))
}

async fn sessions(State(control): State<Control>, mut arguments: QueryArgs) -> Answer<Vec<Arc<Session>>> {
    let filter = arguments.filter()?;
    arguments.end()?;
    control.chosen(&filter).map(Json)
}

async fn kick(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    mut arguments: QueryArgs,
) -> Answer<Kicked> {
    let (filter, all) = (arguments.filter()?, arguments.flag("all")?);
    let (over, dry_run) = (arguments.time("over")?, arguments.flag("dry_run")?);
    let begun_by = arguments.number("begun_by", u32::MAX)?.map(u64::from);
    arguments.end()?;
    if filter.is_empty() != all {
        let words =
            "select sessions (user, backend, client, protocol, directory, older_than, younger_than), or all=true alone";
        return Err(Rejection::bad(words));
    }
    let mut sessions = control.chosen(&filter)?;
    let now = unix_now();
    sessions.retain(|session| begun_by.is_none_or(|second| session.has_begun_by(second, now)));
    let rate = control.snapshot().config.drain.max_closes_per_second;
    let count = sessions.len();
    let over = over.unwrap_or_else(|| Duration::from_secs_f64(count.saturating_sub(1) as f64 / f64::from(rate.max(1))));
    if !dry_run {
        audit("kick", &caller, &filter.to_string(), Some(count));
        control.shared.closer.kick(sessions.iter().map(|session| session.id).collect(), over);
    }
    let sessions = if dry_run { sessions } else { Vec::new() };
    Ok(Json(Kicked { count, over_seconds: over.as_secs_f64(), dry_run, sessions }))
}

async fn backends(State(control): State<Control>, arguments: QueryArgs) -> Answer<Vec<Backend>> {
    arguments.end()?;
    Ok(Json(overview::backends(&control.shared)))
}

async fn drain_backend(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Part(name): Part,
    mut arguments: QueryArgs,
) -> Answer<Backend> {
    let (snapshot, rate) = (control.snapshot(), arguments.number("rate", FASTEST)?);
    arguments.end()?;
    known_backend(&snapshot, &name)?;
    let Drain { rate, .. } =
        control.shared.maintenance.drain(&name, rate.unwrap_or(snapshot.config.drain.max_closes_per_second));
    audit("backend drain", &caller, &format!("backend={name} rate={rate}"), None);
    backend_now(&control, &name)
}

async fn undrain_backend(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Part(name): Part,
    arguments: QueryArgs,
) -> Answer<Backend> {
    arguments.end()?;
    known_backend(&control.snapshot(), &name)?;
    if control.shared.maintenance.undrain(&name) {
        audit("backend undrain", &caller, &format!("backend={name}"), None);
    }
    backend_now(&control, &name)
}

fn backend_now(control: &Control, name: &str) -> Answer<Backend> {
    let found = overview::backends(&control.shared).into_iter().find(|backend| backend.state.name == name);
    let gone = || Rejection(StatusCode::NOT_FOUND, format!("the backend `{name}` was removed by a reload"));
    found.map(Json).ok_or_else(gone)
}

/// The login name; an empty one is an error, because a script may have an empty variable.
fn login(arguments: &mut QueryArgs) -> Result<Option<String>, Rejection> {
    match arguments.take("login") {
        Some(login) if login.is_empty() => Err(Rejection::bad("`login` is empty")),
        login => Ok(login),
    }
}

async fn cached(State(control): State<Control>, mut arguments: QueryArgs) -> Answer<Vec<Cached>> {
    let login = login(&mut arguments)?.ok_or_else(|| Rejection::bad("`login` is missing"))?;
    let snapshot = control.snapshot();
    let directories = directories(&snapshot, &mut arguments)?;
    arguments.end()?;
    let found = directories.into_iter().flat_map(|realm| {
        let found = realm.authn.cache().remembered(&login);
        found.into_iter().map(move |remembered| (realm, remembered))
    });
    Ok(Json(found.map(|(realm, remembered)| shown(&snapshot, realm, remembered)).collect()))
}

fn shown(snapshot: &Snapshot, realm: &RealmCore, remembered: CacheRecord) -> Cached {
    let CacheRecord { key: _, dn, names, entry, right, wrong, tokens, addresses, age, left, stale_left } = remembered;
    let routing = &snapshot.config.routing;
    let target = entry.as_ref().and_then(|entry| routing::route(routing, entry).ok());
    Cached {
        dn: dn.to_string(),
        directory: realm.realm.shown(&realm.settings).map(str::to_owned),
        names,
        mail_host: entry.as_ref().map(|entry| entry.mail_hosts.clone()).unwrap_or_default(),
        backend: target.map(|route| route.backend.to_owned()),
        right,
        wrong,
        tokens,
        addresses,
        age_seconds: age.map(|age| age.as_secs()),
        left_seconds: left.map(|left| left.as_secs()),
        stale_left_seconds: stale_left.map(|left| left.as_secs()),
    }
}

/// A text that must not be empty, because a script may have an empty variable.
fn required(arguments: &mut QueryArgs, key: &str) -> Result<String, Rejection> {
    let text = arguments.take(key).filter(|text| !text.is_empty());
    text.ok_or_else(|| Rejection::bad(format!("`{key}` is missing")))
}

async fn look_up(State(control): State<Control>, mut arguments: QueryArgs) -> Answer<Looked> {
    let address = required(&mut arguments, "address")?;
    arguments.end()?;
    lookup::look_up(&control.snapshot(), &address).await.map(Json)
}

async fn history(State(control): State<Control>, mut arguments: QueryArgs) -> Answer<Vec<Attempt>> {
    let login = required(&mut arguments, "login")?;
    arguments.end()?;
    // By any name that led to the entry: what is typed seldom is in the cache under the name that a helpdesk knows.
    let snapshot = control.snapshot();
    let known = Login::parse(login.as_bytes())
        .into_iter()
        .flat_map(|name| snapshot.realms.cached(&name).map(|(_, _, dn)| dn).collect::<Vec<_>>());
    let dns: Vec<Arc<str>> = known.collect();
    let shared = Arc::clone(&control.shared);
    let found = spawn_blocking(move || shared.history.of(&login, &dns)).await;
    found.map(Json).map_err(|_| Rejection(StatusCode::INTERNAL_SERVER_ERROR, "the history cannot be read".to_owned()))
}

async fn answers(State(control): State<Control>, mut arguments: QueryArgs) -> Answer<Recent> {
    let dn = required(&mut arguments, "dn")?;
    arguments.end()?;
    Ok(Json(lookup::recent(&control.shared, &dn)))
}

async fn drop_cached(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    mut arguments: QueryArgs,
) -> Answer<Dropped> {
    let (login, all) = (login(&mut arguments)?, arguments.flag("all")?);
    let snapshot = control.snapshot();
    let named = arguments.has("directory").then(|| directories(&snapshot, &mut arguments)).transpose()?;
    arguments.end()?;
    let is_named =
        |realm: &&RealmCore| named.as_ref().is_none_or(|named| named.iter().any(|one| one.realm == realm.realm));
    let caches = || snapshot.realms.all().iter().filter(is_named).map(|realm| realm.authn.cache());
    // Those of one user are not found by a name that the directory has meanwhile.
    snapshot.tokens.forget_answers();
    let dropped = match (login, all) {
        (Some(login), false) => {
            let mut dns = Vec::new();
            for cache in caches() {
                let found = cache.remembered(&login);
                found.iter().for_each(|entry| cache.drop_entry(entry));
                dns.extend(found.into_iter().map(|entry| entry.dn));
            }
            let what = format!("login={}", Escaped(login.as_bytes()));
            audit("cache drop", &caller, &what, Some(dns.len()));
            Dropped { entries: dns.len(), dns: dns.iter().map(ToString::to_string).collect() }
        }
        (None, true) => {
            let entries = caches().map(|cache| cache.all_entries()).sum();
            caches().for_each(|cache| cache.drop_all());
            audit("cache drop", &caller, "all", Some(entries));
            Dropped { entries, dns: Vec::new() }
        }
        (Some(_), true) | (None, false) => {
            return Err(Rejection::bad("specify login, or all=true alone"));
        }
    };
    Ok(Json(dropped))
}

/// What a login of this name would meet now.
async fn explain(State(control): State<Control>, mut arguments: QueryArgs) -> Answer<RunningVerdict> {
    let (name, from) = (login(&mut arguments)?, arguments.take("from"));
    arguments.end()?;
    let name = name.ok_or_else(|| Rejection::bad("`login` is missing"))?;
    let from = from.map(|text| text.parse::<IpAddr>().map(|address| address.to_canonical())).transpose();
    let from = from.map_err(|_| Rejection::bad("`from` is no address"))?;
    let shared = &control.shared;
    let mut verdict = running::judge(shared.login(), &name, from).await;
    if let Some(dn) = &verdict.dn {
        let is_of_user = |entry: EntryRef| {
            entry.is_dn(dn) && verdict.directory.as_ref().is_none_or(|directory| entry.is_in(directory))
        };
        let sessions = shared.registry.sessions();
        verdict.sessions = sessions.iter().filter(|session| session.entries().any(is_of_user)).count();
    }
    if *shared.stage.borrow() >= Stage::Draining {
        verdict.refuse(&Refusal::Draining, "this process is shutting down and takes no login");
    }
    Ok(Json(verdict))
}

async fn confirm(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Part(seconds): Part,
    mut arguments: QueryArgs,
) -> Answer<Confirmed> {
    let snapshot = control.snapshot();
    let directories = directories(&snapshot, &mut arguments)?;
    arguments.end()?;
    let number = |_| Rejection::bad(format!("`{seconds}` is not a number of seconds"));
    let seconds: u32 = seconds.parse().map_err(number)?;
    let (shared, time) = (&control.shared, Duration::from_secs(seconds.into()));
    // Another node that asks has asked all nodes itself.
    let is_for_all = shared.fleet.is_some() && caller.node.is_none();
    let confirmed = directories.into_iter().map(|realm| {
        let setting = realm.setting(&snapshot.config.routing);
        let tracker = shared.trackers.of(setting.realm);
        if is_for_all { tracker.confirm_for_all(time, &setting) } else { tracker.confirm(time, &setting) }
    });
    let changes = confirmed.sum();
    audit("confirm", &caller, &format!("for={seconds}s"), Some(changes));
    Ok(Json(Confirmed { changes }))
}

async fn status(State(control): State<Control>, arguments: QueryArgs) -> Answer<Status> {
    arguments.end()?;
    Ok(Json(status::status(&control.shared, control.snapshot()).await))
}

/// Shows the dialogues of sessions, until the caller leaves.
async fn follow(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    Extension(extra): Extension<ExtraTime>,
    arguments: QueryArgs,
) -> Result<Response, Rejection> {
    let (filter, time) = trace::selection(arguments)?;
    if let Some(backend) = &filter.backend {
        known_backend(&control.snapshot(), backend)?;
    }
    let entries = control.entries(&filter);
    trace::begin(&control.shared.traces, (filter, time), entries, caller, &extra)
}

async fn try_login(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Answer<TrialResult> {
    trial::run(Arc::clone(&control.shared), caller, &body).await
}

/// Shuts the process down, or only changes what `/ready` replies.
async fn drain(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    mut arguments: QueryArgs,
) -> Answer<Leaving> {
    let (ready_only, undo) = (arguments.flag("ready_only")?, arguments.flag("undo")?);
    arguments.end()?;
    let (shared, snapshot) = (&control.shared, control.snapshot());
    let change = |from, to| {
        shared.stage.send_if_modified(|stage| {
            let changes = *stage == from;
            if changes {
                *stage = to;
            }
            changes
        });
    };
    let act = match (ready_only, undo) {
        (true, true) => return Err(Rejection::bad("`ready_only` and `undo` exclude each other")),
        (true, false) => {
            change(Stage::Serving, Stage::Unready);
            "drain ready-only"
        }
        (false, true) => {
            change(Stage::Unready, Stage::Serving);
            if *shared.stage.borrow() != Stage::Serving {
                return Err(Rejection(
                    StatusCode::CONFLICT,
                    "the process is shutting down: this cannot be undone".to_owned(),
                ));
            }
            "drain undo"
        }
        (false, false) => "drain",
    };
    let sessions = shared.registry.count();
    let ends = !(ready_only || undo);
    if ends {
        // The main loop never refuses it, unless it has done so before.
        let _ = send(&control, Order::Drain).await?;
    }
    audit(act, &caller, "process", Some(sessions));
    let settings = &snapshot.config.drain;
    Ok(Json(Leaving {
        ends,
        ready: undo,
        sessions,
        delay_seconds: settings.delay.as_secs(),
        deadline_seconds: settings.deadline.as_secs(),
    }))
}

/// `force`: also with a certificate that has expired.
async fn reload(control: State<Control>, caller: Extension<Caller>, mut arguments: QueryArgs) -> Answer<Outcome> {
    let force = arguments.flag("force")?;
    order(control, caller, arguments, Order::Reload { force }).await
}

/// Refuses a caller that means another configuration file.
async fn same_file(control: &Control, arguments: &mut QueryArgs) -> Result<(), Rejection> {
    let Some(meant) = arguments.take("config") else { return Ok(()) };
    let own = control.shared.snapshot.load().config.file.clone();
    let real = async |path: &Path| tokio::fs::canonicalize(path).await.unwrap_or_else(|_| path.to_owned());
    if real(Path::new(&meant)).await == real(&own).await {
        return Ok(());
    }
    let own = own.display();
    Err(Rejection(
        StatusCode::CONFLICT,
        format!("the running usher uses {own}, not {meant}: run this with --config {own}"),
    ))
}

async fn order(
    State(control): State<Control>,
    Extension(caller): Extension<Caller>,
    mut arguments: QueryArgs,
    order: Order,
) -> Answer<Outcome> {
    same_file(&control, &mut arguments).await?;
    arguments.end()?;
    let cmd = match order {
        Order::Reload { .. } => "reload",
        Order::Upgrade => "upgrade",
        Order::Drain => "drain",
    };
    audit(cmd, &caller, "process", None);
    Ok(Json(match send(&control, order).await? {
        Ok(message) => Outcome { done: true, problems: Vec::new(), message: Some(message) },
        Err(problems) => Outcome { done: false, problems, message: None },
    }))
}

async fn send(control: &Control, order: Order) -> Result<OrderResult, Rejection> {
    // The receiver is the main loop, which is gone only during shutdown.
    let ending = || {
        Rejection(
            StatusCode::SERVICE_UNAVAILABLE,
            "it is shutting down already: administrative commands are refused".to_owned(),
        )
    };
    let (answer, answered) = oneshot::channel();
    control.orders.send((order, answer)).await.map_err(|_| ending())?;
    answered.await.map_err(|_| ending())
}

//! Commands for the whole fleet: `/fleet/PATH` asks PATH of this process and of all others, `/nodes/NODE/PATH` of
//! those of one node.
//!
//! The fleet carries the question and the answers, sealed, and knows nothing of them. Here a question is a request like
//! one at the socket, with the same rules and the same line in the log, which names the node that it came from. What
//! must not be lost is set as a mark, too: a process that missed the question carries it out within 60 s, once. It ends
//! only sessions that began before the command did. A drain stands until it is reverted: a process that starts later follows it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Extension, Path, Request as HttpRequest, State};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware;
use axum::routing::any;
use axum::{Json, Router};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep};

use super::ErrorReply;
use super::arguments::{Rejection, without_body};
use super::caller::Caller;
use crate::base::clock::unix_now;
use crate::fleet::{Fleet, LARGEST_ANSWER, LARGEST_MARK, MarkKind, Member, MemberId, Message};
use crate::process::Shared;
use crate::sessions::maintenance::Maintenance;

/// How long other nodes have for their answers.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many questions of other nodes are answered at a time.
const AT_A_TIME: usize = 8;
/// For how long a command is known, so that it is carried out once: longer than its mark lasts.
const KNOWN: Duration = Duration::from_secs(120);
/// How many commands are known at most.
const MOST_KNOWN: usize = 4_096;
/// How often drains are compared with the configuration: a reload may have brought a backend that is drained.
const DRAINS_TICK: Duration = Duration::from_secs(2);
/// Of an answer, for what is around its list.
const FRAME: usize = 256;
/// The largest answer of this process itself, before it is cut.
const LARGEST_BODY: usize = 64 << 20;

/// A command of an administrator at one node, for others.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    /// It is carried out once, whichever way it comes.
    id: u64,
    method: String,
    /// With its query.
    path: String,
    /// Of the administrator.
    uid: Option<u32>,
    /// By the store's clock, in microseconds.
    issued: u64,
}

/// What a process answers.
#[derive(Debug, Serialize, Deserialize)]
struct Reply {
    status: u16,
    /// How many items at the end of the list have no place in the answer.
    omitted: usize,
    body: Value,
}

/// The answer of one process of the fleet.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NodeReply<T> {
    /// Its node.
    pub node: String,
    /// The process: a node has two after an upgrade.
    pub process: String,
    /// How many items at the end of the list are missing, because it was larger than 1 MiB.
    pub omitted: usize,
    /// The reply that this process gives to the command; absent with an error.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub answer: Option<T>,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

fn none<T>() -> Option<T> {
    None
}

/// What a command is to the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// It changes nothing, or what it does may be done again.
    Asked,
    /// It must reach every process, once.
    Event(MarkKind),
    /// It stands until it is reverted.
    Drain { on: bool },
    /// It is for one node.
    OneNode,
}

/// What may be asked of other processes.
fn scope(method: &Method, path: &str) -> Option<Scope> {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let is_read = *method == Method::GET;
    Some(match (is_read, parts.as_slice()) {
        (true, ["sessions" | "backends" | "cache" | "status" | "lookup" | "answers" | "explain" | "history"])
        | (false, ["confirm", _]) => Scope::Asked,
        (false, ["kick"]) => Scope::Event(MarkKind::Kick),
        (false, ["cache", "drop"]) => Scope::Event(MarkKind::CacheDrop),
        (false, ["backends", _, "drain"]) => Scope::Drain { on: true },
        (false, ["backends", _, "undrain"]) => Scope::Drain { on: false },
        (false, ["drain"]) => Scope::OneNode,
        (_, _) => return None,
    })
}

/// This process, as it asks and answers.
#[derive(Clone)]
struct FleetControl {
    shared: Arc<Shared>,
    local: Router,
    known: Arc<Known>,
}

/// The commands that this process has carried out, whoever asked.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<HashMap<u64, Instant>>);

impl Known {
    /// Whether it is the first time; otherwise why it is not carried out.
    fn is_new(&self, id: u64) -> Result<(), &'static str> {
        let now = Instant::now();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, at| now.saturating_duration_since(*at) < KNOWN);
        if known.contains_key(&id) {
            return Err("it has been carried out");
        }
        // Rather one that is not carried out than one that is carried out again and again.
        if known.len() >= MOST_KNOWN {
            return Err(
                "this node has had 4096 commands in two minutes, and carries out no other before they have passed",
            );
        }
        known.insert(id, now);
        Ok(())
    }
}

/// The routes of the socket that ask other nodes.
pub(super) fn router(shared: Arc<Shared>, local: Router, known: Arc<Known>) -> Router {
    Router::new()
        .route("/fleet/{*path}", any(ask_all))
        .route("/nodes/{node}/{*path}", any(ask_node))
        .layer(middleware::from_fn(without_body))
        .with_state(FleetControl { shared, local, known })
}

async fn ask_all(
    State(control): State<FleetControl>,
    Extension(caller): Extension<Caller>,
    Path(_): Path<String>,
    request: HttpRequest,
) -> Result<Json<Vec<NodeReply<Value>>>, Rejection> {
    let (method, path) = (request.method().clone(), below(request.uri(), 1)?);
    let scope = scope(&method, &path_of(&path));
    match scope {
        Some(Scope::OneNode) => Err(Rejection::bad("the nodes of a fleet are drained one by one: name the node")),
        Some(scope) => control.ask(scope, method, path, caller, None).await.map(Json),
        None => Err(not_shared()),
    }
}

async fn ask_node(
    State(control): State<FleetControl>,
    Extension(caller): Extension<Caller>,
    Path((node, _)): Path<(String, String)>,
    request: HttpRequest,
) -> Result<Json<Vec<NodeReply<Value>>>, Rejection> {
    let (method, path) = (request.method().clone(), below(request.uri(), 2)?);
    let scope = scope(&method, &path_of(&path)).ok_or_else(not_shared)?;
    control.ask(scope, method, path, caller, Some(&node)).await.map(Json)
}

fn not_shared() -> Rejection {
    Rejection(StatusCode::NOT_FOUND, "this command is not for a fleet".to_owned())
}

fn no_fleet() -> Rejection {
    Rejection(StatusCode::CONFLICT, "no fleet is configured: the section `fleet` is missing".to_owned())
}

/// The path, with its query, below this number of parts.
fn below(uri: &Uri, parts: usize) -> Result<String, Rejection> {
    let whole = uri.path_and_query().map_or("", |whole| whole.as_str());
    let rest = whole.splitn(parts + 2, '/').nth(parts + 1);
    rest.map(|rest| format!("/{rest}")).ok_or_else(not_shared)
}

fn path_of(path: &str) -> String {
    path.split('?').next().unwrap_or_default().to_owned()
}

impl FleetControl {
    async fn ask(
        &self,
        scope: Scope,
        method: Method,
        path: String,
        caller: Caller,
        node: Option<&str>,
    ) -> Result<Vec<NodeReply<Value>>, Rejection> {
        let fleet = self.shared.fleet.as_ref().ok_or_else(no_fleet)?;
        let issued = fleet.store_time().unwrap_or_else(|| unix_now().saturating_mul(1_000_000));
        let question = Question { id: MemberId::random().0, method: method.to_string(), path, uid: caller.uid, issued };
        let body = serde_json::to_vec(&question).map_err(|error| Rejection::bad(error.to_string()))?;
        // Once for this process, too: its own mark does not come back, but a question may.
        let _ = self.known.is_new(question.id);
        let is_own = node.is_none_or(|node| node == fleet.node());
        let members = fleet.members();
        if let Some(node) = node
            && !is_own
            && !members.iter().any(|member| *member.node == *node)
        {
            let mut nodes: Vec<&str> = members.iter().map(|member| &*member.node).collect();
            nodes.dedup();
            let words = format!("no node `{node}` lives in this fleet; living nodes: {}", nodes.join(", "));
            return Err(Rejection(StatusCode::NOT_FOUND, words));
        }
        let (own, others) = tokio::join!(
            async {
                match is_own {
                    true => Some(self.carry_out(&question, caller, None).await),
                    false => None,
                }
            },
            async {
                let is_for = |member: &Member| node.is_none_or(|node| *member.node == *node);
                fleet.ask(body.clone(), PATIENCE, is_for).await
            },
        );
        if let Some(own) = &own
            && own.status == StatusCode::BAD_REQUEST.as_u16()
        {
            // A mistake is one at every node, and no mark of it must be set.
            let words = own.body.get("error").and_then(Value::as_str).unwrap_or("invalid request");
            return Err(Rejection::bad(words));
        }
        let is_marked = node.is_some() || self.set_marks(fleet, scope, &question, &body);
        let mut replies = Vec::new();
        if let Some(own) = own {
            replies.push(reply_of(fleet.node(), fleet.id(), own));
        }
        match others {
            Ok(answers) => replies.extend(answers.into_iter().map(|answer| {
                let (node, process) = (&*answer.member.node, answer.member.id);
                let read = answer.body.map_err(|error| error.to_string());
                let read = read.and_then(|body| serde_json::from_slice(&body).map_err(|error| error.to_string()));
                read.map_or_else(|error| failed(node, process.to_string(), error), |read| reply_of(node, process, read))
            })),
            Err(error) => {
                let mut words = format!("{error}: other nodes were not asked");
                if node.is_none() && scope != Scope::Asked {
                    words.push_str("; they carry the command out once the store is back");
                }
                replies.push(failed("others", String::new(), words));
            }
        }
        if !is_marked {
            let words = "the fleet has too many marks: a node that has missed the command does not carry it out later";
            replies.push(failed("others", String::new(), words.to_owned()));
        }
        if node.is_none() {
            replies.extend(fleet.absent_nodes().into_iter().map(|(node, since)| {
                let seconds = since.as_secs();
                let words = format!(
                    "it vanished from the store {seconds} s ago: if it still runs, it has its sessions and hears no command"
                );
                failed(&node, String::new(), words)
            }));
        }
        Ok(replies)
    }

    /// `false`: there is no place for the mark.
    fn set_marks(&self, fleet: &Fleet, scope: Scope, question: &Question, body: &[u8]) -> bool {
        match scope {
            Scope::Asked | Scope::OneNode => true,
            Scope::Event(kind) if body.len() <= LARGEST_MARK => fleet.set_mark(kind, &[], body, None),
            Scope::Event(_) => false,
            Scope::Drain { on } => {
                let path = path_of(&question.path);
                let Some(name) = path.split('/').nth(2) else { return true };
                let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
                let rate = on.then(|| self.shared.maintenance.drained(&name)).flatten().map(|drain| drain.rate);
                let state = rate.map_or_else(|| "in service".to_owned(), |rate| rate.to_string());
                fleet.set_mark(MarkKind::Drain, name.as_bytes(), state.as_bytes(), None)
            }
        }
    }

    /// Asks this process, as its socket does.
    async fn carry_out(&self, question: &Question, caller: Caller, begun_by: Option<u64>) -> Reply {
        let mut path = question.path.clone();
        if let Some(second) = begun_by.filter(|_| path_of(&question.path) == "/kick") {
            path.push(if path.contains('?') { '&' } else { '?' });
            path.push_str(&format!("begun_by={second}"));
        }
        let request = HttpRequest::builder().method(question.method.as_str()).uri(path).body(Body::empty());
        let mut request = match request {
            Ok(request) => request,
            Err(error) => return Reply::error(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        request.extensions_mut().insert(caller);
        let Ok(response) = TowerToHyperService::new(self.local.clone()).call(request).await;
        let status = response.status();
        match to_bytes(response.into_body(), LARGEST_BODY).await.map(|body| serde_json::from_slice(&body)) {
            Ok(Ok(body)) => Reply::cut(status, body),
            Ok(Err(_)) | Err(_) => Reply::error(StatusCode::INTERNAL_SERVER_ERROR, "the reply could not be read"),
        }
    }

    /// Carries out what another node asks, if it may and has not been carried out.
    async fn obey(&self, fleet: &Fleet, body: &[u8], node: &Arc<str>) -> Reply {
        let Ok(question) = serde_json::from_slice::<Question>(body) else {
            return Reply::error(StatusCode::BAD_REQUEST, "this node does not understand the question");
        };
        let method = Method::from_bytes(question.method.as_bytes()).unwrap_or_default();
        if scope(&method, &path_of(&question.path)).is_none() {
            return Reply::error(StatusCode::NOT_FOUND, "this node does not know the command");
        }
        if method != Method::GET
            && let Err(words) = self.known.is_new(question.id)
        {
            tracing::debug!(path = path_of(&question.path), %node, reason = words, "command of the fleet is not carried out");
            return Reply::error(StatusCode::CONFLICT, words);
        }
        let ago = fleet.store_time().map_or(0, |now| now.saturating_sub(question.issued) / 1_000_000);
        let caller = Caller { uid: question.uid, pid: None, node: Some(Arc::clone(node)) };
        self.carry_out(&question, caller, Some(unix_now().saturating_sub(ago))).await
    }
}

fn reply_of(node: &str, process: MemberId, reply: Reply) -> NodeReply<Value> {
    let Reply { status, omitted, body } = reply;
    if StatusCode::from_u16(status).is_ok_and(|status| status.is_success()) {
        let (node, process) = (node.to_owned(), process.to_string());
        return NodeReply { node, process, omitted, answer: Some(body), error: None };
    }
    let words = serde_json::from_value::<ErrorReply>(body).map_or_else(|_| format!("status {status}"), |it| it.error);
    failed(node, process.to_string(), words)
}

fn failed(node: &str, process: String, error: String) -> NodeReply<Value> {
    NodeReply { node: node.to_owned(), process, omitted: 0, answer: None, error: Some(error) }
}

impl Reply {
    fn error(status: StatusCode, words: &str) -> Self {
        Self { status: status.as_u16(), omitted: 0, body: serde_json::json!({ "error": words }) }
    }

    /// With as much of a list as an answer has room for.
    fn cut(status: StatusCode, body: Value) -> Self {
        let size = |value: &Value| serde_json::to_vec(value).map_or(usize::MAX, |text| text.len());
        let Value::Array(mut items) = body else { return Self { status: status.as_u16(), omitted: 0, body } };
        let mut left = LARGEST_ANSWER - FRAME;
        let fitting = items.iter().take_while(|item| {
            let taken = size(item).saturating_add(1);
            let fits = taken <= left;
            left = left.saturating_sub(taken);
            fits
        });
        let kept = fitting.count();
        let omitted = items.len() - kept;
        items.truncate(kept);
        Self { status: status.as_u16(), omitted, body: Value::Array(items) }
    }

    fn encoded(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Answers other nodes and carries out their marks; never returns.
pub(super) async fn obey(shared: Arc<Shared>, local: Router, known: Arc<Known>) {
    let Some(fleet) = shared.fleet.clone() else { return std::future::pending().await };
    let control = FleetControl { shared: Arc::clone(&shared), local, known };
    let (mut messages, mut marks) = (fleet.subscribe(), fleet.marks());
    let (answering, mut drains, mut last_event) = (Arc::new(Semaphore::new(AT_A_TIME)), Drains::default(), 0);
    loop {
        tokio::select! {
            message = messages.recv() => match message {
                Ok(message) if message.is_question() => answer(&control, &fleet, &answering, message),
                // What was missed comes by a mark, if it matters.
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
            changed = marks.changed() => if changed.is_err() { return },
            () = sleep(DRAINS_TICK) => {}
        }
        let now = Arc::clone(&marks.borrow_and_update());
        for (number, mark) in now.events_after(last_event) {
            last_event = last_event.max(number);
            if matches!(mark.kind, MarkKind::Kick | MarkKind::CacheDrop) {
                let members = fleet.members();
                let origin = members.get(mark.origin).map_or_else(|| Arc::from("unknown"), |it| Arc::clone(&it.node));
                control.obey(&fleet, &mark.body, &origin).await;
            }
        }
        let wanted = now.all(MarkKind::Drain).filter(|mark| mark.origin != fleet.id());
        let wanted = wanted.map(|mark| (&*mark.key, mark.version, &*mark.body));
        drains.obey(wanted, &shared.maintenance, |name| {
            let snapshot = shared.snapshot.load();
            snapshot.config.routing.backends.iter().any(|backend| backend.name == name)
        });
    }
}

fn answer(control: &FleetControl, fleet: &Arc<Fleet>, answering: &Arc<Semaphore>, message: Message) {
    // The asker hears nothing, and says so.
    let Ok(permit) = Arc::clone(answering).try_acquire_owned() else { return };
    let (control, fleet) = (control.clone(), Arc::clone(fleet));
    tokio::spawn(async move {
        let reply = control.obey(&fleet, &message.body, &message.from.node).await;
        fleet.answer(&message, reply.encoded());
        drop(permit);
    });
}

/// The drains of the fleet that were obeyed.
#[derive(Debug, Default)]
struct Drains(HashMap<Box<[u8]>, u64>);

impl Drains {
    fn obey<'a>(
        &mut self,
        wanted: impl Iterator<Item = (&'a [u8], u64, &'a [u8])>,
        maintenance: &Maintenance,
        is_configured: impl Fn(&str) -> bool,
    ) {
        for (key, version, state) in wanted {
            let Some(name) = std::str::from_utf8(key).ok().filter(|name| is_configured(name)) else { continue };
            if self.0.get(key).is_some_and(|obeyed| *obeyed >= version) {
                continue;
            }
            self.0.insert(key.into(), version);
            let rate = std::str::from_utf8(state).ok().and_then(|state| state.parse().ok());
            let changed = match rate {
                Some(rate) if maintenance.drained(name).is_some_and(|drain| drain.rate == rate) => false,
                Some(rate) => {
                    maintenance.drain(name, rate);
                    true
                }
                None => maintenance.undrain(name),
            };
            if changed {
                let state = if rate.is_some() { "drained" } else { "in service" };
                tracing::info!(backend = name, state, "backend set by the fleet");
            }
        }
    }
}

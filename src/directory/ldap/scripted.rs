//! An LDAP server that says what a test wants: answers by script, raw bytes, silence, a hang-up.
//! It records its requests, so that tests see what went over the wire.
#![allow(clippy::wildcard_enum_match_arm)] // a script answers some requests; silence is an answer too

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use ldap3_proto::control::LdapControl;
use ldap3_proto::proto::{
    LdapBindCred, LdapBindResponse, LdapExtendedResponse, LdapOp, LdapResult, LdapSearchResultReference,
};
use ldap3_proto::{LdapCodec, LdapMsg, LdapPartialAttribute, LdapResultCode, LdapSearchResultEntry};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::codec::Framed;

use crate::config::{DirectoryServer, LdapScheme};

/// A request, as it came.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    /// Which connection, from 0.
    pub(crate) connection: usize,
    /// Its message ID.
    pub(crate) id: i32,
    /// What it asks.
    pub(crate) op: LdapOp,
    /// What it asks beside that.
    pub(crate) controls: Vec<LdapControl>,
}

impl Recorded {
    /// DN and password, if it is a bind.
    pub(crate) fn bind(&self) -> Option<(&str, &str)> {
        match &self.op {
            LdapOp::BindRequest(request) => match &request.cred {
                LdapBindCred::Simple(password) => Some((&request.dn, password)),
                _ => None,
            },
            _ => None,
        }
    }

    /// The cookie of a content synchronization, if it is one.
    #[expect(clippy::option_option, reason = "none, and one that begins without a cookie")]
    pub(crate) fn sync_cookie(&self) -> Option<Option<Vec<u8>>> {
        self.controls.iter().find_map(|control| match control {
            LdapControl::SyncRequest { cookie, .. } => Some(cookie.clone()),
            _ => None,
        })
    }

    /// The base, if it is a search.
    pub(crate) fn base(&self) -> Option<&str> {
        match &self.op {
            LdapOp::SearchRequest(request) => Some(&request.base),
            _ => None,
        }
    }
}

/// A part of an answer.
#[derive(Debug, Clone)]
pub(crate) enum ScriptedReply {
    /// A message with the request's ID.
    Op(LdapOp),
    /// Bytes.
    Raw(Vec<u8>),
    /// Wait for a permit, which is used up.
    Wait(Arc<Semaphore>),
    /// Stay silent for this long.
    Pause(std::time::Duration),
    /// Wait for bytes that are no request.
    Hear,
    /// TLS from here on.
    Tls,
    /// Hang up.
    Close,
}

type Script = dyn Fn(&Recorded) -> Vec<ScriptedReply> + Send + Sync;

trait ScriptedStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> ScriptedStream for T {}

/// The server. It ends with its handle.
pub(crate) struct Scripted {
    pub(crate) port: u16,
    seen: Arc<Mutex<Vec<Recorded>>>,
    connections: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Scripted {
    /// Listens on a free port of 127.0.0.1.
    pub(crate) async fn start(script: impl Fn(&Recorded) -> Vec<ScriptedReply> + Send + Sync + 'static) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), None, false, script)
    }

    /// Listens there; with `implicit`, TLS comes first.
    pub(crate) fn start_on(
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        implicit: bool,
        script: impl Fn(&Recorded) -> Vec<ScriptedReply> + Send + Sync + 'static,
    ) -> Self {
        let port = listener.local_addr().unwrap().port();
        let script: Arc<Script> = Arc::new(script);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (connections, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut task = JoinSet::new();
        let (log, number, alive) = (seen.clone(), connections.clone(), open.clone());
        task.spawn(async move {
            let mut served = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let connection = number.fetch_add(1, Ordering::SeqCst);
                let (script, log, alive, tls) = (script.clone(), log.clone(), alive.clone(), tls.clone());
                served.spawn(async move {
                    alive.fetch_add(1, Ordering::SeqCst);
                    serve(connection, stream, tls, implicit, &*script, &log).await;
                    alive.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { port, seen, connections, open, _task: task }
    }

    /// How usher's configuration names it.
    pub(crate) fn server(&self, scheme: LdapScheme, host: &str) -> DirectoryServer {
        let word = if scheme == LdapScheme::Ldaps { "ldaps" } else { "ldap" };
        DirectoryServer {
            url: format!("{word}://{host}:{}", self.port),
            scheme,
            host: host.to_owned(),
            port: self.port,
            server_name: None,
            pin_sha256: Vec::new(),
            starttls: false,
            srv: None,
        }
    }

    /// The URL in the clear on 127.0.0.1.
    pub(crate) fn url(&self) -> String {
        self.server(LdapScheme::Ldap, "127.0.0.1").url
    }

    /// All requests received.
    pub(crate) fn seen(&self) -> Vec<Recorded> {
        self.seen.lock().unwrap().clone()
    }

    /// The binds received.
    pub(crate) fn binds(&self) -> Vec<(usize, String, String)> {
        let seen = self.seen();
        seen.iter()
            .filter_map(|seen| seen.bind().map(|(dn, pw)| (seen.connection, dn.to_owned(), pw.to_owned())))
            .collect()
    }

    /// The bases of the searches received.
    pub(crate) fn searches(&self) -> Vec<String> {
        self.seen().iter().filter_map(|seen| seen.base().map(str::to_owned)).collect()
    }

    /// How many connections were ever made.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

async fn serve(
    connection: usize,
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    implicit: bool,
    script: &Script,
    log: &Mutex<Vec<Recorded>>,
) {
    let mut stream: Box<dyn ScriptedStream> = Box::new(stream);
    if implicit {
        let Ok(secured) = tls.as_ref().unwrap().accept(stream).await else { return };
        stream = Box::new(secured);
    }
    let mut framed = Framed::new(stream, LdapCodec::default());
    while let Some(Ok(LdapMsg { msgid, op, ctrl })) = framed.next().await {
        let seen = Recorded { connection, id: msgid, op, controls: ctrl };
        log.lock().unwrap().push(seen.clone());
        for reply in script(&seen) {
            match reply {
                ScriptedReply::Op(op) => {
                    if framed.send(LdapMsg { msgid, op, ctrl: Vec::new() }).await.is_err() {
                        return;
                    }
                }
                ScriptedReply::Raw(bytes) => framed.get_mut().write_all(&bytes).await.unwrap_or_default(),
                ScriptedReply::Wait(gate) => gate.acquire().await.unwrap().forget(),
                ScriptedReply::Pause(length) => tokio::time::sleep(length).await,
                ScriptedReply::Hear => drop(framed.get_mut().read_u8().await),
                ScriptedReply::Tls => {
                    let Ok(secured) = tls.as_ref().unwrap().accept(framed.into_inner()).await else { return };
                    framed = Framed::new(Box::new(secured), LdapCodec::default());
                }
                ScriptedReply::Close => return,
            }
        }
    }
}

fn result(code: LdapResultCode) -> LdapResult {
    // Words that must not matter.
    LdapResult { code, matcheddn: String::new(), message: "said the server".to_owned(), referral: Vec::new() }
}

/// A bind's answer.
pub(crate) fn bound(code: LdapResultCode) -> Vec<ScriptedReply> {
    vec![ScriptedReply::Op(LdapOp::BindResponse(LdapBindResponse { res: result(code), saslcreds: None }))]
}

/// A bind's answer with a diagnostic text and controls, each an OID and its value. Written byte by byte,
/// as servers speak controls that no library here knows.
pub(crate) fn bound_with(seen: &Recorded, code: u8, text: &str, controls: &[(&str, &[u8])]) -> Vec<ScriptedReply> {
    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82], &length[..], content].concat()
    }
    let control =
        |(oid, value): &(&str, &[u8])| element(0x30, &[element(0x04, oid.as_bytes()), element(0x04, value)].concat());
    let controls: Vec<u8> = controls.iter().flat_map(control).collect();
    let result = [element(0x0a, &[code]), element(0x04, b""), element(0x04, text.as_bytes())].concat();
    let id = element(0x02, &seen.id.to_be_bytes());
    let message = [id, element(0x61, &result), element(0xa0, &controls)].concat();
    vec![ScriptedReply::Raw(element(0x30, &message))]
}

/// The end of a search.
pub(crate) fn done(code: LdapResultCode) -> ScriptedReply {
    ScriptedReply::Op(LdapOp::SearchResultDone(result(code)))
}

/// The answer to StartTLS.
pub(crate) fn extended(code: LdapResultCode) -> ScriptedReply {
    ScriptedReply::Op(LdapOp::ExtendedResponse(LdapExtendedResponse { res: result(code), name: None, value: None }))
}

/// A continuation reference.
pub(crate) fn reference() -> ScriptedReply {
    let uris = vec!["ldap://elsewhere.example/dc=x".to_owned()];
    ScriptedReply::Op(LdapOp::SearchResultReference(LdapSearchResultReference { uris }))
}

/// An entry.
pub(crate) fn entry(dn: &str, attributes: &[(&str, &[&[u8]])]) -> ScriptedReply {
    let attributes = attributes.iter().map(|(name, values)| LdapPartialAttribute {
        atype: (*name).to_owned(),
        vals: values.iter().map(|value| value.to_vec()).collect(),
    });
    let entry = LdapSearchResultEntry { dn: dn.to_owned(), attributes: attributes.collect() };
    ScriptedReply::Op(LdapOp::SearchResultEntry(entry))
}

/// A script for a conforming directory with one user: `uid=alice,dc=x` with the password `right`
/// on `server3`, and the service account `cn=usher` with the password `service`.
pub(crate) fn alice(seen: &Recorded) -> Vec<ScriptedReply> {
    match (&seen.op, seen.bind()) {
        (_, Some(("uid=alice,dc=x", "right") | ("cn=usher", "service"))) => bound(LdapResultCode::Success),
        (_, Some(_)) => bound(LdapResultCode::InvalidCredentials),
        (LdapOp::SearchRequest(_), None) => vec![
            entry("uid=alice,dc=x", &[("mailHost", &[b"server3"]), ("uid", &[b"alice"])]),
            done(LdapResultCode::Success),
        ],
        _ => Vec::new(),
    }
}

/// Another script for the first requests, [`alice`] afterwards.
pub(crate) fn first(
    replies: Vec<Vec<ScriptedReply>>,
    of: fn(&Recorded) -> bool,
) -> impl Fn(&Recorded) -> Vec<ScriptedReply> + Send + Sync {
    let left = Mutex::new(VecDeque::from(replies));
    move |seen| {
        let scripted = of(seen).then(|| left.lock().unwrap().pop_front()).flatten();
        scripted.unwrap_or_else(|| alice(seen))
    }
}

//! A connection to the store: opened, authenticated, checked, and bounded in what it may hold.
//!
//! The protocol is the redis crate's; the bytes under it are usher's own TLS. A store that sends more than an answer may
//! have is left. No text of the store is shown, only the word that its errors begin with: it could repeat the password.

#![expect(clippy::wildcard_enum_match_arm, reason = "the enums of the redis crate are not exhaustive")]

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use redis::aio::{AsyncPushSender, MultiplexedConnection};
use redis::{AsyncConnectionConfig, ErrorKind, ProtocolVersion, RedisConnectionInfo, RedisError};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::clock::POSSIBLE;
use super::script::{Arg, FleetScript, Scripts, Value};
use super::seal::{Sealer, StoreKey};
use crate::base::secret::Secret;
use crate::config::{self, StoreAddress};
use crate::telemetry::log::Escaped;
use crate::tls::client;
use crate::tls::dial::{self, ByteStream, DialError};
use crate::tls::{HandshakeError, stream::Stream};

/// How long opening a connection may take: name, TCP, TLS, authentication, scripts.
const OPENING: Duration = Duration::from_secs(5);
/// The most bytes between two answers: the largest answer is a beat with every mark.
const MOST_BYTES: usize = 4 << 20;
/// The most commands without an answer.
const IN_FLIGHT: usize = 1_024;

/// What the fleet's files hold.
#[derive(Debug)]
pub(crate) struct FleetFiles {
    /// TLS towards the stores, if any is reached by it.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// The password at the store, if it has one.
    pub(crate) password: Option<Secret>,
    /// The fleet's secrets.
    pub(crate) sealer: Arc<Sealer>,
}

/// Why the store gives no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// Its name has no address, or none that may be used.
    #[error("{0}")]
    Dial(DialError),
    /// TLS failed.
    #[error("TLS: {0}")]
    Tls(HandshakeError),
    /// It refuses user or password.
    #[error("the store refuses user or password")]
    Credentials,
    /// It asks for a password.
    #[error("the store asks for a password: set `fleet.password_file`")]
    PasswordNeeded,
    /// It is one of a cluster.
    #[error("the store is a cluster, which is not supported: use one Redis or Valkey server without cluster mode")]
    Cluster,
    /// It is a replica, which takes no writes.
    #[error("the store is a replica, which takes no writes")]
    Replica,
    /// Redis before version 6.
    #[error("the store is older than Redis 6.0")]
    TooOld,
    /// The user may not do this.
    #[error("the store's user lacks a right; `usher check --connect` names it")]
    Rights,
    /// Its memory is full.
    #[error("the store's memory is full (maxmemory)")]
    Full,
    /// Another error of the store.
    #[error("the store answers {}", Escaped(.0.as_bytes()))]
    Answer(String),
    /// The answer is not what the script returns.
    #[error("the store gives an answer that is no answer")]
    Malformed,
    /// Its clock is years off.
    #[error("the store's clock is not set")]
    Clock,
    /// The connection broke.
    #[error("the connection to the store broke")]
    Lost,
    /// No answer in time.
    #[error("the store does not answer in time")]
    Late,
    /// Too many commands have no answer yet.
    #[error("too many commands wait for the store")]
    Busy,
}

impl From<DialError> for StoreError {
    fn from(error: DialError) -> Self {
        Self::Dial(error)
    }
}

impl StoreError {
    fn of(error: &RedisError) -> Self {
        // By words and kinds only: the detail is the store's own text.
        match error.code() {
            Some("NOAUTH") => return Self::PasswordNeeded,
            Some("WRONGPASS") => return Self::Credentials,
            Some("NOPERM") => return Self::Rights,
            Some("OOM") => return Self::Full,
            Some("READONLY" | "MASTERDOWN") => return Self::Replica,
            Some("MOVED" | "ASK" | "CLUSTERDOWN" | "CROSSSLOT") => return Self::Cluster,
            // A script fails as a whole where one of its commands may not be run.
            Some("ERR") if error.detail().is_some_and(is_of_rights) => return Self::Rights,
            Some(code) => return Self::Answer(code.chars().take(32).collect()),
            None => {}
        }
        match error.kind() {
            ErrorKind::AuthenticationFailed => Self::Credentials,
            ErrorKind::RESP3NotSupported => Self::TooOld,
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => Self::Malformed,
            _ => Self::Lost,
        }
    }

    /// Whether the connection is of no use any more.
    pub(super) const fn is_lost(&self) -> bool {
        matches!(self, Self::Lost | Self::Malformed)
    }
}

/// Whether the text of an error in a script is about the user's rights: Redis 7 and 6, Valkey.
fn is_of_rights(detail: &str) -> bool {
    ["has no permissions to", "No permissions to", "can't run this command", "can't access at least one of the keys"]
        .iter()
        .any(|words| detail.contains(words))
}

/// A connection. Its driver, which is returned beside it, has to be polled.
pub(super) struct Connection {
    link: MultiplexedConnection,
    budget: Arc<Budget>,
    places: Semaphore,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// The memory of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StoreMemory {
    /// What happens when it is full; `None`: its user may not read it.
    pub(crate) eviction: Option<String>,
    /// Bytes in use.
    pub(crate) used: u64,
    /// The most bytes; 0: no limit.
    pub(crate) most: u64,
}

/// Takes what the store pushes: the payload and the channel.
pub(super) type PushHandler = Arc<dyn Fn(&[u8], &[u8]) + Send + Sync>;

/// The driver of a connection.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Connection {
    /// Opens a connection, checks that the store can be used, and loads scripts.
    ///
    /// # Errors
    /// Why not.
    pub(super) async fn open(
        address: &StoreAddress,
        settings: &config::Fleet,
        files: &FleetFiles,
        scripts: &Scripts,
        push: Option<PushHandler>,
    ) -> Result<(Self, Driver), StoreError> {
        timeout(OPENING, Self::opened(address, settings, files, scripts, push)).await.unwrap_or(Err(StoreError::Late))
    }

    async fn opened(
        address: &StoreAddress,
        settings: &config::Fleet,
        files: &FleetFiles,
        scripts: &Scripts,
        push: Option<PushHandler>,
    ) -> Result<(Self, Driver), StoreError> {
        let socket = dial::tcp(&address.host, address.port, address.local).await?;
        let stream: Stream = if address.encrypted {
            let name = ServerName::try_from(address.host.clone())
                .map_err(|error| StoreError::Tls(HandshakeError::of_stream(&io::Error::other(error))))?;
            let tls = files.tls.as_ref().ok_or_else(|| StoreError::Tls(HandshakeError::without_configuration()))?;
            let connected = client::connect(tls, name, socket).await;
            connected.map_err(|error| StoreError::Tls(HandshakeError::of_stream(&error)))?
        } else {
            socket.into()
        };
        let budget = Arc::new(Budget(AtomicUsize::new(MOST_BYTES)));
        let stream = Metered { stream: stream.into(), budget: Arc::clone(&budget) };
        let mut info = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
        if let Some(password) = &files.password {
            // `Secret::from_file` has checked that it is UTF-8.
            info = info.set_password(std::str::from_utf8(password.expose()).unwrap_or_default());
            info = info.set_username(settings.user.as_deref().unwrap_or("default"));
        }
        // Deadlines are the callers'.
        let mut how = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        if let Some(handler) = push {
            how = how.set_push_sender(Pushes { handler, budget: Arc::clone(&budget) });
        }
        let opened = MultiplexedConnection::new_with_config(&info, stream, how).await;
        let (link, driver) = opened.map_err(|error| StoreError::of(&error))?;
        let mut driver: Driver = Box::pin(driver);
        let connection = Self { link, budget, places: Semaphore::new(IN_FLIGHT) };
        tokio::select! {
            checked = connection.check(scripts) => checked?,
            () = &mut driver => return Err(StoreError::Lost),
        }
        Ok((connection, driver))
    }

    /// That it is one server that takes writes, and knows the scripts.
    async fn check(&self, scripts: &Scripts) -> Result<(), StoreError> {
        let hello: redis::Value = self.command(&redis::cmd("HELLO")).await?;
        let facts = hello.as_map_iter().ok_or(StoreError::Malformed)?;
        for (key, value) in facts {
            match (text(key), text(value)) {
                (Some(b"mode"), Some(b"cluster")) => return Err(StoreError::Cluster),
                (Some(b"role"), Some(role)) if role != b"master" => return Err(StoreError::Replica),
                (_, _) => {}
            }
        }
        match self.load(scripts).await {
            // Then each is sent as a whole when it is not known.
            Err(StoreError::Rights) => Ok(()),
            loaded => loaded,
        }
    }

    /// Loads scripts.
    ///
    /// # Errors
    /// The store does not take them.
    pub(super) async fn load(&self, scripts: &Scripts) -> Result<(), StoreError> {
        for script in scripts {
            self.command(redis::cmd("SCRIPT").arg("LOAD").arg(script.text())).await?;
        }
        Ok(())
    }

    /// What the store does when its memory is full, and how full that is.
    ///
    /// # Errors
    /// It does not say.
    pub(super) async fn memory(&self) -> Result<StoreMemory, StoreError> {
        let info = self.command(redis::cmd("INFO").arg("memory")).await?;
        let info = match &info {
            redis::Value::VerbatimString { text, .. } => text.as_bytes(),
            other => text(other).ok_or(StoreError::Malformed)?,
        };
        let lines = || info.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let field = |name: &[u8]| lines().find_map(|line| line.strip_prefix(name)).map(String::from_utf8_lossy);
        let number = |name: &[u8]| field(name).and_then(|number| number.parse().ok()).unwrap_or_default();
        Ok(StoreMemory {
            eviction: field(b"maxmemory_policy:").map(|policy| policy.chars().take(32).collect()),
            used: number(b"used_memory:"),
            most: number(b"maxmemory:"),
        })
    }

    async fn command(&self, command: &redis::Cmd) -> Result<redis::Value, StoreError> {
        let answer = command.query_async(&mut self.link.clone()).await;
        self.budget.refill();
        answer.map_err(|error| StoreError::of(&error))
    }

    /// Runs a script. The caller sets the deadline.
    ///
    /// # Errors
    /// There is no answer.
    pub(super) async fn eval(
        &self,
        script: &FleetScript,
        keys: &[StoreKey],
        args: &[Arg],
    ) -> Result<Value, StoreError> {
        let _place = self.places.try_acquire().map_err(|_| StoreError::Busy)?;
        let run = |name: &'static str, what: &str| {
            let mut command = redis::cmd(name);
            command.arg(what).arg(keys.len());
            keys.iter().for_each(|key| {
                command.arg(key.as_str());
            });
            args.iter().for_each(|arg| {
                match arg {
                    Arg::Int(number) => command.arg(*number),
                    Arg::Bytes(bytes) => command.arg(bytes.as_slice()),
                };
            });
            command
        };
        match self.command(&run("EVALSHA", script.digest())).await {
            Err(StoreError::Answer(code)) if code == "NOSCRIPT" => {
                value(self.command(&run("EVAL", script.text())).await?)
            }
            answer => value(answer?),
        }
    }

    /// Subscribes to channels.
    ///
    /// # Errors
    /// The store does not let it.
    pub(super) async fn subscribe(&self, channels: &[String]) -> Result<(), StoreError> {
        let answer = self.link.clone().subscribe(channels).await;
        self.budget.refill();
        answer.map_err(|error| StoreError::of(&error))
    }

    /// Publishes a message.
    ///
    /// # Errors
    /// The store does not take it.
    pub(super) async fn publish(&self, channel: &str, message: &[u8]) -> Result<(), StoreError> {
        self.command(redis::cmd("PUBLISH").arg(channel).arg(message)).await.map(|_| ())
    }

    /// Its clock, in microseconds.
    ///
    /// # Errors
    /// It does not say.
    pub(super) async fn time(&self) -> Result<u64, StoreError> {
        let answer = value(self.command(&redis::cmd("TIME")).await?)?;
        let [seconds, micros] = answer.items() else { return Err(StoreError::Malformed) };
        let number = |value: &Value| value.int().and_then(|number| u64::try_from(number).ok());
        let time = number(seconds).zip(number(micros));
        let time = time.and_then(|(seconds, micros)| seconds.checked_mul(1_000_000)?.checked_add(micros));
        time.filter(|time| POSSIBLE.contains(time)).ok_or(StoreError::Clock)
    }

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// The store has no such key.
    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        self.command(&redis::cmd("PING")).await.map(|_| ())
    }
}

fn text(value: &redis::Value) -> Option<&[u8]> {
    match value {
        redis::Value::BulkString(text) => Some(text),
        redis::Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

/// What the crate has read; a script returns no other kinds.
fn value(read: redis::Value) -> Result<Value, StoreError> {
    Ok(match read {
        redis::Value::Nil => Value::Nil,
        redis::Value::Int(number) => Value::Int(number),
        redis::Value::BulkString(bytes) => Value::Bytes(bytes),
        redis::Value::SimpleString(text) => Value::Bytes(text.into_bytes()),
        redis::Value::Okay => Value::Bytes(b"OK".to_vec()),
        redis::Value::Array(items) => Value::Array(items.into_iter().map(value).collect::<Result<_, _>>()?),
        _ => return Err(StoreError::Malformed),
    })
}

/// How many bytes the store may send until the next whole answer.
#[derive(Debug)]
struct Budget(AtomicUsize);

impl Budget {
    fn refill(&self) {
        self.0.store(MOST_BYTES, Ordering::Relaxed);
    }

    fn spend(&self, bytes: usize) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }
}

/// The stream under a connection: ends when the store sends without an end.
struct Metered {
    stream: ByteStream,
    budget: Arc<Budget>,
}

impl AsyncRead for Metered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, budget } = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(stream).poll_read(cx, buffer))?;
        if budget.spend(buffer.filled().len().saturating_sub(before)) {
            return Poll::Ready(Ok(()));
        }
        buffer.set_filled(before);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "the store sends more than an answer may have")))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Hands messages over as they come.
struct Pushes {
    handler: PushHandler,
    budget: Arc<Budget>,
}

impl AsyncPushSender for Pushes {
    fn send(&self, push: redis::PushInfo) -> Result<(), redis::aio::SendError> {
        self.budget.refill();
        if push.kind == redis::PushKind::Message
            && let [channel, message] = push.data.as_slice()
            && let (Some(channel), Some(message)) = (text(channel), text(message))
        {
            (self.handler)(channel, message);
        }
        Ok(())
    }
}

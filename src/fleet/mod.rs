//! Several ushers that act as one: counts, marks and messages over a small Redis or Valkey.
//!
//! No answer about an identity, a password or a route comes from the store. Nothing in it names a user: names are
//! keyed digests, everything else is sealed ([`seal`]). The fleet knows no command, no user and no route: others
//! give it keys, scripts and bytes.
//!
//! Everything that takes time happens in three tasks ([`TASKS`]): `link` keeps the connection for commands and beats
//! on it, `channel` the one for messages, `writes` writes behind. A login asks by [`Fleet::eval`], which answers
//! within `fleet.timeout` or says that there is no answer; after three late answers in 10 s the breaker is open, and it
//! says so at once. Whoever asks has a local rule for that.

mod breaker;
mod channel;
mod clock;
mod inspect;
#[cfg(any(test, feature = "internals"))]
mod invariants;
mod link;
mod marks;
mod member;
mod messages;
mod replay;
mod script;
mod seal;
mod store;
mod writes;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Notify, Semaphore, broadcast, mpsc, watch};
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::base::tasks::Task;
use crate::config;
use crate::telemetry::labels::{FleetRejection, FleetResult};
use crate::telemetry::log::Repeats;
use crate::telemetry::metrics::Metrics;

use breaker::Breaker;
use clock::{POSSIBLE, StoreClock};
use marks::Table;
use member::{Absent, Counts, Divisor};
use messages::{Asked, Envelope, Inbox, Kind};
use script::Scripts;
use seal::Names;
use store::Connection;
use writes::Write;

pub(crate) use inspect::{InspectedStore, StoreFacts, inspect};
#[cfg(any(test, feature = "internals"))]
pub(crate) use invariants::{invariants, value};
pub(crate) use marks::{LARGEST_MARK, Mark, MarkKind, Marks};
pub(crate) use member::{Member, MemberId, Members};
pub(crate) use messages::{Answer, LARGEST_ANSWER, LARGEST_NOTICE, Message, NoAnswer};
pub(crate) use script::{Arg, BRAKE, FleetScript, Value};
pub(crate) use seal::{KeyKind, KeyedId, Sealer, StoreKey};
pub(crate) use store::{FleetFiles, StoreError, StoreMemory};
pub(crate) use writes::Done;

/// The tasks of a fleet, in the order in which they are started.
pub(crate) const TASKS: [Task; 3] = [Task::FleetLink, Task::FleetChannel, Task::FleetWrites];

/// The most writes that wait.
const WRITES: usize = 8_192;
/// The most messages that wait to be sent, and their bytes.
const OUTBOX: usize = 256;
const OUTBOX_BYTES: usize = 8 << 20;
/// The most notices and questions that wait for those who read them.
const INBOX: usize = 256;

/// Why the store gives no answer to a login, in words for a debug line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unavailable {
    /// It is not connected, or the breaker is open.
    #[error("the store is unavailable")]
    Down,
    /// It did not answer within `fleet.timeout`.
    #[error("the store did not answer in time")]
    Late,
    /// It answered with an error.
    #[error("the store answered with an error")]
    Refused,
}

/// This process as a member of the fleet.
pub(crate) struct Fleet {
    settings: config::Fleet,
    files: ArcSwap<FleetFiles>,
    metrics: Arc<Metrics>,
    id: MemberId,
    config: AtomicU64,
    clock: StoreClock,
    breaker: Breaker,
    /// For commands, while it is connected.
    link: ArcSwapOption<Connection>,
    /// Which of the stores that is.
    place: watch::Sender<Option<usize>>,
    /// Whether messages arrive.
    listening: watch::Sender<bool>,
    names: ArcSwapOption<Names>,
    members: ArcSwap<Members>,
    absent: Mutex<Absent>,
    /// What this process has counted.
    counts: Mutex<Counts>,
    divisor: Mutex<Divisor>,
    most_members: AtomicU32,
    /// Where others read it.
    divisor_out: OnceLock<Arc<AtomicU32>>,
    table: Mutex<Table>,
    marks: watch::Sender<Arc<Marks>>,
    /// Counts the stores that this process has met: what was written to another is gone.
    generation: watch::Sender<u64>,
    beat_now: Notify,
    /// It has said goodbye.
    left: AtomicBool,
    /// The scripts that a connection for commands loads.
    scripts: Box<Scripts>,
    /// How often the store's user lacked a right: then it is asked for all at the next beat.
    rights_doubts: AtomicU32,
    inbox: Inbox,
    asked: Asked,
    next_message: AtomicU64,
    arrived: broadcast::Sender<Message>,
    outbox: mpsc::Sender<Outgoing>,
    outbox_out: tokio::sync::Mutex<mpsc::Receiver<Outgoing>>,
    outbox_room: Arc<Semaphore>,
    writes: mpsc::Sender<Write>,
    writes_out: tokio::sync::Mutex<mpsc::Receiver<Write>>,
    repeats: Repeats,
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("name", &self.settings.name).field("id", &self.id).finish_non_exhaustive()
    }
}

/// A message on its way.
#[derive(Debug)]
struct Outgoing {
    channel: String,
    sealed: Vec<u8>,
    /// Its share of the outbox.
    _room: tokio::sync::OwnedSemaphorePermit,
}

impl Fleet {
    /// A member that connects once its [`TASKS`] run. `config` is the digest of the configuration; `scripts` are those
    /// that others run, loaded with the fleet's own.
    #[must_use]
    pub(crate) fn new(
        settings: config::Fleet,
        files: Arc<FleetFiles>,
        config: u64,
        scripts: &Scripts,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let (outbox, outbox_out) = mpsc::channel(OUTBOX);
        let (writes, writes_out) = mpsc::channel(WRITES);
        // They exist from the first scrape.
        for gauge in [&metrics.fleet_up, &metrics.fleet_members, &metrics.fleet_config_mismatch] {
            gauge.with_label_values(&[] as &[&str]).set(0);
        }
        metrics.fleet_clock_skew.with_label_values(&[] as &[&str]).set(0.0);
        Arc::new(Self {
            settings,
            files: ArcSwap::new(files),
            metrics,
            id: MemberId::random(),
            config: AtomicU64::new(config),
            clock: StoreClock::default(),
            breaker: Breaker::default(),
            link: ArcSwapOption::empty(),
            place: watch::Sender::new(None),
            listening: watch::Sender::new(false),
            names: ArcSwapOption::empty(),
            members: ArcSwap::default(),
            absent: Mutex::default(),
            counts: Mutex::default(),
            divisor: Mutex::default(),
            most_members: AtomicU32::new(1),
            divisor_out: OnceLock::new(),
            table: Mutex::default(),
            marks: watch::Sender::new(Arc::default()),
            generation: watch::Sender::new(0),
            beat_now: Notify::new(),
            left: AtomicBool::new(false),
            scripts: [script::ALL.as_slice(), scripts].concat().into(),
            rights_doubts: AtomicU32::new(0),
            inbox: Inbox::default(),
            asked: Asked::default(),
            next_message: AtomicU64::new(1),
            arrived: broadcast::Sender::new(INBOX),
            outbox,
            outbox_out: tokio::sync::Mutex::new(outbox_out),
            outbox_room: Arc::new(Semaphore::new(OUTBOX_BYTES)),
            writes,
            writes_out: tokio::sync::Mutex::new(writes_out),
            repeats: Repeats::default(),
        })
    }

    /// Runs one of [`TASKS`]; never returns.
    pub(crate) async fn run(self: Arc<Self>, task: Task) {
        if task == Task::FleetLink {
            link::run(&self).await;
        } else if task == Task::FleetChannel {
            channel::run(&self).await;
        } else {
            writes::run(&self).await;
        }
    }

    /// Takes over what the files hold now, and the configuration's digest: for the next connection, and at once for what is sealed.
    pub(crate) fn update(&self, files: Arc<FleetFiles>, config: u64) {
        self.files.store(files);
        self.table().reseal();
        self.config.store(config, Ordering::Relaxed);
        self.beat_now.notify_one();
    }

    /// Says goodbye to the store, so that others need not wait for the end of this member's life. Bounded by a second.
    pub(crate) async fn leave(&self) {
        link::leave(self).await;
    }

    /// Whether the store is asked now.
    #[must_use]
    pub(crate) fn is_up(&self) -> bool {
        self.breaker.is_closed()
    }

    /// This machine's name in the fleet.
    #[must_use]
    pub(crate) fn node(&self) -> &str {
        &self.settings.node
    }

    /// This process.
    #[must_use]
    pub(crate) fn id(&self) -> MemberId {
        self.id
    }

    /// The living members as of the last beat, this process included.
    #[must_use]
    pub(crate) fn members(&self) -> Arc<Members> {
        self.members.load_full()
    }

    /// The nodes that have vanished in the last 10 minutes without a goodbye, and for how long: dead, or cut off from the
    /// store.
    #[must_use]
    pub(crate) fn absent_nodes(&self) -> Vec<(Arc<str>, Duration)> {
        self.absent().nodes()
    }

    fn absent(&self) -> MutexGuard<'_, Absent> {
        self.absent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A member ends, and says so: it is asked nothing from now on.
    fn take_goodbye(&self, id: MemberId) {
        let mut absent = self.absent();
        absent.goodbye(id);
        let members = self.members.load();
        if members.get(id).is_some() {
            let rest = members.iter().filter(|member| member.id != id).cloned().collect();
            self.show_members(&mut absent, Members::new(rest));
        }
    }

    /// Makes these the living members. Who changes them holds the lock of the absent ones, so that no goodbye is lost.
    fn show_members(&self, absent: &mut Absent, members: Members) {
        let members = Arc::new(members);
        let count = i64::try_from(members.len()).unwrap_or(i64::MAX);
        self.metrics.fleet_members.with_label_values(&[] as &[&str]).set(count);
        let me = self.own();
        let differs = |member: &&Member| member.version == me.version && member.config != me.config;
        let differing = i64::try_from(members.iter().filter(differs).count()).unwrap_or(i64::MAX);
        self.metrics.fleet_config_mismatch.with_label_values(&[] as &[&str]).set(differing);
        let most = self.divisor.lock().unwrap_or_else(PoisonError::into_inner).count(members.nodes());
        self.most_members.store(most, Ordering::Relaxed);
        if let Some(divisor) = self.divisor_out.get() {
            divisor.store(most, Ordering::Relaxed);
        }
        let before = self.members.swap(Arc::clone(&members));
        absent.note_living(&before, &members);
    }

    /// This process as a member.
    fn own(&self) -> Member {
        Member {
            id: self.id,
            node: self.settings.node.as_str().into(),
            version: env!("CARGO_PKG_VERSION").into(),
            config: self.config.load(Ordering::Relaxed),
            counts: self.counts().clone(),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says with the next beat how many there are here; returns the largest number of a living member.
    pub(crate) fn know(&self, what: &str, count: usize) -> usize {
        let own = u64::try_from(count).unwrap_or(u64::MAX);
        self.counts().insert(what.into(), own);
        let members = self.members.load();
        let most = members.iter().filter_map(|member| member.counts.get(what)).max().copied().unwrap_or(0);
        usize::try_from(most.max(own)).unwrap_or(usize::MAX)
    }

    /// By how many nodes a share is divided. It stays while the store is unavailable.
    #[must_use]
    pub(crate) fn most_members(&self) -> u32 {
        self.most_members.load(Ordering::Relaxed)
    }

    /// Writes that divisor here, too, from the next beat on.
    pub(crate) fn tell_divisor(&self, divisor: Arc<AtomicU32>) {
        let _ = self.divisor_out.set(divisor);
    }

    /// The key of a keyed digest.
    #[must_use]
    pub(crate) fn key_of(&self, kind: KeyKind, id: KeyedId) -> StoreKey {
        StoreKey::keyed(&self.settings.name, kind, id)
    }

    /// The store's clock, in microseconds of Unix time; `None` before the first beat.
    #[must_use]
    pub(crate) fn store_time(&self) -> Option<u64> {
        self.clock.now()
    }

    /// By how much this machine's clock is ahead of the store's, in seconds, and how long the last beat took; `None`
    /// before the first.
    #[must_use]
    pub(crate) fn store_quality(&self) -> Option<(f64, Duration)> {
        self.clock.quality()
    }

    /// Rises with each store that this process meets: one that was emptied is another. What was written is
    /// written again then, over some time.
    #[must_use]
    pub(crate) fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// The keyed digest of a name; `None` before the first beat.
    #[must_use]
    pub(crate) fn keyed(&self, kind: KeyKind, parts: &[&[u8]]) -> Option<KeyedId> {
        Some(self.names.load().as_ref()?.id(kind.label(), parts))
    }

    /// The key for a name; `None` before the first beat.
    #[must_use]
    pub(crate) fn key(&self, kind: KeyKind, parts: &[&[u8]]) -> Option<StoreKey> {
        Some(StoreKey::keyed(&self.settings.name, kind, self.keyed(kind, parts)?))
    }

    /// The key of a member, which is there while it lives: for scripts that count what members have written.
    #[must_use]
    pub(crate) fn member_key(&self, member: MemberId) -> StoreKey {
        self.plain_key(&format!("m:{member}"))
    }

    /// A key of the fleet itself.
    fn plain_key(&self, name: &str) -> StoreKey {
        StoreKey::plain(&self.settings.name, name)
    }

    /// Runs a script and waits for its answer, `fleet.timeout` at most.
    ///
    /// # Errors
    /// There is no answer: the local rule applies.
    pub(crate) async fn eval(
        &self,
        script: &'static FleetScript,
        keys: &[StoreKey],
        args: &[Arg],
    ) -> Result<Value, Unavailable> {
        let link = if self.breaker.is_closed() { self.link.load_full() } else { None };
        let Some(link) = link else {
            self.count(FleetResult::Unavailable);
            return Err(Unavailable::Down);
        };
        let asked = Instant::now();
        match timeout(self.settings.timeout, link.eval(script, keys, args)).await {
            Ok(Ok(value)) => {
                self.metrics.fleet_command_seconds.observe(asked.elapsed().as_secs_f64());
                self.count(FleetResult::Ok);
                Ok(value)
            }
            Ok(Err(StoreError::Busy | StoreError::Lost)) => {
                self.count(FleetResult::Unavailable);
                Err(Unavailable::Down)
            }
            Ok(Err(error)) => {
                self.count(FleetResult::Error);
                self.refused(script, &error);
                Err(Unavailable::Refused)
            }
            Err(_) => {
                self.count(FleetResult::Late);
                if self.breaker.late() {
                    self.down(&StoreError::Late);
                }
                Err(Unavailable::Late)
            }
        }
    }

    /// Runs a script some time later, once: nothing waits for it. It is dropped, and counted, if the store is
    /// away or too many wait. `done` gets what it returned.
    pub(crate) fn order(&self, script: &'static FleetScript, keys: Vec<StoreKey>, args: Vec<Arg>, done: Option<Done>) {
        let write = Write { script, keys, args, done };
        if !self.breaker.is_closed() || self.writes.try_send(write).is_err() {
            self.metrics.fleet_writes_dropped.inc();
        }
    }

    /// How many writes wait.
    #[cfg(feature = "internals")]
    pub(crate) fn waiting_writes(&self) -> usize {
        self.writes.max_capacity() - self.writes.capacity()
    }

    /// Sends a notice to all living members, [`LARGEST_NOTICE`] at most. It may be lost.
    pub(crate) fn publish(&self, body: Vec<u8>) {
        if body.len() <= LARGEST_NOTICE {
            self.send(Kind::Notice, 0, self.other_ids(), body);
        } else {
            self.metrics.fleet_writes_dropped.inc();
        }
    }

    /// The notices and questions of other members from now on.
    #[must_use]
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Message> {
        self.arrived.subscribe()
    }

    /// Asks other living members, and waits for their answers until the deadline.
    ///
    /// # Errors
    /// The store is unavailable, or too many questions are open.
    pub(crate) async fn ask(
        &self,
        body: Vec<u8>,
        deadline: Duration,
        is_for: impl Fn(&Member) -> bool,
    ) -> Result<Vec<Answer>, Unavailable> {
        if !self.is_up() || body.len() > LARGEST_NOTICE {
            return Err(Unavailable::Down);
        }
        let members = self.members();
        let is_asked = |member: &&Member| member.id != self.id && is_for(member);
        let others: Vec<Member> = members.iter().filter(is_asked).cloned().collect();
        let addressed = others.iter().map(|member| member.id).collect();
        let mut answers: Vec<_> =
            others.into_iter().map(|member| Answer { member, body: Err(NoAnswer::Silent) }).collect();
        let mut question = self.asked.open(MemberId::random().0, answers.len()).ok_or(Unavailable::Refused)?;
        if !answers.is_empty() {
            self.send(Kind::Question, question.number, addressed, body);
            let _ = timeout(deadline, question.collect(&mut answers)).await;
        }
        Ok(answers)
    }

    /// Answers a question; larger than [`LARGEST_ANSWER`] it is not sent, and the asker hears so.
    pub(crate) fn answer(&self, question: &Message, body: Vec<u8>) {
        let Some(number) = question.question else { return };
        let fits = body.len() <= LARGEST_ANSWER;
        let (kind, body) = if fits { (Kind::Answer, body) } else { (Kind::TooLarge, Vec::new()) };
        self.send(kind, number, vec![question.from.id], body);
    }

    /// Sets a standing mark, or has an event happen in all other processes. A mark without `lasts` has no end; an
    /// event ends by itself. While the store is unavailable, it is written as soon as that is back. `false`: there is no
    /// place for it.
    pub(crate) fn set_mark(&self, kind: MarkKind, key: &[u8], body: &[u8], lasts: Option<Duration>) -> bool {
        let now = self.now();
        let members = self.members();
        if !self.table().set((self.id, &members), (kind, key, body), (now, lasts)) {
            warn!(kind = kind.label(), "the fleet has too many marks, or this one is too large; it is not set");
            return false;
        }
        self.show_marks();
        self.beat_now.notify_one();
        true
    }

    /// The marks in force, own standing marks included.
    #[must_use]
    pub(crate) fn marks(&self) -> watch::Receiver<Arc<Marks>> {
        self.marks.subscribe()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store's clock, and before the first beat this machine's.
    fn now(&self) -> u64 {
        let now = self.clock.now().unwrap_or_else(|| crate::base::clock::unix_now().saturating_mul(1_000_000));
        now.clamp(*POSSIBLE.start(), *POSSIBLE.end())
    }

    fn show_marks(&self) {
        let marks = self.table().marks();
        self.marks.send_if_modified(|shown| {
            let is_new = !Arc::ptr_eq(shown, &marks);
            *shown = marks;
            is_new
        });
    }

    fn count(&self, result: FleetResult) {
        self.metrics.fleet_commands.of(result).inc();
    }

    fn reject(&self, reason: FleetRejection, what: &'static str) {
        self.metrics.fleet_rejected.of(reason).inc();
        // What was sent before this process was known is no fault.
        if reason != FleetRejection::NotAddressed
            && let Some(suppressed) = self.repeats.allow(what, reason.label())
        {
            warn!(what, reason = reason.label(), suppressed, "dropped what the fleet's store holds or sends");
        }
    }

    /// The store has answered with an error.
    fn refused(&self, script: &FleetScript, error: &StoreError) {
        self.report(script, error);
        // Beats need fewer rights: without this look they would go on as if all were well. What a script may not do
        // comes as an error without a name.
        if matches!(error, StoreError::Rights | StoreError::Answer(_)) {
            self.rights_doubts.fetch_add(1, Ordering::AcqRel);
        }
        if *error == StoreError::Rights && self.breaker.open() {
            self.down(error);
        }
    }

    fn report(&self, script: &FleetScript, error: &StoreError) {
        if let Some(suppressed) = self.repeats.allow("script", script.name()) {
            warn!(script = script.name(), %error, suppressed, "the fleet's store refuses a script");
        }
    }

    /// The breaker has opened.
    fn down(&self, error: &StoreError) {
        self.metrics.fleet_up.with_label_values(&[] as &[&str]).set(0);
        warn!(%error, "the fleet's store is unavailable; limits are local until it is back");
    }

    /// Seals a message, and says by which channel it goes.
    fn sealed(&self, kind: Kind, question: u64, addressed: Vec<MemberId>, body: Vec<u8>) -> Option<(String, Vec<u8>)> {
        let channel = match (kind, addressed.as_slice()) {
            (Kind::Answer | Kind::TooLarge, [asker]) => self.channel_of(*asker),
            (_, _) => self.channel(),
        };
        let number = self.next_message.fetch_add(1, Ordering::Relaxed);
        let envelope = Envelope { kind, from: self.id, number, time: self.now(), question, addressed, body };
        let sealed = envelope.seal(&self.files.load().sealer, &channel)?;
        Some((channel, sealed))
    }

    /// Seals a message and puts it into the outbox.
    fn send(&self, kind: Kind, question: u64, addressed: Vec<MemberId>, body: Vec<u8>) {
        if addressed.is_empty() {
            return;
        }
        let queued = self.sealed(kind, question, addressed, body).is_some_and(|(channel, sealed)| {
            let size = u32::try_from(sealed.len()).unwrap_or(u32::MAX);
            let room = Arc::clone(&self.outbox_room).try_acquire_many_owned(size);
            room.is_ok_and(|room| self.outbox.try_send(Outgoing { channel, sealed, _room: room }).is_ok())
        });
        if !queued {
            self.metrics.fleet_writes_dropped.inc();
        }
    }

    /// All living members but this one.
    fn other_ids(&self) -> Vec<MemberId> {
        self.members.load().iter().map(|member| member.id).filter(|member| *member != self.id).collect()
    }

    /// The channel of all members.
    fn channel(&self) -> String {
        format!("usher:{}:c", self.settings.name)
    }

    /// The channel of one.
    fn channel_of(&self, member: MemberId) -> String {
        format!("usher:{}:c:{member}", self.settings.name)
    }
}

//! The connection for commands: opened and opened again in the background, and kept by beats.
//!
//! A beat says that this process lives and reads which members do and which marks have changed; after it, marks are
//! written that the store lacks. Only a beat that is answered within `fleet.timeout` closes the breaker.

use std::time::Duration;

use aws_lc_rs::rand;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::clock::{POSSIBLE, micros_of};
use super::inspect;
use super::marks::{self, MarkKind, Read};
use super::member::MOST_MEMBERS;
use super::messages::FRESH;
use super::script::{BEAT, LEAVE, MARK};
use super::seal::{Names, Purpose};
use super::store::{Connection, Driver};
use super::{Arc, Arg, Fleet, FleetRejection, Kind, Member, MemberId, Members, Ordering, StoreError, Value, channel};
use crate::base::clock::jittered;

/// How long a member lives after a beat.
const LIFE: Duration = Duration::from_secs(10);
/// Between two beats.
const BEAT_EVERY: Duration = Duration::from_secs(2);
/// How long the members that were there before a store was emptied still count: two beats.
const COMING_BACK: Duration = Duration::from_secs(5);
/// The least between two beats, whatever is to be read.
const LEAST_PAUSE: Duration = Duration::from_millis(20);
/// How long a beat may take until the connection counts as broken, together with the one after it.
const PATIENCE: Duration = Duration::from_secs(2);
/// After this many beats everything is read again: the store may have lost a part.
const FULL_EVERY: u32 = 30;
/// For this many beats names that cannot be read are waited for.
const NAMELESS: u32 = 5;
/// The pause after a connection that could not be opened: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often a store that comes first is tried while another is in use, and how long that may take.
const PROBE_EVERY: Duration = Duration::from_secs(30);
const PROBING: Duration = Duration::from_millis(500);
/// How long the connection for messages may take until the first beat does not wait for it.
const LISTENING: Duration = Duration::from_millis(500);
/// How long the goodbye may take.
const LEAVING: Duration = Duration::from_secs(1);

/// What has been read of the store.
#[derive(Debug, Default)]
struct Progress {
    /// Up to when, by the store's clock.
    read: u64,
    epoch: Vec<u8>,
    /// When the newest mark was written, and how many there are.
    newest: f64,
    count: u64,
    beats: u32,
    /// How often a right had been missing when the store was last asked for all; `None`: not at this connection.
    doubts: Option<u32>,
    /// When the store was emptied, or another was taken: members come back to it one by one.
    emptied: Option<Instant>,
}

/// Keeps a connection until the process ends.
pub(super) async fn run(fleet: &Fleet) {
    let (mut pause, mut progress) = (PAUSES.0, Progress::default());
    loop {
        match connect(fleet).await {
            Ok((at, connection, driver)) => {
                pause = PAUSES.0;
                fleet.place.send_replace(Some(at));
                progress.doubts = None;
                let error = tokio::select! {
                    () = driver => StoreError::Lost,
                    error = beat_on(fleet, &connection, at, &mut progress) => error,
                };
                fleet.link.store(None);
                fleet.place.send_replace(None);
                if fleet.breaker.open() {
                    fleet.down(&error);
                }
            }
            Err(()) => pause = (pause * 2).min(PAUSES.1),
        }
        sleep(jittered(pause)).await;
    }
}

/// Tries the stores in order.
async fn connect(fleet: &Fleet) -> Result<(usize, Arc<Connection>, Driver), ()> {
    for (at, address) in fleet.settings.stores.iter().enumerate() {
        match Connection::open(address, &fleet.settings, &fleet.files.load_full(), &fleet.scripts, None).await {
            Ok((connection, driver)) => {
                info!(store = %address, fleet = fleet.settings.name, "connected to the fleet's store");
                return Ok((at, Arc::new(connection), driver));
            }
            Err(error) => {
                if let Some(suppressed) = fleet.repeats.allow("connect", &address.to_string()) {
                    warn!(store = %address, %error, suppressed, "no connection to the fleet's store");
                }
            }
        }
    }
    Err(())
}

/// Whether a store that comes before this one can be used: others may be there.
async fn is_preferred_back(fleet: &Fleet, at: usize) -> bool {
    for address in fleet.settings.stores.iter().take(at) {
        let files = fleet.files.load_full();
        let opened = Connection::open(address, &fleet.settings, &files, &[], None);
        if timeout(PROBING, opened).await.is_ok_and(|opened| opened.is_ok()) {
            return true;
        }
    }
    false
}

/// Beats on a connection until it is of no use.
async fn beat_on(fleet: &Fleet, connection: &Arc<Connection>, at: usize, progress: &mut Progress) -> StoreError {
    let (mut failures, mut probed) = (0, Instant::now());
    // The first beat is dated by this store's clock, too. What it says is no reading yet: only a beat is.
    let asked = Instant::now();
    match timeout(PATIENCE, connection.time()).await.unwrap_or(Err(StoreError::Late)) {
        Ok(time) => drop(fleet.clock.set(asked, Instant::now(), time)),
        Err(error) if error.is_lost() || error == StoreError::Late => return error,
        Err(_) => {}
    }
    // Who sees this member may ask it at once.
    let _ = timeout(LISTENING, fleet.listening.subscribe().wait_for(|listening| *listening)).await;
    loop {
        if fleet.left.load(Ordering::Acquire) {
            std::future::pending::<()>().await;
        }
        if at > 0 && probed.elapsed() >= PROBE_EVERY {
            probed = Instant::now();
            if is_preferred_back(fleet, at).await {
                return StoreError::Lost;
            }
        }
        let began = Instant::now();
        match timeout(PATIENCE, send_heartbeat(fleet, connection, progress)).await.unwrap_or(Err(StoreError::Late)) {
            Ok(took) => {
                failures = 0;
                if took <= fleet.settings.timeout && fleet.names.load().is_some() {
                    fleet.link.store(Some(Arc::clone(connection)));
                    if fleet.breaker.close() {
                        info!(fleet = fleet.settings.name, members = fleet.members.load().len(), "joined the fleet");
                    }
                } else if took > fleet.settings.timeout && fleet.breaker.late() {
                    fleet.down(&StoreError::Late);
                }
            }
            Err(error) => {
                failures += 1;
                if fleet.breaker.open() {
                    fleet.down(&error);
                } else if let Some(suppressed) = fleet.repeats.allow("beat", "") {
                    warn!(%error, suppressed, "the fleet's store does not take this member");
                }
                if error.is_lost() || failures > 1 && error == StoreError::Late {
                    return error;
                }
            }
        }
        // Here and not where it changes: a late answer and a beat may do both at once.
        fleet.metrics.fleet_up.with_label_values(&[] as &[&str]).set(i64::from(fleet.is_up()));
        sleep(LEAST_PAUSE.saturating_sub(began.elapsed())).await;
        // No two members beat in step.
        let _ = timeout(jittered(BEAT_EVERY), fleet.beat_now.notified()).await;
    }
}

/// One beat; returns how long the store took.
async fn send_heartbeat(
    fleet: &Fleet,
    connection: &Connection,
    progress: &mut Progress,
) -> Result<Duration, StoreError> {
    let own = own_record(fleet).ok_or(StoreError::Malformed)?;
    let mut candidate = [0; 8];
    rand::fill(&mut candidate).map_err(|_| StoreError::Malformed)?;
    progress.beats += 1;
    if progress.beats.is_multiple_of(FULL_EVERY) {
        progress.read = 0;
    }
    let index = ["m", "k", "kt", "ke", "e"].map(|name| fleet.plain_key(name));
    let keys = [&[fleet.member_key(fleet.id)], index.as_slice()].concat();
    let args = [
        Arg::from(fleet.id.to_string().as_str()),
        own.into(),
        Arg::Int(i64::try_from(LIFE.as_millis()).unwrap_or(i64::MAX)),
        Arg::from(progress.read.to_string().as_str()),
        Arg::from(progress.epoch.as_slice()),
        Arg::from(candidate.as_slice()),
        Arg::from(fleet.plain_key("m:").as_str()),
        Arg::from(MOST_MEMBERS),
        Arg::Int(i64::try_from(marks::MOST).unwrap_or(i64::MAX)),
    ];
    let asked = Instant::now();
    let answer = connection.eval(&BEAT, &keys, &args).await?;
    let took = asked.elapsed();
    let shown = Shown::read(&answer).ok_or(StoreError::Malformed)?;
    if !POSSIBLE.contains(&shown.time) {
        return Err(StoreError::Clock);
    }
    let skew = fleet.clock.set(asked, Instant::now(), shown.time);
    fleet.metrics.fleet_clock_skew.with_label_values(&[] as &[&str]).set(skew);
    let doubts = fleet.rights_doubts.load(Ordering::Acquire);
    if progress.doubts != Some(doubts) {
        if !inspect::denied(connection, &fleet.settings).await?.is_empty() {
            return Err(StoreError::Rights);
        }
        progress.doubts = Some(doubts);
    }
    if !progress.epoch.is_empty() && progress.epoch != shown.epoch {
        progress.emptied = Some(asked);
    }
    take_members(fleet, &shown, progress.emptied.is_some_and(|at| at.elapsed() < COMING_BACK));
    let changed = read_marks(fleet, &shown, progress);
    write_marks(fleet, connection).await?;
    if changed {
        fleet.show_marks();
    }
    channel::judge_held(fleet);
    Ok(took)
}

/// This process's record, sealed.
fn own_record(fleet: &Fleet) -> Option<Vec<u8>> {
    let sealer = &fleet.files.load().sealer;
    sealer.seal(Purpose::Member, fleet.id.to_string().as_bytes(), &fleet.own().encode(fleet.now()))
}

/// What a beat has shown.
#[derive(Debug)]
pub(super) struct Shown<'a> {
    pub(super) time: u64,
    epoch: &'a [u8],
    /// Whether all marks are there, and not only the changed ones.
    whole: bool,
    newest: f64,
    count: u64,
    pub(super) members: Vec<(&'a [u8], &'a [u8])>,
    pub(super) marks: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Shown<'a> {
    pub(super) fn read(answer: &'a Value) -> Option<Self> {
        let [seconds, micros, epoch, whole, extent, members, marks] = answer.items() else { return None };
        let (newest, count) = std::str::from_utf8(extent.bytes()?).ok()?.split_once(' ')?;
        let number = |value: &Value| value.int().and_then(|number| u64::try_from(number).ok());
        let pairs = |value: &'a Value| {
            let (pairs, rest) = value.items().as_chunks::<2>();
            let pair = |[one, other]: &'a [Value; 2]| Some((one.bytes()?, other.bytes()?));
            rest.is_empty().then(|| pairs.iter().map(pair).collect::<Option<Vec<_>>>()).flatten()
        };
        Some(Self {
            time: number(seconds)?.checked_mul(1_000_000)?.checked_add(number(micros)?)?,
            epoch: epoch.bytes()?,
            whole: number(whole)? == 1,
            newest: newest.parse().ok()?,
            count: count.parse().ok()?,
            members: pairs(members)?,
            marks: pairs(marks)?,
        })
    }
}

/// Takes over the living members.
fn take_members(fleet: &Fleet, shown: &Shown<'_>, coming_back: bool) {
    let sealer = Arc::clone(&fleet.files.load().sealer);
    let mut members = vec![fleet.own()];
    for (id, record) in &shown.members {
        let Some(member) = MemberId::parse(id) else {
            fleet.reject(FleetRejection::Garbage, "member");
            continue;
        };
        if member == fleet.id {
            continue;
        }
        match sealer.open(Purpose::Member, id, record).map(|record| Member::decode(member, &record)) {
            Ok(Some((member, time))) if time.abs_diff(shown.time) <= micros_of(FRESH) => members.push(member),
            // Someone writes it again and again.
            Ok(Some(_)) => fleet.reject(FleetRejection::Stale, "member"),
            Ok(None) => fleet.reject(FleetRejection::Garbage, "member"),
            Err(error) => fleet.reject(error.into(), "member"),
        }
    }
    let mut absent = fleet.absent();
    if coming_back {
        let before = fleet.members.load();
        let is_known = |id| members.iter().any(|known| known.id == id);
        let gone = before.iter().filter(|member| !is_known(member.id));
        members.extend(gone.cloned().collect::<Vec<_>>());
    }
    // The beat may have been answered before the goodbye.
    members.retain(|member| !absent.has_left(member.id));
    fleet.show_members(&mut absent, Members::new(members));
}

/// Takes over which marks have changed; returns whether anything is in force that was not before.
fn read_marks(fleet: &Fleet, shown: &Shown<'_>, progress: &mut Progress) -> bool {
    let sealer = Arc::clone(&fleet.files.load().sealer);
    let members = fleet.members.load_full();
    let mut table = fleet.table();
    let (mut changed, mut unread_names) = (false, false);
    for (field, value) in &shown.marks {
        match table.read(fleet.id, shown.time, &sealer, field, value) {
            Read::Changed => changed = true,
            Read::Known => {}
            Read::Rejected(error) => {
                unread_names |= *field == marks::NAMES_FIELD.as_bytes();
                fleet.reject(error.into(), "mark");
            }
        }
    }
    // Others have names that this process cannot read yet: they are sealed again, or replaced, within a beat or two.
    let waits = unread_names && members.len() > 1 && progress.beats < NAMELESS;
    if table.names().is_none()
        && !waits
        && let Some(names) = Names::random()
    {
        table.set((fleet.id, &members), (MarkKind::Names, &[], names.secret()), (shown.time, None));
    }
    if shown.whole {
        let present: Vec<_> = shown.marks.iter().map(|(field, _)| *field).collect();
        table.write_missing(&present);
    }
    changed |= table.refresh(fleet.id, &members, shown.time);
    let names = table.names();
    drop(table);
    let is_same = |names: &Names| fleet.names.load().as_ref().is_some_and(|known| known.secret() == names.secret());
    let other_names = names.is_some_and(|names| {
        let is_new = !is_same(&names);
        if is_new {
            fleet.names.store(Some(Arc::new(names)));
        }
        is_new
    });
    if other_names || progress.epoch != shown.epoch {
        fleet.generation.send_modify(|generation| *generation += 1);
    }
    progress.epoch = shown.epoch.to_vec();
    // Fewer marks, or older ones: they have ended, or the store's owner has put the old ones back.
    let is_less = waits || shown.newest < progress.newest || shown.count < progress.count;
    progress.read = if is_less { 0 } else { shown.time };
    (progress.newest, progress.count) = (shown.newest, shown.count);
    changed
}

/// Writes the marks that the store lacks, and notifies the others.
async fn write_marks(fleet: &Fleet, connection: &Connection) -> Result<(), StoreError> {
    let keys = ["k", "kt", "ke"].map(|name| fleet.plain_key(name));
    let mut written = false;
    loop {
        let sealer = Arc::clone(&fleet.files.load().sealer);
        let Some(args) = fleet.table().unwritten(&sealer) else { break };
        match connection.eval(&MARK, &keys, &args).await {
            Ok(count) => written |= count.int().is_some_and(|count| count > 0),
            Err(error) => {
                fleet.table().unsure();
                return Err(error);
            }
        }
    }
    if written {
        fleet.send(Kind::Poke, 0, fleet.other_ids(), Vec::new());
    }
    Ok(())
}

/// Ends this member's life in the store.
pub(super) async fn leave(fleet: &Fleet) {
    fleet.left.store(true, Ordering::Release);
    let Some(link) = fleet.link.load_full() else { return };
    let goodbye = fleet.sealed(Kind::Goodbye, 0, fleet.other_ids(), Vec::new());
    let keys = [fleet.member_key(fleet.id), fleet.plain_key("m")];
    let args = [Arg::from(fleet.id.to_string().as_str())];
    let leaving = async {
        if let Some((channel, sealed)) = goodbye {
            let _ = link.publish(&channel, &sealed).await;
        }
        let _ = link.eval(&LEAVE, &keys, &args).await;
    };
    let _ = timeout(LEAVING, leaving).await;
}

//! The brake of a fleet: what this node's brake has for others is written to the store, and what they have is passed to it.
//!
//! The store has, for each round of the brake, the keyed ids of users that were changed in the last minute, and of users
//! whose changes are held back, each with a keyed digest of the values that are kept. Whether the brake is on is a mark,
//! whose version is the round: what belongs to an earlier round is never read. No login waits for any of it. While the
//! store is unavailable, each node acts by what it knows.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast::error::RecvError, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::directory::{Entry, EntryKey, EntryName, Realm};
use crate::fleet::{Arg, BRAKE, Fleet, KeyKind, Mark, MarkKind, StoreKey, Value};
use crate::process::Shared;
use crate::tracking::{
    BrakeId, BrakeNews, BrakeStatus, ChangeTracker, FleetNames, HeldSet, KeptValues, TrackingContext, id_of,
};

/// How often the store is asked while the brake is on, and while it is off.
const TICKS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// The period that counts as "at once".
const WINDOW_MS: i64 = 60_000;
/// How long the store keeps what no node renews.
const LIFE_MS: i64 = 3_600_000;
/// The most kept values.
const MOST_KEPT: i64 = 1_000_000;
/// How many items one script takes, and how many of each list it returns.
const BATCH: usize = 500;
const PAGE: usize = 4_000;
/// How long the store may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the store must have fewer kept values than are known here: longer than all nodes need to write theirs again.
const REMOVED: Duration = Duration::from_secs(2);
/// How long nothing must be held back until the brake goes off: longer than two beats.
const SETTLED: Duration = Duration::from_secs(5);
/// How long the store must be away until a node that holds nothing back any more releases its brake alone.
const ALONE: Duration = Duration::from_secs(10);
/// A node that has tripped within this time of a confirmation, without knowing of it, is freed by it.
const UNAWARE_MICROS: u64 = 10_000_000;
/// A confirmation that is over and older than this means nothing to a process that has started since.
const OLD_MICROS: u64 = 60_000_000;
/// The notice to the others that there is something to read.
const NOTICE: &[u8] = b"brake";

/// How the mark says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is on; the mark that its setter knew before.
    On { base: u64 },
    /// It is off: nothing was held back any more.
    Released,
    /// It is off, and stays off for this number of seconds: an administrator has confirmed the changes.
    Confirmed { seconds: u64 },
}

impl State {
    fn write(self) -> String {
        match self {
            Self::On { base } => format!("on {base}"),
            Self::Released => "released".to_owned(),
            Self::Confirmed { seconds } => format!("confirmed {seconds}"),
        }
    }

    fn read(body: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(body).ok()?.split(' ');
        let word = words.next()?;
        let mut number = || words.next()?.parse().ok();
        match word {
            "on" => Some(Self::On { base: number()? }),
            "released" => Some(Self::Released),
            "confirmed" => Some(Self::Confirmed { seconds: number()? }),
            _ => None,
        }
    }
}

/// Whether a node has set this mark without knowing of the confirmation just before it.
fn is_unaware(state: State, version: u64, confirmation: u64) -> bool {
    match state {
        State::On { base } => base < confirmation && version.saturating_sub(confirmation) < UNAWARE_MICROS,
        State::Released | State::Confirmed { .. } => false,
    }
}

/// How old a confirmation is, and for how long it is in force. One from the future was made under a clock that was put
/// back since: when it ends is not known, and it would be in force at every start.
fn confirmation_left(now: Option<u64>, version: u64, seconds: u64) -> (u64, Duration) {
    let now = now.unwrap_or(version);
    if version > now.saturating_add(OLD_MICROS) {
        return (u64::MAX, Duration::ZERO);
    }
    let age = now.saturating_sub(version);
    (age, Duration::from_secs(seconds).saturating_sub(Duration::from_micros(age)))
}

/// Names by the fleet's key.
struct Names(Arc<Fleet>);

impl FleetNames for Names {
    fn name(&self, entry: &Entry) -> Option<KeptValues> {
        let key = entry.names().by_id().unwrap_or_else(|| EntryKey::by_dn(entry.version.realm, &entry.dn));
        let realm = key.realm.name().as_bytes();
        let user: [&[u8]; 3] = match &key.name {
            EntryName::Id(id) => [realm, b"id", id.bytes()],
            EntryName::Dn(dn) => [realm, b"dn", dn.as_bytes()],
        };
        let id = self.0.keyed(KeyKind::Brake, &[&[b"user".as_slice()], user.as_slice()].concat())?.0;
        let hosts = (entry.mail_hosts.len() as u64).to_be_bytes();
        let disabled = [u8::from(entry.version.disabled)];
        let mut values: Vec<&[u8]> = vec![b"kept", &id, &hosts, &disabled];
        values.extend(entry.mail_hosts.iter().chain(&entry.logins).map(String::as_bytes));
        let kept = self.0.keyed(KeyKind::Brake, &values)?.0;
        let mut name = KeptValues::default();
        name.iter_mut().zip(id.iter().chain(&kept)).for_each(|(to, from)| *to = *from);
        Some(name)
    }
}

/// Shares the brakes of all directories; never returns.
pub(super) async fn share(shared: Arc<Shared>) {
    let Some(fleet) = shared.fleet.clone() else { return pending().await };
    let names: Arc<dyn FleetNames> = Arc::new(Names(Arc::clone(&fleet)));
    shared.trackers.join(Arc::clone(&names));
    let mut brakes: BTreeMap<Realm, SharedBrake<'_>> = BTreeMap::new();
    let (mut marks, mut generation, mut messages) = (fleet.marks(), fleet.generation(), fleet.subscribe());
    loop {
        generation.borrow_and_update();
        marks.borrow_and_update();
        let realms: Vec<_> = shared.snapshot.load().realms.all().iter().map(|realm| realm.realm).collect();
        brakes.retain(|realm, _| realms.contains(realm));
        for realm in realms {
            let brake = brakes.entry(realm);
            let brake = brake.or_insert_with(|| SharedBrake::new(&shared, &fleet, realm, Arc::clone(&names)));
            brake.turn().await;
        }
        let held = brakes.values().map(SharedBrake::held).sum::<usize>();
        let gauge = shared.metrics.fleet_brake.with_label_values(&[] as &[&str]);
        gauge.set(i64::try_from(held).unwrap_or(i64::MAX));
        let pause = brakes.values().map(SharedBrake::pause).min().unwrap_or(TICKS.1);
        let mut are_due = false;
        tokio::select! {
            () = shared.trackers.has_news() => {}
            changed = marks.changed() => if changed.is_err() { return },
            changed = generation.changed() => {
                if changed.is_err() { return }
                brakes.values_mut().for_each(SharedBrake::begin);
            }
            message = messages.recv() => match message {
                Ok(message) if &*message.body == NOTICE && !message.is_question() => are_due = true,
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => are_due = true,
                Err(RecvError::Closed) => return,
            },
            () = sleep(pause) => are_due = true,
        }
        brakes.values_mut().for_each(|brake| brake.is_due |= are_due);
    }
}

/// What is known of the fleet's brake of a directory.
struct SharedBrake<'a> {
    shared: &'a Shared,
    fleet: &'a Arc<Fleet>,
    realm: Realm,
    names: Arc<dyn FleetNames>,
    /// The version of the mark that was obeyed, and the round.
    round: u64,
    is_on: bool,
    /// This process's own confirmation: its version and seconds.
    confirmed: Option<(u64, u64)>,
    changed: BTreeSet<BrakeId>,
    kept: BTreeSet<KeptValues>,
    back: BTreeSet<KeptValues>,
    /// Everything of this node has to be written.
    is_new: bool,
    is_due: bool,
    /// What any node holds back, and up to when the store's lists were read.
    held: BTreeSet<KeptValues>,
    read_changed: i64,
    read_held: i64,
    /// The tracker does not know it yet.
    is_untold: bool,
    is_rereading: bool,
    /// Since when the store has fewer, or others.
    fewer_since: Option<Instant>,
    /// Since when the store has nothing that is held back.
    empty_since: Option<Instant>,
    has_held: bool,
    answered: Instant,
}

/// What the store has answered.
#[derive(Debug, Default)]
struct Shown {
    held: usize,
    changed: Vec<(Vec<u8>, i64)>,
    kept: Vec<(Vec<u8>, i64)>,
    now: i64,
}

impl<'a> SharedBrake<'a> {
    fn new(shared: &'a Shared, fleet: &'a Arc<Fleet>, realm: Realm, names: Arc<dyn FleetNames>) -> Self {
        Self {
            shared,
            fleet,
            realm,
            names,
            round: 0,
            is_on: false,
            confirmed: None,
            changed: BTreeSet::new(),
            kept: BTreeSet::new(),
            back: BTreeSet::new(),
            is_new: true,
            is_due: true,
            held: BTreeSet::new(),
            read_changed: 0,
            read_held: 0,
            is_untold: false,
            is_rereading: false,
            fewer_since: None,
            empty_since: None,
            has_held: false,
            answered: Instant::now(),
        }
    }

    fn pause(&self) -> Duration {
        if self.is_on || self.is_new { TICKS.0 } else { TICKS.1 }
    }

    /// Everything is written and read again: another round, or a store that knows nothing.
    fn begin(&mut self) {
        self.changed.clear();
        self.kept.clear();
        self.back.clear();
        self.held.clear();
        (self.read_changed, self.read_held) = (0, 0);
        (self.empty_since, self.fewer_since) = (None, None);
        (self.is_new, self.is_due, self.is_untold, self.is_rereading) = (true, true, true, false);
    }

    fn mark(&self) -> Option<Arc<Mark>> {
        self.fleet.marks().borrow().get(MarkKind::Brake, self.realm.name().as_bytes()).cloned()
    }

    fn set(&self, state: State) -> u64 {
        self.fleet.set_mark(MarkKind::Brake, self.realm.name().as_bytes(), state.write().as_bytes(), None);
        self.mark().map_or(0, |mark| mark.version)
    }

    /// Does what there is to do.
    async fn turn(&mut self) {
        self.obey();
        self.take_news();
        // What it has set itself begins another round.
        self.obey();
        let status = self.status();
        if status.on && !self.is_on {
            self.set(State::On { base: self.round });
            self.obey();
        }
        self.take_news();
        self.has_held |= status.deferred > 0;
        while self.has_more() {
            self.is_due = false;
            if !self.exchange().await {
                break;
            }
            self.take_news();
            self.obey();
        }
        self.consider_release();
    }

    /// How many users' changes are held back.
    fn held(&self) -> usize {
        if self.is_on { self.held.len() } else { 0 }
    }

    /// Does something with the tracker; `None`: the directory is no longer configured.
    fn with<T>(&self, act: impl FnOnce(&ChangeTracker, &TrackingContext<'_>) -> T) -> Option<T> {
        let snapshot = self.shared.snapshot.load_full();
        snapshot.setting(self.realm).map(|setting| act(&self.shared.trackers.of(self.realm), &setting))
    }

    fn status(&self) -> BrakeStatus {
        let off = BrakeStatus { on: false, deferred: 0, turns: 0 };
        self.with(|tracker, setting| tracker.brake(setting)).unwrap_or(off)
    }

    fn has_more(&self) -> bool {
        self.is_due || !self.changed.is_empty() || !self.kept.is_empty() || !self.back.is_empty()
    }

    fn take_news(&mut self) {
        let (mut news, overflown) = self.shared.trackers.of(self.realm).take_news();
        self.is_new |= overflown;
        if self.is_new && self.fleet.is_up() {
            news.extend(self.with(|tracker, setting| tracker.all_news(setting)).unwrap_or_default());
            self.is_new = false;
        }
        for news in news {
            match news {
                BrakeNews::Changed(entry) => {
                    self.changed.extend(self.names.name(&entry).map(|name| id_of(&name)));
                }
                BrakeNews::Held(entry) => {
                    if let Some(name) = self.names.name(&entry) {
                        self.back.remove(&name);
                        self.kept.insert(name);
                    }
                }
                BrakeNews::Back(entry) => {
                    if let Some(name) = self.names.name(&entry) {
                        self.kept.remove(&name);
                        self.back.insert(name);
                    }
                }
                BrakeNews::Tripped => {
                    if !self.is_on {
                        self.set(State::On { base: self.round });
                    }
                }
                BrakeNews::Confirmed(time) => {
                    let seconds = time.as_secs();
                    self.confirmed = Some((self.set(State::Confirmed { seconds }), seconds));
                }
            }
        }
    }

    /// Does what the mark says, once.
    fn obey(&mut self) {
        let Some(mark) = self.mark().filter(|mark| mark.version > self.round) else { return };
        let Some(state) = State::read(&mark.body) else { return };
        let is_own = mark.origin == self.fleet.id();
        if let Some((_, seconds)) = self.confirmed.filter(|it| !is_own && is_unaware(state, mark.version, it.0)) {
            // Both are about the same edit.
            self.round = mark.version;
            self.confirmed = Some((self.set(State::Confirmed { seconds }), seconds));
            return self.obey();
        }
        self.round = mark.version;
        self.has_held = false;
        match state {
            State::On { .. } => {
                self.is_on = true;
                self.with(|tracker, setting| tracker.engage_for_fleet(setting));
            }
            State::Released => {
                if !self.with(|tracker, setting| tracker.release_for_fleet(setting)).unwrap_or(true) {
                    self.set(State::On { base: self.round });
                    return self.obey();
                }
                self.is_on = false;
            }
            State::Confirmed { seconds } => {
                self.is_on = false;
                if !is_own {
                    self.obey_confirmation(mark.version, seconds);
                }
            }
        }
        self.begin();
    }

    fn obey_confirmation(&self, version: u64, seconds: u64) {
        let (age, left) = confirmation_left(self.fleet.store_time(), version, seconds);
        if self.status().on || !left.is_zero() || age < OLD_MICROS {
            self.with(|tracker, setting| {
                let changes = tracker.confirm(left, setting);
                info!(directory = setting.shown, changes, "confirmed at another node of the fleet");
            });
        }
    }

    /// One script; `false`: the store gives no answer, or there is nothing more to do.
    async fn exchange(&mut self) -> bool {
        let Some([changed, kept]) = self.keys() else { return false };
        let turns = self.status().turns;
        let sent = (take(&mut self.changed), take(&mut self.kept), take(&mut self.back));
        let number = |count: usize| Arg::Int(i64::try_from(count).unwrap_or(i64::MAX));
        let mut args = vec![
            Arg::Int(WINDOW_MS),
            Arg::Int(LIFE_MS),
            Arg::Int(MOST_KEPT),
            number(PAGE),
            Arg::Int(self.read_changed),
            Arg::Int(self.read_held),
            number(sent.0.len()),
            number(sent.1.len()),
            number(sent.2.len()),
        ];
        args.extend(sent.0.iter().map(|id| Arg::from(id.as_slice())));
        args.extend(sent.1.iter().chain(&sent.2).map(|name| Arg::from(name.as_slice())));
        let (answer, answered) = oneshot::channel();
        let done = Box::new(move |value: &Value| drop(answer.send(Shown::read(value))));
        self.fleet.order(&BRAKE, vec![changed, kept], args, Some(done));
        let Ok(Ok(Some(shown))) = timeout(PATIENCE, answered).await else {
            // Once the store is back, all of it is written as it is then.
            self.changed.clear();
            self.kept.clear();
            self.back.extend(sent.2);
            self.is_new = true;
            return false;
        };
        self.answered = Instant::now();
        if !sent.1.is_empty() || !sent.2.is_empty() {
            self.fleet.publish(NOTICE.to_vec());
        }
        self.take(shown, turns);
        true
    }

    fn take(&mut self, shown: Shown, turns: u64) {
        let (changed, more_changed) = read_on(&shown.changed, self.read_changed, shown.now);
        let (held, more_held) = read_on(&shown.kept, self.read_held, shown.now);
        (self.read_changed, self.read_held) = (changed, held);
        self.is_due |= more_changed || more_held;
        let changed = shown.changed.iter().filter_map(|(id, at)| {
            let age = u64::try_from(shown.now.saturating_sub(*at)).unwrap_or_default();
            Some((BrakeId::try_from(id.as_slice()).ok()?, Duration::from_millis(age)))
        });
        // Sealed, so that the store's owner cannot raise the brake's limit.
        let known = self.with(|_, setting| setting.entries.known_users()).unwrap_or_default();
        let users = self.fleet.know(self.realm.name(), known);
        self.with(|tracker, setting| tracker.heard(turns, (changed, users), setting));
        let known = self.held.len();
        let room = usize::try_from(MOST_KEPT).unwrap_or(usize::MAX).saturating_sub(known);
        let kept = shown.kept.iter().filter_map(|(name, _)| KeptValues::try_from(name.as_slice()).ok());
        self.held.extend(kept.take(room));
        self.is_untold |= self.held.len() != known;
        if more_held {
            return;
        }
        if self.held.len() == shown.held {
            self.fewer_since = None;
        } else if !self.is_rereading {
            // Some are held back no more, which is not urgent: their values are the kept ones. Or someone has removed
            // them: those of each node are there again soon.
            self.is_new |= self.fewer_since.is_none();
            if self.fewer_since.get_or_insert_with(Instant::now).elapsed() >= REMOVED {
                self.held.clear();
                (self.read_held, self.is_rereading, self.is_due, self.is_untold) = (0, true, true, true);
                self.fewer_since = None;
                return;
            }
        }
        self.is_rereading = false;
        if self.is_on && std::mem::take(&mut self.is_untold) {
            let held = HeldSet::new(Arc::clone(&self.names), self.held.clone());
            self.with(|tracker, setting| tracker.hold_elsewhere(held, setting));
        }
        if shown.held > 0 || self.status().deferred > 0 {
            self.empty_since = None;
        } else {
            self.empty_since.get_or_insert_with(Instant::now);
        }
    }

    /// The brake of all goes off once nothing is held back anywhere.
    fn consider_release(&mut self) {
        if !self.is_on || self.status().deferred > 0 {
            return;
        }
        let is_alone = self.answered.elapsed() >= ALONE && !self.fleet.is_up();
        let is_known = self.answered.elapsed() < 2 * TICKS.0;
        let is_settled = is_known && self.empty_since.is_some_and(|since| since.elapsed() >= SETTLED);
        if is_settled || (is_alone && self.has_held) {
            if is_alone {
                warn!(
                    "the fleet's store is unavailable: the brake is released here, since nothing is held back any more"
                );
            }
            self.set(State::Released);
            self.obey();
        }
    }

    /// Of this round; `None` before the first beat.
    fn keys(&self) -> Option<[StoreKey; 2]> {
        let round = self.round.to_be_bytes();
        let realm = self.realm.name().as_bytes();
        let key = |parts: &[&[u8]]| self.fleet.key(KeyKind::Brake, parts);
        Some([key(&[b"changed", realm, &round])?, key(&[b"held", realm, &round])?])
    }
}

/// From where a list is read on, and whether at once, because it was not whole. Whoever owns the store sets the times in
/// it: reading goes forward, or ends.
fn read_on(list: &[(Vec<u8>, i64)], since: i64, now: i64) -> (i64, bool) {
    match list.last() {
        Some((_, score)) if list.len() >= PAGE && (since.saturating_add(1)..=now).contains(score) => (*score, true),
        Some(_) | None => (now, false),
    }
}

/// A batch of it.
fn take<T: Ord>(from: &mut BTreeSet<T>) -> BTreeSet<T> {
    std::iter::from_fn(|| from.pop_first()).take(BATCH).collect()
}

impl Shown {
    fn read(value: &Value) -> Option<Self> {
        let [now, held, changed, kept] = value.items() else { return None };
        let number = |value: &Value| value.int().and_then(|number| usize::try_from(number).ok());
        let list = |value: &Value| {
            let (pairs, _) = value.items().as_chunks::<2>();
            let pair = |[item, score]: &[Value; 2]| Some((item.bytes()?.to_vec(), score.int()?));
            pairs.iter().map(pair).collect::<Option<Vec<_>>>()
        };
        let (changed, kept) = (list(changed)?, list(kept)?);
        Some(Self { held: number(held)?, changed, kept, now: now.int()? })
    }
}

/// What must hold for any answer of the store: it is read or not, and reading goes forward or ends. Panics otherwise.
#[cfg(any(test, feature = "internals"))]
pub(crate) fn brake_answer(mut data: &[u8]) {
    if let Some(state) = State::read(data) {
        assert_eq!(State::read(state.write().as_bytes()), Some(state), "another state");
    }
    let Some(shown) = crate::fleet::value(&mut data, 4).as_ref().and_then(Shown::read) else { return };
    for list in [&shown.changed, &shown.kept] {
        let (next, more) = read_on(list, 5, shown.now);
        assert!(next > 5 && next <= shown.now || !more, "it is read again and again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_is_read_as_it_was_written() {
        for state in [State::On { base: 7 }, State::Released, State::Confirmed { seconds: 1_800 }] {
            assert_eq!(State::read(state.write().as_bytes()), Some(state));
        }
        for body in ["", "on", "on x", "off", "confirmed", "confirmed -1", "\u{fffd}"] {
            assert_eq!(State::read(body.as_bytes()), None, "{body}");
        }
        assert_eq!(State::read(b"\xff"), None);
    }

    #[test]
    fn node_that_trips_just_after_a_confirmation_that_it_does_not_know_is_freed_by_it() {
        let on = |base| State::On { base };
        assert!(is_unaware(on(50), 101, 100) && is_unaware(on(50), 100 + UNAWARE_MICROS - 1, 100));
        assert!(!is_unaware(on(100), 101, 100), "it knew, and trips again");
        assert!(!is_unaware(on(50), 100 + UNAWARE_MICROS, 100), "it was cut off: another edit");
        assert!(!is_unaware(State::Released, 101, 100) && !is_unaware(State::Confirmed { seconds: 1 }, 101, 100));
    }

    #[test]
    fn confirmation_from_the_future_is_not_in_force() {
        let left = |now, version| confirmation_left(now, version, 1_800);
        let minutes = |count: u64| Duration::from_secs(60 * count);
        assert_eq!(left(None, 5_000_000), (0, minutes(30)));
        assert_eq!(left(Some(65_000_000), 5_000_000), (60_000_000, minutes(29)));
        assert_eq!(left(Some(4_000_000), 5_000_000), (0, minutes(30)), "between two beats");
        assert_eq!(left(Some(u64::MAX), 5_000_000).1, Duration::ZERO);
        assert_eq!(left(Some(5_000_000), 86_400_000_000), (u64::MAX, Duration::ZERO));
    }

    #[test]
    fn answer_of_another_shape_is_none() {
        let bytes = |text: &str| Value::Bytes(text.as_bytes().to_vec());
        let list = Value::Array(vec![bytes("id"), bytes("1800000000000")]);
        let whole = vec![bytes("1800000000001"), Value::Int(1), Value::Array(vec![]), list];
        let shown = Shown::read(&Value::Array(whole.clone())).unwrap();
        assert_eq!((shown.now, shown.held), (1_800_000_000_001, 1));
        assert_eq!(shown.kept, [(b"id".to_vec(), 1_800_000_000_000)]);
        for at in 0..whole.len() {
            let mut other = whole.clone();
            other[at] = if at < 2 { bytes("x") } else { Value::Array(vec![bytes("id"), bytes("x")]) };
            assert!(Shown::read(&Value::Array(other)).is_none(), "{at}");
        }
        assert!(Shown::read(&Value::Array(whole[..3].to_vec())).is_none() && Shown::read(&Value::Nil).is_none());
    }

    #[test]
    fn list_is_read_forward_or_not_at_all() {
        let page = |score| vec![(Vec::new(), score); PAGE];
        assert_eq!(read_on(&page(7), 5, 9), (7, true));
        for score in [0, 5, 10, i64::MAX] {
            assert_eq!(read_on(&page(score), 5, 9), (9, false), "{score}");
        }
        assert_eq!(read_on(&page(7)[1..], 5, 9), (9, false));
        assert_eq!(read_on(&[], 5, 9), (9, false));
    }

    #[test]
    fn batch_is_bounded() {
        let mut all: BTreeSet<usize> = (0..BATCH + 3).collect();
        assert_eq!((take(&mut all).len(), all.len()), (BATCH, 3));
        assert_eq!((take(&mut all).len(), take(&mut all).len()), (3, 0));
    }
}

//! Wrong passwords counted in a store that several processes share.
//!
//! A guess is charged by one script, awaited before the bind: user, prefix and the names refused there, together with what
//! is counted for the entry that the spelling last led to. What follows is written behind. The memory of this process
//! takes over each answer, so that it goes on from there while the store is unavailable; it alone remembers which
//! passwords were tried, because no digest of a password leaves the process. An entry is charged between search and
//! bind, where nothing can be awaited: by what this process knows of it, as of the answer to the charge.
//!
//! In the store a network is known for a spelling and not for an entry, because another process may not know which entry
//! that is. The arithmetic is that of `bucket`, in milliseconds of the store's clock.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::keys::{self, HashedKey};
use super::memory::LocalStore;
use super::spraying::{KEPT, WINDOW};
use super::store::{
    Account, Charge, CounterStore, Delays, EntryCharge, EntryGuess, Guess, LaterCharge, Receipt, Receipts, SharedId,
    SharedReceipt, Subject, Success,
};
use crate::base::credential::AttemptDigest;
use crate::config::{FailedLogins, Memory, Mode};
use crate::directory::EntryKey;
use crate::fleet::FleetScript;

/// Charges a guess.
pub(crate) static CHARGE: FleetScript =
    FleetScript::new("charge", concat!(include_str!("scripts/account.lua"), include_str!("scripts/charge.lua")));
/// Charges an entry, or a user at a known prefix.
pub(crate) static ENTRY: FleetScript =
    FleetScript::new("entry", concat!(include_str!("scripts/account.lua"), include_str!("scripts/entry.lua")));
/// What follows the outcome of an attempt.
pub(crate) static SETTLE: FleetScript =
    FleetScript::new("settle", concat!(include_str!("scripts/account.lua"), include_str!("scripts/settle.lua")));

/// More than any limit.
const MOST_FAILURES: i64 = 2_000;

/// What a key of the store is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum SharedKey {
    /// The wrong passwords of a spelling or an entry.
    User,
    /// The wrong passwords of a spelling at a network that it is known from.
    UserAtPrefix,
    /// The wrong passwords of a network.
    Prefix,
    /// The names refused to a network.
    Names,
    /// The networks that a spelling is known from.
    Networks,
    /// The sessions of a user.
    Sessions,
}

/// An argument of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ScriptArg {
    /// A number.
    Int(i64),
    /// Bytes.
    Bytes(Vec<u8>),
}

impl From<Duration> for ScriptArg {
    fn from(time: Duration) -> Self {
        Self::Int(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
    }
}

impl From<bool> for ScriptArg {
    fn from(flag: bool) -> Self {
        Self::Int(flag.into())
    }
}

impl From<u32> for ScriptArg {
    fn from(number: u32) -> Self {
        Self::Int(number.into())
    }
}

impl From<&[u8]> for ScriptArg {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

/// The numbers that a script returns, later. An error: there is no answer.
pub(crate) type LaterAnswer = Pin<Box<dyn Future<Output = io::Result<Vec<i64>>> + Send>>;

/// Takes an answer.
pub(crate) type OnAnswer = Box<dyn FnOnce(&[i64]) + Send>;

/// Runs scripts in the store.
pub(crate) trait ScriptRunner: fmt::Debug + Send + Sync {
    /// Whether the store is asked now.
    fn is_up(&self) -> bool;

    /// The keyed digest of these parts; `None` while the key of names is not known.
    fn id(&self, kind: SharedKey, parts: &[&[u8]]) -> Option<SharedId>;

    /// The key of a keyed digest.
    fn key(&self, kind: SharedKey, id: SharedId) -> String;

    /// This process as a member of the fleet, and what its key in the store begins with, which is there while it lives.
    fn member(&self) -> (String, String);

    /// Runs a script and waits for the answer, for a bounded time.
    fn eval(&self, script: &'static FleetScript, keys: Vec<String>, args: Vec<ScriptArg>) -> LaterAnswer;

    /// Runs a script some time later; it may be dropped. `done` gets the answer.
    fn order(&self, script: &'static FleetScript, keys: Vec<String>, args: Vec<ScriptArg>, done: Option<OnAnswer>);
}

/// A store that several processes share, with this process's memory behind it.
#[derive(Debug)]
pub(super) struct SharedStore {
    local: Arc<LocalStore>,
    runner: Arc<dyn ScriptRunner>,
    forget_every: Duration,
    known_ttl: Duration,
}

/// How the store calls what a guess concerns.
struct Names {
    network: Vec<u8>,
    /// The spelling; of a token, its network.
    spelling: Vec<u8>,
}

impl Names {
    fn of(subject: &Subject) -> Self {
        let network = subject.network.to_string().into_bytes();
        let spelling = match &subject.login {
            Some(login) => keys::spelling(login).into_bytes(),
            // No name that is typed has a NUL.
            None => [b"\0token ", network.as_slice()].concat(),
        };
        Self { network, spelling }
    }
}

impl SharedStore {
    pub(super) fn new(settings: &Memory, local: Arc<LocalStore>, runner: Arc<dyn ScriptRunner>) -> Self {
        let (forget_every, known_ttl) = (settings.forget_every, settings.known_network_ttl);
        Self { local, runner, forget_every, known_ttl }
    }

    fn key(&self, kind: SharedKey, parts: &[&[u8]]) -> Option<String> {
        Some(self.runner.key(kind, self.runner.id(kind, parts)?))
    }

    /// The keys of a spelling, of the spelling at its network, of the network, of the names refused there, and of the
    /// networks that the spelling is known from.
    fn keys(&self, names: &Names) -> Option<[String; 5]> {
        let (spelling, network) = (names.spelling.as_slice(), names.network.as_slice());
        Some([
            self.key(SharedKey::User, &[b"name", spelling])?,
            self.key(SharedKey::UserAtPrefix, &[spelling, network])?,
            self.key(SharedKey::Prefix, &[network])?,
            self.key(SharedKey::Names, &[network])?,
            self.key(SharedKey::Networks, &[spelling])?,
        ])
    }

    /// The name and the network as members of sets.
    fn members(&self, names: &Names) -> Option<[SharedId; 2]> {
        let (spelling, network) = (names.spelling.as_slice(), names.network.as_slice());
        let name = self.runner.id(SharedKey::Names, &[network, spelling])?;
        Some([name, self.runner.id(SharedKey::Networks, &[spelling, network])?])
    }

    fn charge_args(&self, guess: &Guess, [name, network]: [SharedId; 2]) -> Vec<ScriptArg> {
        let name = guess.name.map_or(&[][..], |_| &name);
        let mut args = vec![
            self.forget_every.into(),
            guess.known.into(),
            short(&network).into(),
            self.known_ttl.into(),
            name.into(),
            WINDOW.into(),
            ScriptArg::from(u32::try_from(KEPT).unwrap_or(u32::MAX)),
        ];
        push_rule(&mut args, &guess.user_rule);
        push_rule(&mut args, &guess.prefix_rule);
        let names = guess.name.map(|(_, rule)| rule);
        args.push(names.is_some_and(|rule| rule.mode == Mode::Enforce).into());
        args.push(names.map_or(0, |rule| rule.names_per_minute).into());
        args.push(ScriptArg::Int(-1));
        args.push(names.map_or(Duration::ZERO, |rule| rule.first_delay).into());
        args.push(names.map_or(Duration::ZERO, |rule| rule.max_delay).into());
        args
    }

    /// Writes a charge behind; what is then counted is taken over.
    fn charge_behind(&self, account: HashedKey, key: String, is_entry: bool, rule: &FailedLogins) {
        let mut args = vec![self.forget_every.into(), is_entry.into()];
        push_rule(&mut args, rule);
        let local = Arc::clone(&self.local);
        let done = move |answer: &[i64]| {
            if let [now, failures, credited, due] = answer {
                adopt(&local, Account::User(account), *now, [*failures, *credited, *due]);
            }
        };
        self.runner.order(&ENTRY, vec![key], args, Some(Box::new(done)));
    }

    fn settle(&self, orders: Orders) {
        if !orders.keys.is_empty() && self.runner.is_up() {
            let args = [vec![ScriptArg::from(self.forget_every)], orders.args].concat();
            self.runner.order(&SETTLE, orders.keys, args, None);
        }
    }

    /// The orders that follow a right password.
    fn success(&self, orders: &mut Orders, success: &Success<'_>, had_account: bool) -> Option<()> {
        let names = Names::of(success.subject);
        let [name, home, prefix, refused, networks] = self.keys(&names)?;
        let [member, network] = self.members(&names)?;
        if had_account {
            // Where the network was known, the name is not one of those refused.
            let (account, member) = if success.known { (home, &[][..]) } else { (name, &member[..]) };
            orders.add("reset", [account, prefix, refused], member.into(), ScriptArg::Int(0));
            if success.home.is_none() {
                let entry = self.key(SharedKey::User, &[b"entry", &success.key.to_bytes()])?;
                orders.add("forget", [entry], ScriptArg::Int(0), ScriptArg::Int(0));
            }
        }
        if success.is_news {
            orders.add("network", [networks], short(&network).into(), self.known_ttl.into());
        }
        Some(())
    }
}

/// A list of operations for [`SETTLE`].
#[derive(Debug, Default)]
struct Orders {
    keys: Vec<String>,
    args: Vec<ScriptArg>,
}

impl Orders {
    fn add<const N: usize>(&mut self, operation: &str, keys: [String; N], argument: ScriptArg, other: ScriptArg) {
        self.keys.extend(keys);
        self.args.extend([operation.as_bytes().into(), argument, other]);
    }

    fn refund(&mut self, operation: &str, receipt: &Receipt) {
        let Some(SharedReceipt { key, generation, name }) = receipt.shared.as_deref().cloned() else { return };
        match name {
            Some(name) => self.add("unname", [key], name.as_slice().into(), ScriptArg::Int(0)),
            None => self.add(operation, [key], ScriptArg::Int(generation), ScriptArg::Int(0)),
        }
    }
}

/// A network among the few of one user: half of the digest is enough.
fn short(network: &SharedId) -> &[u8] {
    network.first_chunk::<8>().map_or(&[], <[u8; 8]>::as_slice)
}

fn push_rule(args: &mut Vec<ScriptArg>, rule: &FailedLogins) {
    args.push((rule.mode == Mode::Enforce).into());
    args.push(rule.free_failures.into());
    args.push(rule.limit.map_or(ScriptArg::Int(-1), ScriptArg::from));
    args.push(rule.first_delay.into());
    args.push(rule.max_delay.into());
}

fn milliseconds(number: i64) -> Duration {
    Duration::from_millis(u64::try_from(number).unwrap_or(0))
}

/// Takes over an account: its times are relative to the store's `now`.
fn adopt(local: &LocalStore, account: Account, now: i64, [failures, credited, due]: [i64; 3]) {
    // As in the scripts: what is not forgotten for years must not come from a store.
    let failures = u32::try_from(failures.clamp(0, MOST_FAILURES)).unwrap_or(0);
    // No delay is longer than 5 s.
    let ahead = milliseconds(due.saturating_sub(now)).min(Duration::from_secs(5));
    let ago = [credited, due].map(|time| milliseconds(now.saturating_sub(time)));
    local.adopt(account, failures, ago, ahead);
}

/// A password that is being tried, until the charge is answered.
struct Announced {
    local: Arc<LocalStore>,
    account: HashedKey,
    password: AttemptDigest,
    stays: bool,
}

impl Drop for Announced {
    fn drop(&mut self) {
        if !self.stays {
            self.local.retract(self.account, self.password);
        }
    }
}

/// Reads the answer to a charge, and takes it over.
fn read_charge(local: &LocalStore, guess: &Guess, keys: &[String], name: SharedId, answer: &[i64]) -> Option<Charge> {
    let ([known, at_limit, user, prefix, names, charged, is_new, of_user, of_prefix, now], rest) =
        answer.split_first_chunk::<10>()?;
    let ([user_account, prefix_account], entry) = rest.split_first_chunk::<6>().map(|(six, entry)| {
        let [a, b, c, d, e, f] = *six;
        ([[a, b, c], [d, e, f]], entry)
    })?;
    let known = *known == 1;
    let delays = Delays { user: milliseconds(*user), prefix: milliseconds(*prefix), names: milliseconds(*names) };
    // What is counted for a user at a known network has another account here.
    if known == guess.known {
        adopt(local, Account::User(guess.account), *now, user_account);
    }
    adopt(local, Account::Prefix(guess.prefix), *now, prefix_account);
    if let (Some((entry, _)), Some(numbers)) = (guess.entry, entry.first_chunk::<3>()) {
        adopt(local, Account::User(entry), *now, *numbers);
    }
    let receipts = (*charged == 1).then(|| {
        let [user_generation, prefix_generation] = local.mirror(guess, guess.delay(&delays), &delays, known);
        let [name_key, home_key, prefix_key, names_key] = keys.first_chunk::<4>()?;
        let shared = |key: &String, generation, name| Some(SharedReceipt { key: key.clone(), generation, name }.into());
        let user_key = if known { home_key } else { name_key };
        let user = Receipt { shared: shared(user_key, *of_user, None), ..here(guess.account, user_generation) };
        let account = Account::Prefix(guess.prefix);
        let prefix =
            Receipt { shared: shared(prefix_key, *of_prefix, None), ..Receipt::here(account, prefix_generation) };
        let is_name = *is_new == 1 && guess.name.is_some();
        let account = guess.name.filter(|_| is_name).map(|(name, _)| Account::Name { prefix: guess.prefix, name });
        let name =
            account.map(|account| Receipt { shared: shared(names_key, 0, Some(name)), ..Receipt::here(account, 0) });
        Some(Receipts { user, prefix, name })
    });
    let receipts = match receipts {
        Some(receipts) => Some(receipts?),
        None => None,
    };
    Some(Charge::Counted { known, at_limit: *at_limit == 1, delays, receipts })
}

const fn here(user: HashedKey, generation: u64) -> Receipt {
    Receipt::here(Account::User(user), generation)
}

impl CounterStore for SharedStore {
    fn charge(&self, guess: &Guess) -> Result<Charge, LaterCharge> {
        let names = Names::of(&guess.subject);
        let keys = if self.runner.is_up() { self.keys(&names).zip(self.members(&names)) } else { None };
        let Some((keys, members)) = keys else { return Ok(self.local.charge_now(guess)) };
        if let Some(due) = self.local.announce(guess) {
            return Ok(Charge::Repeated(due));
        }
        let mut announced = Announced {
            local: Arc::clone(&self.local),
            account: guess.account,
            password: guess.password,
            stays: false,
        };
        let mut keys = keys.to_vec();
        keys.extend(guess.entry.map(|(_, id)| self.runner.key(SharedKey::User, id)));
        let answer = self.runner.eval(&CHARGE, keys.clone(), self.charge_args(guess, members));
        let (guess, [name, _]) = (guess.clone(), members);
        Err(Box::pin(async move {
            let answer = answer.await.ok();
            let local = Arc::clone(&announced.local);
            let charge = answer.and_then(|answer| read_charge(&local, &guess, &keys, name, &answer));
            announced.stays = matches!(charge, Some(Charge::Counted { receipts: Some(_), .. }));
            drop(announced);
            charge.unwrap_or_else(|| local.charge_now(&guess))
        }))
    }

    fn charge_entry(&self, entry: HashedKey, key: &EntryKey, guess: &EntryGuess) -> EntryCharge {
        let charge = self.local.charge_entry(entry, key, guess);
        let EntryCharge::Counted { over, receipt: Some(receipt) } = charge else { return charge };
        let shared_key =
            if self.runner.is_up() { self.key(SharedKey::User, &[b"entry", &key.to_bytes()]) } else { None };
        let shared = shared_key.map(|key| {
            self.charge_behind(entry, key.clone(), true, &guess.rule);
            SharedReceipt { key, generation: 0, name: None }.into()
        });
        EntryCharge::Counted { over, receipt: Some(Receipt { shared, ..receipt }) }
    }

    fn charge_known(
        &self,
        account: HashedKey,
        subject: &Subject,
        password: AttemptDigest,
        rule: &FailedLogins,
    ) -> Receipt {
        let receipt = self.local.charge_known(account, subject, password, rule);
        let names = Names::of(subject);
        let parts = [names.spelling.as_slice(), names.network.as_slice()];
        let key = if self.runner.is_up() { self.key(SharedKey::UserAtPrefix, &parts) } else { None };
        let shared = key.map(|key| {
            self.charge_behind(account, key.clone(), false, rule);
            SharedReceipt { key, generation: 0, name: None }.into()
        });
        Receipt { shared, ..receipt }
    }

    fn refund(&self, receipts: Vec<Receipt>, password: AttemptDigest) {
        let mut orders = Orders::default();
        receipts.iter().for_each(|receipt| orders.refund("refund", receipt));
        self.local.refund(receipts, password);
        self.settle(orders);
    }

    fn withdraw(&self, receipt: Receipt, password: AttemptDigest) {
        let mut orders = Orders::default();
        orders.refund("withdraw", &receipt);
        self.local.withdraw(receipt, password);
        self.settle(orders);
    }

    fn succeeded(&self, charged: Option<(Vec<Receipt>, AttemptDigest)>, success: &Success<'_>) {
        let mut orders = Orders::default();
        let was_charged = charged.is_some();
        if let Some((receipts, password)) = charged {
            receipts.iter().for_each(|receipt| orders.refund("refund", receipt));
            self.local.refund(receipts, password);
        }
        // A cached password writes nothing, unless this process knows of failures, or of a new network.
        let had_account = self.local.reset_user(success) || was_charged;
        if (had_account || success.is_news) && self.runner.is_up() {
            let _ = self.success(&mut orders, success, had_account);
        }
        self.settle(orders);
    }

    fn shared_id(&self, entry: &EntryKey) -> Option<SharedId> {
        self.runner.id(SharedKey::User, &[b"entry", &entry.to_bytes()])
    }
}

//! Whether a store fits, for `usher check --connect`: it answers soon, evicts nothing, and lets its user do
//! what the fleet does.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::member::{MOST_MEMBERS, Member, MemberId};
use super::script::{ALL, Arg, MEMBERS, RIGHTS};
use super::seal::{Purpose, SealError, StoreKey};
use super::store::{Connection, FleetFiles, StoreError, StoreMemory};
use crate::config;

/// How long a store may take for all questions.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the time of an answer is measured.
const MEASURED: usize = 9;

/// What scripts do, by the right that it needs; KEY stands for a key.
const COMMANDS: [(&str, &str); 19] = [
    ("+time", "TIME"),
    ("+get", "GET KEY"),
    ("+set", "SET KEY 1 PX 1000"),
    ("+exists", "EXISTS KEY"),
    ("+pexpire", "PEXPIRE KEY 1000"),
    ("+del", "DEL KEY"),
    ("+hset", "HSET KEY a 1"),
    ("+hget", "HGET KEY a"),
    ("+hmget", "HMGET KEY a"),
    ("+hlen", "HLEN KEY"),
    ("+hdel", "HDEL KEY a"),
    ("+zadd", "ZADD KEY 1 a"),
    ("+zscore", "ZSCORE KEY a"),
    ("+zcard", "ZCARD KEY"),
    ("+zrevrange", "ZREVRANGE KEY 0 -1"),
    ("+zrangebyscore", "ZRANGEBYSCORE KEY 0 1"),
    ("+zremrangebyscore", "ZREMRANGEBYSCORE KEY 0 1"),
    ("+zremrangebyrank", "ZREMRANGEBYRANK KEY 0 1"),
    ("+zrem", "ZREM KEY a"),
];

/// A store, as far as it was looked at.
#[derive(Debug)]
pub(crate) struct InspectedStore {
    /// Its URL.
    pub(crate) store: String,
    /// What it is like, or why it cannot be used.
    pub(crate) found: Result<StoreFacts, StoreError>,
}

/// What a store is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreFacts {
    /// The median time of an answer.
    pub(crate) latency: Duration,
    /// Its memory.
    pub(crate) memory: StoreMemory,
    /// The rights that its user lacks.
    pub(crate) missing: Vec<String>,
    /// The living members of the fleet; none as long as a right is missing.
    pub(crate) members: Vec<Member>,
    /// How many others live whose records are sealed under a secret that the file does not have.
    pub(crate) under_another_secret: usize,
}

/// Looks at every store of a fleet.
pub(crate) async fn inspect(settings: &config::Fleet, files: &FleetFiles) -> Vec<InspectedStore> {
    let mut stores = Vec::with_capacity(settings.stores.len());
    for address in &settings.stores {
        let found = async {
            let (connection, driver) = Connection::open(address, settings, files, &[], None).await?;
            tokio::select! {
                found = timeout(PATIENCE, look(&connection, settings, files)) => found.unwrap_or(Err(StoreError::Late)),
                () = driver => Err(StoreError::Lost),
            }
        };
        stores.push(InspectedStore { store: address.to_string(), found: found.await });
    }
    stores
}

fn key(settings: &config::Fleet) -> StoreKey {
    StoreKey::plain(&settings.name, "check")
}

/// All keys (`~`) or channels (`&`) of a fleet, as an ACL has them.
fn pattern(sign: char, settings: &config::Fleet) -> String {
    format!("{sign}usher:{}:*", settings.name)
}

/// The rights that scripts lack.
///
/// # Errors
/// None can be run.
pub(super) async fn denied(connection: &Connection, settings: &config::Fleet) -> Result<Vec<String>, StoreError> {
    let commands: Vec<Arg> = COMMANDS.iter().map(|(_, command)| Arg::from(*command)).collect();
    let answer = connection.eval(&RIGHTS, &[key(settings)], &commands).await?;
    let with = |code: i64| {
        let results = COMMANDS.iter().zip(answer.items());
        results.filter(move |(_, result)| result.int() == Some(code)).map(|((right, _), _)| (*right).to_owned())
    };
    let mut missing: Vec<String> = with(1).collect();
    if with(2).next().is_some() {
        missing.push(pattern('~', settings));
    }
    Ok(missing)
}

async fn look(connection: &Connection, settings: &config::Fleet, files: &FleetFiles) -> Result<StoreFacts, StoreError> {
    let mut missing = Vec::new();
    let mut may = |right: &str, result: Result<(), StoreError>| match result {
        Ok(()) => Ok(()),
        Err(StoreError::Rights) => {
            missing.push(right.to_owned());
            Ok(())
        }
        Err(error) => Err(error),
    };
    may("+ping", connection.ping().await)?;
    let channel = format!("usher:{}:check", settings.name);
    // Another channel without a reader shows whether it is the command or the channel.
    may(&format!("+publish or {}", pattern('&', settings)), connection.publish(&channel, b"").await)?;
    may(&format!("+subscribe or {}", pattern('&', settings)), connection.subscribe(&[channel]).await)?;
    may("+script|load", connection.load(&ALL).await)?;
    match denied(connection, settings).await {
        Ok(denied) => missing.extend(denied),
        Err(StoreError::Rights) => missing.push(format!("+eval, +evalsha or {}", pattern('~', settings))),
        Err(error) => return Err(error),
    }
    let key = key(settings);
    let mut times = Vec::with_capacity(MEASURED);
    for _ in 0..MEASURED {
        let asked = Instant::now();
        // An error is an answer, too.
        match connection.eval(&RIGHTS, std::slice::from_ref(&key), &[]).await {
            Ok(_) | Err(StoreError::Rights) => times.push(asked.elapsed()),
            Err(error) => return Err(error),
        }
    }
    times.sort_unstable();
    let latency = times.get(MEASURED / 2).copied().unwrap_or_default();
    let memory = match connection.memory().await {
        Ok(memory) => memory,
        Err(StoreError::Rights) => StoreMemory::default(),
        Err(error) => return Err(error),
    };
    let (members, under_another_secret) = match missing.is_empty() {
        true => members(connection, settings, files).await?,
        false => (Vec::new(), 0),
    };
    Ok(StoreFacts { latency, memory, missing, members, under_another_secret })
}

/// The living members, and how many cannot be read because their secret is another.
async fn members(
    connection: &Connection,
    settings: &config::Fleet,
    files: &FleetFiles,
) -> Result<(Vec<Member>, usize), StoreError> {
    let key = |name: &str| StoreKey::plain(&settings.name, name);
    let args = [Arg::from(key("m:").as_str()), Arg::from(MOST_MEMBERS)];
    let answer = connection.eval(&MEMBERS, &[key("m")], &args).await?;
    let (mut members, mut under_another_secret) = (Vec::new(), 0);
    for pair in answer.items().as_chunks::<2>().0 {
        let [Some(id), Some(record)] = pair.each_ref().map(super::Value::bytes) else { continue };
        match files.sealer.open(Purpose::Member, id, record) {
            Ok(record) => {
                let member = MemberId::parse(id).and_then(|id| Member::decode(id, &record));
                members.extend(member.map(|(member, _)| member));
            }
            Err(SealError::UnknownLine) => under_another_secret += 1,
            // A running member counts and logs these.
            Err(SealError::Garbage | SealError::Forged) => {}
        }
    }
    Ok((members, under_another_secret))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;

    /// A right too few would be found by a login, one too many would keep a fleet from a store that lets it do all it needs.
    #[test]
    fn rights_are_those_that_scripts_need() {
        let mut used = BTreeSet::new();
        for folder in ["fleet", "limits"] {
            let folder = format!("{}/src/{folder}/scripts", env!("CARGO_MANIFEST_DIR"));
            for file in fs::read_dir(folder).unwrap().flatten().filter(|file| file.file_name() != "rights.lua") {
                let text = fs::read_to_string(file.path()).unwrap();
                let calls = text.split("call('").skip(1).filter_map(|rest| rest.split('\'').next());
                used.extend(calls.map(|command| format!("+{}", command.to_lowercase())));
            }
        }
        let asked: BTreeSet<String> = COMMANDS.iter().map(|(right, _)| (*right).to_owned()).collect();
        assert_eq!(asked, used);
    }
}

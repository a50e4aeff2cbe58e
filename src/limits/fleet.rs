//! The fleet as the store of the limits.

use std::io;
use std::sync::Arc;

use super::shared::{LaterAnswer, OnAnswer, ScriptArg, ScriptRunner, SharedKey};
use super::store::SharedId;
use crate::fleet::{Arg, Fleet, FleetScript, KeyKind, KeyedId, StoreKey, Value};

/// Runs the scripts of the limits in the fleet's store.
#[derive(Debug)]
pub(crate) struct FleetRunner(Arc<Fleet>);

impl FleetRunner {
    /// In this fleet's store.
    #[must_use]
    pub(crate) fn new(fleet: &Arc<Fleet>) -> Self {
        Self(Arc::clone(fleet))
    }
}

impl From<SharedKey> for KeyKind {
    fn from(kind: SharedKey) -> Self {
        match kind {
            SharedKey::User => Self::User,
            SharedKey::UserAtPrefix => Self::UserAtPrefix,
            SharedKey::Prefix => Self::Prefix,
            SharedKey::Names => Self::Names,
            SharedKey::Networks => Self::Networks,
            SharedKey::Sessions => Self::Sessions,
        }
    }
}

impl From<ScriptArg> for Arg {
    fn from(arg: ScriptArg) -> Self {
        match arg {
            ScriptArg::Int(number) => Self::Int(number),
            ScriptArg::Bytes(bytes) => Self::Bytes(bytes),
        }
    }
}

/// The numbers of an answer; `None` if it has anything else.
fn numbers(answer: &Value) -> Option<Vec<i64>> {
    answer.items().iter().map(Value::int).collect()
}

fn keys(keys: Vec<String>) -> Vec<StoreKey> {
    keys.into_iter().map(StoreKey::written).collect()
}

impl ScriptRunner for FleetRunner {
    fn is_up(&self) -> bool {
        self.0.is_up()
    }

    fn id(&self, kind: SharedKey, parts: &[&[u8]]) -> Option<SharedId> {
        Some(self.0.keyed(kind.into(), parts)?.0)
    }

    fn key(&self, kind: SharedKey, id: SharedId) -> String {
        self.0.key_of(kind.into(), KeyedId(id)).as_str().to_owned()
    }

    fn member(&self) -> (String, String) {
        let id = self.0.id();
        let (member, key) = (id.to_string(), self.0.member_key(id));
        let prefix = key.as_str().strip_suffix(&member).unwrap_or_default().to_owned();
        (member, prefix)
    }

    fn eval(&self, script: &'static FleetScript, of: Vec<String>, args: Vec<ScriptArg>) -> LaterAnswer {
        let fleet = Arc::clone(&self.0);
        Box::pin(async move {
            let args: Vec<_> = args.into_iter().map(Arg::from).collect();
            let answer = fleet.eval(script, &keys(of), &args).await.map_err(io::Error::other)?;
            numbers(&answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
        })
    }

    fn order(&self, script: &'static FleetScript, of: Vec<String>, args: Vec<ScriptArg>, done: Option<OnAnswer>) {
        let done = done.map(|done| {
            let read = move |answer: &Value| {
                if let Some(numbers) = numbers(answer) {
                    done(&numbers);
                }
            };
            Box::new(read) as Box<dyn FnOnce(&Value) + Send>
        });
        self.0.order(script, keys(of), args.into_iter().map(Arg::from).collect(), done);
    }
}

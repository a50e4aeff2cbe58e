//! A store outside of the process: its answers are awaited, and its failure is handled.

use super::super::store::{Charge, CounterStore, EntryCharge, EntryGuess, Guess, LaterCharge, Receipt};
use super::*;
use crate::base::credential::AttemptDigest;

/// A store that several processes could share: the memory behind it answers late, or not at all.
#[derive(Debug)]
struct Remote {
    memory: Arc<memory::LocalStore>,
    fails: bool,
}

impl CounterStore for Remote {
    fn charge(&self, guess: &Guess) -> Result<Charge, LaterCharge> {
        let (memory, fails, guess) = (Arc::clone(&self.memory), self.fails, *guess);
        Err(Box::pin(async move {
            tokio::time::sleep(ms(5)).await;
            if fails { Err(std::io::ErrorKind::TimedOut.into()) } else { Ok(memory.charge_now(&guess)) }
        }))
    }

    fn charge_entry(&self, entry: keys::HashedKey, guess: &EntryGuess) -> EntryCharge {
        self.memory.charge_entry(entry, guess)
    }

    fn charge_known(&self, account: keys::HashedKey, password: AttemptDigest, rule: &FailedLogins) -> Receipt {
        self.memory.charge_known(account, password, rule)
    }

    fn refund(&self, receipt: Receipt, password: AttemptDigest) {
        self.memory.refund(receipt, password);
    }

    fn withdraw(&self, receipt: Receipt, password: AttemptDigest) {
        self.memory.withdraw(receipt, password);
    }

    fn reset(&self, user: keys::HashedKey, prefix: keys::HashedKey) {
        self.memory.reset(user, prefix);
    }

    fn forget(&self, user: keys::HashedKey) {
        self.memory.forget(user);
    }
}

impl Door {
    /// A throttle that counts in another store.
    fn remote(fails: bool) -> Self {
        let door = Self::new();
        let ledger = Ledger::local(Rules::compile(&door.settings), Keys::new());
        let memory = Arc::new(memory::LocalStore::new(&door.settings.memory));
        door.throttle.ledger.store(Arc::new(Ledger { store: Arc::new(Remote { memory, fails }), ..ledger }));
        door
    }

    async fn delays(&self, guesses: u32) -> Vec<Duration> {
        let mut delays = Vec::new();
        for n in 0..guesses {
            let credential = Credential::for_tests("alice", format!("guess {n}"));
            let mut pending = self.throttle.attempt(ip("192.0.2.1"), &credential).await.unwrap();
            assert!(pending.begin_lookup().is_some());
            delays.push(pending.delay);
            advance(pending.delay).await;
            pending.settle(AttemptOutcome::Wrong);
        }
        delays
    }
}

#[tokio::test(start_paused = true)]
async fn store_of_several_processes_is_awaited() {
    let door = Door::remote(false);
    assert_eq!(door.delays(5).await, [0, 0, 0, 300, 600].map(ms));
    assert_eq!(door.throttle.entries()[1], 0, "nothing is counted here");
}

#[tokio::test(start_paused = true)]
async fn unavailable_store_leaves_the_counts_to_this_process() {
    let door = Door::remote(true);
    assert_eq!(door.delays(5).await, [0, 0, 0, 300, 600].map(ms));
    door.throttle.ledger.load().local.run_pending();
    assert_eq!(door.throttle.entries()[1], 1);
}

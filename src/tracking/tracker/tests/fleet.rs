//! The brakes of several nodes, with a fleet that is a script: what one sends reaches the others.

use std::collections::BTreeSet;

use super::*;
use crate::tracking::store::Reconciled;

/// The id of the entry, and its first mail host.
struct Plain;

impl FleetNames for Plain {
    fn name(&self, entry: &Entry) -> Option<[u8; 24]> {
        let mut name = [0; 24];
        name[..16].copy_from_slice(entry.version.id.as_ref()?.bytes());
        for (to, from) in name[16..].iter_mut().zip(entry.mail_hosts.first()?.bytes()) {
            *to = from;
        }
        Some(name)
    }
}

/// What the store has.
#[derive(Default)]
struct Fleet {
    nodes: Vec<Setup>,
    changed: BTreeSet<BrakeId>,
    held: BTreeSet<[u8; 24]>,
}

/// Nodes that hold back more than this number of changes.
fn fleet(nodes: usize, brake: u32) -> Fleet {
    let nodes = (0..nodes).map(|_| setup(&format!(", brake: {brake}")).following());
    let nodes: Vec<_> = nodes.inspect(|node| node.tracker.join(Arc::new(Plain))).collect();
    Fleet { nodes, ..Fleet::default() }
}

fn id(name: &[u8; 24]) -> BrakeId {
    crate::tracking::fleet::id_of(name)
}

impl Fleet {
    /// Carries messages until there are none.
    fn settle(&mut self) {
        while self.carry() {}
    }

    fn carry(&mut self) -> bool {
        let told: Vec<_> = self.nodes.iter().map(|node| node.tracker.take_news().0).collect();
        let name = |entry: &Entry| Plain.name(entry).unwrap();
        let mut any = false;
        for (from, news) in told.into_iter().enumerate() {
            for news in news {
                any = true;
                match news {
                    BrakeNews::Changed(entry) => drop(self.changed.insert(id(&name(&entry)))),
                    BrakeNews::Held(entry) => drop(self.held.insert(name(&entry))),
                    BrakeNews::Back(entry) => drop(self.held.remove(&name(&entry))),
                    BrakeNews::Tripped => {
                        self.nodes.iter().for_each(|node| node.tracker.engage_for_fleet(&node.setting()));
                    }
                    BrakeNews::Confirmed(time) => {
                        (self.changed, self.held) = Default::default();
                        for (at, node) in self.nodes.iter().enumerate().filter(|(at, _)| *at != from) {
                            node.tracker.confirm(time, &node.setting());
                            assert!(!self.status(at).on);
                        }
                    }
                }
            }
        }
        for node in &self.nodes {
            let turns = node.tracker.brake(&node.setting()).turns;
            let changed = self.changed.iter().map(|id| (*id, Duration::ZERO));
            node.tracker.heard(turns, (changed, 10), &node.setting());
            node.tracker.hold_elsewhere(HeldSet::new(Arc::new(Plain), self.held.clone()), &node.setting());
        }
        any
    }

    fn status(&self, node: usize) -> BrakeStatus {
        let node = &self.nodes[node];
        node.tracker.brake(&node.setting())
    }

    fn deferred(&self) -> Vec<usize> {
        (0..self.nodes.len()).map(|node| self.status(node).deferred).collect()
    }

    fn is_on(&self) -> Vec<bool> {
        (0..self.nodes.len()).map(|node| self.status(node).on).collect()
    }

    fn reported(&self, entry: &Entry) {
        self.nodes.iter().for_each(|node| node.shown(entry.clone()));
    }
}

fn is_refused(node: &Setup, entry: &Entry) -> bool {
    matches!(node.entries.reconcile(entry), Reconciled::HeldElsewhere)
}

#[tokio::test(start_paused = true)]
async fn sum_over_nodes_engages_the_brake_of_all_and_all_take_back() {
    let mut fleet = fleet(3, 3);
    // Two known at the first node, two at the second, none at the third.
    let users: Vec<_> = (1..=4).map(|number| (number, entry(number, "server3", 1))).collect();
    let _sessions: Vec<_> =
        users.iter().map(|(number, user)| fleet.nodes[usize::from(*number > 2)].user(user)).collect();
    for number in 1..=3 {
        fleet.reported(&entry(number, "server4", 2));
        fleet.settle();
    }
    assert_eq!(fleet.is_on(), [false; 3], "three are allowed");
    assert_eq!((fleet.nodes[0].host(1).as_str(), fleet.nodes[1].host(3).as_str()), ("server4", "server4"));
    fleet.reported(&entry(4, "server4", 2));
    fleet.settle();
    assert_eq!((fleet.is_on(), fleet.deferred()), (vec![true; 3], vec![2, 2, 0]));
    for (number, user) in &users {
        assert_eq!(fleet.nodes[usize::from(*number > 2)].host(*number), "server3", "{user:?}");
    }
    assert_eq!(fleet.held.len(), 4);
    // Nothing new is acted on at any node.
    let _late = fleet.nodes[2].user(&entry(9, "server3", 1));
    fleet.reported(&entry(9, "server4", 3));
    fleet.settle();
    assert_eq!((fleet.nodes[2].host(9).as_str(), fleet.deferred()), ("server3", vec![2, 2, 1]));

    assert_eq!(fleet.nodes[0].tracker.confirm_for_all(Duration::ZERO, &fleet.nodes[0].setting()), 2);
    fleet.settle();
    assert_eq!((fleet.is_on(), fleet.deferred()), (vec![false; 3], vec![0; 3]));
    for (number, user) in &users {
        assert_eq!(fleet.nodes[usize::from(*number > 2)].host(*number), "server4", "{user:?}");
    }
    assert!(!is_refused(&fleet.nodes[2], &entry(1, "server4", 2)));
}

#[tokio::test(start_paused = true)]
async fn user_known_to_several_nodes_counts_once() {
    let mut fleet = fleet(2, 3);
    let _sessions: Vec<_> =
        (1..=4).flat_map(|number| [0, 1].map(|node| fleet.nodes[node].user(&entry(number, "server3", 1)))).collect();
    for number in 1..=3 {
        fleet.reported(&entry(number, "server4", 2));
        fleet.settle();
    }
    assert_eq!(fleet.is_on(), [false; 2]);
    // One node hears of the others' changes before its own directory server shows them.
    fleet.nodes[0].shown(entry(4, "server4", 2));
    assert_eq!(fleet.is_on(), [true, false]);
    fleet.settle();
    fleet.nodes[1].shown(entry(4, "server4", 2));
    fleet.settle();
    assert_eq!((fleet.deferred(), fleet.held.len()), (vec![4, 4], 4));
}

#[tokio::test(start_paused = true)]
async fn changes_of_more_than_a_minute_ago_count_no_more() {
    let mut fleet = fleet(2, 2);
    let _sessions: Vec<_> =
        (1..=4).map(|number| fleet.nodes[usize::from(number) % 2].user(&entry(number, "server3", 1))).collect();
    (1..=2).for_each(|number| fleet.reported(&entry(number, "server4", 2)));
    fleet.settle();
    tokio::time::advance(Duration::from_secs(60)).await;
    fleet.changed.clear();
    (3..=4).for_each(|number| fleet.reported(&entry(number, "server4", 2)));
    fleet.settle();
    assert_eq!(fleet.is_on(), [false; 2]);
    // As does a message long after the event.
    let node = &fleet.nodes[0];
    let turns = node.tracker.brake(&node.setting()).turns;
    node.tracker.heard(turns, ((7..=9).map(|id| ([id; 16], Duration::from_secs(61))), 10), &node.setting());
    assert!(!fleet.status(0).on);
}

#[tokio::test(start_paused = true)]
async fn largest_number_of_users_of_a_node_is_what_the_limit_follows() {
    let node = setup("").following();
    node.tracker.join(Arc::new(Plain));
    let ids = |count: u8| (0..count).map(|id| ([id; 16], Duration::ZERO));
    let heard = |count, users| {
        let turns = node.tracker.brake(&node.setting()).turns;
        node.tracker.heard(turns, (ids(count), users), &node.setting());
        node.tracker.brake(&node.setting()).on
    };
    assert!(!heard(200, 10));
    assert!(!heard(250, 12_500), "2 % of them");
    assert!(heard(250, 12_499));
}

#[tokio::test(start_paused = true)]
async fn node_that_does_not_know_a_held_user_never_uses_the_held_back_value() {
    let mut fleet = fleet(2, 1);
    let _sessions: Vec<_> = (1..=2).map(|number| fleet.nodes[0].user(&entry(number, "server3", 1))).collect();
    // Just before the brake, a user is met by the new value.
    fleet.reported(&entry(1, "server4", 2));
    let met = entry(1, "server4", 2);
    let (_session, mut asked) = fleet.nodes[1].user(&met);
    assert!(fleet.nodes[1].is_cached(1));
    fleet.reported(&entry(2, "server4", 2));
    fleet.settle();
    assert_eq!(fleet.deferred(), [2, 0]);
    assert!(!fleet.nodes[1].is_cached(1), "the directory is asked, and the answer refused");
    for number in 1..=2 {
        assert!(is_refused(&fleet.nodes[1], &entry(number, "server4", 2)), "{number}");
        assert!(is_refused(&fleet.nodes[1], &entry(number, "server9", 3)), "{number}");
        let kept = fleet.nodes[0].entries.reconcile(&entry(number, "server4", 2));
        assert!(matches!(kept, Reconciled::Replaced(entry) if entry.mail_hosts == ["server3"]));
    }
    let (other, basis) = (session(&fleet.nodes[1].registry, &met), basis(&met));
    let listed = fleet.nodes[1].check_listed(&other, &basis);
    assert_eq!(listed, Err(TerminationReason::Moved), "decided before the brake: once more");
    assert_eq!(fleet.nodes[1].asked(&mut asked).await, None, "sessions go on");
    // A server that has the kept value again: there the user is.
    assert!(!is_refused(&fleet.nodes[1], &entry(2, "server3", 3)));
    // Another value is not kept here, as if it were the right one.
    fleet.reported(&entry(1, "server9", 4));
    fleet.settle();
    assert_eq!((fleet.deferred(), fleet.held.len()), (vec![2, 0], 2));
    assert!(is_refused(&fleet.nodes[1], &entry(1, "server9", 4)));
    fleet.reported(&entry(1, "server3", 5));
    fleet.settle();
    assert_eq!((fleet.deferred(), fleet.held.len()), (vec![1, 0], 1));
    assert!(!is_refused(&fleet.nodes[1], &entry(1, "server3", 5)) && fleet.nodes[1].host(1) == "server3");
}

#[tokio::test(start_paused = true)]
async fn brake_of_all_goes_off_when_no_node_holds_anything_back() {
    let mut fleet = fleet(2, 1);
    let _sessions: Vec<_> =
        (1..=4).map(|number| fleet.nodes[usize::from(number) % 2].user(&entry(number, "server3", 1))).collect();
    (1..=4).for_each(|number| fleet.reported(&entry(number, "server4", 2)));
    fleet.settle();
    assert_eq!(fleet.deferred(), [2, 2]);
    // The directory of one node shows the old values first.
    (1..=4).for_each(|number| fleet.nodes[0].shown(entry(number, "server3", 3)));
    fleet.settle();
    assert_eq!((fleet.deferred(), fleet.is_on(), fleet.held.len()), (vec![0, 2], vec![true; 2], 2));
    assert!(!fleet.nodes[1].tracker.release_for_fleet(&fleet.nodes[1].setting()), "it holds two back");
    (1..=4).for_each(|number| fleet.nodes[1].shown(entry(number, "server3", 3)));
    fleet.settle();
    assert!(fleet.held.is_empty() && fleet.is_on() == [true; 2]);
    fleet.nodes.iter().for_each(|node| assert!(node.tracker.release_for_fleet(&node.setting())));
    assert_eq!((fleet.is_on(), fleet.nodes[0].brake()), (vec![false; 2], 0));
}

#[tokio::test(start_paused = true)]
async fn what_was_heard_before_a_confirmation_trips_nothing_after_it() {
    let fleet = fleet(1, 1);
    let node = &fleet.nodes[0];
    let (before, ids) = (fleet.status(0).turns, |id| ([id; 16], Duration::ZERO));
    node.tracker.confirm_for_all(Duration::ZERO, &node.setting());
    node.tracker.heard(before, ([1, 2].map(ids), 10), &node.setting());
    assert!(!fleet.status(0).on);
    node.tracker.confirm_for_all(Duration::from_secs(60), &node.setting());
    node.tracker.heard(fleet.status(0).turns, ([1, 2].map(ids), 10), &node.setting());
    assert!(!fleet.status(0).on, "confirmed in advance");
}

#[tokio::test(start_paused = true)]
async fn reload_keeps_what_other_nodes_hold_back() {
    let mut fleet = fleet(2, 1);
    let _sessions: Vec<_> = (1..=2).map(|number| fleet.nodes[0].user(&entry(number, "server3", 1))).collect();
    (1..=2).for_each(|number| fleet.reported(&entry(number, "server4", 2)));
    fleet.settle();
    for node in &mut fleet.nodes {
        node.entries = TrackedEntries::new(100, Duration::from_secs(300));
        node.take(began());
    }
    // A session shows where its user is.
    let kept = fleet.nodes[0].entries.reconcile(&entry(1, "server4", 2));
    assert!(matches!(kept, Reconciled::Replaced(entry) if entry.mail_hosts == ["server3"]));
    assert!(is_refused(&fleet.nodes[1], &entry(1, "server4", 2)));
}

#[tokio::test(start_paused = true)]
async fn news_that_wait_are_bounded() {
    let node = setup(", brake: 9000").following();
    node.tracker.join(Arc::new(Plain));
    let _user = node.user(&entry(1, "server3", 1));
    for turn in 0..9_000_u32 {
        let host = if turn % 2 == 0 { "server4" } else { "server3" };
        let mut changed = entry(1, host, 2);
        changed.version.revision = Some(format!("20261126140002.{turn:06}Z#000000#000#000000").into());
        node.shown(changed);
    }
    let (news, overflown) = node.tracker.take_news();
    assert!(news.len() < 9_000 && overflown);
    assert_eq!(node.tracker.all_news(&node.setting()).len(), 9_000);
    assert_eq!(node.tracker.take_news().0.len(), 0);
}

//! Paces and orders of every reason, with a paused clock.

use std::net::IpAddr;

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::*;
use crate::sessions::maintenance::Maintenance;
use crate::sessions::registry::{Session, SessionBasis};

/// When, in seconds, and why a session was asked to end.
type End = (f64, TerminationReason);

struct Setup {
    registry: Arc<Registry>,
    closer: Arc<Closer>,
    _tasks: JoinSet<()>,
}

/// A closer with its tasks, which close ten sessions per second after changes.
fn setup() -> Setup {
    let registry = Arc::<Registry>::default();
    let closer = Arc::new(Closer::new(Arc::clone(&registry)));
    let mut tasks = JoinSet::new();
    for task in TASKS {
        let closer = Arc::clone(&closer);
        tasks.spawn(async move { closer.run(task, || 10).await });
    }
    Setup { registry, closer, _tasks: tasks }
}

impl Setup {
    /// Lists sessions; each reports its end.
    fn list(&self, backend: &str, count: usize, ends: &mut JoinSet<End>) -> Vec<SessionId> {
        let began = Instant::now();
        let mut ids = Vec::new();
        for _ in 0..count {
            let session = Session {
                id: self.registry.next_id(),
                login: "alice".into(),
                dn: "uid=alice".into(),
                acting: None,
                acting_dn: None,
                directory: None,
                acting_directory: None,
                client: IpAddr::from([127, 0, 0, 1]).into(),
                protocol: "imap".into(),
                backend: backend.into(),
                address: None,
                since: 0,
            };
            ids.push(session.id);
            let (listed, stop) = self.registry.list(session, SessionBasis::for_tests("uid=alice"));
            ends.spawn(async move {
                let why = stop.await;
                drop(listed);
                (began.elapsed().as_secs_f64(), why)
            });
        }
        ids
    }

    /// When each of some sessions is asked to end, in seconds after the start of a stop.
    async fn stopped(&self, sessions: usize, time: u64, rate: u32) -> Vec<f64> {
        let mut ends = JoinSet::new();
        self.list("server3", sessions, &mut ends);
        self.closer.close_all(Duration::from_secs(time), rate);
        sleep(Duration::from_secs(time)).await;
        self.registry.end_all();
        sorted(ends).await.into_iter().map(|(at, _)| at).collect()
    }
}

async fn sorted(ends: JoinSet<End>) -> Vec<End> {
    let mut ends = ends.join_all().await;
    ends.sort_by(|one, other| one.0.total_cmp(&other.0));
    ends
}

#[tokio::test(start_paused = true)]
async fn kicked_sessions_end_evenly_over_the_time() {
    let (setup, mut ends) = (setup(), JoinSet::new());
    let ids = setup.list("server3", 10, &mut ends);
    setup.closer.kick(ids, Duration::from_secs(60));
    for (nth, (at, why)) in sorted(ends).await.into_iter().enumerate() {
        assert_eq!(why, TerminationReason::Kicked);
        assert!((at - 6.0 * nth as f64).abs() < 0.1, "number {nth} at {at}");
    }
    assert!(setup.closer.lock().by_id.is_empty(), "a finished kick is forgotten");
}

#[tokio::test(start_paused = true)]
async fn kicks_at_the_same_time_have_their_own_paces() {
    let (setup, mut slow, mut fast) = (setup(), JoinSet::new(), JoinSet::new());
    let (first, second) = (setup.list("server3", 2, &mut slow), setup.list("server3", 100, &mut fast));
    setup.closer.kick(first, Duration::from_secs(100));
    setup.closer.kick(second, Duration::ZERO);
    assert!(sorted(fast).await.iter().all(|(at, _)| *at < 0.1));
    let slow: Vec<u64> = sorted(slow).await.iter().map(|(at, _)| at.round() as u64).collect();
    assert_eq!(slow, [0, 50]);
}

#[tokio::test(start_paused = true)]
async fn drained_backend_loses_its_sessions_at_the_rate_and_no_others() {
    let setup = setup();
    let maintenance = Maintenance::new(Arc::clone(&setup.closer));
    let (mut ends, mut others) = (JoinSet::new(), JoinSet::new());
    setup.list("server3", 20, &mut ends);
    setup.list("server4", 1, &mut others);
    let drain = maintenance.drain("server3", 10);
    assert_eq!((maintenance.drained("server3"), maintenance.drained("server4")), (Some(drain), None));
    // A login that had passed before the drain began.
    sleep(Duration::from_secs(1)).await;
    setup.list("server3", 1, &mut ends);
    let ends = ends.join_all().await;
    assert!(ends.iter().all(|(_, why)| *why == TerminationReason::BackendDrained));
    let latest = ends.iter().map(|(at, _)| *at).fold(0.0, f64::max);
    assert!((1.5..2.5).contains(&latest), "{latest}");
    assert_eq!(setup.registry.count(), 1);
    assert!(others.try_join_next().is_none());
}

#[tokio::test(start_paused = true)]
async fn undrain_stops_the_job_and_another_rate_replaces_it() {
    let setup = setup();
    let maintenance = Maintenance::new(Arc::clone(&setup.closer));
    let mut ends = JoinSet::new();
    setup.list("server3", 3, &mut ends);
    maintenance.drain("server3", 0);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(setup.registry.count(), 3, "rate 0 closes no session");
    maintenance.drain("server3", 1);
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(setup.registry.count(), 1);
    assert!(maintenance.undrain("server3") && !maintenance.undrain("server3"));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(setup.registry.count(), 1);
    maintenance.drain("server3", 1);
    maintenance.drain("server4", 1);
    assert_eq!(maintenance.keep(|backend| backend == "server3"), vec![Arc::from("server4")]);
    assert_eq!(maintenance.drains().len(), 1);
    assert_eq!(setup.closer.lock().by_id.len(), 1, "the job has gone with the backend");
}

#[tokio::test(start_paused = true)]
async fn stop_closes_sessions_evenly_until_the_deadline() {
    let ends = setup().stopped(10, 30, 100).await;
    for (index, end) in ends.iter().enumerate() {
        let due = 3.0 * (index + 1) as f64;
        assert!((end - due).abs() < 0.1, "{ends:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn rate_of_a_stop_is_bounded_until_the_deadline() {
    let ends = setup().stopped(1_000, 5, 100).await;
    let before = |second: f64| ends.iter().filter(|end| **end < second - 0.01).count();
    for second in 1..=4_u32 {
        let closed = before(f64::from(second));
        assert!((95 * second as usize..=100 * second as usize).contains(&closed), "{closed} in {second}s");
    }
    assert!(before(5.0) <= 500);
    assert!((ends[999] - 5.0).abs() < 0.1, "{}", ends[999]);
}

#[tokio::test(start_paused = true)]
async fn stop_without_time_waits_for_nothing() {
    assert!(setup().stopped(3, 0, 100).await.iter().all(|end| *end < 0.1));
    assert!(setup().stopped(0, 30, 100).await.is_empty(), "without sessions there is nothing to divide by");
}

#[tokio::test(start_paused = true)]
async fn ended_session_takes_no_time_from_those_that_a_change_closes() {
    let (setup, mut ends, mut gone) = (setup(), JoinSet::new(), JoinSet::new());
    let before = setup.list("server3", 500, &mut gone);
    let moved = setup.list("server3", 5, &mut ends);
    before.iter().for_each(|id| assert!(setup.registry.end(*id, TerminationReason::Kicked)));
    let reason = |id: SessionId| (id, TerminationReason::Moved);
    setup.closer.close_changed(before.into_iter().chain(moved).map(reason));
    let latest = sorted(ends).await.last().unwrap().0;
    assert!((0.3..0.6).contains(&latest), "{latest}");
    // The most serious reason counts, whenever it was added.
    let (mut one, mut other) = (JoinSet::new(), JoinSet::new());
    let (first, second) = (setup.list("server3", 3, &mut one), setup.list("server3", 1, &mut other));
    setup.closer.close_changed(first.into_iter().map(reason));
    setup.closer.close_changed([(second[0], TerminationReason::Hold)]);
    let (held, moved) = (sorted(other).await, sorted(one).await);
    assert!(held[0].0 < moved[0].0, "{held:?} {moved:?}");
}

#[tokio::test(start_paused = true)]
async fn job_continues_after_its_task_was_restarted() {
    let registry = Arc::<Registry>::default();
    let closer = Arc::new(Closer::new(Arc::clone(&registry)));
    let setup = Setup { registry, closer, _tasks: JoinSet::new() };
    let mut ends = JoinSet::new();
    let ids = setup.list("server3", 4, &mut ends);
    setup.closer.kick(ids, Duration::from_secs(4));
    let ran = tokio::time::timeout(Duration::from_millis(1_500), setup.closer.run(Task::Kick, || 10)).await;
    assert!(ran.is_err());
    assert_eq!(setup.closer.lock().by_id.len(), 1);
    let ends = tokio::select! {
        () = setup.closer.run(Task::Kick, || 10) => Vec::new(),
        ends = sorted(ends) => ends,
    };
    let at: Vec<u64> = ends.iter().map(|(at, _)| at.round() as u64).collect();
    assert_eq!(at, [0, 1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn displaced_sessions_of_a_user_end_together_until_their_address_is_down_again() {
    let (setup, mut ends, mut kept) = (setup(), JoinSet::new(), JoinSet::new());
    let (backend, address) = (Arc::<str>::from("server3"), IpAddr::from([192, 0, 2, 1]));
    let users = vec![setup.list("server3", 1, &mut ends), setup.list("server3", 5, &mut ends)];
    let users = users.into_iter().chain([setup.list("server3", 3, &mut kept)]).collect();
    setup.closer.close_displaced(Arc::clone(&backend), address, users);
    sleep(Duration::from_millis(500)).await;
    setup.closer.keep_displaced(&backend, address);
    sleep(Duration::from_secs(10)).await;
    // Ten a second: the second user after one session, the third after six.
    let ends = sorted(ends).await;
    assert!(ends.iter().all(|(_, why)| *why == TerminationReason::AddressReturned));
    let times: Vec<u64> = ends.iter().map(|(at, _)| (at * 10.0).round() as u64).collect();
    assert_eq!(times, [0, 1, 1, 1, 1, 1]);
    assert_eq!(setup.registry.count(), 3);
    let users = vec![setup.registry.sessions().iter().map(|session| session.id).collect()];
    setup.closer.close_displaced(backend, address, users);
    assert_eq!(sorted(kept).await.len(), 3);
    assert!(setup.closer.lock().by_id.is_empty());
}

//! What is forecast of an attempt is what it meets, and nothing is counted by it.

use super::*;
use crate::base::credential::Login;

/// The forecast of an attempt, twice: the first changes nothing.
fn forecast(door: &Door, from: &str, login: &str, dn: &str) -> Option<Forecast> {
    let name = Login::parse(login.as_bytes()).unwrap();
    let counted = || {
        let ledger = door.throttle.ledger.load();
        ledger.local.run_pending();
        ledger.users.run_pending();
        let refused = door.counted(LimitRule::FailedLoginsPerUser, ThrottleEffect::Refused, Mode::Enforce);
        (door.throttle.entries(), refused)
    };
    let before = counted();
    let [one, other] = [(); 2].map(|()| door.throttle.forecast_attempt(Some(ip(from)), &name, &key(dn)));
    assert_eq!(one, other);
    assert_eq!(counted(), before);
    one
}

/// What an attempt with a wrong password meets; waits as it does.
async fn met(door: &Door, from: &str, login: &str, password: &str, dn: &str) -> Option<Forecast> {
    let mut pending = match door.guess(from, login, password) {
        Ok(pending) => pending,
        Err(Limited(rule)) => return Some(Forecast::Refused(rule)),
    };
    let (by, delay) = (pending.by, pending.delay);
    advance(delay).await;
    let may_bind = pending.begin_lookup().unwrap().may_bind(&key(dn));
    pending.settle(AttemptOutcome::Wrong);
    if may_bind { by.map(|rule| Forecast::Waits(rule, delay)) } else { Some(Forecast::Withheld) }
}

#[tokio::test(start_paused = true)]
async fn forecast_is_what_an_attempt_meets() {
    let mut door = Door::new();
    door.set(|rules| {
        rules.failed_logins_per_user =
            FailedLogins { free_failures: 1, limit: Some(9), ..rules.failed_logins_per_user };
        rules.failed_logins_per_prefix = FailedLogins { free_failures: 6, ..rules.failed_logins_per_prefix };
        rules.password_spraying = PasswordSpraying { names_per_minute: 3, ..rules.password_spraying };
    });
    door.right("192.0.2.1", "alice", ALICE);
    let users =
        [("alice", ALICE), ("alice@example.com", ALICE), ("bob", BOB), ("carol", "uid=carol"), ("dora", "uid=dora")];
    let mut kinds = std::collections::BTreeSet::new();
    for number in 0_usize..400 {
        let (login, dn) = users[number * 7 % 11 % users.len()];
        let from = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "198.51.100.9"][number * 5 % 13 % 4];
        let said = forecast(&door, from, login, dn);
        let is = met(&door, from, login, &format!("guess {number}"), dn).await;
        assert_eq!(said, is, "{number}: {login} from {from}");
        kinds.insert(match said {
            None => "free".to_owned(),
            Some(Forecast::Withheld) => "withheld".to_owned(),
            Some(Forecast::Waits(rule, _)) => format!("waits for {}", rule.label()),
            Some(Forecast::Refused(rule)) => format!("refused by {}", rule.label()),
        });
        // At times a guess is free again.
        advance(ms(if number % 17 == 0 { 90_000 } else { 150 })).await;
    }
    for kind in ["free", "withheld", "waits for failed_logins_per_user", "waits for failed_logins_per_prefix"] {
        assert!(kinds.contains(kind), "{kinds:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_and_many_names_of_a_network_are_forecast() {
    let mut door = Door::new();
    door.heat("192.0.2.2").await;
    door.set(|rules| rules.failed_logins_per_user.limit = Some(4));
    let refused = Some(Forecast::Refused(LimitRule::FailedLoginsPerUser));
    assert_eq!(forecast(&door, "192.0.2.3", "alice", ALICE), refused);
    assert_eq!(met(&door, "192.0.2.3", "alice", "another", ALICE).await, refused);
    door.set(|rules| rules.password_spraying.names_per_minute = 3);
    for number in 0..5 {
        door.wrong("192.0.2.4", &format!("name{number}"), "spring", None);
    }
    let said = forecast(&door, "192.0.2.4", "bob", BOB);
    assert!(matches!(said, Some(Forecast::Waits(LimitRule::PasswordSpraying, _))), "{said:?}");
    assert_eq!(met(&door, "192.0.2.4", "bob", "spring", BOB).await, said);
}

#[tokio::test(start_paused = true)]
async fn dry_run_and_exempt_clients_meet_nothing() {
    let mut door = Door::new();
    door.heat("192.0.2.2").await;
    assert!(forecast(&door, "192.0.2.3", "alice", ALICE).is_some());
    assert_eq!(forecast(&door, "198.51.100.9", "alice", ALICE), None);
    door.set(|rules| rules.failed_logins_per_user.mode = Mode::DryRun);
    assert_eq!(forecast(&door, "192.0.2.3", "alice", ALICE), None);
}

#[tokio::test(start_paused = true)]
async fn session_is_forecast_as_it_is_counted() {
    let door = Door::new();
    let mut held = Vec::new();
    for from in ["192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        let said = door.throttle.forecast_session(Some(ip(from)), &key(ALICE));
        let is = door.session(from, ALICE);
        assert_eq!(said, is.as_ref().err().map(|Limited(rule)| *rule), "{from}");
        held.extend(is.ok());
    }
    assert_eq!(door.throttle.forecast_session(None, &key(ALICE)), Some(LimitRule::SessionsPerUser));
    assert_eq!(door.throttle.forecast_session(None, &key(BOB)), None);
}

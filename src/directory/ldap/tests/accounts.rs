//! Account states in refusals, and Active Directory.

use super::*;
use crate::telemetry::labels::PasswordWarning;

/// The outcome of alice's bind with this reply, by either lookup method.
async fn answered(code: u8, text: &str, controls: Controls) -> Answered {
    let mut outcomes = Vec::new();
    for find in [searching(None), templated(None)] {
        let text = text.to_owned();
        let server = Scripted::start(move |seen| match seen.bind() {
            Some(("uid=alice,dc=x", _)) => bound_with(seen, code, &text, controls),
            _ => alice(seen),
        })
        .await;
        let under = Under::new(&[&server], find);
        let (result, trace) = under.login("alice", "right").await;
        // The connection stays usable.
        assert_eq!((under.login("alice", "right").await.0, server.connections() <= 2), (result.clone(), true));
        let warnings = [PasswordWarning::Grace, PasswordWarning::Expiring]
            .map(|word| under.metrics.directory_password_warnings.at("default", word).get());
        outcomes.push((result.map(|identity| identity.entry().mail_hosts.clone()), trace.diagnostic, warnings));
    }
    let [searched, templated] = outcomes.try_into().unwrap();
    assert_eq!(searched, templated);
    searched
}

/// OIDs and values of controls.
type Controls = &'static [(&'static str, &'static [u8])];

type Answered = (Result<Vec<String>, DirectoryError>, Option<BindDiagnostic>, [u64; 2]);

const PASSWORD_POLICY: &str = "1.3.6.1.4.1.42.2.27.8.5.1";

const NETSCAPE_EXPIRED: &str = "2.16.840.1.113730.3.4.4";

const NETSCAPE_EXPIRING: &str = "2.16.840.1.113730.3.4.5";

#[tokio::test]
async fn policy_controls_determine_the_account_state() {
    let wrong = DirectoryError::InvalidCredentials { dn: "uid=alice,dc=x".into(), seen: Some(Box::default()) };
    let refused: [(u8, Controls, DirectoryError); 7] = [
        (49, &[(PASSWORD_POLICY, b"\x30\x00")], wrong),
        (49, &[(PASSWORD_POLICY, b"\x30\x03\x81\x01\x01")], account(AccountState::Locked, false)),
        (19, &[(PASSWORD_POLICY, b"\x30\x03\x81\x01\x01")], account(AccountState::Locked, false)),
        (49, &[(PASSWORD_POLICY, b"\x30\x03\x81\x01\x00")], account(AccountState::PasswordExpired, true)),
        (49, &[(NETSCAPE_EXPIRED, b"0")], account(AccountState::PasswordExpired, true)),
        // Success with a mandatory password change: the login is refused.
        (0, &[(PASSWORD_POLICY, b"\x30\x03\x81\x01\x02")], account(AccountState::PasswordMustChange, true)),
        (0, &[(NETSCAPE_EXPIRED, b"0")], account(AccountState::PasswordMustChange, true)),
    ];
    for (code, controls, expected) in refused {
        let (result, _, warnings) = answered(code, "", controls).await;
        assert_eq!((result, warnings), (Err(expected), [0, 0]), "{code} {controls:?}");
    }
    let accepted: [(Controls, BindDiagnostic); 2] = [
        (&[(PASSWORD_POLICY, b"\x30\x05\xa0\x03\x81\x01\x02"), (NETSCAPE_EXPIRED, b"0")], BindDiagnostic::Grace(2)),
        (&[(NETSCAPE_EXPIRING, b"3600")], BindDiagnostic::Expiring(3_600)),
    ];
    for (controls, said) in accepted {
        let (result, heard, warnings) = answered(0, "", controls).await;
        assert_eq!((result, heard), (Ok(vec!["server3".to_owned()]), Some(said)));
        assert_eq!(warnings.iter().sum::<u64>(), 2, "{said} was said twice");
    }
}

#[tokio::test]
async fn active_directory_sub_codes_are_read() {
    let text = |code: &str| {
        format!("80090308: LdapErr: DSID-0C090439, comment: AcceptSecurityContext error, data {code}, v4563\0")
    };
    let wrong = DirectoryError::InvalidCredentials { dn: "uid=alice,dc=x".into(), seen: Some(Box::default()) };
    for (code, expected) in [
        ("52e", wrong),
        ("525", DirectoryError::NoEntry),
        ("530", account(AccountState::OutsideLogonHours, true)),
        ("531", account(AccountState::WrongWorkstation, true)),
        ("532", account(AccountState::PasswordExpired, true)),
        ("533", account(AccountState::Disabled, true)),
        ("701", account(AccountState::AccountExpired, true)),
        ("773", account(AccountState::PasswordMustChange, true)),
        ("775", account(AccountState::Locked, false)),
    ] {
        assert_eq!(answered(49, &text(code), &[]).await.0, Err(expected), "{code}");
    }
}

#[tokio::test]
async fn result_codes_are_mapped_as_configured() {
    assert_eq!(answered(19, "", &[]).await.0, Err(account(AccountState::Locked, false)));
}

#[tokio::test]
async fn unreadable_controls_lose_no_reply() {
    let spoilt: Controls =
        &[(PASSWORD_POLICY, b"\x30\x84\xff\xff\xff\xff\x81\x01\x01"), (NETSCAPE_EXPIRING, b"soon"), ("1.2.3", b"\xff")];
    assert_eq!(answered(0, "", spoilt).await.0, Ok(vec!["server3".to_owned()]));
}

fn principal() -> Find {
    let parts = vec![TemplatePart::Local, text("@ad.example.com")];
    Find::Principal { template: Template { parts }, base: "dc=ad".to_owned(), service: None }
}

const UPN: (&str, &[&[u8]]) = ("userPrincipalName", &[b"Alice@AD.example.com"]);

/// Active Directory with one user that binds by principal name.
fn active_directory(seen: &Recorded, found: &[&str]) -> Vec<ScriptedReply> {
    match (&seen.op, seen.bind()) {
        (_, Some(("alice@ad.example.com", "right"))) => bound(Code::Success),
        (_, Some(_)) => bound(Code::InvalidCredentials),
        (LdapOp::SearchRequest(_), None) => {
            let mut replies: Vec<ScriptedReply> =
                found.iter().map(|dn| entry(dn, &[("mailHost", &[b"server3"]), UPN])).collect();
            // As a domain controller does, for other partitions.
            replies.extend([reference(), done(Code::Success)]);
            replies
        }
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn principal_name_is_bound_and_its_single_entry_read() {
    let server = Scripted::start(|seen| active_directory(seen, &["CN=Alice,DC=ad"])).await;
    let under = Under::new(&[&server], principal());
    let identity = under.alice().await.unwrap();
    assert_eq!(
        (&*identity.entry().dn, identity.entry().mail_hosts.as_slice()),
        ("CN=Alice,DC=ad", &["server3".to_owned()][..])
    );
    let LdapOp::SearchRequest(request) = server.seen()[1].op.clone() else { panic!() };
    assert_eq!((request.base.as_str(), request.scope), ("dc=ad", LdapSearchScope::Subtree));
    assert_eq!(request.filter, LdapFilter::Equality("userPrincipalName".into(), "alice@ad.example.com".into()));

    assert!(matches!(under.login("alice", "wrong").await.0, Err(DirectoryError::InvalidCredentials { .. })));
    // Another domain, another notation, another character: no request.
    for name in ["AD\\alice", "alice@x@y", "al ice", "j+rgen"] {
        assert_eq!(under.login(name, "right").await.0, Err(DirectoryError::NoEntry), "{name}");
    }
    assert_eq!(server.binds().len(), 2);
}

#[tokio::test]
async fn principal_name_without_exactly_one_entry_is_an_unknown_user_and_no_wrong_password() {
    let none = Scripted::start(|seen| active_directory(seen, &[])).await;
    assert_eq!(code(Under::new(&[&none], principal()).alice().await), (DirectoryOperation::Read, 0));
    let two = Scripted::start(|seen| active_directory(seen, &["CN=Alice,DC=ad", "CN=Alice,DC=other"])).await;
    let dns = vec!["CN=Alice,DC=ad".into(), "CN=Alice,DC=other".into()];
    let several = Err(DirectoryError::SeveralEntries { dns, proof: Proof::Given });
    assert_eq!(Under::new(&[&two], principal()).alice().await, several);
}

/// A domain controller compares without accents, in the bind and in the search.
#[tokio::test]
async fn entry_with_another_principal_name_is_an_unknown_user() {
    for name in ["\u{e1}lice@ad.example.com", "alice@ad.example.com.", "alice"] {
        let server = Scripted::start(move |seen| match &seen.op {
            LdapOp::SearchRequest(_) => {
                let names: &[&[u8]] = &[name.as_bytes()];
                let other = entry("CN=Other,DC=ad", &[("mailHost", &[b"server3"]), ("userPrincipalName", names)]);
                vec![other, reference(), done(Code::Success)]
            }
            _ => active_directory(seen, &[]),
        })
        .await;
        assert_eq!(Under::new(&[&server], principal()).alice().await, Err(DirectoryError::NoEntry), "{name}");
    }
}

#[tokio::test]
async fn previously_refused_password_is_searched_and_not_bound() {
    let server = Scripted::start(|seen| match seen.base() {
        Some(_) => vec![entry("uid=alice,dc=x", &[("PwdChangedTime", &[b"20260101000000Z"])]), done(Code::Success)],
        None => alice(seen),
    })
    .await;
    let under = Under::new(&[&server], searching(None));
    let dn: Arc<str> = "uid=alice,dc=x".into();
    let wrong = under.login("alice", "wrong").await.0;
    let Err(DirectoryError::InvalidCredentials { seen: Some(version), .. }) = wrong else { panic!("{wrong:?}") };
    assert!(version.shows_password_changes() && !version.locked && !version.password_differs(&version.clone()));
    assert!(version.password_differs(&EntryVersion::default()));

    let credential = Credential::for_tests("alice", "wrong");
    let refused_before = move |entry: &Entry| entry.version == *version;
    let again = within(under.ldap.authenticate(&credential, &refused_before, &NoFloor)).await.0;
    assert_eq!((again, server.binds().len()), (Err(DirectoryError::RefusedBefore { dn }), 1));
}

#[tokio::test]
async fn refusal_of_a_possibly_locked_account_is_not_cacheable() {
    let server = Scripted::start(|seen| match seen.base() {
        Some(_) => vec![entry("uid=alice,dc=x", &[("lockoutTime", &[b"133500000000000000"])]), done(Code::Success)],
        None => alice(seen),
    })
    .await;
    let refused = Under::new(&[&server], searching(None)).login("alice", "wrong").await.0;
    assert_eq!(refused, Err(DirectoryError::InvalidCredentials { dn: "uid=alice,dc=x".into(), seen: None }));
}

#[tokio::test]
async fn refusal_by_a_server_that_reports_locks_is_cacheable() {
    // The lock attribute remains after the lock: only the server knows that it compared the password.
    let start = || {
        Scripted::start(|seen| match (seen.base(), seen.bind()) {
            (Some(_), _) => {
                vec![entry("uid=alice,dc=x", &[("pwdAccountLockedTime", &[b"20260101000000Z"])]), done(Code::Success)]
            }
            (_, Some(("uid=alice,dc=x", "while it lasts"))) => {
                bound_with(seen, 49, "", &[(PASSWORD_POLICY, b"\x30\x03\x81\x01\x01")])
            }
            _ => alice(seen),
        })
    };
    let (server, other) = (start().await, start().await);
    let under = Under::new(&[&server], searching(None));
    let is_remembered = async |under: &Under| {
        let refused = under.login("alice", "wrong").await.0;
        let Err(DirectoryError::InvalidCredentials { seen, .. }) = refused else { panic!("{refused:?}") };
        seen.is_some()
    };
    assert!(!is_remembered(&under).await);
    assert_eq!(under.login("alice", "while it lasts").await.0, Err(account(AccountState::Locked, false)));
    assert!(is_remembered(&under).await);
    // The reply of one server says nothing about another.
    let both = Under::new(&[&server, &other], searching(None));
    assert_eq!(both.login("alice", "while it lasts").await.0, Err(account(AccountState::Locked, false)));
    assert!(is_remembered(&both).await);
    both.ldap.verdicts.reports_locks.lock().unwrap().clear();
    both.ldap.verdicts.reports_locks.lock().unwrap().insert(Arc::clone(&both.ldap.server(1).url));
    assert!(!is_remembered(&both).await);
}

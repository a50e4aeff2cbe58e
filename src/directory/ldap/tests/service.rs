//! The service account and its requests.

use super::*;

fn anything(_: &Recorded) -> bool {
    true
}

#[tokio::test]
async fn service_account_is_bound_once_per_connection() {
    for password in [&b"service"[..], b"service\n", b"service\r\n"] {
        let (_folder, _file, account) = service(password);
        let server = Scripted::start(alice).await;
        let under = Under::new(&[&server], searching(account));
        let looks = (0..20).map(|_| under.look_up("alice"));
        for look in futures_util::future::join_all(looks).await {
            look.0.unwrap();
        }
        assert_eq!(server.binds(), [(0, "cn=usher".to_owned(), "service".to_owned())], "{password:?}");
        assert!(
            under
                .metrics
                .render()
                .contains("usher_directory_service_bind_ok{directory=\"default\",server=\"ldap://127.0.0.1:")
        );
        let url = format!("ldap://127.0.0.1:{}", server.port);
        assert_eq!(under.metrics.directory_service_bind_ok.with_label_values(&["default", &url]).get(), 1);
    }
}

#[tokio::test]
async fn refused_service_account_is_paused_and_its_file_read_again() {
    let (_folder, file, account) = service(b"old");
    let server = Scripted::start(alice).await;
    let url = format!("ldap://127.0.0.1:{}", server.port);
    let settings = settings(vec![server.server(LdapScheme::Ldap, "127.0.0.1")], searching(account));
    let under = Under::test(&settings, Tuning { service_retry: Duration::from_secs(1), ..Tuning::default() });
    assert_eq!(under.metrics.directory_service_bind_ok.with_label_values(&["default", &url]).get(), 1, "never asked");
    let refused =
        UnavailableCause::ServiceBind { server: url.as_str().into(), result: ServerResult::new(49, "said the server") };
    for _ in 0..3 {
        let (result, trace) = under.login("alice", "right").await;
        assert_eq!(cause(result), refused);
        assert_eq!(trace.code, Some(49));
    }
    assert_eq!(server.binds().len(), 1, "one try a minute does not lock the account");
    assert_eq!(under.metrics.directory_service_bind_ok.with_label_values(&["default", &url]).get(), 0);
    std::fs::write(&file, b"service\n").unwrap();
    within(async {
        while under.alice().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(server.binds().iter().filter(|(_, dn, _)| dn == "cn=usher").count(), 2);
    assert_eq!(under.metrics.directory_service_bind_ok.with_label_values(&["default", &url]).get(), 1);
}

#[tokio::test]
async fn service_account_refused_by_one_server_is_tried_on_the_next() {
    let (_folder, _file, account) = service(b"service");
    let refusing = Scripted::start(first(vec![bound(Code::InvalidCredentials); 9], is_bind)).await;
    let good = Scripted::start(alice).await;
    let under = Under::new(&[&refusing, &good], searching(account));
    under.look_up("alice").await.0.unwrap();
    under.ldap.probe().await.unwrap();
    assert_eq!(refusing.binds().len(), 1);
}

#[tokio::test]
async fn unusable_service_password_is_never_sent() {
    for password in [&b""[..], b"\n", b"caf\xe9"] {
        let (_folder, _file, account) = service(password);
        let server = Scripted::start(alice).await;
        let under = Under::new(&[&server], searching(account));
        assert!(matches!(cause(under.alice().await), UnavailableCause::Connection { .. }));
        assert_eq!(server.binds(), []);
    }
    let (folder, _file, account) = service(b"service");
    drop(folder);
    let server = Scripted::start(alice).await;
    let under = Under::new(&[&server], searching(account));
    assert!(cause(under.alice().await).to_string().contains("password: No such file"));
}

#[tokio::test]
async fn explain_reads_as_the_service_account_or_reports_an_error() {
    let server = Scripted::start(alice).await;
    let under = Under::new(&[&server], templated(None));
    assert_eq!(cause(under.look_up("alice").await.0), UnavailableCause::NoServiceAccount);
    let query = under.ldap.describe_lookup(&Login::parse(b"a,b").unwrap());
    assert_eq!(query, r"read uid=a\2cb,dc=x");
    assert_eq!(server.connections(), 0);

    let (_folder, _file, account) = service(b"service");
    let under = Under::new(&[&server], templated(account.clone()));
    assert_eq!(under.look_up("alice").await.0.unwrap().mail_hosts, ["server3"]);
    assert_eq!(server.searches(), ["uid=alice,dc=x"]);

    let server = Scripted::start(first(vec![vec![done(Code::NoSuchObject)]], is_search)).await;
    let under = Under::new(&[&server], templated(account));
    assert_eq!(under.look_up("bob").await.0, Err(DirectoryError::NoEntry));
}

#[tokio::test]
async fn probe_reads_the_anonymous_root_dse() {
    let (_folder, _file, account) = service(b"service");
    let server = Scripted::start(alice).await;
    for (find, binds) in [(searching(account), 1), (searching(None), 0), (templated(None), 0)] {
        let before = server.binds().len();
        let under = Under::new(&[&server], find);
        under.ldap.probe().await.unwrap();
        assert_eq!(server.searches().last().unwrap(), "");
        assert_eq!(server.binds().len() - before, binds);
    }
    // Any result is enough: the directory is reachable.
    let server = Scripted::start(first(vec![vec![done(Code::InsufficentAccessRights)]], is_search)).await;
    Under::new(&[&server], templated(None)).ldap.probe().await.unwrap();
    let server = Scripted::start(first(vec![vec![ScriptedReply::Close]], anything)).await;
    Under::new(&[&server], templated(None)).ldap.probe().await.unwrap_err();
}

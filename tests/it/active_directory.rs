//! Active Directory: Samba's domain controller. Logins, and changes followed by their numbers (uSNChanged).

use serde_json::{Value, json};

use crate::kit::process::write_secret;
use crate::kit::samba::{ADMINISTRATOR, DOMAIN, PASSWORD, READER, Samba};
use crate::kit::scripted::Scripted;
use crate::kit::usher::command;
use crate::kit::{Config, Imap, Usher};

/// usher with this service account, and two mail servers.
fn config(samba: &Samba, account: &str, servers: &[Scripted; 2]) -> Config {
    let config = Config::with_url(&samba.url());
    write_secret(&config.path("ldap.password"), PASSWORD);
    config
        .backend("server3", servers[0].port, &["server3"])
        .backend("server4", servers[1].port, &["server4"])
        .set("/routing/backends/1/imap/server_name", "server3.example.com")
        .set("/directory/bind_dn", account)
        .set("/directory/base", format!("OU=people,{DOMAIN}"))
        .set("/directory/filter", "(&(objectClass=user)(|(sAMAccountName={login})(mail={login})))")
        .set("/directory/login_attribute", "sAMAccountName")
        .set("/directory/mail_host_attribute", "physicalDeliveryOfficeName")
        .set("/cache/ttl", "1h")
}

fn followed(config: Config) -> Config {
    config.set("/directory/watch", "auto").set("/directory/poll_interval", "1s")
}

fn user(samba: &Samba, name: &str) {
    samba.add(name, &format!("mail: {name}@example.com\nphysicalDeliveryOfficeName: server3\n"));
}

#[track_caller]
fn session(usher: &Usher, name: &str) -> Imap {
    let mut imap = Imap::tls(usher.imaps_port());
    imap.login(name, PASSWORD).ok();
    imap
}

fn refused(usher: &Usher, name: &str, password: &str) -> String {
    Imap::tls(usher.imaps_port()).login(name, password).tagged
}

#[test]
fn users_of_a_domain_controller_log_in_and_account_states_are_known() {
    let samba = Samba::start();
    let servers = [Scripted::accepting(), Scripted::accepting()];
    for name in ["alice", "disabled", "bob", "o'neil", "jos\u{e9}"] {
        user(&samba, name);
    }
    samba.replace("disabled", "userAccountControl", "514");
    let usher = Usher::start(config(&samba, READER, &servers));
    session(&usher, "alice");
    session(&usher, "alice@example.com");
    for (name, password, result) in [
        ("alice", "wrong", "wrong_password"),
        ("disabled", PASSWORD, "account_disabled"),
        ("nobody", "x", "unknown_user"),
    ] {
        assert!(refused(&usher, name, password).starts_with("NO [AUTHENTICATIONFAILED]"), "{name}");
        let nth = usize::from(name == "alice") + 1;
        assert_eq!(usher.nth_login(nth, name)["result"], result);
    }
    // Without a service account: by the principal name.
    let principal = config(&samba, READER, &servers)
        .without("/directory/filter")
        .without("/directory/bind_dn")
        .without("/directory/bind_password_file")
        .set("/directory/user_dn", "{local}@ad.example.com");
    let usher = Usher::start(principal);
    for name in ["bob", "o'neil", "O'Neil", "jos\u{e9}"] {
        session(&usher, name);
    }
    // A domain controller compares without accents.
    for name in ["jose", "alice)(cn=*", "cn=bob,ou=people", "ad\\bob", "bob@elsewhere@x"] {
        assert!(refused(&usher, name, PASSWORD).starts_with("NO [AUTHENTICATIONFAILED]"), "{name}");
    }
    assert!(refused(&usher, "bob", "wrong").starts_with("NO [AUTHENTICATIONFAILED]"));
}

/// A move, a lock-out, an entry that is moved elsewhere and one that is deleted: each ends the session, and none is found
/// by reading all users again.
#[test]
fn changes_are_followed_by_their_numbers() {
    let samba = Samba::start();
    let servers = [Scripted::accepting(), Scripted::accepting()];
    let names = ["alice", "bob", "carol", "dave", "erin"];
    for name in names {
        user(&samba, name);
    }
    let usher = Usher::start(followed(config(&samba, ADMINISTRATOR, &servers)));
    let line = usher.wait_log("watching the directory for changes", |_| true);
    assert_eq!((&line["mode"], &line["sees_deleted"]), (&json!("usn"), &json!(true)), "{line}");
    usher.wait_log("LDAP change notification active", |_| true);
    let sessions: Vec<_> = names.iter().map(|name| session(&usher, name)).collect();
    samba.move_to("alice", "server4");
    samba.replace("bob", "userAccountControl", "514");
    let (carol, dave) = (Samba::dn("carol"), Samba::dn("dave"));
    samba.modify(&format!(
        "dn: {carol}\nchangetype: moddn\nnewrdn: CN=carol\ndeleteoldrdn: 1\nnewsuperior: OU=left,{DOMAIN}\n\n\
         dn: {dave}\nchangetype: delete\n"
    ));
    for (name, cause) in [("alice", "moved"), ("bob", "disabled"), ("carol", "deleted"), ("dave", "deleted")] {
        let session = usher.login(name)["session"].clone();
        let end = usher.wait_log("end", |line| line["session"] == session);
        assert_eq!(end["cause"], cause, "{name}: {end}");
    }
    drop(session(&usher, "alice"));
    assert_eq!(usher.nth_login(2, "alice")["backend"], "server4");
    for name in ["bob", "carol", "dave"] {
        assert!(refused(&usher, name, PASSWORD).starts_with("NO [AUTHENTICATIONFAILED]"), "{name}");
    }
    // A user that has not changed stays.
    let erin = usher.login("erin")["session"].clone();
    assert!(!usher.logged().iter().any(|line| line["message"] == "end" && line["session"] == erin));
    drop(sessions);
    assert_eq!(usher.metric("usher_directory_watch_connected", &[]), 1.0);
}

/// An ordinary account is not shown deleted objects: a deletion is found by the comparison of every tenth round.
#[test]
fn ordinary_account_finds_deletions_by_comparison() {
    let samba = Samba::start();
    let servers = [Scripted::accepting(), Scripted::accepting()];
    for name in ["carol", "dave"] {
        user(&samba, name);
    }
    let config = followed(config(&samba, READER, &servers));
    let usher = Usher::start(config.clone());
    let line = usher.wait_log("watching the directory for changes", |_| true);
    assert_eq!((&line["mode"], &line["sees_deleted"]), (&json!("usn"), &json!(false)), "{line}");
    usher.wait_log("LDAP change notification active", |_| true);
    let _sessions = ["carol", "dave"].map(|name| session(&usher, name));
    samba.modify(&format!("dn: {}\nchangetype: delete\n", Samba::dn("dave")));
    samba.replace("carol", "userAccountControl", "514");
    for (name, cause) in [("carol", "disabled"), ("dave", "deleted")] {
        let session = usher.login(name)["session"].clone();
        let end = usher.wait_log("end", |line| line["session"] == session);
        assert_eq!(end["cause"], cause, "{name}: {end}");
    }
    for (account, expected) in
        [(READER, "dsacls"), (ADMINISTRATOR, "polling by uSNChanged every 1 s, with deleted objects")]
    {
        let config = config.clone().set("/directory/bind_dn", account);
        config.write();
        let said = command(&config, &["check", "--connect", "--json"], b"");
        let report: Value = serde_json::from_str(&said.stdout).unwrap();
        let found = report["subjects"].as_array().unwrap().iter().find(|one| one["name"] == samba.url()).unwrap();
        assert!(found["findings"].to_string().contains(expected), "{account}: {found}");
    }
}

//! The kit itself, without usher: the servers behave as the other tests assume.

use crate::kit::client::{Imap, Tls};
use crate::kit::process::run;
use crate::kit::scripted::{GREETING, Scripted};
use crate::kit::slapd::{Options, ReplicaOf, SYNCPROV, Slapd};
use crate::kit::users::{SERVICE_DN, SERVICE_PASSWORD, SUFFIX, User, all_users};
use crate::kit::{cyrus, dovecot, password_of, shared, slapd};

#[test]
fn slapd_has_every_user_and_checks_passwords() {
    let slapd = slapd();
    let service = ["-D", SERVICE_DN, "-w", SERVICE_PASSWORD];
    for url in [slapd.url(), slapd.tls_url(), slapd.socket_url()] {
        let ca = format!("LDAPTLS_CACERT={}", shared().certificates.ca().display());
        let search = [&[&ca, "ldapsearch", "-x", "-LLL", "-H", &url, "-b", SUFFIX], &service[..]].concat();
        let found = run("env", &[&search[..], &["(uid=*)", "uid"]].concat(), b"").succeeded();
        // clara's entry is readable by no account.
        assert_eq!(found.stdout.matches("dn:").count(), all_users().len() - 1, "{found:#?}");
    }
    for person in all_users() {
        let bind = ["-x", "-H", &slapd.url(), "-D", &person.dn(), "-w", &person.password];
        assert!(run("ldapwhoami", &bind, b"").succeeded().stdout.contains("dn:uid="));
        let wrong = ["-x", "-H", &slapd.url(), "-D", &person.dn(), "-w", "wrong"];
        assert_eq!(run("ldapwhoami", &wrong, b"").code, 49);
    }
}

#[test]
fn slapd_has_replicas_password_policy_and_lastbind() {
    let first = Slapd::with(Options {
        modules: &["syncprov", "ppolicy"],
        database: &format!(
            "lastbind on\n{SYNCPROV}overlay ppolicy\nppolicy_default \"cn=policy,ou=services,{SUFFIX}\"\n"
        ),
        entries: &format!(
            "dn: cn=policy,ou=services,{SUFFIX}\nobjectClass: device\nobjectClass: pwdPolicy\ncn: policy\n\
             pwdAttribute: userPassword\npwdLockout: TRUE\npwdMaxFailure: 5\n\n"
        ),
        ..Options::default()
    });
    let replica = |follows| Slapd::with(Options { replica_of: Some(follows), ..Options::default() });
    let (second, late) = (replica(ReplicaOf::AtOnce(&first)), replica(ReplicaOf::Every(5, &first)));
    let alice = User::new("alice", None);
    first.set(&alice, "mailHost", Some("server4"));
    second.wait_for(&alice.dn(), "mailHost: server4");
    late.wait_for(&alice.dn(), "mailHost: server4");
    let bind = |password| run("ldapwhoami", &["-x", "-H", &first.url(), "-D", &alice.dn(), "-w", password], b"").code;
    assert_eq!((bind("alice-secret"), bind("wrong")), (0, 49));
    let shown = first.read(&alice.dn(), &["+"]);
    assert!(shown.contains("pwdLastSuccess:") && shown.contains("pwdFailureTime:"), "{shown}");
}

fn connect(port: u16, server_name: &'static str) -> Imap {
    Imap::try_tls(port, &Tls { server_name, ..Tls::default() }).unwrap()
}

#[test]
fn dovecot_accepts_its_users_and_its_master_user() {
    let mut imap = connect(dovecot().imaps, "server3.example.com");
    assert!(imap.greeting.contains("server3 is Dovecot"), "{}", imap.greeting);
    imap.login("alice", "wrong").is("NO [AUTHENTICATIONFAILED]");
    for person in all_users() {
        let mut imap = connect(dovecot().imaps, "server3.example.com");
        let reply = imap.authenticate("", &person.uid, person.password.as_bytes());
        assert!(reply.tagged.starts_with("OK"), "{person:?}: {}", dovecot().logged());
        imap.command("SELECT INBOX").ok();
    }
    let mut imap = connect(dovecot().imaps, "server3.example.com");
    imap.authenticate("alice", "usher", SERVICE_PASSWORD.as_bytes()).ok();
    let reply = imap.command("ID NIL").ok();
    assert!(reply.untagged[0].contains("server3"), "{reply:?}");
    assert!(Imap::plain(dovecot().imap).greeting.contains("STARTTLS"));
}

#[test]
fn cyrus_accepts_its_users_and_its_proxy_user() {
    for uid in ["bob", "ben", "sync4", "big4"] {
        let mut imap = connect(cyrus().imaps, "server4.example.com");
        assert!(imap.greeting.contains("Cyrus"), "{}", imap.greeting);
        imap.login(uid, "wrong").is("NO Login failed");
        let reply = imap.authenticate("", uid, password_of(uid).as_bytes()).ok();
        assert!(reply.tagged.contains("SESSIONID=<"), "{reply:?}");
        imap.command("SELECT INBOX").ok();
    }
    let mut imap = connect(cyrus().imaps, "server4.example.com");
    imap.authenticate("bob", "usher", SERVICE_PASSWORD.as_bytes()).ok();
    imap.command("SELECT INBOX").ok();
    assert!(Imap::plain(cyrus().imap).greeting.contains("STARTTLS"));
}

#[test]
fn scripted_server_plays_a_login() {
    let server = Scripted::tls(|peer| {
        peer.send(GREETING);
        if peer.accept_login().is_some() {
            peer.reply_to_everything();
        }
    });
    let mut imap = connect(server.port, "server3.example.com");
    imap.authenticate("", "unknown", b"anything").ok();
    assert_eq!(server.next_login(), "\0unknown\0anything");
    imap.command("NOOP").is("OK did NOOP");
    imap.send("a LOGIN {1+}\r\nx {1}\r\n");
    assert!(imap.line().starts_with('+'));
    imap.send("y\r\n");
    imap.reply("a").is("OK did LOGIN \"x\" \"y\"");
}

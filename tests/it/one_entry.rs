//! A fault of one entry, or one name, is reported as such: never as an outage of the directory, and never so that names
//! can be distinguished.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kit::client::Reply;
use crate::kit::dirsrv::DirSrv;
use crate::kit::scripted::{Operation, Scripted, ScriptedLdap, ber, ldap_entry, ldap_message, ldap_result};
use crate::kit::slapd::{Options, Slapd};
use crate::kit::users::SERVICE_DN;
use crate::kit::usher::command;
use crate::kit::{Config, Imap, User, Usher, dovecot, password_of};

const ALICE: &str = "uid=alice,ou=people,dc=example,dc=com";

/// An LDAPResult with a diagnostic message.
fn with_text(id: u8, tag: u8, code: u8, text: &str) -> Vec<u8> {
    ldap_message(id, &ber(tag, &[&[10, 1, code, 4, 0], &ber(4, &[text.as_bytes()])]))
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// A directory that answers the bind of every name but alice with this code, and alice's wrong passwords with 49.
fn answers_unknown(code: u8) -> ScriptedLdap {
    ScriptedLdap::start(move |_, operation, id, request| match operation {
        Operation::Bind if contains(request, ALICE) && contains(request, "alice-secret") => {
            Some(ldap_result(id, 0x61, 0))
        }
        Operation::Bind if contains(request, ALICE) => Some(ldap_result(id, 0x61, 49)),
        Operation::Bind => Some(with_text(id, 0x61, code, "NDS error: no such entry (-601)")),
        Operation::Search => {
            Some([ldap_entry(id, ALICE, &[("mailHost", "server3")]), ldap_result(id, 0x65, 0)].concat())
        }
        Operation::Other(_) => None,
    })
}

fn by_template(url: &str, backend: &Scripted) -> Config {
    let config = Config::with_url(url).scripted(backend).set("/limits/failed_logins", 100);
    config.user_dn("uid={login},ou=people,dc=example,dc=com").set("/throttle/exempt", json!(["127.0.0.0/8"]))
}

fn login(usher: &Usher, name: &str, password: &str) -> Reply {
    Imap::tls(usher.imaps_port()).login(name, password)
}

#[test]
fn unknown_name_sounds_like_a_wrong_password_whatever_the_result_of_its_bind() {
    let backend = Scripted::accepting();
    for (code, name, result) in [
        (32, "noSuchObject", "unknown_user"),
        (34, "invalidDNSyntax", "unknown_user"),
        (33, "aliasProblem", "unusable_entry"),
        (36, "aliasDereferencingProblem", "unusable_entry"),
        (17, "undefinedAttributeType", "unknown_user"),
        (16, "noSuchAttribute", "no_password"),
        (48, "inappropriateAuthentication", "no_password"),
    ] {
        let ldap = answers_unknown(code);
        let delay = Duration::from_millis(300);
        let usher = Usher::start(by_template(&ldap.url(), &backend).set("/limits/refusal_delay", "300ms"));
        let mut imap = Imap::tls(usher.imaps_port());
        let wrong = imap.login("alice", "wrong").is("NO [AUTHENTICATIONFAILED]");
        // The second time may be answered from what is remembered: it must sound the same.
        for nth in 1..=2 {
            let asked = Instant::now();
            let unknown = imap.login("unknown", "wrong").is("NO [AUTHENTICATIONFAILED]");
            assert!(asked.elapsed() >= delay, "{code}: {:?}", asked.elapsed());
            assert_eq!(unknown.tagged, wrong.tagged, "{code}");
            let event = usher.nth_login(nth, "unknown");
            assert_eq!(event["result"], result, "{event}");
            assert_eq!(event["directory_result"], name, "{event}");
            assert_eq!(event["directory_message"], "NDS error: no such entry (-601)", "{event}");
        }
        login(&usher, "alice", "alice-secret").ok();
        assert_eq!(usher.metric("usher_logins_total", &[("result", result)]), 2.0);
        assert_eq!(usher.metric("usher_directory_up", &[]), 1.0, "the server is as good as before");
    }
}

/// Entries of 389-DS without a password, and of slapd, by both ways to find them.
#[test]
fn entry_without_a_password_sounds_like_a_wrong_password_on_real_servers() {
    let backend = Scripted::accepting();
    let role = User::new("role", Some("server3"));
    let (dirsrv, slapd) =
        (DirSrv::start(&[("passwordStorageScheme", "CLEAR")], std::slice::from_ref(&role)), Slapd::private());
    slapd.add(&role);
    dirsrv.set(&role, "userPassword", None);
    slapd.set(&role, "userPassword", None);
    // Both answer 49; others answer 16 or 48, as in the test above.
    for url in [dirsrv.url(), slapd.url()] {
        let searched = Config::with_url(&url).scripted(&backend);
        for config in [searched.set("/throttle/exempt", json!(["127.0.0.0/8"])), by_template(&url, &backend)] {
            let usher = Usher::start(config);
            let mut imap = Imap::tls(usher.imaps_port());
            let unknown = imap.login("unknown", "guess").is("NO [AUTHENTICATIONFAILED]");
            let role = imap.login("role", "guess").is("NO [AUTHENTICATIONFAILED]");
            assert_eq!(role.tagged, unknown.tagged);
            let event = usher.login("role");
            assert_eq!(event["result"], "wrong_password", "{event}");
        }
    }
}

/// An alias is logged as what it is, whether a filter finds it or a DN names it, and sounds like a wrong password.
#[test]
fn alias_is_not_followed() {
    let backend = Scripted::accepting();
    let slapd = Slapd::private();
    slapd.modify(&format!(
        "dn: uid=ally,ou=people,dc=example,dc=com\nchangetype: add\nobjectClass: alias\nobjectClass: extensibleObject\n\
         uid: ally\naliasedObjectName: {ALICE}\n"
    ));
    let found = Config::with_directory(&slapd).scripted(&backend).set("/limits/failed_logins", 100);
    let found = found.set("/throttle/exempt", json!(["127.0.0.0/8"]));
    let usher = Usher::start(found.clone());
    let wrong = login(&usher, "alice", "guess").is("NO [AUTHENTICATIONFAILED]");
    // Its target's password opens nothing.
    for (nth, password) in [password_of("alice").as_str(), "guess"].into_iter().enumerate() {
        let refused = login(&usher, "ally", password).is("NO [AUTHENTICATIONFAILED]");
        assert_eq!(refused.tagged.split(' ').next_back(), wrong.tagged.split(' ').next_back());
        let event = usher.nth_login(nth + 1, "ally");
        assert_eq!(event["result"], "unusable_entry", "{event}");
        let fault = format!("it is an alias of {ALICE:?}, and aliases are not followed");
        assert_eq!(event["entry_fault"].as_str(), Some(&*fault), "{event}");
        assert_eq!(event["dn"], "uid=ally,ou=people,dc=example,dc=com", "{event}");
    }
    login(&usher, "alice", &password_of("alice")).ok();
    // By its DN slapd refuses the bind, which shows no more than a wrong password; explain reads the entry.
    let named = found.clone().user_dn("uid={login},ou=people,dc=example,dc=com");
    let usher = Usher::start(named.clone());
    login(&usher, "ally", &password_of("alice")).is("NO [AUTHENTICATIONFAILED]");
    for config in
        [found, named.set("/directory/bind_dn", SERVICE_DN).set("/directory/bind_password_file", "ldap.password")]
    {
        config.write();
        let said = command(&config, &["explain", "ally"], b"");
        for words in ["unusable_entry", "it is an alias of", "(!(objectClass=alias))"] {
            assert!(said.stdout.contains(words), "{words}: {said:#?}");
        }
    }
}

/// A user in 800 groups: `memberOf` as the allow attribute, and asked of the server.
#[test]
fn user_in_hundreds_of_groups_is_allowed_by_one_of_them() {
    let slapd = Slapd::with(Options {
        modules: &["memberof"],
        database: "overlay memberof\nmemberof-group-oc groupOfNames\n",
        ..Options::default()
    });
    let group = |n: usize| format!("cn=group{n},ou=people,dc=example,dc=com");
    let ldif: String = (0..800)
        .map(|n| format!("dn: {}\nchangetype: add\nobjectClass: groupOfNames\nmember: {ALICE}\n\n", group(n)))
        .collect();
    slapd.modify(&ldif);
    let backend = Scripted::accepting();
    let config = Config::with_directory(&slapd).scripted(&backend).set("/throttle/exempt", json!(["127.0.0.0/8"]));
    let by_value = |value: &str| {
        config
            .clone()
            .set("/directory/allow_attribute", "memberOf")
            .set("/directory/allow_values", json!({"imap": [value]}))
    };
    let by_name = |config: Config| config.user_dn("uid={login},ou=people,dc=example,dc=com");
    let filter = config.clone().set("/directory/allow_filter", format!("(memberOf={})", group(799)));
    for allowed in [by_value(&group(799)), by_name(by_value(&group(799))), filter] {
        login(&Usher::start(allowed), "alice", &password_of("alice")).ok();
    }
    let usher = Usher::start(by_value(&group(800)));
    login(&usher, "alice", &password_of("alice")).is("NO [AUTHORIZATIONFAILED]");
    assert_eq!(usher.login("alice")["result"], "not_allowed");
}

/// An entry whose attribute has more values, or longer ones, than usher reads.
#[test]
fn entry_beyond_the_bounds_is_refused_with_its_dn_and_attribute() {
    let backend = Scripted::accepting();
    let slapd = Slapd::private();
    let (groups, long) = (User::new("groups", Some("server3")), User::new("lengthy", Some("server3")));
    for person in [&groups, &long] {
        slapd.add(person);
    }
    let values: String = (0..71).map(|n| format!("description: cn=group{n},ou=groups,dc=example,dc=com\n")).collect();
    slapd.modify(&format!("dn: {}\nchangetype: modify\nadd: description\n{values}", groups.dn()));
    let value = "x".repeat(1_100);
    slapd.modify(&format!(
        "dn: {}\nchangetype: modify\nadd: description\ndescription: imap\ndescription: {value}\n",
        long.dn()
    ));
    let bounded = |config: Config| {
        let config = config.set("/directory/login_attribute", "description").set("/limits/failed_logins", 100);
        config.set("/throttle/exempt", json!(["127.0.0.0/8"]))
    };
    let found = bounded(Config::with_directory(&slapd).scripted(&backend));
    let template = found.clone().user_dn("uid={login},ou=people,dc=example,dc=com");
    for config in [found.clone(), template] {
        let usher = Usher::start(config);
        for (person, fault) in [
            (&groups, "description has more than 64 values"),
            (&long, "description has a value of more than 1024 bytes"),
        ] {
            let uid = person.uid.as_str();
            // Twice each: the refusal is not remembered as a wrong password, nor a wrong password as the refusal.
            for nth in 0..2 {
                login(&usher, uid, &password_of(uid)).is("NO [CONTACTADMIN]");
                let event = usher.nth_login(2 * nth + 1, uid);
                assert_eq!(event["result"], "unusable_entry", "{event}");
                assert_eq!((event["dn"].as_str(), event["entry_fault"].as_str()), (Some(&*person.dn()), Some(fault)));
                assert_eq!(event["by"], "directory", "looked up each time: {event}");
                let unknown = login(&usher, "unknown", &format!("guess {nth}")).is("NO [AUTHENTICATIONFAILED]");
                let wrong = login(&usher, uid, &format!("guess {nth}")).is("NO [AUTHENTICATIONFAILED]");
                assert_eq!(wrong.tagged.split(' ').next_back(), unknown.tagged.split(' ').next_back());
                assert_eq!(usher.nth_login(2 * nth + 2, uid)["result"], "wrong_password");
            }
        }
        assert_eq!(usher.metric("usher_logins_total", &[("result", "unusable_entry")]), 4.0);
        assert_eq!(usher.metric("usher_logins_total", &[("result", "directory_unavailable")]), 0.0);
    }
    // What the commands say.
    found.write();
    let said = command(&found, &["explain", "groups"], b"");
    for words in ["unusable_entry", "description has more than 64 values", &groups.dn()] {
        assert!(said.stdout.contains(words), "{words}: {said:#?}");
    }
    let said = command(&found, &["check", "--connect", "--sample", "groups"], b"");
    assert!(said.stdout.contains("warning  filter") && said.stdout.contains("more than 64 values"), "{said:#?}");

    // Mended, the entry is as good as any.
    let usher = Usher::start(found);
    login(&usher, "groups", &password_of("groups")).is("NO [CONTACTADMIN]");
    slapd.set(&groups, "description", Some("imap"));
    login(&usher, "groups", &password_of("groups")).ok();
}

/// FreeIPA shows each user once more below cn=compat.
#[test]
fn entry_found_twice_is_a_wrong_password_before_the_proof_and_logged_with_both_dns() {
    let compat = "dn: cn=compat,dc=example,dc=com\nobjectClass: nsContainer\ncn: compat\n\n\
                  dn: uid=fiona,cn=compat,dc=example,dc=com\nobjectClass: inetOrgPerson\ncn: fiona\nsn: fiona\nuid: fiona\n\n";
    let compat = compat.replace("nsContainer", "applicationProcess");
    let fiona = User::new("fiona", Some("server3"));
    let slapd = Slapd::with(Options { entries: &format!("{}{compat}", fiona.ldif()), ..Options::default() });
    let backend = Scripted::accepting();
    let config = Config::with_directory(&slapd).scripted(&backend).set("/limits/refusal_delay", "300ms");
    let config = config.set("/directory/filter", "(uid={login})").set("/throttle/exempt", json!(["127.0.0.0/8"]));
    let usher = Usher::start(config.clone().set("/limits/failed_logins", 4));
    let mut imap = Imap::tls(usher.imaps_port());
    let unknown = imap.login("unknown", "guess").is("NO [AUTHENTICATIONFAILED]");
    for password in [&*password_of("fiona"), "guess"] {
        let asked = Instant::now();
        let refused = imap.login("fiona", password).is("NO [AUTHENTICATIONFAILED]");
        assert_eq!(refused.tagged, unknown.tagged);
        assert!(asked.elapsed() >= Duration::from_millis(300));
    }
    let event = usher.login("fiona");
    assert_eq!((&event["result"], &event["level"]), (&json!("several_entries"), &json!("WARN")), "{event}");
    let dns = [event["dn"].as_str().unwrap(), event["other_dn"].as_str().unwrap()];
    assert!(dns.contains(&"uid=fiona,ou=people,dc=example,dc=com"), "{event}");
    assert!(dns.contains(&"uid=fiona,cn=compat,dc=example,dc=com"), "{event}");
    // It counts as a failed login of its connection, as a wrong password does.
    imap.login("fiona", "another").is("NO [AUTHENTICATIONFAILED]");
    imap.rest();

    config.write();
    for words in [&["check", "--connect", "--sample", "fiona"][..], &["explain", "fiona"]] {
        let said = command(&config, words, b"");
        assert!(said.stdout.contains("ou=people") && said.stdout.contains("cn=compat"), "{said:#?}");
    }
    let said = command(&config, &["check", "--connect", "--sample", "fiona"], b"");
    assert!(said.stdout.contains("cn=accounts"), "{said:#?}");
    // Without a sample the first user stands for all.
    let config = config.set("/directory/filter", "(&(sn=fiona)(uid={login}))");
    config.write();
    let said = command(&config, &["check", "--connect"], b"");
    assert!(said.stdout.contains("warning  filter") && said.stdout.contains("finds several entries"), "{said:#?}");
}

/// A domain that shows a principal name twice: the password is proven when that is seen.
#[test]
fn second_entry_after_the_proof_is_permanent() {
    let ldap = ScriptedLdap::start(|_, operation, id, request| match operation {
        Operation::Bind if contains(request, "alice-secret") => Some(ldap_result(id, 0x61, 0)),
        Operation::Bind => Some(ldap_result(id, 0x61, 49)),
        Operation::Search => Some(
            [
                ldap_entry(id, "CN=Alice,DC=ad", &[("userPrincipalName", "Alice@ad.example.com")]),
                ldap_entry(id, "CN=Alice,CN=Old,DC=ad", &[("userPrincipalName", "alice@ad.example.com")]),
                ldap_result(id, 0x65, 0),
            ]
            .concat(),
        ),
        Operation::Other(_) => None,
    });
    let config = by_template(&ldap.url(), &Scripted::accepting()).set("/directory/user_dn", "{local}@ad.example.com");
    let usher = Usher::start(config.set("/directory/base", "dc=ad"));
    login(&usher, "alice", "alice-secret").is("NO [CONTACTADMIN]");
    let event = usher.login("alice");
    assert_eq!(
        (&event["dn"], &event["other_dn"]),
        (&json!("CN=Alice,DC=ad"), &json!("CN=Alice,CN=Old,DC=ad")),
        "{event}"
    );
    login(&usher, "alice", "guess").is("NO [AUTHENTICATIONFAILED]");
    assert_eq!(usher.nth_login(2, "alice")["result"], "wrong_password");
    // No principal name has a comma: no server is asked, and the log says so.
    login(&usher, "o,brien", "guess").is("NO [AUTHENTICATIONFAILED]");
    let event = usher.login("o,brien");
    assert_eq!((&event["by"], &event["result"]), (&json!("usher"), &json!("unknown_user")), "{event}");
    assert_eq!(event["directory_server"], Value::Null, "{event}");
}

#[test]
fn size_limit_of_one_read_is_no_second_entry() {
    let answering = |with_entry: bool| {
        ScriptedLdap::start(move |_, operation, id, _| match operation {
            Operation::Bind => Some(ldap_result(id, 0x61, 0)),
            Operation::Search => {
                let found = if with_entry { ldap_entry(id, ALICE, &[("mailHost", "server3")]) } else { Vec::new() };
                Some([found, ldap_result(id, 0x65, 4)].concat())
            }
            Operation::Other(_) => None,
        })
    };
    let backend = Scripted::accepting();
    // With the entry nothing is missing.
    let ldap = answering(true);
    login(&Usher::start(by_template(&ldap.url(), &backend)), "alice", "alice-secret").ok();
    let ldap = answering(false);
    let usher = Usher::start(by_template(&ldap.url(), &backend));
    login(&usher, "alice", "alice-secret").is("NO [CONTACTADMIN]");
    let event = usher.login("alice");
    assert_eq!((&event["result"], &event["dn"]), (&json!("unusable_entry"), &json!(ALICE)), "{event}");
    assert_eq!(event["entry_fault"], "the read of the entry ended with result 4 (sizeLimitExceeded)", "{event}");
}

/// What a server says about its result is in the log and in what the commands show.
#[test]
fn server_text_is_shown_and_never_a_password() {
    let backend = Scripted::accepting();
    for (code, name, text, advice) in [
        (8, "strongerAuthRequired", "BindSimple: Transport encryption required.\0", "ldaps://"),
        (13, "confidentialityRequired", "TLS confidentiality required", "starttls"),
        (1, "operationsError", "NDS error:\r\nbad password (-222)\u{1b}[31m", ""),
        (53, "unwillingToPerform", "binding alice-hunter2 or service secret is refused", ""),
    ] {
        let ldap = ScriptedLdap::start(move |_, operation, id, _| match operation {
            Operation::Bind => Some(with_text(id, 0x61, code, text)),
            Operation::Search => Some(ldap_result(id, 0x65, 0)),
            Operation::Other(_) => None,
        });
        let shown = match code {
            1 => "NDS error:  bad password (-222) [31m",
            53 => "(text withheld: it repeats the password)",
            _ => text.trim_end_matches('\0'),
        };
        let template = by_template(&ldap.url(), &backend);
        let usher = Usher::start(template.clone());
        login(&usher, "alice", "alice-hunter2").is("NO [UNAVAILABLE]");
        let event = usher.login("alice");
        assert_eq!((&event["directory_result"], &event["directory_message"]), (&json!(name), &json!(shown)), "{event}");
        assert_eq!(event["dn"], ALICE, "{event}");
        let words = format!("bind failed with result {code} ({name}): {shown}");
        usher.wait_log("directory lookup failed", |line| line["reason"].as_str().unwrap().ends_with(&words));
        template.write();
        let said = command(&template, &["explain", "alice", "--password-stdin"], b"alice-hunter2");
        assert!(said.stdout.contains(&words) && said.stdout.contains(advice), "{said:#?}");
        assert!(!format!("{said:?}").contains("hunter2") && !usher.log_text().contains("hunter2"));

        // The service account's bind.
        let config = Config::with_url(&ldap.url()).backend("server3", dovecot().imaps, &["server3"]);
        config.write();
        let said = command(&config, &["check", "--connect"], b"");
        let words = format!("{SERVICE_DN}: refused with result {code} ({name}): {shown}");
        assert!(said.stdout.contains(&words) && said.stdout.contains(advice), "{words}: {said:#?}");
        assert!(!format!("{said:?}").contains("service secret"));
        let said = command(&config, &["explain", "alice"], b"");
        assert!(said.stdout.contains(&format!("result {code} ({name}): {shown}")), "{said:#?}");
    }
}

/// What 389-DS and Active Directory say to an anonymous search.
#[test]
fn server_without_anonymous_access_is_explained_with_the_key_to_set() {
    for (code, name) in [(1, "operationsError"), (48, "inappropriateAuthentication")] {
        let ldap = ScriptedLdap::start(move |_, operation, id, _| match operation {
            Operation::Bind => Some(ldap_result(id, 0x61, 49)),
            Operation::Search => Some(with_text(id, 0x65, code, "a successful bind must be completed")),
            Operation::Other(_) => None,
        });
        let config = Config::with_url(&ldap.url()).backend("server3", dovecot().imaps, &["server3"]);
        let config = config.without("/directory/bind_dn").without("/directory/bind_password_file");
        config.write();
        let said = command(&config, &["check", "--connect"], b"");
        let words = format!("result {code} ({name}): a successful bind must be completed");
        assert!(said.stdout.matches(&words).count() >= 2 && said.stdout.contains("set directory.bind_dn"), "{said:#?}");
    }
}

/// slapd that wants TLS says so with result 13.
#[test]
fn slapd_that_wants_tls_is_explained_with_the_key_to_set() {
    let slapd = Slapd::with(Options { global: "security simple_bind=128\n", ..Options::default() });
    let config = Config::with_url(&slapd.url()).backend("server3", dovecot().imaps, &["server3"]);
    config.write();
    let said = command(&config, &["check", "--connect"], b"");
    for words in ["result 13 (confidentialityRequired)", "directory.starttls"] {
        assert!(said.stdout.contains(words), "{words}: {said:#?}");
    }
}

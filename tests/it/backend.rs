//! The backend leg: only a verified server receives a password, and only its OK is a success.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::kit::certs::Leaf;
use crate::kit::client::Reply;
use crate::kit::dovecot::Dovecot;
use crate::kit::scripted::{GREETING, Peer, Scripted};
use crate::kit::{Config, Imap, Usher, password_of, shared, slapd};

fn usher(backend: &Scripted) -> Usher {
    Usher::start(Config::with_directory(slapd()).scripted(backend).set("/routing/backends/0/timeout", "1500ms"))
}

/// Logs alice in and expects this reply within the backend's timeout and a usable connection.
fn login(usher: &Usher, beginning: &str) -> (Imap, Reply) {
    let mut imap = Imap::tls(usher.imaps_port());
    let asked = Instant::now();
    let reply = imap.login("alice", &password_of("alice")).is(beginning);
    assert!(asked.elapsed() < Duration::from_secs(4), "answered after {:?}", asked.elapsed());
    if beginning.starts_with("NO") {
        imap.command("NOOP").ok();
    }
    (imap, reply)
}

/// A fault that makes this backend unavailable, with this result and counter.
fn fault(result: &str, counter: &str, backend: &Scripted) -> Usher {
    let usher = usher(backend);
    login(&usher, "NO [UNAVAILABLE]");
    let event = usher.login("alice");
    assert_eq!(event["result"], result, "{event}\n{}", backend.transcript());
    let labels = [("backend", "server3"), ("result", counter)];
    assert_eq!(usher.metric("usher_backend_logins_total", &labels), 1.0, "{counter}");
    usher
}

#[test]
fn backend_with_a_wrong_chain_name_or_date_receives_no_password() {
    let certificates = &shared().certificates;
    let name = ["server3.example.com"];
    let pairs = [
        certificates.leaf("backend-wrong-ca", Leaf { wrong_ca: true, ..Leaf::server(&name) }),
        certificates.leaf("backend-wrong-name", Leaf::server(&["server4.example.com"])),
        certificates.leaf("backend-expired", Leaf { expired: true, ..Leaf::server(&name) }),
        certificates.leaf("backend-client", Leaf { client: true, ..Leaf::server(&name) }),
    ];
    for pair in pairs {
        let backend = Scripted::tls_as(&pair, |_| panic!("the handshake must not succeed"));
        fault("backend_tls", "tls", &backend);
        assert!(backend.connections() > 0 && !backend.transcript().contains("C:"), "{}", backend.transcript());
    }
}

#[test]
fn pin_replaces_only_the_chain_verification() {
    let certificates = &shared().certificates;
    let pair =
        certificates.leaf("pinned", Leaf { wrong_ca: true, expired: true, ..Leaf::server(&["old.example.net"]) });
    let backend = Scripted::tls_as(&pair, |peer| {
        peer.send(GREETING);
        peer.accept_login();
        peer.reply_to_everything();
    });
    let config = Config::with_directory(slapd()).scripted(&backend).without("/routing/backends/0/ca");
    let usher = Usher::start(config.clone().set("/routing/backends/0/pin_sha256", pair.pin.as_str()));
    login(&usher, "OK");
    let other = Usher::start(config.set("/routing/backends/0/pin_sha256", json!([shared().server3.pin])));
    login(&other, "NO [UNAVAILABLE]");
    assert_eq!(other.login("alice")["result"], "backend_tls");
}

#[test]
fn client_certificate_is_presented_to_a_backend_that_requests_it() {
    let certificates = &shared().certificates;
    let dovecot = Dovecot::start(certificates, &shared().server3, true);
    let config = Config::with_directory(slapd()).backend("server3", dovecot.imaps, &["server3"]);
    // Dovecot completes the handshake and reports the missing certificate at the login.
    let usher = Usher::start(config.clone());
    login(&usher, "NO [");
    assert_eq!(usher.login("alice")["result"], "backend_rejected");
    let pair = certificates.leaf("backend-client-good", Leaf { client: true, ..Leaf::server(&["usher"]) });
    let usher = Usher::start(config.set("/routing/backends/0/client_certificate", pair.yaml()));
    let (mut imap, _) = login(&usher, "OK");
    let said = imap.command("ID NIL").ok();
    assert!(said.untagged[0].contains("server3"), "{said:?}");
}

#[test]
fn configured_server_name_is_sent_and_the_tls_session_resumed() {
    let (sender, handshakes) = std::sync::mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let backend = Scripted::tls(move |peer| {
        let _ = sender.lock().unwrap().send((peer.server_name.clone(), peer.resumed));
        peer.send(GREETING);
        peer.accept_login();
        peer.reply_to_everything();
    });
    let usher = usher(&backend);
    for resumed in [false, true] {
        let (mut imap, _) = login(&usher, "OK");
        imap.command("NOOP").ok();
        assert_eq!(handshakes.recv().unwrap(), (Some("server3.example.com".into()), resumed));
    }
}

#[test]
fn down_backend_affects_only_its_users_and_recovers() {
    let mut dovecot = Dovecot::start(&shared().certificates, &shared().server3, false);
    let config = Config::with_directory(slapd()).backend("server3", dovecot.imaps, &["server3"]);
    let usher = Usher::start(config.backend("server4", crate::kit::cyrus().imaps, &["server4.example.com"]));
    login(&usher, "OK");
    dovecot.stop();
    let (mut imap, _) = login(&usher, "NO [UNAVAILABLE]");
    assert_eq!(usher.nth_login(2, "alice")["result"], "backend_unreachable");
    Imap::tls(usher.imaps_port()).login("bob", &password_of("bob")).ok();
    dovecot.start_again();
    imap.login("alice", &password_of("alice")).ok();
    assert_eq!(usher.metric("usher_backend_logins_total", &[("result", "unreachable")]), 1.0);
}

#[test]
fn silent_backend_times_out_at_every_step() {
    let steps: [fn(&mut Peer); 4] = [
        |peer| peer.wait_for_end(),
        |peer| {
            peer.send("* OK [CAPABILITY IMAP4rev1 ");
            peer.wait_for_end();
        },
        |peer| {
            peer.send(GREETING);
            peer.wait_for_end();
        },
        |peer| {
            peer.send(GREETING);
            peer.take_login();
            peer.send("* OK still thinking\r\n");
            peer.wait_for_end();
        },
    ];
    for script in steps {
        fault("backend_timeout", "timeout", &Scripted::tls(script));
    }
    // A port that accepts and never answers the TLS handshake.
    fault("backend_timeout", "timeout", &Scripted::plain(Peer::wait_for_end));
}

#[test]
fn bye_or_close_is_an_unavailable_backend() {
    let scripts: [fn(&mut Peer); 4] = [
        |peer| {
            peer.send("* BYE too busy\r\n");
        },
        |_| {},
        |peer| {
            peer.send(GREETING);
            peer.take_login();
        },
        |peer| {
            peer.send(GREETING);
            let tag = peer.take_login().unwrap_or_default();
            peer.send(format!("* BYE shutting down\r\n{tag} NO sorry\r\n"));
        },
    ];
    for script in scripts {
        fault("backend_unreachable", "unreachable", &Scripted::tls(script));
    }
}

#[test]
fn replies_other_than_ok_are_never_success() {
    let answers: [fn(&str) -> String; 10] = [
        |tag| format!("{tag} OKAY [CAPABILITY IMAP4rev1] welcome\r\n"),
        |tag| format!("{tag} BAD [CAPABILITY IMAP4rev1] what\r\n"),
        |tag| format!("{tag}x OK [CAPABILITY IMAP4rev1] other tag\r\n"),
        |_| "* OK untagged\r\nA999 OK [CAPABILITY IMAP4rev1] foreign tag\r\n".into(),
        |tag| format!("{tag}OK no space\r\n"),
        |tag| format!("{tag} \0OK\r\n"),
        |tag| format!("{tag} PREAUTH [CAPABILITY IMAP4rev1] welcome\r\n"),
        |_| "OK [CAPABILITY IMAP4rev1] no tag\r\n".into(),
        |_| "HTTP/1.1 200 OK\r\n\r\n".into(),
        |_| "+ OK\r\n+ OK\r\n+ OK\r\n".into(),
    ];
    for answer in answers {
        let backend = Scripted::tls(move |peer| {
            peer.send(GREETING);
            if let Some(tag) = peer.take_login() {
                peer.send(answer(&tag));
                // A proxy that accepted it as success would find a working session.
                peer.reply_to_everything();
            }
        });
        let usher = usher(&backend);
        login(&usher, "NO [UNAVAILABLE]");
        let result = usher.login("alice")["result"].as_str().unwrap().to_owned();
        assert!(["backend_fault", "backend_timeout"].contains(&result.as_str()), "{result}: {}", backend.transcript());
    }
}

#[test]
fn preauth_is_refused_before_the_password() {
    let backend = Scripted::tls(|peer| {
        peer.send("* PREAUTH [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] come in\r\n");
        peer.wait_for_end();
    });
    fault("backend_fault", "unreachable", &backend);
    assert!(!backend.transcript().contains("AUTHENTICATE"), "{}", backend.transcript());
}

#[test]
fn login_is_never_sent_under_logindisabled() {
    let backend = Scripted::tls(|peer| {
        peer.send("* OK [CAPABILITY IMAP4rev1 LOGINDISABLED] no login here\r\n");
        while let Some((tag, command)) = peer.command() {
            assert!(!command.contains("alice"), "{command}");
            peer.send(format!("* CAPABILITY IMAP4rev1 LOGINDISABLED\r\n{tag} OK done\r\n"));
        }
    });
    fault("backend_fault", "unreachable", &backend);
}

#[test]
fn untagged_lines_are_limited() {
    let scripts: [fn(&mut Peer); 3] = [
        |peer| {
            peer.send(GREETING);
            peer.take_login();
            while peer.send("* OK and another thing\r\n".repeat(1_000)) {}
        },
        |peer| while peer.send("x".repeat(100_000)) {},
        |peer| {
            peer.send(GREETING);
            peer.take_login();
            peer.send("* LIST {999999999}\r\n");
            while peer.send("x".repeat(100_000)) {}
        },
    ];
    for script in scripts {
        let usher = fault("backend_fault", "unreachable", &Scripted::tls(script));
        let resident = usher.resident_kib();
        assert!(resident < 200 * 1024, "{resident} KiB");
    }
}

#[test]
fn starttls_must_be_offered_and_bytes_after_it_are_refused() {
    let scripts: [fn(&mut Peer); 4] = [
        // Not offered.
        |peer| {
            peer.send("* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] clear\r\n");
            peer.take_login();
        },
        // Refused.
        |peer| {
            peer.send("* OK [CAPABILITY IMAP4rev1 STARTTLS SASL-IR AUTH=PLAIN] hello\r\n");
            if let Some((tag, _)) = peer.command() {
                peer.send(format!("{tag} NO not today\r\n"));
            }
            peer.take_login();
        },
        // Answered together with plaintext that would count as received under TLS.
        |peer| {
            peer.send("* OK [CAPABILITY IMAP4rev1 STARTTLS] hello\r\n");
            if let Some((tag, _)) = peer.command() {
                peer.send(format!("{tag} OK go\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\nA2 OK welcome\r\n"));
            }
            if peer.start_tls() {
                peer.take_login();
            }
        },
        // The known downgrade attack.
        |peer| {
            peer.send("* PREAUTH [CAPABILITY IMAP4rev1 STARTTLS] come in\r\n");
            peer.take_login();
        },
    ];
    for script in scripts {
        let backend = Scripted::plain(script);
        let config = Config::with_directory(slapd()).scripted(&backend).set("/routing/backends/0/imap/tls", "starttls");
        let usher = Usher::start(config.set("/routing/backends/0/timeout", "1500ms"));
        login(&usher, "NO [UNAVAILABLE]");
        let said = backend.transcript();
        assert!(!said.contains("AUTHENTICATE") && !said.contains("LOGIN "), "{said}");
    }
}

#[test]
fn capabilities_are_requested_again_after_starttls() {
    // Before TLS it advertises wrong capabilities; under TLS it has no SASL-IR.
    let backend = Scripted::plain(|peer| {
        peer.send("* OK [CAPABILITY IMAP4rev1 STARTTLS SASL-IR AUTH=PLAIN] hello\r\n");
        let Some((tag, command)) = peer.command() else { return };
        assert_eq!(command, "STARTTLS");
        peer.send(format!("{tag} OK go\r\n"));
        if !peer.start_tls() {
            return;
        }
        let Some((tag, command)) = peer.command() else { return };
        assert_eq!(command, "CAPABILITY");
        peer.send(format!("* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n{tag} OK done\r\n"));
        peer.accept_login();
        peer.reply_to_everything();
    });
    let config = Config::with_directory(slapd()).scripted(&backend).set("/routing/backends/0/imap/tls", "starttls");
    let usher = Usher::start(config);
    login(&usher, "OK");
    assert!(backend.transcript().contains("AUTHENTICATE PLAIN\\r\\n"), "{}", backend.transcript());
}

#[test]
fn cleartext_backend_requires_explicit_configuration() {
    let backend = Scripted::plain(|peer| {
        peer.send(GREETING);
        peer.accept_login();
        peer.reply_to_everything();
    });
    let config = Config::with_directory(slapd()).scripted(&backend);
    login(&Usher::start(config.clone().set("/routing/backends/0/imap/tls", "plaintext-insecure")), "OK");
    login(&Usher::start(config.set("/routing/backends/0/timeout", "500ms")), "NO [UNAVAILABLE]");
}

#[test]
fn login_command_is_used_without_plain_and_keeps_every_byte() {
    let backend = Scripted::tls(|peer| {
        peer.send("* OK [CAPABILITY IMAP4rev1] old\r\n");
        peer.accept_login();
        peer.reply_to_everything();
    });
    let usher = usher(&backend);
    for uid in ["alice", "gruen", "space"] {
        Imap::tls(usher.imaps_port()).authenticate("", uid, password_of(uid).as_bytes()).ok();
        let login = backend.next_login();
        let (name, password) = login.split_once(' ').unwrap();
        let unquoted = |text: &str| text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).map(str::to_owned);
        assert_eq!(unquoted(name).unwrap_or(name.into()), uid);
        assert_eq!(unquoted(password).unwrap_or(password.into()), password_of(uid));
    }
}

#[test]
fn greetings_and_replies_are_accepted_byte_by_byte() {
    let backend = Scripted::tls(|peer| {
        for byte in GREETING.bytes() {
            peer.send([byte]);
        }
        let Some(tag) = peer.take_login() else { return };
        for byte in format!("* OK hello\r\n{tag} OK [CAPABILITY IMAP4rev1] welcome\r\n").bytes() {
            peer.send([byte]);
        }
        peer.reply_to_everything();
    });
    let usher = usher(&backend);
    let (mut imap, reply) = login(&usher, "OK [CAPABILITY IMAP4rev1] welcome");
    assert_eq!(reply.untagged, ["* OK hello"]);
    imap.command("NOOP").is("OK did NOOP");
}

#[test]
fn untagged_lines_reach_the_client_in_order_before_the_tagged_reply() {
    let backend = Scripted::tls(|peer| {
        peer.send(GREETING);
        let Some(tag) = peer.take_login() else { return };
        peer.send(format!(
            "* OK [ALERT] disk full\r\n* LIST () \"/\" {{5}}\r\nIN\r\nX\r\n* OK [X] third\r\n\
             {tag} OK [CAPABILITY IMAP4rev1 UNAUTHENTICATE IDLE] User logged in SESSIONID=<s-1>\r\n* 1 EXISTS\r\n"
        ));
        peer.reply_to_everything();
    });
    let usher = usher(&backend);
    let (mut imap, reply) = login(&usher, "OK [CAPABILITY IMAP4rev1 IDLE] User logged in SESSIONID=<s-1>");
    assert_eq!(reply.untagged, ["* OK [ALERT] disk full", "* LIST () \"/\" {5}IN\r\nX", "* OK [X] third"]);
    assert_eq!(imap.line(), "* 1 EXISTS", "what came behind the OK follows it");
}

#[test]
fn capabilities_before_the_ok_are_filtered_and_none_are_requested() {
    for (line, reply) in [
        ("", "OK welcome"),
        ("* CAPABILITY IMAP4rev1 MOVE UNAUTHENTICATE\r\n", "OK [CAPABILITY IMAP4rev1 MOVE] welcome"),
    ] {
        let backend = Scripted::tls(move |peer| {
            peer.send(GREETING);
            let Some(tag) = peer.take_login() else { return };
            peer.send(format!("{line}{tag} OK welcome\r\n"));
            peer.reply_to_everything();
        });
        let usher = usher(&backend);
        let (mut imap, _) = login(&usher, reply);
        imap.command("CAPABILITY").is("OK did CAPABILITY");
        assert!(!backend.transcript().contains("\"u2 "), "{}", backend.transcript());
    }
}

/// alice's password is valid in the directory, and the backend replies with this.
fn disagreement(answer: &'static str, pass: bool) -> String {
    let backend = Scripted::tls(move |peer| {
        peer.send(GREETING);
        if let Some(tag) = peer.take_login() {
            peer.send(format!("{tag} NO {answer}\r\n"));
            peer.reply_to_everything();
        }
    });
    let config = Config::with_directory(slapd()).scripted(&backend);
    let usher = Usher::start(config.set("/routing/backends/0/pass_backend_refusals", pass));
    let (_, reply) = login(&usher, "NO [");
    let event = usher.login("alice");
    assert_eq!(event["result"], "backend_rejected", "{event}");
    let said = event["backend_reply"].as_str().unwrap_or_default();
    assert!(said.contains(answer.rsplit(']').next().unwrap().trim()), "the log has the text of the backend: {event}");
    assert_eq!(usher.metric("usher_backend_logins_total", &[("result", "backend_rejected")]), 1.0);
    let session = format!(" (session {})", event["session"].as_str().unwrap());
    reply.tagged.strip_suffix(&session).expect("the session is named").to_owned()
}

#[test]
fn backend_rejection_is_not_a_wrong_password() {
    assert_eq!(
        disagreement("[AUTHENTICATIONFAILED] Authentication failed.", true),
        "NO [UNAVAILABLE] Authentication failed."
    );
    assert_eq!(disagreement("Login failed: over quota", true), "NO [UNAVAILABLE] Login failed: over quota");
    assert_eq!(disagreement("[LIMIT] Too many sessions", true), "NO [LIMIT] Too many sessions");
    assert_eq!(disagreement("[INUSE] Come back later", true), "NO [INUSE] Come back later");
    let own = disagreement("[LIMIT] Too many sessions", false);
    assert!(own.starts_with("NO [UNAVAILABLE]") && !own.contains("Too many"), "{own}");
}

#[test]
fn referral_is_neither_followed_nor_forwarded() {
    let backend = Scripted::tls(|peer| {
        peer.send(GREETING);
        if let Some(tag) = peer.take_login() {
            peer.send(format!("{tag} NO [REFERRAL imap://alice@inner.example.com/] go there\r\n"));
            peer.wait_for_end();
        }
    });
    let (_, reply) = login(&usher(&backend), "NO [UNAVAILABLE]");
    assert!(!reply.tagged.contains("inner"), "{reply:?}");
}

#[test]
fn client_that_disconnects_during_the_backend_login_frees_the_connection() {
    let (sender, ended) = std::sync::mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let backend = Scripted::tls(move |peer| {
        peer.send(GREETING);
        peer.take_login();
        peer.wait_for_end();
        let _ = sender.lock().unwrap().send(());
    });
    let config = Config::with_directory(slapd()).scripted(&backend).set("/routing/backends/0/timeout", "4s");
    let usher = Usher::start(config);
    let mut imap = Imap::tls(usher.imaps_port());
    imap.send(format!("a LOGIN alice {}\r\n", password_of("alice")));
    backend.next_login();
    imap.reset();
    ended.recv_timeout(Duration::from_secs(10)).expect("the backend connection is freed");
    usher.wait_metric("usher_connections", &[], 0.0);
}

#[test]
fn cyrus_greeting_waits_for_no_delayed_acknowledgement() {
    // Linux delays one by at least 40 ms (TCP_DELACK_MIN): one faster login proves that it did not.
    let usher = Usher::start(Config::shared());
    for _ in 0..8 {
        let mut imap = Imap::tls(usher.imaps_port());
        imap.login("bob", &password_of("bob")).ok();
        imap.command("LOGOUT").ok();
    }
    let connecting = |line: &serde_json::Value| line["backend_connect_ms"].as_f64();
    let quickest = usher.logged().iter().filter_map(connecting).fold(f64::INFINITY, f64::min);
    assert!(quickest < 40.0, "{quickest} ms");
}

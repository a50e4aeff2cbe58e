//! Tickets under keys from a file: which sessions resume, and which files are refused.

use std::os::unix::fs::PermissionsExt as _;

use rustls::version;

use super::serving::{mail_client, twice};
use super::*;

/// 48 equal bytes in base64.
fn line(byte: u8) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode([byte; 48])
}

/// A server like on another machine, with these keys.
fn machine(desk: &Desk, keys: &[u8], edit: impl FnOnce(&mut Tls)) -> ServerTls {
    let mut tls = settings(vec![desk.files("one")]);
    let lines: Vec<String> = keys.iter().map(|byte| line(*byte) + "\n").collect();
    tls.ticket_keys_file = Some(desk.write("ticket.keys", &lines.concat()));
    edit(&mut tls);
    ServerTls::from_settings(&tls).unwrap()
}

fn desk() -> Desk {
    let desk = Desk::new();
    desk.ecdsa("one", &["mail.example.com"]);
    desk
}

#[tokio::test]
async fn session_resumes_at_every_server_with_its_key() {
    let desk = desk();
    for version in [&version::TLS13, &version::TLS12] {
        let between = async |first: &[u8], second: &[u8]| {
            let (first, second) = (machine(&desk, first, |_| ()), machine(&desk, second, |_| ()));
            let client = Arc::new(mail_client(&desk, rustls::crypto::aws_lc_rs::default_provider(), &[version]));
            twice(&first.common_acceptor(imap()), &second.common_acceptor(imap()), &client).await
        };
        assert_eq!(between(&[1], &[1]).await, (true, true), "{version:?}");
        assert_eq!(between(&[1, 2, 3], &[2, 3, 4]).await, (true, true), "the new file comes");
        assert_eq!(between(&[2, 3, 4], &[1, 2, 3]).await, (true, true), "but not everywhere at once");
        assert_eq!(between(&[1, 2, 3], &[3, 4, 5]).await, (false, false), "its key is gone");
        assert_eq!(between(&[1], &[2]).await, (false, false));
    }
}

#[tokio::test]
async fn sessions_do_not_resume_under_other_settings() {
    let desk = desk();
    let plain = machine(&desk, &[1], |_| ());
    let asks = |required| {
        machine(&desk, &[1], |tls| {
            tls.client_ca = Some(desk.ca_file());
            tls.client_auth = if required { ClientAuth::Required } else { ClientAuth::Optional };
        })
    };
    let (optional, required) = (asks(false), asks(true));
    let stranger = Desk::named("Other CA");
    let elsewhere = machine(&desk, &[1], |tls| tls.client_ca = Some(stranger.ca_file()));
    let modern = machine(&desk, &[1], |tls| tls.min_version = TlsVersion::V1_3);
    let hybrid = machine(&desk, &[1], |tls| tls.groups.truncate(1));
    let client = || Arc::new(mail_client(&desk, rustls::crypto::aws_lc_rs::default_provider(), &[&version::TLS13]));
    let imap = imap();
    for (name, other) in [("optional", &optional), ("elsewhere", &elsewhere), ("modern", &modern), ("hybrid", &hybrid)]
    {
        let resumed = twice(&plain.common_acceptor(imap), &other.common_acceptor(imap), &client()).await;
        assert_eq!(resumed, (false, false), "{name}");
    }
    let pop3 = Protocol { name: "pop3", alpn: None, ..*imap };
    assert_eq!(twice(&plain.common_acceptor(imap), &plain.common_acceptor(&pop3), &client()).await, (false, false));
    // Without a certificate at first, and then where one is required: no ticket helps.
    let client = client();
    twice(&optional.common_acceptor(imap), &optional.common_acceptor(imap), &client).await;
    let (_near, far) = shake(&required.common_acceptor(imap), &client, "mail.example.com").await;
    assert!(far.is_err());
}

#[test]
fn files_without_keys_are_refused_with_file_and_line() {
    let desk = desk();
    let refused = |content: &str| {
        let mut tls = settings(vec![desk.files("one")]);
        tls.ticket_keys_file = Some(desk.write("ticket.keys", content));
        let [text] = &words(&ServerTls::from_settings(&tls).unwrap_err())[..] else { panic!("not one mistake") };
        let file = desk.path("ticket.keys").display().to_string();
        text.replace(&file, "FILE").strip_prefix("tls.ticket_keys_file: ").unwrap().to_owned()
    };
    let one = line(1);
    let malformed = "write 48 random bytes in base64, as `openssl rand -base64 48` prints them";
    assert_eq!(refused("\n\n"), "FILE holds no key: write one with `openssl rand -base64 48`");
    for bad in ["secret", &one[..60], &format!("{one}AAAA"), &format!("{}=", &one[..63]), "# a comment", "\u{e9}"] {
        assert_eq!(refused(&format!("{one}\n\n{bad}\n")), format!("line 3 of FILE: {malformed}"), "{bad}");
    }
    assert_eq!(refused(&format!("{one}\n{}\n{one}\n", line(2))), "line 3 of FILE: it repeats line 1: remove one");
    let many: Vec<String> = (0..9).map(|byte| line(byte) + "\n").collect();
    assert!(refused(&many.concat()).starts_with("line 9 of FILE: more than 8 keys: remove the first"));
    let marked = refused(&format!("\u{feff}{one}\n"));
    assert!(marked.starts_with("line 1 of FILE: the file begins with a byte order mark"), "{marked}");
    let wide: String = one.chars().flat_map(|c| [c, '\0']).collect();
    assert!(refused(&wide).starts_with("line 1 of FILE: the file is UTF-16 text"), "{}", refused(&wide));
    assert!(refused(&"A".repeat(5 << 20)).contains("larger than 4 MiB"));

    let mut tls = settings(vec![desk.files("one")]);
    tls.ticket_keys_file = Some(desk.write("ticket.keys", &one));
    std::fs::set_permissions(desk.path("ticket.keys"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let text = words(&ServerTls::from_settings(&tls).unwrap_err());
    assert!(text[0].contains("mode 0644") && text[0].contains("run `chmod 640"), "{text:?}");
    tls.ticket_keys_file = Some(desk.path("absent"));
    let text = words(&ServerTls::from_settings(&tls).unwrap_err());
    assert!(text[0].starts_with("tls.ticket_keys_file: cannot read"), "{text:?}");
}

#[test]
fn keys_and_tickets_are_never_shown() {
    let desk = desk();
    let shown = format!("{:?}", machine(&desk, &[1, 2], |_| ()));
    assert!(shown.contains("KeyLines(2)") && !shown.contains("1, 1, 1, 1"), "{shown}");
}

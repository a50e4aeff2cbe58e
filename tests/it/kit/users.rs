//! The users of the directory and the mail servers.

use base64::Engine as _;

/// The suffix of the test directory.
pub(crate) const SUFFIX: &str = "dc=example,dc=com";
/// The service account's DN; its password is [`SERVICE_PASSWORD`].
pub(crate) const SERVICE_DN: &str = "cn=usher,ou=services,dc=example,dc=com";
/// The service account's password at the directory, and that of `usher` at the mail servers.
pub(crate) const SERVICE_PASSWORD: &str = "service secret";
/// A name that must be escaped in filters and DNs.
pub(crate) const METACHARACTERS: &str = r#"o*neil(x)\,+"<>;=#y"#;

/// A user.
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(crate) uid: String,
    pub(crate) password: String,
    pub(crate) ou: &'static str,
    pub(crate) mail_host: Option<&'static str>,
    pub(crate) mails: &'static [&'static str],
    /// Values of `host`, which unlike mailHost allows several.
    pub(crate) hosts: &'static [&'static str],
}

impl User {
    /// A user whose password is [`password_of`] the name.
    pub(crate) fn new(uid: &str, mail_host: Option<&'static str>) -> Self {
        let password = password_of(uid);
        Self { uid: uid.into(), password, ou: "people", mail_host, mails: &[], hosts: &[] }
    }

    /// The DN, escaped by RFC 4514 with hexadecimal pairs only.
    pub(crate) fn dn(&self) -> String {
        let mut dn = String::from("uid=");
        for byte in self.uid.bytes() {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'.' => dn.push(char::from(byte)),
                other => dn.push_str(&format!("\\{other:02x}")),
            }
        }
        format!("{dn},ou={},{SUFFIX}", self.ou)
    }

    /// The entry as LDIF.
    pub(crate) fn ldif(&self) -> String {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let mut ldif =
            format!("dn:: {}\nobjectClass: inetOrgPerson\nobjectClass: extensibleObject\n", encode(&self.dn()));
        ldif.push_str(&format!("cn:: {0}\nsn:: {0}\nuid:: {0}\n", encode(&self.uid)));
        ldif.push_str(&format!("userPassword:: {}\n", encode(&self.password)));
        for (attribute, values) in [("mail", self.mails), ("host", self.hosts)] {
            for value in values {
                ldif.push_str(&format!("{attribute}: {value}\n"));
            }
        }
        if let Some(value) = self.mail_host {
            ldif.push_str(&format!("mailHost: {value}\n"));
        }
        ldif.push('\n');
        ldif
    }
}

/// The default password of a user.
pub(crate) fn password_of(uid: &str) -> String {
    match uid {
        "gruen" => "pässwörd €ж \u{1f511}".into(),
        "long" => "0123456789".repeat(100),
        "quote" => r#"say \"friend\" {5} * % ( and enter"#.into(),
        "space" => "  two before, one behind ".into(),
        // Searched for in memory: it must not occur there by chance.
        _ if uid.starts_with("mem") => format!("{uid}Kq8vT3xZb7Lw2Nf9Rj4Hs6Dp1Gy5Mc0Wa8{uid}"),
        _ => format!("{uid}-secret"),
    }
}

/// All users. Tests that change mailboxes use a user of their own.
pub(crate) fn all_users() -> Vec<User> {
    let on3 = ["alice", "anna", "sync3", "big3", "bytes3", "gruen", "long", "quote", "space", "post3", METACHARACTERS];
    let on3 = on3.into_iter().chain(["memimap3", "memtrace3", "mempop3", "memsend3", "memsieve3"]);
    let on4 = ["bob", "ben", "sync4", "big4", "post4", "memimap4", "mempop4", "memsieve4"];
    let mut users: Vec<User> = on3.map(|uid| User::new(uid, Some("server3"))).collect();
    users.extend(on4.iter().map(|uid| User::new(uid, Some("Server4.Example.COM."))));
    users[0].mails = &["alice@example.com", "a.liddell@example.com"];
    users.push(User::new("carol", None));
    users.push(User::new("dave", Some("server9")));
    users.push(User { hosts: &["server3", "server4"], ..User::new("erin", None) });
    users.push(User { hosts: &["server3", "SERVER3.example.com."], ..User::new("frank", None) });
    users.push(User { mails: &["twin@example.com"], ..User::new("castor", Some("server3")) });
    users.push(User { mails: &["twin@example.com"], ..User::new("pollux", Some("server4")) });
    // ou=open is readable without a bind; ou=closed by root only, not even by its users.
    users.push(User { ou: "open", ..User::new("olga", Some("server3")) });
    users.push(User { ou: "closed", ..User::new("clara", Some("server3")) });
    users
}

//! Common mail clients: curl, Python's libraries, mbsync, fetchmail, mpop and sieve-connect.

use super::process::{Output, folder, run};
use super::{password_of, shared};

/// curl on an IMAP URL of this port, as this user.
pub(crate) fn curl(port: u16, uid: &str, path: &str, arguments: &[&str]) -> Output {
    curl_url(&format!("imaps://127.0.0.1:{port}/{path}"), uid, arguments)
}

/// curl on any URL, as this user.
pub(crate) fn curl_url(url: &str, uid: &str, arguments: &[&str]) -> Output {
    let ca = shared().certificates.ca().display().to_string();
    let user = format!("{uid}:{}", password_of(uid));
    let fixed = ["-sS", "--max-time", "45", "--cacert", &ca, "-u", &user, url];
    run("curl", &[&fixed, arguments].concat(), b"")
}

/// A Python script with `connection`, an `imaplib.IMAP4_SSL` before login, and `port` and `ca`.
pub(crate) fn imaplib(port: u16, script: &str) -> Output {
    let ca = shared().certificates.ca().display().to_string();
    let head = format!(
        "import imaplib, ssl\nport, ca = {port}, {ca:?}\ncontext = ssl.create_default_context(cafile=ca)\n\
         connection = imaplib.IMAP4_SSL('localhost', port, ssl_context=context, timeout=40)\n"
    );
    run("python3", &["-c", &(head + script)], b"")
}

/// A Python script with `port` and a `context` for TLS.
pub(crate) fn python(port: u16, script: &str) -> Output {
    let ca = shared().certificates.ca().display().to_string();
    let head = format!("import ssl\nport = {port}\ncontext = ssl.create_default_context(cafile={ca:?})\n");
    run("python3", &["-c", &(head + script)], b"")
}

/// Fetches all mail of a user over POP3 with this client and returns the messages.
pub(crate) fn fetch(client: &str, port: u16, uid: &str) -> Vec<String> {
    let folder = folder(client);
    let path = |name: &str| folder.join(name).display().to_string();
    let (password, ca) = (password_of(uid), shared().certificates.ca().display().to_string());
    for name in ["mail", "mail/new", "mail/cur", "mail/tmp"] {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    let deliver = format!("cat > {}/$$", path("mail/new"));
    let (config, arguments) = match client {
        "fetchmail" => (
            format!(
                "poll localhost service {port} protocol pop3 timeout 40 user \"{uid}\" password \"{password}\" \
                 ssl sslcertck sslcertfile \"{ca}\" fetchall keep mda \"{deliver}\"\n"
            ),
            vec!["--nodetach".into(), "--nosyslog".into(), "-f".into(), path("config"), "-i".into(), path("ids")],
        ),
        "mpop" => (
            format!(
                "account default\nhost localhost\nport {port}\nuser {uid}\npassword {password}\ntls on\n\
                 tls_starttls off\ntls_trust_file {ca}\ntimeout 40\nkeep on\ndelivery maildir {}\nuidls_file {}\n",
                path("mail"),
                path("ids")
            ),
            vec!["-C".into(), path("config")],
        ),
        other => panic!("unknown client {other}"),
    };
    super::process::write_secret(&folder.join("config"), config);
    let home = format!("HOME={}", path(""));
    let head = [home.as_str(), client];
    run("env", &head.into_iter().chain(arguments.iter().map(String::as_str)).collect::<Vec<_>>(), b"").succeeded();
    let files = std::fs::read_dir(folder.join("mail/new")).unwrap();
    files.map(|file| super::process::read_text(&file.unwrap().path())).collect()
}

/// sieve-connect on a port with STARTTLS, as this user.
pub(crate) fn sieve_connect(port: u16, uid: &str, password: &str, arguments: &[&str]) -> Output {
    let (port, ca) = (port.to_string(), shared().certificates.ca().display().to_string());
    let fixed = ["--server", "localhost", "--port", &port, "--user", uid, "--passwordfd", "0", "--tlscafile", &ca];
    run("sieve-connect", &[&fixed, arguments].concat(), format!("{password}\n").as_bytes())
}

/// A local Maildir that mbsync synchronizes with the INBOX of a user.
pub(crate) struct Mbsync {
    folder: std::path::PathBuf,
}

impl Mbsync {
    /// A configuration for this port.
    pub(crate) fn new(port: u16, uid: &str) -> Self {
        Self::with(port, uid, &format!("Pass \"{}\"", password_of(uid)))
    }

    /// As [`Mbsync::new`], with a token in place of a password.
    pub(crate) fn with_token(port: u16, uid: &str, token: &str) -> Self {
        Self::with(port, uid, &format!("AuthMechs XOAUTH2\nPass \"{token}\""))
    }

    fn with(port: u16, uid: &str, credential: &str) -> Self {
        let folder = folder("mbsync");
        let config = format!(
            "IMAPAccount usher\nHost localhost\nPort {port}\nUser {uid}\n{credential}\nSSLType IMAPS\n\
             CertificateFile {ca}\nTimeout 40\n\nIMAPStore far\nAccount usher\n\n\
             MaildirStore near\nPath {folder}/\nInbox {folder}/INBOX\n\n\
             Channel all\nFar :far:\nNear :near:\nPatterns INBOX\nCreate Near\nSync All\nExpunge Both\nSyncState *\n",
            ca = shared().certificates.ca().display(),
            folder = folder.display(),
        );
        std::fs::write(folder.join("mbsyncrc"), config).unwrap();
        Self { folder }
    }

    /// Synchronizes both ways.
    pub(crate) fn sync(&self) -> Output {
        run("mbsync", &["-V", "-c", &self.folder.join("mbsyncrc").display().to_string(), "all"], b"").succeeded()
    }

    /// The local messages, unordered.
    pub(crate) fn messages(&self) -> Vec<Vec<u8>> {
        let folders = ["new", "cur"].map(|name| self.folder.join("INBOX").join(name));
        let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
        files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
    }

    /// Adds a message to the local Maildir.
    pub(crate) fn deliver(&self, name: &str, message: &[u8]) {
        std::fs::write(self.folder.join("INBOX/new").join(format!("{name}.test")), message).unwrap();
    }
}

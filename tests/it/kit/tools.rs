//! The clients that people use: curl, Python's imaplib, mbsync and sieve-connect.

use super::process::{Output, folder, run};
use super::{password_of, world};

/// curl on an IMAP URL of this port, as somebody with their password.
pub(crate) fn curl(port: u16, uid: &str, path: &str, arguments: &[&str]) -> Output {
    let ca = world().certificates.ca().display().to_string();
    let url = format!("imaps://127.0.0.1:{port}/{path}");
    let user = format!("{uid}:{}", password_of(uid));
    let fixed = ["-sS", "--max-time", "45", "--cacert", &ca, "-u", &user, &url];
    run("curl", &[&fixed, arguments].concat(), b"")
}

/// A Python script with `connection`, an `imaplib.IMAP4_SSL` before login, and `port` and `ca`.
pub(crate) fn imaplib(port: u16, script: &str) -> Output {
    let ca = world().certificates.ca().display().to_string();
    let head = format!(
        "import imaplib, ssl\nport, ca = {port}, {ca:?}\ncontext = ssl.create_default_context(cafile=ca)\n\
         connection = imaplib.IMAP4_SSL('localhost', port, ssl_context=context, timeout=40)\n"
    );
    run("python3", &["-c", &(head + script)], b"")
}

/// sieve-connect on a port with STARTTLS, as somebody with this password.
pub(crate) fn sieve_connect(port: u16, uid: &str, password: &str, arguments: &[&str]) -> Output {
    let (port, ca) = (port.to_string(), world().certificates.ca().display().to_string());
    let fixed = ["--server", "localhost", "--port", &port, "--user", uid, "--passwordfd", "0", "--tlscafile", &ca];
    run("sieve-connect", &[&fixed, arguments].concat(), format!("{password}\n").as_bytes())
}

/// A local Maildir that mbsync keeps equal to somebody's INBOX.
pub(crate) struct Mbsync {
    folder: std::path::PathBuf,
}

impl Mbsync {
    /// A configuration for this port.
    pub(crate) fn new(port: u16, uid: &str) -> Self {
        let folder = folder("mbsync");
        let config = format!(
            "IMAPAccount usher\nHost localhost\nPort {port}\nUser {uid}\nPass \"{password}\"\nSSLType IMAPS\n\
             CertificateFile {ca}\nTimeout 40\n\nIMAPStore far\nAccount usher\n\n\
             MaildirStore near\nPath {folder}/\nInbox {folder}/INBOX\n\n\
             Channel all\nFar :far:\nNear :near:\nPatterns INBOX\nCreate Near\nSync All\nExpunge Both\nSyncState *\n",
            password = password_of(uid),
            ca = world().certificates.ca().display(),
            folder = folder.display(),
        );
        std::fs::write(folder.join("mbsyncrc"), config).unwrap();
        Self { folder }
    }

    /// Synchronizes both ways.
    pub(crate) fn sync(&self) -> Output {
        run("mbsync", &["-V", "-c", &self.folder.join("mbsyncrc").display().to_string(), "all"], b"").succeeded()
    }

    /// The local messages, in no order.
    pub(crate) fn messages(&self) -> Vec<Vec<u8>> {
        let folders = ["new", "cur"].map(|name| self.folder.join("INBOX").join(name));
        let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
        files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
    }

    /// Puts a new message into the local Maildir.
    pub(crate) fn deliver(&self, name: &str, message: &[u8]) {
        std::fs::write(self.folder.join("INBOX/new").join(format!("{name}.test")), message).unwrap();
    }
}

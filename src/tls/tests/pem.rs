//! PEM files as people have them, beside what openssl makes of each: all of a file is loaded, or the line that
//! is wrong is named, with a command that mends it.

use rustls::RootCertStore;

use super::*;
use crate::tls::TlsError;
use crate::tls::certificate::{LoadedCertificate, load, load_roots};
use crate::tls::trusted::Purpose;

const BOM: &str = "\u{feff}";

fn authorities(path: &Path) -> Result<usize, String> {
    load_roots(path, Purpose::Servers).map(|roots: RootCertStore| roots.len()).map_err(|error| error.to_string())
}

/// How many certificates openssl reads of a file.
fn by_openssl(desk: &Desk, name: &str) -> usize {
    let listed = shell(desk, &format!("openssl crl2pkcs7 -nocrl -certfile {name} | openssl pkcs7 -print_certs"));
    listed.1.matches("-----BEGIN CERTIFICATE-----").count()
}

fn shell(desk: &Desk, command: &str) -> (bool, String) {
    let mut shell = std::process::Command::new("sh");
    let output = shell.args(["-c", command]).current_dir(desk.dir.path()).stdin(Stdio::null()).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.success(), said.concat())
}

/// Runs the command that a message advises on the file, and returns the file that it writes.
fn advised(desk: &Desk, message: &str, name: &str) -> PathBuf {
    let command = message.split('`').nth(1).unwrap_or_else(|| panic!("no command: {message}"));
    let command = command.replace("FILE", name).replace("NEW", "new.out").replace("COPY", name);
    let (ended_well, said) = shell(desk, &command);
    assert!(ended_well, "{command}: {said}");
    if command.contains("new.out") { desk.path("new.out") } else { desk.path(name) }
}

#[test]
fn every_form_that_openssl_reads_is_read_whole() {
    let desk = Desk::new();
    let one = read(&desk.ca_file());
    let two = read(&Desk::named("Other CA").ca_file());
    desk.openssl("x509 -in ca.pem -trustout -setalias alias -out trusted.pem");
    let trusted = read(&desk.path("trusted.pem"));
    assert!(trusted.starts_with("-----BEGIN TRUSTED CERTIFICATE-----"), "{trusted}");
    let lines =
        |before: &str, after: &str| -> String { one.lines().map(|line| format!("{before}{line}{after}\n")).collect() };
    let body: String = one.lines().filter(|line| !line.starts_with('-')).collect();
    let around = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
    let forms = [
        ("as it is", one.clone(), 1, true),
        ("two", one.clone() + &two, 2, true),
        ("a byte order mark", format!("{BOM}{one}"), 1, true),
        ("one before each", format!("{BOM}{one}{BOM}{two}"), 2, true),
        ("CR LF", one.replace('\n', "\r\n"), 1, true),
        ("CR alone", one.replace('\n', "\r"), 1, false),
        ("indented", lines("    ", ""), 1, false),
        ("indented by tabs", lines("\t", ""), 1, false),
        ("indented by no-break spaces", lines("\u{a0}\u{a0}", ""), 1, false),
        ("one of two indented", one.clone() + &lines("  ", "") + &two, 3, false),
        ("blanks behind each line", lines("", "  "), 1, true),
        ("a blank line in it", one.replacen("-----\n", "-----\n\n", 1), 1, true),
        ("one long line", around(&body), 1, true),
        ("no last line end", one.trim_end().to_owned(), 1, true),
        ("glued", one.trim_end().to_owned() + &two, 2, false),
        ("glued with a byte order mark", format!("{}{BOM}{two}", one.trim_end()), 2, false),
        ("text around", format!("subject=CN=Test CA\n{one}\nnot a -----BEGIN CERTIFICATE----- marker\n{two}"), 2, true),
        ("commented out", one.clone() + &two.lines().map(|line| format!("# {line}\n")).collect::<String>(), 1, true),
        ("text in Latin-1", "S\u{fc}dbank\n".to_owned() + &one, 1, true),
        ("X509", one.replace(" CERTIFICATE", " X509 CERTIFICATE"), 1, true),
        ("TRUSTED", trusted.clone(), 1, true),
        ("TRUSTED and others", trusted + &one.replace(" CERTIFICATE", " X509 CERTIFICATE") + &two, 3, true),
    ];
    for (what, text, count, as_openssl) in forms {
        // Latin-1 where it is not ASCII, but for the marks.
        let bytes: Vec<u8> = match what {
            "text in Latin-1" => text.chars().map(|letter| u8::try_from(u32::from(letter)).unwrap()).collect(),
            _ => text.into_bytes(),
        };
        std::fs::write(desk.path("form.pem"), bytes).unwrap();
        assert_eq!(authorities(&desk.path("form.pem")), Ok(count), "{what}");
        let read = by_openssl(&desk, "form.pem");
        assert_eq!(read == count, as_openssl, "{what}: openssl reads {read}");
    }
}

#[test]
fn what_is_not_read_is_an_error_with_its_line() {
    let desk = Desk::new();
    let one = read(&desk.ca_file());
    let two = read(&Desk::named("Other CA").ca_file());
    let end = one.lines().count();
    let without = |left_out: usize| -> String {
        one.lines()
            .enumerate()
            .filter(|(index, _)| index + 1 != left_out)
            .map(|(_, line)| format!("{line}\n"))
            .collect()
    };
    let (begin_lost, end_lost) = (without(1), without(end));
    for (what, text, line, fault) in [
        ("no end", end_lost.clone(), 1, "has no end"),
        ("no end before another", end_lost + &two, 1, "has no end"),
        ("no begin", begin_lost.clone(), end - 1, "does not begin"),
        ("no begin behind another", two.clone() + &begin_lost, two.lines().count() + end - 1, "does not begin"),
        ("another end", one.replace("END CERT", "END X509 CERT"), end, "but the block begins as a CERTIFICATE"),
        ("damaged", one.replacen("MII", "MI*", 1), 2, "not base64"),
        ("cut within a group", around_base64("MIIBA"), 3, "not base64"),
        ("four hyphens", one.replace("-----B", "----B"), 1, "not quite a marker"),
        ("small letters", one.replace("BEGIN CERTIFICATE", "begin certificate"), 1, "not quite a marker"),
        ("dashes", one.replace("-----BEGIN", "\u{2014}\u{2014}-BEGIN"), 1, "not quite a marker"),
        ("all in one line", one.replace('\n', " "), 1, "not quite a marker"),
        ("line ends as text", one.replace('\n', "\\n"), 1, "not quite a marker"),
        ("text behind the end", one.trim_end().to_owned() + " # mine\n", end, "not quite a marker"),
        ("a header", one.replacen("-----\n", "-----\nComment: mine\n\n", 1), 2, "a header"),
    ] {
        std::fs::write(desk.path("form.pem"), text).unwrap();
        let message = authorities(&desk.path("form.pem")).expect_err(what);
        let start = format!("line {line} of {}: ", desk.path("form.pem").display());
        assert!(message.starts_with(&start) && message.contains(fault), "{what}: {message}");
    }
}

fn around_base64(body: &str) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
}

#[test]
fn other_formats_are_errors_with_a_command_that_converts_them() {
    let desk = Desk::new();
    let one = read(&desk.ca_file());
    let leaf = desk.ecdsa("leaf", &["mail.example.com"]);
    desk.openssl("crl2pkcs7 -nocrl -certfile ca.pem -out p7.pem");
    desk.openssl("crl2pkcs7 -nocrl -certfile ca.pem -outform der -out p7.der");
    desk.openssl("x509 -in ca.pem -outform der -out ca.der");
    desk.openssl("pkcs12 -export -nokeys -in ca.pem -out ca.p12 -passout pass:");
    let utf16: Vec<u8> = format!("{BOM}{one}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(desk.path("utf16.pem"), utf16).unwrap();
    desk.openssl("req -x509 -newkey rsa:2048 -nodes -keyout signer.key -out signer.pem -subj /CN=signer");
    desk.write("index.txt", "");
    desk.write("ca.cnf", "[ca]\ndefault_ca = d\n[d]\ndatabase = index.txt\ndefault_md = sha256\n");
    desk.openssl("ca -config ca.cnf -gencrl -keyfile signer.key -cert signer.pem -crldays 9 -out crl.pem");
    desk.write("cms.pem", &read(&desk.path("p7.pem")).replace("PKCS7", "CMS"));
    desk.write("both.pem", &(one.clone() + &read(&desk.path("p7.pem"))));
    desk.write("listed.pem", &(one.clone() + &read(&desk.path("crl.pem"))));
    desk.write("odd.pem", &(one.clone() + "-----BEGIN PGP SIGNATURE-----\nAAAA\n-----END PGP SIGNATURE-----\n"));
    let second = one.lines().count() + 1;
    for (name, said) in [
        ("p7.pem", "line 1 of ".to_owned()),
        ("cms.pem", "line 1 of ".to_owned()),
        ("both.pem", format!("line {second} of ")),
        ("listed.pem", format!("line {second} of ")),
        ("odd.pem", format!("line {second} of ")),
        ("utf16.pem", "UTF-16".to_owned()),
        ("p7.der", "it is PKCS #7".to_owned()),
        ("ca.der", "it is DER".to_owned()),
        ("ca.p12", "it is PKCS #12".to_owned()),
    ] {
        let message = authorities(&desk.path(name)).expect_err(name);
        assert!(message.contains(&said), "{name}: {message}");
        let message = message.replace("-nokeys", "-nokeys -passin pass:");
        // Of the block that no command can read beside it, the certificate is what the command saves.
        assert_eq!(authorities(&advised(&desk, &message, name)), Ok(1), "{name}: {message}");
    }
    desk.openssl("req -new -key leaf.key -subj /CN=leaf -out leaf.csr");
    let message = authorities(&desk.path("leaf.csr")).unwrap_err();
    assert!(message.contains("CERTIFICATE REQUEST is no certificate: name the certificate that"), "{message}");
    assert!(authorities(&leaf.key).unwrap_err().contains("are chain and key swapped?"));
}

#[test]
fn openssl_trust_settings_are_followed() {
    let desk = Desk::new();
    for (arguments, servers, clients) in [
        ("-setalias mine", true, true),
        ("-addtrust serverAuth", true, false),
        ("-addtrust clientAuth", false, true),
        ("-addtrust anyExtendedKeyUsage", true, true),
        ("-addreject serverAuth", false, true),
        ("-addreject clientAuth -addtrust serverAuth", true, false),
        ("-addreject anyExtendedKeyUsage", false, false),
    ] {
        desk.openssl(&format!("x509 -in ca.pem -trustout {arguments} -out trusted.pem"));
        for (purpose, expected, name) in
            [(Purpose::Servers, servers, "sslserver"), (Purpose::Clients, clients, "sslclient")]
        {
            let loaded = load_roots(&desk.path("trusted.pem"), purpose);
            assert_eq!(loaded.is_ok(), expected, "{arguments}: {loaded:?}");
            if let Err(error) = loaded {
                assert!(
                    error.to_string().contains("its trust settings, which `openssl x509 -trustout` wrote"),
                    "{error}"
                );
            }
            let (verified, said) = shell(&desk, &format!("openssl verify -CAfile trusted.pem -purpose {name} ca.pem"));
            assert_eq!(verified, expected, "{arguments} -purpose {name}: {said}");
        }
    }
}

fn pair(files: &CertificateFiles) -> Result<LoadedCertificate, String> {
    load(files, "pair").map_err(|problems| words(&problems).join("\n"))
}

#[test]
fn one_file_may_be_chain_and_key() {
    let desk = Desk::new();
    let good = desk.ecdsa("good", &["mail.example.com"]);
    desk.openssl("ecparam -name prime256v1 -out parameters.pem");
    let parts = [read(&good.chain), read(&desk.path("parameters.pem")), read(&good.key), read(&desk.ca_file())];
    let both = desk.write("both.pem", &parts.concat());
    let loaded = pair(&CertificateFiles { chain: both.clone(), key: both }).unwrap();
    assert_eq!(loaded.certified.cert.len(), 2);
}

#[test]
fn key_is_read_in_every_form_of_text() {
    let desk = Desk::new();
    let good = desk.ecdsa("good", &["mail.example.com"]);
    let (chain, key) = (good.chain, read(&good.key));
    for (what, text) in [
        ("a byte order mark", format!("{BOM}{key}")),
        ("CR LF", key.replace('\n', "\r\n")),
        ("indented", key.lines().map(|line| format!("  {line}\n")).collect()),
        ("no last line end", key.trim_end().to_owned()),
        ("glued to a certificate", read(&chain).trim_end().to_owned() + &key),
    ] {
        let loaded = pair(&CertificateFiles { chain: chain.clone(), key: desk.write("form.key", &text) });
        assert!(loaded.is_ok(), "{what}: {loaded:?}");
    }
}

#[test]
fn unusable_keys_are_errors_with_a_line_and_a_command_that_converts_them() {
    let desk = Desk::new();
    let good = desk.ecdsa("good", &["mail.example.com"]);
    let (chain, key) = (good.chain.clone(), read(&good.key));
    let refused = |name: &str| {
        std::fs::set_permissions(desk.path(name), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        pair(&CertificateFiles { chain: chain.clone(), key: desk.path(name) }).unwrap_err()
    };
    desk.openssl("pkcs8 -topk8 -in good.key -out new.key -passout pass:x");
    desk.openssl("pkey -in good.key -traditional -aes128 -passout pass:x -out old.key");
    desk.openssl("pkey -in good.key -outform der -out key.der");
    desk.openssl("pkcs12 -export -in good.pem -inkey good.key -out both.p12 -passout pass:");
    desk.write("behind.key", &(read(&chain) + &read(&desk.path("new.key"))));
    let behind = read(&chain).lines().count() + 1;
    for (name, said) in [
        ("new.key", "line 1, is encrypted".to_owned()),
        ("old.key", "line 1, is encrypted".to_owned()),
        ("behind.key", format!("line {behind}, is encrypted")),
        ("key.der", "if it is DER".to_owned()),
        ("both.p12", "it is PKCS #12".to_owned()),
    ] {
        let message = refused(name);
        assert!(message.contains(&said), "{name}: {message}");
        let password = if name == "both.p12" { "-in FILE -passin pass:" } else { "-in FILE -passin pass:x" };
        let converted = advised(&desk, &message.replace("-in FILE", password), name);
        std::fs::set_permissions(&converted, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        assert!(pair(&CertificateFiles { chain: chain.clone(), key: converted }).is_ok(), "{name}: {message}");
    }
    desk.write("two.key", &(key.clone() + &read(&desk.ecdsa("other", &["x"]).key)));
    let second = key.lines().count() + 1;
    assert!(refused("two.key").contains(&format!("two private keys, on lines 1 and {second}")));
    desk.openssl("pkey -in good.key -pubout -out public.key");
    assert!(refused("public.key").contains("a PUBLIC KEY is no private key for TLS: name the private key"));
    desk.write("cut.key", &key.replace("-----END PRIVATE KEY-----\n", ""));
    assert!(refused("cut.key").contains("line 1 of "));
    let (made, said) = shell(&desk, "ssh-keygen -q -t ecdsa -N '' -f ssh.key");
    if made {
        let message = refused("ssh.key");
        assert!(message.contains("line 1 of ") && message.contains("OPENSSH PRIVATE KEY"), "{message}");
        let converted = advised(&desk, &message, "ssh.key");
        assert!(read(&converted).starts_with("-----BEGIN PRIVATE KEY-----"), "{said}");
    }
}

#[test]
fn messages_show_no_part_of_a_key() {
    let desk = Desk::new();
    let good = desk.ecdsa("good", &["mail.example.com"]);
    let key = read(&good.key);
    let body: Vec<&str> = key.lines().filter(|line| !line.starts_with('-')).collect();
    for text in [key.replace("-----B", "----B"), key.replacen("MIG", "M*G", 1), key.replace('\n', " ")] {
        let message = pair(&CertificateFiles { chain: good.chain.clone(), key: desk.write("bad.key", &text) });
        let message = message.unwrap_err();
        assert!(body.iter().all(|line| !message.contains(&line[..16])), "{message}");
    }
    // Nor does the type that the message is made from.
    assert!(!format!("{:?}", TlsError::NoCertificates).contains(body[0]));
}

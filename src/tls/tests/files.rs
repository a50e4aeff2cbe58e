//! Every mistake in the files is reported, under its key, with advice.

use super::*;

#[test]
fn all_mistakes_are_reported_at_once() {
    let desk = Desk::new();
    let good = desk.ecdsa("good", &["mail.example.com"]);
    let other = desk.ecdsa("other", &["mail.example.com"]);
    let swapped = CertificateFiles { chain: good.key.clone(), key: good.chain.clone() };
    let mixed = CertificateFiles { chain: good.chain.clone(), key: other.key };
    let missing = CertificateFiles { chain: desk.path("none.pem"), key: desk.path("none.key") };
    let broken = CertificateFiles {
        chain: desk.write("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        key: good.key.clone(),
    };
    let mut tls = settings(vec![good, swapped, mixed, missing, broken]);
    tls.cipher_suites = Some(vec!["TLS_AES_128_GCM_SHA256".to_owned(), "RC4-MD5".to_owned()]);
    tls.client_auth = ClientAuth::Required;

    let words = words(&ServerTls::from_settings(&tls).unwrap_err());
    let starts = [
        "tls.certificates[1].chain: ",
        "tls.certificates[1].key: ",
        "tls.certificates[2].key: the private key does not belong to the first certificate in ",
        "tls.certificates[3].chain: cannot read ",
        "tls.certificates[3].key: cannot read ",
        "tls.certificates[4].chain: certificate 1 in ",
        "tls.cipher_suites[1]: unknown cipher suite \"RC4-MD5\"; supported are TLS_AES_256_GCM_SHA384, ",
        "tls.client_auth: ",
    ];
    assert_eq!(words.len(), starts.len(), "{words:#?}");
    for (word, start) in words.iter().zip(starts) {
        assert!(word.starts_with(start), "{word}");
    }
    assert!(words[0].contains("are chain and key swapped?"), "{}", words[0]);
    assert!(words[1].contains("holds no PEM private key"), "{}", words[1]);
}

#[test]
fn encrypted_keys_are_refused_with_advice() {
    let desk = Desk::new();
    let good = desk.ecdsa("good", &["mail.example.com"]);
    desk.openssl("pkcs8 -topk8 -in good.key -out new.key -passout pass:x");
    desk.openssl("genrsa -traditional -aes128 -passout pass:x -out old.key 2048");
    for key in ["new.key", "old.key"] {
        let files = CertificateFiles { chain: good.chain.clone(), key: desk.path(key) };
        let words = words(&ServerTls::from_settings(&settings(vec![files])).unwrap_err());
        assert!(words[0].starts_with("tls.certificates[0].key: the private key in "), "{words:?}");
        assert!(words[0].contains("is encrypted") && words[0].contains("openssl pkey"), "{words:?}");
    }
}

#[test]
fn common_key_formats_are_read() {
    let desk = Desk::new();
    desk.openssl("genrsa -traditional -out pkcs1.key 2048");
    desk.openssl("ecparam -name secp384r1 -genkey -out sec1.key");
    desk.openssl("genpkey -algorithm ed25519 -out ed.key");
    for form in ["pkcs1", "sec1", "ed"] {
        desk.openssl(&format!("req -x509 -key {form}.key -out {form}.pem -days 9 -subj /CN={form}.example"));
        let tls = ServerTls::from_settings(&settings(vec![desk.files(form)]));
        assert!(tls.is_ok(), "{form}: {:?}", words(&tls.unwrap_err()));
    }
}

#[test]
fn der_files_and_small_keys_are_refused_with_advice() {
    let desk = Desk::new();
    let good = desk.ecdsa("good", &["mail.example.com"]);
    desk.openssl("x509 -in good.pem -outform der -out good.der");
    desk.openssl("req -x509 -newkey rsa:1024 -nodes -keyout small.key -out small.pem -subj /CN=small");
    let der = CertificateFiles { chain: desk.path("good.der"), key: good.key };
    let words = words(&ServerTls::from_settings(&settings(vec![der, desk.files("small")])).unwrap_err());
    assert!(words[0].contains("it is DER: convert it with"), "{words:?}");
    assert!(words[1].contains("RSA from 2048 bits"), "{words:?}");
}

#[test]
fn unusable_authority_is_reported_with_its_position() {
    let desk = Desk::new();
    let both = read(&desk.ca_file()) + "-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n";
    let client = ClientTls { ca: Some(desk.write("two.pem", &both)), ..desk.client() };
    let words = words(&client.prepare().unwrap_err());
    assert!(words[0].starts_with("backend.ca: certificate 2 in "), "{words:?}");
}

#[test]
fn backend_tls_mistakes_are_collected() {
    let desk = Desk::new();
    let client =
        ClientTls { ca: Some(desk.path("none.pem")), client_certificate: Some(desk.files("none")), ..desk.client() };
    let words = words(&client.prepare().unwrap_err());
    let keys: Vec<_> = words.iter().map(|word| word.split(": ").next().unwrap()).collect();
    assert_eq!(keys, ["backend.ca", "backend.client_certificate.chain", "backend.client_certificate.key"]);
}

#[test]
fn suites_without_a_matching_version_are_refused() {
    let desk = Desk::new();
    let mut tls = settings(vec![desk.ecdsa("good", &["mail.example.com"])]);
    tls.min_version = TlsVersion::V1_3;
    tls.cipher_suites = Some(vec!["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256".to_owned()]);
    let words = words(&ServerTls::from_settings(&tls).unwrap_err());
    assert!(words[0].starts_with("tls.cipher_suites: no listed cipher suite works from min_version up"), "{words:?}");
}

#[test]
fn served_certificates_are_listed_with_their_expiry() {
    let desk = Desk::new();
    let tls = settings(vec![
        desk.ecdsa("good", &["Mail.Example.com", "*.example.org"]),
        desk.expired("old", &["old.example.com"]),
    ]);
    let server = ServerTls::from_settings(&tls).unwrap();
    let [good, old] = server.certificates() else { panic!("two") };
    assert_eq!(good.names, ["mail.example.com", "*.example.org"]);
    assert!(!good.expired);
    assert_eq!(old.chain, desk.path("old.pem"));
    assert_eq!((old.expired, old.not_after), (true, 1_580_688_000));
}

//! The section `tls`: certificates and parameters towards clients.

use std::path::PathBuf;

use rustls::SupportedCipherSuite;

use super::model::{ClientAuth, Tls, TlsVersion};
use super::names;
use super::raw::{Node, Section};
use super::section::{certificate, distinct, groups};
use super::units::{DAY, MINUTE, SECOND};

/// The words of `client_auth`.
pub(super) const CLIENT_AUTH: &[(&str, ClientAuth)] =
    &[("off", ClientAuth::Off), ("optional", ClientAuth::Optional), ("required", ClientAuth::Required)];

/// Reads the section.
pub(super) fn read(tls: &Section<'_>) -> Option<Tls> {
    let hint = "add `- {chain: tls/fullchain.pem, key: tls/privkey.pem}`";
    let certificates = tls.required("certificates", hint).and_then(|node| node.list());
    let certificates = certificates.map(|items| items.iter().filter_map(certificate).collect());
    let versions = [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];
    let min_version = tls.get("min_version").map_or(Some(TlsVersion::V1_2), |node| node.word(&versions));
    let groups = groups(tls);
    let suites = tls.get("cipher_suites").map(|node| (cipher_suites(&node), node));
    if let (Some(TlsVersion::V1_3), Some((Some(suites), node))) = (min_version, &suites)
        && !suites.iter().any(|suite| matches!(suite, SupportedCipherSuite::Tls13(_)))
    {
        node.problem("only TLS 1.2 suites, but `min_version` is 1.3: no client could connect; add a TLS 1.3 suite");
    }
    let client_ca = tls.get("client_ca").map(|node| node.path());
    let crl = crl(tls, client_ca.is_some());
    let client_auth = client_auth(tls, client_ca.is_some());
    let ticket_keys_file = tls.get("ticket_keys_file").map(|node| node.path());
    let reload_interval = tls.duration("reload_interval", MINUTE, SECOND..=DAY);
    Some(Tls {
        certificates: certificates?,
        min_version: min_version?,
        groups: groups?,
        cipher_suites: suites.map(|(suites, _)| suites.into_iter().flatten().map(names::suite_name).collect()),
        client_ca: client_ca.flatten(),
        client_auth: client_auth?,
        crl,
        ticket_keys_file: ticket_keys_file.flatten(),
        reload_interval: reload_interval?,
    })
}

/// The revocation lists of a CA that is named beside them, or elsewhere.
pub(super) fn crl(section: &Section<'_>, has_ca: bool) -> Option<PathBuf> {
    let node = section.get("crl")?;
    if !has_ca {
        node.problem("needs `client_ca`: the CA that has signed the revocation list");
    }
    node.path()
}

/// Whether clients are asked for a certificate: optional as soon as there is a CA for it.
pub(super) fn client_auth(tls: &Section<'_>, has_ca: bool) -> Option<ClientAuth> {
    let Some(node) = tls.get("client_auth") else {
        return Some(if has_ca { ClientAuth::Optional } else { ClientAuth::Off });
    };
    let client_auth = node.word(CLIENT_AUTH)?;
    match client_auth {
        ClientAuth::Off if has_ca => tls.warn("client_ca", "without effect: `client_auth` is off; remove one"),
        ClientAuth::Optional | ClientAuth::Required if !has_ca => {
            node.problem("needs `client_ca`: the CA that client certificates must come from");
        }
        ClientAuth::Off | ClientAuth::Optional | ClientAuth::Required => {}
    }
    Some(client_auth)
}

fn cipher_suites(node: &Node<'_>) -> Option<Vec<SupportedCipherSuite>> {
    let known = |name: &str| {
        names::cipher_suite(name).ok_or_else(|| format!("not a supported cipher suite: {}", names::suite_names()))
    };
    distinct(node, |item| item.parsed(known).map(|suite| (names::suite_name(suite), suite)))
}

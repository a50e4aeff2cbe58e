//! An authority for the certificates of clients.

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    date_time_ymd,
};

use super::certs::Pair;
use super::process::{folder, write_secret};

/// An authority for clients, with its files.
pub(crate) struct Authority {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
    is_root: bool,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let issuer = CertifiedIssuer::self_signed(authority(name), KeyPair::generate().unwrap()).unwrap();
        let folder = folder("authority");
        std::fs::write(folder.join("ca.pem"), issuer.pem()).unwrap();
        Self { folder, issuer, is_root: true }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A certificate with this number for a client, with addresses and a common name.
    pub(crate) fn certificate(&self, serial: u64, name: &str, addresses: &[&str], expired: bool) -> Pair {
        self.certificate_with(serial, name, addresses, |params| {
            params.not_after = date_time_ymd(if expired { 2021 } else { 2049 }, 1, 1);
        })
    }

    /// As [`Authority::certificate`], changed in some way.
    pub(crate) fn certificate_with(
        &self,
        serial: u64,
        name: &str,
        addresses: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names =
            addresses.iter().map(|address| SanType::Rfc822Name((*address).try_into().unwrap())).collect();
        params.serial_number = Some(SerialNumber::from(serial));
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2049, 1, 1));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |end: &str| self.folder.join(format!("{serial}.{end}"));
        let pair = Pair { chain: file("pem"), key: file("key"), pin: String::new() };
        let above = if self.is_root { String::new() } else { self.issuer.pem() };
        std::fs::write(&pair.chain, certificate.pem() + &above).unwrap();
        write_secret(&pair.key, key.serialize_pem());
        pair
    }

    /// An authority below this one, for these uses; its certificates come with its own.
    pub(crate) fn below(&self, name: &str, usages: &[ExtendedKeyUsagePurpose]) -> Self {
        let mut params = authority(name);
        params.extended_key_usages = usages.to_vec();
        let issuer = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.issuer).unwrap();
        Self { folder: folder("authority"), issuer, is_root: false }
    }

    /// Writes the revocation list, valid until this year.
    pub(crate) fn revoke(&self, revoked: &[u64], year: i32) -> PathBuf {
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.folder.join("ca.crl");
        std::fs::write(&path, params.signed_by(&self.issuer).unwrap().pem().unwrap()).unwrap();
        path
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2049, 1, 1));
    params
}

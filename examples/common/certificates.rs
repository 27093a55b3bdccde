//! Certificates for trying things out: an authority, and what it signs.
#![allow(dead_code, reason = "each user takes a part of it")]

use rcgen::{
    BasicConstraints, CertificateParams, DnType, Error, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::time::{Duration, SystemTime};

/// An authority of one's own.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, which those who trust it need.
    pub(crate) pem: String,
}

/// Lets a certificate be valid from yesterday on for so many days.
pub(crate) fn valid_for_days(params: &mut CertificateParams, days: u64) {
    let day = Duration::from_secs(24 * 3600);
    let yesterday = SystemTime::now() - day;
    params.not_before = yesterday.into();
    params.not_after = (yesterday + day * u32::try_from(days).unwrap_or(u32::MAX / 2)).into();
}

/// A certificate with its private key, both PEM.
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Result<Authority, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Authority { issuer: Issuer::new(params, key), pem })
    }

    /// For a server with these names or IP addresses.
    pub(crate) fn server(&self, names: &[&str]) -> Result<Issued, Error> {
        self.issue(names, for_server)
    }

    /// For a client.
    pub(crate) fn client(&self, name: &str) -> Result<Issued, Error> {
        self.issue(&[name], for_client)
    }

    /// For these names, with whatever else it shall say.
    pub(crate) fn issue(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<Issued, Error> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let common = names.first().cloned().unwrap_or_default();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, common);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { certificate, key: key.serialize_pem() })
    }
}

pub(crate) fn for_server(params: &mut CertificateParams) {
    params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
}

pub(crate) fn for_client(params: &mut CertificateParams) {
    params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
}

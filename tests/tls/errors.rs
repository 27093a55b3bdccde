//! What is wrong with a configuration is said before the first connection.

use crate::common::net::{check, on_real_backends, pair};
use crate::rig::{authority, client, identity, roots, serving};
use anabranch::tls::{
    CertResolver, ClientTls, ConfigError, Identity, Roots, ServerTls, TlsConnector, TlsError,
};
use std::fs;

/// What a message must name.
fn says(error: &ConfigError, words: &[&str]) {
    let message = error.to_string();
    assert!(words.iter().all(|word| message.contains(word)), "{message:?} lacks one of {words:?}");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let issued = authority().server(&["localhost"]).unwrap();
    let (chain, key) = (path("chain.pem"), path("key.pem"));
    fs::write(&chain, &issued.certificate).unwrap();
    fs::write(&key, &issued.key).unwrap();
    Identity::from_files(&chain, &key).unwrap();

    let error = Identity::from_files(path("nothing.pem"), &key).unwrap_err();
    assert!(matches!(error, ConfigError::Unreadable { .. }), "{error:?}");
    says(&error, &["nothing.pem"]);
    let error = Identity::from_files(&chain, &chain).unwrap_err();
    assert!(matches!(error, ConfigError::Missing { .. }), "{error:?}");
    says(&error, &["chain.pem", "private key"]);
    let error = Identity::from_files(&key, &key).unwrap_err();
    assert!(matches!(error, ConfigError::Missing { .. }), "{error:?}");
    says(&error, &["key.pem", "certificate"]);
    fs::write(path("bad.pem"), issued.certificate.replacen("MII", "!!!", 1)).unwrap();
    let error = Identity::from_files(path("bad.pem"), &key).unwrap_err();
    assert!(matches!(error, ConfigError::Malformed { .. }), "{error:?}");
    says(&error, &["bad.pem"]);
    fs::write(path("empty"), "").unwrap();
    says(&Identity::from_files(path("empty"), &key).unwrap_err(), &["empty", "certificate"]);
    says(&Roots::from_file(path("empty")).unwrap_err(), &["empty", "certificate"]);
    says(&Roots::from_file(path("gone")).unwrap_err(), &["gone"]);
    says(&Roots::from_pem(issued.key).unwrap_err(), &["certificate"]);
    says(&Roots::from_der(vec![vec![0x30, 1, 2]]).unwrap_err(), &["root"]);
}

#[test]
fn keys_and_certificates_that_do_not_belong_together_are_refused() {
    let (one, other) =
        (authority().server(&["localhost"]).unwrap(), authority().server(&["localhost"]).unwrap());
    let mixed = Identity::from_pem(&one.certificate, &other.key).unwrap();
    let error = ServerTls::builder(mixed).build().unwrap_err();
    assert!(matches!(error, ConfigError::KeyMismatch { .. }), "{error:?}");
    let mixed = Identity::from_pem(&one.certificate, &other.key).unwrap();
    let error = ClientTls::builder(roots()).identity(mixed).build().unwrap_err();
    assert!(matches!(error, ConfigError::KeyMismatch { .. }), "{error:?}");
    let nonsense = Identity::from_der(vec![vec![0x30, 1, 2]], vec![1, 2, 3]).unwrap_err();
    assert!(matches!(nonsense, ConfigError::Malformed { .. }), "{nonsense:?}");
}

#[test]
fn names_must_fit_their_certificate() {
    let named = |name: &str| CertResolver::new().with_name(name, serving(&["localhost", "*.example.org"]));
    named("localhost").unwrap();
    named("*.example.org").unwrap();
    for wrong in ["", "a b", "*", "*.", "*..", "a.*.example.org", "**.example.org"] {
        let error = named(wrong).unwrap_err();
        assert!(matches!(error, ConfigError::InvalidName(_)), "{wrong:?}: {error:?}");
    }
    for foreign in ["elsewhere.example", "*.elsewhere.example", "a.b.example.org"] {
        let error = named(foreign).unwrap_err();
        assert!(matches!(error, ConfigError::NameMismatch { .. }), "{foreign:?}: {error:?}");
        says(&error, &[foreign]);
    }
    let error = ServerTls::builder(CertResolver::new()).build().unwrap_err();
    assert!(matches!(error, ConfigError::NoCertificate), "{error:?}");
}

#[test]
fn suites_that_nobody_has_and_choices_that_do_not_fit_are_refused() {
    let issued = authority().server(&["localhost"]).unwrap();
    let error =
        ServerTls::builder(identity(&issued)).suites(["TLS_RSA_WITH_RC4_128_MD5"]).build().unwrap_err();
    assert!(matches!(error, ConfigError::UnknownSuite(_)), "{error:?}");
    // TLS 1.2 alone, with a suite of TLS 1.3 alone.
    use anabranch::tls::TlsVersion::Tls12;
    let builder = ServerTls::builder(identity(&issued)).versions(Tls12, Tls12);
    let error = builder.suites(["TLS13_AES_128_GCM_SHA256"]).build().unwrap_err();
    assert!(matches!(error, ConfigError::Refused(_)), "{error:?}");
}

#[test]
fn a_name_that_is_none_is_refused_before_a_byte_is_sent() {
    on_real_backends(|config| {
        check(config, async {
            let (ours, mut theirs) = pair().await;
            let error = TlsConnector::new(client()).connect("not a name", ours).await.unwrap_err();
            assert!(matches!(error, TlsError::InvalidName(_)), "{error:?}");
            assert!(theirs.recv().await.unwrap().is_none());
        });
    });
}

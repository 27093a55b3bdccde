//! Who shows which certificate to whom, and what becomes of it.

use crate::certificates::Issued;
use crate::common::net::{check, on_real_backends};
use crate::rig::{authority, client, identity, roots, sealed_pair, server, serving, shake, stranger};
use anabranch::tls::rustls::{AlertDescription, CertificateError, Error};
use anabranch::tls::{
    CertResolver, ClientAuth, ClientTls, Roots, ServerTls, TlsError, TlsStream, TlsVersion,
};

/// The certificate that the client was shown.
fn shown(stream: &TlsStream) -> Vec<u8> {
    stream.info().peer_certificates[0].to_vec()
}

fn der(issued: &Issued) -> Vec<u8> {
    let text: String = issued.certificate.lines().filter(|line| !line.starts_with('-')).collect();
    decode(&text)
}

/// Base 64.
fn decode(text: &str) -> Vec<u8> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => Some(letter - b'A'),
        b'a'..=b'z' => Some(letter - b'a' + 26),
        b'0'..=b'9' => Some(letter - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for six in text.bytes().filter_map(value) {
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

#[test]
fn the_name_chooses_the_certificate() {
    let exact = authority().server(&["www.example.org"]).unwrap();
    let wildcard = authority().server(&["*.example.org"]).unwrap();
    let other = authority().server(&["localhost", "a.b.example.org", "example.org", "127.0.0.1"]).unwrap();
    let resolver = CertResolver::new()
        .with_default(identity(&other))
        .with_name("WWW.example.org", identity(&exact))
        .and_then(|resolver| resolver.with_name("*.example.org", identity(&wildcard)))
        .unwrap();
    let server = ServerTls::builder(resolver).build().unwrap();
    let cases = [
        ("www.example.org", &exact),
        ("Www.Example.ORG", &exact),
        ("mail.example.org", &wildcard),
        ("a.b.example.org", &other),
        ("example.org", &other),
        ("localhost", &other),
        ("127.0.0.1", &other),
    ];
    on_real_backends(|config| {
        check(config, async {
            for (name, expected) in cases {
                let (accepted, connected) = shake(&server, &client(), name).await;
                assert_eq!(shown(&connected.unwrap()), der(expected), "{name}");
                let asked = accepted.unwrap().info().sni;
                let told = (name != "127.0.0.1").then(|| name.to_ascii_lowercase());
                assert_eq!(asked, told, "an address is not told");
            }
        });
    });
}

#[test]
fn without_a_default_an_unknown_name_is_refused() {
    let resolver = CertResolver::new().with_name("localhost", serving(&["localhost"])).unwrap();
    let server = ServerTls::builder(resolver).build().unwrap();
    on_real_backends(|config| {
        check(config, async {
            sealed_pair(&server, &client()).await;
            let (accepted, connected) = shake(&server, &client(), "elsewhere.example").await;
            assert!(matches!(accepted, Err(TlsError::Refused(_))), "{accepted:?}");
            assert!(matches!(connected, Err(TlsError::Alert(_))), "{connected:?}");
        });
    });
}

#[test]
fn reloaded_certificates_are_shown_from_the_next_handshake_on() {
    let (old, new) =
        (authority().server(&["localhost"]).unwrap(), authority().server(&["localhost"]).unwrap());
    on_real_backends(|config| {
        check(config, async {
            let server = ServerTls::builder(identity(&old)).build().unwrap();
            let fresh = || ClientTls::builder(roots()).resume(false).build().unwrap();
            let (mut accepted, mut before) = sealed_pair(&server, &fresh()).await;
            assert_eq!(shown(&before), der(&old));
            server.clone().reload(identity(&new)).unwrap();
            let (_, after) = sealed_pair(&server, &fresh()).await;
            assert_eq!(shown(&after), der(&new));
            accepted.send("still here").await.unwrap();
            assert_eq!(before.recv_exact(10).await.unwrap(), "still here");
            // What cannot be used changes nothing.
            server.reload(CertResolver::new()).unwrap_err();
            assert_eq!(shown(&sealed_pair(&server, &fresh()).await.1), der(&new));
        });
    });
}

/// How a client with this certificate fares: whether each side was content after a byte was sent there and back.
async fn fares(
    auth: ClientAuth,
    own: Option<&Issued>,
    version: TlsVersion,
) -> (Result<usize, TlsError>, bool) {
    let server = ServerTls::builder(serving(&["localhost"])).client_auth(auth).build().unwrap();
    let mut builder = ClientTls::builder(roots()).versions(version, version);
    if let Some(own) = own {
        builder = builder.identity(identity(own));
    }
    let (accepted, connected) = shake(&server, &builder.build().unwrap(), "localhost").await;
    let seen = accepted.map(|mut stream| {
        let certificates = stream.info().peer_certificates.len();
        anabranch::spawn(async move {
            let _ = stream.send("x").await;
            let _ = stream.close().await;
        })
        .detach();
        certificates
    });
    // In TLS 1.3 the client hears of a refusal only now.
    let content = match connected {
        Ok(mut stream) => stream.recv_exact(1).await.is_ok(),
        Err(_) => false,
    };
    (seen, content)
}

#[test]
fn clients_show_certificates_as_they_are_asked() {
    let known = authority().client("known").unwrap();
    let unknown = stranger().client("unknown").unwrap();
    on_real_backends(|config| {
        check(config, async {
            for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
                let optional = || ClientAuth::Optional(roots());
                let required = || ClientAuth::Required(roots());
                for (auth, own, certificates) in [
                    (ClientAuth::None, None, 0),
                    (ClientAuth::None, Some(&known), 0),
                    (optional(), None, 0),
                    (optional(), Some(&known), 1),
                    (required(), Some(&known), 1),
                ] {
                    let (seen, content) = fares(auth, own, version).await;
                    assert_eq!(seen.unwrap(), certificates);
                    assert!(content);
                }
                for (auth, own) in
                    [(optional(), Some(&unknown)), (required(), None), (required(), Some(&unknown))]
                {
                    let (seen, content) = fares(auth, own, version).await;
                    assert!(matches!(seen, Err(TlsError::Refused(_))), "{seen:?}");
                    assert!(!content);
                }
            }
        });
    });
}

/// The client refuses the certificate of a server, and the server hears why.
async fn refused(server: &ServerTls, name: &str) -> (Error, AlertDescription) {
    match shake(server, &client(), name).await {
        (Err(TlsError::Alert(alert)), Err(TlsError::Refused(error))) => (error, alert),
        other => panic!("both are content, or for other reasons not: {other:?}"),
    }
}

#[test]
fn certificates_of_strangers_for_others_or_of_the_past_are_refused() {
    let strange = ServerTls::builder(identity(&stranger().server(&["localhost"]).unwrap())).build().unwrap();
    let expired = authority().issue(&["localhost"], |params| {
        params.not_before = rcgen::date_time_ymd(1999, 1, 1);
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    });
    let expired = ServerTls::builder(identity(&expired.unwrap())).build().unwrap();
    on_real_backends(|config| {
        check(config, async {
            let (error, alert) = refused(&strange, "localhost").await;
            assert_eq!(error, Error::InvalidCertificate(CertificateError::UnknownIssuer));
            assert_eq!(alert, AlertDescription::UnknownCA);
            let (error, _) = refused(&expired, "localhost").await;
            assert!(
                matches!(error, Error::InvalidCertificate(CertificateError::ExpiredContext { .. })),
                "{error:?}"
            );
            for name in ["elsewhere.example", "127.0.0.1"] {
                let (error, _) = refused(&server(), name).await;
                assert!(
                    matches!(
                        error,
                        Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })
                    ),
                    "{error:?}"
                );
            }
        });
    });
}

#[test]
fn protocols_are_agreed_on_or_refused() {
    let server = ServerTls::builder(serving(&["localhost"])).alpn(["h2", "http/1.1"]).build().unwrap();
    let offering = |protocols: &[&str]| {
        let protocols: Vec<String> = protocols.iter().map(|protocol| (*protocol).to_owned()).collect();
        ClientTls::builder(roots()).alpn(protocols).build().unwrap()
    };
    on_real_backends(|config| {
        check(config, async {
            for (offered, agreed) in [
                (&["http/1.1", "h2"][..], Some(b"h2".to_vec())),
                (&["other", "http/1.1"], Some(b"http/1.1".to_vec())),
                (&[], None),
            ] {
                let (accepted, connected) = sealed_pair(&server, &offering(offered)).await;
                assert_eq!(accepted.info().alpn, agreed);
                assert_eq!(connected.info().alpn, agreed);
            }
            let (accepted, connected) = shake(&server, &offering(&["smtp"]), "localhost").await;
            assert!(matches!(accepted, Err(TlsError::Refused(Error::NoApplicationProtocol))), "{accepted:?}");
            let told = AlertDescription::NoApplicationProtocol;
            assert!(matches!(connected, Err(TlsError::Alert(alert)) if alert == told), "{connected:?}");
        });
    });
}

#[test]
fn versions_and_suites_are_those_that_were_chosen() {
    on_real_backends(|config| {
        check(config, async {
            let builder = || ServerTls::builder(serving(&["localhost"]));
            let new_only = builder().versions(TlsVersion::Tls13, TlsVersion::Tls13).build().unwrap();
            let old_only = ClientTls::builder(roots()).versions(TlsVersion::Tls12, TlsVersion::Tls12);
            let (accepted, connected) = shake(&new_only, &old_only.build().unwrap(), "localhost").await;
            assert!(matches!(accepted, Err(TlsError::Refused(_))), "{accepted:?}");
            let told = AlertDescription::ProtocolVersion;
            assert!(matches!(connected, Err(TlsError::Alert(alert)) if alert == told), "{connected:?}");

            let suite = "TLS13_CHACHA20_POLY1305_SHA256";
            let (accepted, _) = sealed_pair(&builder().suites([suite]).build().unwrap(), &client()).await;
            assert_eq!(accepted.info().cipher, suite);
        });
    });
}

#[test]
fn several_roots_stand_in_one_file() {
    let both = format!("{}{}", authority().pem, stranger().pem);
    let roots = Roots::from_pem(both).unwrap();
    on_real_backends(|config| {
        check(config, async {
            for issuer in [authority(), stranger()] {
                let server = ServerTls::builder(identity(&issuer.server(&["localhost"]).unwrap()));
                let client = ClientTls::builder(roots.clone()).build().unwrap();
                sealed_pair(&server.build().unwrap(), &client).await;
            }
        });
    });
}

//! Encrypted connections to RabbitMQ and Redis: whom they trust, and that everything gets through.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use bento_outbox::publishers::{RabbitMqPublisher, RedisPublisher};
use bento_outbox::{CloudEvents, Publisher, RejectionClass, Topic};
use bento_outbox_conformance::servers::{RabbitMqServer, RedisServer, free_port};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::time::timeout;

/// An authority, and a certificate of it for `localhost`, as files.
struct Certificates(TempDir);

impl Certificates {
    fn new() -> Self {
        let authority_key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_file = authority.self_signed(&authority_key).unwrap().pem();
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let server = server.signed_by(&key, &issuer).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (name, pem) in [
            ("authority.pem", authority_file),
            ("server.pem", server.pem()),
            ("key.pem", key.serialize_pem()),
        ] {
            std::fs::write(folder.path().join(name), pem).unwrap();
        }
        Self(folder)
    }

    fn file(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

/// A Redis server that encrypts on a second port.
async fn redis(certificates: &Certificates) -> (RedisServer, u16) {
    let port = free_port();
    let server = RedisServer::start_with(&[
        ("tls-port", &port.to_string()),
        ("tls-auth-clients", "no"),
        ("tls-ca-cert-file", &certificates.file("authority.pem")),
        ("tls-cert-file", &certificates.file("server.pem")),
        ("tls-key-file", &certificates.file("key.pem")),
    ])
    .await;
    (server, port)
}

async fn rabbitmq(certificates: &Certificates) -> (RabbitMqServer, u16) {
    let port = free_port();
    let settings = format!(
        "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
         ssl_options.keyfile = {}\nssl_options.verify = verify_none\nssl_options.fail_if_no_peer_cert = false",
        certificates.file("authority.pem"),
        certificates.file("server.pem"),
        certificates.file("key.pem"),
    );
    (RabbitMqServer::start_with(&settings, "").await, port)
}

/// Runs the program, which trusts the authority where it is told to.
async fn run(folder: &Path, trusts: Option<String>, arguments: &[&str], input: Stdio) -> Output {
    let program = super::flights::program();
    let mut command = tokio::process::Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(trusts.map(|file| ("SSL_CERT_FILE", file)))
        .current_dir(folder)
        .stdin(input)
        .kill_on_drop(true);
    let ended = timeout(Duration::from_secs(300), command.output()).await;
    ended.expect("the program does not end").unwrap()
}

/// Carries 1,000 events of 10,000 bytes to the bus.
async fn carry(certificates: &Certificates, bus_url: &str) {
    let folder = tempfile::tempdir().unwrap();
    let events: PathBuf = folder.path().join("events.jsonl");
    let payload = "x".repeat(10_000);
    let lines = (0..1_000).map(|n| format!("{{\"type\":\"a\",\"payload\":[{n},\"{payload}\"]}}\n"));
    std::fs::write(&events, lines.collect::<String>()).unwrap();
    let trusts = || Some(certificates.file("authority.pem"));
    for (arguments, input) in [
        (&["migrate"][..], Stdio::null()),
        (&["append"], File::open(&events).unwrap().into()),
        (&["--bus-url", bus_url, "run", "--once"], Stdio::null()),
    ] {
        let output = run(folder.path(), trusts(), arguments, input).await;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
    }
}

/// `doctor` says of an encrypted bus that it answers, only when its certificate is trusted and for
/// the host that was asked for.
async fn is_trusted_only_when_it_should_be(certificates: &Certificates, scheme: &str, port: u16) {
    let folder = tempfile::tempdir().unwrap();
    let trusted = Some(certificates.file("authority.pem"));
    let stranger = Certificates::new();
    for (host, trusts, is_trusted) in [
        ("localhost", trusted.clone(), true),
        ("127.0.0.1", trusted, false),
        ("localhost", Some(stranger.file("authority.pem")), false),
        ("localhost", None, false),
    ] {
        let url = format!("{scheme}://{host}:{port}");
        let doctor = ["--bus-url", &url, "doctor", "--json"];
        let output = run(folder.path(), trusts, &doctor, Stdio::null()).await;
        let said = String::from_utf8_lossy(&output.stdout);
        let answers = format!("{url} answers");
        assert_eq!(said.contains(&answers), is_trusted, "{host}: {said}");
        assert_eq!(
            said.contains("SSL_CERT_FILE"),
            !is_trusted,
            "{host}: {said}"
        );
    }
}

#[tokio::test]
async fn redis_is_spoken_to_encrypted_and_verified() {
    let certificates = Certificates::new();
    let (server, port) = redis(&certificates).await;
    is_trusted_only_when_it_should_be(&certificates, "rediss", port).await;
    carry(&certificates, &format!("rediss://localhost:{port}")).await;
    let events = super::bus_redis::entries(&server, "a");
    assert_eq!(events.len(), 1_000);

    // The plain port is no encrypted one, and the other way round.
    let publisher = |url: String| {
        let url = url.parse().unwrap();
        RedisPublisher::new(&url, Topic::default(), CloudEvents::default()).unwrap()
    };
    let plain = publisher(format!("rediss://localhost:{}", server.port()));
    let refused = plain.check().await.unwrap_err();
    assert!(refused.reason.contains("TLS"), "{refused}");
    publisher(format!("redis://localhost:{port}"))
        .check()
        .await
        .unwrap_err();
}

#[tokio::test]
async fn rabbitmq_is_spoken_to_encrypted_and_verified() {
    let certificates = Certificates::new();
    let (server, port) = rabbitmq(&certificates).await;
    super::bus_rabbitmq::queue(&server, "outbox", "#", &[]).await;
    is_trusted_only_when_it_should_be(&certificates, "amqps", port).await;
    carry(&certificates, &format!("amqps://localhost:{port}")).await;
    assert_eq!(
        super::bus_rabbitmq::take(&server, "outbox").await.len(),
        1_000
    );

    let publisher = |url: String| {
        let url = url.parse().unwrap();
        RabbitMqPublisher::new(&url, Topic::default(), CloudEvents::default()).unwrap()
    };
    let plain = publisher(format!("amqps://localhost:{}", server.port()));
    let refused = plain.check().await.unwrap_err();
    assert_eq!(refused.class, RejectionClass::Config, "{refused}");
    publisher(format!("amqp://localhost:{port}"))
        .check()
        .await
        .unwrap_err();
}

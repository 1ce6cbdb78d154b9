//! The program and webhooks: TLS, start-up checks, and what people are told of dead letters.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bento_outbox_conformance::servers::receiver::{BODY_BYTES_MAX, Received, ReceiverServer};
use bento_outbox_conformance::servers::{Signal, free_port};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustix::process::{Pid, kill_process};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::flights::program;

const PATIENCE: Duration = Duration::from_secs(120);

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A folder of its own, in which the program runs, with these variables and no others.
struct Place {
    folder: TempDir,
    variables: Vec<(String, String)>,
}

impl Place {
    async fn migrated(variables: &[(&str, &str)]) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).into(), (*value).into());
        let place = Self {
            folder: tempfile::tempdir().unwrap(),
            variables: variables.iter().map(owned).collect(),
        };
        place.succeed(&["migrate"]).await;
        place
    }

    fn with(mut self, name: &str, value: impl AsRef<Path>) -> Self {
        let value = value.as_ref().to_str().unwrap().into();
        self.variables.push((name.into(), value));
        self
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .env_clear()
            .envs(self.variables.iter().cloned())
            .current_dir(self.folder.path())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let ended = timeout(PATIENCE, self.command(arguments).output()).await;
        ended.expect("the program does not end").unwrap()
    }

    async fn succeed(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments).await;
        assert!(ended.status.success(), "{arguments:?}: {}", said(&ended));
        String::from_utf8(ended.stdout).unwrap()
    }

    async fn append(&self, lines: &str) {
        let mut command = self.command(&["append"]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(lines.as_bytes()).await.unwrap();
        drop(input);
        let ended = child.wait_with_output().await.unwrap();
        assert!(ended.status.success(), "{}", said(&ended));
    }

    /// What `doctor` says about a thing: its state and the sentence.
    async fn doctor(&self, about: &str) -> (String, String) {
        let ended = self.run(&["doctor", "--json"]).await;
        let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap();
        let finding = findings.iter().find(|finding| finding["about"] == about);
        let finding = finding.unwrap_or_else(|| panic!("nothing about {about}: {report}"));
        let text = |name: &str| finding[name].as_str().unwrap().to_owned();
        (text("state"), text("found"))
    }
}

fn said(ended: &Output) -> String {
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

/// An endpoint with TLS whose certificate an authority of its own has signed.
struct Https {
    port: u16,
    /// The authority, which nobody knows.
    authority: PathBuf,
    _folder: TempDir,
    requests: Arc<Mutex<Vec<(Version, String)>>>,
    server: JoinHandle<()>,
}

impl Https {
    /// One for that name which speaks these protocols.
    async fn start(name: &str, protocols: &[&str]) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let who = format!("the authority of {name}");
        params.distinguished_name.push(DnType::CommonName, who);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("authority.pem");
        fs::write(&file, authority.pem()).unwrap();

        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = certificate.signed_by(&key, &authority).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().into())
            .collect();

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::default();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let server = tokio::spawn(serve(listener, acceptor, Arc::clone(&requests)));
        Self {
            port,
            authority: file,
            _folder: folder,
            requests,
            server,
        }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/hook", self.port)
    }

    fn requests(&self) -> Vec<(Version, String)> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Https {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Takes every event, and notes its protocol and id.
async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    requests: Arc<Mutex<Vec<(Version, String)>>>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, requests) = (acceptor.clone(), Arc::clone(&requests));
        tokio::spawn(async move {
            // A client that does not trust us says so and leaves.
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let service = service_fn(|request: Request<Incoming>| {
                let requests = Arc::clone(&requests);
                async move {
                    let id = request.headers()["webhook-id"].to_str().unwrap().to_owned();
                    let version = request.version();
                    request.into_body().collect().await?;
                    requests.lock().unwrap().push((version, id));
                    Ok::<_, hyper::Error>(Response::new(Empty::<Bytes>::new()))
                }
            });
            let stream = TokioIo::new(stream);
            // The client may go when it likes.
            let _ = match is_h2 {
                true => {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    server.serve_connection(stream, service).await
                }
                false => {
                    let server = hyper::server::conn::http1::Builder::new();
                    server.serve_connection(stream, service).await
                }
            };
        });
    }
}

const EVENTS: usize = 40;

/// Events, each of an aggregate of its own.
fn events() -> String {
    let line = |n| {
        format!(
            r#"{{"type":"order.placed","aggregate_type":"order","aggregate_id":"{n}","payload":{n}}}"#
        )
    };
    (0..EVENTS).map(|n| line(n) + "\n").collect()
}

#[tokio::test]
async fn events_go_by_tls_in_either_version_of_http() {
    for (protocols, version) in [
        (&["h2", "http/1.1"][..], Version::HTTP_2),
        (&["http/1.1"], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ] {
        let https = Https::start("localhost", protocols).await;
        let place = Place::migrated(&[("OUTBOX_BUS_URL", &https.url())]).await;
        let place = place.with("SSL_CERT_FILE", &https.authority);
        assert_eq!(place.doctor("bus").await.0, "ok");
        place.append(&events()).await;
        place.succeed(&["run", "--once"]).await;
        let requests = https.requests();
        assert_eq!(requests.len(), EVENTS);
        assert!(
            requests.iter().all(|(seen, _)| *seen == version),
            "{protocols:?}"
        );
    }
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_said_to_be_one() {
    let https = Https::start("localhost", &["h2"]).await;
    let other = Https::start("other.example", &["h2"]).await;
    for (https, authority, said) in [
        (&https, &other.authority, "UnknownIssuer"),
        (&other, &other.authority, "other.example"),
    ] {
        let place = Place::migrated(&[("OUTBOX_BUS_URL", &https.url())]).await;
        let place = place.with("SSL_CERT_FILE", authority);
        let (state, found) = place.doctor("bus").await;
        assert!(state == "broken" && found.contains(said), "{found}");
        place.append(&events()).await;
        let ended = place.run(&["run", "--once"]).await;
        assert_eq!(ended.status.code(), Some(1));
        assert!(self::said(&ended).contains(said), "{}", self::said(&ended));
        let status: Value =
            serde_json::from_str(&place.succeed(&["status", "--json"]).await).unwrap();
        assert_eq!(status["total"]["new"], EVENTS);
        assert_eq!(https.requests(), []);
    }
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_not_used() {
    let receiver = ReceiverServer::start().await;
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let place = Place::migrated(&[
        ("OUTBOX_BUS_URL", &receiver.url()),
        ("HTTP_PROXY", &nobody),
        ("http_proxy", &nobody),
        ("ALL_PROXY", &nobody),
    ])
    .await;
    place.append(&events()).await;
    place.succeed(&["run", "--once"]).await;
    assert_eq!(receiver.received().len(), EVENTS);
}

#[tokio::test]
async fn the_doctor_says_whether_a_webhook_can_be_reached_and_sends_it_nothing() {
    let receiver = ReceiverServer::start().await;
    let url = format!("{}/hooks/s3cr3t?token=s3cr3t", receiver.url());
    let variables = [("OUTBOX_BUS_URL", &*url), ("OUTBOX_ALERT_URL", &*url)];
    let place = Place::migrated(&variables).await;
    for about in ["bus", "alerts"] {
        let (state, found) = place.doctor(about).await;
        assert_eq!(state, "ok", "{found}");
        assert!(!found.contains("s3cr3t"), "{found}");
    }
    receiver.kill();
    for about in ["bus", "alerts"] {
        let (state, found) = place.doctor(about).await;
        assert_eq!(state, "broken", "{found}");
        assert!(!found.contains("s3cr3t"), "{found}");
    }
    receiver.restart().await;
    assert_eq!(receiver.received(), []);

    let ended = place
        .run(&["--bus-url", "http://localhost/?timeout=soon", "doctor"])
        .await;
    let found = String::from_utf8(ended.stdout).unwrap();
    assert!(
        found.contains("option timeout is not a duration"),
        "{found}"
    );
    for (name, value, said) in [
        ("OUTBOX_ALERT_URL", "nats://localhost", "alert_url"),
        ("OUTBOX_ALERT_URL", "http://localhost?mode=x", "alert_url"),
        ("OUTBOX_WEBHOOK_SECRET", "whsec_s3cr3t!", "webhook_secret"),
    ] {
        let place = Place::migrated(&[]).await.with(name, value);
        let ended = place.run(&["run", "--once"]).await;
        let sentence = self::said(&ended);
        assert_eq!(ended.status.code(), Some(2), "{sentence}");
        assert!(sentence.contains(said), "{sentence}");
        assert!(
            !sentence.contains("s3cr3t") && !sentence.contains("bus_url"),
            "{sentence}"
        );
    }
}

/// So many events that no receiver takes, and one that it does.
fn mostly_too_large(count: usize) -> String {
    let data = BASE64.encode(vec![b'a'; BODY_BYTES_MAX + 1]);
    let large = |tenant: &str| {
        format!(r#"{{"tenant_id":"{tenant}","type":"order.placed","data":"{data}"}}"#) + "\n"
    };
    let small = r#"{"type":"order.placed","payload":1}"#.to_owned() + "\n";
    (0..count)
        .map(|n| large(["acme", "other"][n % 2]))
        .chain([small])
        .collect()
}

/// The alerts among what was received, each with a valid signature.
fn alerts(receiver: &ReceiverServer) -> Vec<Value> {
    let received = receiver.received();
    let alerts = received
        .iter()
        .filter(|request| request.target == "/alerts");
    let alert = |request: &Received| {
        let body = BASE64.decode(&request.body).unwrap();
        let header = |(name, value): &(String, String)| {
            let name = HeaderName::try_from(name).unwrap();
            (name, HeaderValue::try_from(value).unwrap())
        };
        let headers: HeaderMap = request.headers.iter().map(header).collect();
        assert_eq!(headers["ce-type"], "bento-outbox.dead-letters");
        Webhook::new(SECRET)
            .unwrap()
            .verify(&body, &headers)
            .unwrap();
        serde_json::from_slice(&body).unwrap()
    };
    alerts.map(alert).collect()
}

#[tokio::test]
async fn people_are_told_of_dead_letters_once_and_together() {
    let receiver = ReceiverServer::start().await;
    let place = Place::migrated(&[
        ("OUTBOX_BUS_URL", &receiver.url()),
        ("OUTBOX_ALERT_URL", &format!("{}/alerts", receiver.url())),
        ("OUTBOX_WEBHOOK_SECRET", SECRET),
    ])
    .await;
    place.append(&mostly_too_large(5)).await;
    place.succeed(&["run", "--once"]).await;
    let alerts = alerts(&receiver);
    let [alert] = &alerts[..] else {
        panic!("{alerts:?}");
    };
    assert_eq!(
        alert["text"],
        "5 new dead letters: 3 order.placed of acme, 2 order.placed of other (see `bento-outbox dead list`)"
    );
    let dead: Vec<Value> = place
        .succeed(&["dead", "list", "--all", "--json"])
        .await
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(dead.len(), 5);
    for group in alert["groups"].as_array().unwrap() {
        for example in group["examples"].as_array().unwrap() {
            let same = |dead: &&Value| dead["id"] == example["id"];
            let dead = dead.iter().find(same).expect("an example is a dead letter");
            assert_eq!(dead["tenant_id"], group["tenant_id"]);
            assert!(example["reason"].as_str().unwrap().contains("413"));
        }
    }
    place.succeed(&["run", "--once"]).await;
    assert_eq!(self::alerts(&receiver).len(), 1, "told once");
}

/// The webhook is down while events die: the relay goes on, and people are told when it is back.
#[tokio::test]
async fn a_webhook_that_is_down_holds_nothing_up_and_is_told_later() {
    let (bus, webhook) = tokio::join!(ReceiverServer::start(), ReceiverServer::start());
    let place = Place::migrated(&[
        ("OUTBOX_BUS_URL", &bus.url()),
        ("OUTBOX_ALERT_URL", &format!("{}/alerts", webhook.url())),
        ("OUTBOX_WEBHOOK_SECRET", SECRET),
    ])
    .await;
    webhook.kill();
    let relay = place.command(&["run"]).spawn().unwrap();
    place.append(&mostly_too_large(4)).await;
    let begun = Instant::now();
    while bus.received().is_empty() {
        assert!(
            begun.elapsed() < PATIENCE,
            "the event that is small does not arrive"
        );
        sleep(Duration::from_millis(50)).await;
    }
    sleep(Duration::from_secs(7)).await;
    webhook.restart().await;
    while alerts(&webhook).is_empty() {
        assert!(begun.elapsed() < PATIENCE, "nobody is told");
        sleep(Duration::from_millis(100)).await;
    }
    let id = relay.id().and_then(|id| Pid::from_raw(id as i32)).unwrap();
    kill_process(id, Signal::TERM).unwrap();
    let ended = timeout(PATIENCE, relay.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    assert!(ended.status.success(), "{}", said(&ended));
    let alerts = alerts(&webhook);
    let total: u64 = alerts
        .iter()
        .map(|alert| alert["total"].as_u64().unwrap())
        .sum();
    assert_eq!((total, alerts.len()), (4, 1));
    assert_eq!(alerts[0]["others"], json!(0));
}

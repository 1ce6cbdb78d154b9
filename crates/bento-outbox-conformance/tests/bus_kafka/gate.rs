//! A gate before a broker, for what Tansu cannot be asked for: TLS, and SASL with a user it knows.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use bento_outbox_conformance::servers::KafkaServer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// What the gate asks of clients.
#[derive(Clone, Default)]
pub(super) struct Rules {
    pub(super) tls: Option<TlsAcceptor>,
    /// Who may come in, by SASL's mechanism PLAIN.
    pub(super) login: Option<(&'static str, &'static str)>,
}

/// The port behind which the broker is. With it the gate closes.
pub(super) struct Gate {
    pub(super) port: u16,
    _guests: JoinSet<()>,
}

impl Gate {
    /// Builds a gate and sends the broker's clients through it.
    pub(super) async fn before(server: &KafkaServer, rules: Rules) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        server.send_clients_to(port).await;
        let broker = server.port();
        let mut guests = JoinSet::new();
        guests.spawn(async move {
            let mut guests = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                guests.spawn(pass(client, broker, rules.clone()));
            }
        });
        Self {
            port,
            _guests: guests,
        }
    }
}

/// A certificate for these names, and an acceptor that shows it.
pub(super) fn certificate(names: &[&str]) -> (String, TlsAcceptor) {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (made.cert.pem(), Arc::new(config).into())
}

async fn pass(client: TcpStream, broker: u16, rules: Rules) -> io::Result<()> {
    let broker = TcpStream::connect((Ipv4Addr::LOCALHOST, broker)).await?;
    match rules.tls {
        Some(acceptor) => talk(acceptor.accept(client).await?, broker, rules.login).await,
        None => talk(client, broker, rules.login).await,
    }
}

async fn talk(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut broker: TcpStream,
    login: Option<(&str, &str)>,
) -> io::Result<()> {
    if let Some((user, password)) = login {
        let secret = format!("\0{user}\0{password}");
        while !ask(&mut client, &mut broker, secret.as_bytes()).await? {}
    }
    copy_bidirectional(&mut client, &mut broker).await?;
    Ok(())
}

/// One request before the login: which versions there are, which mechanism, and the login itself
/// (<https://kafka.apache.org/protocol#sasl_handshake>). Says whether it was the right one.
async fn ask(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    broker: &mut TcpStream,
    secret: &[u8],
) -> io::Result<bool> {
    let request = frame(client).await?;
    let (key, number) = (&request[..2], &request[4..8]);
    let client_id = usize::from(u16::from_be_bytes([request[8], request[9]]));
    let body = &request[10 + client_id..];
    let (answer, is_in) = match key {
        // ApiVersions: what the broker says.
        [0, 18] => {
            write_frame(broker, &request).await?;
            (frame(broker).await?, false)
        }
        // SaslHandshake: no error, or an unsupported mechanism; there is PLAIN.
        [0, 17] => {
            let error = if body == b"\0\x05PLAIN" { 0 } else { 33 };
            let tail = [0, error, 0, 0, 0, 1];
            ([number, &tail, b"\0\x05PLAIN"].concat(), false)
        }
        // SaslAuthenticate: no error, no message, no bytes, no end; or the error and its message.
        [0, 36] if &body[4..] == secret => ([number, b"\0\0\xff\xff", &[0; 12]].concat(), true),
        [0, 36] => {
            let refusal = [number, b"\0\x3a\0\x04no!!", &[0; 12]].concat();
            write_frame(client, &refusal).await?;
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        _ => return Err(io::ErrorKind::PermissionDenied.into()),
    };
    write_frame(client, &answer).await?;
    Ok(is_in)
}

async fn frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; from.read_u32().await? as usize];
    from.read_exact(&mut frame).await?;
    Ok(frame)
}

async fn write_frame(to: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> io::Result<()> {
    to.write_u32(frame.len() as u32).await?;
    to.write_all(frame).await?;
    to.flush().await
}

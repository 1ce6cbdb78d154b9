//! The proxy does to a connection what it says, on plain sockets and on real servers.

use std::pin::pin;
use std::time::{Duration, Instant};

use bento_outbox_conformance::faults::{Bites, Proxy, Way};
use bento_outbox_conformance::servers::{shared_nats, shared_postgres};
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// So long a test watches that nothing happens.
const SILENCE: Duration = Duration::from_millis(150);
/// So long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that says everything back, and the proxy before it.
async fn echo() -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("tcp://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reads, mut writes) = socket.split();
                tokio::io::copy(&mut reads, &mut writes).await
            });
        }
    });
    Proxy::before(&url).await
}

async fn dial(proxy: &Proxy) -> TcpStream {
    let address = proxy.url_of("tcp://any:1").replace("tcp://", "");
    TcpStream::connect(address)
        .await
        .expect("the proxy listens")
}

/// Sends `text` and hears it back.
async fn says_back(socket: &mut TcpStream, text: &str) -> bool {
    socket
        .write_all(text.as_bytes())
        .await
        .expect("the proxy takes bytes");
    let mut heard = vec![0; text.len()];
    timeout(PATIENCE, socket.read_exact(&mut heard))
        .await
        .expect("an answer")
        .is_ok()
        && heard == text.as_bytes()
}

/// Hears nothing for a while: no byte, and no end either.
async fn is_silent(socket: &mut TcpStream) -> bool {
    timeout(SILENCE, socket.read_u8()).await.is_err()
}

/// Hears the end of the connection, and what comes before it.
async fn heard_to_the_end(socket: &mut TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    // A reset is an end as well.
    timeout(PATIENCE, socket.read_to_end(&mut heard))
        .await
        .expect("an end")
        .ok();
    heard
}

/// Waits until a fault has bitten once.
async fn bitten(proxy: &Proxy, bites: impl Fn(Bites) -> u64) {
    let look = async {
        while bites(proxy.bites()) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, look)
        .await
        .expect("the fault bites in time");
    assert_eq!(bites(proxy.bites()), 1);
}

/// Checks that `future` never completes: not before the reply to it was swallowed, and not after.
async fn assert_unanswered<T>(proxy: &Proxy, future: impl Future<Output = T>) {
    let mut future = pin!(future);
    tokio::select! {
        _ = &mut future => panic!("the answer arrived"),
        () = bitten(proxy, |bites| bites.unanswered) => {}
    }
    assert!(
        timeout(SILENCE, future).await.is_err(),
        "the answer arrived"
    );
}

#[tokio::test]
async fn only_host_and_port_of_a_url_change() {
    let proxy = Proxy::before("postgres://db.example:5432/shop").await;
    let url = proxy.url_of("postgres://me:secret@db.example:5432/shop?application_name=x");
    let port = url::Url::parse(&url)
        .expect("a URL")
        .port()
        .expect("a port");
    assert_eq!(
        url,
        format!("postgres://me:secret@127.0.0.1:{port}/shop?application_name=x")
    );
}

#[tokio::test]
async fn bytes_pass_until_a_fault_is_set() {
    let proxy = echo().await;
    let mut socket = dial(&proxy).await;
    let long = "0123456789".repeat(100_000);
    let (mut reads, mut writes) = socket.split();
    let mut heard = vec![0; long.len()];
    let (sent, read) = tokio::join!(
        writes.write_all(long.as_bytes()),
        reads.read_exact(&mut heard)
    );
    assert!(sent.is_ok() && read.is_ok());
    assert_eq!(heard, long.as_bytes());

    socket.shutdown().await.expect("a half-closed socket");
    assert_eq!(
        heard_to_the_end(&mut socket).await,
        b"",
        "the end of the stream passes both ways"
    );
    assert_eq!(proxy.bites(), Default::default());
}

#[tokio::test]
async fn each_way_has_its_own_delay() {
    let proxy = echo().await;
    let mut socket = dial(&proxy).await;
    proxy.delay(Way::ToServer, Duration::from_millis(30));
    proxy.delay(Way::ToClient, Duration::from_millis(50));
    let begin = Instant::now();
    assert!(says_back(&mut socket, "slow").await);
    assert!(
        begin.elapsed() >= Duration::from_millis(80),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(proxy.bites().delayed, 2);

    proxy.heal();
    assert!(says_back(&mut socket, "fast").await);
    assert_eq!(proxy.bites().delayed, 2);
}

#[tokio::test]
async fn a_cut_ends_the_connections_there_are_and_no_others() {
    let proxy = echo().await;
    let (mut one, mut two) = (dial(&proxy).await, dial(&proxy).await);
    assert!(says_back(&mut one, "hello").await && says_back(&mut two, "hello").await);
    proxy.cut();
    assert_eq!(heard_to_the_end(&mut one).await, b"");
    assert_eq!(heard_to_the_end(&mut two).await, b"");
    assert_eq!(proxy.bites().cut, 2);
    assert!(says_back(&mut dial(&proxy).await, "again").await);
}

#[tokio::test]
async fn the_last_handle_takes_the_connections_with_it() {
    let proxy = echo().await;
    let mut socket = dial(&proxy).await;
    let handle = proxy.clone();
    drop(proxy);
    assert!(says_back(&mut socket, "still here").await);
    drop(handle);
    assert_eq!(heard_to_the_end(&mut socket).await, b"");
}

#[tokio::test]
async fn what_fell_into_a_black_hole_stays_there() {
    let proxy = echo().await;
    let mut socket = dial(&proxy).await;
    assert!(says_back(&mut socket, "hello").await);
    proxy.blackhole(true);
    socket
        .write_all(b"lost")
        .await
        .expect("the proxy takes bytes");
    bitten(&proxy, |bites| bites.blackholed).await;
    assert!(is_silent(&mut socket).await);

    proxy.blackhole(false);
    socket
        .write_all(b"late")
        .await
        .expect("the proxy takes bytes");
    assert!(
        is_silent(&mut socket).await,
        "nothing follows a gap in a stream"
    );
    assert!(says_back(&mut dial(&proxy).await, "again").await);
}

#[tokio::test]
async fn new_connections_are_refused_and_old_ones_live() {
    let proxy = echo().await;
    let mut old = dial(&proxy).await;
    assert!(says_back(&mut old, "hello").await);
    proxy.refuse(true);
    assert_eq!(heard_to_the_end(&mut dial(&proxy).await).await, b"");
    assert_eq!(proxy.bites().refused, 1);
    assert!(says_back(&mut old, "still here").await);
    proxy.refuse(false);
    assert!(says_back(&mut dial(&proxy).await, "welcome").await);
}

#[tokio::test]
async fn a_connection_is_cut_after_exactly_so_many_bytes() {
    let proxy = echo().await;
    proxy.cut_after(Way::ToClient, 7);
    let mut socket = dial(&proxy).await;
    assert!(says_back(&mut socket, "1234").await);
    socket
        .write_all(b"56789")
        .await
        .expect("the proxy takes bytes");
    assert_eq!(heard_to_the_end(&mut socket).await, b"567");
    assert_eq!(proxy.bites().cut_short, 1);
    assert!(says_back(&mut dial(&proxy).await, "it happens once").await);
}

#[tokio::test]
async fn the_reply_is_swallowed_although_the_pattern_is_torn() {
    let proxy = echo().await;
    proxy.swallow_reply(b"COMMIT", 1);
    let mut socket = dial(&proxy).await;
    socket.set_nodelay(true).expect("a socket option");
    assert!(says_back(&mut socket, "BEGIN; COM").await);
    socket
        .write_all(b"MIT")
        .await
        .expect("the proxy takes bytes");
    bitten(&proxy, |bites| bites.unanswered).await;
    assert!(is_silent(&mut socket).await);
    assert!(
        says_back(&mut dial(&proxy).await, "COMMIT").await,
        "it was asked for once"
    );
}

#[tokio::test]
async fn postgres_commits_what_the_client_never_hears_of() {
    let database = shared_postgres().database().await;
    let proxy = Proxy::before(database.url()).await;
    let mut direct = PgConnection::connect(database.url())
        .await
        .expect("a connection");
    sqlx::query("CREATE TABLE t (id int)")
        .execute(&mut direct)
        .await
        .expect("a table");

    let mut client = PgConnection::connect(&proxy.url_of(database.url()))
        .await
        .expect("a connection");
    proxy.swallow_reply(b"COMMIT", 1);
    let mut transaction = client.begin().await.expect("a transaction");
    sqlx::query("INSERT INTO t VALUES (1)")
        .execute(&mut *transaction)
        .await
        .expect("an insert");
    assert_unanswered(&proxy, transaction.commit()).await;

    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM t")
        .fetch_one(&mut direct)
        .await
        .expect("a count");
    assert_eq!(rows, 1);
}

#[tokio::test]
async fn jetstream_stores_what_the_client_never_hears_of() {
    let url = shared_nats().url();
    let proxy = Proxy::before(&url).await;
    let direct = async_nats::jetstream::new(async_nats::connect(&url).await.expect("a connection"));
    let config = async_nats::jetstream::stream::Config {
        name: "in_doubt".into(),
        subjects: vec!["in_doubt.>".into()],
        ..Default::default()
    };
    let stream = direct.create_stream(config).await.expect("a stream");

    let client = async_nats::connect(proxy.url_of(&url))
        .await
        .expect("a connection");
    let client = async_nats::jetstream::new(client);
    proxy.swallow_reply(b"PUB in_doubt.", 1);
    let acknowledged = client
        .publish("in_doubt.one", "hello".into())
        .await
        .expect("a message that is sent");
    assert_unanswered(&proxy, acknowledged.into_future()).await;

    assert_eq!(
        stream.get_info().await.expect("an answer").state.messages,
        1
    );
}

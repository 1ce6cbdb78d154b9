//! A database that cannot be reached says which one it is, and why.

use std::time::{Duration, Instant};

use bento_outbox::stores::{MySqlStore, PostgresStore, Tables};
use bento_outbox::{ErrorKind, Store};
use bento_outbox_conformance::servers::{free_port, shared_mariadb, shared_postgres};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// What `check` and `migrate` say of the database at `address`, for a user with a password.
async fn complaint(address: &str) -> String {
    let url = format!("postgres://bob:s3cret@{address}");
    complaint_of(&PostgresStore::open(&url, Tables::default()).await.unwrap()).await
}

/// The same of a MySQL.
async fn complaint_of_mysql(address: &str) -> String {
    let url = format!("mysql://bob:s3cret@{address}");
    complaint_of(&MySqlStore::open(&url, Tables::default()).await.unwrap()).await
}

async fn complaint_of(store: &dyn Store) -> String {
    let begun = Instant::now();
    let error = store.check().await.unwrap_err();
    assert_ne!(error.kind(), ErrorKind::Schema);
    let report = error.report();
    assert_eq!(store.migrate().await.unwrap_err().report(), report);
    // Each of them says so after 5 seconds, and not when the pool gives up after several tries.
    assert!(begun.elapsed() < Duration::from_secs(40), "{report}");
    assert!(!report.contains("s3cret"), "{report}");
    report
}

#[tokio::test]
async fn a_closed_port_is_named() {
    let address = format!("127.0.0.1:{}", free_port());
    let place = format!("{address}/shop");
    for said in [complaint(&place).await, complaint_of_mysql(&place).await] {
        assert!(said.contains(&address), "{said}");
        assert!(said.contains("Connection refused"), "{said}");
    }
}

#[tokio::test]
async fn a_host_that_is_none_is_named() {
    let said = complaint("no-such-host.invalid/shop").await;
    assert!(said.contains("no-such-host.invalid:5432"), "{said}");
    assert!(said.contains("lookup"), "{said}");
}

#[tokio::test]
async fn a_database_that_is_not_there_is_named() {
    let url = format!("127.0.0.1:{}/nowhere", shared_postgres().port());
    let url = format!("postgres://postgres:s3cret@{url}");
    let store = PostgresStore::open(&url, Tables::default()).await.unwrap();
    let said = store.check().await.unwrap_err().report();
    assert!(
        said.contains("database \"nowhere\" does not exist"),
        "{said}"
    );
    let url = format!("mysql://root@127.0.0.1:{}/nowhere", shared_mariadb().port());
    let store = MySqlStore::open(&url, Tables::default()).await.unwrap();
    let said = store.check().await.unwrap_err().report();
    assert!(said.contains("Unknown database 'nowhere'"), "{said}");
}

#[tokio::test]
async fn a_refused_password_is_said_and_not_shown() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            // The request for TLS, 8 bytes, then the one to begin.
            client.read_exact(&mut [0; 8]).await.unwrap();
            client.write_all(b"N").await.unwrap();
            assert!(client.read(&mut [0; 1_024]).await.unwrap() > 0);
            let fields =
                b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user \"bob\"\0\0";
            let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
            let answer = [b"E", &length[..], fields].concat();
            client.write_all(&answer).await.unwrap();
        }
    });
    let said = complaint(&format!("{address}/shop")).await;
    assert!(said.contains(&address.to_string()), "{said}");
    assert!(
        said.contains("password authentication failed for user \"bob\""),
        "{said}"
    );
}

#[tokio::test]
async fn a_server_that_stays_silent_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let said = complaint(&format!("{address}/shop")).await;
    assert_eq!(
        said,
        format!("PostgreSQL at {address} does not answer within 5s")
    );
    let said = complaint_of_mysql(&format!("{address}/shop")).await;
    assert_eq!(
        said,
        format!("MySQL at {address} does not answer within 5s")
    );
}

#[tokio::test]
async fn a_user_that_mysql_refuses_is_named_and_no_password_shown() {
    let address = format!("127.0.0.1:{}", shared_mariadb().port());
    let said = complaint_of_mysql(&format!("{address}/mysql")).await;
    assert!(said.contains(&address), "{said}");
    assert!(said.contains("Access denied for user 'bob'"), "{said}");
}

//! What is MySQL's own.

use super::*;

#[tokio::test]
async fn the_columns_are_those_of_the_contract() {
    let [_, _, db] = migrated().await;
    let columns = db
        .lines(
            "select column_name, column_type, is_nullable, coalesce(collation_name, '')
             from information_schema.columns
             where table_schema = database() and table_name = 'outbox' order by ordinal_position limit 16",
        )
        .await;
    let expected = [
        "id|char(36)|NO|ascii_bin",
        "seq|bigint(20)|NO|",
        "tenant_id|varchar(64)|NO|utf8mb4_bin",
        "aggregate_type|varchar(128)|YES|utf8mb4_bin",
        "aggregate_id|varchar(255)|YES|utf8mb4_bin",
        "type|varchar(255)|NO|utf8mb4_bin",
        "schema_id|varchar(255)|YES|utf8mb4_bin",
        "schema_ver|int(11)|NO|",
        "payload|longtext|YES|utf8mb4_bin",
        "data|longblob|YES|",
        "content_type|varchar(128)|NO|utf8mb4_bin",
        "key_id|varchar(128)|YES|utf8mb4_bin",
        "headers|longtext|NO|utf8mb4_bin",
        "occurred_at|datetime(6)|NO|",
        "created_at|datetime(6)|NO|",
        "available_at|datetime(6)|NO|",
    ];
    assert_eq!(columns, expected);
}

/// Both would be another value to the server than to the writer.
#[tokio::test]
async fn a_value_that_would_be_cut_or_turned_is_refused() {
    let [_, _, db] = migrated().await;
    let long = |chars: usize| format!("'{}'", "x".repeat(chars));
    for (column, value) in [
        ("tenant_id", long(65)),
        ("aggregate_type", long(129)),
        ("aggregate_id", long(256)),
        ("schema_id", long(256)),
        ("content_type", long(129)),
        ("key_id", long(129)),
        ("error_message", long(2_001)),
        ("schema_ver", "2147483648".into()),
        ("occurred_at", "'0000-12-31'".into()),
        ("created_at", "'2013-02-30'".into()),
        ("id", "'0191D7F0-0000-7000-8000-00000000000B'".into()),
        ("id", "'0191d7f000007000800000000000000b    '".into()),
        ("status", "'NEW  '".into()),
    ] {
        let row =
            format!("insert into outbox (type, payload, {column}) values ('a', '1', {value})");
        let refused = db.try_run(&row).await;
        assert!(refused.is_err(), "{column} took {value}");
    }
    let row = format!(
        "insert into outbox (type, payload) values ({}, '1')",
        long(256)
    );
    assert!(db.try_run(&row).await.is_err());
}

/// Without strict mode the server cuts what is too long, as it does in every table. What it turns
/// into something else is refused all the same, and `inspect` says what to set.
#[tokio::test]
async fn without_strict_mode_only_cutting_is_left() {
    let [_, _, db] = migrated().await;
    let lax = |insert: &str| {
        format!("set session sql_mode = ''; {insert}; set session sql_mode = default")
    };
    for values in [
        "'', '1', 'k'",
        "'a b', '1', 'k'",
        "'a', '{', 'k'",
        "'a', '1', ''",
    ] {
        let insert = format!("insert into outbox (type, payload, aggregate_id) values ({values})");
        assert!(db.try_run(&lax(&insert)).await.is_err(), "took {values}");
    }
    let bad_time = "insert into outbox (type, payload, available_at) values ('a', '1', 'soon')";
    assert!(db.try_run(&lax(bad_time)).await.is_err());
    for column in [
        "occurred_at",
        "created_at",
        "available_at",
        "retry_at",
        "sent_at",
    ] {
        for day in ["2026-00-10", "2026-01-00", "2026-02-31", "0000-00-00"] {
            let insert =
                format!("insert into outbox (type, payload, {column}) values ('a', '1', '{day}')");
            for mode in ["", "ALLOW_INVALID_DATES"] {
                let lax = format!(
                    "set session sql_mode = '{mode}'; {insert}; set session sql_mode = default"
                );
                let taken = db.try_run(&lax).await;
                assert!(taken.is_err(), "{column} took {day} with {mode:?}");
            }
        }
    }
    let long = format!(
        "insert into outbox (type, payload, aggregate_id) values ('a', '1', '{}')",
        "x".repeat(300)
    );
    db.run(&lax(&long)).await;
    let length = "select char_length(aggregate_id) from outbox";
    assert_eq!(db.lines(length).await, ["255"]);
}

/// MariaDB follows 31 levels of JSON. The library has read its own events' payloads itself.
#[tokio::test]
async fn the_server_judges_the_payloads_of_other_writers() {
    let [_, _, db] = migrated().await;
    let nested = |levels| "[".repeat(levels) + &"]".repeat(levels);
    let insert = |levels| {
        let payload = nested(levels);
        format!("insert into outbox (type, payload) values ('a', '{payload}')")
    };
    db.run(&insert(31)).await;
    assert!(db.try_run(&insert(32)).await.is_err());
}

/// Blanks at the end of a text are nothing to the collations that both servers know.
#[tokio::test]
async fn keys_that_differ_in_a_blank_at_their_end_differ() {
    let [_, _, db] = migrated().await;
    db.run(
        "insert into outbox (type, payload, aggregate_id, available_at)
         values ('a', '1', 'k', utc_timestamp() + interval 1 hour);
         insert into outbox (type, payload, aggregate_id) values ('a', '2', 'k '), ('a', '3', 'K')",
    )
    .await;
    let read: Vec<_> = db
        .claim()
        .await
        .into_iter()
        .map(|record| record.payload)
        .collect();
    assert_eq!(read, ["2", "3"]);
}

/// Writers with clients of any character set.
#[tokio::test]
async fn a_latin_1_client_writes_what_it_means() {
    let [_, _, db] = migrated().await;
    db.run(
        "set names latin1; insert into outbox (type, payload, aggregate_id)
             values ('a', concat('\"', char(0xe9 using latin1), '\"'), char(0xe9 using latin1));
         set names utf8mb4",
    )
    .await;
    let record = db.claim().await.remove(0);
    assert_eq!(record.payload, "\"é\"".as_bytes());
    assert_eq!(record.aggregate.id.as_deref(), Some("é"));
}

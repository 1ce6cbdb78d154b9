//! What is SQLite's own.

use super::*;

#[tokio::test]
async fn the_columns_are_those_of_the_contract() {
    let [_, db, _] = migrated().await;
    let columns = db
        .lines(
            "select name || ' ' || lower(type) || iif(\"notnull\" or pk, '', ' null')
             from pragma_table_info('outbox')",
        )
        .await;
    for column in [
        "id text",
        "seq integer",
        "tenant_id text",
        "aggregate_type text null",
        "aggregate_id text null",
        "type text",
        "schema_id text null",
        "schema_ver integer",
        "payload text null",
        "data blob null",
        "content_type text",
        "key_id text null",
        "headers text",
        "occurred_at text",
        "created_at text",
        "available_at text",
    ] {
        assert!(
            columns.contains(&column.to_owned()),
            "{column} is not in {columns:?}"
        );
    }
}

/// Whatever SQLite itself takes for a time, the relay takes for the same one.
#[tokio::test]
async fn every_form_of_a_time_is_the_time_that_sqlite_reads() {
    let [_, db, _] = migrated().await;
    let forms = [
        "2013-01-01",
        "2013-01-01 12:00",
        "2013-01-01T12:00",
        "2013-01-01 12:00:00",
        "2013-01-01 12:00:00.5",
        "2013-01-01T12:00:00.123456789Z",
        "2013-01-01 12:00:00+00:00",
        "2013-01-01 12:00:00 +02:00",
        "2013-01-01T12:00+02:00",
        "2013-01-01T12:00z",
        "2013-01-01T12:00:00Z ",
        "2013-01-01   12:00:00",
        "2013-01-01 24:00",
        "2013-01-01 00:30:00-01:00",
        "2013-02-30",
        "0001-01-01",
        "9999-12-31T23:59:59Z",
    ];
    for form in forms {
        db.run(&format!(
            "insert into outbox (type, payload, occurred_at) values ('a', '1', '{form}')"
        ))
        .await;
    }
    let seconds = db
        .lines("select unixepoch(occurred_at) from outbox order by seq")
        .await;
    let records = db.claim().await;
    assert_eq!(records.len(), forms.len());
    for ((record, second), form) in records.iter().zip(seconds).zip(forms) {
        let read = record.occurred_at.unix_micros().div_euclid(1_000_000);
        assert_eq!(read.to_string(), second, "{form}");
    }
}

/// Most functions of SQLite end a text at NUL, and what is behind it must not slip in.
#[tokio::test]
async fn a_nul_is_refused_where_a_grammar_does_not_know_it() {
    let [_, db, _] = migrated().await;
    for (column, start) in [
        ("tenant_id", "a"),
        ("content_type", "a"),
        ("id", "0191d7f0-0000-7000-8000-00000000000b"),
    ] {
        let row = format!(
            "insert into outbox (type, payload, {column}) values ('a', '1', '{start}' || char(0) || 'b')"
        );
        assert!(db.try_run(&row).await.is_err(), "{row}");
    }
    let row = "insert into outbox (type, payload) values ('a' || char(0) || 'b', '1')";
    assert!(db.try_run(row).await.is_err());
}

/// SQLite takes any bytes for text. One such row must not stop the relay.
#[tokio::test]
async fn a_row_that_cannot_be_read_is_a_dead_letter_and_holds_nobody_up() {
    let [_, db, _] = migrated().await;
    db.run(
        "insert into outbox (type, payload) values ('good', '1');
         insert into outbox (type, payload, aggregate_id) values ('latin-1', '1', cast(x'e9' as text));
         insert into outbox (type, payload, key_id) values ('utf-16', '1', cast(x'feff' as text));
         insert into outbox (type, payload, headers) values ('bytes', '1', cast(x'7b2261223a22ff227d' as text));
         insert into outbox (type, payload) values ('good', '2');",
    )
    .await;
    let batch = db.round(Bus(|_: &OutboxRecord| Outcome::Acked)).await;
    assert_eq!((batch.sent, batch.dead), (2, 3));
    let dead = "select type, error_message from outbox_events where status = 'ERR' order by seq";
    let dead = db.lines(dead).await;
    assert_eq!(dead.len(), 3);
    assert!(
        dead[2].ends_with(
            "bytes|column headers is not UTF-8: write the event anew, and discard this one"
        ),
        "{dead:?}"
    );
    assert!(
        dead[0].starts_with("latin-1|") && dead[0].contains("aggregate_id"),
        "{dead:?}"
    );
    assert!(
        dead[1].starts_with("utf-16|") && dead[1].contains("key_id"),
        "{dead:?}"
    );
}

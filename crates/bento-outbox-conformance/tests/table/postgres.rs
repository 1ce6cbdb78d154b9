//! What is PostgreSQL's own.

use sqlx::postgres::PgDatabaseError;

use super::*;

#[tokio::test]
async fn the_columns_are_those_of_the_contract() {
    let [db, _, _] = migrated().await;
    let columns = db
        .lines(
            "select column_name, data_type, is_nullable from information_schema.columns
             where table_name = 'outbox' order by ordinal_position limit 16",
        )
        .await;
    let expected = [
        "id|uuid|NO",
        "seq|bigint|NO",
        "tenant_id|text|NO",
        "aggregate_type|text|YES",
        "aggregate_id|text|YES",
        "type|text|NO",
        "schema_id|text|YES",
        "schema_ver|integer|NO",
        "payload|json|YES",
        "data|bytea|YES",
        "content_type|text|NO",
        "key_id|text|YES",
        "headers|json|NO",
        "occurred_at|timestamp with time zone|NO",
        "created_at|timestamp with time zone|NO",
        "available_at|timestamp with time zone|NO",
    ];
    assert_eq!(columns, expected);
}

#[tokio::test]
async fn rows_can_be_copied_in() {
    let [db, _, _] = migrated().await;
    let Sql::Postgres(pool) = &db.sql else {
        unreachable!()
    };
    let mut connection = pool.acquire().await.unwrap();
    let mut copy = connection
        .copy_in_raw("copy outbox (type, payload, aggregate_id) from stdin")
        .await
        .unwrap();
    copy.send("a\t{\"n\": 1}\tk\nb\t\"\\\\u0000\"\t\\N\n".as_bytes())
        .await
        .unwrap();
    assert_eq!(copy.finish().await.unwrap(), 2);
    let payloads: Vec<_> = db
        .claim()
        .await
        .into_iter()
        .map(|record| record.payload)
        .collect();
    assert_eq!(payloads, ["{\"n\": 1}", "\"\\u0000\""]);
}

/// The writer is told which column it is and what belongs there, and the row is not shown to whoever reads logs.
#[tokio::test]
async fn what_is_refused_is_named() {
    let [db, _, _] = migrated().await;
    let Sql::Postgres(pool) = &db.sql else {
        unreachable!()
    };
    for (column, values, said) in [
        (
            "type",
            "'a b', '\"secret\"', 'k'",
            "outbox: type must be 1 to 255 of A-Z",
        ),
        (
            "payload",
            "'a', null, 'k'",
            "outbox: payload or data must be given",
        ),
        (
            "aggregate_id",
            "'a', '\"secret\"', ''",
            "outbox: aggregate_id must have 1 to 255 characters",
        ),
    ] {
        let insert = format!("insert into outbox (type, payload, aggregate_id) values ({values})");
        let refused = pool.execute(AssertSqlSafe(insert)).await.unwrap_err();
        let refused = refused.into_database_error().unwrap();
        let refused: &PgDatabaseError = refused.downcast_ref();
        assert!(refused.message().starts_with(said), "{refused:?}");
        assert_eq!(refused.column(), Some(column));
        assert_eq!(
            (refused.code(), refused.table(), refused.constraint()),
            ("23514", Some("outbox"), Some("outbox_admits"))
        );
        assert!(!format!("{refused:?}").contains("secret"), "{refused:?}");
    }
}

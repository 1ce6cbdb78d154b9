//! What Redis refuses, forgets or says too late.

use tokio::time::{sleep, timeout};

use super::*;

/// Publishes a record between others, which are acknowledged, and gives back why it is refused.
async fn refused_between(bus: &RedisPublisher, bad: OutboxRecord) -> Rejection {
    let mut outcomes = bus.publish(&[record("good"), bad, record("good")]).await;
    let outcome = outcomes.remove(1);
    assert_eq!(outcomes, [Outcome::Acked, Outcome::Acked]);
    match outcome {
        Outcome::Rejected(rejection) => rejection,
        outcome => panic!("{outcome:?}"),
    }
}

/// Sends a command that must do.
fn tell(server: &RedisServer, words: &[&str]) {
    assert_eq!(ask(server, words), Reply::Text("OK".into()), "{words:?}");
}

#[tokio::test]
async fn a_server_that_evicts_is_refused_unless_told() {
    let server =
        RedisServer::start_with(&[("maxmemory", "50mb"), ("maxmemory-policy", "allkeys-lru")])
            .await;
    let strict = publisher(&server.url());
    let refused = strict.check().await.unwrap_err();
    assert_eq!(refused.class, RejectionClass::Config);
    for said in ["allkeys-lru", "noeviction", "allow_eviction=true"] {
        assert!(refused.reason.contains(said), "{refused}");
    }
    assert_eq!(rejection(&strict, record("a")).await, refused);
    assert_eq!(ask(&server, &["EXISTS", "a"]), Reply::Number(0));

    let told = publisher(&format!("{}?allow_eviction=true", server.url()));
    told.check().await.unwrap();
    assert!(told.caveats().await[0].contains("allkeys-lru"));
    assert_eq!(told.publish(&[record("a")]).await, [Outcome::Acked]);

    tell(
        &server,
        &["CONFIG", "SET", "maxmemory-policy", "noeviction"],
    );
    assert_eq!(strict.publish(&[record("a")]).await, [Outcome::Acked]);
}

#[tokio::test]
async fn a_database_that_is_not_there_is_named() {
    let server = RedisServer::start_with(&[("databases", "4")]).await;
    publisher(&format!("{}/3", server.url()))
        .check()
        .await
        .unwrap();
    let refused = publisher(&format!("{}/4", server.url())).check().await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.class, RejectionClass::Config);
    assert!(refused.reason.contains(", database 4: "), "{refused}");
}

#[tokio::test]
async fn what_a_crash_would_lose_is_said() {
    assert_eq!(to_shared("").caveats().await, [] as [&str; 0]);
    let server = RedisServer::start_with(&[("appendfsync", "everysec")]).await;
    let bus = publisher(&server.url());
    bus.check().await.unwrap();
    let [caveat] = &bus.caveats().await[..] else {
        panic!("one thing is to be said");
    };
    assert!(caveat.contains("appendfsync to always"), "{caveat}");
    tell(&server, &["CONFIG", "SET", "appendonly", "no"]);
    assert!(bus.caveats().await[0].contains("appendonly to yes"));
}

#[tokio::test]
async fn doctor_and_run_pass_on_what_a_crash_would_lose() {
    let server = RedisServer::start_with(&[("appendfsync", "everysec")]).await;
    let folder = tempfile::tempdir().unwrap();
    let run = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(crate::flights::program());
        command
            .env_clear()
            .current_dir(&folder)
            .args(["--bus-url", &server.url()])
            .args(arguments);
        let output = command.output().await.unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.success(), said)
    };
    assert!(run(&["migrate"]).await.0);
    let (is_well, said) = run(&["doctor", "--json"]).await;
    assert!(is_well, "{said}");
    let warning =
        "\"state\":\"warning\",\"found\":\"Redis syncs its append-only file once a second";
    assert!(said.contains(warning), "{said}");
    assert!(
        said.contains("\"advice\":\"set appendfsync to always"),
        "{said}"
    );
    let (is_well, said) = run(&["run", "--once"]).await;
    assert!(is_well, "{said}");
    assert!(
        said.contains("appendfsync") && said.contains("WARN"),
        "{said}"
    );
}

#[tokio::test]
async fn a_full_server_is_waited_for() {
    let server = RedisServer::start_with(&[("maxmemory", "6mb")]).await;
    let bus = publisher(&server.url());
    let mut taken = 0;
    let full = loop {
        match bus.publish(&[large("a", 100_000)]).await.remove(0) {
            Outcome::Acked => taken += 1,
            Outcome::Rejected(rejection) => break rejection,
            outcome => panic!("{outcome:?}"),
        }
        assert!(taken < 1_000, "it is never full");
    };
    assert_eq!(full.class, RejectionClass::Throttled(None), "{full}");
    assert_eq!(entries(&server, "a").len(), taken);
    assert_eq!(ask(&server, &["DEL", "a"]), Reply::Number(1));
    assert_eq!(bus.publish(&[record("a")]).await, [Outcome::Acked]);
}

#[tokio::test]
async fn a_name_that_is_taken_delays_only_its_own_events() {
    tell(shared_redis(), &["SET", "taken", "by something else"]);
    let taken = refused_between(&to_shared(""), record("taken")).await;
    assert_eq!(taken.class, RejectionClass::Blocked, "{taken}");
    assert!(taken.reason.contains("taken") && taken.reason.contains("WRONGTYPE"));
    ask(shared_redis(), &["DEL", "taken"]);
    assert_eq!(
        to_shared("").publish(&[record("taken")]).await,
        [Outcome::Acked]
    );
}

#[tokio::test]
async fn a_header_that_would_be_the_payload_is_refused_for_good() {
    let mut bad = record("good");
    bad.headers = r#"{"data":"not the payload"}"#.into();
    let refused = refused_between(&to_shared(""), bad).await;
    assert_eq!(refused.class, RejectionClass::Permanent);
    assert!(refused.reason.contains("\"data\""), "{refused}");
}

/// A server with a password, and users who may do less than all.
async fn guarded() -> (RedisServer, String) {
    let server = RedisServer::start_with(&[
        ("requirepass", "r00t"),
        ("proto-max-bulk-len", "1mb"),
        ("user", "full on >s3cr:et ~* +@all"),
        ("user", "plain on >s3cr:et ~may.* +xadd +info"),
        ("user", "blind on >s3cr:et ~* +xadd"),
        ("user", "idle on >s3cr:et ~* +info +config"),
    ])
    .await;
    let address = server.url().replace("redis://", "");
    (server, address)
}

#[tokio::test]
async fn a_wrong_password_is_said_and_not_shown() {
    let (_server, address) = guarded().await;
    for login in [":r00t@", "full:s3cr%3Aet@"] {
        publisher(&format!("redis://{login}{address}"))
            .check()
            .await
            .unwrap();
    }
    for login in ["", ":wr0ng@", "full:wr0ng@", "nobody:wr0ng@"] {
        let bus = publisher(&format!("redis://{login}{address}"));
        let refused = bus.check().await.unwrap_err();
        assert_eq!(refused.class, RejectionClass::Config, "{login}: {refused}");
        assert!(!refused.reason.contains("wr0ng"), "{refused}");
        assert!(refused.reason.contains("password"), "{login}: {refused}");
        assert_eq!(rejection(&bus, record("a")).await, refused);
    }
}

#[tokio::test]
async fn a_user_who_may_not_is_told_what_to_grant() {
    let (_server, address) = guarded().await;
    let as_user =
        |name: &str, query: &str| publisher(&format!("redis://{name}:s3cr%3Aet@{address}?{query}"));
    // Without a look at the settings, and with streams that begin so only.
    let plain = as_user("plain", "");
    plain.check().await.unwrap();
    assert!(plain.caveats().await[0].contains("+config|get"));
    let batch = [record("may.a"), record("not"), record("may.b")];
    let outcomes = plain.publish(&batch).await;
    assert_eq!([&outcomes[0], &outcomes[2]], [&Outcome::Acked; 2]);
    let Outcome::Rejected(refused) = &outcomes[1] else {
        panic!("{outcomes:?}");
    };
    assert_eq!(refused.class, RejectionClass::Blocked, "{refused}");

    let refused = as_user("blind", "").check().await.unwrap_err();
    assert_eq!(refused.class, RejectionClass::Config);
    assert!(refused.reason.contains("+info"), "{refused}");
    let told = as_user("blind", "allow_eviction=true");
    assert_eq!(told.publish(&[record("a")]).await, [Outcome::Acked]);

    let refused = rejection(&as_user("idle", ""), record("a")).await;
    assert_eq!(refused.class, RejectionClass::Config, "{refused}");
    assert!(refused.reason.contains("xadd"), "{refused}");
}

/// The server hangs up on a value over its limit, and says so or not. Whoever may not ask for the
/// limit finds out.
#[tokio::test]
async fn a_payload_over_a_limit_that_is_not_known_is_refused_for_good_in_the_end() {
    let (server, address) = guarded().await;
    let bus = publisher(&format!("redis://plain:s3cr%3Aet@{address}?timeout=5s"));
    let mut left = vec![record("may.a"), large("may.b", 2_000_000), record("may.c")];
    let bad = left[1].id;
    let mut refused = None;
    for _ in 0..20 {
        let outcomes = bus.publish(&left).await;
        let mut outcomes = outcomes.into_iter();
        left.retain(|record| match outcomes.next().unwrap() {
            Outcome::Acked => {
                assert_ne!(record.id, bad);
                false
            }
            Outcome::Rejected(rejection) if record.id == bad => {
                refused = Some(rejection);
                false
            }
            Outcome::Unknown { .. } => true,
            outcome => panic!("{outcome:?} of a good event"),
        });
        if left.is_empty() {
            break;
        }
    }
    let refused = refused.expect("it is refused");
    assert_eq!(refused.class, RejectionClass::Permanent, "{refused}");
    assert!(left.is_empty());
    drop(server);
}

#[tokio::test]
async fn a_replica_takes_no_events() {
    let (primary, other) = tokio::join!(RedisServer::start(), RedisServer::start());
    let bus = publisher(&other.url());
    assert_eq!(bus.publish(&[record("a")]).await, [Outcome::Acked]);
    // As after a failover: the address is the same, and the server behind it no primary any more.
    let port = primary.port().to_string();
    tell(&other, &["REPLICAOF", "127.0.0.1", &port]);
    for _ in 0..2 {
        let refused = rejection(&bus, record("a")).await;
        assert_eq!(refused.class, RejectionClass::Unreachable, "{refused}");
    }
    let refused = bus.check().await.unwrap_err();
    assert_eq!(refused.class, RejectionClass::Unreachable);
    assert!(refused.reason.contains("replica"), "{refused}");
    tell(&other, &["REPLICAOF", "NO", "ONE"]);
    assert_eq!(bus.publish(&[record("a")]).await, [Outcome::Acked]);
}

#[tokio::test]
async fn an_event_is_sent_when_as_many_replicas_have_it_as_wanted() {
    let (primary, replica) = tokio::join!(RedisServer::start(), RedisServer::start());
    let port = primary.port().to_string();
    tell(&replica, &["REPLICAOF", "127.0.0.1", &port]);
    let bus = publisher(&format!("{}?wait_replicas=1&timeout=5s", primary.url()));
    let replicated = async {
        while bus.publish(&[record("a")]).await != [Outcome::Acked] {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(60), replicated)
        .await
        .expect("a replica");
    let batch: Vec<_> = (0..100).map(|_| record("b")).collect();
    assert_eq!(bus.publish(&batch).await, vec![Outcome::Acked; 100]);
    assert_eq!(entries(&replica, "b").len(), 100);

    replica.kill();
    let outcomes = bus.publish(&[record("b"), record("b")]).await;
    for outcome in outcomes {
        assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
    }
    // It is not sent again and again, now that the replica is known to be gone.
    let gone = async {
        while rejection_or_unknown(&bus).await.is_none() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(60), gone)
        .await
        .expect("a word of it");
    let before = entries(&primary, "b").len();
    let gone = rejection(&bus, record("b")).await;
    assert_eq!(gone.class, RejectionClass::Unreachable, "{gone}");
    assert!(gone.reason.contains("wait_replicas is 1"), "{gone}");
    assert_eq!(entries(&primary, "b").len(), before);
    let bus = publisher(&primary.url());
    assert_eq!(bus.publish(&[record("b")]).await, [Outcome::Acked]);
}

async fn rejection_or_unknown(bus: &RedisPublisher) -> Option<Rejection> {
    match bus.publish(&[record("b")]).await.remove(0) {
        Outcome::Rejected(rejection) => Some(rejection),
        _ => None,
    }
}

#[tokio::test]
async fn a_part_of_a_cluster_is_refused() {
    let server = RedisServer::start_with(&[("cluster-enabled", "yes")]).await;
    let bus = publisher(&server.url());
    let refused = bus.check().await.unwrap_err();
    assert_eq!(refused.class, RejectionClass::Config);
    assert!(refused.reason.contains("cluster"), "{refused}");
}

/// The answers come when nobody waits for them any more: they are not taken for those to other
/// commands.
#[tokio::test]
async fn a_late_answer_is_of_no_other_event() {
    tell(shared_redis(), &["SET", "late-bad", "no stream"]);
    let proxy = Proxy::before(&shared_redis().url()).await;
    let url = proxy.url_of(&shared_redis().url());
    let bus = publisher(&format!("{url}?timeout=3s"));
    assert_eq!(bus.publish(&[record("late")]).await, [Outcome::Acked]);
    for _ in 0..3 {
        proxy.delay(Way::ToClient, Duration::from_secs(4));
        for outcome in bus.publish(&[record("late"), record("late")]).await {
            assert!(matches!(outcome, Outcome::Unknown { .. }), "{outcome:?}");
        }
        proxy.delay(Way::ToClient, Duration::ZERO);
        let outcomes = bus.publish(&[record("late-bad"), record("late")]).await;
        assert!(matches!(outcomes[0], Outcome::Rejected(_)), "{outcomes:?}");
        assert_eq!(outcomes[1], Outcome::Acked);
    }
}

/// Cut after so many bytes of what the server says: what was answered until then is sent, and
/// nothing else.
#[tokio::test]
async fn a_connection_cut_in_the_midst_of_its_answers_keeps_those_that_came() {
    let proxy = Proxy::before(&shared_redis().url()).await;
    let bus = publisher(&proxy.url_of(&shared_redis().url()));
    for bytes in [0, 1, 21, 22, 50, 300, 2_000] {
        assert_eq!(bus.publish(&[record("whole")]).await, [Outcome::Acked]);
        proxy.cut_after(Way::ToClient, bytes);
        let batch: Vec<_> = (0..200).map(|_| record("cut-off")).collect();
        let outcomes = bus.publish(&batch).await;
        // "$15\r\n1700000000000-0\r\n" and a little more where many come in one millisecond; a
        // few commands share their fate.
        let whole = (bytes as usize / 25).saturating_sub(32);
        for (n, outcome) in outcomes.iter().enumerate() {
            match outcome {
                Outcome::Acked => assert!(n < bytes as usize / 20, "{n} after {bytes} bytes"),
                Outcome::Unknown { .. } => assert!(n >= whole, "{n} after {bytes} bytes"),
                outcome => panic!("{outcome:?}"),
            }
        }
    }
}

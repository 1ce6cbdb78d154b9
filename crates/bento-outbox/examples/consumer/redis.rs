//! Redis Streams: a consumer group. What a process has read stays its own until it is acknowledged,
//! so somebody must take over what a dead one has left.

use redis::streams::{
    StreamAutoClaimOptions, StreamAutoClaimReply, StreamReadOptions, StreamReadReply,
};
use redis::{AsyncCommands as _, AsyncConnectionConfig, Client, RedisResult};
use uuid::Uuid;

use super::{AT_A_TIME, Answer, Bills, CONSUMER, Problem, TAKE_OVER, TYPE};

/// How long Redis waits for something new before it answers that there is nothing.
const BLOCK_MS: usize = 500;

/// Consumes until the connection is lost.
pub(super) async fn consume(url: &str, bills: &Bills) -> Result<(), Problem> {
    let settings = AsyncConnectionConfig::new().set_response_timeout(Some(TAKE_OVER));
    let client = Client::open(url)?;
    let mut redis = client
        .get_multiplexed_async_connection_with_config(&settings)
        .await?;
    let made: RedisResult<()> = redis.xgroup_create_mkstream(TYPE, CONSUMER, "0").await;
    if let Err(problem) = made
        && problem.code() != Some("BUSYGROUP")
    {
        return Err(problem.into());
    }
    let me = Uuid::new_v4().to_string();
    let new = StreamReadOptions::default()
        .group(CONSUMER, &me)
        .count(AT_A_TIME.into())
        .block(BLOCK_MS);
    loop {
        let idle = TAKE_OVER.as_millis().to_string();
        let some = StreamAutoClaimOptions::default().count(AT_A_TIME.into());
        let left: StreamAutoClaimReply = redis
            .xautoclaim_options(TYPE, CONSUMER, &me, idle, "0-0", some)
            .await?;
        let mut entries = left.claimed;
        if entries.is_empty() {
            let read: Option<StreamReadReply> = redis.xread_options(&[TYPE], &[">"], &new).await?;
            let keys = read.into_iter().flat_map(|reply| reply.keys);
            entries = keys.flat_map(|key| key.ids).collect();
        }
        // What is not acknowledged is taken over in a while, by this process or another.
        let mut done = Vec::new();
        for entry in &entries {
            let fields = entry.map.keys();
            let headers = fields.filter_map(|name| Some((name, entry.get::<Vec<u8>>(name)?)));
            let body: Vec<u8> = entry.get("data").unwrap_or_default();
            if bills.receive(headers, &body).await == Answer::Done {
                done.push(&entry.id);
            }
        }
        if !done.is_empty() {
            let _: usize = redis.xack(TYPE, CONSUMER, &done).await?;
        }
    }
}

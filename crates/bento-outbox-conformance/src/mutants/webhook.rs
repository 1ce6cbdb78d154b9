//! A publisher of webhooks on plain sockets that is right, or takes one false answer for a true one.

use std::io;

use async_trait::async_trait;
use bento_outbox::{OutboxRecord, Outcome, Publisher, Rejection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::webhook::DEADLINE;

use Mistake::*;

macro_rules! mistakes {
    ($($(#[$doc:meta])+ $mistake:ident,)+) => {
        /// What a [`MutantWebhook`] takes for what it is not.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mistake { $($(#[$doc])+ $mistake,)+ }

        impl Mistake {
            /// Every mistake there is.
            pub const ALL: &[Self] = &[$($mistake,)+];
        }
    };
}

mistakes! {
    /// A redirect is an acknowledgement.
    TakesRedirects,
    /// A redirect is followed, and what is answered there counts.
    FollowsRedirects,
    /// A first answer that promises another one is an acknowledgement.
    TakesInformation,
    /// An answer that the request is wrong is an acknowledgement.
    TakesClientErrors,
    /// An answer that the server failed is an acknowledgement.
    TakesServerErrors,
    /// The beginning of an answer is an acknowledgement.
    TakesTornHeads,
    /// Headers of success are an acknowledgement, whatever becomes of the body.
    TakesTornBodies,
    /// Headers of success are an acknowledgement when the deadline is over.
    TakesSlowBodies,
    /// Headers of success are an acknowledgement when the body is too long to be read.
    TakesEndlessBodies,
    /// An answer counts however late it comes.
    WaitsForLateAnswers,
    /// What has no answer in time was received.
    TakesSilence,
    /// A connection that ends without an answer was heard.
    TakesHangups,
    /// Whatever is answered is an acknowledgement.
    TakesGarbage,

    /// Only `200` is success.
    KnowsOnly200,
    /// An answer of success has no body.
    RefusesBodies,
    /// A body in chunks is not understood.
    RefusesChunks,
    /// A body that ends with the connection is torn.
    RefusesUntilClose,
    /// The first answer is the last.
    RefusesInformation,
    /// An answer must come at once and as a whole.
    ReadsOnce,
}

/// A publisher of webhooks with one mistake, or with none.
pub struct MutantWebhook {
    mistake: Option<Mistake>,
    address: String,
}

/// What was heard of an answer, and how that ended.
struct Heard {
    bytes: Vec<u8>,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Deadline,
    TooLong,
    /// All that was announced is there.
    Complete,
}

const BYTES_MAX: usize = 64 << 10;

impl MutantWebhook {
    /// A publisher to `http://HOST:PORT/`.
    #[must_use]
    pub fn new(url: &str, mistake: Option<Mistake>) -> Self {
        let address = url.trim_start_matches("http://").trim_end_matches('/');
        Self {
            mistake,
            address: address.into(),
        }
    }

    fn has(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    async fn ask(&self, request: &[u8]) -> io::Result<Heard> {
        let deadline = match self.has(WaitsForLateAnswers) {
            true => Instant::now() + DEADLINE * 4,
            false => Instant::now() + DEADLINE,
        };
        let mut stream = TcpStream::connect(&self.address).await?;
        stream.write_all(request).await?;
        let mut bytes = Vec::new();
        loop {
            let end = match timeout_at(deadline, stream.read_buf(&mut bytes)).await {
                Err(_) => Some(End::Deadline),
                Ok(Ok(0) | Err(_)) => Some(End::Closed),
                Ok(Ok(_)) if bytes.len() > BYTES_MAX => Some(End::TooLong),
                Ok(Ok(_)) => {
                    (self.is_whole(&bytes) || self.has(ReadsOnce)).then_some(End::Complete)
                }
            };
            if let Some(end) = end {
                return Ok(Heard { bytes, end });
            }
        }
    }

    /// Whether an answer that is the last one is there to its announced end.
    fn is_whole(&self, bytes: &[u8]) -> bool {
        let Some(answer) = last_answer(bytes, self.has(RefusesInformation)) else {
            return false;
        };
        match (answer.length, answer.is_chunked) {
            (Some(length), _) => answer.body.len() >= length,
            (None, true) => answer.body.ends_with(b"0\r\n\r\n") && !self.has(RefusesChunks),
            (None, false) => matches!(answer.status, 101 | 204 | 304),
        }
    }

    fn is_acknowledged(&self, heard: &Heard) -> bool {
        let Heard { bytes, end } = heard;
        if bytes.is_empty() {
            return match end {
                End::Deadline => self.has(TakesSilence),
                _ => self.has(TakesHangups),
            };
        }
        if !bytes.starts_with(b"HTTP/1.") {
            return self.has(TakesGarbage);
        }
        let Some(answer) = last_answer(bytes, self.has(RefusesInformation)) else {
            let information = bytes.starts_with(b"HTTP/1.1 1");
            return self.has(TakesInformation) && information
                || self.has(TakesTornHeads) && bytes.starts_with(b"HTTP/1.1 200");
        };
        let is_success = match answer.status {
            100..=199 => self.has(TakesInformation),
            200 => true,
            201..=299 => !self.has(KnowsOnly200),
            300..=399 => self.has(TakesRedirects),
            400..=499 => self.has(TakesClientErrors),
            _ => self.has(TakesServerErrors),
        };
        let until_close = answer.length.is_none() && !answer.is_chunked;
        let is_whole = match end {
            End::Complete => self.is_whole(bytes),
            End::Closed => self.has(TakesTornBodies) || until_close && !self.has(RefusesUntilClose),
            End::Deadline => self.has(TakesSlowBodies),
            End::TooLong => self.has(TakesEndlessBodies),
        };
        is_success && is_whole && (answer.body.is_empty() || !self.has(RefusesBodies))
    }
}

/// An answer whose headers are complete.
struct Answer<'a> {
    status: u16,
    length: Option<usize>,
    is_chunked: bool,
    body: &'a [u8],
}

/// The answer behind those that only promise it.
fn last_answer(bytes: &[u8], first_is_last: bool) -> Option<Answer<'_>> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, body) = (std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 4..]);
    let status = head.split(' ').nth(1)?.parse().ok()?;
    if (100..=199).contains(&status) && status != 101 && !first_is_last {
        return last_answer(body, false);
    }
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    Some(Answer {
        status,
        length: header("content-length: ").and_then(|length| length.parse().ok()),
        is_chunked: header("transfer-encoding: chunked").is_some(),
        body,
    })
}

#[async_trait]
impl Publisher for MutantWebhook {
    async fn publish(&self, batch: &[OutboxRecord]) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for record in batch {
            let length = record.payload.len();
            let mut request = format!(
                "POST / HTTP/1.1\r\nhost: {}\r\ncontent-length: {length}\r\n\r\n",
                self.address
            )
            .into_bytes();
            request.extend_from_slice(&record.payload);
            let mut heard = self.ask(&request).await;
            let redirected = matches!(&heard, Ok(heard) if heard.bytes.starts_with(b"HTTP/1.1 30"));
            if self.has(FollowsRedirects) && redirected {
                let request = format!("GET /elsewhere HTTP/1.1\r\nhost: {}\r\n\r\n", self.address);
                heard = self.ask(request.as_bytes()).await;
            }
            outcomes.push(match heard {
                Ok(heard) if self.is_acknowledged(&heard) => Outcome::Acked,
                _ => Outcome::unknown("no acknowledgement"),
            });
        }
        outcomes
    }

    async fn check(&self) -> Result<(), Rejection> {
        Ok(())
    }
}

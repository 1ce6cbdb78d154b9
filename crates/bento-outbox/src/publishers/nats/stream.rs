//! The stream that takes the events.

use std::error::Error as _;

use async_nats::jetstream::context::{
    Context, CreateStreamErrorKind, GetStreamErrorKind, RequestError, RequestErrorKind,
};
use async_nats::jetstream::stream::{Config, StorageType};
use async_nats::jetstream::{self, ErrorCode};
use serde::Deserialize;

use super::{misconfigured, unreachable};
use crate::record::Rejection;

/// The stream that must take the events.
pub(super) struct Stream {
    pub(super) name: String,
    /// Its subjects where it is to be made when it is missing.
    pub(super) subjects: Vec<String>,
}

impl Stream {
    /// Whether the stream is there, or made now, and keeps what it takes.
    pub(super) async fn check(&self, context: &Context) -> Result<(), Rejection> {
        let config = self.config(context).await?;
        let refuse = |what| Err(misconfigured(format!("stream {} {what}", self.name)));
        if config.storage != StorageType::File {
            return refuse(
                "is kept in memory: a restart would lose sent events, so give it file storage",
            );
        }
        if config.no_ack {
            return refuse("sends no acknowledgements: set no_ack to false");
        }
        if config.sealed {
            return refuse("is sealed and takes no messages");
        }
        Ok(())
    }

    /// Makes the stream if it is to be made and is missing.
    pub(super) async fn ensure(&self, context: &Context) -> Result<(), Rejection> {
        if self.subjects.is_empty() {
            return Ok(());
        }
        self.config(context).await.map(|_| ())
    }

    async fn config(&self, context: &Context) -> Result<Config, Rejection> {
        let name = &self.name;
        let error = match context.get_stream(name).await {
            Ok(stream) => return Ok(stream.cached_info().config.clone()),
            Err(error) => error,
        };
        match error.kind() {
            GetStreamErrorKind::JetStream(refusal)
                if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND => {}
            GetStreamErrorKind::Request => {
                let request = error.source().and_then(|source| source.downcast_ref());
                return Err(match request.map(RequestError::kind) {
                    Some(RequestErrorKind::NoResponders) => no_jetstream(),
                    _ => unreachable(format!("asking about stream {name}: {error}")),
                });
            }
            _ => return Err(misconfigured(format!("stream {name}: {error}"))),
        }
        if self.subjects.is_empty() {
            return Err(misconfigured(format!(
                "stream {name} does not exist: create it, or add create=true&subjects=… to bus_url"
            )));
        }
        let config = Config {
            name: name.clone(),
            subjects: self.subjects.clone(),
            storage: StorageType::File,
            ..Config::default()
        };
        match context.create_stream(config).await {
            Ok(stream) => Ok(stream.cached_info().config.clone()),
            Err(error) => {
                let reason = format!("creating stream {name}: {error}");
                Err(match error.kind() {
                    CreateStreamErrorKind::TimedOut | CreateStreamErrorKind::Response => {
                        unreachable(reason)
                    }
                    _ => misconfigured(reason),
                })
            }
        }
    }
}

/// Whether the server has JetStream at all, for when no stream is named.
pub(super) async fn check_account(context: &Context) -> Result<(), Rejection> {
    /// The part of the answer that every version of the server writes alike.
    #[derive(Deserialize)]
    struct Answer {
        error: Option<jetstream::Error>,
    }
    match context.request("INFO", &()).await {
        Ok(Answer { error: None }) => Ok(()),
        Ok(Answer { error: Some(error) }) => Err(misconfigured(error.to_string())),
        Err(error) if error.kind() == RequestErrorKind::NoResponders => Err(no_jetstream()),
        Err(error) => Err(unreachable(format!("asking about JetStream: {error}"))),
    }
}

fn no_jetstream() -> Rejection {
    misconfigured("the NATS server has no JetStream: enable it (nats-server -js)")
}

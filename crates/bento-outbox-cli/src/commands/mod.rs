//! The commands, one each, and what several of them need.

pub(crate) mod append;
pub(crate) mod audit;
pub(crate) mod bench;
pub(crate) mod choice;
pub(crate) mod column;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod dead;
#[cfg(feature = "sqlite")]
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod listing;
pub(crate) mod migrate;
pub(crate) mod pausing;
pub(crate) mod reference;
pub(crate) mod replay;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod shown;
pub(crate) mod status;
pub(crate) mod tail;
pub(crate) mod why;

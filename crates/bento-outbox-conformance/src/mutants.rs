//! Adapters that each break one promise, to show that the lists of cases would notice.

pub mod bus;
pub mod store;
pub mod webhook;

//! What every store and every bus of bento-outbox must do, for those who write adapters: one list of
//! cases for [stores](store), one for [buses](bus) and one of the answers of a [webhook], the
//! [servers] to try it on as child processes, [faults] to put between, ways to [cancel] at every
//! await, and [mutants] which show that the lists bite.

pub mod bus;
pub mod cancel;
pub mod faults;
pub mod mutants;
pub mod servers;
pub mod store;
pub mod webhook;

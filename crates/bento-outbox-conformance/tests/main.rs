//! One test binary: every further one is another link of everything.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod bus;
mod bus_http;
mod bus_nats;
mod cancel;
mod cancellation;
mod chaos;
mod commits;
mod faults;
mod flights;
mod flights_http;
mod floor;
mod handlers;
mod migrations;
mod model;
mod mutants_store;
mod reach;
mod routes;
mod servers;
mod store;
mod table;
mod webhooks;

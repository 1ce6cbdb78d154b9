//! One test binary: every further one is another link of everything.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod acting;
mod bench;
mod bus;
mod bus_http;
mod bus_kafka;
mod bus_nats;
mod bus_rabbitmq;
mod bus_redis;
mod cancel;
mod cancellation;
mod chaos;
mod commits;
mod consuming;
mod faults;
mod flights;
mod flights_brokers;
mod flights_http;
mod floor;
mod full;
mod gullible;
mod handlers;
mod hints;
mod migrations;
mod model;
mod mutants_store;
mod mysql;
mod operators;
mod reach;
mod rights;
mod routes;
mod servers;
mod stopping;
mod store;
mod table;
mod tls;
mod webhooks;

//! The databases: one each, behind the feature of its name. [`MemoryStore`] is always there, for
//! tests and examples, and is the model that the others are compared with.

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub(crate) mod backlog;
mod memory;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub(crate) mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
mod tables;
#[cfg(any(feature = "mysql", feature = "postgres"))]
mod url_options;

pub use memory::{MemoryConnection, MemoryStore, MemoryTransaction};
#[cfg(feature = "mysql")]
pub use mysql::{MySqlStore, MySqlTransaction};
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;
pub use tables::Tables;

//! The databases: one folder each, behind the feature of its name.

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod sql;

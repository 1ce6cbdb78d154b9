//! x

pub mod cancel;

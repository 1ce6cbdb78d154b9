//! x

pub mod cancel;
pub mod servers;

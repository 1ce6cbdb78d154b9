//! x

pub mod cancel;
pub mod faults;
pub mod servers;

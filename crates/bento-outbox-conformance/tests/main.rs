//! One test binary: every further one is another link of everything.

mod cancel;
mod faults;
mod servers;

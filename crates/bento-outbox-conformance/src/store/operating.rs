//! The operator's verbs.

use super::*;


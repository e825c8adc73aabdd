//! Everything between agents.

pub mod core;

//! Messages between agents.

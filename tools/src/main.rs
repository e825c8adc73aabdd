//! holo.
fn main() {}

//! restorer.
fn main() {}

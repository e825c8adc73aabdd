//! holod.
fn main() {}

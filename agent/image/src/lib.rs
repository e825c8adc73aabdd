//! Images: what an application was, at an instant, as bytes.
//!
//! * [`wire`]: the envelope that every serialized structure travels and rests in.
//! * [`Store`]: epochs of applications on disk, sealed atomically, pages shared by content.
//!
//! The format, what is written when, and what happens when a machine dies in between are described in
//! `docs/internals/image.md`.
#![forbid(unsafe_code)]

pub mod wire;

//! Images: what an application was, at an instant, as bytes.
//!
//! * [`wire`]: the envelope that every serialized structure travels and rests in.
//! * [`Store`]: epochs of applications on disk, sealed atomically, pages shared by content.
//!
//! The format, what is written when, and what happens when a machine dies in between are described in
//! `docs/internals/image.md`.
#![forbid(unsafe_code)]

mod ahead;
mod app;
mod aside;
mod blob;
mod blob_reader;
mod delta;
pub mod disk;
mod draft;
mod epochs;
mod error;
mod head;
mod import;
mod key;
mod keymap;
mod line;
mod manifest;
mod many_hashes;
mod memory;
mod pages;
mod progress;
mod reader;
mod retention;
mod slots;
mod slotset;
mod spread;
mod state;
mod store;
#[cfg(test)]
mod tests;
pub mod wire;
mod writer;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use app::{AppStore, DamagedEpoch};
pub use aside::AsideEpoch;
pub use blob::{Blob, BlobPart};
pub use blob_reader::BlobReader;
pub use delta::{BaseId, Delta, Sum};
pub use error::{Error, ManifestError, Result};
pub use import::Import;
pub use key::{PAGE_BYTES, Page, PageKey};
pub use manifest::{EpochMeta, EpochSide, MANIFEST_BYTES_MAX, Manifest, PAGES_MAX, PageRun, Section};
pub use memory::Range;
pub use reader::EpochReader;
pub use retention::Retention;
pub use spread::{Names, Spread};
pub use store::{Store, check_app_name};
pub use writer::{EpochWriter, Figures, SealedEpoch};

/// Locks, also after a panic of another holder: holo aborts on panics, so that only tests come here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! File trees of an application: scanned, captured, applied elsewhere, verified.
//!
//! Of files under the application's roots that have changed since the epoch before, what changed is copied where somebody
//! recorded it ([`Hint`]), else all. The parts are split by when they run:
//!
//! ```text
//! [stop]     scan -> Tree;  stage -> Staged     stat calls, clones or copies of what changed
//! [running]  Staged::read_rest                  what somebody keeps as it was at the stop
//! [running]  Staged::store -> Captured          content goes to the caller's store
//! [restore]  apply(Captured)                    makes the trees identical, in place where they are
//! [tests]    verify(a, b)                       says how two trees differ
//! ```
//!
//! Content is stored through [`ContentSink`] and [`ContentSource`], so this crate knows nothing of stores.
//! No path of a [`Tree`] is ever followed through a symbolic link or out of its root. See
//! `docs/internals/cfor.md`.

mod access;
mod ahead;
mod apply;
mod attributes;
mod capture;
mod change;
mod columns;
mod compare;
mod copy;
mod draft;
mod error;
mod flags;
mod follow;
mod hold;
mod leases;
pub mod log;
pub mod pack;
mod patch;
mod path;
mod rest;
mod scan;
mod tree;
mod validate;
mod verify;
mod watch;

pub use ahead::{Ahead, ahead};
pub use apply::{Holds, Others, Report, Targets, apply, remove_all};
pub use capture::{
    Captured, CapturedByInode, CapturedWithoutFlags, ContentSink, ContentSource, Here, Staged, Staging,
    capture, stage,
};
pub use change::{Hint, changed_files};
pub use compare::{Attribute, Delta, Touched, What, compare, touched};
pub use draft::Draft;
pub use error::Error;
pub use flags::names as flag_names;
pub use follow::{Followed, Look};
pub use leases::{Leases, NoLeases};
pub use patch::{PART_BYTES, Part};
pub use path::RelPath;
pub use rest::{Keeper, Kept, Waiting};
pub use scan::{scan, scan_since};
pub use tree::{Entry, Extent, Identity, Inode, Kind, Remark, Root, Time, Tree, Xattr};
pub use verify::{Difference, verify};

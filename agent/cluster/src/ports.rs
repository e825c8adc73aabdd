//! What the agent implements so that the cluster can act on applications and epochs.
//!
//! A port must not call the [`crate::ClusterHandle`] from within these calls, except from [`AppPort::changed`]:
//! some come while the cluster holds its locks.

use std::sync::Arc;

use holo_api::peer::{Key, Page};

use crate::{AppStatus, Described};

/// Where lines for people go. Never given a secret.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// Acts on the application's instance on this node.
///
/// Calls for one application come one at a time from one thread, except that [`AppPort::prepare`],
/// [`AppPort::abort_prepare`] and [`AppPort::final_epoch`] come (in order) from a second one: a fence never
/// waits for them.
pub trait AppPort: Send + Sync + 'static {
    /// Does an instance of it live here (parked or running)? Asked once, when the cluster starts.
    fn found(&self, app: &str) -> bool;

    /// The instance may run until this time of `CLOCK_BOOTTIME` in milliseconds; `None`: without limit. Comes
    /// several times a second. For something that outlives the agent (a guard process, the control page): when
    /// the time passes without a newer call, it must park or kill the instance, since another node may run it
    /// soon. Without such a guard an agent that dies alone breaks the law of one owner.
    fn lease(&self, app: &str, until_ms: Option<u64>);

    /// Park the instance: when this returns, and at the latest `fence_ms_max` after the call, none of its
    /// threads runs. If they cannot be parked in that time, stop or kill them. Idempotent.
    fn fence(&self, app: &str);

    /// Let a parked instance run again. Idempotent.
    fn unfence(&self, app: &str) -> Result<(), String>;

    /// Kill the instance for good; keep its epochs. Another node runs the application.
    fn stop_instance(&self, app: &str);

    /// Recreate the application from a sealed epoch, parked. A failure is tried again later; it may then choose
    /// nothing older.
    fn prepare(&self, app: &str, epoch: u64) -> Result<(), String>;

    /// Destroy what [`AppPort::prepare`] made. Idempotent.
    fn abort_prepare(&self, app: &str);

    /// Let the prepared instance run: it is the active one of this incarnation. Its next epoch is `epoch + 1`.
    fn activate(&self, app: &str, incarnation: u64, epoch: u64) -> Result<(), String>;

    /// Planned switch: park, take a last epoch, seal it in the local store, stay parked; returns its number.
    /// On an error the instance is unparked by the [`AppPort::unfence`] that follows.
    fn final_epoch(&self, app: &str) -> Result<u64, String>;

    /// The instance that runs here, for display; none: there is none.
    fn describe(&self, _app: &str) -> Option<Described> {
        None
    }

    /// The cluster's view changed (role, lease, nodes that hold epochs). Must not block.
    fn changed(&self, _app: &str, _status: &AppStatus) {}
}

/// Why the store could not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct StoreError {
    /// What failed, on which object, why.
    pub why: String,
    /// The same may succeed later (disk full), or never (damaged, foreign).
    pub retry: bool,
}

/// Reads sealed epochs out of the local store, to send them.
pub trait EpochSource: Send + Sync + 'static {
    /// Opens an epoch and keeps it from being dropped by retention until the reader is dropped.
    fn open(&self, app: &str, epoch: u64) -> Result<Box<dyn EpochReader>, StoreError>;

    /// Up to `max` blocks that are stored for the next epoch, from a place on, which 0 is the first of. None: there is nothing.
    fn ahead(&self, app: &str, from: u64, max: usize) -> Option<Ahead>;

    /// The calling thread brings such blocks and does nothing else: others are to go first.
    fn stand_back(&self) {}

    /// Such blocks, packed. They may be gone again.
    fn read_ahead(&self, app: &str, keys: &[Key]) -> Result<Vec<Vec<u8>>, StoreError>;
}

/// What is stored for an epoch that is not sealed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// Blocks.
    pub keys: Vec<Key>,
    /// Place behind them.
    pub end: u64,
    /// How many blocks the epoch may have in the end.
    pub all: u64,
}

/// One sealed epoch.
pub trait EpochReader: Send {
    /// Options of the application, opaque to the cluster; handed to [`EpochSink::begin`].
    fn options(&mut self) -> Result<Vec<u8>, StoreError>;
    /// Its manifest, or, where that is known, what it changes of epoch `held`, the newest that the peer has; 0: as a whole.
    fn manifest(&mut self, held: u64) -> Result<Vec<u8>, StoreError>;
    /// How many blocks it has.
    fn blocks(&mut self) -> u64;
    /// The packed blocks behind keys that the manifest names.
    fn read(&mut self, keys: &[Key]) -> Result<Vec<Vec<u8>>, StoreError>;
}

/// What is offered to a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    /// Application.
    pub app: String,
    /// Node that sends it.
    pub from: String,
    /// Launch that it belongs to.
    pub run: u64,
    /// Incarnation that took it.
    pub incarnation: u64,
    /// Number.
    pub epoch: u64,
    /// Options of the application.
    pub options: Vec<u8>,
}

/// Writes epochs of other nodes into the local store. Everything comes from the network: it is verified here.
pub trait EpochSink: Send + Sync + 'static {
    /// Newest sealed epoch of an application in the store; 0: none.
    fn newest(&self, app: &str) -> u64;

    /// The cluster went on from epoch `after` on another node: put aside, durably, what was sealed here beyond
    /// it (it may be kept for the operator, but not offered as the newest, and its numbers will be used again).
    /// Returns the newest that is left; 0: none.
    fn set_aside(&self, app: &str, after: u64) -> Result<u64, StoreError>;

    /// Starts to receive an epoch. Nothing is visible before [`EpochWriter::seal`]; a writer that is dropped
    /// leaves nothing but blocks that a later attempt may use.
    fn begin(&self, offered: &Offered, manifest: &[u8]) -> Result<Box<dyn EpochWriter>, StoreError>;

    /// Those of these blocks of a run that the store does not have. What it was given of another run may be dropped.
    fn lacking(&self, app: &str, run: u64, keys: &[Key]) -> Result<Vec<Key>, StoreError>;

    /// Packed blocks of an epoch that is to come, verified against their keys: it will find them if they are still there then.
    fn put_ahead(&self, app: &str, blocks: &[Page]) -> Result<(), StoreError>;
}

/// An epoch being received.
pub trait EpochWriter: Send {
    /// Up to `max` keys that the store does not have yet; empty: complete.
    fn missing(&mut self, max: usize) -> Result<Vec<Key>, StoreError>;
    /// A packed block; verified against its key.
    fn put(&mut self, key: &Key, bytes: &[u8]) -> Result<(), StoreError>;
    /// Validates the whole and makes it durable and visible.
    fn seal(self: Box<Self>) -> Result<(), StoreError>;
}

/// All ports together.
#[derive(Clone)]
pub struct Ports {
    /// Instances.
    pub apps: Arc<dyn AppPort>,
    /// Epochs to send.
    pub source: Arc<dyn EpochSource>,
    /// Epochs received.
    pub sink: Arc<dyn EpochSink>,
    /// Lines for people.
    pub log: Log,
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ports")
    }
}

//! The first epoch: contents are stored before its stop, so that in it, and behind it, only what was changed meanwhile is left.
//!
//! It is done by a thread that leaves the processors to others, and what it writes goes to the disk as it comes, not all at the end.

use super::leases::Running;
use super::{Files, Sink};
use crate::inodes::Number;
use holo_cfor::{Ahead, ContentSink, Look, Time};
use holo_image::{Blob, EpochWriter, Figures};
use holo_rm::kinds::aio;
use holo_rm::manager::{DumpCx, RmResult};
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::time::{Duration, Instant};

/// How much behind others the thread stands.
const NICE: i32 = 10;
/// Bytes after which they are synced.
const SYNC_BYTES: u64 = 64 << 20;
/// What takes longer is told of.
const TOLD: Duration = Duration::from_secs(1);
/// `0` has the first epoch taken as if nothing were known of files, for comparisons.
const VARIABLE: &str = "HOLO_FILES_AHEAD";

/// What was stored.
pub(super) struct Stored {
    /// Files without content.
    pub(super) unread: BTreeSet<Number>,
    figures: Figures,
}

impl Stored {
    /// What it cost counts for the epoch.
    pub(super) fn add_to(&self, figures: &mut Figures) {
        let Figures { pages_put, pages_zero, pages_new, bytes_written, bytes_blobs } = self.figures;
        figures.pages_put += pages_put;
        figures.pages_zero += pages_zero;
        figures.pages_new += pages_new;
        figures.bytes_written += bytes_written;
        figures.bytes_blobs += bytes_blobs;
    }
}

/// The calling thread leaves the processors to others from now on.
pub(crate) fn stand_back() {
    // SAFETY: a number; of this thread alone.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, libc::gettid().cast_unsigned(), NICE) };
}

/// Syncs what it stores now and then.
struct Synced<'a> {
    writer: &'a mut EpochWriter,
    bytes: u64,
}

impl ContentSink for Synced<'_> {
    type Content = Blob;

    fn put(&mut self, data: &mut dyn Read, len: u64) -> io::Result<Blob> {
        let content = Sink(self.writer).put(data, len)?;
        self.bytes += len;
        if self.bytes > SYNC_BYTES {
            self.bytes = 0;
            self.writer.sync().map_err(io::Error::other)?;
        }
        Ok(content)
    }

    fn expect(&mut self, len: u64) {
        self.writer.expect(len);
    }
}

impl Files {
    /// Is there nothing yet of the roots, and are changes recorded?
    pub(super) fn is_to_begin(&self) -> bool {
        (self.previous.is_none() || self.unsealed)
            && !self.roots.is_empty()
            && self.recorded.table().is_some()
            && std::env::var_os(VARIABLE).is_none_or(|value| value != "0")
    }

    /// In a stop: from now on is known what is changed.
    pub(super) fn begin(&mut self, cx: &mut DumpCx) -> RmResult<()> {
        (self.previous, self.unsealed, self.ahead) = (None, false, None);
        let written = self.written(cx)?;
        self.marked_at = Some(Time::now());
        let is_late = cx.processes.iter().any(|process| process.remote.maps().is_ok_and(aio::has_rings));
        self.recorded.begin(written.maps, cx.processes.len(), &self.pages, is_late);
        let _ = self.named(cx, &written.extra);
        Ok(())
    }

    /// Stores what is there, while the application runs.
    pub(super) fn store_ahead(&mut self, cx: &DumpCx) {
        let Some(marked_at) = self.marked_at.take().filter(|_| self.recorded.has_begun()) else { return };
        let start = Instant::now();
        let lives = || cx.processes.iter().any(|process| !process.remote.ended());
        let done = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                stand_back();
                self.read_all(&lives)
            });
            thread.join().unwrap_or(Ok(None))
        });
        match done {
            Ok(Some((Ahead { mut captured, unread }, figures))) => {
                // Where it is not recorded what was changed, attributes tell what was since then.
                captured.tree.taken_at = marked_at;
                let took = start.elapsed();
                if took > TOLD {
                    let (name, count) = (self.store.name(), captured.contents.len());
                    eprintln!("holod: {name}: {count} files stored in {took:.1?}, before the first epoch");
                }
                (self.previous, self.ahead) = (Some(captured), Some(Stored { unread, figures }));
            }
            Ok(None) => {}
            // The epoch will tell, if it cannot be taken.
            Err(cause) => eprintln!("holod: {}: files before the first epoch: {cause}", self.store.name()),
        }
    }

    fn read_all(&mut self, lives: &dyn Fn() -> bool) -> Result<Option<(Ahead<Blob>, Figures)>, String> {
        let text = |cause: &dyn std::fmt::Display| cause.to_string();
        let mut writer = self.store.begin(self.store.newest_number() + 1).map_err(|cause| text(&cause))?;
        let none = BTreeSet::new();
        let leases = Running(self.recorded.table());
        let look = Look {
            roots: &self.roots,
            extra_files: &[],
            excludes: &self.excludes,
            suspects: &none,
            leases: &leases,
        };
        let mut sink = Synced { writer: &mut writer, bytes: 0 };
        let ahead = holo_cfor::ahead(&mut self.followed, &look, &mut sink, lives);
        let ahead = ahead.map_err(|cause| text(&cause))?;
        let Some(ahead) = ahead else { return Ok(None) };
        let figures = writer.figures();
        writer.leave().map_err(|cause| text(&cause))?;
        Ok(Some((ahead, figures)))
    }
}

//! What others did to the application's files while it did not run here: told, when a restore puts the files right.
//!
//! The kernel sets a file's time of change at whatever is done to it, and nobody can set it back. So what changed after the last process
//! of the application ended here, or the last restore ended, was changed by somebody else. Where it never ran all is somebody else's.

use holo_cfor::{Others as Found, Time};
use parking_lot::Mutex;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Paths that are told.
const SHOWN: usize = 3;

/// What is known of one application.
#[derive(Default)]
pub(crate) struct Others {
    /// A file that says when the application was here last, in nanoseconds of Unix time.
    left: PathBuf,
    /// The same, where that could not be written.
    noted: AtomicU64,
    /// What the last restore that found something has to tell.
    told: Mutex<Option<String>>,
}

impl Others {
    pub(crate) fn new(dir: &Path, app: &str) -> Self {
        Self { left: dir.join(app), ..Self::default() }
    }

    /// The application has ended here.
    pub(crate) fn ended(&self) {
        self.note();
        *self.told.lock() = None;
    }

    /// What was changed until now is not others'.
    pub(super) fn note(&self) {
        let now = crate::app::now_ns();
        self.noted.store(now, Relaxed);
        let mut new = self.left.clone().into_os_string();
        // No application has such a name.
        new.push("~");
        let written = fs::write(&new, now.to_string()).and_then(|()| fs::rename(&new, &self.left));
        if let Err(cause) = written {
            eprintln!("holod: {}: {cause}", self.left.display());
            let _ = fs::remove_file(&new);
        }
    }

    /// The application was not here after that.
    pub(super) fn since(&self) -> Time {
        let text = fs::read_to_string(&self.left).unwrap_or_default();
        let ns = text.trim().parse().unwrap_or(0).max(self.noted.load(Relaxed));
        Time { seconds: (ns / 1_000_000_000) as i64, nanos: (ns % 1_000_000_000) as u32 }
    }

    /// A restore found that.
    pub(super) fn found(&self, found: &Found, kept: Option<&Path>) {
        if found.count == 0 {
            return;
        }
        let names: Vec<_> =
            found.first.iter().take(SHOWN).map(|path| String::from_utf8_lossy(path)).collect();
        let more = if found.count > names.len() { ", ..." } else { "" };
        let (files, were) = if found.count == 1 { ("file", "was") } else { ("files", "were") };
        let kept = kept.map(|dir| format!("; what was there is kept below {}", dir.display()));
        let text = format!(
            "{} {files} of the application {were} changed here by others while it did not run here, and {were} put right{}: {}{more}",
            found.count,
            kept.unwrap_or_default(),
            names.join(", ")
        );
        let app = self.left.file_name().unwrap_or_default().to_string_lossy();
        eprintln!("holod: {app}: {text}");
        *self.told.lock() = Some(text);
    }

    /// What is to be told, if there is something.
    pub(crate) fn told(&self) -> Option<String> {
        self.told.lock().clone()
    }

    /// The application is forgotten.
    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_file(&self.left)
    }
}

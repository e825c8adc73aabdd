//! Progress of long work, on a terminal only.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// Time before the first line appears and between two: short work shows nothing.
const QUIET: Duration = Duration::from_millis(200);

/// One line on stderr that is redrawn, and removed when dropped.
#[derive(Debug)]
pub struct Progress {
    tty: bool,
    drawn: bool,
    last: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self { tty: stderr().is_terminal(), drawn: false, last: Instant::now() }
    }
}

impl Progress {
    /// Shows a step.
    pub fn show(&mut self, what: &str, done: u64, total: u64) {
        if !self.tty || self.last.elapsed() < QUIET {
            return;
        }
        self.last = Instant::now();
        self.drawn = true;
        // A terminal that went away is no reason to fail.
        let _ = write!(stderr(), "\r\x1b[K{}", line(what, done, total));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

fn line(what: &str, done: u64, total: u64) -> String {
    match total {
        0 if done == 0 => format!("{what} ..."),
        0 => format!("{what}: {done}"),
        total => format!("{what}: {} % ({done} of {total})", u128::from(done) * 100 / u128::from(total)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        assert_eq!(line("parking", 0, 0), "parking ...");
        assert_eq!(line("pages", 5, 0), "pages: 5");
        assert_eq!(line("pages", 50, 200), "pages: 25 % (50 of 200)");
        assert_eq!(line("bytes", u64::MAX, u64::MAX), format!("bytes: 100 % ({0} of {0})", u64::MAX));
    }
}

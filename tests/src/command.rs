//! Commands with a time limit, and what they said.

use crate::wait;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a finished command left.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, lossy.
    pub stdout: String,
    /// Standard error, lossy.
    pub stderr: String,
}

impl Finished {
    /// The exit code; -1 after a signal.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }
}

fn collect(stream: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // A broken pipe ends the text; what came until then is what we report.
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits for a child, at most `limit`.
///
/// # Panics
/// When it is still running then: it is killed first.
pub fn wait_child(child: &mut Child, limit: Duration, what: &str) -> ExitStatus {
    match wait::try_until(limit, || child.try_wait().unwrap_or_else(|e| panic!("{what}: wait: {e}"))) {
        Some(status) => status,
        None => {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{what}: still running after {limit:?}")
        }
    }
}

/// Runs a command to its end with nothing on standard input.
///
/// # Panics
/// When it cannot be started or is still running after `limit`.
pub fn run(command: &mut Command, limit: Duration) -> Finished {
    let what = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{what}: {e}"));
    let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let status = wait_child(&mut child, limit, &what);
    let text = |t: JoinHandle<String>| t.join().unwrap_or_default();
    Finished { status, stdout: text(out), stderr: text(err) }
}

/// Runs a command that must succeed; gives its standard output.
///
/// # Panics
/// When it fails, with what it said.
pub fn run_ok(command: &mut Command, limit: Duration) -> String {
    let what = format!("{command:?}");
    let finished = run(command, limit);
    assert!(finished.status.success(), "{what}: {}\n{}{}", finished.status, finished.stdout, finished.stderr);
    finished.stdout
}

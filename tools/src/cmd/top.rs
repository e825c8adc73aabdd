//! `holo top`: the listings again and again; one picture where the output is no terminal.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write, stdin, stdout};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use holo_api::local::{AppInfo, AppState, Request};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use crate::args::Top;
use crate::client::{QUICK, call, pick, status};
use crate::error::CliError;
use crate::human;
use crate::paths::Agent;
use crate::table::{Align, Table};

const PERIOD_MIN: Duration = Duration::from_millis(100);
const CTRL_C: u8 = 3;

static ENDING: AtomicBool = AtomicBool::new(false);

extern "C" fn end(_: libc::c_int) {
    ENDING.store(true, Ordering::Relaxed);
}

pub(super) fn main(args: &Top, agent: &Agent) -> Result<u8, CliError> {
    if !stdout().is_terminal() {
        write!(stdout().lock(), "{}", picture(agent)?)?;
        return Ok(0);
    }
    // A first failure is an error; a later one is shown, and the agent may come back.
    let mut shown = picture(agent)?;
    let screen = Screen::open()?;
    loop {
        screen.draw(&shown)?;
        if screen.wait_for_quit(args.every.max(PERIOD_MIN)) {
            return Ok(0);
        }
        shown = picture(agent).unwrap_or_else(|error| format!("{error}\n"));
    }
}

fn picture(agent: &Agent) -> Result<String, CliError> {
    let who = status(&agent.socket)?;
    let apps = call(&agent.socket, &Request::Ps, QUICK, pick!(Apps))?;
    let nodes = call(&agent.socket, &Request::Nodes, QUICK, pick!(Nodes))?;
    let mut out = String::new();
    let head = format!("holo {} on {}, agent {}, state in {}", who.version, who.node, who.pid, who.state_dir);
    let _ = writeln!(out, "{}\n", crate::human::plain(&head));
    let _ = writeln!(out, "{}", super::ps::table(&apps));
    let _ = writeln!(out, "{}", costs(&apps));
    let _ = write!(out, "{}", super::node::table(&nodes));
    Ok(out)
}

/// What the last epoch of each application that runs took.
fn costs(apps: &[AppInfo]) -> Table {
    use Align::{Left, Right};
    let names =
        ["PARK", "SCAN", "COPY", "KINDS", "UNPARK", "DUMP", "PAGES", "STATE", "WRITTEN", "STANDBY LAG"];
    let mut columns = vec![("NAME", Left), ("EVERY", Left)];
    columns.extend(names.map(|name| (name, Right)));
    let mut table = Table::new(&columns);
    for app in apps.iter().filter(|app| app.state != AppState::Stopped) {
        let Some(last) = &app.last else { continue };
        let every = match (app.every_ms, app.budget_permille) {
            (0, _) => "on order".to_owned(),
            (ms, 0) => human::millis(ms),
            (ms, permille) => format!("{} ({}%)", human::millis(ms), f64::from(permille) / 10.0),
        };
        let split = last.split();
        let mut row = vec![app.name.clone(), every];
        row.extend(
            [split.park, split.scan, split.copy, split.kinds, split.unpark, last.dump_us].map(human::micros),
        );
        row.extend([
            last.pages_dirty.to_string(),
            human::bytes(last.bytes_raw),
            human::bytes(last.bytes_sent),
            app.standby_lag_ms.map_or("-".to_owned(), human::millis),
        ]);
        table.row(row);
    }
    table
}

/// The terminal's second screen, without echo; put back when dropped.
struct Screen {
    before: Option<Termios>,
}

impl Screen {
    fn open() -> Result<Self, CliError> {
        let action = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::empty());
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
            // SAFETY: the handler stores to an atomic, nothing else.
            let _ = unsafe { sigaction(signal, &action) };
        }
        let before = tcgetattr(stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG);
            let _ = tcsetattr(stdin(), SetArg::TCSANOW, &raw);
        }
        let screen = Self { before };
        write!(stdout(), "\x1b[?1049h\x1b[?25l")?;
        Ok(screen)
    }

    fn draw(&self, text: &str) -> Result<(), CliError> {
        let (rows, columns) = size();
        let mut frame = String::from("\x1b[H");
        // The last line stays free, so that nothing scrolls.
        for line in text.lines().take(rows.saturating_sub(2)) {
            let cut: String = line.chars().take(columns).collect();
            let _ = write!(frame, "{cut}\x1b[K\r\n");
        }
        let _ = write!(frame, "\x1b[J\x1b[7m q to quit \x1b[0m");
        let mut out = stdout().lock();
        out.write_all(frame.as_bytes())?;
        Ok(out.flush()?)
    }

    /// Waits for the time of the next picture; true when it is time to go.
    fn wait_for_quit(&self, period: Duration) -> bool {
        let deadline = Instant::now() + period;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if ENDING.load(Ordering::Relaxed) {
                return true;
            }
            if left.is_zero() {
                return false;
            }
            let stdin = stdin();
            let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let ready = self.before.is_some() && matches!(poll(&mut fds, timeout), Ok(n) if n > 0);
            if !ready {
                if self.before.is_none() {
                    std::thread::sleep(left);
                }
                continue;
            }
            let mut key = [0];
            match nix::unistd::read(stdin.as_fd(), &mut key) {
                Ok(1) if key[0] != b'q' && key[0] != CTRL_C => {}
                Err(nix::errno::Errno::EINTR) => {}
                // A key to quit, the end of the terminal, or an error.
                Ok(_) | Err(_) => return true,
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write!(stdout(), "\x1b[?25h\x1b[?1049l");
        let _ = stdout().flush();
        if let Some(before) = &self.before {
            let _ = tcsetattr(stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Rows and columns of the terminal.
fn size() -> (usize, usize) {
    // SAFETY: all zeros is a value of the structure.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the structure of its own size.
    let done = unsafe { libc::ioctl(1, libc::TIOCGWINSZ, &mut size) };
    if done != 0 || size.ws_row == 0 || size.ws_col == 0 {
        return (24, 80);
    }
    (usize::from(size.ws_row), usize::from(size.ws_col))
}

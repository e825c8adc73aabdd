//! Goal: pseudo-terminals, sessions with their controlling terminal and job control are as they were, live and after a restore.
//! Method: programs that check themselves; an editor inside a terminal multiplexer, of which the file is looked at.
#![allow(missing_docs)]

use holo_tests::app::{App, ORDER_LIMIT, Program};
use holo_tests::cluster::Cluster;
use holo_tests::cluster_agents::Timing;
use holo_tests::node::{Node, Who, hand_over};
use holo_tests::workload::Workload;
use holo_tests::{command, paths, process, service, wait};
use std::fs;
use std::process::Stdio;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);
const DIR: &str = "data/work";

holo_tests::workloads! {
    pairs: Workload::new("pty_pairs.c");
    streams: Workload::new("pty_streams.c");
    jobs: Workload::script("/usr/bin/python3", "jobs.py").checkpoints(40);
}

/// The server is the application; clients come from outside and go.
struct Tmux<'a> {
    node: &'a Node,
    socket: String,
}

impl<'a> Tmux<'a> {
    fn on(node: &'a Node) -> Tmux<'a> {
        Tmux { node, socket: node.inside(DIR).join("socket").display().to_string() }
    }

    /// Starts a server with an editor of `letter`, in which a line was typed.
    fn start(node: &'a Node, options: &[&str]) -> (Tmux<'a>, App) {
        let tmux = Tmux::on(node);
        let program =
            Program::new(service::need("/usr/bin/tmux"), &["-D", "-f", "/dev/null", "-S", &tmux.socket]);
        let program = program.env("TERM", "xterm").env("HOME", "/tmp").env("SHELL", "/bin/sh");
        let mut app = App::start(node, "tmux", &program, DIR, options);
        app.wait_joined(node);
        let socket = node.outside(DIR).join("socket");
        wait::until(LIMIT, "the server", || socket.exists().then_some(()));
        // It asks the terminal nothing: an answer that comes while keys are typed would be taken for keys.
        let quiet = "--cmd 'set t_RV= t_u7= t_RF= t_RB='";
        let vim = service::need("/usr/bin/vim");
        let letter = node.inside(DIR).join("letter");
        let editor = format!("exec {} -u NONE -N -n {quiet} {}", vim.display(), letter.display());
        tmux.client(&["new-session", "-d", "-s", "edit", "-x", "90", "-y", "30", &editor]);
        // Before it is there, the terminal would echo.
        tmux.shows("~\n~\n~");
        tmux.type_in(&["i", "before the first epoch"]);
        tmux.shows("-- INSERT --");
        tmux.shows("before the first epoch");
        (tmux, app)
    }

    fn client(&self, args: &[&str]) -> String {
        let mut command = self.node.command("/usr/bin/tmux");
        command::run_ok(command.env("TERM", "xterm").args(["-S", &self.socket]).args(args), LIMIT)
    }

    fn type_in(&self, keys: &[&str]) {
        self.client(&[&["send-keys", "-t", "edit"], keys].concat());
    }

    fn shows(&self, text: &str) {
        let screen = || self.client(&["capture-pane", "-p", "-t", "edit"]);
        let shown = wait::try_until(LIMIT, || screen().contains(text).then_some(()));
        assert!(shown.is_some(), "no {text} on the screen: {}", screen());
    }

    fn has_its_size(&self) {
        let what = "#{pane_width}x#{pane_height} #{pane_current_command}";
        let size = self.client(&["display-message", "-p", "-t", "edit", what]);
        assert!(size.starts_with("90x") && size.trim_end().ends_with("vim"), "{size}");
    }

    /// Writes the letter, which has to be this.
    fn writes(&self, letter: &str) {
        self.type_in(&["Escape", ":w", "Enter"]);
        let file = self.node.outside(DIR).join("letter");
        let text = || fs::read_to_string(&file).unwrap_or_default();
        let written = wait::try_until(LIMIT, || (text() == letter).then_some(()));
        assert!(written.is_some(), "the letter is {:?}, not {letter:?}", text());
    }

    /// Ends editor and server.
    fn ends(&self, app: &App) {
        self.type_in(&[":q", "Enter"]);
        wait::until(LIMIT, "the end of the session", || {
            self.client(&["list-sessions", "-F", "x"]).is_empty().then_some(())
        });
        self.client(&["kill-server"]);
        app.wait_ended(self.node, LIMIT);
    }
}

fn an_editor_in_a_multiplexer(who: Who) {
    let node = Node::start(who);
    hand_over(&node.outside(DIR), who);
    let (tmux, mut app) = Tmux::start(&node, &[]);
    for _ in 0..10 {
        app.checkpoint(&node);
    }
    tmux.type_in(&["Enter", "live"]);
    tmux.shows("live");
    for again in ["once", "twice"] {
        app.checkpoint(&node);
        tmux.type_in(&["lost"]);
        app.kill(&node);
        app.restore(&node, None);
        tmux.shows("before the first epoch");
        tmux.has_its_size();
        tmux.type_in(&["Enter", again]);
        tmux.shows(again);
    }
    // The size goes through the terminal to the editor.
    tmux.client(&["resize-window", "-t", "edit", "-x", "60", "-y", "20"]);
    tmux.type_in(&["Escape"]);
    wait::until(LIMIT, "the editor's new size", || {
        tmux.type_in(&[":echo 'columns' &columns", "Enter"]);
        tmux.client(&["capture-pane", "-p", "-t", "edit"]).contains("columns 60").then_some(())
    });
    app.checkpoint(&node);
    tmux.writes("before the first epoch\nlive\nonce\ntwice\n");
    tmux.ends(&app);
}

/// To another node and back, with what was typed and not written.
#[test]
fn an_editor_in_a_multiplexer_is_switched() {
    let mut cluster = Cluster::ordinary(&["a", "b"]);
    cluster.start_agents(Timing::patient());
    let [a, b] = [&cluster.nodes[0], &cluster.nodes[1]];
    cluster.nodes.iter().for_each(|node| hand_over(&node.outside(DIR), node.who()));
    let (_, app) = Tmux::start(a, &["--standby", "b"]);
    for (to, text) in [(b, "on b"), (a, "on a")] {
        command::run_ok(&mut to.holo(&["switch", "tmux", "--to", &to.name]), ORDER_LIMIT);
        wait::until(LIMIT, "the new owner", || (app.state(to) == "running").then_some(()));
        app.settle(to);
        let tmux = Tmux::on(to);
        tmux.shows("before the first epoch");
        tmux.has_its_size();
        tmux.type_in(&["Enter", text]);
        tmux.shows(text);
    }
    let tmux = Tmux::on(a);
    tmux.writes("before the first epoch\non b\non a\n");
    tmux.ends(&app);
}

#[test]
fn an_editor_in_a_multiplexer_is_restored() {
    an_editor_in_a_multiplexer(Who::Me);
}

#[test]
fn an_editor_in_a_multiplexer_is_restored_as_user() {
    an_editor_in_a_multiplexer(Who::Nobody);
}

#[test]
fn jobs_are_switched() {
    Workload::script("/usr/bin/python3", "jobs.py").switched();
}

/// `script` between a terminal of its own and a shell that counts: the record has no hole and no repetition after a restore.
#[test]
fn a_recorded_shell_is_restored() {
    let node = Node::start(Who::Me);
    hand_over(&node.outside(DIR), Who::Me);
    let count = "i=0; stty -echo rows 33; while [ $i -lt 100000 ] && [ ! -e stop ]; do i=$((i+1)); echo $i; sleep 0.01; done; stty size; tty";
    let record = node.inside(DIR).join("record").display().to_string();
    let shell = format!("cd {}; {count}", node.inside(DIR).display());
    let program = Program::new("/usr/bin/script", &["-q", "-f", "-E", "never", "-c", &shell, &record]);
    let mut app = App::start(&node, "script", &program.env("SHELL", "/bin/sh"), DIR, &[]);
    app.wait_joined(&node);
    let recorded = || fs::read_to_string(node.outside(DIR).join("record")).unwrap_or_default();
    let lines = || recorded().lines().count();
    wait::until(LIMIT, "lines", || (lines() > 10).then_some(()));
    for _ in 0..2 {
        for _ in 0..5 {
            app.checkpoint(&node);
        }
        app.kill(&node);
        app.restore(&node, None);
        let now = lines();
        wait::until(LIMIT, "more lines", || (lines() > now + 10).then_some(()));
    }
    fs::write(node.outside(DIR).join("stop"), b"").expect("stop");
    app.wait_ended(&node, LIMIT);
    let text = recorded();
    let numbers: Vec<u32> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let right = numbers.iter().enumerate().all(|(at, number)| *number == at as u32 + 1);
    assert!(right && numbers.len() > 30, "{text}");
    assert!(text.contains("33 ") && text.contains("/dev/pts/"), "{text}");
}

/// The terminal that it was started at is not the application's: it goes on without, or at that of `holo restore --attach`.
#[test]
fn a_terminal_from_outside_is_replaced() {
    let node = Node::start(Who::Me);
    hand_over(&node.outside(DIR), Who::Me);
    let (dir, holo) = (node.inside(DIR).display().to_string(), paths::bin("holo").display().to_string());
    let at_a_terminal = |order: &str| {
        let record = node.outside("data/record");
        let mut script = node.command("script");
        script.args(["-qfec", order]).arg(record).stdin(Stdio::null()).stdout(Stdio::null());
        script.spawn().expect("script")
    };
    let text = |name: &str| fs::read_to_string(node.outside(DIR).join(name)).unwrap_or_default();
    let holo_says = |args: &[&str]| command::run_ok(&mut node.holo(args), ORDER_LIMIT);
    let goes_on = || {
        let now = text("progress");
        wait::until(LIMIT, "progress", || (text("progress") != now).then_some(()));
    };
    let says_at_its_end = || {
        fs::write(node.outside(DIR).join("stop"), b"").expect("stop");
        wait::until(LIMIT, "the end", || holo_says(&["ps"]).contains("exited with status 7").then_some(()));
        text("end")
    };
    let counts = "i=0; while [ ! -e stop ]; do i=$((i+1)); echo $i > progress; sleep 0.02; done";
    let asks = "(tty; stty size; : < /dev/tty) > end 2>&1";
    let program = format!("cd {dir}; stty size < /dev/tty > size; {counts}; {asks}; exit 7");
    let run =
        format!("exec {holo} run --name work --every 0 --park-max 2s --root {dir} -- /bin/sh -c '{program}'");
    let mut first = at_a_terminal(&format!("stty rows 33 cols 77; {run}"));
    wait::until(LIMIT, "the program", || (text("size") == "33 77\n").then_some(()));
    goes_on();
    holo_says(&["checkpoint", "work"]);
    let rows: serde_json::Value = serde_json::from_str(&holo_says(&["ps", "--json"])).expect("holo ps");
    let pids = rows[0]["real_pids"].as_array().into_iter().flatten();
    let pids: Vec<u32> = pids.filter_map(|pid| u32::try_from(pid.as_u64()?).ok()).collect();
    // `script` stops with its child, so that they are not stopped before.
    process::kill_all(&pids);
    assert_eq!(command::wait_child(&mut first, LIMIT, "script").code(), Some(128 + 9));
    process::wait_gone(&pids, LIMIT);
    wait::until(LIMIT, "its end", || holo_says(&["ps"]).contains("killed by SIGKILL").then_some(()));

    let mut second = at_a_terminal(&format!("stty rows 20 cols 60; exec {holo} restore work --attach"));
    // Before that its files are put in place.
    wait::until(LIMIT, "the restore", || holo_says(&["ps"]).contains("running").then_some(()));
    goes_on();
    let end = says_at_its_end();
    assert!(end.contains("/dev/pts/") && end.contains("20 60") && end.contains("No such device"), "{end}");
    assert_eq!(command::wait_child(&mut second, LIMIT, "script").code(), Some(7));

    holo_says(&["restore", "work", "--epoch", "1"]);
    goes_on();
    let end = says_at_its_end();
    assert!(end.contains("not a tty") && end.contains("No such device"), "{end}");
}

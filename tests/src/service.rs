//! Servers under load: what each must keep through epochs, a kill -9 of all its processes, and a change of its node.
//!
//! A [`Service`] says how a server is started and which client program of `tests/programs` talks to it. Every client
//! has the same orders: `up`, `fill`, `load NUMBER LOG`, `verify NUMBERS...`. A load writes numbered values until `LOG.stop`
//! exists and logs what the server acknowledged; `verify` checks all contents, each load's at least up to the number given,
//! and prints the last number of each.

use crate::app::{App, ORDER_LIMIT, Program, start_plain};
use crate::cluster::Cluster;
use crate::cluster_agents::Timing;
use crate::node::{Node, Who, hand_over};
use crate::{command, leftovers, wait};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The protected root of a server, on its node.
pub const DIR: &str = "data/service";
/// Where the logs of loads are, on the client's node.
const LOGS: &str = "data/logs";
const LIMIT: Duration = Duration::from_secs(60);
const NAME: &str = "service";
/// Epochs under load, as far as they fit into [`EPOCHS_TIME`].
const EPOCHS: u32 = 100;
const EPOCHS_TIME: Duration = Duration::from_secs(10);
const EPOCHS_LEAST: u32 = 10;

/// A server and its client.
pub trait Service {
    /// Makes what the server finds in its directory when it starts.
    fn prepare(&self, node: &Node);
    /// The command line.
    fn program(&self, node: &Node) -> Program;
    /// A client with an order, which runs on the node `from` and reaches the server at `host`.
    fn client(&self, from: &Node, host: &str, order: &[&str]) -> Command;
    /// More to be verified on the node that runs it; `last` are the last numbers of the loads.
    fn verify_files(&self, _node: &Node, _last: &[u64]) {}
    /// Its files hold everything: a server without holo must find it there after a good end.
    fn is_durable(&self) -> bool {
        false
    }
    /// Something to be done to the running server after a restore: a reload, a restart.
    fn after_restore(&self, _node: &Node, _app: &App) {}
}

/// A file that a test needs in place.
///
/// # Panics
/// When it is not there: it comes with a package.
pub fn need(path: &str) -> PathBuf {
    assert!(Path::new(path).exists(), "{path} is not there: run `make setup`, which installs its package");
    PathBuf::from(path)
}

/// A running load.
struct Load {
    child: Child,
    log: PathBuf,
}

impl Load {
    /// Number of the last acknowledged write.
    fn acknowledged(&self) -> u64 {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.rsplit('\n').next().and_then(|l| l.split(' ').next()).and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    fn lost(&self) -> bool {
        fs::read_to_string(&self.log).unwrap_or_default().contains(" lost ")
    }

    /// Ends it: the last acknowledged number.
    fn stop(mut self) -> u64 {
        let stop = PathBuf::from(format!("{}.stop", self.log.display()));
        fs::write(&stop, b"").unwrap_or_else(|e| panic!("{}: {e}", stop.display()));
        let status = command::wait_child(&mut self.child, LIMIT, "load");
        assert!(status.success(), "a client got wrong answers: {status}, see {}", self.said());
        self.acknowledged()
    }

    fn said(&self) -> String {
        fs::read_to_string(self.log.with_extension("err")).unwrap_or_default()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that runs somewhere, the loads that it ever had, and where its clients are.
struct Trial<'a, S: Service> {
    service: &'a S,
    /// Where the server is, for clients.
    host: String,
    loads: u32,
    /// Of each load, what it saw acknowledged before the last sealed epoch.
    sealed: Vec<u64>,
}

impl<'a, S: Service> Trial<'a, S> {
    fn new(service: &'a S, host: &str) -> Trial<'a, S> {
        Trial { service, host: host.to_owned(), loads: 0, sealed: Vec::new() }
    }

    fn start(&self, node: &Node, from: &Node, options: &[&str]) -> App {
        hand_over(&node.outside(DIR), node.who());
        hand_over(&from.outside(LOGS), from.who());
        self.service.prepare(node);
        let mut app = App::start(node, NAME, &self.service.program(node), DIR, options);
        app.wait_joined(node);
        self.wait_up(from);
        command::run_ok(&mut self.service.client(from, &self.host, &["fill"]), LIMIT);
        app
    }

    fn wait_up(&self, from: &Node) {
        let mut said = String::new();
        let up = wait::try_until(LIMIT, || {
            let finished = command::run(&mut self.service.client(from, &self.host, &["up"]), LIMIT);
            said = finished.stderr.clone();
            finished.status.success().then_some(())
        });
        assert!(up.is_some(), "the server does not answer: {said}");
    }

    fn load(&mut self, from: &Node) -> Load {
        let number = self.loads.to_string();
        self.loads += 1;
        self.sealed.push(0);
        let log = from.outside(LOGS).join(format!("load{number}"));
        let text = from.inside(LOGS).join(format!("load{number}")).display().to_string();
        let mut command = self.service.client(from, &self.host, &["load", &number, &text]);
        let err =
            fs::File::create(log.with_extension("err")).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(err);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let load = Load { child, log };
        wait::until(LIMIT, "a load at work", || (load.acknowledged() > 0).then_some(()));
        load
    }

    /// An epoch, and what the loads had seen acknowledged before it.
    fn seal(&mut self, app: &App, node: &Node, loads: &[Load]) {
        let first = self.sealed.len() - loads.len();
        let seen: Vec<u64> = loads.iter().map(Load::acknowledged).collect();
        app.checkpoint(node);
        self.sealed[first..].copy_from_slice(&seen);
    }

    fn verify(&self, node: &Node, from: &Node, at_least: &[u64]) -> Vec<u64> {
        let mut order = vec!["verify".to_owned()];
        order.extend(at_least.iter().map(u64::to_string));
        let order: Vec<&str> = order.iter().map(String::as_str).collect();
        let text = command::run_ok(&mut self.service.client(from, &self.host, &order), LIMIT);
        let last: Vec<u64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        assert_eq!(last.len(), at_least.len(), "verify said {text}");
        for (load, (have, want)) in last.iter().zip(at_least).enumerate() {
            assert!(have >= want, "load {load}: {want} were acknowledged before the epoch, {have} are there");
        }
        self.service.verify_files(node, &last);
        last
    }

    /// After a restore: all of the sealed epoch is there, and it goes on as a server.
    fn judge(&mut self, app: &App, node: &Node, from: &Node) {
        self.wait_up(from);
        self.sealed = self.verify(node, from, &self.sealed);
        self.service.after_restore(node, app);
        self.wait_up(from);
        let load = self.load(from);
        std::thread::sleep(Duration::from_millis(200));
        *self.sealed.last_mut().unwrap_or_else(|| panic!("no load")) = load.stop();
        self.sealed = self.verify(node, from, &self.sealed);
        // Whoever ends it now may do so without a warning.
        if !node.has_own_pids() {
            app.real_pids(node).into_iter().for_each(leftovers::note);
        }
        assert_eq!(app.state(node), "running", "{:?}", app.row(node));
    }
}

fn note(what: &str, values: &mut [u64]) {
    values.sort_unstable();
    let at = |part: usize| values.get(values.len() * part / 100).copied().unwrap_or(0);
    eprintln!(
        "{} epochs, {what}: median {} us, 95 % {} us, most {} us",
        values.len(),
        at(50),
        at(95),
        values.last().copied().unwrap_or(0)
    );
}

/// Many epochs under two loads, none of which notices anything: as many as fit into a short time.
pub fn lives(service: &impl Service, who: Who) {
    let until = Instant::now() + EPOCHS_TIME;
    live_for(service, who, |epochs| epochs < EPOCHS && (epochs < EPOCHS_LEAST || Instant::now() < until));
}

/// The same with a number of epochs, however long they take.
pub fn lives_long(service: &impl Service, who: Who, epochs: u32) {
    live_for(service, who, |done| done < epochs);
}

fn live_for(service: &impl Service, who: Who, goes_on: impl Fn(u32) -> bool) {
    let node = Node::start(who);
    let mut trial = Trial::new(service, "127.0.0.1");
    let app = trial.start(&node, &node, &[]);
    assert!(trial.verify(&node, &node, &[]).is_empty());
    let loads = [trial.load(&node), trial.load(&node)];
    let mut stops = Vec::new();
    while goes_on(stops.len() as u32) {
        stops.push(app.checkpoint(&node).number("stop_us"));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(loads.iter().all(|load| !load.lost()), "a client lost its connection");
    let numbers = loads.map(Load::stop);
    note("stop", &mut stops);
    assert_eq!(trial.verify(&node, &node, &numbers), numbers, "more or less than was acknowledged");
    assert_eq!(app.state(&node), "running");
}

/// Epochs under load, kill -9 of every process, restore: twice. Then a good end.
pub fn is_restored(service: &impl Service, who: Who) {
    let node = Node::start(who);
    let mut trial = Trial::new(service, "127.0.0.1");
    let mut app = trial.start(&node, &node, &[]);
    for round in 0..2 {
        let loads = [trial.load(&node), trial.load(&node)];
        for _ in 0..4 {
            trial.seal(&app, &node, &loads);
            std::thread::sleep(Duration::from_millis(30));
        }
        app.kill(&node);
        drop(loads);
        let restored = app.restore(&node, None);
        eprintln!("round {round}: restored in {} us", restored["restore_us"]);
        trial.judge(&app, &node, &node);
    }
    command::run_ok(&mut node.holo(&["stop", NAME]), Duration::from_secs(30));
    app.wait_ended(&node, Duration::from_secs(20));
    if service.is_durable() {
        let mut plain = start_plain(&node, &service.program(&node), DIR);
        trial.wait_up(&node);
        let last = trial.verify(&node, &node, &trial.sealed);
        assert_eq!(last, trial.sealed, "the files differ from what the server had");
        command::run_ok(node.command("kill").args(["-TERM", &plain.id().to_string()]), LIMIT);
        assert!(command::wait_child(&mut plain, LIMIT, "the server without holo").success());
    }
}

/// As an ordinary user: by order to another node, whose namespaces and files are its own; then that node is killed, and the first takes over.
pub fn is_switched(service: &impl Service) {
    let (a, b, clients) = (0, 1, 2);
    let mut cluster = Cluster::ordinary(&["a", "b", "clients"]);
    cluster.start_agents_of(&[a, b], Timing { heartbeat_ms: 100, lease_ms: 5_000, failover_ms: 7_500 });
    hand_over(&cluster.nodes[b].outside(DIR), Who::Me);
    let mut trial = Trial::new(service, &cluster.address(a));
    let mut app = trial.start(&cluster.nodes[a], &cluster.nodes[clients], &["--standby", "b"]);
    let loads = [trial.load(&cluster.nodes[clients]), trial.load(&cluster.nodes[clients])];
    trial.seal(&app, &cluster.nodes[a], &loads);
    wait::until(LIMIT, "the clone on b", || (app.state(&cluster.nodes[b]) == "standby").then_some(()));
    command::run_ok(&mut cluster.nodes[a].holo(&["switch", NAME, "--to", "b"]), ORDER_LIMIT);
    trial.host = cluster.address(b);
    // By order nothing is lost: not what a client had seen a moment before.
    trial.sealed = loads.iter().map(Load::acknowledged).collect();
    drop(loads);
    wait::until(LIMIT, "b runs it", || (app.state(&cluster.nodes[b]) == "running").then_some(()));
    app.settle(&cluster.nodes[b]);
    trial.judge(&app, &cluster.nodes[b], &cluster.nodes[clients]);
    let loads = [trial.load(&cluster.nodes[clients]), trial.load(&cluster.nodes[clients])];
    wait::until(LIMIT, "the clone on a", || (app.state(&cluster.nodes[a]) == "standby").then_some(()));
    trial.seal(&app, &cluster.nodes[b], &loads);
    cluster.kill(b);
    app.forget();
    trial.host = cluster.address(a);
    wait::until(LIMIT, "take-over by a", || (app.state(&cluster.nodes[a]) == "running").then_some(()));
    app.settle(&cluster.nodes[a]);
    drop(loads);
    trial.judge(&app, &cluster.nodes[a], &cluster.nodes[clients]);
}

//! The façade: owns the threads, the heartbeats, the transfers, and drives the failover core of each application.

mod ahead;
mod app;
mod control;
mod order;
mod receiver;
mod sender;
mod sending;
mod types;
mod workers;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use holo_api::peer::{AppEnvelope, Hello, MEMBERS_MAX, PROTOCOL, Purpose};
use parking_lot::{Condvar, Mutex, RwLock};

use crate::{
    clock::{now_ms, random_id},
    core::{Event, RoleView, Timing},
    error::{ClusterError, LinkError},
    keys::{NodeKeys, check_name},
    link::{Connection, Patience, VERSION},
    ports::Ports,
    records::{Records, app_name_ok},
    server::{Serve, Server, ServerLimits},
    tls::Tls,
};
use app::{App, Origin};
use control::Peer;
pub use types::{AppStatus, ClusterConfig, Described, NodeStatus, PeerConfig, Sending, Switched};

struct Shared {
    timing: Timing,
    transfer_patience: Duration,
    tls: Tls,
    boot: u64,
    ports: Ports,
    records: Records,
    peers: BTreeMap<String, Arc<Peer>>,
    apps: RwLock<HashMap<String, Arc<App>>>,
    draining: AtomicBool,
    stop: AtomicBool,
    stop_lock: Mutex<()>,
    stopped: Condvar,
    said: Mutex<HashSet<String>>,
}

impl Shared {
    fn node(&self) -> &str {
        self.tls.node()
    }

    fn log(&self, text: &str) {
        (self.ports.log)(text);
    }

    /// For what would otherwise be said at every heartbeat.
    fn log_once(&self, key: &str, text: &str) {
        let mut said = self.said.lock();
        if said.len() < 1024 && said.insert(format!("{key} {text}")) {
            self.log(text);
        }
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn sleep(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut guard = self.stop_lock.lock();
        while !self.stopping() && !self.stopped.wait_until(&mut guard, end).timed_out() {}
    }

    fn hello(&self, purpose: Purpose) -> Hello {
        let (node, version) = (self.node().to_owned(), VERSION.to_owned());
        Hello { protocol: PROTOCOL, node, version, boot: self.boot, purpose }
    }

    fn send(&self, node: &str, envelope: AppEnvelope) {
        if let Some(peer) = self.peers.get(node) {
            peer.push(envelope);
        }
    }

    fn app(&self, name: &str) -> Option<Arc<App>> {
        self.apps.read().get(name).cloned()
    }

    fn apps(&self) -> Vec<Arc<App>> {
        let mut apps: Vec<_> = self.apps.read().values().cloned().collect();
        apps.sort_by(|a, b| a.name.cmp(&b.name));
        apps
    }
}

struct Service(Arc<Shared>);

impl Serve for Service {
    fn refuse(&self, hello: &Hello) -> Option<String> {
        let unknown = !self.0.peers.contains_key(&hello.node);
        unknown.then(|| format!("node {} is not configured on node {}", hello.node, self.0.node()))
    }

    fn serve(&self, connection: Connection, hello: &Hello) -> Result<(), LinkError> {
        match hello.purpose {
            Purpose::Control => control::serve(&self.0, connection),
            Purpose::Transfer => receiver::serve(&self.0, connection),
            Purpose::Order => order::serve(&self.0, connection),
        }
    }
}

/// The cluster part of an agent.
#[derive(Debug)]
pub struct Cluster;

impl Cluster {
    /// Checks the configuration, recovers what is remembered, listens and dials.
    ///
    /// Listening begins last: a node that accepts connections is ready to answer.
    pub fn start(
        config: ClusterConfig,
        keys: &NodeKeys,
        ports: Ports,
    ) -> Result<ClusterHandle, ClusterError> {
        config.timing.validate()?;
        let tls = Tls::new(keys)?;
        let mut peers = BTreeMap::new();
        for peer in &config.peers {
            check_name(&peer.name)?;
            if peer.name == tls.node() || peers.contains_key(&peer.name) {
                let why = format!("node {} is listed twice, or is this node itself", peer.name);
                return Err(ClusterError::Config(why));
            }
            peers.insert(peer.name.clone(), Arc::new(Peer::new(peer.clone())));
        }
        let shared = Arc::new(Shared {
            timing: config.timing,
            transfer_patience: Duration::from_millis(config.transfer_ms_max.max(1000)),
            tls: tls.clone(),
            boot: random_id(),
            ports,
            records: Records::open(&config.state_dir)?,
            peers,
            apps: RwLock::new(HashMap::new()),
            draining: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            stop_lock: Mutex::new(()),
            stopped: Condvar::new(),
            said: Mutex::new(HashSet::new()),
        });
        let handle = ClusterHandle(Arc::new(Running { shared: shared.clone(), server: Mutex::new(None) }));
        recover(&shared)?;
        if let Some(listen) = &config.listen {
            let fail = |source| ClusterError::Listen { address: listen.clone(), source };
            let listener = TcpListener::bind(listen).map_err(fail)?;
            let patience = Patience { connect: Duration::from_secs(5), io: Duration::from_secs(10) };
            let limits = ServerLimits { connections_max: config.connections_max, patience };
            let (boot, log) = (shared.boot, shared.ports.log.clone());
            let service = Arc::new(Service(shared.clone()));
            *handle.0.server.lock() = Some(Server::start(listener, tls, boot, limits, log, service)?);
        }
        for peer in shared.peers.values() {
            control::start(&shared, peer);
        }
        Ok(handle)
    }
}

fn recover(shared: &Arc<Shared>) -> Result<(), ClusterError> {
    for name in shared.records.list()? {
        let Some(stored) = shared.records.read(&name)? else { continue };
        let members = stored.record.members.clone();
        match App::start(shared, &name, members, Origin::Recover(stored)) {
            Some(app) => {
                shared.apps.write().insert(name, app);
            }
            None => {
                let node = shared.node();
                shared.log(&format!("{name}: its record does not name this node ({node}): left alone"));
            }
        }
    }
    Ok(())
}

struct Running {
    shared: Arc<Shared>,
    server: Mutex<Option<Server>>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("node", &self.shared.node()).finish_non_exhaustive()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.stopped.notify_all();
        for app in self.shared.apps() {
            app.end();
        }
        for peer in self.shared.peers.values() {
            peer.wake();
        }
        self.server.lock().take();
    }
}

/// What the agent holds; when the last clone is dropped, all threads end. Applications are not touched: their
/// guard fences them when their lease runs out.
#[derive(Clone, Debug)]
pub struct ClusterHandle(Arc<Running>);

impl ClusterHandle {
    fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    fn find(&self, app: &str) -> Result<Arc<App>, ClusterError> {
        self.shared().app(app).ok_or_else(|| ClusterError::NoApp(app.to_owned()))
    }

    /// This node's name.
    pub fn node(&self) -> &str {
        self.shared().node()
    }

    /// Where other agents are served.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.server.lock().as_ref().map(Server::address)
    }

    /// An application is about to run here for the first time, with these stand-bys in order of preference.
    /// When this returns the application may run.
    pub fn launch(&self, app: &str, standby: &[String]) -> Result<(), ClusterError> {
        let shared = self.shared();
        let refused = |why: String| ClusterError::Refused { app: app.to_owned(), why };
        if !app_name_ok(app) {
            return Err(refused(
                "names have letters, digits and ._-@:+ and do not begin with a dot".to_owned(),
            ));
        }
        let mut members = vec![shared.node().to_owned()];
        for node in standby {
            if members.contains(node) {
                return Err(refused(format!("node {node} is listed twice, or is this node itself")));
            }
            if !shared.peers.contains_key(node) {
                return Err(ClusterError::NoNode(node.clone()));
            }
            members.push(node.clone());
        }
        if members.len() > MEMBERS_MAX {
            return Err(refused(format!("at most {} stand-bys", MEMBERS_MAX - 1)));
        }
        let mut apps = shared.apps.write();
        let mut after = 0;
        if let Some(old) = apps.get(app) {
            let free = old.read(|core| {
                let record = core.record();
                after = record.incarnation.max(record.promised);
                let lost = record.owner == Some(core.me()) && !core.is_owner();
                // Nobody else can have taken over from an owner that never armed anybody.
                record.ended || (lost && !record.guarded)
            });
            if !free {
                let owner = old.status(shared).owner.unwrap_or_else(|| "another node".to_owned());
                return Err(refused(format!("known as an application of node {owner} that did not end")));
            }
            old.end();
        }
        let launched = App::start(shared, app, members, Origin::Launch { after });
        let launched = launched.ok_or_else(|| refused("cannot be started".to_owned()))?;
        if !launched.is_durable() {
            launched.end();
            apps.remove(app);
            return Err(refused("its record cannot be written".to_owned()));
        }
        apps.insert(app.to_owned(), launched);
        Ok(())
    }

    /// The application ended by itself or on order: nobody runs it any more.
    pub fn ended(&self, app: &str) -> Result<(), ClusterError> {
        self.find(app)?.step(self.shared(), Event::Ended);
        Ok(())
    }

    /// The instance is gone though nobody ended it (killed): the cluster may run it elsewhere.
    pub fn lost(&self, app: &str) -> Result<(), ClusterError> {
        self.find(app)?.step(self.shared(), Event::InstanceLost);
        Ok(())
    }

    /// Forgets an application that does not run here. Its stand-bys forget it themselves, on their nodes.
    pub fn forget(&self, app: &str) -> Result<(), ClusterError> {
        let found = self.find(app)?;
        if found.read(|core| core.is_owner()) {
            let why = "it runs here".to_owned();
            return Err(ClusterError::Refused { app: app.to_owned(), why });
        }
        found.end();
        self.shared().apps.write().remove(app);
        self.shared().records.remove(app)
    }

    /// The agent sealed an epoch of an application that runs here; it is brought to the stand-bys.
    pub fn announce_epoch(&self, app: &str, epoch: u64) -> Result<(), ClusterError> {
        let found = self.find(app)?;
        let why = "it is not owned by this node".to_owned();
        let refused = ClusterError::Refused { app: app.to_owned(), why };
        found.announce(self.shared(), epoch).map(|_| ()).ok_or(refused)
    }

    /// Waits until every stand-by that can be reached holds this epoch and knows that it is one; returns the nodes
    /// that hold it.
    pub fn wait_sealed(
        &self,
        app: &str,
        epoch: u64,
        patience: Duration,
    ) -> Result<Vec<String>, ClusterError> {
        let found = self.find(app)?;
        let end = Instant::now() + patience;
        let mut arm_end = None;
        loop {
            let status = found.status(self.shared());
            let holds = |n: &&(String, u64)| n.1 >= epoch;
            let nodes: Vec<String> =
                status.sealed_at.iter().filter(holds).map(|(node, _)| node.clone()).collect();
            let up = |name: &String| self.shared().peers.get(name).is_some_and(|p| p.seen.lock().up);
            let waiting = status.sealed_at.iter().any(|(node, held)| *held < epoch && up(node));
            // The very first epoch makes stand-bys of them: they must know it, or they would not take over.
            let armed =
                |node: &String| found.member(node).is_some_and(|m| found.read(|core| core.is_armed(m)));
            let unarmed = nodes.iter().any(|node| up(node) && !armed(node));
            let arming =
                unarmed && Instant::now() < *arm_end.get_or_insert_with(|| Instant::now() + self.arming());
            if !(waiting || arming) || Instant::now() >= end {
                return Ok(nodes);
            }
            let mut replicas = found.replicas.lock();
            found.replicated.wait_for(&mut replicas, Duration::from_millis(5));
        }
    }

    /// How long stand-bys that answer need at most to be armed; beyond it there is no majority for it.
    fn arming(&self) -> Duration {
        Duration::from_millis(10 * self.shared().timing.heartbeat_ms)
    }

    /// Runs an application here that runs nowhere (`holo restore`): asks its nodes, then prepares and activates
    /// it through the ports. With `force` nobody is asked: the operator vouches that no other node runs it.
    pub fn claim(&self, app: &str, force: bool, patience: Duration) -> Result<(), ClusterError> {
        let found = self.find(app)?;
        let refused = |why: String| ClusterError::Refused { app: app.to_owned(), why };
        if found.read(|core| core.record().ended) {
            return Err(refused("it ended; restore and launch it as a new run".to_owned()));
        }
        let end = Instant::now() + patience;
        let mut ask_ms = 0;
        loop {
            if matches!(found.status(self.shared()).role, RoleView::Active { .. }) {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(refused(order::why_not(self.shared(), &found)));
            }
            if now_ms() >= ask_ms {
                found.step(self.shared(), Event::Claim { force });
                ask_ms = now_ms() + self.shared().timing.failover_ms;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Planned switch to a node (none: the first stand-by that answers), ordered on any node.
    pub fn switch(&self, app: &str, to: Option<&str>) -> Result<Switched, ClusterError> {
        order::switch(self.shared(), app, to)
    }

    /// What a node runs of an application; none: nothing, or it does not tell.
    pub fn describe(&self, app: &str, node: &str) -> Option<Described> {
        order::describe(self.shared(), app, node)
    }

    /// Moves every application off this node and takes no new ones; returns those moved. An error names those
    /// that stay.
    pub fn drain(&self) -> Result<Vec<String>, ClusterError> {
        order::drain(self.shared())
    }

    /// Moves every application off any node.
    pub fn drain_node(&self, node: &str) -> Result<Vec<String>, ClusterError> {
        order::drain_node(self.shared(), node)
    }

    /// All applications known here.
    pub fn status(&self) -> Vec<AppStatus> {
        self.shared().apps().iter().map(|app| app.status(self.shared())).collect()
    }

    /// One application.
    pub fn app_status(&self, app: &str) -> Option<AppStatus> {
        self.shared().app(app).map(|app| app.status(self.shared()))
    }

    /// All nodes, this one first.
    pub fn nodes(&self) -> Vec<NodeStatus> {
        let shared = self.shared();
        let apps = self.status();
        let node = |name: &str, address: &str, state, heard_ms, trouble, version: &str| {
            let mine = |a: &&AppStatus| a.role != RoleView::Ended && a.members.iter().any(|m| m == name);
            let (running, standby): (Vec<&AppStatus>, Vec<&AppStatus>) =
                apps.iter().filter(mine).partition(|a| a.owner.as_deref() == Some(name));
            let names = |list: Vec<&AppStatus>| list.iter().map(|a| a.name.clone()).collect();
            NodeStatus {
                name: name.to_owned(),
                address: address.to_owned(),
                state,
                heard_ms,
                trouble,
                version: version.to_owned(),
                running: names(running),
                standby: names(standby),
            }
        };
        let mut nodes = vec![node(shared.node(), "local", "self", Some(0), None, VERSION)];
        for (name, peer) in &shared.peers {
            let seen = peer.seen.lock().clone();
            let state = match (seen.up, seen.draining) {
                (true, true) => "draining",
                (true, false) => "up",
                (false, _) => "down",
            };
            let heard_ms = seen.heard_ms.map(|at| now_ms().saturating_sub(at));
            nodes.push(node(name, &peer.config.address, state, heard_ms, seen.trouble, &seen.version));
        }
        nodes
    }
}

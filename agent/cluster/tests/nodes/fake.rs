//! Nodes with stores in memory.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use holo_api::peer::{Key, Page};
use holo_cluster::{
    AppStatus, Cluster, ClusterConfig, ClusterHandle, PeerConfig,
    core::Timing,
    keys,
    ports::{Ahead, EpochReader, EpochSink, EpochSource, EpochWriter, Offered, Ports, StoreError},
};

use crate::{
    instances::{Apps, Instance, Port},
    relay::{Relay, Wire},
};

pub const BLOCK_BYTES: usize = 64 * 1024;

pub fn timing() -> Timing {
    // Slower than the defaults, so that a busy machine does not fence; the inequality is the same.
    Timing { heartbeat_ms: 50, lease_ms: 1200, failover_ms: 2000, switch_ms_max: 8_000, ..Timing::default() }
}

type Epochs = BTreeMap<(String, u64), Vec<Key>>;

/// A content-addressed store in memory: a key begins with a sum of its block.
#[derive(Default)]
pub struct Store {
    epochs: Mutex<Epochs>,
    pub blocks: Mutex<HashMap<Key, Vec<u8>>>,
    /// Blocks of an application that are stored ahead of its first epoch.
    pub staged: Mutex<Vec<(String, Key)>>,
    slow_us: AtomicU64,
    reads: AtomicUsize,
    puts: AtomicUsize,
    damaged: AtomicBool,
    refusing: AtomicBool,
    keeping: AtomicBool,
    changes: AtomicUsize,
    forgetting: AtomicBool,
}

fn key_of(block: &[u8], serial: u64) -> Key {
    let sum = block.iter().fold(serial, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(*b)));
    let mut key = [0; 32];
    key[..8].copy_from_slice(&sum.to_le_bytes());
    key[8..16].copy_from_slice(&serial.to_le_bytes());
    key
}

pub fn error(why: &str, retry: bool) -> StoreError {
    StoreError { why: why.to_owned(), retry }
}

impl Store {
    /// The block of a number of an epoch, there from now on.
    pub fn block(&self, epoch: u64, number: u64) -> Key {
        let serial = epoch * 1_000_000 + number;
        let block = vec![(serial % 251) as u8; BLOCK_BYTES];
        let key = key_of(&block, serial);
        self.blocks.lock().unwrap().insert(key, block);
        key
    }

    pub fn make(&self, app: &str, epoch: u64, blocks: u64) {
        let keys: Vec<Key> = (0..blocks).map(|number| self.block(epoch, number)).collect();
        self.epochs.lock().unwrap().insert((app.to_owned(), epoch), keys);
    }

    pub fn put(&self, key: &Key, bytes: &[u8]) -> Result<(), StoreError> {
        let serial = u64::from_le_bytes(key[8..16].try_into().unwrap());
        if key_of(bytes, serial) != *key {
            return Err(error("a block does not match its key", false));
        }
        thread::sleep(Duration::from_micros(self.slow_us.load(Ordering::Relaxed)));
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.blocks.lock().unwrap().insert(*key, bytes.to_vec());
        Ok(())
    }

    pub fn newest_of(&self, app: &str) -> u64 {
        self.sealed(app).last().copied().unwrap_or(0)
    }

    pub fn sealed(&self, app: &str) -> Vec<u64> {
        self.epochs.lock().unwrap().keys().filter(|(a, _)| a == app).map(|(_, e)| *e).collect()
    }

    pub fn content(&self, app: &str, epoch: u64) -> Vec<Vec<u8>> {
        let epochs = self.epochs.lock().unwrap();
        let keys = &epochs[&(app.to_owned(), epoch)];
        keys.iter().map(|k| self.blocks.lock().unwrap()[k].clone()).collect()
    }

    pub fn set_slow(&self, time: Duration) {
        self.slow_us.store(time.as_micros() as u64, Ordering::Relaxed);
    }

    pub fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    pub fn puts(&self) -> usize {
        self.puts.load(Ordering::Relaxed)
    }

    /// Epochs that came as a change of another one.
    pub fn changes(&self) -> usize {
        self.changes.load(Ordering::Relaxed)
    }

    /// Nothing can be made of a change.
    pub fn forget(&self, on: bool) {
        self.forgetting.store(on, Ordering::Relaxed);
    }

    pub fn damage(&self, on: bool) {
        self.damaged.store(on, Ordering::Relaxed);
    }

    /// Nothing can be put aside.
    pub fn keep_all(&self, on: bool) {
        self.keeping.store(on, Ordering::Relaxed);
    }

    pub fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::Relaxed)
    }

    pub fn refuse(&self, on: bool) {
        self.refusing.store(on, Ordering::Relaxed);
    }
}

pub struct StorePort(Arc<Store>);

struct Reader(Arc<Store>, Vec<Key>);

impl EpochSource for StorePort {
    fn open(&self, app: &str, epoch: u64) -> Result<Box<dyn EpochReader>, StoreError> {
        let epochs = self.0.epochs.lock().unwrap();
        let keys = epochs.get(&(app.to_owned(), epoch)).ok_or_else(|| error("no such epoch", false))?;
        Ok(Box::new(Reader(self.0.clone(), keys.clone())))
    }

    fn ahead(&self, app: &str, from: u64, max: usize) -> Option<Ahead> {
        self.0.ahead(app, from, max)
    }

    fn read_ahead(&self, _app: &str, keys: &[Key]) -> Result<Vec<Vec<u8>>, StoreError> {
        Reader(self.0.clone(), Vec::new()).read(keys)
    }
}

impl EpochReader for Reader {
    fn options(&mut self) -> Result<Vec<u8>, StoreError> {
        Ok(b"options".to_vec())
    }

    /// The keys; of a change the number of the epoch comes before.
    fn manifest(&mut self, held: u64) -> Result<Vec<u8>, StoreError> {
        let base = if held > 0 { held.to_le_bytes().to_vec() } else { Vec::new() };
        Ok([base, self.1.concat()].concat())
    }

    fn blocks(&mut self) -> u64 {
        self.1.len() as u64
    }

    fn read(&mut self, keys: &[Key]) -> Result<Vec<Vec<u8>>, StoreError> {
        let blocks = self.0.blocks.lock().unwrap();
        let read = |key: &Key| {
            self.0.reads.fetch_add(1, Ordering::Relaxed);
            let mut block = blocks.get(key).cloned().ok_or(error("no block", false))?;
            if self.0.damaged.load(Ordering::Relaxed) {
                block[0] ^= 1;
            }
            Ok(block)
        };
        keys.iter().map(read).collect()
    }
}

struct Writer {
    store: Arc<Store>,
    app: String,
    epoch: u64,
    keys: Vec<Key>,
}

impl EpochSink for StorePort {
    fn newest(&self, app: &str) -> u64 {
        self.0.newest_of(app)
    }

    fn set_aside(&self, app: &str, after: u64) -> Result<u64, StoreError> {
        if self.0.keeping.load(Ordering::Relaxed) {
            return Err(error("told to fail", true));
        }
        self.0.epochs.lock().unwrap().retain(|(a, e), _| a != app || *e <= after);
        Ok(self.0.newest_of(app))
    }

    fn begin(&self, offered: &Offered, manifest: &[u8]) -> Result<Box<dyn EpochWriter>, StoreError> {
        if self.0.refusing.load(Ordering::Relaxed) {
            return Err(error("the store is full", true));
        }
        assert_eq!(offered.options, b"options");
        let (base, manifest) = manifest.split_at(manifest.len() % 32);
        if let Ok(base) = base.try_into() {
            if self.0.forgetting.load(Ordering::Relaxed)
                || self.newest(&offered.app) != u64::from_le_bytes(base)
            {
                return Err(error("of another epoch", true));
            }
            self.0.changes.fetch_add(1, Ordering::Relaxed);
        } else if !base.is_empty() {
            return Err(error("damaged manifest", false));
        }
        let keys = manifest.chunks_exact(32).map(|c| c.try_into().unwrap()).collect();
        let (store, app) = (self.0.clone(), offered.app.clone());
        Ok(Box::new(Writer { store, app, epoch: offered.epoch, keys }))
    }

    fn lacking(&self, _app: &str, _run: u64, keys: &[Key]) -> Result<Vec<Key>, StoreError> {
        let blocks = self.0.blocks.lock().unwrap();
        Ok(keys.iter().filter(|key| !blocks.contains_key(*key)).copied().collect())
    }

    fn put_ahead(&self, _app: &str, blocks: &[Page]) -> Result<(), StoreError> {
        self.0.put_ahead(blocks)
    }
}

impl EpochWriter for Writer {
    fn missing(&mut self, max: usize) -> Result<Vec<Key>, StoreError> {
        let blocks = self.store.blocks.lock().unwrap();
        Ok(self.keys.iter().filter(|k| !blocks.contains_key(*k)).take(max.min(150)).copied().collect())
    }

    fn put(&mut self, key: &Key, bytes: &[u8]) -> Result<(), StoreError> {
        self.store.put(key, bytes)
    }

    fn seal(self: Box<Self>) -> Result<(), StoreError> {
        self.store.epochs.lock().unwrap().insert((self.app.clone(), self.epoch), self.keys.clone());
        Ok(())
    }
}

/// All nodes of a test, with one forwarding port in front of each, so that a node can be muted: its
/// connections stay open but carry nothing, as with a cable that was cut.
pub struct Set {
    dir: tempfile::TempDir,
    nodes: Vec<String>,
    relays: HashMap<String, Relay>,
    stores: HashMap<String, Arc<Store>>,
}

impl Set {
    pub fn new(nodes: &[&str]) -> Set {
        let dir = tempfile::tempdir().unwrap();
        let mut set = Set {
            dir,
            nodes: nodes.iter().map(|n| (*n).to_owned()).collect(),
            relays: HashMap::new(),
            stores: HashMap::new(),
        };
        keys::init(&set.state_dir(nodes[0]), nodes[0]).unwrap();
        for node in &nodes[1..] {
            let bundle = keys::add(&set.state_dir(nodes[0]), node).unwrap();
            keys::install(&set.state_dir(node), &bundle).unwrap();
        }
        for node in nodes {
            set.relays.insert((*node).to_owned(), Relay::start());
            set.stores.insert((*node).to_owned(), Arc::new(Store::default()));
        }
        set
    }

    pub fn state_dir(&self, node: &str) -> PathBuf {
        self.dir.path().join(node)
    }

    pub fn start(&mut self, node: &str) -> Node {
        self.start_with(node, Arc::new(Apps::default()))
    }

    pub fn start_with(&mut self, node: &str, apps: Arc<Apps>) -> Node {
        let dir = self.state_dir(node);
        let mut config = ClusterConfig::new(dir.clone());
        config.listen = Some("127.0.0.1:0".to_owned());
        config.timing = timing();
        for peer in self.nodes.iter().filter(|n| *n != node) {
            let address = self.relays[peer].address.to_string();
            config.peers.push(PeerConfig { name: peer.clone(), address });
        }
        let store = self.stores[node].clone();
        *apps.store.lock().unwrap() = Some(store.clone());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, name) = (log.clone(), node.to_owned());
        let ports = Ports {
            apps: Arc::new(Port(apps.clone())),
            source: Arc::new(StorePort(store.clone())),
            sink: Arc::new(StorePort(store.clone())),
            log: Arc::new(move |line: &str| {
                eprintln!("{name}: {line}");
                lines.lock().unwrap().push(line.to_owned());
            }),
        };
        let keys = keys::load(&dir).unwrap().unwrap();
        let handle = Cluster::start(config, &keys, ports).unwrap();
        let relay = &self.relays[node];
        *relay.real.lock().unwrap() = handle.address();
        Node { handle: Some(handle), apps, store, log, real: relay.real.clone() }
    }

    /// What carries the connections to a node.
    pub fn wire(&self, node: &str) -> &Wire {
        &self.relays[node].wire
    }

    pub fn mute(&self, node: &str, on: bool) {
        self.relays[node].muted.store(on, Ordering::SeqCst);
        // Both directions: the node's own connections go through the relays of the others.
        for (name, relay) in &self.relays {
            if name != node && self.nodes.len() == 2 {
                relay.muted.store(on, Ordering::SeqCst);
            }
        }
    }
}

pub struct Node {
    handle: Option<ClusterHandle>,
    pub apps: Arc<Apps>,
    pub store: Arc<Store>,
    log: Arc<Mutex<Vec<String>>>,
    real: Arc<Mutex<Option<SocketAddr>>>,
}

impl Node {
    pub fn handle(&self) -> &ClusterHandle {
        self.handle.as_ref().unwrap()
    }

    pub fn launch(&self, app: &str, standby: &[&str]) {
        let standby: Vec<String> = standby.iter().map(|s| (*s).to_owned()).collect();
        self.handle().launch(app, &standby).unwrap();
        let instance = Instance { running: true, from: None, fences: 0 };
        self.apps.live.lock().unwrap().insert(app.to_owned(), instance);
    }

    pub fn epoch(&self, app: &str, epoch: u64, blocks: u64) {
        self.store.make(app, epoch, blocks);
        self.handle().announce_epoch(app, epoch).unwrap();
    }

    pub fn status_opt(&self, app: &str) -> Option<AppStatus> {
        self.handle().app_status(app)
    }

    pub fn status(&self, app: &str) -> AppStatus {
        self.status_opt(app).unwrap()
    }

    /// Waits until every stand-by holds an epoch.
    pub fn sealed(&self, app: &str, epoch: u64) {
        self.until("sealed everywhere", |n| n.status(app).sealed_at.iter().all(|(_, held)| *held >= epoch));
    }

    pub fn logged(&self, text: &str) -> bool {
        self.log.lock().unwrap().iter().any(|l| l.contains(text))
    }

    /// Bounded wait for a condition.
    pub fn until(&self, what: &str, condition: impl Fn(&Node) -> bool) {
        let end = Instant::now() + Duration::from_secs(15);
        while !condition(self) {
            assert!(
                Instant::now() < end,
                "{}: not {what}: {:?}",
                self.handle().node(),
                self.handle().status()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The agent ends; instances live on.
    pub fn stop(mut self) {
        *self.real.lock().unwrap() = None;
        self.handle = None;
    }

    /// Everything on the node ends.
    pub fn kill(self) {
        self.apps.live.lock().unwrap().clear();
        self.stop();
    }
}

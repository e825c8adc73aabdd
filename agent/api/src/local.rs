//! Requests of the command line to its agent and the answers.
//!
//! One request per connection. The client sends [`MAGIC`], then a framed [`Request`]; the agent answers
//! any number of [`Reply::Progress`] and then exactly one other [`Reply`].

use serde::{Deserialize, Serialize};

/// First bytes of a conversation (a process that joins sends others).
pub const MAGIC: [u8; 8] = *b"HOLOAP01";

/// Period of epochs where nobody asked for another, milliseconds.
pub const EVERY_MS_DEFAULT: u64 = 1000;

/// What epochs may take of an application whose period adapts, where nobody said: 5 %.
pub const BUDGET_PERMILLE_DEFAULT: u32 = 50;

/// What leaves for the outside before an epoch is sealed (`--consistency`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// Epochs only.
    #[default]
    None,
    /// Output commit.
    Commit,
    /// Input log.
    Log,
}

/// Options of an application, as `holo run` takes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppOptions {
    /// Period of epochs in milliseconds; 0: only on order.
    pub every_ms: u64,
    /// Protected directories, absolute.
    pub roots: Vec<Vec<u8>>,
    /// Stand-by node names.
    pub standby: Vec<String>,
    /// See [`Consistency`].
    pub consistency: Consistency,
    /// Newest epochs kept; 0: the agent's default.
    pub keep_epochs: u32,
    /// Seconds that an epoch is kept even beyond that count; 0: no age limit.
    pub keep_secs: u64,
    /// Longest wait for all threads to park, milliseconds; 0: default (100).
    pub park_ms_max: u64,
    /// What epochs may take of the application, in thousandths, if the period adapts to it; 0: it is `every_ms`.
    pub budget_permille: u32,
    /// An epoch is also taken when the processes have grown by so many bytes since the last one; 0: not.
    pub growth_bytes: u64,
    /// An epoch is also taken when one of these files has changed; absolute paths, with the names that they have where it runs.
    pub on_change: Vec<Vec<u8>>,
    /// What is left out of the roots, with all below; absolute paths without links.
    pub excludes: Vec<Vec<u8>>,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Announce an application that the client is about to `exec`; answered by [`Reply::Registered`].
    Register {
        /// Wanted name; empty: from the command.
        name: String,
        /// Options.
        options: AppOptions,
        /// Command and arguments, for display and for refusals (static, set-user-id).
        argv: Vec<Vec<u8>>,
        /// Why the client found that a preload cannot reach this program: it will run untouched. The agent
        /// lists it as unprotected, with this reason, while its process (the peer credentials') lives.
        unprotected: Option<String>,
    },
    /// List applications.
    Ps,
    /// Take an epoch now.
    Checkpoint {
        /// Application.
        name: String,
    },
    /// Run the application from an epoch on this node.
    Restore {
        /// Application.
        name: String,
        /// Epoch; none: the last.
        epoch: Option<u64>,
        /// One that was put aside then, milliseconds of Unix time; none: one that is kept.
        aside: Option<u64>,
        /// Where nodes that would have to agree cannot be asked: the operator vouches that none of them runs it.
        force: bool,
        /// Stay: three descriptors (stdin, stdout, stderr) follow as `SCM_RIGHTS` on the first byte sent after
        /// the request, and a final [`Reply::Exited`] follows [`Reply::Restored`].
        attach: bool,
    },
    /// Planned take-over.
    Switch {
        /// Application.
        name: String,
        /// Node; none: the first stand-by.
        to: Option<String>,
    },
    /// End the application, keep its epochs.
    Stop {
        /// Application.
        name: String,
    },
    /// Forget the application's epochs (it must not run).
    Rm {
        /// Application.
        name: String,
    },
    /// List epochs.
    Epochs {
        /// Application.
        name: String,
        /// Those that were put aside.
        aside: bool,
    },
    /// What the application has.
    Graph {
        /// Application.
        name: String,
    },
    /// Nodes of the cluster.
    Nodes,
    /// Move every application off a node.
    Drain {
        /// Node.
        node: String,
    },
    /// What was recorded of file changes since the last epoch, of an application that runs here.
    FileChanges {
        /// Application.
        name: String,
    },
    /// What this agent is.
    Status,
    /// Ask the agent to end (applications run on).
    Shutdown,
    /// Change when epochs are taken; what is none stays as it is.
    Set {
        /// Application.
        name: String,
        /// Period, milliseconds; 0: only on order.
        every_ms: Option<u64>,
        /// See [`AppOptions::budget_permille`].
        budget_permille: Option<u32>,
        /// See [`AppOptions::growth_bytes`].
        growth_bytes: Option<u64>,
        /// See [`AppOptions::on_change`]; takes the place of those before.
        on_change: Option<Vec<Vec<u8>>>,
    },
}

/// State of an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppState {
    /// Active here and protected.
    Running,
    /// A clone is kept here.
    Standby,
    /// Active here but cannot be checkpointed; see the reasons.
    Unprotected,
    /// Not active; its epochs are kept.
    Stopped,
}

/// The clone that a stand-by keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneInfo {
    /// Epoch that it is as of; 0: there is none, it is made when it is needed.
    pub epoch: u64,
    /// How long it took to bring it there, microseconds.
    pub update_us: u64,
    /// Pages that were written for it.
    pub pages: u64,
    /// Why there is none.
    pub why: String,
}

/// What of an epoch is done, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// It is stored where the application runs.
    Store,
    /// It is sent to a stand-by.
    Send,
}

/// How far an epoch is that takes long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochProgress {
    /// What is under way.
    pub step: Step,
    /// Node that it is sent to, or where it is stored.
    pub node: String,
    /// Bytes of contents that are done.
    pub done_bytes: u64,
    /// Bytes that are known to be done in all; may grow; 0: not known yet.
    pub total_bytes: u64,
}

/// A row of `holo ps`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppInfo {
    /// Name.
    pub name: String,
    /// State.
    pub state: AppState,
    /// Why it is unprotected, or other remarks.
    pub reasons: Vec<String>,
    /// Node that runs it, as far as known here.
    pub node: String,
    /// Last sealed epoch; 0: none.
    pub epoch: u64,
    /// Milliseconds since that epoch's cut.
    pub lag_ms: u64,
    /// Kernel pids on this node.
    pub real_pids: Vec<u32>,
    /// Pids as the app sees them.
    pub cluster_pids: Vec<u32>,
    /// Stop time of the last epoch, microseconds.
    pub stop_us: u64,
    /// Command line, lossy.
    pub command: String,
    /// Stand-by nodes.
    pub standby: Vec<String>,
    /// Period of epochs, milliseconds, as it is now; 0: only on order.
    pub every_ms: u64,
    /// See [`AppOptions::budget_permille`].
    pub budget_permille: u32,
    /// See [`AppOptions::growth_bytes`].
    pub growth_bytes: u64,
    /// See [`AppOptions::on_change`], lossy.
    pub on_change: Vec<String>,
    /// Milliseconds since the cut of the newest epoch that a stand-by holds; none: there is none.
    pub standby_lag_ms: Option<u64>,
    /// The clone that is kept here.
    pub clone: CloneInfo,
    /// Figures of the last sealed epoch.
    pub last: Option<EpochInfo>,
    /// What takes more than a second of epochs that are under way.
    pub progress: Vec<EpochProgress>,
}

/// Stop time by what it is spent on, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StopSplit {
    /// Until all threads were parked.
    pub park: u64,
    /// Finding the pages that changed.
    pub scan: u64,
    /// Copying them, or the fork.
    pub copy: u64,
    /// All else: states of all kinds of resources.
    pub kinds: u64,
    /// Letting the threads go on.
    pub unpark: u64,
}

/// An epoch as `holo checkpoint` and `holo epochs` show it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochInfo {
    /// Number.
    pub epoch: u64,
    /// When it was put aside, milliseconds of Unix time; none: it is among those that are kept.
    pub aside_unix_ms: Option<u64>,
    /// Time of the cut, RFC 3339.
    pub at: String,
    /// Complete and validated.
    pub sealed: bool,
    /// Nodes that hold it; `local` for the store of the node that took it.
    #[serde(rename = "where")]
    pub sealed_where: Vec<String>,
    /// Time that threads were parked, microseconds.
    pub stop_us: u64,
    /// From order to sealed, microseconds.
    pub dump_us: u64,
    /// Processes.
    pub processes: u32,
    /// Threads.
    pub threads: u32,
    /// Pages that differ from the epoch before.
    pub pages_dirty: u64,
    /// Bytes of state before dedup and compression.
    pub bytes_raw: u64,
    /// Bytes written to the store or sent.
    pub bytes_sent: u64,
    /// Files that differ from the epoch before.
    pub files_changed: u64,
    /// Dirty-page tracker.
    pub engine: String,
    /// Stop time by part, microseconds: name and value, in order.
    pub stop_parts_us: Vec<(String, u64)>,
    /// Bytes by kind of resource: name and value.
    pub bytes_by_kind: Vec<(String, u64)>,
}

impl EpochInfo {
    /// The stop, split.
    #[must_use]
    pub fn split(&self) -> StopSplit {
        let part =
            |name: &str| self.stop_parts_us.iter().find(|(known, _)| known == name).map_or(0, |(_, us)| *us);
        // With the stops in which nothing is captured.
        let park = part("mark") + part("pause") + part("park");
        let (unpark, scan) = (part("unpark"), part("memory.track"));
        let copy = part("memory.staging") + part("memory.fork");
        let kinds = self.stop_us.saturating_sub(park + unpark + scan + copy);
        StopSplit { park, scan, copy, kinds, unpark }
    }
}

/// What a restore or a switch did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreInfo {
    /// Application.
    pub name: String,
    /// Epoch that runs now.
    pub epoch: u64,
    /// From order to running, microseconds.
    pub restore_us: u64,
    /// From order (switch: from the old owner's park) to the first instruction, microseconds.
    pub first_instruction_us: u64,
    /// Node that runs it.
    pub node: String,
    /// Its kernel pid there.
    pub real_pid: u32,
    /// Remarks: what could not be kept (connections reset, ...).
    pub remarks: Vec<String>,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Name.
    pub name: String,
    /// Address, or `local`.
    pub address: String,
    /// `self`, `up`, `down`, `draining`.
    pub state: String,
    /// Milliseconds since it was last heard; none: never. 0 for ourselves.
    pub heard_ms: Option<u64>,
    /// Applications that run there, as far as known.
    pub running: Vec<String>,
    /// Clones that it keeps.
    pub standby: Vec<String>,
}

/// A vertex of the dependency graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphNode {
    /// Unique in the graph, e.g. `process:41`, `fd:41:7`, `file:/tmp/x`.
    pub id: String,
    /// Kind: `process`, `thread`, `descriptor`, `file`, `socket`, `pipe`, `zone`, `timer`, `peer`, ...
    pub kind: String,
    /// For people.
    pub label: String,
    /// Can it be replicated?
    pub replicable: bool,
    /// Why not.
    pub reason: String,
    /// Bytes that it cost in the last epoch.
    pub bytes: u64,
}

/// The dependency graph.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Graph {
    /// Vertices.
    pub nodes: Vec<GraphNode>,
    /// Edges: from, to, label ("holds", "maps", "child of", "connected to").
    pub edges: Vec<(String, String, String)>,
}

/// File changes since the last epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChanges {
    /// All calls that change files were recorded: a file that is not here was not written to by the application.
    pub complete: bool,
    /// Files that were written to.
    pub files: Vec<RecordedFile>,
}

/// What was recorded of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedFile {
    /// Its file system.
    pub device: u64,
    /// Its inode number.
    pub inode: u64,
    /// It may have changed anywhere.
    pub whole: bool,
    /// Else here: first byte and length, in order; may go past the end.
    pub ranges: Vec<(u64, u64)>,
}

/// What `Request::Status` tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Version of the program.
    pub version: String,
    /// Node name.
    pub node: String,
    /// Pid of the agent.
    pub pid: u32,
    /// State directory.
    pub state_dir: String,
    /// Address where other agents are served, if any.
    pub listen: Option<String>,
}

/// Why a request failed: the command line turns the kind into the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The request makes no sense (exit 2).
    Usage,
    /// No such application, epoch or node (exit 3).
    NotFound,
    /// Refused in the present state, e.g. restore while it runs (exit 4).
    Refused,
    /// The application cannot be checkpointed (exit 5).
    Unprotected,
    /// Stored data are damaged or foreign (exit 6).
    BadImage,
    /// A node cannot be reached (exit 7).
    Unreachable,
    /// Something else went wrong (exit 1).
    Failed,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Still at work: what, how much done, of how much (0: unknown).
    Progress {
        /// What is being done.
        what: String,
        /// Done so far.
        done: u64,
        /// All.
        total: u64,
    },
    /// Set these and exec.
    Registered {
        /// Name given.
        name: String,
        /// Environment to set: `LD_PRELOAD`, `HOLO_*`.
        env: Vec<(Vec<u8>, Vec<u8>)>,
        /// Warning to show, if the program cannot be protected.
        warning: Option<String>,
    },
    /// For [`Request::Ps`].
    Apps(Vec<AppInfo>),
    /// For [`Request::Checkpoint`].
    Epoch(EpochInfo),
    /// For [`Request::Epochs`].
    Epochs(Vec<EpochInfo>),
    /// For [`Request::Restore`] and [`Request::Switch`].
    Restored(RestoreInfo),
    /// The attached application ended: `wait` status.
    Exited(i32),
    /// For [`Request::Graph`].
    Graph(Graph),
    /// For [`Request::Nodes`].
    Nodes(Vec<NodeInfo>),
    /// For [`Request::FileChanges`].
    FileChanges(FileChanges),
    /// For [`Request::Status`].
    Status(AgentStatus),
    /// Done.
    Done,
    /// Failed.
    Error {
        /// Exit code class.
        kind: ErrorKind,
        /// What failed, on which object, why, and what to do.
        message: String,
    },
}

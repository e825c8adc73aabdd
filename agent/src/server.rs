//! The unix socket: processes that join and requests of the command line, a thread per connection.

use crate::app::{App, Failure, epoch_info, now_ns};
use crate::apps::{Apps, is_ours};
use crate::{graph, join, progress};
use holo_abi::join::MAGIC as JOIN_MAGIC;
use holo_api::local::{
    AgentStatus, EpochInfo, EpochProgress, ErrorKind, FileChanges, MAGIC as API_MAGIC, NodeInfo,
    RecordedFile, Reply, Request, RestoreInfo, Step,
};
use holo_image::wire::{self, Kind};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::fs;
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

const REQUEST_BYTES_MAX: u64 = 16 << 20;
/// Connections served at once; more wait in the socket's queue.
const CONNECTIONS_MAX: usize = 256;
const PATIENCE: Duration = Duration::from_secs(30);
/// How often who waits for an epoch is told how far it is.
const TELL: Duration = Duration::from_millis(500);

/// What depends on whether there are other nodes.
pub trait Cluster: Send + Sync {
    /// `holo switch`.
    ///
    /// # Errors
    /// Why not.
    fn switch(&self, name: &str, to: Option<&str>) -> Result<RestoreInfo, Failure>;
    /// `holo node ls`.
    fn nodes(&self) -> Vec<NodeInfo>;
    /// `holo node drain`.
    ///
    /// # Errors
    /// Why not.
    fn drain(&self, node: &str) -> Result<(), Failure>;
    /// `holo checkpoint`: an epoch, sealed where it must be.
    ///
    /// # Errors
    /// Why there is none.
    fn checkpoint(&self, app: &Arc<App>) -> Result<EpochInfo, Failure>;
    /// `holo restore`, with standard descriptors if it stays attached.
    ///
    /// # Errors
    /// Another node has it, or the epoch cannot be run.
    fn restore(&self, app: &Arc<App>, from: &From, stdio: Vec<OwnedFd>) -> Result<RestoreInfo, Failure>;
    /// `holo stop`.
    ///
    /// # Errors
    /// Why not.
    fn stop(&self, app: &Arc<App>) -> Result<(), Failure>;
    /// `holo rm`.
    ///
    /// # Errors
    /// Why not.
    fn remove(&self, name: &str) -> Result<(), Failure>;
    /// The newest epoch that each stand-by holds.
    fn holders(&self, name: &str) -> Vec<(String, u64)>;
    /// What is sent to stand-bys, where it takes long.
    fn sending(&self, name: &str) -> Vec<EpochProgress>;
    /// `holo epochs`.
    fn epochs(&self, app: &Arc<App>) -> Vec<EpochInfo>;
    /// Address where other nodes are served.
    fn listen(&self) -> Option<String>;
}

/// What `holo restore` runs an application from.
#[derive(Clone, Copy, Debug)]
pub struct From {
    /// Epoch; none: the last.
    pub epoch: Option<u64>,
    /// It was put aside then; none: it is among those that are kept.
    pub aside: Option<u64>,
    /// The operator vouches that no other node runs it.
    pub force: bool,
}

/// Time since the cut of the newest epoch that a stand-by holds, of those that are known here.
fn lag_ms(app: &App, holders: &[(String, u64)]) -> Option<u64> {
    let held = holders.iter().map(|(_, epoch)| *epoch).max()?;
    let meta = app.store.epochs().into_iter().rfind(|meta| meta.epoch <= held)?;
    Some(now_ns().saturating_sub(meta.at_unix_ns) / 1_000_000)
}

/// Epochs that were put aside.
fn aside(app: &App) -> Vec<EpochInfo> {
    let shown = |put: holo_image::AsideEpoch| {
        let aside_unix_ms = Some(put.aside_unix_ms);
        match put.meta {
            Ok(meta) => EpochInfo { aside_unix_ms, ..epoch_info(&meta) },
            Err(_) => EpochInfo { epoch: put.epoch, aside_unix_ms, ..EpochInfo::default() },
        }
    };
    app.store.aside().into_iter().map(shown).collect()
}

/// Binds the socket; takes the place of a dead agent's.
///
/// # Errors
/// Another agent serves it.
pub fn bind(path: &std::path::Path) -> io::Result<UnixListener> {
    let at = |cause: io::Error| io::Error::new(cause.kind(), format!("{}: {cause}", path.display()));
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(at)?;
    }
    if UnixStream::connect(path).is_ok() {
        return Err(at(io::Error::new(io::ErrorKind::AddrInUse, "another agent serves this socket")));
    }
    if path.exists() {
        if !is_ours(path) {
            return Err(at(io::Error::new(io::ErrorKind::PermissionDenied, "belongs to another user")));
        }
        fs::remove_file(path).map_err(at)?;
    }
    let listener = UnixListener::bind(path).map_err(at)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(at)?;
    Ok(listener)
}

/// Binds the name at which root's agent serves processes of its applications that have become other users', and cannot reach the
/// socket any more. None: not root.
///
/// # Errors
/// Somebody has the name.
pub fn bind_for_others(path: &std::path::Path) -> io::Result<Option<UnixListener>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(None);
    }
    let address = SocketAddr::from_abstract_name(path.as_os_str().as_encoded_bytes())?;
    UnixListener::bind_addr(&address).map(Some)
}

/// Serves until the process ends.
pub fn serve(listener: &UnixListener, apps: &Arc<Apps>, cluster: &Arc<dyn Cluster>) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // Out of descriptors, most likely: it gets better or not, but not by spinning.
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        while open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            thread::sleep(Duration::from_millis(2));
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (apps, cluster, done) = (Arc::clone(apps), Arc::clone(cluster), Arc::clone(&open));
        thread::spawn(move || {
            if let Err(cause) = converse(stream, &apps, &cluster)
                && !matches!(cause.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe)
            {
                eprintln!("holod: a local conversation broke: {cause}");
            }
            done.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// Whether it is our user's, or root's; its user.
fn same_user(stream: &UnixStream) -> io::Result<(bool, u32)> {
    let peer = nix::sys::socket::getsockopt(&stream.as_fd(), nix::sys::socket::sockopt::PeerCredentials)?;
    Ok((peer.uid() == nix::unistd::geteuid().as_raw() || peer.uid() == 0, peer.uid()))
}

fn converse(mut stream: UnixStream, apps: &Arc<Apps>, cluster: &Arc<dyn Cluster>) -> io::Result<()> {
    let (ours, uid) = same_user(&stream)?;
    let foreign = || io::Error::new(io::ErrorKind::PermissionDenied, format!("user {uid} is not ours"));
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut magic = [0; 8];
    stream.read_exact(&mut magic)?;
    match magic {
        JOIN_MAGIC => {
            let request = join::read(&mut stream)?;
            if !ours && !apps.has(&request) {
                join::leave_alone(&stream)?;
                return Err(foreign());
            }
            apps.join(&stream, &request)
        }
        API_MAGIC if !ours => Err(foreign()),
        API_MAGIC => {
            let request: Request =
                wire::read_frame(&mut stream, Kind::LOCAL, REQUEST_BYTES_MAX).map_err(io::Error::other)?;
            let reply = match answer(request, &mut stream, apps, cluster) {
                Ok(reply) => reply,
                Err(failure) => Reply::Error { kind: failure.kind, message: failure.message },
            };
            send(&mut stream, &reply)
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "neither a join nor a request")),
    }
}

fn send(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    wire::write_frame(stream, reply, Kind::LOCAL).map_err(io::Error::other)?;
    stream.flush()
}

/// Descriptors of an attached restore: they come with one byte.
fn receive_stdio(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut byte = [0u8; 1];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([i32; 3]);
    let message =
        recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut out = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: just received, ours alone.
            out.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if out.len() == 3 {
        Ok(out)
    } else {
        Err(io::Error::other("an attached restore needs three descriptors"))
    }
}

fn answer(
    request: Request,
    stream: &mut UnixStream,
    apps: &Arc<Apps>,
    cluster: &Arc<dyn Cluster>,
) -> Result<Reply, Failure> {
    let broken = |cause: io::Error| Failure::new(ErrorKind::Failed, cause.to_string());
    match request {
        Request::Register { name, options, argv, unprotected } => {
            let peer =
                nix::sys::socket::getsockopt(&stream.as_fd(), nix::sys::socket::sockopt::PeerCredentials)
                    .map_err(|cause| broken(cause.into()))?;
            if let Some(why) = &unprotected {
                return Ok(announce_unprotected(apps, &name, options, argv, (peer.pid(), why)));
            }
            let (name, token) = apps.register(&name, options, argv, peer.pid())?;
            Ok(Reply::Registered { env: environment(apps, &name, token), name, warning: None })
        }
        Request::Ps => {
            let mut all = apps.info();
            for info in &mut all {
                info.standby_lag_ms =
                    apps.get(&info.name).ok().and_then(|app| lag_ms(&app, &cluster.holders(&info.name)));
                info.progress.extend(cluster.sending(&info.name));
            }
            Ok(Reply::Apps(all))
        }
        Request::Set { name, every_ms, budget_permille, growth_bytes, on_change } => {
            let app = apps.get(&name)?;
            app.set_timing(every_ms, budget_permille, growth_bytes, on_change).map(|()| Reply::Done)
        }
        Request::Checkpoint { name } => {
            let app = apps.get(&name)?;
            let look = || progress::of(&app).into_iter().chain(cluster.sending(&name)).next();
            telling(stream, &look, || cluster.checkpoint(&app)).map(Reply::Epoch)
        }
        Request::Restore { name, epoch, aside, force, attach } => {
            let app = apps.get(&name)?;
            let stdio = if attach { receive_stdio(stream).map_err(broken)? } else { Vec::new() };
            let info = cluster.restore(&app, &From { epoch, aside, force }, stdio)?;
            if !attach {
                return Ok(Reply::Restored(info));
            }
            send(stream, &Reply::Restored(info)).map_err(broken)?;
            loop {
                if let Some(status) = app.exit_status() {
                    return Ok(Reply::Exited(status));
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        Request::Switch { name, to } => cluster.switch(&name, to.as_deref()).map(Reply::Restored),
        Request::Stop { name } => cluster.stop(&apps.get(&name)?).map(|()| Reply::Done),
        Request::Rm { name } => cluster.remove(&name).map(|()| Reply::Done),
        Request::Epochs { name, aside: true } => Ok(Reply::Epochs(aside(&*apps.get(&name)?))),
        Request::Epochs { name, aside: false } => Ok(Reply::Epochs(cluster.epochs(&apps.get(&name)?))),
        Request::Graph { name } => Ok(Reply::Graph(graph::of(&*apps.get(&name)?))),
        Request::FileChanges { name } => file_changes(&*apps.get(&name)?).map(Reply::FileChanges),
        Request::Nodes => Ok(Reply::Nodes(cluster.nodes())),
        Request::Drain { node } => cluster.drain(&node).map(|()| Reply::Done),
        Request::Status => Ok(Reply::Status(AgentStatus {
            version: env!("CARGO_PKG_VERSION").into(),
            node: apps.node.clone(),
            pid: std::process::id(),
            state_dir: apps.paths.state.to_string_lossy().into_owned(),
            listen: cluster.listen(),
        })),
        Request::Shutdown => {
            send(stream, &Reply::Done).map_err(broken)?;
            apps.retire_clones();
            std::process::exit(0);
        }
    }
}

/// Does some work and tells meanwhile how far it is.
fn telling<T>(
    stream: &UnixStream,
    look: &(impl Fn() -> Option<EpochProgress> + Sync),
    work: impl FnOnce() -> T,
) -> T {
    thread::scope(|scope| {
        let (done, is_done) = mpsc::channel::<()>();
        scope.spawn(move || {
            while is_done.recv_timeout(TELL) == Err(RecvTimeoutError::Timeout) {
                let Some(EpochProgress { step, node, done_bytes, total_bytes }) = look() else { continue };
                let what = match step {
                    Step::Store => "bytes stored".to_owned(),
                    Step::Send => format!("bytes sent to {node}"),
                };
                let reply = Reply::Progress { what, done: done_bytes, total: total_bytes };
                if stream.try_clone().and_then(|mut stream| send(&mut stream, &reply)).is_err() {
                    return;
                }
            }
        });
        let out = work();
        drop(done);
        out
    })
}

/// What was recorded of file changes since the last epoch.
fn file_changes(app: &App) -> Result<FileChanges, Failure> {
    if app.instance().is_none() {
        let message = format!("{} does not run here; say which epoch's changes to show", app.name);
        return Err(Failure::new(ErrorKind::Refused, message));
    }
    let Some(table) = app.changes.lock().clone() else { return Ok(FileChanges::default()) };
    let found = table.peek();
    let files = found.files.into_iter().map(|((device, inode), change)| RecordedFile {
        device,
        inode,
        whole: change.is_whole,
        ranges: change.ranges.iter().map(|range| (range.at, range.len)).collect(),
    });
    Ok(FileChanges { complete: !found.is_incomplete, files: files.collect() })
}

fn announce_unprotected(
    apps: &Arc<Apps>,
    name: &str,
    options: holo_api::local::AppOptions,
    argv: Vec<Vec<u8>>,
    (pid, why): (i32, &str),
) -> Reply {
    let registered = apps.register(name, options, argv, 0);
    let name = match registered {
        Ok((name, _)) => {
            if let Ok(app) = apps.get(&name) {
                app.set_out_of_reach(pid, why);
            }
            name
        }
        Err(_) => name.to_owned(),
    };
    Reply::Registered { name, env: Vec::new(), warning: Some(why.to_owned()) }
}

fn environment(apps: &Arc<Apps>, name: &str, token: u64) -> Vec<(Vec<u8>, Vec<u8>)> {
    let path = |path: &std::path::Path| path.as_os_str().as_encoded_bytes().to_vec();
    vec![
        (b"LD_PRELOAD".to_vec(), path(&apps.config.library)),
        (b"HOLO_SOCKET".to_vec(), path(&apps.config.socket)),
        (b"HOLO_NAME".to_vec(), name.as_bytes().to_vec()),
        (b"HOLO_TOKEN".to_vec(), token.to_string().into_bytes()),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Goal: who waits for an epoch that takes long is told how far it is, and nothing after the answer. Method: work that takes longer
    // than the time between two words; work that does not.
    #[test]
    fn long_work_is_told_of() {
        let (mut client, agent) = UnixStream::pair().unwrap();
        let now =
            |done_bytes| EpochProgress { step: Step::Send, node: "b".into(), done_bytes, total_bytes: 9 };
        telling(&agent, &|| Some(now(1)), || ());
        let said = telling(&agent, &|| Some(now(2)), || {
            wire::read_frame::<Reply>(&mut client, Kind::LOCAL, 1 << 20).unwrap()
        });
        assert_eq!(said, Reply::Progress { what: "bytes sent to b".into(), done: 2, total: 9 });
        drop(agent);
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        assert!(rest.len() < 200, "{} bytes", rest.len());
    }
}

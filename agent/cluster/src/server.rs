//! The listening side: one thread for each connection, at most so many.

use std::{
    collections::HashMap,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use holo_api::peer::{Hello, PROTOCOL, Welcome};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

use crate::{
    error::{ClusterError, LinkError},
    link::{Connection, Patience, VERSION},
    ports::Log,
    tls::Tls,
};

/// What is done with a connection once it is known who is there.
pub trait Serve: Send + Sync + 'static {
    /// `Some`: refuse it, and why.
    fn refuse(&self, hello: &Hello) -> Option<String>;
    /// Serves it to its end.
    fn serve(&self, connection: Connection, hello: &Hello) -> Result<(), LinkError>;
}

/// Limits of a server.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Most connections at a time, strangers that shake hands included; more are closed at once.
    pub connections_max: usize,
    /// Time-outs.
    pub patience: Patience,
}

/// A running server; ends when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    next: AtomicU64,
    open: Mutex<HashMap<u64, TcpStream>>,
    said: Mutex<HashMap<String, Instant>>,
}

impl Shared {
    /// A stranger that tries again and again must not fill the log: the same is said once a minute.
    fn is_news(&self, key: String) -> bool {
        let mut said = self.said.lock();
        said.retain(|_, at| at.elapsed() < Duration::from_secs(60));
        said.len() < 256 && said.insert(key, Instant::now()).is_none()
    }
}

impl Server {
    /// Listens and serves.
    pub fn start(
        listener: TcpListener,
        tls: Tls,
        boot: u64,
        limits: ServerLimits,
        log: Log,
        serve: Arc<dyn Serve>,
    ) -> Result<Server, ClusterError> {
        let fail = |source| ClusterError::Listen { address: "listening socket".to_owned(), source };
        let address = listener.local_addr().map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        let shared = Arc::new(Shared::default());
        let accepting = shared.clone();
        let thread = thread::Builder::new()
            .name("holo-accept".to_owned())
            .spawn(move || accept_loop(&listener, &accepting, &tls, boot, limits, &log, &serve))
            .map_err(fail)?;
        Ok(Server { address, shared, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for socket in self.shared.open.lock().values() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn accept_loop(
    listener: &TcpListener,
    shared: &Arc<Shared>,
    tls: &Tls,
    boot: u64,
    limits: ServerLimits,
    log: &Log,
    serve: &Arc<dyn Serve>,
) {
    while !shared.stop.load(Ordering::SeqCst) {
        let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut ready, PollTimeout::from(100u16));
        let Ok((socket, from)) = listener.accept() else { continue };
        let from = from.to_string();
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        let Ok(clone) = socket.try_clone() else { continue };
        {
            let mut open = shared.open.lock();
            if open.len() >= limits.connections_max {
                log(&format!("connection from {from} closed: {} are open already", open.len()));
                continue;
            }
            open.insert(id, clone);
        }
        let (tls, thread_log, serve, ours) = (tls.clone(), log.clone(), serve.clone(), shared.clone());
        let spawned = thread::Builder::new().name("holo-peer".to_owned()).spawn(move || {
            if let Err(e) = converse(&tls, socket, &from, boot, limits.patience, serve.as_ref())
                && !ours.stop.load(Ordering::SeqCst)
            {
                let text = e.to_string();
                let (host, _port) = from.rsplit_once(':').unwrap_or((&from, ""));
                if ours.is_news(format!("{host} {}", text.replace(&from, ""))) {
                    thread_log(&format!("connection from {from}: {text}"));
                }
            }
            ours.open.lock().remove(&id);
        });
        if let Err(e) = spawned {
            log(&format!("cannot serve a connection: {e}"));
            shared.open.lock().remove(&id);
        }
    }
}

fn converse(
    tls: &Tls,
    socket: TcpStream,
    from: &str,
    boot: u64,
    patience: Patience,
    serve: &dyn Serve,
) -> Result<(), LinkError> {
    // Accepted sockets do not inherit it on Linux, but nothing here may depend on that.
    socket.set_nonblocking(false).map_err(|source| LinkError::Socket { what: "set blocking", source })?;
    let (mut connection, hello) = Connection::accept(tls, socket, from, patience)?;
    let refused = serve.refuse(&hello);
    let welcome = Welcome {
        protocol: PROTOCOL,
        node: tls.node().to_owned(),
        version: VERSION.to_owned(),
        boot,
        refused: refused.clone(),
    };
    connection.send(&welcome)?;
    match refused {
        Some(why) => {
            // Closing at once could destroy the words on their way.
            thread::sleep(Duration::from_millis(50));
            Err(LinkError::Unwanted { peer: hello.node, why })
        }
        None => match serve.serve(connection, &hello) {
            Err(e) if e.is_end() => Ok(()),
            other => other,
        },
    }
}

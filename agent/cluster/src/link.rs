//! One connection between two agents: dialling, frames, time-outs.

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    ops::{Deref, DerefMut},
    time::Duration,
};

use holo_api::peer::{CONTROL_FRAME_BYTES_MAX, Hello, PROTOCOL, Welcome};
use holo_image::wire::{Kind, WireError, read_frame, write_frame};
use serde::{Serialize, de::DeserializeOwned};

use crate::{error::LinkError, tls::Tls};

/// Version of the program, told to peers for display.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

trait Duplex: Read + Write + Send {
    /// Says that the end is meant.
    fn say_goodbye(&mut self);
}

impl<C, D> Duplex for rustls::StreamOwned<C, TcpStream>
where
    C: DerefMut + Deref<Target = rustls::ConnectionCommon<D>> + Send,
    D: rustls::SideData,
{
    fn say_goodbye(&mut self) {
        self.conn.send_close_notify();
        let _ = self.conn.write_tls(&mut self.sock);
    }
}

/// An authenticated connection that carries frames.
pub struct Connection {
    stream: Box<dyn Duplex>,
    socket: TcpStream,
    peer: String,
    frame_bytes_max: u64,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Longest waits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For TCP to connect and, again, for TLS to shake hands.
    pub connect: Duration,
    /// For every read and every write.
    pub io: Duration,
}

impl Connection {
    /// Dials `node`, proves who we are and that it is `node`, says hello.
    pub fn dial(
        tls: &Tls,
        node: &str,
        address: &str,
        hello: &Hello,
        patience: Patience,
    ) -> Result<(Connection, Welcome), LinkError> {
        let socket = connect(node, address, patience.connect)?;
        prepare(&socket)?;
        let clone = try_clone(&socket)?;
        let stream = tls.connect(node, socket, patience.connect)?;
        let mut connection = Connection::new(Box::new(stream), clone, node.to_owned());
        connection.set_patience(patience.connect)?;
        connection.send(hello)?;
        // With TLS 1.3 the other side's verdict on our certificate arrives only now.
        let welcome: Welcome = connection.receive().map_err(|e| match e {
            LinkError::Wire { source, .. } => {
                LinkError::Handshake { peer: node.to_owned(), why: source.to_string() }
            }
            other @ (LinkError::Refused { .. }
            | LinkError::Connect { .. }
            | LinkError::Address { .. }
            | LinkError::Handshake { .. }
            | LinkError::Certificate { .. }
            | LinkError::Protocol { .. }
            | LinkError::Unwanted { .. }
            | LinkError::Unexpected { .. }
            | LinkError::Socket { .. }) => other,
        })?;
        if welcome.protocol != PROTOCOL {
            let peer = node.to_owned();
            return Err(LinkError::Protocol { peer, found: welcome.protocol, ours: PROTOCOL });
        }
        if let Some(why) = welcome.refused.clone() {
            return Err(LinkError::Unwanted { peer: node.to_owned(), why });
        }
        connection.set_patience(patience.io)?;
        Ok((connection, welcome))
    }

    /// Accepting side: authenticates the one who dialled and reads its hello. The caller answers with a
    /// [`Welcome`].
    pub fn accept(
        tls: &Tls,
        socket: TcpStream,
        from: &str,
        patience: Patience,
    ) -> Result<(Connection, Hello), LinkError> {
        prepare(&socket)?;
        let clone = try_clone(&socket)?;
        let (peer, stream) = tls.accept(from, socket, patience.connect)?;
        let mut connection = Connection::new(Box::new(stream), clone, peer.clone());
        connection.set_patience(patience.connect)?;
        let hello: Hello = connection.receive()?;
        if hello.protocol != PROTOCOL {
            return Err(LinkError::Protocol { peer, found: hello.protocol, ours: PROTOCOL });
        }
        if hello.node != peer {
            let why = format!("is for {peer}, but the node calls itself {}", hello.node);
            return Err(LinkError::Certificate { peer: from.to_owned(), why });
        }
        connection.set_patience(patience.io)?;
        Ok((connection, hello))
    }

    fn new(stream: Box<dyn Duplex>, socket: TcpStream, peer: String) -> Connection {
        Connection { stream, socket, peer, frame_bytes_max: CONTROL_FRAME_BYTES_MAX }
    }

    /// The other node, by its certificate.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Larger (or smaller) frames from here on.
    pub fn set_frame_bytes_max(&mut self, bytes: u64) {
        self.frame_bytes_max = bytes;
    }

    /// Longest wait of one read or write from here on.
    pub fn set_patience(&self, io: Duration) -> Result<(), LinkError> {
        let io = Some(io.max(Duration::from_millis(1)));
        let fail = |source| LinkError::Socket { what: "set time-out", source };
        self.socket.set_read_timeout(io).map_err(fail)?;
        self.socket.set_write_timeout(io).map_err(fail)
    }

    /// A handle that ends the connection from another thread.
    pub fn closer(&self) -> Result<TcpStream, LinkError> {
        try_clone(&self.socket)
    }

    /// Sends one frame.
    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<(), LinkError> {
        let wire = |source| LinkError::Wire { what: "send to", peer: self.peer.clone(), source };
        write_frame(&mut self.stream, message, Kind::PEER).map_err(wire)?;
        let wire = |e| LinkError::Wire { what: "send to", peer: self.peer.clone(), source: WireError::Io(e) };
        self.stream.flush().map_err(wire)
    }

    /// Receives one frame.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<T, LinkError> {
        read_frame(&mut self.stream, Kind::PEER, self.frame_bytes_max).map_err(|source| LinkError::Wire {
            what: "receive from",
            peer: self.peer.clone(),
            source,
        })
    }

    /// The error for a message that does not belong here.
    pub(crate) fn unexpected(&self, what: impl Into<String>) -> LinkError {
        LinkError::Unexpected { peer: self.peer.clone(), what: what.into() }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.socket.set_write_timeout(Some(Duration::from_millis(20)));
        self.stream.say_goodbye();
        // The peer must notice at once, also if a closer is still held somewhere.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

fn connect(node: &str, address: &str, patience: Duration) -> Result<TcpStream, LinkError> {
    let (node_name, text) = (node.to_owned(), address.to_owned());
    let resolved = address.to_socket_addrs().map_err(|e| LinkError::Address {
        node: node_name.clone(),
        address: text.clone(),
        why: e.to_string(),
    })?;
    let mut failure: Option<std::io::Error> = None;
    for target in resolved {
        match TcpStream::connect_timeout(&target, patience) {
            Ok(socket) => return Ok(socket),
            // "Refused" is evidence that the agent is dead: only if every address says so.
            Err(e) if e.kind() == ErrorKind::ConnectionRefused && failure.is_some() => {}
            Err(e) => failure = Some(e),
        }
    }
    Err(match failure {
        Some(e) if e.kind() == ErrorKind::ConnectionRefused => {
            LinkError::Refused { node: node_name, address: text }
        }
        Some(source) => LinkError::Connect { node: node_name, address: text, source },
        None => LinkError::Address { node: node_name, address: text, why: "no address".to_owned() },
    })
}

/// Small messages must not wait for an acknowledgement of the ones before.
fn prepare(socket: &TcpStream) -> Result<(), LinkError> {
    socket.set_nodelay(true).map_err(|source| LinkError::Socket { what: "set TCP_NODELAY", source })
}

fn try_clone(socket: &TcpStream) -> Result<TcpStream, LinkError> {
    socket.try_clone().map_err(|source| LinkError::Socket { what: "duplicate socket", source })
}

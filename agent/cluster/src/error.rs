//! What can go wrong between nodes.

use std::{io, path::PathBuf};

use holo_image::wire::WireError;

use crate::{core::TimingError, keys::KeyError};

/// Why a connection failed or was refused.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No agent listens there.
    #[error("connect to {node} at {address}: refused, no agent listens there")]
    Refused {
        /// Node.
        node: String,
        /// Address.
        address: String,
    },
    /// Not reachable.
    #[error("connect to {node} at {address}: {source}")]
    Connect {
        /// Node.
        node: String,
        /// Address.
        address: String,
        /// Cause.
        source: io::Error,
    },
    /// The address cannot be resolved.
    #[error("address {address} of {node}: {why}")]
    Address {
        /// Node.
        node: String,
        /// As configured.
        address: String,
        /// Why not.
        why: String,
    },
    /// TLS failed: no certificate, a foreign one, an expired one.
    #[error("handshake with {peer}: {why}")]
    Handshake {
        /// Node or address.
        peer: String,
        /// What TLS says.
        why: String,
    },
    /// The certificate is of the cluster but not usable here.
    #[error("certificate of {peer}: {why}")]
    Certificate {
        /// Node or address.
        peer: String,
        /// Why not.
        why: String,
    },
    /// The other side speaks another version.
    #[error(
        "{peer} speaks version {found} of the conversation between agents, this node {ours}: update the older"
    )]
    Protocol {
        /// Node.
        peer: String,
        /// Its version.
        found: u16,
        /// Ours.
        ours: u16,
    },
    /// The other side does not want this connection.
    #[error("{peer} refused the connection: {why}")]
    Unwanted {
        /// Node.
        peer: String,
        /// Its words.
        why: String,
    },
    /// The connection broke or carried what it must not.
    #[error("{what} {peer}: {source}")]
    Wire {
        /// `send to`, `receive from`.
        what: &'static str,
        /// Node.
        peer: String,
        /// Cause.
        source: WireError,
    },
    /// A message that makes no sense at this point.
    #[error("{peer} sent {what}")]
    Unexpected {
        /// Node.
        peer: String,
        /// What.
        what: String,
    },
    /// A socket option or the like.
    #[error("{what}: {source}")]
    Socket {
        /// Operation.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
}

impl LinkError {
    /// The other side went away (or fell silent) between messages: nothing that needs a line in the log.
    pub(crate) fn is_end(&self) -> bool {
        use io::ErrorKind::{ConnectionReset, TimedOut, UnexpectedEof, WouldBlock};
        match self {
            LinkError::Wire { source: WireError::Closed, .. } => true,
            LinkError::Wire { source: WireError::Io(e), .. } => {
                [ConnectionReset, TimedOut, UnexpectedEof, WouldBlock].contains(&e.kind())
            }
            LinkError::Wire { .. }
            | LinkError::Refused { .. }
            | LinkError::Connect { .. }
            | LinkError::Address { .. }
            | LinkError::Handshake { .. }
            | LinkError::Certificate { .. }
            | LinkError::Protocol { .. }
            | LinkError::Unwanted { .. }
            | LinkError::Unexpected { .. }
            | LinkError::Socket { .. } => false,
        }
    }
}

/// Why the cluster cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Times.
    #[error(transparent)]
    Timing(#[from] TimingError),
    /// A connection.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The listening socket.
    #[error("listen on {address}: {source}")]
    Listen {
        /// Address.
        address: String,
        /// Cause.
        source: io::Error,
    },
    /// A record of an application.
    #[error("{what} record {path}: {why}")]
    Record {
        /// `read`, `write`.
        what: &'static str,
        /// File.
        path: PathBuf,
        /// Cause.
        why: String,
    },
    /// Configuration that makes no sense.
    #[error("cluster configuration: {0}")]
    Config(String),
    /// No such application here.
    #[error("no application {0} is known to the cluster")]
    NoApp(String),
    /// No such node.
    #[error("no node {0} in this cluster")]
    NoNode(String),
    /// Not in this state.
    #[error("{app}: {why}")]
    Refused {
        /// Application.
        app: String,
        /// Why.
        why: String,
    },
}

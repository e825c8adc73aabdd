//! What can go wrong, and the exit code that says so to scripts.

mod cfor;

use std::io;
use std::path::PathBuf;

use holo_api::local::ErrorKind;
use holo_cluster::keys::KeyError;

pub use cfor::CforError;

/// No agent answers at the socket.
pub const EXIT_NO_AGENT: u8 = 8;
/// `holo run` itself failed or refused, and the command was not executed.
pub const EXIT_RUN_REFUSED: u8 = 125;
/// The command of `holo run` was found but cannot be executed.
pub const EXIT_NOT_EXECUTABLE: u8 = 126;
/// The command of `holo run` was not found.
pub const EXIT_NOT_FOUND: u8 = 127;

/// An error of the command.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Nothing listens.
    #[error(
        "no agent answers at {socket}: {source}; start one with 'holod', or run an application with 'holo run'"
    )]
    NoAgent {
        /// Socket.
        socket: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Somebody else listens.
    #[error(
        "the agent at {socket} belongs to user {uid}, not to you; set HOLO_SOCKET to the socket of your own agent"
    )]
    ForeignAgent {
        /// Socket.
        socket: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// The conversation broke off.
    #[error("the conversation with the agent at {socket} broke off while it was to {what}: {reason}")]
    Broken {
        /// Socket.
        socket: PathBuf,
        /// What was asked for.
        what: &'static str,
        /// Cause.
        reason: String,
    },
    /// The agent said no.
    #[error("{message}")]
    Agent {
        /// Class.
        kind: ErrorKind,
        /// What failed, on which object, why, what to do.
        message: String,
    },
    /// Files of an epoch.
    #[error("{0}")]
    Cfor(#[from] CforError),
    /// Keys of a node.
    #[error("{0}")]
    Keys(#[from] KeyError),
    /// The agent knows why the program cannot be protected, and protection is required.
    #[error("{0}; protection is required")]
    Unprotected(String),
    /// An agent could not be started.
    #[error("cannot start the agent: {0}")]
    Start(#[from] crate::daemon::StartError),
    /// The command line makes no sense here.
    #[error("{0}")]
    Usage(String),
    /// Some object of this host cannot be used.
    #[error("cannot {what} {path}: {source}")]
    Path {
        /// Operation.
        what: &'static str,
        /// Object.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
}

impl CliError {
    /// The documented exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoAgent { .. } | Self::Start(_) => EXIT_NO_AGENT,
            Self::Agent { kind, .. } => match kind {
                ErrorKind::Usage => 2,
                ErrorKind::NotFound => 3,
                ErrorKind::Refused => 4,
                ErrorKind::Unprotected => 5,
                ErrorKind::BadImage => 6,
                ErrorKind::Unreachable => 7,
                ErrorKind::Failed => 1,
            },
            Self::Keys(error) => match error {
                KeyError::Name(_) => 2,
                KeyError::Exists(_)
                | KeyError::NoAuthority(_)
                | KeyError::TooOpen { .. }
                | KeyError::Owner { .. } => 4,
                KeyError::Damaged { .. } | KeyError::Mismatch { .. } | KeyError::Untrusted { .. } => 6,
                KeyError::File { .. } | KeyError::Generate { .. } => 1,
            },
            Self::Cfor(error) => error.exit_code(),
            Self::Usage(_) => 2,
            Self::Unprotected(_) => 5,
            Self::ForeignAgent { .. } => 4,
            Self::Broken { .. } | Self::Path { .. } | Self::Output(_) => 1,
        }
    }
}

impl From<io::Error> for CliError {
    /// Plain I/O errors come from writing to standard output: everything else names its object.
    fn from(source: io::Error) -> Self {
        Self::Output(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_code() {
        let kinds = [
            (ErrorKind::Failed, 1),
            (ErrorKind::Usage, 2),
            (ErrorKind::NotFound, 3),
            (ErrorKind::Refused, 4),
            (ErrorKind::Unprotected, 5),
            (ErrorKind::BadImage, 6),
            (ErrorKind::Unreachable, 7),
        ];
        for (kind, code) in kinds {
            assert_eq!(CliError::Agent { kind, message: String::new() }.exit_code(), code);
        }
    }
}

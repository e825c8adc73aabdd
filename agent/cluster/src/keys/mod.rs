//! Keys of the nodes: one certificate authority for the cluster, one certificate for each node.
//!
//! `<state_dir>/keys/` holds `node.pem` (a [`Bundle`]) on every node and `ca.pem` (the authority's key and
//! certificate) on the node that founded the cluster. All are readable by their owner alone. Private keys are
//! never logged: the types that hold them have no `Debug` that shows them.

mod bundle;
mod files;
mod issue;

use std::{fmt, io, path::PathBuf};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

pub use bundle::Bundle;
pub use issue::{add, init};

/// Why keys cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A node name that cannot be in a certificate.
    #[error(
        "node name {0:?}: use 1 to 32 letters, digits, - and _, beginning with a letter and ending with a letter or digit"
    )]
    Name(String),
    /// There are keys already.
    #[error("{0} exists: this node has keys already (remove it to give the node new ones)")]
    Exists(PathBuf),
    /// This node cannot make keys for others.
    #[error(
        "{0}: this node does not hold the cluster's authority; use the node where `holo node init` was run"
    )]
    NoAuthority(PathBuf),
    /// A file cannot be used.
    #[error("{what} {path}: {source}")]
    File {
        /// Operation.
        what: &'static str,
        /// File.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Others may read it.
    #[error(
        "{path} has mode {mode:04o}: others can read a private key; chmod 600 it (and replace keys that leaked)"
    )]
    TooOpen {
        /// File.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error("{path} belongs to user {uid}, not to the one that runs holo")]
    Owner {
        /// File.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// It is not what it should be.
    #[error("{what}: {why}")]
    Damaged {
        /// Which keys.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// Key and certificate are not a pair.
    #[error("{what}: the private key does not belong to the certificate")]
    Mismatch {
        /// Which keys.
        what: String,
    },
    /// The authority did not sign it, or its time is over.
    #[error("certificate of {node}: {why}")]
    Untrusted {
        /// Node.
        node: String,
        /// Why not.
        why: String,
    },
    /// Making a key failed.
    #[error("{what}: {why}")]
    Generate {
        /// Operation.
        what: &'static str,
        /// Cause.
        why: String,
    },
}

/// What a node needs to talk to the others; checked.
pub struct NodeKeys {
    name: String,
    key: PrivateKeyDer<'static>,
    certificate: CertificateDer<'static>,
    ca: CertificateDer<'static>,
}

impl NodeKeys {
    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(crate) fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }
}

impl fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKeys").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Installs a bundle made by [`add`] in `<dir>/keys/`. Installing the same again changes nothing.
pub fn install(dir: &std::path::Path, bundle: &Bundle) -> Result<NodeKeys, KeyError> {
    let keys = bundle.check()?;
    let path = files::node_file(dir);
    match files::read_private(&path)? {
        Some(old) if old == bundle.to_pem() => return Ok(keys),
        Some(_) => return Err(KeyError::Exists(path)),
        None => {}
    }
    files::write_private(&path, bundle.to_pem().as_bytes())?;
    Ok(keys)
}

/// The keys of this node, if it has any.
pub fn load(dir: &std::path::Path) -> Result<Option<NodeKeys>, KeyError> {
    let path = files::node_file(dir);
    match files::read_private(&path)? {
        Some(text) => Bundle::from_pem(&text, &path.display().to_string())?.check().map(Some),
        None => Ok(None),
    }
}

/// Checks a node name.
pub fn check_name(name: &str) -> Result<(), KeyError> {
    // What a certificate's DNS name can carry.
    let inside = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
    let last = name.chars().last().is_some_and(|c| c.is_ascii_alphanumeric());
    let long = name.len() > holo_api::peer::NODE_NAME_BYTES_MAX;
    if inside && first && last && !long { Ok(()) } else { Err(KeyError::Name(name.to_owned())) }
}

//! This node among others: what `holo-cluster` asks of it, and what the command line asks of the cluster.
//!
//! | file | what |
//! |---|---|
//! | `single` | without keys: this node alone |
//! | `nodes` | with keys: orders of the command line and news of the applications, carried to the cluster |
//! | `instances` | the cluster's orders to the applications of this node |
//! | `epochs` | epochs sent and received |

mod epochs;
mod instances;
mod nodes;
mod single;

use crate::app::Failure;
use crate::apps::Apps;
use crate::config::Config;
use crate::server::Cluster;
use holo_api::local::ErrorKind;
use holo_cluster::keys::{self, Bundle, NodeKeys};
use std::fs;
use std::sync::Arc;

fn failed(cause: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorKind::Failed, cause.to_string())
}

/// Who this node is.
pub struct Identity {
    /// Its name: that of its keys, else that of the host.
    pub name: String,
    keys: Option<NodeKeys>,
}

/// Reads this node's keys, after the installation of those that were given.
///
/// # Errors
/// Keys that cannot be used, or none where other nodes are configured.
pub fn identity(config: &Config) -> Result<Identity, Failure> {
    let keys = match &config.keys {
        Some(path) => {
            let named = |cause: &dyn std::fmt::Display| failed(format!("keys {}: {cause}", path.display()));
            let text = fs::read_to_string(path).map_err(|cause| named(&cause))?;
            let bundle = Bundle::from_pem(&text, &path.display().to_string()).map_err(failed)?;
            Some(keys::install(&config.state_dir, &bundle).map_err(failed)?)
        }
        None => keys::load(&config.state_dir).map_err(failed)?,
    };
    if keys.is_none() && (config.listen.is_some() || !config.peers.is_empty()) {
        return Err(failed(format!(
            "other nodes are configured (--listen, --peer), but {} has no keys: make them with `holo node init` on the \
             first node, or with `holo node add` there and --keys here",
            config.state_dir.display()
        )));
    }
    let host = || {
        nix::unistd::gethostname().map_or_else(|_| "local".into(), |name| name.to_string_lossy().into_owned())
    };
    let name = keys.as_ref().map_or_else(host, |keys| keys.name().to_owned());
    Ok(Identity { name, keys })
}

/// Starts what there is of a cluster.
///
/// # Errors
/// Settings that are not safe, an address that cannot be served.
pub fn start(identity: &Identity, apps: &Arc<Apps>) -> Result<Arc<dyn Cluster>, Failure> {
    match &identity.keys {
        Some(keys) => nodes::start(keys, apps),
        None => Ok(Arc::new(single::Single::new(apps))),
    }
}

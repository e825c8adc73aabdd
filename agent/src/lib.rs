//! The agent of a node: `holod`.
//!
//! | file | what |
//! |---|---|
//! | `config` | file and options |
//! | `server` | the unix socket: processes that join, requests of the command line |
//! | `join` | the packet of a starting process |
//! | `apps`, `app` | the applications of this node and their states |
//! | `record` | what of an application survives the agent |
//! | `pace` | how often epochs are taken |
//! | `dump`, `restore` | an epoch taken, an epoch run |
//! | `hot` | clones that stand-bys keep in memory |
//! | `files` | the application's files, as a resource manager |
//! | `inodes` | files keep the identity that the application knows |
//! | `graph` | what the application has, for people |
//! | `fence`, `guard` | an application that must not run, with the agent and without |
//! | `ports` | what the cluster asks of this node |

pub mod app;
pub mod apps;
mod awaited;
pub mod changes;
pub mod config;
pub mod dump;
mod ended;
mod family;
pub mod fence;
pub mod files;
pub mod graph;
pub mod guard;
mod hot;
pub mod inodes;
pub mod join;
pub mod kinds;
mod late;
pub mod members;
mod pace;
pub mod ports;
mod progress;
pub mod record;
mod recorded;
pub mod restore;
pub mod server;
mod witness;

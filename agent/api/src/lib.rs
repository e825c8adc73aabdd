//! What agents, the command line and the library say to one another.
//!
//! [`local`] is the conversation over the agent's unix socket; [`peer`] the one between agents. Both are frames of the `wire`
//! envelope of `holo-image`. [`files`] says where an epoch has its file trees. No sockets here.

pub mod files;
pub mod local;
pub mod peer;

//! One file per kind of resource.

mod clock;
pub mod descriptors;
mod devices;
mod epoll;
mod eventfd;
mod fdinfo;
mod fifos;
mod files;
mod inotify;
mod internet;
pub mod ipc;
mod kernel;
mod listing;
mod locks;
mod memfd;
pub mod memory;
mod memory_restore;
mod netlink;
mod objects;
mod open;
mod owner;
pub mod pagemap;
mod pipes;
mod place;
pub mod process;
#[cfg(test)]
mod round_trip;
#[cfg(test)]
mod round_trip_sockets;
pub mod shared;
mod signalfd;
pub mod signals;
mod sockdiag;
mod sockets;
mod sockopts;
pub mod sysv_msg;
pub mod sysv_sem;
pub mod sysv_shm;
mod sysv_undo;
mod tcp;
mod tcp_restore;
mod terminals;
#[cfg(test)]
mod testing;
pub mod threads;
mod timerfd;
pub mod timers;
pub mod tree;
mod udp;
mod unix_names;
mod unix_pairs;
mod unix_restore;
mod unix_sockets;
pub mod vdso;
mod watched;
pub mod zones;

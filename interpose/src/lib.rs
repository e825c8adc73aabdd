//! `libholo.so`: entry points only. It is preloaded, never linked.
//!
//! | file | what |
//! |---|---|
//! | `start` | the constructor: join the agent, patch libc, take the park signal |
//! | `dispatch` | what happens to each intercepted call |
//! | `waits` | calls with relative time-outs |
//! | `transfers` | calls that a park cut short move the rest |
//! | `socket_waits` | calls whose time-out is the socket's |
//! | `inodes` | files keep the identity that the application knows |
//! | `aio` | requests of asynchronous I/O, counted |
//! | `ipc` | System V objects that were asked for |
//! | `changes`, `descriptors` | files that the application is about to change |
//! | `signals` | the application's handlers: deferral, true contexts |
//! | `park` | the barrier's end in each thread |
//! | `altstack` | on which stack it is reached |
//! | `awaited` | files whose contents the agent has yet to read |
//! | `filters` | `seccomp` of the application's own |
//! | `exec` | the preload survives `execve` |
//! | `symbols` | the way in for functions, with `redhook` |
//! | `traps` | the way in for system calls that libc does not make |
//! | `user` | reading the application's memory as carefully as the kernel does |
//! | `early` | what the constructor leaves for all others |
//! | `vdso`, `mem`, `trace` | the clock, `memcpy` and friends, call counts |

// Errors live on the constructor's stack for a moment; there is no allocator to box them with.
#![allow(clippy::result_large_err)]

mod aio;
mod altstack;
mod awaited;
mod changes;
mod clones;
mod descriptors;
mod dispatch;
mod early;
mod exec;
mod filters;
mod inodes;
mod ipc;
mod late;
mod mem;
mod members;
mod moves;
mod named;
mod names;
mod owners;
mod park;
mod signals;
mod socket_waits;
mod start;
mod symbols;
mod trace;
mod transfers;
mod traps;
mod user;
mod vdso;
mod waits;

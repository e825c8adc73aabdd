//! The conversation with the agent over its unix socket: one request per connection.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holo_api::local::{AgentStatus, MAGIC, Reply, Request};
use holo_image::wire::{Kind, WireError, encode, read_frame};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, send,
    sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::error::CliError;
use crate::progress::Progress;

/// Longest silence of the agent before an answer that needs no work.
pub const QUICK: Duration = Duration::from_secs(30);
/// Longest silence between two signs of life during long work.
pub const LONG: Duration = Duration::from_secs(600);

/// Longest answer: a graph of an application with very many descriptors.
const REPLY_BYTES_MAX: u64 = 64 << 20;

/// One conversation.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    socket: PathBuf,
    what: &'static str,
}

/// What a request is called in an error.
fn name_of(request: &Request) -> &'static str {
    match request {
        Request::Register { .. } => "register the application",
        Request::Ps => "list the applications",
        Request::Checkpoint { .. } => "take an epoch",
        Request::Restore { .. } => "restore",
        Request::Switch { .. } => "switch",
        Request::Stop { .. } => "stop the application",
        Request::Rm { .. } => "forget the application",
        Request::Epochs { .. } => "list the epochs",
        Request::Graph { .. } => "tell the graph",
        Request::Nodes => "list the nodes",
        Request::Drain { .. } => "drain the node",
        Request::FileChanges { .. } => "tell the file changes",
        Request::Status => "tell its status",
        Request::Shutdown => "end",
        Request::Set { .. } => "change when epochs are taken",
    }
}

fn no_agent(socket: &Path, errno: Errno) -> CliError {
    CliError::NoAgent { socket: socket.to_owned(), source: errno.into() }
}

fn new_socket(silence_max: Duration) -> Result<UnixStream, Errno> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let time = TimeVal::new(i64::try_from(silence_max.as_secs()).unwrap_or(i64::MAX), 0);
    setsockopt(&fd, sockopt::SendTimeout, &time)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &time)?;
    Ok(UnixStream::from(fd))
}

impl Client {
    /// Connects and sends the request; `silence_max` bounds each wait for a frame.
    pub fn ask(socket: &Path, request: &Request, silence_max: Duration) -> Result<Self, CliError> {
        let mut client = Self {
            stream: new_socket(silence_max).map_err(|e| no_agent(socket, e))?,
            socket: socket.to_owned(),
            what: name_of(request),
        };
        client.connect(silence_max)?;
        // The answer of `Register` becomes our environment: only our own agent, or root's, may give it.
        let peer = getsockopt(&client.stream, sockopt::PeerCredentials).map_err(|e| no_agent(socket, e))?;
        if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
            return Err(CliError::ForeignAgent { socket: socket.to_owned(), uid: peer.uid() });
        }
        client.start(request).map_err(|e| client.broken(&e.to_string()))?;
        Ok(client)
    }

    /// Bounded by the socket's time-out: where an agent hangs and its queue is full, `connect` would wait for ever.
    fn connect(&self, silence_max: Duration) -> Result<(), CliError> {
        let address = UnixAddr::new(&self.socket).map_err(|e| no_agent(&self.socket, e))?;
        match connect(self.stream.as_raw_fd(), &address) {
            Ok(()) => Ok(()),
            Err(Errno::EAGAIN) => {
                Err(self.broken(&format!("it has not accepted a connection for {} s", silence_max.as_secs())))
            }
            Err(errno) => Err(no_agent(&self.socket, errno)),
        }
    }

    fn start(&mut self, request: &Request) -> io::Result<()> {
        // In one piece: the agent reads the whole request in one go.
        let mut bytes = MAGIC.to_vec();
        bytes.extend(encode(request, Kind::LOCAL).map_err(io::Error::other)?);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            // Not `write`: this process may have to go on as the command after an agent that hung up, and SIGPIPE is
            // as our caller left it.
            match send(self.stream.as_raw_fd(), rest, MsgFlags::MSG_NOSIGNAL) {
                Ok(done) => rest = &rest[done..],
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn broken(&self, reason: &str) -> CliError {
        CliError::Broken { socket: self.socket.clone(), what: self.what, reason: reason.to_owned() }
    }

    /// Sends descriptors with the one byte that follows the request.
    pub fn send_fds(&mut self, fds: [RawFd; 3]) -> Result<(), CliError> {
        let control = [ControlMessage::ScmRights(&fds)];
        let fd = self.stream.as_raw_fd();
        sendmsg::<()>(fd, &[IoSlice::new(&[0])], &control, MsgFlags::MSG_NOSIGNAL, None)
            .map(drop)
            .map_err(|e| self.broken(&format!("cannot pass the standard descriptors: {e}")))
    }

    /// Waits as long as the answer takes: for an attached application.
    pub fn wait_forever(&mut self) -> Result<(), CliError> {
        self.stream.set_read_timeout(None).map_err(|e| self.broken(&e.to_string()))
    }

    /// The next answer that is not progress; an error of the agent becomes ours.
    pub fn answer(&mut self) -> Result<Reply, CliError> {
        let mut progress = Progress::default();
        loop {
            let frame = read_frame(&mut self.stream, Kind::LOCAL, REPLY_BYTES_MAX);
            let reply = frame.map_err(|e| self.broken(&reason(&e)))?;
            if let Reply::Progress { what, done, total } = reply {
                progress.show(&crate::human::plain(&what), done, total);
            } else if let Reply::Error { kind, message } = reply {
                return Err(CliError::Agent { kind, message });
            } else {
                return Ok(reply);
            }
        }
    }

    /// An answer of the wrong kind: another version, or not an agent at all.
    #[must_use]
    pub fn unexpected(&self) -> CliError {
        self.broken("it gave the answer to another question; are holo and holod of the same version?")
    }
}

fn reason(error: &WireError) -> String {
    if matches!(error, WireError::Io(e) if e.kind() == io::ErrorKind::WouldBlock) {
        return "no sign of life for a long time; see holod.log in its state directory".to_owned();
    }
    error.to_string()
}

/// Asks and returns the part of the answer that `pick` takes.
pub fn call<T>(
    socket: &Path,
    request: &Request,
    silence_max: Duration,
    pick: impl FnOnce(Reply) -> Option<T>,
) -> Result<T, CliError> {
    let mut client = Client::ask(socket, request, silence_max)?;
    let reply = client.answer()?;
    pick(reply).ok_or_else(|| client.unexpected())
}

/// Takes one variant of [`Reply`].
macro_rules! pick {
    ($variant:ident) => {
        |reply| if let ::holo_api::local::Reply::$variant(value) = reply { Some(value) } else { None }
    };
}
pub(crate) use pick;

/// What the agent is; quick, also as a probe.
pub fn status(socket: &Path) -> Result<AgentStatus, CliError> {
    call(socket, &Request::Status, Duration::from_secs(5), pick!(Status))
}

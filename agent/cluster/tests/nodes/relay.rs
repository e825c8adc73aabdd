//! A forwarding port in front of a node: refuses while the node is down, can be muted while it is up, and breaks on order.

use std::{
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    thread,
    time::Duration,
};

use crate::port::Port;

pub struct Relay {
    pub address: SocketAddr,
    pub real: Arc<Mutex<Option<SocketAddr>>>,
    pub muted: Arc<AtomicBool>,
    pub wire: Arc<Wire>,
}

/// All connections of a relay, which break together.
#[derive(Default)]
pub struct Wire {
    /// Pieces that still come through; when the last of them has, all connections break. Below: that has happened, or is not
    /// wanted.
    left: AtomicI64,
    ends: Mutex<Vec<TcpStream>>,
}

impl Wire {
    /// Breaks all connections instead of carrying the piece behind the next `pieces`, in either direction.
    pub fn break_after(&self, pieces: u32) {
        self.left.store(i64::from(pieces) + 1, Ordering::SeqCst);
    }

    /// Has it happened?
    pub fn is_broken(&self) -> bool {
        self.left.load(Ordering::SeqCst) <= 0
    }

    /// Nothing breaks any more. Had it?
    pub fn spare(&self) -> bool {
        self.left.swap(0, Ordering::SeqCst) <= 0
    }

    fn carries(&self) -> bool {
        if self.left.fetch_sub(1, Ordering::SeqCst) != 1 {
            return true;
        }
        for end in self.ends.lock().unwrap().drain(..) {
            let _ = end.shutdown(std::net::Shutdown::Both);
        }
        false
    }
}

impl Relay {
    pub fn start() -> Relay {
        let port = Port::new();
        let address = port.address();
        let real: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
        let muted = Arc::new(AtomicBool::new(false));
        let wire: Arc<Wire> = Arc::default();
        let (target, quiet, all) = (real.clone(), muted.clone(), wire.clone());
        thread::spawn(move || relay_loop(&port, &target, &quiet, &all));
        Relay { address, real, muted, wire }
    }
}

fn relay_loop(
    port: &Port,
    target: &Arc<Mutex<Option<SocketAddr>>>,
    muted: &Arc<AtomicBool>,
    wire: &Arc<Wire>,
) {
    loop {
        let Some(_) = *target.lock().unwrap() else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        let listener = port.listen();
        listener.set_nonblocking(true).unwrap();
        while let Some(real) = *target.lock().unwrap() {
            let Ok((near, _)) = listener.accept() else {
                thread::sleep(Duration::from_millis(2));
                continue;
            };
            let Ok(far) = TcpStream::connect(real) else { continue };
            near.set_nonblocking(false).unwrap();
            wire.ends.lock().unwrap().extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
            for (from, to) in [(&near, &far), (&far, &near)] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let (muted, wire) = (muted.clone(), wire.clone());
                thread::spawn(move || pump(from, to, &muted, &wire));
            }
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, muted: &AtomicBool, wire: &Wire) {
    use std::io::{Read, Write};
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        while muted.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        if !wire.carries() || to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
    let _ = from.shutdown(std::net::Shutdown::Both);
}

//! A forwarding port in front of a node: refuses while the node is down, can be muted while it is up.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

pub struct Relay {
    pub address: SocketAddr,
    pub real: Arc<Mutex<Option<SocketAddr>>>,
    pub muted: Arc<AtomicBool>,
}

impl Relay {
    pub fn start() -> Relay {
        // A second listener: while the node is down, the first one is closed and the port refuses.
        let reserved = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = reserved.local_addr().unwrap();
        drop(reserved);
        let real: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
        let muted = Arc::new(AtomicBool::new(false));
        let (target, quiet) = (real.clone(), muted.clone());
        thread::spawn(move || relay_loop(address, &target, &quiet));
        Relay { address, real, muted }
    }
}

fn relay_loop(address: SocketAddr, target: &Arc<Mutex<Option<SocketAddr>>>, muted: &Arc<AtomicBool>) {
    loop {
        let Some(_) = *target.lock().unwrap() else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        let Ok(listener) = TcpListener::bind(address) else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        listener.set_nonblocking(true).unwrap();
        while let Some(real) = *target.lock().unwrap() {
            let Ok((near, _)) = listener.accept() else {
                thread::sleep(Duration::from_millis(2));
                continue;
            };
            let Ok(far) = TcpStream::connect(real) else { continue };
            near.set_nonblocking(false).unwrap();
            for (from, to) in [(&near, &far), (&far, &near)] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let muted = muted.clone();
                thread::spawn(move || pump(from, to, &muted));
            }
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, muted: &AtomicBool) {
    use std::io::{Read, Write};
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        while muted.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
    let _ = from.shutdown(std::net::Shutdown::Both);
}

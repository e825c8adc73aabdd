//! Save and restore of sockets, as in [`super::round_trip`].
#![allow(clippy::unwrap_used)]

use super::round_trip::holder;
use super::testing::{Holder, read_now, temporary};
use std::io::Write;
use std::os::unix::net::UnixStream;

// Goal: unix sockets keep queues, boundaries, names. Method: pairs of all types with messages both ways, an
// accepted connection, a half that was shut, a datagram socket with a name, a peer outside.
#[test]
fn unix_sockets() {
    let dir = temporary("unix");
    std::fs::create_dir(&dir).unwrap();
    let outside = std::os::unix::net::UnixListener::bind(dir.join("outside")).unwrap();
    let (holder, number) = holder(&format!(
        "d='{}/'\nU=socket.AF_UNIX\nfor name,kind in (('s',1),('d',2),('q',5)):\n  a,b=socket.socketpair(U,kind)\n  \
         n(name+'a',a);n(name+'b',b)\n  a.send(b'one');a.send(b'three');b.send(b'back')\n\
         l=n('l',socket.socket(U,1));l.bind(d+'sock');l.listen(7)\nc=n('c',socket.socket(U,1));c.connect(d+'sock')\n\
         k,_=l.accept();n('k',k);c.send(b'hello');c.shutdown(socket.SHUT_WR)\n\
         x=n('x',socket.socket(U,2));x.bind(chr(0)+'holo-x-'+str(os.getpid()))\ny=socket.socket(U,2);y.sendto(b'dgram',x.getsockname());y.close()\n\
         o=n('o',socket.socket(U,1));o.connect(d+'outside')",
        dir.display()
    ));
    let (theirs, _) = outside.accept().unwrap();
    (&theirs).write_all(b"from outside").unwrap();
    let captured = holder.captured();
    assert_eq!(holder.captured().state, captured.state);
    holder.kill();
    let remade = captured.remake();
    let read = |name: &str| read_now(remade.at(number[name]), 100).unwrap();
    assert_eq!(read("sb"), b"onethree");
    assert_eq!((read("db"), read("db"), read("da")), (b"one".to_vec(), b"three".to_vec(), b"back".to_vec()));
    assert_eq!((read("qb"), read("qb"), read("qa")), (b"one".to_vec(), b"three".to_vec(), b"back".to_vec()));
    assert_eq!((read("k"), read("k"), read("x")), (b"hello".to_vec(), Vec::new(), b"dgram".to_vec()));
    let name = |fd| String::from_utf8_lossy(&super::sockets::local_name(fd).unwrap().0[2..]).into_owned();
    assert_eq!(name(remade.at(number["k"])), format!("{}/sock\0", dir.display()));
    assert!(name(remade.at(number["x"])).starts_with("\0holo-x-"));
    UnixStream::connect(dir.join("sock")).unwrap();
    assert_eq!((read("o"), read("o")), (b"from outside".to_vec(), Vec::new()));
    assert_eq!(
        remade.remarks.iter().filter(|remark| remark.contains("unix socket")).count(),
        1,
        "{:?}",
        remade.remarks
    );
    std::fs::remove_dir_all(dir).unwrap();
}

// Goal: TCP and UDP. Method: a connection within the process with bytes both ways and one half closed, a
// listener with a backlog, a connection to outside that is reset, a datagram to oneself.
#[test]
fn internet() {
    let outside = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (holder, number) = holder(&format!(
        "l=n('l',socket.socket());l.setsockopt(1,2,1);l.bind(('127.0.0.1',0));l.listen(9)\n\
         c=n('c',socket.create_connection(l.getsockname()));k,_=l.accept();n('k',k)\n\
         c.send(b'up'*1000);k.send(b'down'*1000);c.shutdown(socket.SHUT_WR)\n\
         o=n('o',socket.create_connection(('127.0.0.1',{})))\n\
         u=n('u',socket.socket(socket.AF_INET,2));u.bind(('127.0.0.1',0));u.connect(u.getsockname());u.send(b'self')\n\
         i=n('idle',socket.socket(socket.AF_INET6));i.setsockopt(6,1,1)",
        outside.local_addr().unwrap().port()
    ));
    let (theirs, _) = outside.accept().unwrap();
    let captured = holder.captured();
    assert_eq!(holder.captured().state.tcp, captured.state.tcp);
    holder.kill();
    drop(theirs);
    let remade = captured.remake();
    assert_eq!(remade.remarks.len(), 1, "{:?}", remade.remarks);
    let at = |name: &str| remade.at(number[name]);
    let names = |name: &str| {
        let endpoint =
            |raw: std::io::Result<super::kernel::Bytes>| super::internet::Endpoint::parse(&raw.unwrap().0);
        (endpoint(super::sockets::local_name(at(name))), endpoint(super::sockets::peer_name(at(name))))
    };
    let ((one, other), (server, client)) = (names("c"), names("k"));
    assert_eq!((one, other), (client, server));
    let again = remade.recapture();
    let sockets = |state: &super::descriptors::State| -> Vec<_> {
        state.tcp.iter().map(|(_, tcp)| tcp.socket.local.clone()).collect()
    };
    assert_eq!(sockets(&captured.state)[..3], sockets(&again.state)[..3]);
    assert_eq!(again.state.tcp[0].1, captured.state.tcp[0].1);
    assert_eq!(again.state.udp, captured.state.udp);
    assert_eq!(read_now(at("k"), 9999).unwrap(), b"up".repeat(1000));
    assert_eq!(read_now(at("k"), 9999).unwrap(), b"");
    assert_eq!(read_now(at("c"), 9999).unwrap(), b"down".repeat(1000));
    assert_eq!(read_now(at("u"), 99).unwrap(), b"self");
    assert_eq!(read_now(at("o"), 99).unwrap_err().raw_os_error(), Some(libc::ECONNRESET));
    let server = super::internet::Endpoint::parse(&super::sockets::local_name(at("l")).unwrap().0).unwrap();
    std::net::TcpStream::connect((server.ip, server.port)).unwrap();
}

// Goal: descriptors in a queue come with the bytes that they were sent with, and are the descriptions that they were. Method: a
// stream with bytes before and after them; a file that is open too, and one that is nowhere else.
#[test]
fn descriptors_on_their_way() {
    let holder = Holder::new(
        "a,b=socket.socketpair()\nf=tempfile.TemporaryFile()\nf.write(b'text'); f.flush()\n\
         g=tempfile.TemporaryFile()\ng.write(b'gone'); g.flush()\n\
         a.send(b'plain'); socket.send_fds(a,[b'with'],[f.fileno(),g.fileno()]); a.send(b'after'); g.close()",
    );
    let captured = holder.captured();
    let queues = captured.state.unix.iter().map(|(_, socket)| &socket.queued).find(|queue| !queue.is_empty());
    let shown = |message: &super::sockets::Message| {
        (String::from_utf8_lossy(&message.data.0).into_owned(), message.passed.len())
    };
    let shown: Vec<_> = queues.unwrap().iter().map(shown).collect();
    assert_eq!(shown, [("plain".to_owned(), 0), ("with".to_owned(), 2), ("after".to_owned(), 0)]);
    holder.kill();
    let remade = captured.remake();
    let full = captured.state.unix.iter().find(|(_, socket)| !socket.queued.is_empty()).unwrap().0;
    let again = super::sockets::peek(&remade.made[&full]).unwrap();
    let parts: Vec<_> = again.messages.iter().map(|message| message.data.0.as_slice()).collect();
    assert_eq!(parts, [&b"plain"[..], b"with", b"after"]);
    let (at, descriptors) = &again.passed[0];
    assert_eq!((again.passed.len(), *at, descriptors.len()), (1, 1, 2));
    let bytes = |fd| super::kernel::stat(fd).unwrap().st_size;
    assert_eq!((bytes(&descriptors[0]), bytes(&descriptors[1])), (4, 4));
}

// Goal: an error that waits to be told is told once, to the application, after what is before it; looking does not take it. Method: ends
// that were left with something unread, a port that nobody has; each looked at twice.
#[test]
fn errors_that_wait() {
    let (holder, number) = holder(
        "for name,kind in (('s',1),('q',5)):\n  a,b=socket.socketpair(socket.AF_UNIX,kind);n(name,a)\n  \
         a.send(b'unread')\n  if kind==1: b.send(b'tail')\n  b.close()\n\
         g=socket.socket(socket.AF_INET,2);g.bind(('127.0.0.1',0));to=g.getsockname();g.close()\n\
         u=n('u',socket.socket(socket.AF_INET,2));u.connect(to);u.send(b'to nobody')",
    );
    let captured = holder.captured();
    assert_eq!(holder.captured().state, captured.state);
    holder.kill();
    let remade = captured.remake();
    let read = |name: &str| read_now(remade.at(number[name]), 100);
    let is_reset = |name: &str| read(name).unwrap_err().raw_os_error() == Some(libc::ECONNRESET);
    assert_eq!(read("s").unwrap(), b"tail");
    assert!(is_reset("s") && is_reset("q"));
    assert_eq!((read("s").unwrap(), read("q").unwrap()), (Vec::new(), Vec::new()));
}

// Goal: who listens has the port again although connections of it are there, and `SO_REUSEADDR` is not set. Method: as said, for both
// families; then another connection.
#[test]
fn listeners_without_reuse() {
    let (holder, number) = holder(
        "for name,family,at in (('4',socket.AF_INET,'127.0.0.1'),('6',socket.AF_INET6,'::1')):\n  \
         l=n('l'+name,socket.socket(family));l.bind((at,0));l.listen(5)\n  \
         c=n('c'+name,socket.socket(family));c.connect(l.getsockname());k,_=l.accept();n('k'+name,k);c.send(b'up')",
    );
    let captured = holder.captured();
    holder.kill();
    let remade = captured.remake();
    assert_eq!(remade.remarks, Vec::<String>::new());
    for family in ["4", "6"] {
        let at = |name: &str| remade.at(number[format!("{name}{family}").as_str()]);
        assert_eq!(read_now(at("k"), 10).unwrap(), b"up");
        assert_eq!(super::sockopts::get_int(at("l"), libc::SOL_SOCKET, libc::SO_REUSEADDR).unwrap(), 0);
        assert_eq!(super::sockopts::get_int(at("k"), libc::SOL_SOCKET, libc::SO_REUSEADDR).unwrap(), 0);
        let address =
            super::internet::Endpoint::parse(&super::sockets::local_name(at("l")).unwrap().0).unwrap();
        std::net::TcpStream::connect((address.ip, address.port)).unwrap();
    }
}

// Goal: raw sockets and those of echo requests are there again, with filters, peers and options. Method: a ping through each, where this
// user may make one.
#[test]
fn raw_sockets() {
    let allowed = |kind: i32| super::sockets::socket(libc::AF_INET, kind, libc::IPPROTO_ICMP).is_ok();
    let mut names = Vec::new();
    let mut script = String::new();
    for (name, kind, python) in [("r", libc::SOCK_RAW, "SOCK_RAW"), ("p", libc::SOCK_DGRAM, "SOCK_DGRAM")] {
        if !allowed(kind) {
            eprintln!("this user may make no {python} of ICMP: not tested");
            continue;
        }
        script +=
            &format!("s=n('{name}',socket.socket(socket.AF_INET,socket.{python},socket.IPPROTO_ICMP))\n");
        script += "s.connect(('127.0.0.1',7));s.setsockopt(0,2,77)\n";
        names.push(name);
    }
    if allowed(libc::SOCK_RAW) {
        script += "n('h',socket.socket(socket.AF_INET,socket.SOCK_RAW,socket.IPPROTO_RAW))\n";
        script += "n('6',socket.socket(socket.AF_INET6,socket.SOCK_RAW,socket.IPPROTO_ICMPV6))\n";
    }
    let (holder, number) = holder(&script);
    let captured = holder.captured();
    assert_eq!(holder.captured().state, captured.state);
    holder.kill();
    let remade = captured.remake();
    assert_eq!(remade.remarks, Vec::<String>::new());
    let again = remade.recapture();
    assert_eq!(again.state.udp, captured.state.udp);
    // Type, code, check, id, number.
    let echo = [8u8, 0, 0xf7, 0xff, 0, 0, 0, 0];
    for name in names {
        let fd = remade.at(number[name]);
        assert_eq!(super::sockopts::get_int(fd, libc::IPPROTO_IP, libc::IP_TTL).unwrap(), 77);
        super::sockets::send(fd, &echo, &[]).unwrap();
        assert_ne!(super::sockets::poll(fd, libc::POLLIN, 2000) & libc::POLLIN, 0);
    }
}

//! Connections: who is let in, what frames may be, what a slow or silent stranger can do.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use holo_api::peer::{Batch, CONTROL_FRAME_BYTES_MAX, Hello, PROTOCOL, Purpose};
use holo_cluster::{
    LinkError,
    keys::{self, NodeKeys},
    link::{Connection, Patience},
    ports::Log,
    server::{Serve, Server, ServerLimits},
    tls::Tls,
};

use crate::port::Port;

const PATIENCE: Patience = Patience { connect: Duration::from_millis(700), io: Duration::from_secs(2) };

/// Answers every batch with itself.
struct Echo;

impl Serve for Echo {
    fn refuse(&self, hello: &Hello) -> Option<String> {
        (hello.purpose == Purpose::Order).then(|| "no orders here".to_owned())
    }

    fn serve(&self, mut connection: Connection, _hello: &Hello) -> Result<(), LinkError> {
        loop {
            let batch: Batch = connection.receive()?;
            connection.send(&batch)?;
        }
    }
}

struct Place {
    _dirs: Vec<tempfile::TempDir>,
    a: NodeKeys,
    b: NodeKeys,
    foreign: NodeKeys,
    server: Server,
    log: Arc<Mutex<Vec<String>>>,
}

impl Place {
    fn new(connections_max: usize) -> Place {
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let a = keys::init(dirs[0].path(), "a").unwrap();
        let bundle = keys::add(dirs[0].path(), "b").unwrap();
        let b = keys::install(dirs[1].path(), &bundle).unwrap();
        // Same name, other cluster.
        let foreign = keys::init(dirs[2].path(), "a").unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let into = lines.clone();
        let log: Log = Arc::new(move |line: &str| into.lock().unwrap().push(line.to_owned()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let limits = ServerLimits { connections_max, patience: PATIENCE };
        let server = Server::start(listener, Tls::new(&b).unwrap(), 7, limits, log, Arc::new(Echo)).unwrap();
        Place { _dirs: dirs, a, b, foreign, server, log: lines }
    }

    fn dial(&self, keys: &NodeKeys, node: &str, purpose: Purpose) -> Result<Connection, LinkError> {
        let hello = Hello {
            protocol: PROTOCOL,
            node: keys.name().to_owned(),
            version: "test".to_owned(),
            boot: 1,
            purpose,
        };
        let address = self.server.address().to_string();
        Connection::dial(&Tls::new(keys).unwrap(), node, &address, &hello, PATIENCE).map(|(c, _)| c)
    }

    fn logged(&self, text: &str) {
        let end = Instant::now() + Duration::from_secs(5);
        while !self.log.lock().unwrap().iter().any(|l| l.contains(text)) {
            assert!(Instant::now() < end, "{text:?} not in {:?}", self.log.lock().unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn nodes_of_the_cluster_talk_and_others_are_refused_with_the_reason() {
    let place = Place::new(8);
    let mut good = place.dial(&place.a, "b", Purpose::Control).unwrap();
    let batch = Batch { seq: 5, ..Batch::default() };
    good.send(&batch).unwrap();
    assert_eq!(good.receive::<Batch>().unwrap(), batch);

    // A node of another cluster, though of a good name: neither side accepts the other.
    let why = place.dial(&place.foreign, "b", Purpose::Control).unwrap_err().to_string();
    assert!(why.contains("UnknownIssuer"), "{why}");
    place.logged("UnknownCA");

    // The server is not the node that was meant.
    let why = place.dial(&place.a, "c", Purpose::Control).unwrap_err().to_string();
    assert!(why.contains("not valid for name"), "{why}");

    // Without a certificate.
    let roots = Arc::new(no_certificate(&place));
    let name = rustls::pki_types::ServerName::try_from("b").unwrap();
    let tls = rustls::ClientConnection::new(roots, name).unwrap();
    let socket = TcpStream::connect(place.server.address()).unwrap();
    let mut bare = rustls::StreamOwned::new(tls, socket);
    let _ = bare.write_all(b"hello");
    assert!(bare.read(&mut [0; 16]).map_or(true, |n| n == 0));
    place.logged("no certificates");

    // Not TLS at all.
    let mut plain = TcpStream::connect(place.server.address()).unwrap();
    plain.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let _ = plain.read(&mut [0; 64]);
    place.logged("InvalidContentType");

    // Known, but not wanted.
    let why = place.dial(&place.a, "b", Purpose::Order).unwrap_err().to_string();
    assert!(why.contains("no orders here"), "{why}");
}

fn no_certificate(place: &Place) -> rustls::ClientConfig {
    // The authority's certificate is public; whoever has it still is nobody.
    let pem = std::fs::read(place._dirs[1].path().join("keys/node.pem")).unwrap();
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let ca = CertificateDer::pem_slice_iter(&pem).last().unwrap().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

#[test]
fn a_name_that_is_not_the_certificates_is_refused() {
    let place = Place::new(8);
    let hello = Hello {
        protocol: PROTOCOL,
        node: "b".into(),
        version: String::new(),
        boot: 1,
        purpose: Purpose::Control,
    };
    let address = place.server.address().to_string();
    let tls = Tls::new(&place.a).unwrap();
    assert!(Connection::dial(&tls, "b", &address, &hello, PATIENCE).is_err());
    place.logged("is for a, but the node calls itself b");
    assert_eq!(place.b.name(), "b");
    let newer = Hello { protocol: PROTOCOL + 1, node: "a".into(), ..hello };
    assert!(Connection::dial(&tls, "b", &address, &newer, PATIENCE).is_err());
    place.logged("update the older");
}

#[test]
fn frames_are_bounded_and_damage_ends_the_connection() {
    let place = Place::new(8);
    let mut connection = place.dial(&place.a, "b", Purpose::Control).unwrap();
    connection.send(&vec![0u8; CONTROL_FRAME_BYTES_MAX as usize + 1]).unwrap_or(());
    assert!(connection.receive::<Batch>().is_err());
    place.logged("too long");
    let mut connection = place.dial(&place.a, "b", Purpose::Control).unwrap();
    connection.send(&"something else").unwrap();
    assert!(connection.receive::<Batch>().is_err());
    place.logged("malformed");
}

#[test]
fn silent_strangers_and_too_many_connections_are_dropped() {
    let place = Place::new(2);
    let began = Instant::now();
    let mut silent = TcpStream::connect(place.server.address()).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let _ = silent.read(&mut [0; 16]);
    let took = began.elapsed();
    assert!(took > Duration::from_millis(500) && took < Duration::from_secs(3), "{took:?}");
    place.logged("handshake with");
    let _one = place.dial(&place.a, "b", Purpose::Control).unwrap();
    let _two = place.dial(&place.a, "b", Purpose::Control).unwrap();
    assert!(place.dial(&place.a, "b", Purpose::Control).is_err());
    place.logged("2 are open already");
}

#[test]
fn a_peer_that_stops_talking_is_given_up() {
    let place = Place::new(8);
    let mut connection = place.dial(&place.a, "b", Purpose::Control).unwrap();
    connection.set_patience(Duration::from_millis(100)).unwrap();
    let began = Instant::now();
    assert!(connection.receive::<Batch>().is_err());
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[test]
fn nobody_listening_is_told_apart() {
    let place = Place::new(1);
    let free = Port::new();
    let hello = Hello {
        protocol: PROTOCOL,
        node: "a".into(),
        version: String::new(),
        boot: 1,
        purpose: Purpose::Control,
    };
    let tls = Tls::new(&place.a).unwrap();
    let refused = Connection::dial(&tls, "b", &free.address().to_string(), &hello, PATIENCE).unwrap_err();
    assert!(matches!(refused, LinkError::Refused { .. }), "{refused}");
    let nowhere = Connection::dial(&tls, "b", "no port", &hello, PATIENCE).unwrap_err();
    assert!(matches!(nowhere, LinkError::Address { .. }), "{nowhere}");
}

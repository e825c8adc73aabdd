//! Mutual TLS: both sides prove with a certificate of the cluster who they are.

use std::{
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    pki_types::{CertificateDer, ServerName},
    server::WebPkiClientVerifier,
};

use crate::{error::LinkError, keys::NodeKeys};

/// Configuration of both roles, made from one node's keys.
#[derive(Clone)]
pub struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    node: String,
}

impl Tls {
    /// From a node's keys.
    pub fn new(keys: &NodeKeys) -> Result<Tls, LinkError> {
        let why = |e: &dyn std::fmt::Display| LinkError::Certificate {
            peer: keys.name().to_owned(),
            why: e.to_string(),
        };
        let mut roots = RootCertStore::empty();
        roots.add(keys.ca().clone()).map_err(|e| why(&e))?;
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = vec![keys.certificate().clone()];
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| why(&e))?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain.clone(), keys.private_key())
            .map_err(|e| why(&e))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|e| why(&e))?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| why(&e))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, keys.private_key())
            .map_err(|e| why(&e))?;
        // Connections live long; tickets would only be bytes that the heartbeat connection has to read.
        server.send_tls13_tickets = 0;
        Ok(Tls { client: Arc::new(client), server: Arc::new(server), node: keys.name().to_owned() })
    }

    /// This node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Dialling side: the certificate must be that of `node`.
    pub(crate) fn connect(
        &self,
        node: &str,
        mut socket: TcpStream,
        patience: Duration,
    ) -> Result<rustls::StreamOwned<ClientConnection, TcpStream>, LinkError> {
        let fail = |why: String| LinkError::Handshake { peer: node.to_owned(), why };
        let name = ServerName::try_from(node.to_owned()).map_err(|e| fail(e.to_string()))?;
        let mut tls = ClientConnection::new(self.client.clone(), name).map_err(|e| fail(e.to_string()))?;
        handshake(&mut tls, &mut socket, patience).map_err(fail)?;
        Ok(rustls::StreamOwned::new(tls, socket))
    }

    /// Accepting side: returns the peer's node name as its certificate has it.
    pub(crate) fn accept(
        &self,
        peer: &str,
        mut socket: TcpStream,
        patience: Duration,
    ) -> Result<(String, rustls::StreamOwned<ServerConnection, TcpStream>), LinkError> {
        let fail = |why: String| LinkError::Handshake { peer: peer.to_owned(), why };
        let mut tls = ServerConnection::new(self.server.clone()).map_err(|e| fail(e.to_string()))?;
        handshake(&mut tls, &mut socket, patience).map_err(fail)?;
        let certificate = tls.peer_certificates().and_then(<[_]>::first);
        let name = certificate.ok_or_else(|| fail("no certificate".to_owned())).and_then(|c| {
            node_name(c).map_err(|why| LinkError::Certificate { peer: peer.to_owned(), why })
        })?;
        Ok((name, rustls::StreamOwned::new(tls, socket)))
    }
}

/// Shakes hands within `patience` in all: a stranger that sends a byte now and then must not hold a thread.
fn handshake<D>(
    tls: &mut rustls::ConnectionCommon<D>,
    socket: &mut TcpStream,
    patience: Duration,
) -> Result<(), String> {
    let end = Instant::now() + patience;
    while tls.is_handshaking() || tls.wants_write() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("not finished in time".to_owned());
        }
        socket.set_read_timeout(Some(left)).map_err(|e| e.to_string())?;
        socket.set_write_timeout(Some(left)).map_err(|e| e.to_string())?;
        if tls.wants_write() {
            tls.write_tls(socket).map_err(|e| e.to_string())?;
            continue;
        }
        match tls.read_tls(socket) {
            Ok(0) => return Err("the other side closed the connection".to_owned()),
            Ok(_) => {}
            Err(e) => return Err(e.to_string()),
        }
        if let Err(e) = tls.process_new_packets() {
            // The alert that tells the other side why.
            while tls.wants_write() && tls.write_tls(socket).is_ok() {}
            return Err(e.to_string());
        }
    }
    Ok(())
}

/// The node name in a certificate: its one DNS name.
pub(crate) fn node_name(certificate: &CertificateDer<'_>) -> Result<String, String> {
    let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|e| e.to_string())?;
    let mut names = parsed.valid_dns_names();
    match (names.next(), names.next()) {
        (Some(name), None) => Ok(name.to_owned()),
        (None, _) => Err("carries no node name".to_owned()),
        (Some(_), Some(_)) => Err("carries more than one name".to_owned()),
    }
}

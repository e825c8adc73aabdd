//! One node's keys as one PEM file.

use std::{fmt, time::Duration};

use rustls::sign::CertifiedKey;
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, UnixTime,
    pem::{PemObject, SectionKind},
};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::{KeyError, NodeKeys, check_name};
use crate::tls::node_name;

const NAME_LINE: &str = "holo node: ";

/// A node's private key, its certificate, the cluster's authority and the node's name, as text in PEM:
/// the name in the first line, then `PRIVATE KEY`, `CERTIFICATE` (node), `CERTIFICATE` (authority).
#[derive(Clone, PartialEq, Eq)]
pub struct Bundle {
    name: String,
    text: String,
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Bundle {
    pub(super) fn new(name: &str, key_pem: &str, certificate_pem: &str, ca_pem: &str) -> Bundle {
        let text = format!("{NAME_LINE}{name}\n{key_pem}{certificate_pem}{ca_pem}").replace("\r\n", "\n");
        Bundle { name: name.to_owned(), text }
    }

    /// Reads one; `source` is named in errors. The content is checked by [`super::install`].
    pub fn from_pem(text: &str, source: &str) -> Result<Bundle, KeyError> {
        let name = text.lines().next().and_then(|l| l.strip_prefix(NAME_LINE));
        let Some(name) = name else {
            let why = format!("does not begin with \"{NAME_LINE}\": not a file of `holo node add`");
            return Err(KeyError::Damaged { what: source.to_owned(), why });
        };
        check_name(name)?;
        Ok(Bundle { name: name.to_owned(), text: text.to_owned() })
    }

    /// The text to write to a file that only its owner may read.
    pub fn to_pem(&self) -> String {
        self.text.clone()
    }

    /// The node that it is for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Verifies that everything belongs together, now.
    pub fn check(&self) -> Result<NodeKeys, KeyError> {
        let what = || format!("keys of {}", self.name);
        let damaged = |why: String| KeyError::Damaged { what: what(), why };
        let mut key = None;
        let mut certificates = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(self.text.as_bytes()) {
            let (kind, der) = section.map_err(|e| damaged(format!("{e:?}")))?;
            if kind == SectionKind::Certificate {
                certificates.push(CertificateDer::from(der));
            } else if kind == SectionKind::PrivateKey && key.is_none() {
                key = Some(PrivateKeyDer::try_from(der).map_err(|e| damaged(e.to_owned()))?);
            } else {
                return Err(damaged(format!("unexpected section {kind:?}")));
            }
        }
        let key = key.ok_or_else(|| damaged("no private key".to_owned()))?;
        let Ok([certificate, ca]) = <[CertificateDer<'static>; 2]>::try_from(certificates) else {
            return Err(damaged("not exactly two certificates".to_owned()));
        };
        let found = node_name(&certificate).map_err(&damaged)?;
        if found != self.name {
            return Err(damaged(format!("the certificate is for node {found}")));
        }
        verify(&self.name, &certificate, &ca)?;
        let provider = rustls::crypto::ring::default_provider();
        match CertifiedKey::from_der(vec![certificate.clone()], key.clone_key(), &provider) {
            Ok(_) => Ok(NodeKeys { name: self.name.clone(), key, certificate, ca }),
            Err(rustls::Error::InconsistentKeys(_)) => Err(KeyError::Mismatch { what: what() }),
            Err(e) => Err(damaged(e.to_string())),
        }
    }
}

/// Signed by the authority, for both ends of a connection, and valid today.
fn verify(node: &str, certificate: &CertificateDer<'_>, ca: &CertificateDer<'_>) -> Result<(), KeyError> {
    let untrusted = |why: String| KeyError::Untrusted { node: node.to_owned(), why };
    let anchor = [anchor_from_trusted_cert(ca).map_err(|e| untrusted(format!("authority: {e}")))?];
    let parsed = EndEntityCert::try_from(certificate).map_err(|e| untrusted(e.to_string()))?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = UnixTime::since_unix_epoch(now.unwrap_or(Duration::ZERO));
    for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
        parsed
            .verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchor, &[], now, usage, None, None)
            .map_err(|e| untrusted(explain(&e)))?;
    }
    Ok(())
}

#[allow(clippy::wildcard_enum_match_arm, reason = "a foreign error type with dozens of kinds")]
fn explain(error: &webpki::Error) -> String {
    match error {
        webpki::Error::CertExpired { .. } => {
            "has expired: make new keys with `holo node add`, or check this machine's date".to_owned()
        }
        webpki::Error::CertNotValidYet { .. } => "is not valid yet: check this machine's date".to_owned(),
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            "was not signed by the authority in the same file".to_owned()
        }
        other => other.to_string(),
    }
}

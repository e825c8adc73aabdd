//! Founding a cluster and adding nodes.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use super::{
    Bundle, KeyError, NodeKeys, check_name,
    files::{authority_file, node_file, read_private, write_private},
};

fn generate<'a>(what: &'static str) -> impl Fn(rcgen::Error) -> KeyError + 'a {
    move |e| KeyError::Generate { what, why: e.to_string() }
}

/// Founds a cluster: makes its authority and the keys of this node, `name`.
pub fn init(dir: &Path, name: &str) -> Result<NodeKeys, KeyError> {
    check_name(name)?;
    for path in [authority_file(dir), node_file(dir)] {
        if path.exists() {
            return Err(KeyError::Exists(path));
        }
    }
    let key = KeyPair::generate().map_err(generate("make the authority's key"))?;
    let mut params = CertificateParams::default();
    // Unlike another cluster's, so that a foreign certificate is called foreign and not badly signed.
    let authority = format!("holo cluster {:016x}", crate::clock::random_id());
    params.distinguished_name.push(DnType::CommonName, authority);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    set_validity(&mut params);
    let certificate = params.self_signed(&key).map_err(generate("sign the authority"))?;
    let text = format!("{}{}", key.serialize_pem(), certificate.pem());
    write_private(&authority_file(dir), text.as_bytes())?;
    let bundle = add(dir, name)?;
    super::install(dir, &bundle)
}

/// Makes the keys of another node; needs the authority. Keys made again for a name replace none: two nodes
/// must never run under one name.
pub fn add(dir: &Path, name: &str) -> Result<Bundle, KeyError> {
    check_name(name)?;
    let path = authority_file(dir);
    let Some(authority) = read_private(&path)? else { return Err(KeyError::NoAuthority(path)) };
    let damaged = |why: String| KeyError::Damaged { what: path.display().to_string(), why };
    let ca_key = KeyPair::from_pem(&authority).map_err(|e| damaged(e.to_string()))?;
    let begin = authority.find("-----BEGIN CERTIFICATE-----");
    let ca_pem = &authority[begin.ok_or_else(|| damaged("no certificate".to_owned()))?..];
    let issuer = Issuer::from_ca_cert_pem(ca_pem, ca_key).map_err(|e| damaged(e.to_string()))?;
    let key = KeyPair::generate().map_err(generate("make a node's key"))?;
    let params = CertificateParams::new(vec![name.to_owned()]);
    let mut params = params.map_err(generate("name a certificate"))?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    set_validity(&mut params);
    let certificate = params.signed_by(&key, &issuer).map_err(generate("sign a node's certificate"))?;
    let bundle = Bundle::new(name, &key.serialize_pem(), &certificate.pem(), ca_pem);
    bundle.check()?;
    Ok(bundle)
}

/// Long: an expired certificate would end protection on a day that nobody has in mind. From long ago, so that
/// a node whose date is behind can join.
fn set_validity(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
}

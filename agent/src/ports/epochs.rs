//! Epochs sent and received: the cluster's view of the store.
//!
//! A block is a page: one byte that says how it is packed, then the bytes. A key is a page's name and zeros.

use crate::app::{App, Failure, events};
use crate::apps::Apps;
use crate::record::{Options2, Options3, Options4};
use holo_api::local::AppOptions;
use holo_api::peer::{Key, Page as Block};
use holo_cluster::ports::{Ahead, EpochReader, EpochSink, EpochSource, EpochWriter, Offered, StoreError};
use holo_image::wire::{self, Kind, WireError};
use holo_image::{Import, PAGE_BYTES, Page, PageKey};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const RAW: u8 = 0;
const LZ4: u8 = 1;

/// What of an application goes along with its epochs, so that another node can run and protect it.
#[derive(Serialize, Deserialize)]
struct Along {
    options: AppOptions,
    argv: Vec<Vec<u8>>,
}

/// Of earlier nodes.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize))]
struct Older<O> {
    options: O,
    argv: Vec<Vec<u8>>,
}

impl<O: Into<AppOptions>> From<Older<O>> for Along {
    fn from(old: Older<O>) -> Self {
        Self { options: old.options.into(), argv: old.argv }
    }
}

const ALONG: Kind = Kind::new(35, 4);
/// Of nodes that leave nothing out of roots.
const ALONG_3: Kind = Kind::new(35, 3);
/// Of nodes that watch no files.
const ALONG_2: Kind = Kind::new(35, 2);
/// Of nodes where the period does not adapt.
const ALONG_1: Kind = Kind::new(35, 1);
const ALONG_BYTES_MAX: u64 = 1 << 20;

/// The store, as the cluster sees it.
pub(super) struct Epochs {
    pub(super) apps: Arc<Apps>,
}

fn decode_along(bytes: &[u8]) -> Result<Along, WireError> {
    match wire::decode(bytes, ALONG, ALONG_BYTES_MAX) {
        Err(WireError::OlderVersion { found: 1, .. }) => {
            wire::decode::<Older<Options2>>(bytes, ALONG_1, ALONG_BYTES_MAX).map(Along::from)
        }
        Err(WireError::OlderVersion { found: 2, .. }) => {
            wire::decode::<Older<Options3>>(bytes, ALONG_2, ALONG_BYTES_MAX).map(Along::from)
        }
        Err(WireError::OlderVersion { .. }) => {
            wire::decode::<Older<Options4>>(bytes, ALONG_3, ALONG_BYTES_MAX).map(Along::from)
        }
        along => along,
    }
}

fn broken(cause: &holo_image::Error) -> StoreError {
    // What is damaged or foreign stays so.
    StoreError { why: cause.to_string(), retry: !cause.is_bad_image() && !cause.is_not_found() }
}

fn unknown(failure: &Failure) -> StoreError {
    StoreError { why: failure.message.clone(), retry: false }
}

fn refused(why: String) -> StoreError {
    StoreError { why, retry: false }
}

fn to_wire(key: PageKey) -> Key {
    let mut out = [0; 32];
    out[..16].copy_from_slice(&key.to_bytes());
    out
}

fn from_wire(key: &Key) -> Result<PageKey, StoreError> {
    let (name, rest) = key.split_at(16);
    match name.try_into() {
        Ok(name) if rest.iter().all(|byte| *byte == 0) => Ok(PageKey::from_bytes(name)),
        _ => Err(refused("a block with a name that no page has".into())),
    }
}

fn pack(page: &Page) -> Vec<u8> {
    let mut out = vec![LZ4; 1 + lz4_flex::block::get_maximum_output_size(PAGE_BYTES)];
    match lz4_flex::block::compress_into(page, &mut out[1..]) {
        Ok(bytes) if bytes < PAGE_BYTES => out.truncate(1 + bytes),
        _ => {
            out.truncate(1);
            out[0] = RAW;
            out.extend_from_slice(page);
        }
    }
    out
}

fn unpack(block: &[u8]) -> Result<Page, StoreError> {
    let mut page = [0; PAGE_BYTES];
    let bytes = match block.split_first() {
        Some((&RAW, bytes)) if bytes.len() == PAGE_BYTES => {
            page.copy_from_slice(bytes);
            PAGE_BYTES
        }
        Some((&LZ4, bytes)) => lz4_flex::block::decompress_into(bytes, &mut page)
            .map_err(|cause| refused(format!("a block that cannot be unpacked: {cause}")))?,
        _ => 0,
    };
    if bytes == PAGE_BYTES { Ok(page) } else { Err(refused("a block that is no page".into())) }
}

/// Pages by name, packed.
fn packed(
    keys: &[Key],
    read: impl FnOnce(&mut [(PageKey, &mut Page)]) -> holo_image::Result<()>,
) -> Result<Vec<Vec<u8>>, StoreError> {
    let keys = keys.iter().map(from_wire).collect::<Result<Vec<_>, _>>()?;
    let mut pages = vec![[0; PAGE_BYTES]; keys.len()];
    let mut wanted: Vec<_> = keys.into_iter().zip(&mut pages).collect();
    read(&mut wanted).map_err(|cause| broken(&cause))?;
    Ok(pages.iter().map(pack).collect())
}

struct Reader {
    app: Arc<App>,
    epoch: holo_image::EpochReader,
}

impl EpochSource for Epochs {
    fn open(&self, app: &str, epoch: u64) -> Result<Box<dyn EpochReader>, StoreError> {
        let app = self.apps.get(app).map_err(|failure| unknown(&failure))?;
        let epoch = app.store.open_epoch(epoch).map_err(|cause| broken(&cause))?;
        Ok(Box::new(Reader { app, epoch }))
    }

    fn ahead(&self, app: &str, from: u64, max: usize) -> Option<Ahead> {
        let store = &self.apps.get(app).ok()?.store;
        let (keys, end) = store.ahead(from, max);
        let all = store.progress().1 / PAGE_BYTES as u64;
        (end > from).then(|| Ahead { keys: keys.into_iter().map(to_wire).collect(), end, all })
    }

    fn stand_back(&self) {
        crate::files::stand_back();
    }

    fn read_ahead(&self, app: &str, keys: &[Key]) -> Result<Vec<Vec<u8>>, StoreError> {
        let store = &self.apps.get(app).map_err(|failure| unknown(&failure))?.store;
        packed(keys, |wanted| store.read_stored(wanted))
    }
}

impl EpochReader for Reader {
    fn options(&mut self) -> Result<Vec<u8>, StoreError> {
        let record = self.app.record();
        let along = Along { options: record.options, argv: record.argv };
        wire::encode(&along, ALONG).map_err(|cause| refused(cause.to_string()))
    }

    fn manifest(&mut self, held: u64) -> Result<Vec<u8>, StoreError> {
        match self.epoch.export_since(held) {
            Some(change) => Ok(change.to_vec()),
            None => self.epoch.export_manifest().map_err(|cause| broken(&cause)),
        }
    }

    fn blocks(&mut self) -> u64 {
        self.epoch.page_count()
    }

    fn read(&mut self, keys: &[Key]) -> Result<Vec<Vec<u8>>, StoreError> {
        packed(keys, |wanted| self.epoch.read_pages_into(wanted))
    }
}

struct Writer {
    app: Arc<App>,
    import: Import,
    along: Along,
    from: String,
}

impl EpochSink for Epochs {
    fn newest(&self, app: &str) -> u64 {
        self.apps.get(app).ok().and_then(|app| app.store.last()).map_or(0, |meta| meta.epoch)
    }

    fn set_aside(&self, app: &str, after: u64) -> Result<u64, StoreError> {
        let Ok(app) = self.apps.get(app) else { return Ok(0) };
        // One that is just being taken would come after all.
        let _work = app.work();
        let beyond = app.store.set_aside(after).map_err(|cause| broken(&cause))?;
        if let (Some(first), Some(last)) = (beyond.first(), beyond.last()) {
            eprintln!(
                "holod: {}: epochs {first} to {last} put aside: it went on from {after} on another node; `holo epochs {0} \
                 --aside` lists them",
                app.name
            );
        }
        Ok(app.store.last().map_or(0, |meta| meta.epoch))
    }

    fn begin(&self, offered: &Offered, manifest: &[u8]) -> Result<Box<dyn EpochWriter>, StoreError> {
        let bad = |what: &dyn std::fmt::Display| refused(format!("{}: {what}", offered.app));
        let mut along = decode_along(&offered.options).map_err(|cause| bad(&cause))?;
        let AppOptions { roots, excludes, .. } = &along.options;
        if roots.iter().chain(excludes).any(|path| !path.starts_with(b"/")) {
            return Err(bad(&"a protected directory, or one that is left out, that is not absolute"));
        }
        events::check(&along.options.on_change).map_err(|why| bad(&why))?;
        // Seen from here the stand-bys are the others.
        along.options.standby.retain(|node| *node != self.apps.node && *node != offered.from);
        along.options.standby.insert(0, offered.from.clone());
        if offered.epoch == 0 {
            return Err(bad(&"an epoch without a number"));
        }
        let app = self.apps.get_or_add(&offered.app).map_err(|failure| unknown(&failure))?;
        if app.living().is_some() {
            return Err(bad(&"an instance of it lives here"));
        }
        // What the cluster knows nothing of (of an earlier run, taken in at the last moment) must not be in the way.
        if app.store.newest_number() >= offered.epoch {
            let beyond = app.store.set_aside(offered.epoch - 1).map_err(|cause| broken(&cause))?;
            eprintln!(
                "holod: {}: epochs {beyond:?} put aside: node {} goes on without them",
                app.name, offered.from
            );
        }
        let import = app.store.begin_import(manifest).map_err(|cause| broken(&cause))?;
        if import.meta().epoch != offered.epoch {
            return Err(bad(&format!("its manifest is of epoch {}", import.meta().epoch)));
        }
        Ok(Box::new(Writer { app, import, along, from: offered.from.clone() }))
    }

    fn lacking(&self, app: &str, run: u64, keys: &[Key]) -> Result<Vec<Key>, StoreError> {
        let keys = keys.iter().map(from_wire).collect::<Result<Vec<_>, _>>()?;
        let app = self.apps.get_or_add(app).map_err(|failure| unknown(&failure))?;
        Ok(app.store.lacking(run, &keys).into_iter().map(to_wire).collect())
    }

    fn put_ahead(&self, app: &str, blocks: &[Block]) -> Result<(), StoreError> {
        let page = |block: &Block| Ok((from_wire(&block.key)?, unpack(&block.bytes)?));
        let pages = blocks.iter().map(page).collect::<Result<Vec<_>, StoreError>>()?;
        let app = self.apps.get(app).map_err(|failure| unknown(&failure))?;
        // An epoch that is taken here must find nobody at it.
        let _work = app.work();
        if app.living().is_some() {
            return Err(refused(format!("{}: an instance of it lives here", app.name)));
        }
        app.store.put_ahead(&pages).map_err(|cause| broken(&cause))
    }
}

impl EpochWriter for Writer {
    fn missing(&mut self, max: usize) -> Result<Vec<Key>, StoreError> {
        Ok(self.import.missing().into_iter().take(max).map(to_wire).collect())
    }

    fn put(&mut self, key: &Key, bytes: &[u8]) -> Result<(), StoreError> {
        self.import.put(from_wire(key)?, &unpack(bytes)?).map_err(|cause| broken(&cause))
    }

    fn seal(self: Box<Self>) -> Result<(), StoreError> {
        let Self { app, import, along, from } = *self;
        let epoch = import.meta().epoch;
        let record = app.record();
        if record.options != along.options || record.argv != along.argv {
            // Before the epoch: one that can be seen can also be run.
            app.change_record(|record| {
                record.options = along.options;
                record.argv = along.argv;
            });
        }
        app.sync_record().map_err(|cause| StoreError { why: cause.to_string(), retry: true })?;
        import.seal().map_err(|cause| broken(&cause))?;
        let noted = app.store.update_side(epoch, |side| side.sealed_where = vec!["local".into(), from]);
        if let Err(cause) = noted {
            eprintln!("holod: {}: {cause}", app.name);
        }
        app.retain();
        app.hot.received(&app, epoch);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    // Goal: what goes along with epochs of earlier nodes is understood. Method: encode what those sent.
    #[test]
    fn earlier_nodes_are_understood() {
        let before = || Options2 { every_ms: 250, park_ms_max: 5, ..Options2::default() };
        let new = AppOptions { every_ms: 250, park_ms_max: 5, ..AppOptions::default() };
        let argv = || vec![b"x".to_vec()];
        let is_read = |bytes: Vec<u8>, options: &AppOptions| {
            let along = decode_along(&bytes).unwrap();
            assert_eq!((&along.options, along.argv), (options, argv()));
            assert!(decode_along(&bytes[..bytes.len() - 1]).is_err());
        };
        is_read(wire::encode(&Older { options: before(), argv: argv() }, ALONG_1).unwrap(), &new);
        let options = || Options3 { before: before(), budget_permille: 20, growth_bytes: 9 };
        let new = AppOptions { budget_permille: 20, growth_bytes: 9, ..new };
        is_read(wire::encode(&Older { options: options(), argv: argv() }, ALONG_2).unwrap(), &new);
        let new = AppOptions { on_change: vec![b"/x".to_vec()], ..new };
        let options = Options4 { before: options(), on_change: vec![b"/x".to_vec()] };
        is_read(wire::encode(&Older { options, argv: argv() }, ALONG_3).unwrap(), &new);
        let new = AppOptions { excludes: vec![b"/y".to_vec()], ..new };
        is_read(wire::encode(&Along { options: new.clone(), argv: argv() }, ALONG).unwrap(), &new);
    }

    #[test]
    fn pages_come_back_and_what_is_none_is_refused() {
        let mut noise = [0; PAGE_BYTES];
        let mut word = 1u32;
        for byte in &mut noise {
            word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (word >> 24) as u8;
        }
        for page in [[7; PAGE_BYTES], noise] {
            let block = pack(&page);
            assert!(block.len() <= 1 + PAGE_BYTES);
            assert_eq!(unpack(&block).unwrap(), page);
            assert!(unpack(&block[..block.len() - 1]).is_err());
        }
        assert!(pack(&[7; PAGE_BYTES]).len() < 100);
        assert!(unpack(&[]).is_err() && unpack(&[RAW, 1]).is_err() && unpack(&[9; 4097]).is_err());
        let key = PageKey::of(&noise);
        assert_eq!(from_wire(&to_wire(key)).unwrap(), key);
        assert!(from_wire(&[1; 32]).is_err());
    }
}

//! Tests of the whole store on a disk in memory.
#![allow(clippy::unwrap_used)]

mod ahead;
mod changes;
mod crash;
mod damage;
mod hostile;
mod patch;

use crate::{
    AppStore, Blob, EpochMeta, EpochReader, PAGE_BYTES, Page, Result, Store,
    disk::sim::SimDisk,
    wire::{self, Kind},
};
use std::sync::Arc;

/// Content of an epoch, as numbers: a page for each, 0 for the zero page.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Content {
    /// What it was made from; also the time of the epoch.
    pub(crate) seed: u64,
    pub(crate) pages: Vec<u64>,
    pub(crate) blob: Vec<u8>,
}

impl Content {
    /// Content that differs from epoch to epoch and shares some pages with those around.
    pub(crate) fn of(epoch: u64) -> Content {
        let seed = epoch;
        let pages = (0..12).map(|i| match i {
            0..4 => i,
            4..8 => 100 + (epoch + i) / 3,
            _ => 1000 * epoch + i,
        });
        Content {
            seed,
            pages: pages.collect(),
            blob: memory(&[7, 0, epoch])[..2 * PAGE_BYTES + 100].to_vec(),
        }
    }

    pub(crate) fn write(&self, app: &AppStore, epoch: u64) -> Result<()> {
        let mut writer = app.begin(epoch)?;
        writer.put_memory(1, 0x10000, &memory(&self.pages))?;
        let blob = writer.put_blob(&mut &self.blob[..])?;
        writer.put_section("file", 1, wire::encode(&blob, Kind::STATE).unwrap())?;
        writer.seal(EpochMeta { at_unix_ns: self.seed, ..EpochMeta::default() })?;
        Ok(())
    }

    pub(crate) fn read(reader: &EpochReader) -> Result<(Vec<u8>, Vec<u8>)> {
        let run = &reader.pages()[0];
        let mut bytes = vec![1; run.keys.len() * PAGE_BYTES];
        reader.read_run(run, 0, &mut bytes)?;
        let blob: Blob = wire::decode(reader.section("file").unwrap().1, Kind::STATE, 1 << 20).unwrap();
        let mut content = Vec::new();
        reader.read_blob(&blob, &mut content)?;
        Ok((bytes, content))
    }

    pub(crate) fn assert_in(&self, app: &AppStore, epoch: u64) {
        self.assert_is(&app.open_epoch(epoch).unwrap(), epoch);
    }

    pub(crate) fn assert_is(&self, reader: &EpochReader, epoch: u64) {
        let (pages, blob) = Content::read(reader).unwrap();
        assert!(pages == memory(&self.pages), "memory of epoch {epoch}");
        assert!(blob == self.blob, "file of epoch {epoch}");
    }
}

pub(crate) fn page(seed: u64) -> Page {
    let mut page = [0; PAGE_BYTES];
    if seed > 0 {
        for (i, word) in page.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i as u64).to_le_bytes());
        }
    }
    page
}

pub(crate) fn memory(seeds: &[u64]) -> Vec<u8> {
    seeds.iter().flat_map(|seed| page(*seed)).collect()
}

pub(crate) fn open(disk: &SimDisk) -> Result<(Store, AppStore)> {
    let store = Store::open_on(Arc::new(disk.clone()), "/s")?;
    let app = store.app("a")?;
    Ok((store, app))
}

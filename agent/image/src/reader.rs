//! Reading an epoch.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    sync::{Arc, OnceLock},
};

use crate::{
    blob::Blob,
    blob_reader::BlobReader,
    delta::{BaseId, Made},
    epochs::EpochFile,
    error::{Error, Result},
    key::{PAGE_BYTES, Page, PageKey, as_pages_mut},
    keymap::{KeyMap, KeySet},
    manifest::{ADDRESS_END, EpochMeta, Manifest, PageRun},
    memory::Range,
    pages::Wanted,
    slotset::SlotSet,
    spread::Names,
    state::{AppInner, Pin},
};

/// Pages that are read at once.
pub(crate) const PART_PAGES: usize = 256;

/// A sealed epoch, pinned while this exists. Several threads may read at once.
#[derive(Debug)]
pub struct EpochReader {
    app: Arc<AppInner>,
    made: Made,
    /// If its file is a change: of what, and its frame.
    change: Option<(BaseId, Vec<u8>)>,
    meta: EpochMeta,
    /// Its memory, written out when it is asked for.
    runs: OnceLock<Vec<PageRun>>,
    /// Where each page lies: made when a page is not where the table of the store says.
    places: OnceLock<KeyMap<u32>>,
    /// Its pages are not given back while this exists.
    _pin: Pin,
}

impl EpochReader {
    pub(crate) fn open(app: &Arc<AppInner>, epoch: u64) -> Result<EpochReader> {
        let no_such = || Error::NoSuchEpoch { app: app.name.clone(), epoch };
        let state = app.state();
        let Some(entry) = state.epochs.get(&epoch) else {
            let damaged = state.damaged.iter().any(|file| file.epoch == epoch);
            drop(state);
            // Say again what is wrong with it, or that all is well since; then the store must be opened anew.
            let error = if damaged { app.load(epoch, None).err() } else { None };
            return Err(error.unwrap_or_else(no_such));
        };
        let (pin, known, meta) = (entry.pin(), entry.meta.clone(), entry.full_meta());
        let head = state.head.clone().filter(|head| head.id == entry.id());
        drop(state);
        let file = app.load(epoch, head.as_deref())?;
        // Put aside meanwhile, and another one has its number.
        if file.made.meta != known {
            return Err(no_such());
        }
        Ok(EpochReader::of(app, file, meta, pin))
    }

    pub(crate) fn of(app: &Arc<AppInner>, file: EpochFile, meta: EpochMeta, pin: Pin) -> EpochReader {
        let EpochFile { made, change } = file;
        EpochReader {
            app: app.clone(),
            made,
            change,
            meta,
            runs: OnceLock::new(),
            places: OnceLock::new(),
            _pin: pin,
        }
    }

    /// Where it has its pages itself.
    fn places(&self) -> &KeyMap<u32> {
        self.places.get_or_init(|| self.made.places().map(|(slot, key)| (key, slot)).collect())
    }

    /// Its figures, with what became known until it was opened.
    pub fn meta(&self) -> &EpochMeta {
        &self.meta
    }

    /// Version and bytes of a kind's state.
    pub fn section(&self, kind: &str) -> Option<(u16, &[u8])> {
        let section = self.made.sections.iter().find(|section| section.kind == kind)?;
        Some((section.version, &section.bytes))
    }

    /// Memory, in rising order of space and address.
    pub fn pages(&self) -> &[PageRun] {
        self.runs.get_or_init(|| self.made.memory.runs())
    }

    /// Those of a space.
    pub fn pages_of(&self, space: u64) -> &[PageRun] {
        let all = self.pages();
        let from = all.partition_point(|run| run.space < space);
        let to = all.partition_point(|run| run.space <= space);
        &all[from..to]
    }

    /// A content of `len` bytes that was entered as a space.
    pub fn content(&self, space: u64, len: u64) -> Blob {
        Blob { len, names: self.names_of(space) }
    }

    /// Names of the pages of a space, as if it were space 0.
    pub fn names_of(&self, space: u64) -> Names {
        let all = Range { space, start: 0, end: ADDRESS_END };
        self.made.memory.names().parts(&[all]).in_space(0)
    }

    /// Names of all stored pages, each once.
    pub fn keys(&self) -> Vec<PageKey> {
        let mut seen = KeySet::default();
        self.made.places().map(|(_, key)| key).filter(|key| seen.insert(*key)).collect()
    }

    /// How many pages of it are stored.
    pub fn page_count(&self) -> u64 {
        let mut seen = SlotSet::default();
        self.made.places().filter(|(slot, _)| seen.insert(*slot)).count() as u64
    }

    /// The manifest as bytes for another store: the same in each that has the epoch.
    pub fn export_manifest(&self) -> Result<Vec<u8>> {
        let Made { meta, sections, extra, .. } = &self.made;
        let extra: Vec<PageKey> = extra.iter().map(|(key, _)| *key).collect();
        Manifest::frame_of(meta, sections, self.pages(), &extra).map_err(Error::ReceivedWire)
    }

    /// What it changes of epoch `held`, as bytes for a store that has that one as its newest. None: that is not known.
    pub fn export_since(&self, held: u64) -> Option<&[u8]> {
        let (base, frame) = self.change.as_ref()?;
        (base.epoch..self.made.meta.epoch).contains(&held).then_some(frame)
    }

    /// Reads a page of this epoch and verifies it.
    pub fn read_page(&self, key: PageKey, into: &mut Page) -> Result<()> {
        self.read_pages_into(&mut [(key, into)])
    }

    /// Reads pages of this epoch and verifies them; pages that were stored one after another come with one call.
    ///
    /// After an error the buffers of damaged pages hold anything.
    pub fn read_pages_into(&self, pages: &mut [(PageKey, &mut Page)]) -> Result<()> {
        let mut wanted = Vec::with_capacity(pages.len());
        let slots = self.find(pages.iter().map(|(key, _)| *key))?;
        for ((key, into), slot) in pages.iter_mut().zip(slots) {
            match slot {
                Some(slot) => wanted.push(Wanted { slot, key: *key, into }),
                None => into.fill(0),
            }
        }
        match self.app.files.read(wanted) {
            Ok(()) => Ok(()),
            Err(_) => pages.iter_mut().try_for_each(|(key, into)| self.read_or_heal(*key, into)),
        }
    }

    /// Where pages are found, this epoch's or the same of another one, which the name tells; none: the page of zeros.
    fn find(&self, keys: impl Iterator<Item = PageKey>) -> Result<Vec<Option<u32>>> {
        let state = self.app.state();
        let mut near = 0;
        keys.map(|key| {
            if key.is_zero() {
                return Ok(None);
            }
            let slot = if state.slots.is_at(key, near) { Some(near) } else { state.slots.find(key) };
            let slot = slot.or_else(|| self.places().get(&key).copied());
            near = slot.map_or(0, |slot| slot.wrapping_add(1));
            slot.map(Some).ok_or(Error::UnknownPage { key })
        })
        .collect()
    }

    /// Reads one page; if it is damaged, from another place where a later epoch may have stored it again.
    fn read_or_heal(&self, key: PageKey, into: &mut Page) -> Result<()> {
        let Some(&slot) = self.places().get(&key) else {
            into.fill(0);
            return Ok(());
        };
        let error = match self.app.files.read(vec![Wanted { slot, key, into }]) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let other = {
            let mut state = self.app.state();
            if error.is_bad_image() {
                state.slots.damage(slot, key);
            }
            state.slots.find(key).filter(|other| *other != slot)
        };
        // The other place is not held; if it is given to another page meanwhile, the name tells.
        match other {
            Some(slot) => self.app.files.read(vec![Wanted { slot, key, into }]).map_err(|_| error),
            None => Err(error),
        }
    }

    /// Reads the pages of a run from `first` on into `into`, as many as it has room for.
    ///
    /// # Panics
    /// If the length of `into` is not a multiple of [`PAGE_BYTES`] or goes beyond the run.
    pub fn read_run(&self, run: &PageRun, first: usize, into: &mut [u8]) -> Result<()> {
        let pages = as_pages_mut(into);
        let keys = &run.keys[first..first + pages.len()];
        self.read_pages_into(&mut keys.iter().copied().zip(pages).collect::<Vec<_>>())
    }

    fn read_keys(&self, keys: &[PageKey], into: &mut [Page]) -> Result<()> {
        let mut pages: Vec<_> = keys.iter().copied().zip(into).collect();
        self.read_pages_into(&mut pages)
    }

    /// Writes a file's content out, holes as zeros.
    pub fn read_blob(&self, blob: &Blob, out: &mut impl Write) -> Result<()> {
        blob.check()?;
        let mut at = 0;
        self.for_parts(blob, |offset, bytes| {
            write_zeros(out, offset - at)?;
            at = offset + bytes.len() as u64;
            out.write_all(bytes).map_err(Error::Sink)
        })?;
        write_zeros(out, blob.len - at)
    }

    /// A file's content as a stream, holes as zeros.
    pub fn blob_reader<'a>(&'a self, blob: &'a Blob) -> Result<BlobReader<'a>> {
        BlobReader::new(self, blob)
    }

    /// Makes a file have a content; holes stay holes if the file is empty before.
    pub fn read_blob_to_file(&self, blob: &Blob, file: &File) -> Result<()> {
        blob.check()?;
        file.set_len(0).and_then(|()| file.set_len(blob.len)).map_err(Error::Sink)?;
        self.for_parts(blob, |offset, bytes| file.write_all_at(bytes, offset).map_err(Error::Sink))
    }

    /// Gives the parts of a content that are not holes, in order: offset and bytes.
    fn for_parts(&self, blob: &Blob, mut give: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let mut pages = vec![[0; PAGE_BYTES]; PART_PAGES];
        for piece in blob.names.pieces() {
            let keys = &piece.items;
            self.read_keys(keys, &mut pages[..keys.len()])?;
            let bytes = pages[..keys.len()].as_flattened();
            give(piece.address, &bytes[..bytes.len().min((blob.len - piece.address) as usize)])?;
        }
        Ok(())
    }

    /// Reads every page of the epoch and verifies it.
    pub fn verify(&self) -> Result<()> {
        let mut pages = vec![[0; PAGE_BYTES]; PART_PAGES];
        let mut places: Vec<_> = self.places().iter().map(|(key, slot)| (*slot, *key)).collect();
        places.sort_unstable();
        for part in places.chunks(PART_PAGES) {
            let keys: Vec<_> = part.iter().map(|(_, key)| *key).collect();
            self.read_keys(&keys, &mut pages[..keys.len()])?;
        }
        Ok(())
    }
}

fn write_zeros(out: &mut impl Write, count: u64) -> Result<()> {
    io::copy(&mut io::repeat(0).take(count), out).map(drop).map_err(Error::Sink)
}

//! Writing an epoch.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    os::unix::fs::FileExt,
};

use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};

use crate::{
    blob::{Blob, BlobPart},
    delta::Made,
    draft::Draft,
    epochs,
    error::{Error, ManifestError, Result},
    key::{PAGE_BYTES, Page, PageKey, as_pages},
    manifest::{ADDRESS_END, EpochMeta, EpochSide, Section, check_count, check_run, check_section_name},
    memory::Memory,
    spread::Names,
};

/// Bytes of a file that are read and hashed at once.
const BLOB_PART_BYTES: usize = 1 << 20;

/// What an epoch cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Pages put, zero pages included.
    pub pages_put: u64,
    /// Zero pages among them.
    pub pages_zero: u64,
    /// Pages among them that were not in the store.
    pub pages_new: u64,
    /// Bytes of pages written.
    pub bytes_written: u64,
    /// Bytes of files' contents put.
    pub bytes_blobs: u64,
}

/// An epoch that was sealed.
#[derive(Clone, Debug)]
pub struct SealedEpoch {
    /// Its figures, as the manifest has them.
    pub meta: EpochMeta,
    /// What it cost.
    pub figures: Figures,
    /// Length of its manifest's file.
    pub manifest_bytes: u64,
}

/// An epoch that is being written. It has every page that was put or kept, named in a run or not.
#[derive(Debug)]
pub struct EpochWriter {
    draft: Draft,
    sections: Vec<Section>,
    /// Pages of spaces, in the order of their coming.
    entered: Vec<Memory>,
    /// Put or kept by name: what no run names either belongs to contents.
    named: Vec<PageKey>,
    figures: Figures,
    /// For parts of contents: to clear it for each would take longest of all where files are small.
    part: Vec<u8>,
}

impl EpochWriter {
    pub(crate) fn new(draft: Draft) -> EpochWriter {
        EpochWriter {
            draft,
            sections: Vec::new(),
            entered: Vec::new(),
            named: Vec::new(),
            figures: Figures::default(),
            part: Vec::new(),
        }
    }

    /// Works with [`Self::part`].
    fn in_parts<T>(&mut self, work: impl FnOnce(&mut Self, &mut Vec<u8>) -> Result<T>) -> Result<T> {
        let mut part = std::mem::take(&mut self.part);
        let done = work(self, &mut part);
        self.part = part;
        done
    }

    /// Its number.
    pub fn epoch(&self) -> u64 {
        self.draft.epoch
    }

    /// Stores a page, unless it is there already.
    pub fn put_page(&mut self, page: &Page) -> Result<PageKey> {
        let key = PageKey::of(page);
        self.put_named(key, page)?;
        Ok(key)
    }

    /// Stores a page whose name is known: `key` must be [`PageKey::of`] it, or it can never be read.
    pub fn put_page_hashed(&mut self, key: PageKey, page: &Page) -> Result<()> {
        debug_assert_eq!(key, PageKey::of(page));
        self.put_named(key, page)
    }

    fn put_named(&mut self, key: PageKey, page: &Page) -> Result<()> {
        let new = self.draft.put(key, page)?;
        self.named.push(key);
        self.draft.app.progress.put(PAGE_BYTES as u64);
        self.figures.pages_put += 1;
        self.figures.pages_zero += u64::from(key.is_zero());
        self.figures.pages_new += u64::from(new);
        self.figures.bytes_written += if new { PAGE_BYTES as u64 } else { 0 };
        Ok(())
    }

    /// Names pages that lie one after another, on all processors, and stores them.
    ///
    /// # Panics
    /// If the length is not a multiple of [`PAGE_BYTES`].
    pub fn put_page_bytes(&mut self, pages: &[u8]) -> Result<Vec<PageKey>> {
        let keys = PageKey::of_all(pages);
        for (key, page) in keys.iter().zip(as_pages(pages)) {
            self.put_named(*key, page)?;
        }
        Ok(keys)
    }

    /// Enters a run of pages: names out of this epoch's puts, or of pages that a kept epoch has.
    ///
    /// Runs may come in any order but must not overlap within a space.
    pub fn put_pages(&mut self, space: u64, address: u64, keys: Vec<PageKey>) -> Result<()> {
        check_run(space, address, &keys)?;
        self.enter(&Names::of(space, address, &keys))
    }

    /// [`EpochWriter::put_pages`] of all pages of a space: those that it shares with the epoch before cost next to nothing.
    pub fn put_names(&mut self, space: u64, names: &Names) -> Result<()> {
        names
            .pieces()
            .iter()
            .try_for_each(|piece| check_run(space, piece.address, &piece.items).map(drop))?;
        self.enter(&names.in_space(space))
    }

    fn enter(&mut self, names: &Names) -> Result<()> {
        let mut memory = Memory::default();
        self.draft.keep_names(names, &mut memory)?;
        self.entered.push(memory);
        Ok(())
    }

    /// [`EpochWriter::put_page_bytes`] and [`EpochWriter::put_pages`] in one.
    pub fn put_memory(&mut self, space: u64, address: u64, pages: &[u8]) -> Result<()> {
        let keys = self.put_page_bytes(pages)?;
        self.put_pages(space, address, keys)
    }

    /// Adds a page that a kept epoch has.
    pub fn keep_page(&mut self, key: PageKey) -> Result<()> {
        if !self.draft.keep(key) {
            return Err(Error::UnknownPage { key });
        }
        self.named.push(key);
        Ok(())
    }

    /// Adds a file's content that a kept epoch has.
    pub fn keep_blob(&mut self, blob: &Blob) -> Result<()> {
        blob.check()?;
        blob.keys().try_for_each(|key| self.keep_page(key))
    }

    /// Enters a content as a space of its own, so that of its names only those are written that change; to be found again by
    /// [`EpochReader::content`](crate::EpochReader::content). False: it goes beyond the addresses of a space, and nothing was entered.
    pub fn put_content(&mut self, space: u64, blob: &Blob) -> Result<bool> {
        if blob.len > ADDRESS_END {
            return Ok(false);
        }
        self.put_names(space, &blob.names)?;
        Ok(true)
    }

    /// Stores a file's content, up to its end.
    pub fn put_blob(&mut self, content: &mut impl Read) -> Result<Blob> {
        self.in_parts(|writer, part| {
            part.resize(BLOB_PART_BYTES, 0);
            let mut blob = Blob::default();
            loop {
                let filled = fill(content, part).map_err(Error::Source)?;
                writer.put_part(&mut blob, part, filled)?;
                if filled < part.len() {
                    writer.figures.bytes_blobs += blob.len;
                    return Ok(blob);
                }
            }
        })
    }

    /// Stores the new bytes of a content that is made of them and of parts of `base`, which a kept epoch has. Every part but the last
    /// ends at a page's end, and parts of `base` begin and end at its pages. These are in the epoch once the content is put
    /// ([`Self::put_content`]) or kept ([`Self::keep_blob`]).
    pub fn patch_blob(&mut self, base: &Blob, parts: &[BlobPart], fresh: &mut impl Read) -> Result<Blob> {
        self.in_parts(|writer, buffer| writer.patch(base, parts, fresh, buffer))
    }

    fn patch(
        &mut self,
        base: &Blob,
        parts: &[BlobPart],
        fresh: &mut impl Read,
        part: &mut Vec<u8>,
    ) -> Result<Blob> {
        base.check()?;
        let bad = || Error::Source(ErrorKind::InvalidInput.into());
        let page = PAGE_BYTES as u64;
        let mut blob = Blob::default();
        for now in parts {
            if !blob.len.is_multiple_of(page) {
                return Err(bad());
            }
            match *now {
                BlobPart::Base { at, len } => {
                    let end = at.checked_add(len).filter(|end| *end <= base.len).ok_or_else(bad)?;
                    if !at.is_multiple_of(page) || !(end.is_multiple_of(page) || end == base.len) {
                        return Err(bad());
                    }
                    blob.push_of(base, at / page, len.div_ceil(page));
                    blob.len += len;
                }
                BlobPart::Fresh { len } => {
                    let mut left = len;
                    while left > 0 {
                        let want = left.min(BLOB_PART_BYTES as u64) as usize;
                        part.resize(part.len().max(want.next_multiple_of(PAGE_BYTES)), 0);
                        if fill(fresh, &mut part[..want]).map_err(Error::Source)? < want {
                            return Err(Error::Source(ErrorKind::UnexpectedEof.into()));
                        }
                        self.put_part(&mut blob, part, want)?;
                        left -= want as u64;
                    }
                    self.figures.bytes_blobs += len;
                }
            }
        }
        Ok(blob)
    }

    /// Stores a file's content without reading its holes. Moves the offset of `file`: do not give it an open
    /// file that others use.
    pub fn put_file(&mut self, file: &File) -> Result<Blob> {
        let len = file.metadata().map_err(Error::Source)?.len();
        let mut blob = Blob::default();
        self.in_parts(|writer, part| {
            part.resize(BLOB_PART_BYTES, 0);
            while blob.len < len {
                let (data, hole) = data_from(file, blob.len, len).map_err(Error::Source)?;
                // Back to the page's start: a hole may begin and end inside a page on some file systems.
                blob.len = blob.len.max(data - data % PAGE_BYTES as u64);
                while blob.len < hole {
                    let want = (len - blob.len).min(BLOB_PART_BYTES as u64) as usize;
                    read_part(file, &mut part[..want], blob.len).map_err(Error::Source)?;
                    writer.put_part(&mut blob, part, want)?;
                }
            }
            writer.figures.bytes_blobs += blob.len;
            Ok(blob)
        })
    }

    /// Appends the first bytes of a buffer to a blob that ends at a page's start.
    fn put_part(&mut self, blob: &mut Blob, part: &mut [u8], filled: usize) -> Result<()> {
        let whole = filled.next_multiple_of(PAGE_BYTES);
        part[filled..whole].fill(0);
        let first = blob.len / PAGE_BYTES as u64;
        for (number, key) in self.put_page_bytes(&part[..whole])?.into_iter().enumerate() {
            blob.push(first + number as u64, key);
        }
        blob.len += filled as u64;
        Ok(())
    }

    /// Adds the state of a kind of resource, encoded by it; one section for a kind.
    pub fn put_section(&mut self, kind: &str, version: u16, bytes: Vec<u8>) -> Result<()> {
        check_section_name(kind)?;
        if self.sections.iter().any(|section| section.kind == kind) {
            return Err(ManifestError::DuplicateSection { kind: kind.into() }.into());
        }
        self.sections.push(Section { kind: kind.into(), version, bytes });
        Ok(())
    }

    /// So many bytes are about to be put: for [`AppStore::progress`](crate::AppStore::progress).
    pub fn expect(&self, bytes: u64) {
        self.draft.app.progress.expect(bytes.next_multiple_of(PAGE_BYTES as u64));
    }

    /// Makes the pages so far durable, so that less is to be done when the epoch is sealed.
    pub fn sync(&mut self) -> Result<()> {
        self.draft.sync()
    }

    /// Gives the epoch up and leaves its pages in the store, where the next ones find them, until one is sealed or the application
    /// is closed.
    pub fn leave(self) -> Result<()> {
        self.draft.leave()
    }

    /// What it cost so far.
    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// For costs that the writer does not see.
    pub fn figures_mut(&mut self) -> &mut Figures {
        &mut self.figures
    }

    /// Makes the epoch durable and visible, all of it or, with an error, nothing of it.
    ///
    /// `meta.epoch` and `meta.app` are set here; `meta.sealed_where` goes to the side file.
    pub fn seal(mut self, mut meta: EpochMeta) -> Result<SealedEpoch> {
        meta.epoch = self.draft.epoch;
        meta.app.clone_from(&self.draft.app.name);
        let side = EpochSide { sealed_where: std::mem::take(&mut meta.sealed_where), dump_us: None };
        let memory = Memory::joined(&std::mem::take(&mut self.entered))?;
        let extra = self.draft.others(std::mem::take(&mut self.named))?;
        check_count(memory.page_count() + extra.len() as u64)?;
        let sections = std::mem::take(&mut self.sections);
        let manifest_bytes = self.draft.seal(Made { meta: meta.clone(), sections, memory, extra })?;
        if !side.sealed_where.is_empty() {
            let app = &self.draft.app;
            // The epoch is sealed; that a remark on it could not be written does not change it.
            if epochs::write_side(&*app.disk, &app.epochs_dir, meta.epoch, &side).is_ok() {
                app.state().epochs.entry(meta.epoch).and_modify(|entry| entry.side = side.clone());
            }
            meta.sealed_where = side.sealed_where;
        }
        Ok(SealedEpoch { meta, figures: self.figures, manifest_bytes })
    }
}

/// Reads until the buffer is full or the source ends.
fn fill(source: &mut impl Read, into: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match source.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Fills the buffer; what a file that shrank meanwhile no longer has is zeros.
fn read_part(file: &File, into: &mut [u8], offset: u64) -> std::io::Result<()> {
    let mut filled = 0;
    while filled < into.len() {
        match file.read_at(&mut into[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    into[filled..].fill(0);
    Ok(())
}

/// The next data at or behind `from`, before `len`; an empty range at `len` if there are none.
fn data_from(file: &File, from: u64, len: u64) -> std::io::Result<(u64, u64)> {
    let seek = |from: u64, whence| match lseek(file, from as i64, whence) {
        Ok(at) => Ok(Some((at as u64).min(len))),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(std::io::Error::from(errno)),
    };
    match seek(from, Whence::SeekData) {
        Ok(Some(data)) => Ok((data, seek(data, Whence::SeekHole)?.unwrap_or(len))),
        Ok(None) => Ok((len, len)),
        // No such question on this file system: all is data.
        Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32) => Ok((from, len)),
        Err(e) => Err(e),
    }
}

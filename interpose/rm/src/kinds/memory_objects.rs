//! Shared objects in the memory of one process: what of them is copied in the stop, and stored afterwards.

use crate::kinds::increment::{self, Runs, spread};
use crate::kinds::memory::SharedObject;
use crate::kinds::shared::SharedObjects;
use crate::kinds::shared_pages::{Part, SharedPages};
use crate::kinds::zones::{PAGE, Zone, ZoneKind};
use crate::manager::{Context, DumpCx, RmResult};
use crate::remote::read_guarded;
use holo_image::EpochWriter;

/// Pages of shared object `i` are in space `i + 1`; space 0 is the process's own memory.
const OBJECT_SPACE: u64 = 1;

/// What a zone gives of an object.
struct ObjectPart {
    /// The object, by its place in [`crate::kinds::memory::MemoryState::objects`].
    index: u64,
    key: (u64, u64),
    part: Part,
    /// What is to be copied.
    bytes: Vec<u8>,
}

/// The objects of one process.
#[derive(Default)]
pub(crate) struct Objects {
    /// Those that descriptors hold too.
    shared: SharedObjects,
    /// What of them changes.
    pages: SharedPages,
    parts: Vec<ObjectPart>,
}

impl Objects {
    pub(crate) fn new(shared: SharedObjects, pages: SharedPages) -> Self {
        Self { shared, pages, parts: Vec::new() }
    }

    pub(crate) fn shared(&self) -> &SharedObjects {
        &self.shared
    }

    /// Forgets what was copied.
    pub(crate) fn clear(&mut self) {
        self.parts.clear();
    }

    /// In the stop: the objects that a process's zones show, and copies of what of them changed.
    pub(crate) fn take(&mut self, cx: &DumpCx, all: &[Zone]) -> RmResult<Vec<SharedObject>> {
        let mut objects: Vec<SharedObject> = Vec::new();
        for zone in all.iter().filter(|zone| zone.kind == ZoneKind::SharedObject) {
            let key = (zone.device, zone.inode);
            let index = objects.iter().position(|object| object.key == key).unwrap_or_else(|| {
                objects.push(SharedObject { key, path: zone.path.clone(), bytes: 0 });
                objects.len() - 1
            });
            let reach = zone.offset + zone.bytes();
            objects[index].bytes = objects[index].bytes.max(reach);
            // Several zones, of several processes, may show the same part of an object.
            if !self.shared.is_staged(key) && self.shared.cover(key, zone.offset, reach) {
                self.parts.push(self.part(cx, index, zone)?);
            }
        }
        Ok(objects)
    }

    /// What a zone gives of its object, copied.
    fn part(&self, cx: &DumpCx, index: usize, zone: &Zone) -> RmResult<ObjectPart> {
        let part = self.pages.part(cx.remote, zone)?;
        let what = || format!("zone {:#x}", zone.start);
        let copy = |offsets: &[(u64, u64)]| -> RmResult<Vec<u8>> {
            let mut bytes = Vec::new();
            let place =
                |(from, to): &(u64, u64)| (from - zone.offset + zone.start, to - zone.offset + zone.start);
            let places: Vec<_> = offsets.iter().map(place).collect();
            cx.remote.page.keep_alive();
            if zone.prot & 1 != 0 {
                increment::copy(cx.remote, &places, &mut bytes).on("copying", what())?;
                return Ok(bytes);
            }
            for (start, end) in places {
                let mut piece = vec![0; (end - start) as usize];
                read_guarded(cx.remote.face, start, &mut piece).on("copying", what())?;
                bytes.append(&mut piece);
            }
            Ok(bytes)
        };
        let (key, bytes) = ((zone.device, zone.inode), copy(&part.read)?);
        if self.pages.checks() {
            self.pages.check(key, &part.keep, &copy(&part.keep)?)?;
        }
        Ok(ObjectPart { index: index as u64, key, part, bytes })
    }

    /// Puts the pages of objects into the image, in spaces behind `base`.
    pub(crate) fn store(&mut self, writer: &mut EpochWriter, base: u64) -> RmResult<()> {
        for one in std::mem::take(&mut self.parts) {
            let mut keys = writer.put_page_bytes(&one.bytes)?.into_iter();
            let mut read = Runs::new();
            for (start, end) in one.part.read {
                read.insert(start, keys.by_ref().take(((end - start) / PAGE) as usize).collect());
            }
            let names = self.pages.kept(one.key, &one.part.keep).and(&spread(&read));
            if let Err(cause) = writer.put_names(base + OBJECT_SPACE + one.index, &names) {
                self.pages.forget();
                return Err(cause.into());
            }
            self.pages.drafted(one.key, &names);
        }
        Ok(())
    }
}

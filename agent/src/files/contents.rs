//! Contents of files in an epoch: stored, named, and read.

use holo_api::files as trees;
use holo_cfor::{Captured, ContentSink, ContentSource, Part};
use holo_image::{Blob, BlobPart, EpochReader, EpochWriter, Names};
use std::collections::HashSet;
use std::io::{self, Read};

/// Stores contents.
pub(super) struct Sink<'a>(pub(super) &'a mut EpochWriter);

impl ContentSink for Sink<'_> {
    type Content = Blob;

    fn put(&mut self, mut data: &mut dyn Read, _len: u64) -> io::Result<Blob> {
        self.0.put_blob(&mut data).map_err(io::Error::other)
    }

    fn patch(&mut self, base: &Blob, parts: &[Part], mut fresh: &mut dyn Read) -> io::Result<Blob> {
        let part = |part: &Part| match *part {
            Part::Base { at, len } => BlobPart::Base { at, len },
            Part::Fresh { len } => BlobPart::Fresh { len },
        };
        let parts: Vec<BlobPart> = parts.iter().map(part).collect();
        self.0.patch_blob(base, &parts, &mut fresh).map_err(io::Error::other)
    }
}

/// Reads contents.
pub(super) struct Source<'a>(pub(super) &'a EpochReader);

impl ContentSource for Source<'_> {
    type Content = Blob;

    fn open<'a>(&'a mut self, content: &'a Blob) -> io::Result<Box<dyn Read + 'a>> {
        Ok(Box::new(self.0.blob_reader(content).map_err(io::Error::other)?))
    }
}

/// Enters contents as spaces and takes their pages out of the trees, where that can be; what was taken out.
pub(super) fn take_apart(
    writer: &mut EpochWriter,
    captured: &mut Captured<Blob>,
) -> holo_image::Result<Vec<(u32, Names)>> {
    let (mut apart, mut used) = (Vec::new(), HashSet::new());
    for (at, blob) in &mut captured.contents {
        let identity = captured.tree.inodes.get(*at as usize).map(|inode| inode.identity);
        let space = identity.map(|identity| trees::space(identity.dev, identity.ino));
        match space.filter(|space| !blob.names.is_empty() && used.insert(*space)) {
            Some(space) if writer.put_content(space, blob)? => {
                apart.push((*at, std::mem::take(&mut blob.names)))
            }
            Some(_) | None => writer.keep_blob(blob)?,
        }
    }
    Ok(apart)
}

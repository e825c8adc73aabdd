//! Goal: a content made of parts of another one is what the parts say, and costs what is new.
//! Method: random contents with pages of zeros, random parts; read back and compared, pages written are counted.

use super::{SimDisk, open, page};
use crate::{BlobPart, EpochMeta, PAGE_BYTES, wire};
use proptest::prelude::*;

const PAGE: u64 = PAGE_BYTES as u64;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn parts_make_the_content(
        seeds in proptest::collection::vec(0u64..4, 1..12),
        tail in 1usize..=PAGE_BYTES,
        picks in proptest::collection::vec((any::<bool>(), 0u64..12, 1u64..6), 0..6),
        ragged in any::<bool>(),
    ) {
        let disk = SimDisk::default();
        let (_store, app) = open(&disk).unwrap();
        let mut base: Vec<u8> = seeds.iter().flat_map(|seed| page(*seed)).collect();
        base.truncate(base.len() - PAGE_BYTES + tail);
        let mut writer = app.begin(1).unwrap();
        let old = writer.put_blob(&mut &base[..]).unwrap();
        writer.seal(EpochMeta::default()).unwrap();

        let whole = base.len() as u64 / PAGE;
        let (mut parts, mut fresh, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        for (number, (keep, at, pages)) in picks.iter().enumerate() {
            if *keep && *at < whole {
                let len = (*pages).min(whole - at) * PAGE;
                parts.push(BlobPart::Base { at: at * PAGE, len });
                wanted.extend_from_slice(&base[(at * PAGE) as usize..(at * PAGE + len) as usize]);
            } else {
                let bytes: Vec<u8> = (0..*pages).flat_map(|i| page(100 + number as u64 * 10 + i)).collect();
                parts.push(BlobPart::Fresh { len: bytes.len() as u64 });
                fresh.extend_from_slice(&bytes);
                wanted.extend_from_slice(&bytes);
            }
        }
        if ragged {
            let at = (base.len() as u64 - 1) / PAGE * PAGE;
            parts.push(BlobPart::Base { at, len: base.len() as u64 - at });
            wanted.extend_from_slice(&base[at as usize..]);
        }
        let mut writer = app.begin(2).unwrap();
        let blob = writer.patch_blob(&old, &parts, &mut &fresh[..]).unwrap();
        blob.check().unwrap();
        prop_assert_eq!(writer.figures().pages_put, (fresh.len() / PAGE_BYTES) as u64);
        writer.put_section("file", 1, wire::encode(&blob, wire::Kind::STATE).unwrap()).unwrap();
        writer.seal(EpochMeta::default()).unwrap();
        let mut found = Vec::new();
        app.open_epoch(2).unwrap().read_blob(&blob, &mut found).unwrap();
        prop_assert!(found == wanted);
    }
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let disk = SimDisk::default();
    let (_store, app) = open(&disk).unwrap();
    let mut writer = app.begin(1).unwrap();
    let old = writer.put_blob(&mut &[1u8; 5000][..]).unwrap();
    let mut refused = |parts: &[BlobPart], fresh: &[u8]| {
        assert!(writer.patch_blob(&old, parts, &mut &fresh[..]).is_err(), "{parts:?}");
    };
    refused(&[BlobPart::Base { at: 100, len: 100 }], b"");
    refused(&[BlobPart::Base { at: 0, len: 100 }], b"");
    refused(&[BlobPart::Base { at: 0, len: 5001 }], b"");
    refused(&[BlobPart::Base { at: 4096, len: u64::MAX }], b"");
    refused(&[BlobPart::Base { at: 4096, len: 904 }, BlobPart::Fresh { len: 1 }], b"a");
    refused(&[BlobPart::Fresh { len: 2 }], b"a");
}

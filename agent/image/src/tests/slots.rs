//! Goal: free is exactly what nothing holds and nothing withholds. Method: random histories beside a
//! plain list of holders.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn key(n: u32) -> PageKey {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&(n + 1).to_le_bytes());
    PageKey::from_bytes(bytes)
}

/// The free extents are disjoint, in their segments, joined, and cover what has no holder from `floor` on.
fn check(table: &Slots, holders: &[u32]) {
    let mut free = vec![false; table.end as usize];
    let mut before = None;
    for (&first, &count) in &table.free {
        assert!(count > 0 && first / SEGMENT_SLOTS == (first + count - 1) / SEGMENT_SLOTS);
        assert!(before.is_none_or(|end| end < first || first % SEGMENT_SLOTS == 0), "not joined at {first}");
        before = Some(first + count);
        free[first as usize..(first + count) as usize].fill(true);
    }
    for (slot, free) in free.into_iter().enumerate() {
        let held = holders.get(slot).copied().unwrap_or(0);
        assert_eq!(table.slot(slot as u32).holders, held, "holders of slot {slot}");
        assert_eq!(free, held == 0 && slot as u32 >= table.floor, "slot {slot}");
        assert_eq!(table.is_at(key(slot as u32), slot as u32), held > 0, "page of slot {slot}");
    }
}

proptest! {
    #[test]
    fn free_is_what_nothing_holds(start in 0u32..50, steps in prop::collection::vec((0u8..8, any::<u32>()), 1..80)) {
        let mut table = Slots::new(start);
        let mut holders = vec![0; start as usize];
        for (what, number) in steps {
            let held: Vec<_> = (0..holders.len()).filter(|slot| holders[*slot] > 0).collect();
            match what {
                0..3 => {
                    let want = number % 9 + 1;
                    let (first, count) = table.take(want).unwrap();
                    prop_assert!(count >= 1 && count <= want);
                    holders.resize(holders.len().max((first + count) as usize), 0);
                    for slot in first..first + count {
                        prop_assert_eq!(holders[slot as usize], 0, "slot {} was held", slot);
                        prop_assert!(slot >= table.floor);
                        holders[slot as usize] = 1;
                        table.publish(slot, key(slot));
                    }
                }
                3 if !held.is_empty() => {
                    let slot = held[number as usize % held.len()];
                    table.hold(slot as u32);
                    holders[slot] += 1;
                }
                4..7 if !held.is_empty() => {
                    let slot = held[number as usize % held.len()];
                    table.release(slot as u32);
                    holders[slot] -= 1;
                }
                7 if number % 4 == 0 => table.withhold(),
                7 if number % 4 == 1 => table.lift(),
                _ => {}
            }
            check(&table, &holders);
            for (slot, holders) in holders.iter().enumerate() {
                prop_assert_eq!(table.find(key(slot as u32)).is_some(), *holders > 0);
            }
        }
    }
}

#[test]
fn the_end_moves() {
    let mut table = Slots::new(SEGMENT_SLOTS + 10);
    table.hold(5);
    table.hold(SEGMENT_SLOTS);
    assert_eq!(table.shrink(), SEGMENT_SLOTS + 1);
    assert!(table.mostly_free());
    table.release(SEGMENT_SLOTS);
    assert_eq!(table.shrink(), 6);
    assert!(!table.mostly_free() || table.used() == 1);
    assert_eq!(table.take(7).unwrap(), (0, 5));
    assert_eq!(table.take(7).unwrap(), (6, 7));
    table.release(5);
    table.withhold();
    assert_eq!(table.shrink(), 13);
}

#[test]
fn extents_and_segments() {
    let mut table = Slots::new(SEGMENT_SLOTS + 10);
    assert_eq!(table.free_segments(), [0, 1]);
    let mut taken = 0;
    while taken < SEGMENT_SLOTS + 10 {
        let (first, count) = table.take(1000).unwrap();
        assert_eq!(first, taken);
        taken += count;
    }
    assert_eq!(table.used(), SEGMENT_SLOTS + 10);
    // Grows to the segment's end only.
    assert_eq!(table.take(u32::MAX).unwrap(), (SEGMENT_SLOTS + 10, SEGMENT_SLOTS - 10));
    (0..SEGMENT_SLOTS).for_each(|slot| table.release(slot));
    assert_eq!(table.free_segments(), [0]);
}

#[test]
fn the_numbers_end() {
    let mut table = Slots::new(SLOTS_END - 1);
    table.free.clear();
    assert_eq!(table.take(5).unwrap(), (SLOTS_END - 1, 1));
    assert_eq!(table.take(5), None);
}

#[test]
fn two_pages_in_one_slot_are_refused() {
    let mut table = Slots::new(4);
    table.hold_all(&[(0, key(0)), (1, key(1))]).unwrap();
    table.hold_all(&[(1, key(1)), (2, key(2))]).unwrap();
    let before = format!("{table:?}");
    assert_eq!(table.hold_all(&[(3, key(3)), (1, key(9))]), Err(ManifestError::SlotConflict { slot: 1 }));
    assert_eq!(format!("{table:?}"), before);
}

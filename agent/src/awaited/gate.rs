//! The table of files that are awaited, as the agent writes it; who waits there is in `holo-track`.

use holo_abi::awaited::{Gate, PIECE_SHIFT, PIECES_MAX, PIECES_PER_FILE_MAX, PLACES, PROBES_MAX, state};
use holo_abi::changes::{Changes, file_key, place};
use std::sync::atomic::Ordering::SeqCst;

/// Key of a file, if its file system is recorded.
pub(super) fn key(table: &Changes, device: u64, ino: u64) -> Option<u64> {
    let devices = table.devices.get(..table.device_count as usize)?;
    file_key(devices.iter().position(|known| *known == device)?, ino)
}

/// Makes an entry for a file of which the bytes `from..below` are awaited, in the stop; `by_pieces`: it is to be read in
/// pieces, `next_piece` is the first that no file has. Its place; none: there is no room.
pub(super) fn enter(
    gate: &Gate,
    key: u64,
    (from, below): (u64, u64),
    next_piece: Option<&mut usize>,
) -> Option<usize> {
    let first = place(key, PLACES.trailing_zeros());
    let mut places = (0..PROBES_MAX).map(|step| (first + step) % PLACES);
    let at = places.find(|at| gate.files[*at].key.load(SeqCst) == 0)?;
    let file = &gate.files[at];
    let (mut shift, mut pieces) = (PIECE_SHIFT, 0);
    if let Some(next) = next_piece {
        while below >> shift >= PIECES_PER_FILE_MAX {
            shift += 1;
        }
        let count = (below >> shift) as usize + 1;
        if *next + count > PIECES_MAX {
            return None;
        }
        (*next..*next + count).for_each(|piece| {
            gate.taken[piece / 64].fetch_and(!(1 << (piece % 64)), SeqCst);
        });
        pieces = *next as u32 + 1;
        *next += count;
    }
    file.from.store(from, SeqCst);
    file.below.store(below, SeqCst);
    file.want.store(0, SeqCst);
    file.passed.store(0, SeqCst);
    file.pieces.store(pieces, SeqCst);
    file.shift.store(shift, SeqCst);
    file.state.store(state::AWAITED, SeqCst);
    file.key.store(key, SeqCst);
    Some(at)
}

/// A piece of the file at `place` was read, or has nothing that is awaited. True: somebody is to be woken.
pub(super) fn took_piece(gate: &Gate, place: usize, piece: u64) -> bool {
    let file = &gate.files[place % PLACES];
    if let Some(first) = (file.pieces.load(SeqCst) as usize).checked_sub(1) {
        let piece = first + piece as usize;
        gate.taken[piece / 64 % gate.taken.len()].fetch_or(1 << (piece % 64), SeqCst);
    }
    // First: who looked before and waits now finds another turn, or is seen to wait.
    file.turn.fetch_add(1, SeqCst);
    file.state.fetch_and(!state::WANTED, SeqCst) & state::WANTED != 0
}

/// All of the file at `place` was read. True: somebody is to be woken.
pub(super) fn took(gate: &Gate, place: usize) -> bool {
    let file = &gate.files[place % PLACES];
    file.turn.fetch_add(1, SeqCst);
    file.state.swap(0, SeqCst) & state::WANTED != 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::changes::Table;
    use holo_track::awaited::{find, look};
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::{AtomicU8, AtomicUsize};

    const PIECE: u64 = 1 << PIECE_SHIFT;

    fn table() -> (tempfile::TempDir, Table, u64) {
        let dir = tempfile::tempdir().unwrap();
        let table = Table::create(&dir.path().join("t"), &[dir.path().to_owned()]).unwrap();
        let device = dir.path().metadata().unwrap().dev();
        (dir, table, device)
    }

    #[test]
    fn a_writer_waits_for_its_own_pieces_only() {
        let (_dir, table, device) = table();
        let (gate, mut next) = (&table.table().gate, 0);
        let key = key(table.table(), device, 7).unwrap();
        let place = enter(gate, key, (100, 5 * PIECE), Some(&mut next)).unwrap();
        assert!(look(gate, key + 1, 0, u64::MAX).is_none(), "another file");
        assert!(look(gate, key, 0, 100).is_none() && look(gate, key, 5 * PIECE, u64::MAX).is_none());
        assert_eq!(gate.files[place].passed.load(SeqCst), 1);
        assert!(look(gate, key, 2 * PIECE, 2 * PIECE + 1).is_some());
        assert_eq!(gate.files[place].want.load(SeqCst), 2);
        assert!(took_piece(gate, place, 2), "somebody waits");
        assert!(!took_piece(gate, place, 3), "nobody does");
        assert!(look(gate, key, 2 * PIECE, 4 * PIECE).is_none());
        assert!(look(gate, key, 2 * PIECE, 4 * PIECE + 1).is_some());
        assert_eq!(gate.files[place].want.load(SeqCst), 4);
        assert!(took(gate, place));
        assert!(look(gate, key, 0, u64::MAX).is_none());
    }

    #[test]
    fn a_table_that_is_full_refuses() {
        let (_dir, table, device) = table();
        let gate = &table.table().gate;
        let keys = (1..=PLACES as u64).map(|ino| key(table.table(), device, ino).unwrap());
        let entered: Vec<u64> = keys.filter(|key| enter(gate, *key, (0, 1), None).is_some()).collect();
        assert!(entered.len() > PLACES / 4 * 3);
        assert!(entered.iter().all(|key| find(gate, *key).is_some()));
        let (_dir, table, device) = self::table();
        let key = key(table.table(), device, 1).unwrap();
        let mut next = PIECES_MAX - 4;
        assert_eq!(enter(&table.table().gate, key, (0, 4 * PIECE), Some(&mut next)), None);
        let huge = enter(&table.table().gate, key, (0, 1 << 50), Some(&mut 0)).unwrap();
        assert!(table.table().gate.files[huge].shift.load(SeqCst) > PIECE_SHIFT);
    }

    /// Writers that look before each write never change what was not read, whoever reads in which order.
    #[test]
    fn what_is_read_is_what_was_there() {
        const PIECES: usize = 8;
        let (_dir, table, device) = table();
        for round in 0..300u64 {
            let (gate, mut next) = (&table.table().gate, 0);
            let key = key(table.table(), device, round + 1).unwrap();
            let in_pieces = round % 2 == 0;
            let range = (0, PIECES as u64 * PIECE);
            let place = enter(gate, key, range, in_pieces.then_some(&mut next)).unwrap();
            let cells: [AtomicU8; PIECES] = Default::default();
            let writes = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for writer in 0..3usize {
                    let (cells, writes) = (&cells, &writes);
                    scope.spawn(move || {
                        for step in 0..PIECES {
                            let piece = (step * 3 + writer) % PIECES;
                            let at = piece as u64 * PIECE;
                            while look(gate, key, at, at + 1).is_some() {
                                std::thread::yield_now();
                            }
                            cells[piece].store(1, SeqCst);
                            writes.fetch_add(1, SeqCst);
                        }
                    });
                }
                let mut left: Vec<usize> = (0..PIECES).collect();
                while !left.is_empty() {
                    let wanted = gate.files[place].want.load(SeqCst) as usize;
                    let at = left.iter().position(|piece| *piece == wanted).unwrap_or_default();
                    let piece = left.swap_remove(at);
                    assert_eq!(
                        cells[piece].load(SeqCst),
                        0,
                        "piece {piece} was read before it was written to"
                    );
                    if in_pieces {
                        took_piece(gate, place, piece as u64);
                    }
                }
                took(gate, place);
            });
            assert_eq!(writes.load(SeqCst), 3 * PIECES);
            gate.files[place].key.store(0, SeqCst);
        }
    }
}

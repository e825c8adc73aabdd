//! The tables of a draft: inodes take the places of those before, edits go into the lists of entries.

use std::collections::HashMap;

use super::{Draft, is_below};
use crate::follow::Followed;
use crate::tree::{Inode, Kind};

impl<C> Draft<C> {
    /// Puts inodes in the place of those of the same number, or behind all others; where they are.
    pub(super) fn take_in(&mut self, inodes: Vec<Inode>) -> Vec<u32> {
        let mut places = Vec::with_capacity(inodes.len());
        for inode in inodes {
            let key = (inode.identity.dev, inode.identity.ino);
            let at = *self.index.entry(key).or_insert(self.tree.inodes.len() as u32);
            match self.tree.inodes.get_mut(at as usize) {
                Some(known) => {
                    let before = std::mem::replace(known, inode);
                    self.old.entry(at).or_insert(Some(before));
                }
                None => {
                    self.tree.inodes.push(inode);
                    self.old.insert(at, None);
                }
            }
            places.push(at);
        }
        places
    }

    /// Puts the edits into the lists of entries; were there any?
    pub(super) fn merge(&mut self) -> bool {
        let mut is_edited = false;
        for (root, edits) in self.tree.roots.iter_mut().zip(&mut self.edits) {
            if edits.is_empty() {
                continue;
            }
            is_edited = true;
            let known = std::mem::take(&mut root.entries);
            let mut rest = known.into_iter();
            for (top, entries) in std::mem::take(edits) {
                let before = rest.as_slice().partition_point(|entry| entry.path < top);
                root.entries.extend(rest.by_ref().take(before));
                let below = rest.as_slice().partition_point(|entry| is_below(&entry.path, &top));
                rest.by_ref().take(below).for_each(drop);
                root.entries.extend(entries);
            }
            root.entries.extend(rest);
        }
        is_edited
    }

    /// Drops inodes without names; the last ones take their places.
    pub(super) fn compact(&mut self, followed: &Followed) {
        let mut named = vec![false; self.tree.inodes.len()];
        for entry in self.tree.roots.iter().flat_map(|root| &root.entries) {
            named[entry.inode as usize] = true;
        }
        let left = named.iter().filter(|named| **named).count();
        if left == named.len() {
            return;
        }
        for (at, _) in named.iter().enumerate().filter(|(_, named)| !**named) {
            let inode = &self.tree.inodes[at];
            let key = (inode.identity.dev, inode.identity.ino);
            if self.index.get(&key) == Some(&(at as u32)) {
                self.index.remove(&key);
                if inode.kind == Kind::Dir
                    && let Some(watch) = followed.watch()
                {
                    watch.remove(key);
                }
            }
            self.contents.remove(&(at as u32));
            self.old.remove(&(at as u32));
            self.names.remove(&(at as u32));
        }
        let holes = (0..left).filter(|at| !named[*at]);
        let movers = (left..named.len()).filter(|at| named[*at]);
        let moves: HashMap<u32, u32> = movers.map(|at| at as u32).zip(holes.map(|at| at as u32)).collect();
        for (from, to) in &moves {
            self.tree.inodes.swap(*from as usize, *to as usize);
            let inode = &self.tree.inodes[*to as usize];
            self.index.insert((inode.identity.dev, inode.identity.ino), *to);
            if let Some(content) = self.contents.remove(from) {
                self.contents.insert(*to, content);
            }
            if let Some(old) = self.old.remove(from) {
                self.old.insert(*to, old);
            }
            if let Some(name) = self.names.remove(from) {
                self.names.insert(*to, name);
            }
        }
        self.tree.inodes.truncate(left);
        for entry in self.tree.roots.iter_mut().flat_map(|root| &mut root.entries) {
            if entry.inode as usize >= left
                && let Some(to) = moves.get(&entry.inode)
            {
                entry.inode = *to;
            }
        }
    }
}

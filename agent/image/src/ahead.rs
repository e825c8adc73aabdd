//! Pages that are stored before the epoch is sealed that will have them: told to who brings them to other stores early, and taken there.

use crate::{
    app::AppStore,
    error::{Error, Result},
    key::{Page, PageKey, name_all},
    manifest::check_count,
    pages::Wanted,
    state::State,
};

/// Told at once.
pub(crate) const TOLD_PAGES: usize = if cfg!(test) { 4 } else { 1024 };

/// What was written since an epoch was sealed, in the order of its coming.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// The place of what comes next. Places are not given twice.
    end: u64,
    /// Place of the first, and slots.
    parts: Vec<(u64, Vec<u32>)>,
}

impl Told {
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    pub(crate) fn tell(&mut self, slots: Vec<u32>) {
        if slots.is_empty() {
            return;
        }
        let first = self.end;
        self.end += slots.len() as u64;
        self.parts.push((first, slots));
    }

    /// What came from this place on was given up.
    pub(crate) fn forget(&mut self, from: u64) {
        self.parts.retain(|(first, _)| *first < from);
    }

    /// Places and slots.
    fn since(&self, from: u64) -> impl Iterator<Item = (u64, u32)> {
        let known = self.parts.partition_point(|(first, slots)| first + slots.len() as u64 <= from);
        let all = self.parts[known..].iter().flat_map(|(first, slots)| (*first..).zip(slots.iter().copied()));
        all.skip_while(move |(place, _)| *place < from)
    }
}

impl State {
    /// Gives up what was received for an epoch that has not come.
    pub(crate) fn drop_orphans(&mut self) {
        for (_, slot) in std::mem::take(&mut self.orphans) {
            self.slots.release(slot);
        }
    }
}

impl AppStore {
    /// Names of pages that were stored since an epoch was sealed, up to `max` of them from a place on, and the place behind. What is
    /// told may be given up again, and is then not found.
    pub fn ahead(&self, from: u64, max: usize) -> (Vec<PageKey>, u64) {
        let state = self.inner.state();
        let (mut keys, mut end) = (Vec::new(), from);
        for (place, slot) in state.told.since(from).take(max) {
            end = place + 1;
            keys.extend(state.slots.page_at(slot));
        }
        (keys, end)
    }

    /// Reads pages that are stored, in epochs or for the next one, and verifies them.
    pub fn read_stored(&self, pages: &mut [(PageKey, &mut Page)]) -> Result<()> {
        let mut wanted = Vec::with_capacity(pages.len());
        let state = self.inner.state();
        for (key, into) in pages {
            match state.slots.find(*key) {
                Some(slot) => wanted.push(Wanted { slot, key: *key, into }),
                None => return Err(Error::UnknownPage { key: *key }),
            }
        }
        drop(state);
        self.inner.files.read(wanted)
    }

    /// Those of these pages that the store has not. What it received of another run of the application is given up.
    pub fn lacking(&self, run: u64, keys: &[PageKey]) -> Vec<PageKey> {
        let mut state = self.inner.state();
        if state.orphans_of != run {
            state.drop_orphans();
            state.orphans_of = run;
        }
        keys.iter().copied().filter(|key| !key.is_zero() && state.slots.find(*key).is_none()).collect()
    }

    /// Gives up what was received for an epoch that will not come.
    pub fn forget_received(&self) {
        let mut state = self.inner.state();
        if !state.orphans.is_empty() && !state.gone {
            state.drop_orphans();
            self.give_back(&mut state);
        }
    }

    /// Takes pages of an epoch to come: [`AppStore::begin_import`] finds them, and gives up those that its epoch does not have.
    pub fn put_ahead(&self, pages: &[(PageKey, Page)]) -> Result<()> {
        let mut names = vec![PageKey::ZERO; pages.len()];
        name_all(&pages.iter().map(|(_, page)| page).collect::<Vec<_>>(), &mut names);
        if let Some(((key, _), _)) = pages.iter().zip(names).find(|((key, _), name)| name != key) {
            return Err(Error::WrongPage { key: *key });
        }
        let known = self.inner.state().orphans.len();
        check_count((known + pages.len()) as u64)?;
        let mut draft = self.inner.begin(self.newest_number() + 1)?;
        for (key, page) in pages {
            draft.put(*key, page)?;
        }
        draft.flush()?;
        draft.orphan();
        Ok(())
    }
}

//! Which extended attributes are replicated, and what their values must be: those of users and of root, access lists,
//! capabilities.

use crate::tree::{Kind, Xattr};

/// Who may use a file, beside owner, group and others (`acl(5)`).
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";
/// What new entries of a directory get as that.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";
/// What a program may do that only root may (`capabilities(7)`).
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

/// What root alone sees and sets, of any kind of file.
const TRUSTED: &[u8] = b"trusted.";

/// Bytes of a name (`XATTR_NAME_MAX`) and of a value, the kernel's own bounds.
const NAME_BYTES_MAX: usize = 255;
pub(crate) const VALUE_BYTES_MAX: usize = 1 << 16;

/// Tags of entries of an access list: owner, a user, the group, a group, mask, others.
const TAGS: [u16; 6] = [1, 2, TAG_GROUP, 8, 16, 32];
const TAG_GROUP: u16 = 4;

/// Whether it is what any user may set, who may write to the file.
pub(crate) fn is_plain(name: &[u8]) -> bool {
    name.starts_with(b"user.")
}

/// Whether it is captured and applied.
pub(crate) fn is_replicated(name: &[u8]) -> bool {
    is_plain(name) || name.starts_with(TRUSTED) || [ACCESS, DEFAULT, CAPABILITY].contains(&name)
}

/// Whether it is set after owner and mode: a change of owner takes capabilities away, one of the mode changes the list.
pub(crate) fn comes_last(name: &[u8]) -> bool {
    name == ACCESS || name == CAPABILITY
}

/// What is wrong with an attribute of an inode of this kind.
pub(crate) fn rules(kind: &Kind, xattr: &Xattr) -> Result<(), &'static str> {
    let Xattr { name, value } = xattr;
    if name.len() > NAME_BYTES_MAX || name.contains(&0) || value.len() > VALUE_BYTES_MAX {
        return Err("attribute is too long");
    }
    let good = match name.as_slice() {
        ACCESS => !matches!(kind, Kind::Symlink { .. } | Kind::Left) && is_list(value),
        DEFAULT => *kind == Kind::Dir && is_list(value),
        CAPABILITY => matches!(kind, Kind::File { .. }) && is_capability(value),
        name if name.starts_with(TRUSTED) => *kind != Kind::Left && name.len() > TRUSTED.len(),
        // Of other kinds the kernel refuses them, since mode bits say something else there.
        name => {
            let is_named = name.strip_prefix(b"user.").is_some_and(|rest| !rest.is_empty());
            is_named && matches!(kind, Kind::File { .. } | Kind::Dir)
        }
    };
    if good { Ok(()) } else { Err("attribute is none that is replicated, or has a bad value") }
}

/// Tag and permissions of each entry; `None` if it is no access list.
fn entries(list: &[u8]) -> Option<impl Iterator<Item = (u16, u16)>> {
    let entries = list.strip_prefix(&2u32.to_le_bytes())?;
    let entries = (!entries.is_empty() && entries.len() % 8 == 0).then(|| entries.chunks_exact(8))?;
    Some(entries.map(|e| (u16::from_le_bytes([e[0], e[1]]), u16::from_le_bytes([e[2], e[3]]))))
}

/// Whether it is an access list. What the kernel has to say about the order of entries, it says when it is set.
fn is_list(value: &[u8]) -> bool {
    entries(value).is_some_and(|mut all| all.all(|(tag, perm)| TAGS.contains(&tag) && perm <= 7))
}

/// Whether it is a set of capabilities of one of the versions that there are.
fn is_capability(value: &[u8]) -> bool {
    matches!((value.get(3), value.len()), (Some(1), 12) | (Some(2), 20) | (Some(3), 24))
}

/// `mode` for a file that has no access list yet. The mode's bits of the group are the list's mask: alone they would give the
/// group what only some of the list may do.
pub(crate) fn mode_without(list: &[u8], mode: u32) -> u32 {
    let group = entries(list).and_then(|mut all| all.find(|(tag, _)| *tag == TAG_GROUP));
    let group = group.map_or(0, |(_, perm)| u32::from(perm) << 3);
    mode & (!0o070 | group)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: what is hostile or of another kind of file is refused, what kernels say is not. Method: one value each.
    #[test]
    fn only_what_kernels_say_passes() {
        let list: Vec<u8> = [2u32.to_le_bytes().to_vec(), vec![1, 0, 7, 0, 255, 255, 255, 255]].concat();
        let capability = [vec![0, 0, 0, 2], vec![0; 16]].concat();
        let file = Kind::File { size: 0, data: Vec::new() };
        let link = Kind::Symlink { target: b"t".to_vec() };
        let changed = |at: usize, byte: u8| {
            let mut list = list.clone();
            list[at] = byte;
            list
        };
        let cases: [(&Kind, &[u8], Vec<u8>, bool); 24] = [
            (&file, ACCESS, list.clone(), true),
            (&Kind::Fifo, ACCESS, list.clone(), true),
            (&Kind::Dir, DEFAULT, list.clone(), true),
            (&file, CAPABILITY, capability.clone(), true),
            (&file, b"user.x", vec![0; VALUE_BYTES_MAX], true),
            (&file, DEFAULT, list.clone(), false),
            (&link, ACCESS, list.clone(), false),
            (&Kind::Dir, CAPABILITY, capability.clone(), false),
            (&file, CAPABILITY, capability[1..].to_vec(), false),
            (&file, ACCESS, Vec::new(), false),
            (&file, ACCESS, list[..4].to_vec(), false),
            (&file, ACCESS, list[..11].to_vec(), false),
            (&file, ACCESS, changed(0, 3), false),
            (&file, ACCESS, changed(4, 3), false),
            (&file, ACCESS, changed(6, 8), false),
            (&file, b"user.x", vec![0; VALUE_BYTES_MAX + 1], false),
            (&file, b"user.", vec![], false),
            (&Kind::Dir, b"user.x", vec![], true),
            (&link, b"user.x", vec![], false),
            (&link, b"trusted.x", vec![0; VALUE_BYTES_MAX], true),
            (&file, b"trusted.x", vec![0; VALUE_BYTES_MAX + 1], false),
            (&file, b"trusted.", vec![], false),
            (&Kind::Left, b"trusted.x", vec![], false),
            (&file, b"security.selinux", vec![], false),
        ];
        for (kind, name, value, good) in cases {
            let xattr = Xattr { name: name.to_vec(), value };
            assert_eq!(rules(kind, &xattr).is_ok(), good, "{kind:?} {xattr:?}");
        }
    }

    // Goal: where a list cannot be set the group gets no more than the list gave it.
    #[test]
    fn a_mask_alone_gives_the_group_nothing() {
        let entry = |tag: u8, perm: u8| vec![tag, 0, perm, 0, 255, 255, 255, 255];
        let list = [vec![2, 0, 0, 0], entry(1, 6), entry(4, 4), entry(16, 7), entry(32, 0)].concat();
        assert_eq!(mode_without(&list, 0o2670), 0o2640);
        assert_eq!(mode_without(&list[..12], 0o670), 0o600);
    }
}

//! Attributes: owner, attributes in `user.`, mode, times, in the order in which they do not undo each other.

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat};

use super::{Applier, Place, Refused};
use crate::access::{is, times};
use crate::capture::ContentSource;
use crate::error::failed;
use crate::tree::{Inode, Kind, Time};

impl<S: ContentSource> Applier<'_, S> {
    /// Sets what differs.
    pub(super) fn metadata(&mut self, place: Place<'_>, inode: &Inode) -> Result<(), Refused> {
        let Place { dir, name, .. } = place;
        let look = || dir.stat(name).map_err(place.refused("look at"));
        let stat = look()?;
        let link = is(&stat, SFlag::S_IFLNK);
        let change_mode = |mode: u32| {
            let mode = Mode::from_bits_truncate(mode);
            fchmodat(dir, name, mode, FchmodatFlags::NoFollowSymlink).map_err(place.refused("set mode of"))
        };
        self.xattrs(place, inode, stat.st_mode, &change_mode)?;
        if (stat.st_uid, stat.st_gid) != (inode.uid, inode.gid) {
            self.owner(place, inode, (stat.st_uid, stat.st_gid));
        }
        // A change of owner may have cleared the set-id bits.
        if !link && look()?.st_mode & 0o7777 != inode.mode {
            change_mode(inode.mode)?;
        }
        let (atime, mtime, _) = times(&look()?);
        if (atime, mtime) != (inode.atime, inode.mtime) {
            let spec = |time: Time| TimeSpec::new(time.seconds, i64::from(time.nanos));
            let (atime, mtime) = (spec(inode.atime), spec(inode.mtime));
            match utimensat(dir, name, &atime, &mtime, UtimensatFlags::NoFollowSymlink) {
                // Only the owner may. A file of somebody else that was only read has another time of access since.
                Err(cause @ Errno::EPERM) => self.remarks.add(place.full, failed("times", cause)),
                done => done.map_err(place.refused("set times of"))?,
            }
        }
        Ok(())
    }

    /// Owner and group, each for itself: a user may set a group that it is in.
    fn owner(&mut self, place: Place<'_>, inode: &Inode, now: (u32, u32)) {
        let change = |uid, gid| fchownat(place.dir, place.name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW);
        let wanted = [
            (now.0 != inode.uid).then(|| change(Some(Uid::from_raw(inode.uid)), None)),
            (now.1 != inode.gid).then(|| change(None, Some(Gid::from_raw(inode.gid)))),
        ];
        for cause in wanted.into_iter().flatten().filter_map(Result::err) {
            let what = format!("owner {}:{}", inode.uid, inode.gid);
            self.remarks.add(place.full, failed(&what, cause));
        }
    }

    fn xattrs(
        &mut self,
        place: Place<'_>,
        inode: &Inode,
        mode: u32,
        change_mode: &dyn Fn(u32) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        if !matches!(inode.kind, Kind::File { .. } | Kind::Dir) {
            return Ok(());
        }
        let found = match place.dir.xattrs(place.name) {
            Err(Errno::EACCES) => {
                change_mode(mode & 0o7777 | 0o600)?;
                place.dir.xattrs(place.name)
            }
            other => other,
        }
        .map_err(place.refused("read attributes of"))?;
        if found == inode.xattrs {
            return Ok(());
        }
        // An attribute takes the right to write, which the mode may deny even to the owner.
        if mode & 0o600 != 0o600 {
            change_mode(mode & 0o7777 | 0o600)?;
        }
        for xattr in found.iter().filter(|old| inode.xattrs.iter().all(|new| new.name != old.name)) {
            let removed = place.dir.remove_xattr(place.name, &xattr.name);
            removed.map_err(place.refused("remove attribute of"))?;
        }
        for xattr in inode.xattrs.iter().filter(|new| !found.contains(new)) {
            if let Err(cause) = place.dir.set_xattr(place.name, xattr) {
                let key = String::from_utf8_lossy(&xattr.name);
                self.errors.add(place.full, failed(&format!("set attribute {key}"), cause));
            }
        }
        Ok(())
    }
}

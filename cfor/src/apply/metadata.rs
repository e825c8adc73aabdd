//! Attributes: those in `user.`, owner, mode, access lists, capabilities, times, flags, in the order in which they do not undo each other.

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat};

use super::{Applier, Place, Refused};
use crate::access::{is, times};
use crate::attributes::{ACCESS, comes_last, is_plain, mode_without};
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
        if !link {
            self.rights(place, inode, &change_mode)?;
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
        self.flags(place, &stat, inode);
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

    /// Attributes that are set before the owner is, and removing those that do not belong.
    fn xattrs(
        &mut self,
        place: Place<'_>,
        inode: &Inode,
        mode: u32,
        change_mode: &dyn Fn(u32) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        if inode.kind == Kind::Left {
            return Ok(());
        }
        let mut unread = Vec::new();
        let mut find = || {
            unread.clear();
            place.dir.xattrs(place.name, &mut |key, cause| unread.push((key.to_vec(), cause)))
        };
        let found = match find() {
            Err(Errno::EACCES) => {
                change_mode(mode & 0o7777 | 0o600)?;
                find()
            }
            other => other,
        }
        .map_err(place.refused("read attributes of"))?;
        for (key, cause) in unread {
            self.remark(place, "read", &key, cause);
        }
        if found == inode.xattrs {
            return Ok(());
        }
        let old = found.iter().filter(|old| inode.xattrs.iter().all(|new| new.name != old.name));
        let new = inode.xattrs.iter().filter(|new| !comes_last(&new.name) && !found.contains(new));
        // An attribute takes the right to write, which the mode may deny even to the owner.
        let is_written = old.clone().chain(new.clone()).any(|xattr| is_plain(&xattr.name));
        if is_written && mode & 0o600 != 0o600 {
            change_mode(mode & 0o7777 | 0o600)?;
        }
        for xattr in old {
            if xattr.name == ACCESS {
                // Without the list its mask would be what the group may do. Where it fails, the next step says why.
                let _ = change_mode(mode & 0o7707 | 0o600);
            }
            match place.dir.remove_xattr(place.name, &xattr.name) {
                Err(cause) if is_plain(&xattr.name) => Err(place.refused("remove attribute of")(cause))?,
                Err(cause) => self.remark(place, "remove", &xattr.name, cause),
                Ok(()) => (),
            }
        }
        for xattr in new {
            match place.dir.set_xattr(place.name, xattr) {
                Err(cause) if is_plain(&xattr.name) => {
                    let key = String::from_utf8_lossy(&xattr.name);
                    self.errors.add(place.full, failed(&format!("set attribute {key}"), cause));
                }
                Err(cause) => self.remark(place, "set", &xattr.name, cause),
                Ok(()) => (),
            }
        }
        Ok(())
    }

    /// Mode, access list and capabilities. A change of owner may have cleared set-id bits and capabilities.
    fn rights(
        &mut self,
        place: Place<'_>,
        inode: &Inode,
        change_mode: &dyn Fn(u32) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let now = place.dir.stat(place.name).map_err(place.refused("look at"))?.st_mode & 0o7777;
        let list = inode.xattrs.iter().find(|xattr| xattr.name == ACCESS);
        // Setting the list sets the mode's bits, its mask for the group's: not before, since chmod changes the list.
        let alone = list.map_or(inode.mode, |list| mode_without(&list.value, inode.mode));
        if now != inode.mode {
            change_mode(alone)?;
        }
        for xattr in inode.xattrs.iter().filter(|xattr| comes_last(&xattr.name)) {
            if place.dir.xattr(place.name, &xattr.name).ok().flatten().as_ref() == Some(&xattr.value) {
                continue;
            }
            if let Err(cause) = place.dir.set_xattr(place.name, xattr) {
                self.remark(place, "set", &xattr.name, cause);
                if xattr.name == ACCESS && now == inode.mode {
                    // It had the mask already. Who may not change this has just been told so.
                    let _ = change_mode(alone);
                }
            }
        }
        Ok(())
    }

    /// Says what could not be done with an attribute that only some may set, on some file systems.
    fn remark(&mut self, place: Place<'_>, what: &str, key: &[u8], cause: Errno) {
        let what = format!("{what} attribute {}", String::from_utf8_lossy(key));
        self.remarks.add(place.full, failed(&what, cause));
    }
}

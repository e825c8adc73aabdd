//! Who made a unix connection (`SO_PEERCRED`): the kernel notes process and user of who connected, listened, or made a pair.

use super::open::Open;
use super::senders::{CONTROL_AT, CREDENTIALS_BYTES, HEAD_AT, Sender, words};
use crate::grow::{child_with, end};
use crate::manager::{Context, DumpCx, RmError, RmResult};
use crate::remote::{Remote, call, outcome};
use crate::tree::is_nested;
use holo_abi::sysno;
use serde::{Deserialize, Serialize};
use std::io;

/// Who made a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Maker {
    /// Its place in the tree; none: it has ended, or is outside.
    pub(crate) place: Option<u32>,
    /// Process and user, as they were then.
    pub(crate) who: Sender,
}

/// Who made the other side of a unix connection.
pub(crate) fn peer_maker(open: &Open, cx: &DumpCx) -> io::Result<Option<Maker>> {
    let Some(who) = super::sockets::peer_maker(open) else { return Ok(None) };
    let place = cx.place(who.pid);
    if place.is_some() || !is_nested(cx.remote.pid) {
        return Ok(Some(Maker { place, who }));
    }
    if open.number < 0 {
        return Ok(None);
    }
    let (remote, page) = (cx.remote, &cx.remote.page);
    let (at, bytes_at) =
        (page.scratch_address(CONTROL_AT), page.put(HEAD_AT, &words(&[CREDENTIALS_BYTES as u64])));
    let (level, name) = (libc::SOL_SOCKET as u64, libc::SO_PEERCRED as u64);
    remote.call(sysno::getsockopt, &[open.number as u64, level, name, at, bytes_at])?;
    Ok(Sender::parse(&page.take(CONTROL_AT, CREDENTIALS_BYTES)).map(|who| Maker { place: None, who }))
}

/// The makers of a connection: processes of the clone as the users that they were, and for those that have ended others that are
/// there for a moment, with their numbers.
pub(crate) struct Makers<'a> {
    parent: Option<&'a Remote>,
    moments: Vec<(i32, Remote)>,
    /// Processes of the clone, and the users and groups that they were.
    turned: Vec<(&'a Remote, [u64; 2])>,
    /// Why one could not be made.
    pub(crate) failed: Option<RmError>,
}

impl<'a> Makers<'a> {
    /// Those of `makers`; `parent` stands for all that are unknown.
    pub(crate) fn of(makers: &[Option<Maker>], tree: &'a [Remote], parent: Option<&'a Remote>) -> Self {
        let mut all = Self { parent, moments: Vec::new(), turned: Vec::new(), failed: None };
        for maker in makers.iter().flatten() {
            match (maker.place, parent) {
                (Some(place), _) => {
                    let Some(remote) = tree.get(place as usize) else { continue };
                    if all.turned.iter().all(|(known, _)| known.pid != remote.pid) {
                        all.turned.extend(become_user(remote, maker.who).map(|before| (remote, before)));
                    }
                }
                (None, Some(parent)) if all.moment(maker.who.pid).is_none() => {
                    match child_with(parent, maker.who.pid) {
                        Ok(child) => {
                            become_user(&child, maker.who);
                            all.moments.push((maker.who.pid, child));
                        }
                        Err(cause) => all.failed = Some(cause),
                    }
                }
                _ => {}
            }
        }
        all
    }

    fn moment(&self, pid: i32) -> Option<&Remote> {
        self.moments.iter().find(|(known, _)| *known == pid).map(|(_, child)| child)
    }

    /// Who makes what this one made.
    pub(crate) fn hands(&self, maker: Option<Maker>, tree: &'a [Remote]) -> Option<&Remote> {
        let found = maker.and_then(|maker| match maker.place {
            Some(place) => tree.get(place as usize),
            None => self.moment(maker.who.pid),
        });
        found.or(self.parent)
    }

    /// All is as before.
    pub(crate) fn end(self) -> RmResult<()> {
        let keep = u64::from(u32::MAX);
        for (remote, [uid, gid]) in &self.turned {
            let mut back =
                [call(sysno::setresuid, &[keep, *uid, keep]), call(sysno::setresgid, &[keep, *gid, keep])];
            remote.run_all(&mut back).on("becoming", format!("user {uid} again"))?;
        }
        self.moments.iter().try_for_each(|(pid, child)| end(child, self.parent.map(|parent| (parent, *pid))))
    }
}

/// Becomes another user to those whom it connects to, with all rights to files kept; user and group before, if they differ.
///
/// A user that cannot be had stays what it is.
fn become_user(remote: &Remote, who: Sender) -> Option<[u64; 2]> {
    let mut now = [call(sysno::geteuid, &[]), call(sysno::getegid, &[])];
    remote.run(&mut now, false).ok()?;
    let [uid, gid] = [outcome(&now[0]).ok()?, outcome(&now[1]).ok()?];
    let keep = u64::from(u32::MAX);
    if [uid, gid] == [who.uid, who.gid].map(u64::from) {
        return None;
    }
    let mut turn = [
        call(sysno::setresgid, &[keep, u64::from(who.gid), keep]),
        call(sysno::setresuid, &[keep, u64::from(who.uid), keep]),
        call(sysno::setfsuid, &[uid]),
        call(sysno::setfsgid, &[gid]),
    ];
    remote.run(&mut turn, false).ok()?;
    Some([uid, gid])
}

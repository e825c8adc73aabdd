#![allow(clippy::unwrap_used)]
use super::*;
use nix::poll::{PollFd, PollFlags, poll};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use std::thread::sleep;

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("holo-events-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn name(path: &Path) -> Vec<u8> {
    path.as_os_str().as_encoded_bytes().to_vec()
}

/// Waits as the application's watcher does: is an epoch due before long?
fn is_due(events: &mut Events) -> bool {
    let until = Instant::now() + GAP + SETTLE * 5;
    while Instant::now() < until {
        let left = until.saturating_duration_since(Instant::now());
        let ms = events.wait().map_or(left, |wait| wait.min(left)).as_millis() as u16 + 1;
        let mut polls: Vec<_> =
            events.fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).into_iter().collect();
        poll(&mut polls, ms).unwrap();
        if events.is_due() {
            events.begin();
            events.end(true);
            return true;
        }
    }
    false
}

// Goal: what is done to the file makes an epoch due, once; what is done to others, or by looking at it, does not.
#[test]
fn changes_of_the_file_count() {
    let dir = scratch("file");
    let (file, other) = (dir.join("save"), dir.join("other"));
    let mut events = Events::new(&[name(&file)]);
    assert_eq!(events.unwatched(), Vec::<String>::new());
    fs::write(&other, b"1").unwrap();
    assert!(!is_due(&mut events), "another file was made");
    let touch = || assert!(Command::new("touch").arg(&file).status().unwrap().success());
    let changes: [(&str, &dyn Fn()); 8] = [
        ("made", &|| fs::write(&file, b"1").unwrap()),
        ("written", &|| fs::write(&file, b"2").unwrap()),
        ("touched", &touch),
        ("other rights", &|| fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap()),
        ("replaced", &|| fs::rename(&other, &file).unwrap()),
        ("replaced again", &|| fs::write(&other, b"3").and_then(|()| fs::rename(&other, &file)).unwrap()),
        ("linked", &|| {
            fs::rename(&file, &other).unwrap();
            fs::hard_link(&other, &file).unwrap();
        }),
        ("made a link", &|| fs::remove_file(&file).and_then(|()| symlink(&other, &file)).unwrap()),
    ];
    for (what, change) in changes {
        change();
        assert!(is_due(&mut events), "{what}");
        assert!(!is_due(&mut events), "{what}: once is enough");
    }
    fs::read(&file).unwrap();
    fs::rename(&file, dir.join("away")).unwrap();
    fs::write(dir.join("savegame"), b"1").unwrap();
    assert!(!is_due(&mut events), "looked at, moved away, a longer name");
    fs::remove_dir_all(&dir).unwrap();
}

// Goal: a change while an epoch is taken, or soon after, is in the next one, which comes no sooner than it may; one that failed is
// tried again.
#[test]
fn no_change_is_lost() {
    let dir = scratch("lost");
    let file = dir.join("save");
    let mut events = Events::new(&[name(&file)]);
    fs::write(&file, b"1").unwrap();
    assert!(is_due(&mut events));
    let ended = Instant::now();
    fs::write(&file, b"2").unwrap();
    assert!(!events.is_due() && events.fd().is_none(), "not yet, and nobody is woken for it");
    assert!(events.wait().is_some_and(|wait| wait <= GAP + SETTLE));
    assert!(is_due(&mut events) && ended.elapsed() >= GAP);
    fs::write(&file, b"3").unwrap();
    sleep(GAP + SETTLE * 2);
    assert!(!events.is_due(), "others may follow");
    sleep(SETTLE * 2);
    assert!(events.is_due());
    events.begin();
    fs::write(&file, b"4").unwrap();
    events.end(true);
    assert!(is_due(&mut events), "changed while it was taken");
    fs::write(&file, b"5").unwrap();
    sleep(GAP + SETTLE);
    assert!(events.follow(&[name(&file), name(&dir.join("more"))]).is_some());
    assert!(is_due(&mut events), "changed before another file was to be watched, too");
    // An epoch for another reason has it, too.
    fs::write(&file, b"6").unwrap();
    assert!(!events.is_due());
    events.begin();
    events.end(false);
    assert!(!is_due(&mut events), "not at once");
    sleep(LOOK);
    assert!(is_due(&mut events), "tried again");
    assert!(events.follow(&[]).is_some() && events.wait().is_none());
    fs::remove_dir_all(&dir).unwrap();
}

// Goal: a directory that comes, goes, or is replaced is watched again, and what it has counts as changed; two files of one
// directory do not take each other's watch along.
#[test]
fn directories_come_and_go() {
    let dir = scratch("dirs");
    let (inner, link) = (dir.join("inner"), dir.join("link"));
    let paths = [name(&inner.join("save")), name(&link.join("save")), name(&dir.join("x"))];
    let mut events = Events::new(&paths);
    assert!(events.unwatched()[0].ends_with("no such directory; make it"), "{:?}", events.unwatched());
    let look = |events: &mut Events| {
        events.looked -= LOOK;
        events.follow(&paths).unwrap()
    };
    fs::create_dir(&inner).unwrap();
    symlink(&inner, &link).unwrap();
    assert_eq!(look(&mut events), Vec::<String>::new());
    assert!(!is_due(&mut events), "there is no file yet");
    // The link leads elsewhere, the directory stays watched by its name.
    fs::create_dir(dir.join("elsewhere")).unwrap();
    fs::remove_file(&link).and_then(|()| symlink(dir.join("elsewhere"), &link)).unwrap();
    assert_eq!(look(&mut events), Vec::<String>::new());
    fs::write(inner.join("save"), b"1").unwrap();
    assert!(is_due(&mut events));
    fs::write(link.join("save"), b"1").unwrap();
    assert!(is_due(&mut events));
    fs::remove_dir_all(&inner).unwrap();
    assert!(!is_due(&mut events), "removed");
    assert_eq!(look(&mut events).len(), 1);
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("save"), b"2").unwrap();
    assert_eq!(look(&mut events), Vec::<String>::new());
    assert!(is_due(&mut events), "made before it was watched");
    fs::write(inner.join("save"), b"3").unwrap();
    assert!(is_due(&mut events));
    // Most file systems give the new one the inode number of the old one.
    fs::remove_dir_all(&inner).and_then(|()| fs::create_dir(&inner)).unwrap();
    assert_eq!(look(&mut events), Vec::<String>::new());
    fs::write(inner.join("save"), b"4").unwrap();
    assert!(is_due(&mut events), "replaced between two looks");
    fs::remove_dir_all(&dir).unwrap();
}

// Goal: what the kernel could not keep counts as a change; whoever fills its queue does not keep us.
#[test]
fn an_overflow_is_a_change() {
    let dir = scratch("overflow");
    let mut events = Events::new(&[name(&dir.join("save"))]);
    let most: usize =
        fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    for number in 0..most + 8 {
        fs::write(dir.join((number % 7).to_string()), b"1").unwrap();
    }
    assert!(is_due(&mut events));
    fs::remove_dir_all(&dir).unwrap();
}

// Goal: what cannot be watched is refused with the reason.
#[test]
fn what_is_no_file_to_watch_is_refused() {
    let long = [b"/".to_vec(), vec![b'x'; 4096]].concat();
    for (paths, said) in [
        (vec![Vec::new()], "no name of a file"),
        (vec![b"/".to_vec()], "no name of a file"),
        (vec![b"/a/..".to_vec()], "no name of a file"),
        (vec![b"/a\0".to_vec()], "no name of a file"),
        (vec![b"a".to_vec()], "not an absolute path"),
        (vec![long], "more than 4095 bytes"),
        (vec![b"/a".to_vec(); 17], "at most 16"),
        (vec![b"/tmp".to_vec()], "is a directory"),
        (vec![b"/no/such/file".to_vec()], "no such directory"),
        (vec![b"/proc/self/stat/x".to_vec()], "ot a directory"),
    ] {
        let failure = check_here(&paths).unwrap_err();
        assert!(failure.message.contains(said), "{failure}");
    }
    let free = std::env::temp_dir().join(format!("holo-no-file-{}", std::process::id()));
    assert!(check_here(&[free.as_os_str().as_bytes().to_vec()]).is_ok() && check_here(&[]).is_ok());
}

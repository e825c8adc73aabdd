//! Differences, for people and in JSON.

use std::io::Write;

use holo_cfor::log::Ranges;
use holo_cfor::{Delta, Touched, What};
use serde::Serialize;

use super::source::Title;
use crate::error::CliError;
use crate::table::{Align, Table};
use crate::{human, json};

/// Ranges that people are shown of one file.
const RANGES_SHOWN_MAX: usize = 3;

#[derive(Debug, Serialize)]
struct Differences<'a> {
    from: &'a Title,
    to: &'a Title,
    complete: bool,
    bytes: u64,
    changes: Vec<Change>,
}

#[derive(Debug, Serialize)]
pub(super) struct Range {
    pub(super) at: u64,
    pub(super) len: u64,
}

/// An element of `changes`.
#[derive(Debug, Serialize)]
pub(super) struct Change {
    #[serde(flatten)]
    path: Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    what: &'static str,
    kind: &'static str,
    size_before: Option<u64>,
    size: Option<u64>,
    bytes: u64,
    /// `null`: anywhere.
    ranges: Option<Vec<Range>>,
    attributes: Vec<&'static str>,
}

/// A path in JSON, which has no place for other bytes than UTF-8.
#[derive(Debug, Serialize)]
pub(super) struct Path {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
}

impl Path {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let hex = || bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { path: text(bytes), path_hex: std::str::from_utf8(bytes).is_err().then(hex) }
    }
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(super) fn word(what: What) -> &'static str {
    match what {
        What::Added => "added",
        What::Removed => "removed",
        What::Renamed => "renamed",
        What::Changed => "changed",
    }
}

impl From<&Delta> for Change {
    fn from(delta: &Delta) -> Self {
        let ranges = match &delta.touched {
            Touched::Ranges(ranges) => {
                Some(ranges.iter().map(|one| Range { at: one.at, len: one.len }).collect())
            }
            Touched::Unknown => None,
        };
        Self {
            path: Path::of(&delta.path),
            from: delta.from.as_deref().map(text),
            what: word(delta.what),
            kind: delta.kind,
            size_before: delta.size_before,
            size: delta.size,
            bytes: delta.bytes(),
            ranges,
            attributes: delta.attributes.iter().map(|one| one.name()).collect(),
        }
    }
}

/// Prints what differs. Not `complete`: something may be missing from the list.
pub(super) fn print(
    from: &Title,
    to: &Title,
    complete: bool,
    deltas: &[Delta],
    as_json: bool,
) -> Result<(), CliError> {
    let bytes = deltas.iter().map(Delta::bytes).sum();
    if as_json {
        let changes = deltas.iter().map(Change::from).collect();
        return json::print(&Differences { from, to, complete, bytes, changes });
    }
    let mut out = std::io::stdout().lock();
    let head = format!("{} changes, {}: {from} -> {to}", deltas.len(), human::bytes(bytes));
    writeln!(out, "{}", human::plain(&head))?;
    if !complete {
        writeln!(out, "not all calls are recorded: where files were written to is not known")?;
    }
    if !deltas.is_empty() {
        write!(out, "{}", table(deltas))?;
    }
    Ok(())
}

fn table(deltas: &[Delta]) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new(&[
        ("WHAT", Left),
        ("KIND", Left),
        ("SIZE", Right),
        ("BYTES", Right),
        ("WHERE", Left),
        ("ATTRIBUTES", Left),
        ("PATH", Left),
    ]);
    for delta in deltas {
        let attributes: Vec<&str> = delta.attributes.iter().map(|one| one.name()).collect();
        let path = match &delta.from {
            Some(from) => format!("{} -> {}", text(from), text(&delta.path)),
            None => text(&delta.path),
        };
        table.row(vec![
            word(delta.what).into(),
            delta.kind.into(),
            size(delta),
            delta.size.map_or_else(|| "-".into(), |_| human::bytes(delta.bytes())),
            places(&delta.touched),
            human::list(&attributes),
            path,
        ]);
    }
    table
}

fn size(delta: &Delta) -> String {
    match (delta.size_before, delta.size) {
        (Some(before), Some(now)) if before != now => format!("{before} -> {now}"),
        (_, Some(size)) | (Some(size), None) => size.to_string(),
        (None, None) => "-".into(),
    }
}

fn places(touched: &Touched) -> String {
    let ranges: &Ranges = match touched {
        Touched::Unknown => return "anywhere".into(),
        Touched::Ranges(ranges) if ranges.is_empty() => return "-".into(),
        Touched::Ranges(ranges) => ranges,
    };
    let shown = ranges.iter().take(RANGES_SHOWN_MAX).map(|one| format!("{}..{}", one.at, one.at + one.len));
    let mut places: Vec<String> = shown.collect();
    if ranges.len() > RANGES_SHOWN_MAX {
        places.push(format!("and {} more", ranges.len() - RANGES_SHOWN_MAX));
    }
    places.join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn delta() -> Delta {
        let mut ranges = Ranges::new();
        (0..5).for_each(|at| ranges.insert(at * 8192, 4096));
        Delta {
            path: b"/d/\xff".to_vec(),
            from: Some(b"/d/old".to_vec()),
            what: What::Renamed,
            kind: "file",
            size_before: Some(10),
            size: Some(40_000),
            touched: Touched::Ranges(ranges),
            attributes: vec![holo_cfor::Attribute::Time, holo_cfor::Attribute::Mode],
        }
    }

    #[test]
    fn json_is_the_contract() {
        let value = serde_json::to_value(Change::from(&delta())).unwrap();
        assert_eq!(value["path_hex"], "2f642fff");
        assert_eq!(value["ranges"][1], serde_json::json!({"at": 8192, "len": 4096}));
        assert_eq!((&value["bytes"], &value["what"]), (&20_480.into(), &"renamed".into()));
        let unknown = Delta { touched: Touched::Unknown, ..delta() };
        let value = serde_json::to_value(Change::from(&unknown)).unwrap();
        assert_eq!((&value["ranges"], &value["bytes"]), (&serde_json::Value::Null, &40_000.into()));
    }

    #[test]
    fn a_line_for_each() {
        let text = table(&[delta()]).to_string();
        let line = text.lines().last().unwrap();
        assert!(
            line.contains("0..4096 8192..12288 16384..20480 and 2 more") && line.contains("time,mode"),
            "{line}"
        );
        assert!(line.contains("10 -> 40000") && line.ends_with("/d/old -> /d/\u{fffd}"), "{line}");
    }
}

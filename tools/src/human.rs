//! Figures for people.

/// Bytes with a binary unit: `0 B`, `1.5 MiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A time of microseconds: `35 us`, `1.2 ms`, `3.4 s`, `2 m 5 s`.
#[must_use]
pub fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => millis(us / 1000),
    }
}

/// A time of milliseconds: `250 ms`, `3.4 s`, `2 m 5 s`, `1 h 2 m`, `3 d 4 h`.
#[must_use]
pub fn millis(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms} ms"),
        1..60 => format!("{:.1} s", (ms / 100) as f64 / 10.0),
        60..3600 => format!("{} m {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} m", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

/// A list in one cell: `-` when empty.
#[must_use]
pub fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "-".to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Text from elsewhere on one line: control characters would move the terminal's cursor or worse.
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(micros(999), "999 us");
        assert_eq!(micros(1_250), "1.2 ms");
        assert_eq!(micros(2_340_000), "2.3 s");
        assert_eq!(millis(0), "0 ms");
        assert_eq!(millis(59_999), "59.9 s");
        assert_eq!(millis(125_000), "2 m 5 s");
        assert_eq!(millis(3_720_000), "1 h 2 m");
        assert_eq!(millis(90_000_000), "1 d 1 h");
        assert_eq!(list::<u32>(&[]), "-");
        assert_eq!(list(&[1, 2]), "1,2");
        assert_eq!(plain("a\x1b[2Jb\n"), "a?[2Jb?");
    }
}

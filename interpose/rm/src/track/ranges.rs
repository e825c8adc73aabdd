//! Sets of pages as rising, disjoint ranges of addresses.

/// First address, and one past the last.
pub type Range = (u64, u64);

/// Puts ranges in order and joins those that touch.
#[must_use]
pub fn normal(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.retain(|(start, end)| start < end);
    ranges.sort_unstable();
    let mut out: Vec<Range> = Vec::with_capacity(ranges.len());
    for (start, end) in ranges {
        match out.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => out.push((start, end)),
        }
    }
    out
}

/// With the gaps that are no longer than `gap`; in normal form before and after.
#[must_use]
pub fn bridged(ranges: &[Range], gap: u64) -> Vec<Range> {
    let mut out: Vec<Range> = Vec::with_capacity(ranges.len());
    for &(start, end) in ranges {
        match out.last_mut() {
            Some(last) if start - last.1 <= gap => last.1 = end,
            _ => out.push((start, end)),
        }
    }
    out
}

/// What is in both; both in normal form.
#[must_use]
pub fn both(one: &[Range], other: &[Range]) -> Vec<Range> {
    let (mut out, mut at) = (Vec::new(), 0);
    for &(start, end) in one {
        while other.get(at).is_some_and(|range| range.1 <= start) {
            at += 1;
        }
        let reaching = other[at..].iter().take_while(|range| range.0 < end);
        out.extend(reaching.map(|range| (range.0.max(start), range.1.min(end))));
    }
    out
}

/// What is in the first alone; both in normal form.
#[must_use]
pub fn without(one: &[Range], other: &[Range]) -> Vec<Range> {
    let (mut out, mut at) = (Vec::new(), 0);
    for &(start, end) in one {
        while other.get(at).is_some_and(|range| range.1 <= start) {
            at += 1;
        }
        let mut from = start;
        for range in other[at..].iter().take_while(|range| range.0 < end) {
            if from < range.0 {
                out.push((from, range.0));
            }
            from = from.max(range.1);
        }
        if from < end {
            out.push((from, end));
        }
    }
    out
}

/// Bytes of a set in normal form.
#[must_use]
pub fn bytes(ranges: &[Range]) -> u64 {
    ranges.iter().map(|(start, end)| end - start).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Goal: the set operations are those of sets. Method: compare with bit sets, for many pseudo-random pairs.
    #[test]
    fn like_bit_sets() {
        let mut seed = 1u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let bits = |ranges: &[Range]| {
            ranges.iter().fold(0u64, |all, (start, end)| (*start..*end).fold(all, |all, bit| all | 1 << bit))
        };
        for _ in 0..2000 {
            let mut set = || {
                let count = random(6);
                normal((0..count).map(|_| (random(60), random(60))).collect())
            };
            let (one, other) = (set(), set());
            assert!(one.windows(2).all(|pair| pair[0].1 < pair[1].0), "{one:?}");
            assert_eq!(bits(&both(&one, &other)), bits(&one) & bits(&other), "{one:?} {other:?}");
            assert_eq!(bits(&without(&one, &other)), bits(&one) & !bits(&other), "{one:?} {other:?}");
            assert_eq!(bytes(&one), u64::from(bits(&one).count_ones()));
            let wide = bridged(&one, 3);
            assert!(without(&one, &wide).is_empty() && wide.windows(2).all(|pair| pair[0].1 + 3 < pair[1].0));
            assert!(without(&wide, &one).iter().all(|(start, end)| end - start <= 3), "{one:?} {wide:?}");
        }
    }
}

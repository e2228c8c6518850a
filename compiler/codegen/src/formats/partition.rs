//! Where row blocks and k-blocks are cut.

use std::ops::Range;

/// Row blocks have at most about this many rows: enough to load x seldom, few enough to share out.
const ROWS: usize = 384;

/// Cuts `cost.len()` strips of `rows_per_strip` rows into ranges of nearly equal cost (in bytes of packed weight),
/// of at most about `max_bytes` each.
pub(super) fn row_blocks(
    cost: &[usize],
    rows_per_strip: usize,
    max_bytes: usize,
) -> Vec<Range<usize>> {
    let total: usize = cost.iter().sum();
    let by_rows = (cost.len() * rows_per_strip).div_ceil(ROWS);
    let by_bytes = total.div_ceil(max_bytes);
    let mut blocks = by_rows.max(by_bytes);
    if blocks > 1 {
        blocks = blocks.next_multiple_of(2);
    }
    let blocks = blocks.clamp(1, cost.len().max(1));
    let mut ranges = Vec::with_capacity(blocks);
    let (mut start, mut sum) = (0, 0usize);
    for block in 0..blocks {
        let goal = (total as u128 * (block as u128 + 1) / blocks as u128) as usize;
        // Every block keeps at least one strip, and leaves one for each that follows.
        let last = cost.len() - (blocks - block - 1);
        let mut end = start;
        while end < last && (end == start || sum + cost[end] / 2 < goal || block + 1 == blocks) {
            sum += cost[end];
            end += 1;
        }
        ranges.push(start..end);
        start = end;
    }
    ranges
}

/// Cuts `k` columns into equal blocks of about `target`, a multiple of 4 wide and at least 4 (if `k` is).
pub(super) fn k_blocks(k: usize, target: usize) -> Vec<Range<usize>> {
    let count = k.div_ceil(target);
    let width = k.div_ceil(count).next_multiple_of(4);
    let mut blocks: Vec<_> = (0..k)
        .step_by(width)
        .map(|k0| k0..(k0 + width).min(k))
        .collect();
    if let [.., before, last] = blocks.as_mut_slice()
        && last.len() < 4
    {
        before.end = last.end;
        blocks.pop();
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_everything() {
        for strips in 1..40 {
            for seed in 0..20usize {
                let cost: Vec<usize> = (0..strips)
                    .map(|i| (i * 7919 + seed * 104_729) % 60_000)
                    .collect();
                let ranges = row_blocks(&cost, 24, 256 << 10);
                assert_eq!(ranges.first().map(|r| r.start), Some(0));
                assert_eq!(ranges.last().map(|r| r.end), Some(strips));
                assert!(ranges.iter().all(|r| !r.is_empty()));
                assert!(ranges.windows(2).all(|w| w[0].end == w[1].start));
            }
        }
        assert_eq!(row_blocks(&[400; 768], 1, 576 << 10).len(), 2);
        for k in (1..700).chain([25_601]) {
            let blocks = k_blocks(k, 192);
            assert_eq!(blocks.iter().map(|b| b.len()).sum::<usize>(), k);
            assert!(blocks.iter().all(|b| b.len() >= 4.min(k) && b.len() <= 195));
        }
    }
}

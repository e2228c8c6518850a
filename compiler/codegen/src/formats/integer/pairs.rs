//! Pairs: any two inputs of one row, in two bins of as many pairs that follow each other.
//!
//! A bin holds a group of positive weights and a group of negative ones, each within the bound. Groups are made by best fit,
//! largest weights first; then groups of both signs are put together whose weights are a whole number of pairs.

use super::bound::{bounded, pieces};
use super::{BOUND, BYTE_ROW};

pub(super) const RECORD_BYTES: usize = 8;
/// Pairs of two bins, by position in `n_bins`.
pub(super) const BINS: [usize; 3] = [6, 4, 2];
/// Weights of the largest bin.
const LARGEST: usize = BINS[0];

#[derive(Clone, Copy, Debug)]
struct Weight {
    /// Column in the k-block.
    at: usize,
    w: i8,
}

/// Weights of one bin, or of one sign in it.
type Group = Vec<Weight>;

/// Numbers of double bins and the records of a row of one k-block.
pub(super) fn row(w: &[i16]) -> ([usize; 4], Vec<u8>) {
    let mut weights = Vec::new();
    for (at, &w) in w.iter().enumerate().filter(|(_, w)| **w != 0) {
        pieces([w, 0, 0, 0], true, |w| weights.push(Weight { at, w: w[0] }));
    }
    let mut bins = bins(weights);
    // By pairs, the largest first; a bin without another of its size becomes smaller ones.
    let mut n_bins = [0; 4];
    let mut records = Vec::new();
    for (n, n_pairs) in n_bins.iter_mut().zip((1..=LARGEST / 2).rev()) {
        let (mut of_size, mut smaller): (Vec<Group>, Vec<Group>) =
            bins.into_iter().partition(|bin| bin.len() == 2 * n_pairs);
        if of_size.len() % 2 == 1 {
            let mut odd = of_size.pop().unwrap_or_default();
            if n_pairs == 1 {
                let zero = Weight { w: 0, ..odd[0] };
                of_size.extend([odd, vec![zero; 2]]);
            } else {
                smaller.push(odd.split_off(2));
                smaller.push(odd);
            }
        }
        *n = of_size.len() / 2;
        for bin in of_size.iter_mut() {
            bin.sort_by_key(|w| w.at);
            records.extend(
                bin.chunks_exact(2)
                    .flat_map(|pair| record(pair[0], pair[1])),
            );
        }
        bins = smaller;
    }
    (n_bins, records)
}

/// The weights in bins, each of an even number of weights.
fn bins(weights: Vec<Weight>) -> Vec<Group> {
    let n = weights.len();
    let (positive, negative): (Group, Group) = weights.into_iter().partition(|w| w.w > 0);
    // Places of a bin are shared out between the signs as the weights are.
    let places = (LARGEST * positive.len() + n / 2)
        .checked_div(n)
        .unwrap_or(0);
    let limits = match (positive.is_empty(), negative.is_empty()) {
        (false, false) => {
            let places = places.clamp(1, LARGEST - 1);
            [places, LARGEST - places]
        }
        _ => [LARGEST; 2],
    };
    let mut bins = groups(positive, limits[0]);
    let mut others: [Vec<Group>; LARGEST + 1] = Default::default();
    for group in groups(negative, limits[1]) {
        others[group.len()].push(group);
    }
    for bin in &mut bins {
        let fits = |len: &usize| bin.len() + len <= LARGEST && !others[*len].is_empty();
        let whole = |len: &usize| (bin.len() + len).is_multiple_of(2);
        let lens = || (1..=LARGEST).rev().filter(fits);
        if let Some(len) = lens().find(whole).or_else(|| lens().next()) {
            bin.extend(others[len].pop().unwrap_or_default());
        }
    }
    bins.extend(others.into_iter().flatten());
    for bin in &mut bins {
        if let (1, Some(&last)) = (bin.len() % 2, bin.last()) {
            bin.push(Weight { w: 0, ..last });
        }
    }
    bins
}

/// Weights of one sign in groups of at most `limit` weights, each within the bound: as few as best fit finds.
fn groups(mut weights: Vec<Weight>, limit: usize) -> Vec<Group> {
    weights.sort_by_key(|w| (std::cmp::Reverse(w.w.unsigned_abs()), w.at));
    let mut done = Vec::new();
    // Groups that have place, by what the bound leaves them, and a bit for each such number of which there are any.
    let mut open: Vec<Vec<Group>> = vec![Vec::new(); BOUND as usize];
    let mut any = 0u128;
    for w in weights {
        let size = usize::from(w.w.unsigned_abs());
        let fitting = any.checked_shr(size as u32).unwrap_or(0);
        let found = (fitting != 0).then(|| size + fitting.trailing_zeros() as usize);
        let mut group = found.and_then(|left| open[left].pop()).unwrap_or_default();
        group.push(w);
        if let Some(left) = found.filter(|&left| open[left].is_empty()) {
            any &= !(1 << left);
        }
        if group.len() < limit {
            let left = found.unwrap_or(BOUND as usize) - size;
            open[left].push(group);
            any |= 1 << left;
        } else {
            done.push(group);
        }
    }
    done.extend(open.into_iter().flatten());
    done
}

fn record(a: Weight, b: Weight) -> [u8; RECORD_BYTES] {
    let [first, second] = [a, b].map(|w| {
        let offset = u16::try_from(w.at * BYTE_ROW).expect("a k-block has few columns");
        offset.to_le_bytes()
    });
    let [a, b] = [a.w as u8, b.w as u8];
    [a, b, a, b, first[0], first[1], second[0], second[1]]
}

/// Weights and offsets of a record; `None` if the weights are not there twice.
pub(super) fn read(record: &[u8]) -> Option<[(i8, usize); 2]> {
    let weight = |i: usize| {
        let offset = u16::from_le_bytes([record[4 + 2 * i], record[5 + 2 * i]]);
        (record[i] as i8, usize::from(offset))
    };
    (record[..2] == record[2..4]).then(|| [weight(0), weight(1)])
}

/// Whether no input saturates a sum of either of these two bins.
pub(super) fn are_bounded(two_bins: &[u8]) -> bool {
    let weights = |record: &[u8]| [record[0] as i8, record[1] as i8, 0, 0];
    (two_bins.chunks_exact(two_bins.len() / 2))
        .all(|bin| bounded(bin.chunks_exact(RECORD_BYTES).map(weights)))
}

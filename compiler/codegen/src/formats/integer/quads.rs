//! Quads: four consecutive inputs of one row.

use lancet_artifact::Arithmetic;

use super::bound::{bounded, pieces, sums, within};
use super::{BOUND, UNIT};

pub(super) const RECORD_BYTES: usize = 6;
/// Quads of a bin, by position in `n_bins`.
pub(super) const BINS: [usize; 4] = [4, 3, 2, 1];
/// Quads that are looked at to fill one place of a bin.
const CANDIDATES: usize = 48;
/// What is left of the bound when a quad is put in a bin is at least this part of it for each place that is still free.
const SLACK: u64 = BOUND / 12;

#[derive(Clone, Copy, Debug)]
struct Quad {
    /// Position in the k-block.
    at: usize,
    w: [i8; 4],
    sums: u64,
}

fn largest(sums: u64) -> u64 {
    (0..4).map(|i| sums >> (16 * i) & 0xffff).max().unwrap_or(0)
}

/// Numbers of bins and the records of a row of one k-block.
pub(super) fn row(arithmetic: Arithmetic, w: &[i16]) -> ([usize; 4], Vec<u8>) {
    let in_bins = arithmetic == Arithmetic::Bytes;
    let mut quads = Vec::new();
    for (at, inputs) in w.chunks(4).enumerate() {
        let mut quad = [0; 4];
        quad[..inputs.len()].copy_from_slice(inputs);
        if quad != [0; 4] {
            pieces(quad, in_bins, |w| {
                quads.push(Quad {
                    at,
                    w,
                    sums: sums(w),
                });
            });
        }
    }
    let mut n_bins = [0; 4];
    if in_bins {
        (quads, n_bins) = fill_bins(quads);
    }
    let mut records = Vec::with_capacity(quads.len() * RECORD_BYTES);
    for quad in &quads {
        records.extend(quad.w.map(|w| w as u8));
        let offset = u16::try_from(quad.at * UNIT).expect("a k-block has few quads");
        records.extend_from_slice(&offset.to_le_bytes());
    }
    (n_bins, records)
}

/// The quads in the order of bins, and how many bins of each size there are: greedily, largest quads and bins first.
fn fill_bins(mut quads: Vec<Quad>) -> (Vec<Quad>, [usize; 4]) {
    quads.sort_by_key(|q| std::cmp::Reverse((largest(q.sums), q.sums)));
    let mut ordered = Vec::with_capacity(quads.len());
    let mut n_bins = [0; 4];
    for (n, &size) in n_bins.iter_mut().zip(&BINS) {
        let mut kept: Vec<Quad> = Vec::with_capacity(quads.len());
        let mut used = vec![false; quads.len()];
        for i in 0..quads.len() {
            if used[i] {
                continue;
            }
            let (mut bin, mut total) = (vec![i], quads[i].sums);
            let mut seen = 0;
            for j in i + 1..quads.len() {
                if bin.len() == size || seen == CANDIDATES * size {
                    break;
                }
                if used[j] {
                    continue;
                }
                seen += 1;
                let free = (size - bin.len() - 1) as u64;
                if within(total + quads[j].sums, BOUND - SLACK * free) {
                    total += quads[j].sums;
                    bin.push(j);
                }
            }
            if bin.len() == size {
                *n += 1;
                bin.sort_by_key(|&j| quads[j].at);
                for &j in &bin {
                    used[j] = true;
                    ordered.push(quads[j]);
                }
            } else {
                kept.push(quads[i]);
                used[i] = true;
            }
        }
        quads = kept;
    }
    (ordered, n_bins)
}

/// Weights and offset of a record.
pub(super) fn read(record: &[u8]) -> ([i8; 4], usize) {
    let offset = u16::from_le_bytes([record[4], record[5]]);
    ([0, 1, 2, 3].map(|i| record[i] as i8), usize::from(offset))
}

/// Whether no input saturates a sum of this bin.
pub(super) fn is_bounded(bin: &[u8]) -> bool {
    bounded(bin.chunks_exact(RECORD_BYTES).map(|record| read(record).0))
}

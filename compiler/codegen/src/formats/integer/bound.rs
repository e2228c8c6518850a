//! What no input can saturate.

use super::BOUND;

/// 16-bit lanes: positive weights of the first two places, magnitudes of negative ones, and the same of the other two.
pub(super) fn sums(w: [i8; 4]) -> u64 {
    let mut sums = 0;
    for (i, &w) in w.iter().enumerate() {
        let lane = i / 2 * 2 + usize::from(w < 0);
        sums += u64::from(w.unsigned_abs()) << (16 * lane);
    }
    sums
}

const LANES: u64 = 0x0001_0001_0001_0001;

/// True if every lane is at most `limit`. Lanes are far below 2^15.
pub(super) fn within(sums: u64, limit: u64) -> bool {
    (sums + LANES * (0x7fff - limit)) & (LANES << 15) == 0
}

/// True if sums of these weights, with any inputs, fit in 16 bits.
pub(super) fn bounded(weights: impl Iterator<Item = [i8; 4]>) -> bool {
    within(weights.map(sums).sum(), BOUND)
}

/// Pieces that add up to `w`, each of 8 bits and, if `bounded`, within the bound.
pub(super) fn pieces(w: [i16; 4], bounded: bool, mut each: impl FnMut([i8; 4])) {
    if let [Ok(a), Ok(b), Ok(c), Ok(d)] = w.map(i8::try_from) {
        let whole = [a, b, c, d];
        if !bounded || within(sums(whole), BOUND) {
            return each(whole);
        }
    }
    for n in 2i32.. {
        let piece = |i: i32| -> Option<[i8; 4]> {
            let mut out = [0; 4];
            for (out, &w) in out.iter_mut().zip(&w) {
                let share = |i: i32| (i32::from(w) * i).div_euclid(n);
                *out = i8::try_from(share(i + 1) - share(i)).ok()?;
            }
            (!bounded || within(sums(out), BOUND)).then_some(out)
        };
        if (0..n).all(|i| piece(i).is_some()) {
            (0..n).filter_map(piece).for_each(&mut each);
            return;
        }
    }
}

//! What attention shows of its probabilities: those of each pair of tokens, or their sum or mean over queries. The task of a head
//! writes those of its head, tile after tile in the order of queries, so that no bit depends on the number of threads.

use lancet_artifact::Reduction;

use crate::jit::QUERIES;
use crate::pool::Parts;
use crate::steps::Sizes;

/// Keys whose probabilities are moved together: their rows of a tile stay in the first-level cache.
const BLOCK: usize = 64;

pub(super) struct Shown {
    over_queries: Option<Reduction>,
    n_queries: usize,
    n_keys: usize,
    /// For each head of each sequence.
    parts: Parts,
}

impl Shown {
    /// The second result of the step, if there is one, of scores of shape `[batch, heads, queries, keys]`.
    pub(super) fn bind(
        sizes: &Sizes<'_>,
        [batch, heads, n_queries, n_keys]: [usize; 4],
        over_queries: Option<Reduction>,
    ) -> Result<Option<Shown>, String> {
        let Some(found) = sizes.second_output().map(|v| sizes.shape(v)) else {
            return Ok(None);
        };
        let expected = match over_queries {
            Some(_) => vec![batch, heads, n_keys],
            None => vec![batch, heads, n_queries, n_keys],
        };
        if found != expected {
            return Err(format!(
                "expected probabilities of shape {expected:?}, found {found:?}"
            ));
        }
        let n: usize = expected[2..].iter().product();
        let parts = (0..batch * heads).map(|i| i * n..(i + 1) * n).collect();
        Ok(Some(Shown {
            over_queries,
            n_queries,
            n_keys,
            parts: Parts::new(parts),
        }))
    }

    pub(super) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Prepares the result: there may be no query whose task writes it.
    pub(super) fn begin(&self, out: &mut [f32]) {
        match self.over_queries {
            Some(Reduction::Mean) if self.n_queries == 0 => out.fill(f32::NAN),
            Some(_) => out.fill(0.0),
            None => {}
        }
    }

    /// Takes the probabilities of the `n` queries from `first` on, rows of [`QUERIES`] for each key, each to be multiplied by that of
    /// `factors`.
    pub(super) fn tile(
        &self,
        of_head: &mut [f32],
        [first, n]: [usize; 2],
        weights: &[f32],
        factors: &[f32; QUERIES],
    ) {
        let (weights, _) = weights.as_chunks::<QUERIES>();
        if self.over_queries.is_some() {
            for (sum, weights) in of_head.iter_mut().zip(weights) {
                let mut lanes = [0.0; QUERIES];
                for (lane, to) in lanes[..n].iter_mut().enumerate() {
                    *to = weights[lane] * factors[lane];
                }
                *sum += sum_of(&lanes);
            }
            return;
        }
        for (block, weights) in weights.chunks(BLOCK).enumerate() {
            for (lane, factor) in factors[..n].iter().enumerate() {
                let row = &mut of_head[(first + lane) * self.n_keys + block * BLOCK..];
                for (to, weights) in row.iter_mut().zip(weights) {
                    *to = weights[lane] * factor;
                }
            }
        }
    }

    /// Finishes what is shown of a head.
    pub(super) fn finish(&self, of_head: &mut [f32]) {
        if self.over_queries == Some(Reduction::Mean) {
            let n = self.n_queries as f32;
            of_head.iter_mut().for_each(|sum| *sum /= n);
        }
    }
}

/// The sum of the lanes, by halves.
fn sum_of(lanes: &[f32; QUERIES]) -> f32 {
    let mut lanes = *lanes;
    let mut half = QUERIES / 2;
    while 0 < half {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

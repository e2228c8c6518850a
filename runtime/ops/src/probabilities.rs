//! The second result of attention: probabilities, or what they come to over queries.

use crate::call::{Call, OpResult};
use crate::{DType, OpError};

/// What attention shows of its probabilities.
pub(crate) struct Probabilities {
    over_queries: OverQueries,
    /// Batch, heads, queries and keys.
    shape: [usize; 4],
    /// Those of each pair, or sums over queries.
    each: Vec<f32>,
    sums: Vec<f64>,
}

/// How the probabilities of the queries of a head are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverQueries {
    /// Each of them.
    Each,
    Sum,
    Mean,
}

impl OverQueries {
    /// The one of this name in the attribute `probabilities`.
    pub fn from_name(name: &str) -> Option<OverQueries> {
        let all = [OverQueries::Each, OverQueries::Sum, OverQueries::Mean];
        all.into_iter().find(|o| o.name() == name)
    }

    /// The name in the attribute `probabilities`.
    pub fn name(self) -> &'static str {
        match self {
            OverQueries::Each => "each",
            OverQueries::Sum => "sum",
            OverQueries::Mean => "mean",
        }
    }
}

impl Probabilities {
    /// Of no query yet; `None` if nobody asks for them.
    pub(crate) fn new(
        call: &Call<'_>,
        shape: [usize; 4],
    ) -> Result<Option<Probabilities>, OpError> {
        let name = call.str("probabilities");
        let Some(over_queries) = OverQueries::from_name(name) else {
            return Err(call.attribute_error("probabilities", format!("unknown `{name}`")));
        };
        if call.n_results < 2 {
            return Ok(None);
        }
        let [b, h, _, sk] = shape;
        let (mut each, mut sums) = (Vec::new(), Vec::new());
        match over_queries {
            OverQueries::Each => each = vec![0.0; call.size(&shape, DType::F32)?],
            OverQueries::Sum | OverQueries::Mean => {
                sums = vec![0.0; call.size(&[b, h, sk], DType::F64)?];
            }
        }
        Ok(Some(Probabilities {
            over_queries,
            shape,
            each,
            sums,
        }))
    }

    /// Takes those of one query in a head of an item.
    pub(crate) fn add(&mut self, head: usize, query: usize, p: &[f32]) {
        let [_, _, sq, sk] = self.shape;
        match self.over_queries {
            OverQueries::Each => {
                self.each[(head * sq + query) * sk..][..sk].copy_from_slice(p);
            }
            OverQueries::Sum | OverQueries::Mean => {
                let sums = &mut self.sums[head * sk..][..sk];
                (sums.iter_mut().zip(p)).for_each(|(s, &p)| *s += f64::from(p));
            }
        }
    }

    pub(crate) fn finish(self, call: &Call<'_>) -> OpResult {
        let [b, h, sq, sk] = self.shape;
        let of_sums = |n: f64| self.sums.iter().map(|s| (s / n) as f32).collect();
        match self.over_queries {
            OverQueries::Each => call.tensor(&self.shape, self.each),
            OverQueries::Sum => call.tensor(&[b, h, sk], of_sums(1.0)),
            OverQueries::Mean => call.tensor(&[b, h, sk], of_sums(sq as f64)),
        }
    }
}

//! The layout of token panels.
//!
//! `f32[tokens, features]` is stored feature-major in panels of `width` tokens: `[ceil(tokens / width)][features][width]`,
//! one vector lane per token. The last panel is stored as narrow as its tokens allow, so every panel is a matrix
//! `[features][stride]` with `stride` one of 8, 16 and 32, contiguous; of its lanes as many are computed as its tokens need,
//! rounded up to 8. Lanes beyond the tokens hold any numbers, and nothing reads them as tokens.

use std::ops::Range;

/// Sizes of a value in token panels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PanelShape {
    pub(crate) tokens: usize,
    pub(crate) features: usize,
    /// Tokens in each panel but the last.
    pub(crate) width: usize,
}

/// The narrowest panel that holds `tokens`.
fn stride_for(tokens: usize) -> usize {
    match tokens {
        0..=8 => 8,
        9..=16 => 16,
        _ => 32,
    }
}

impl PanelShape {
    /// The layout that Lancet chooses for these sizes, in panels of at most `widest` tokens: 16 or 32.
    pub(crate) fn new(tokens: usize, features: usize, widest: usize) -> PanelShape {
        PanelShape {
            tokens,
            features,
            width: stride_for(tokens).min(widest),
        }
    }

    /// Number of panels.
    pub(crate) fn n_panels(&self) -> usize {
        self.tokens.div_ceil(self.width)
    }

    /// Tokens in panel `p`.
    pub(crate) fn tokens_in(&self, p: usize) -> usize {
        self.width.min(self.tokens - p * self.width)
    }

    /// Elements from one feature of panel `p` to the next.
    pub(crate) fn stride(&self, p: usize) -> usize {
        stride_for(self.tokens_in(p)).min(self.width)
    }

    /// Lanes of panel `p` that are computed.
    pub(crate) fn lanes(&self, p: usize) -> usize {
        self.tokens_in(p).next_multiple_of(8)
    }

    /// Elements of panel `p`.
    pub(crate) fn panel(&self, p: usize) -> Range<usize> {
        self.rows(p, 0..self.features)
    }

    /// Elements of features `rows` of panel `p`.
    pub(crate) fn rows(&self, p: usize, rows: Range<usize>) -> Range<usize> {
        let start = p * self.width * self.features;
        let stride = self.stride(p);
        start + rows.start * stride..start + rows.end * stride
    }

    /// Number of elements stored, or `None` if it overflows.
    pub(crate) fn n_elements(&self) -> Option<usize> {
        let n = self.n_panels();
        if n == 0 {
            return Some(0);
        }
        let lanes = (n - 1)
            .checked_mul(self.width)?
            .checked_add(self.stride(n - 1))?;
        lanes.checked_mul(self.features)
    }

    /// Where features of tokens lie side by side, `lanes` of them from the first token on: the elements from the first
    /// feature to the last, and from one to the next. `None` if the tokens are in two panels or fewer lanes follow.
    pub(crate) fn tile(
        &self,
        tokens: Range<usize>,
        features: Range<usize>,
        lanes: usize,
    ) -> Option<(Range<usize>, usize)> {
        let (p, lane) = (tokens.start / self.width, tokens.start % self.width);
        let stride = self.stride(p);
        let rows = self.rows(p, features);
        (lane + lanes <= stride && lane + tokens.len() <= self.tokens_in(p))
            .then(|| (rows.start + lane..rows.end, stride))
    }

    /// Whether these tokens, at least one, begin with a panel and all their panels are `lanes` wide.
    pub(crate) fn begins_panels_of(&self, lanes: usize, tokens: &Range<usize>) -> bool {
        let last = tokens.end.saturating_sub(1) / self.width;
        self.width == lanes && tokens.start.is_multiple_of(lanes) && self.stride(last) == lanes
    }

    /// Calls `f(start, first, stride, len)` for the runs of tokens `tokens` that lie in one panel each: token `start` and
    /// the `len - 1` after it have their features at `first`, `first + stride`, and so on.
    pub(crate) fn for_each_run(
        &self,
        tokens: Range<usize>,
        mut f: impl FnMut(usize, usize, usize, usize),
    ) {
        let mut t = tokens.start;
        while t < tokens.end {
            let (p, lane) = (t / self.width, t % self.width);
            let len = (tokens.end - t).min(self.tokens_in(p) - lane);
            f(
                t,
                p * self.width * self.features + lane,
                self.stride(p),
                len,
            );
            t += len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_tile_their_elements() {
        for (tokens, widest) in (0..100).flat_map(|n| [(n, 16), (n, 32)]) {
            let shape = PanelShape::new(tokens, 5, widest);
            let mut at = 0;
            for p in 0..shape.n_panels() {
                assert_eq!(shape.panel(p).start, at);
                at = shape.panel(p).end;
                assert!(shape.lanes(p) <= shape.stride(p));
            }
            assert_eq!(shape.n_elements(), Some(at));
        }
    }
}

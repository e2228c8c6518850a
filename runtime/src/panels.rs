//! The layout of token panels.
//!
//! `f32[tokens, features]` is stored feature-major in panels of `width` tokens: `[ceil(tokens / width)][features][width]`,
//! one vector lane per token. The last panel is stored as narrow as its tokens allow, so every panel is a matrix
//! `[features][lanes]` with `lanes` one of 8, 16 and 32, contiguous. Lanes beyond the tokens hold finite or any numbers, and
//! nothing reads them as tokens.

use std::ops::Range;

/// Sizes of a value in token panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PanelShape {
    pub(crate) tokens: usize,
    pub(crate) features: usize,
    /// Tokens in each panel but the last.
    pub(crate) width: usize,
}

/// The narrowest panel that holds `tokens`.
fn lanes_for(tokens: usize) -> usize {
    match tokens {
        0..=8 => 8,
        9..=16 => 16,
        _ => 32,
    }
}

impl PanelShape {
    /// The layout that Lancet chooses for these sizes.
    pub(crate) fn new(tokens: usize, features: usize) -> PanelShape {
        PanelShape {
            tokens,
            features,
            width: lanes_for(tokens),
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

    /// Lanes of panel `p`.
    pub(crate) fn lanes(&self, p: usize) -> usize {
        lanes_for(self.tokens_in(p)).min(self.width)
    }

    /// Elements of panel `p`.
    pub(crate) fn panel(&self, p: usize) -> Range<usize> {
        let start = p * self.width * self.features;
        start..start + self.features * self.lanes(p)
    }

    /// Elements of features `rows` of panel `p`.
    pub(crate) fn rows(&self, p: usize, rows: Range<usize>) -> Range<usize> {
        let start = p * self.width * self.features;
        let lanes = self.lanes(p);
        start + rows.start * lanes..start + rows.end * lanes
    }

    /// Number of elements stored, or `None` if it overflows.
    pub(crate) fn n_elements(&self) -> Option<usize> {
        let n = self.n_panels();
        if n == 0 {
            return Some(0);
        }
        let lanes = (n - 1)
            .checked_mul(self.width)?
            .checked_add(self.lanes(n - 1))?;
        lanes.checked_mul(self.features)
    }

    /// The panel and lane of a token, as the index of its first feature; feature `f` is `f * lanes` further.
    pub(crate) fn token(&self, t: usize) -> (usize, usize) {
        let p = t / self.width;
        (
            p * self.width * self.features + t % self.width,
            self.lanes(p),
        )
    }
}

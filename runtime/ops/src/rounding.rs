//! What quantization does to a number, without bytes: scores and probabilities of attention are rounded in place.

use crate::{Attribute, Attributes};

/// `clip(round(x / scale), least, greatest)`, ties to even: a quantized number with its zero point taken off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounding {
    scale: f32,
    least: f32,
    greatest: f32,
}

impl Rounding {
    /// The greatest magnitude of what is rounded to: that of 16 bits and their zero point.
    pub const MOST: f32 = 65_535.0;

    /// A scale, and the least and greatest whole number; `None` if the scale is not positive and normal, or 0 is not
    /// among the numbers.
    pub fn new([scale, least, greatest]: [f32; 3]) -> Option<Rounding> {
        let whole = |v: f32| v.fract() == 0.0 && v.abs() <= Rounding::MOST;
        let fits = scale.is_normal()
            && 0.0 < scale
            && whole(least)
            && whole(greatest)
            && least <= 0.0
            && 0.0 <= greatest;
        fits.then_some(Rounding {
            scale,
            least,
            greatest,
        })
    }

    /// Scale, least and greatest number.
    pub fn numbers(&self) -> [f32; 3] {
        [self.scale, self.least, self.greatest]
    }

    /// The whole number that `x` becomes.
    pub fn apply(&self, x: f32) -> f32 {
        // Clipping to whole numbers commutes with rounding, and of numbers this small the sum has no bits for a fraction.
        const MAGIC: f32 = 12_582_912.0;
        ((x / self.scale).max(self.least).min(self.greatest) + MAGIC) - MAGIC
    }
}

/// Where attention rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AttentionRounding {
    /// A product `q · k`, before it is scaled.
    pub scores: Option<Rounding>,
    /// A scaled score with mask and bias; the number is multiplied by the scale of the rounding.
    pub masked: Option<Rounding>,
    /// A probability.
    pub probabilities: Option<Rounding>,
}

impl AttentionRounding {
    /// The attributes that hold the roundings, in the order of the fields.
    pub const ATTRIBUTES: [&str; 3] = [
        "score_rounding",
        "masked_score_rounding",
        "probability_rounding",
    ];

    /// What attributes of attention say, or the name of the one that is no rounding.
    pub fn of(attributes: &Attributes) -> Result<AttentionRounding, &'static str> {
        let mut found = [None; 3];
        for (found, name) in found.iter_mut().zip(AttentionRounding::ATTRIBUTES) {
            let Some(attribute) = attributes.get(name) else {
                continue;
            };
            let numbers = match attribute {
                Attribute::Floats(v) => <[f32; 3]>::try_from(v.as_slice()).ok(),
                _ => None,
            };
            *found = Some(numbers.and_then(Rounding::new).ok_or(name)?);
        }
        let [scores, masked, probabilities] = found;
        Ok(AttentionRounding {
            scores,
            masked,
            probabilities,
        })
    }

    /// Sets the attributes that [`AttentionRounding::of`] reads.
    pub fn set(&self, attributes: &mut Attributes) {
        let roundings = [self.scores, self.masked, self.probabilities];
        for (rounding, name) in roundings.iter().zip(AttentionRounding::ATTRIBUTES) {
            if let Some(rounding) = rounding {
                attributes.set(name, Attribute::Floats(rounding.numbers().to_vec()));
            }
        }
    }

    /// Whether anything is rounded.
    pub fn is_any(&self) -> bool {
        *self != AttentionRounding::default()
    }

    /// A product, rounded.
    pub fn product(&self, product: f32) -> f32 {
        self.scores.map_or(product, |r| r.apply(product))
    }

    /// A score with all that is added to it, rounded.
    pub fn score(&self, score: f32) -> f32 {
        self.masked.map_or(score, |r| r.apply(score) * r.scale)
    }

    /// A probability, rounded.
    pub fn probability(&self, p: f32) -> f32 {
        self.probabilities.map_or(p, |r| r.apply(p))
    }
}

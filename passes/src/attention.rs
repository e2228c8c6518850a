//! The parts of an attention that is written out in matrix products, as the passes that raise it read them.

pub(crate) mod blocks;
pub(crate) mod context;
pub(crate) mod heads;
pub(crate) mod probabilities;
pub(crate) mod scores;
pub(crate) mod views;

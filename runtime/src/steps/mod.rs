//! What the kinds of steps do, one file per kind.

pub(crate) mod sizes;

//! What passes find out about a graph before they change it.

pub mod access;
pub mod affine;
pub mod cost;
pub mod integers;
pub mod padding;
pub mod sparse;
pub mod sparsity;

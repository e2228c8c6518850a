//! What passes find out about a graph before they change it.

pub mod cost;
pub mod sparsity;

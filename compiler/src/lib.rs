//! Lancet compiles ONNX models of the BERT family, pruned and quantized, and runs them fast on CPUs.
#![forbid(unsafe_code)]

pub mod onnx;

//! Programs that show how to use Lancet. Each is one file beside this folder, run with
//! `cargo run --release -p lancet-examples --example NAME`.
//!
//! * `tour`: draw a pruned BERT, compile it, check it against the reference evaluator, time it against its dense twin.
//! * `embed`: run a model inside an application.
//! * `custom_pass`: write a pass, run it, snapshot-test it.
//! * `sentence_embeddings`: MiniLM from text to similarities.
#![forbid(unsafe_code)]

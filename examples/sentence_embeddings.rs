//! Sentences to similarities with a sentence-embedding model such as all-MiniLM-L6-v2.
//!
//! ```text
//! cargo run --release -p lancet-examples --example sentence_embeddings -- MODEL tokenizer.json [SENTENCE...]
//! ```
//!
//! MODEL is an ONNX file or an artifact; tokenizer.json is what the Hugging Face tokenizers library writes. All sentences
//! go through the model as one batch, padded to the longest. If an output is one vector for each sentence, that is the
//! embedding; otherwise the first output's token vectors are averaged where the attention mask is 1. The last line is the
//! most similar pair.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::{Context, anyhow, ensure};
use lancet::{CompileOptions, Model, ModelOptions, Session, Tensor, TensorView, compile_file};
use tokenizers::{PaddingParams, Tokenizer};

const SENTENCES: [&str; 5] = [
    "The cat sits outside",
    "A kitten is sitting on the porch",
    "A man is playing guitar",
    "Someone makes music with a stringed instrument",
    "How do I reset my password?",
];

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: sentence_embeddings MODEL tokenizer.json [SENTENCE...]";
    let model: PathBuf = args.next().context(usage)?.into();
    let tokenizer: PathBuf = args.next().context(usage)?.into();
    let mut sentences: Vec<String> = args.collect();
    if sentences.is_empty() {
        sentences = SENTENCES.map(str::to_owned).to_vec();
    }

    let model = if model.extension().is_some_and(|e| e == "onnx") {
        compile_file(&model, &CompileOptions::default())?.into_model(&ModelOptions::default())?
    } else {
        Model::load(&model)?
    };
    let batch = Batch::tokenize(&tokenizer, &sentences)?;
    let embeddings = embed(&model, &batch)?;

    for (i, sentence) in sentences.iter().enumerate() {
        println!("{i}: {sentence}");
    }
    let mut best: Option<(f32, usize, usize)> = None;
    for (i, a) in embeddings.iter().enumerate() {
        let row: Vec<f32> = embeddings.iter().map(|b| cosine(a, b)).collect();
        let text: Vec<String> = row.iter().map(|s| format!("{s:6.3}")).collect();
        println!("{i}  {}", text.join(" "));
        for (j, &similarity) in row.iter().enumerate().skip(i + 1) {
            if best.is_none_or(|(most, ..)| most < similarity) {
                best = Some((similarity, i, j));
            }
        }
    }
    if let Some((similarity, i, j)) = best {
        println!("most similar: {i} and {j} ({similarity:.3})");
    }
    Ok(())
}

/// Token identifiers and masks of several sentences, `i64[n, len]`.
struct Batch {
    n: usize,
    len: usize,
    ids: Tensor,
    mask: Tensor,
    types: Tensor,
}

impl Batch {
    fn tokenize(tokenizer: &std::path::Path, sentences: &[String]) -> anyhow::Result<Batch> {
        let mut tokenizer = Tokenizer::from_file(tokenizer).map_err(|e| anyhow!(e))?;
        tokenizer.with_padding(Some(PaddingParams::default()));
        let encodings = tokenizer
            .encode_batch(sentences.to_vec(), true)
            .map_err(|e| anyhow!(e))?;
        let (n, len) = (
            encodings.len(),
            encodings.first().map_or(0, tokenizers::Encoding::len),
        );
        let gather = |part: fn(&tokenizers::Encoding) -> &[u32]| {
            let values = encodings
                .iter()
                .flat_map(|e| part(e).iter().map(|&x| i64::from(x)));
            Tensor::new([n, len], values.collect())
        };
        Ok(Batch {
            n,
            len,
            ids: gather(|e| e.get_ids()),
            mask: gather(|e| e.get_attention_mask()),
            types: gather(|e| e.get_type_ids()),
        })
    }
}

/// One vector for each sentence.
fn embed(model: &Model, batch: &Batch) -> anyhow::Result<Vec<Vec<f32>>> {
    let mut inputs: Vec<(String, TensorView<'_>)> = Vec::new();
    for port in model.inputs() {
        let tensor = match port.name.as_str() {
            "input_ids" => &batch.ids,
            "attention_mask" => &batch.mask,
            "token_type_ids" => &batch.types,
            other => return Err(anyhow!("the model has an unexpected input `{other}`")),
        };
        inputs.push((port.name, tensor.view()));
    }
    let views: Vec<(&str, TensorView<'_>)> = inputs.iter().map(|(n, t)| (n.as_str(), *t)).collect();
    let outputs = Session::new(model).run(&views)?;
    let sentence = outputs
        .iter()
        .map(|(_, t)| t)
        .find(|t| t.shape().len() == 2 && t.shape()[0] == batch.n);
    if let Some(tensor) = sentence {
        let values = tensor.as_slice::<f32>().context("embeddings are f32")?;
        let width = tensor.shape()[1];
        return Ok(values.chunks(width.max(1)).map(<[f32]>::to_vec).collect());
    }
    let (_, tokens) = outputs.first().context("the model has no output")?;
    ensure!(
        tokens.shape().len() == 3 && tokens.shape()[..2] == [batch.n, batch.len],
        "the first output is neither token nor sentence embeddings"
    );
    let values = tokens.as_slice::<f32>().context("embeddings are f32")?;
    let mask = batch.mask.as_slice::<i64>().context("masks are i64")?;
    Ok(pool(values, mask, batch.len, tokens.shape()[2]))
}

/// The mean over the tokens of each sentence that its mask keeps: `f32[n, len, width]` to `n` vectors.
fn pool(tokens: &[f32], mask: &[i64], len: usize, width: usize) -> Vec<Vec<f32>> {
    let sentences = tokens
        .chunks((len * width).max(1))
        .zip(mask.chunks(len.max(1)));
    sentences
        .map(|(tokens, mask)| {
            let mut mean = vec![0f32; width];
            let n_kept = mask.iter().filter(|&&m| m != 0).count().max(1) as f32;
            for (token, _) in tokens
                .chunks(width.max(1))
                .zip(mask)
                .filter(|&(_, &m)| m != 0)
            {
                mean.iter_mut()
                    .zip(token)
                    .for_each(|(sum, x)| *sum += x / n_kept);
            }
            mean
        })
        .collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f32::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_does_not_count() {
        let tokens = [1.0, 2.0, 3.0, 4.0, 9.0, 9.0, 5.0, 6.0, 9.0, 9.0, 9.0, 9.0];
        let pooled = pool(&tokens, &[1, 1, 0, 1, 0, 0], 3, 2);
        assert_eq!(pooled, [[2.0, 3.0], [5.0, 6.0]]);
    }

    #[test]
    fn cosine_of_directions() {
        assert_eq!(cosine(&[2.0, 0.0], &[5.0, 0.0]), 1.0);
        assert_eq!(cosine(&[2.0, 0.0], &[0.0, 5.0]), 0.0);
        assert_eq!(cosine(&[0.0], &[0.0]), 0.0);
    }
}

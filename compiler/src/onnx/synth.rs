//! Writes BERT models with drawn weights, so that a newcomer without any model has one.
//!
//! The graph is what an exporter writes for a BERT sequence classifier: embeddings and their layer norm, `layers` encoder
//! layers with erf GELU, the pooler over the first token, a classifier of two labels; batch and sequence dynamic. The
//! weights have the shapes and the cost of the real thing; the answers mean nothing. Encoder matrices are pruned by
//! magnitude on the canonical `[out, in]` matrix, as the papers do.

use std::io::Write;
use std::str::FromStr;

use onnx_protobuf::{
    AttributeProto, GraphProto, Message as _, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType,
    tensor_shape_proto, type_proto,
};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// ONNX's numbers of element types.
const FLOAT: i32 = 1;
const INT64: i32 = 7;

/// Sizes of a BERT encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BertConfig {
    pub n_layers: usize,
    pub hidden: usize,
    pub n_heads: usize,
    pub intermediate: usize,
    pub vocabulary: usize,
    pub positions: usize,
    pub n_labels: usize,
}

impl BertConfig {
    /// BERT-base: 12 layers, 768 wide, 110 million parameters.
    pub const BASE: BertConfig = BertConfig {
        n_layers: 12,
        hidden: 768,
        n_heads: 12,
        intermediate: 3072,
        vocabulary: 30522,
        positions: 512,
        n_labels: 2,
    };
    /// BERT-tiny: 2 layers, 128 wide.
    pub const TINY: BertConfig = BertConfig {
        n_layers: 2,
        hidden: 128,
        n_heads: 2,
        intermediate: 512,
        vocabulary: 30522,
        positions: 512,
        n_labels: 2,
    };
}

/// Which elements of a matrix are pruned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrunePattern {
    /// Single elements.
    Unstructured,
    /// Blocks of `r` outputs by `c` inputs.
    Blocks { r: usize, c: usize },
    /// All but `n` of every `m` consecutive inputs, whatever the sparsity asked.
    NOfM { n: usize, m: usize },
}

/// The text is no pruning pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no pattern: expected `unstructured`, `RxC` such as `4x1`, or `N:M` such as `2:4`"
)]
pub struct PatternError(String);

impl FromStr for PrunePattern {
    type Err = PatternError;

    fn from_str(s: &str) -> Result<PrunePattern, PatternError> {
        let pair = |sep: char| {
            let (a, b) = s.split_once(sep)?;
            let (a, b) = (a.parse().ok()?, b.parse().ok()?);
            ((1..=64).contains(&a) && (1..=64).contains(&b)).then_some((a, b))
        };
        if s == "unstructured" {
            return Ok(PrunePattern::Unstructured);
        }
        if let Some((r, c)) = pair('x') {
            return Ok(PrunePattern::Blocks { r, c });
        }
        match pair(':') {
            Some((n, m)) if n <= m => Ok(PrunePattern::NOfM { n, m }),
            _ => Err(PatternError(s.to_owned())),
        }
    }
}

/// Sets the smallest elements, or blocks, of `w[n, k]` to zero.
///
/// Blocks at the edges of a matrix whose sizes are no multiples of the block are smaller.
pub fn prune(w: &mut [f32], k: usize, sparsity: f64, pattern: PrunePattern) {
    let n = w.len().checked_div(k).unwrap_or(0);
    let (r, c) = match pattern {
        PrunePattern::Unstructured => (1, 1),
        PrunePattern::Blocks { r, c } => (r, c),
        PrunePattern::NOfM { n: keep, m } => {
            for row in w.chunks_mut(k.max(1)) {
                for group in row.chunks_mut(m) {
                    let mut order: Vec<usize> = (0..group.len()).collect();
                    order.sort_by(|&a, &b| group[b].abs().total_cmp(&group[a].abs()));
                    for &i in order.iter().skip(keep) {
                        group[i] = 0.0;
                    }
                }
            }
            return;
        }
    };
    let n_block_cols = k.div_ceil(c);
    let block_of = |i: usize| (i / k / r) * n_block_cols + (i % k) / c;
    let mut scores = vec![0f32; n.div_ceil(r) * n_block_cols];
    for (i, x) in w.iter().enumerate() {
        scores[block_of(i)] += x.abs();
    }
    let n_dropped = (scores.len() as f64 * sparsity.clamp(0.0, 1.0)).round() as usize;
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    order.sort_by(|&a, &b| {
        scores[a as usize]
            .total_cmp(&scores[b as usize])
            .then(a.cmp(&b))
    });
    let mut dropped = vec![false; scores.len()];
    for &b in order.iter().take(n_dropped) {
        dropped[b as usize] = true;
    }
    for (i, x) in w.iter_mut().enumerate() {
        if dropped[block_of(i)] {
            *x = 0.0;
        }
    }
}

/// Writes a BERT sequence classifier to `out` as an ONNX model, opset 17.
///
/// Inputs `input_ids`, `attention_mask`, `token_type_ids`: `i64[batch, sequence]`; output `logits`: `f32[batch, 2]`.
///
/// # Errors
/// What `out` says; nothing else can fail.
pub fn write_bert(
    config: BertConfig,
    sparsity: f64,
    pattern: PrunePattern,
    seed: u64,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let mut b = Builder {
        graph: GraphProto::new(),
        rng: Pcg64Mcg::seed_from_u64(seed),
        sparsity,
        pattern,
    };
    b.graph.name = "bert".to_owned();
    for name in ["input_ids", "attention_mask", "token_type_ids"] {
        b.graph.input.push(value_info(
            name,
            INT64,
            &[Size::Symbol("batch"), Size::Symbol("sequence")],
        ));
    }
    let logits = b.bert(config);
    b.graph.output.push(value_info(
        &logits,
        FLOAT,
        &[Size::Symbol("batch"), Size::Fixed(config.n_labels)],
    ));
    let mut model = ModelProto::new();
    model.ir_version = 8;
    model.producer_name = "lancet synth".to_owned();
    model.opset_import.push(OperatorSetIdProto {
        version: 17,
        ..Default::default()
    });
    model.graph = Some(b.graph).into();
    model.write_to_writer(out).map_err(std::io::Error::other)
}

enum Size {
    Symbol(&'static str),
    Fixed(usize),
}

fn value_info(name: &str, elem_type: i32, dims: &[Size]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|d| {
            let value = match d {
                Size::Symbol(s) => tensor_shape_proto::dimension::Value::DimParam((*s).to_owned()),
                Size::Fixed(n) => tensor_shape_proto::dimension::Value::DimValue(*n as i64),
            };
            tensor_shape_proto::Dimension {
                value: Some(value),
                ..Default::default()
            }
        })
        .collect();
    let shape = TensorShapeProto {
        dim,
        ..Default::default()
    };
    let tensor = type_proto::Tensor {
        elem_type,
        shape: Some(shape).into(),
        ..Default::default()
    };
    let ty = TypeProto {
        value: Some(type_proto::Value::TensorType(tensor)),
        ..Default::default()
    };
    ValueInfoProto {
        name: name.to_owned(),
        type_: Some(ty).into(),
        ..Default::default()
    }
}

fn attribute(name: &str, ty: AttributeType) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        type_: ty.into(),
        ..Default::default()
    }
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto {
        i,
        ..attribute(name, AttributeType::INT)
    }
}

fn ints(name: &str, v: &[i64]) -> AttributeProto {
    AttributeProto {
        ints: v.to_vec(),
        ..attribute(name, AttributeType::INTS)
    }
}

fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto {
        f,
        ..attribute(name, AttributeType::FLOAT)
    }
}

struct Builder {
    graph: GraphProto,
    rng: Pcg64Mcg,
    sparsity: f64,
    pattern: PrunePattern,
}

impl Builder {
    fn node(
        &mut self,
        op: &str,
        inputs: &[&str],
        output: &str,
        attributes: Vec<AttributeProto>,
    ) -> String {
        self.graph.node.push(NodeProto {
            op_type: op.to_owned(),
            name: output.to_owned(),
            input: inputs.iter().map(|s| (*s).to_owned()).collect(),
            output: vec![output.to_owned()],
            attribute: attributes,
            ..Default::default()
        });
        output.to_owned()
    }

    fn initializer(
        &mut self,
        name: &str,
        data_type: i32,
        dims: &[usize],
        raw_data: Vec<u8>,
    ) -> String {
        self.graph.initializer.push(TensorProto {
            name: name.to_owned(),
            data_type,
            dims: dims.iter().map(|&d| d as i64).collect(),
            raw_data,
            ..Default::default()
        });
        name.to_owned()
    }

    fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> String {
        self.initializer(
            name,
            FLOAT,
            dims,
            values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        )
    }

    fn integers(&mut self, name: &str, dims: &[usize], values: &[i64]) -> String {
        self.initializer(
            name,
            INT64,
            dims,
            values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        )
    }

    /// `len` values from a normal distribution with standard deviation 0.02, by the Box-Muller transform.
    fn normal(&mut self, len: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(len + 1);
        while out.len() < len {
            let (u, v): (f32, f32) = (1.0 - self.rng.random::<f32>(), self.rng.random());
            let (radius, angle) = ((-2.0 * u.ln()).sqrt(), std::f32::consts::TAU * v);
            out.push(0.02 * radius * angle.cos());
            out.push(0.02 * radius * angle.sin());
        }
        out.truncate(len);
        out
    }

    fn table(&mut self, name: &str, rows: usize, width: usize) -> String {
        let values = self.normal(rows * width);
        self.floats(name, &[rows, width], &values)
    }

    /// `x · wᵀ + bias`, spelled as exporters do: `MatMul` with the transposed weight, then `Add`.
    fn linear(&mut self, name: &str, x: &str, n: usize, k: usize) -> String {
        let mut w = self.normal(n * k);
        if self.sparsity > 0.0 || matches!(self.pattern, PrunePattern::NOfM { .. }) {
            prune(&mut w, k, self.sparsity, self.pattern);
        }
        let mut transposed = vec![0f32; n * k];
        for i in 0..n {
            for j in 0..k {
                transposed[j * n + i] = w[i * k + j];
            }
        }
        let weight = self.floats(&format!("{name}.weight"), &[k, n], &transposed);
        let bias = self.normal(n);
        let bias = self.floats(&format!("{name}.bias"), &[n], &bias);
        let product = self.node("MatMul", &[x, &weight], &format!("{name}/MatMul"), vec![]);
        self.node("Add", &[&bias, &product], &format!("{name}/Add"), vec![])
    }

    fn layer_norm(&mut self, name: &str, x: &str, width: usize) -> String {
        let gamma = self.floats(&format!("{name}.weight"), &[width], &vec![1.0; width]);
        let beta = self.normal(width);
        let beta = self.floats(&format!("{name}.bias"), &[width], &beta);
        let attributes = vec![int("axis", -1), float("epsilon", 1e-12)];
        self.node(
            "LayerNormalization",
            &[x, &gamma, &beta],
            &format!("{name}/LayerNormalization"),
            attributes,
        )
    }

    /// `[batch, sequence, hidden]` to `[batch, heads, sequence, hidden / heads]`, or with the last two exchanged.
    fn split_heads(&mut self, name: &str, x: &str, perm: &[i64]) -> String {
        let view = self.node(
            "Reshape",
            &[x, "heads_shape"],
            &format!("{name}/Reshape"),
            vec![],
        );
        self.node(
            "Transpose",
            &[&view],
            &format!("{name}/Transpose"),
            vec![ints("perm", perm)],
        )
    }

    fn encoder_layer(&mut self, name: &str, x: &str, mask: &str, config: BertConfig) -> String {
        let h = config.hidden;
        let q = self.linear(&format!("{name}.attention.self.query"), x, h, h);
        let k = self.linear(&format!("{name}.attention.self.key"), x, h, h);
        let v = self.linear(&format!("{name}.attention.self.value"), x, h, h);
        let q = self.split_heads(&format!("{name}/query"), &q, &[0, 2, 1, 3]);
        let k = self.split_heads(&format!("{name}/key"), &k, &[0, 2, 3, 1]);
        let v = self.split_heads(&format!("{name}/value"), &v, &[0, 2, 1, 3]);
        let scores = self.node("MatMul", &[&q, &k], &format!("{name}/scores"), vec![]);
        let scores = self.node(
            "Div",
            &[&scores, "sqrt_head_dim"],
            &format!("{name}/scaled"),
            vec![],
        );
        let scores = self.node("Add", &[&scores, mask], &format!("{name}/masked"), vec![]);
        let p = self.node(
            "Softmax",
            &[&scores],
            &format!("{name}/Softmax"),
            vec![int("axis", -1)],
        );
        let context = self.node("MatMul", &[&p, &v], &format!("{name}/context"), vec![]);
        let perm = vec![ints("perm", &[0, 2, 1, 3])];
        let context = self.node("Transpose", &[&context], &format!("{name}/merge"), perm);
        let context = self.node(
            "Reshape",
            &[&context, "hidden_shape"],
            &format!("{name}/merged"),
            vec![],
        );
        let y = self.linear(&format!("{name}.attention.output.dense"), &context, h, h);
        let y = self.node(
            "Add",
            &[&y, x],
            &format!("{name}/attention/residual"),
            vec![],
        );
        let y = self.layer_norm(&format!("{name}.attention.output.LayerNorm"), &y, h);
        let z = self.linear(
            &format!("{name}.intermediate.dense"),
            &y,
            config.intermediate,
            h,
        );
        let e = self.node("Div", &[&z, "sqrt_2"], &format!("{name}/gelu/Div"), vec![]);
        let e = self.node("Erf", &[&e], &format!("{name}/gelu/Erf"), vec![]);
        let e = self.node("Add", &[&e, "one"], &format!("{name}/gelu/Add"), vec![]);
        let z = self.node("Mul", &[&z, &e], &format!("{name}/gelu/Mul"), vec![]);
        let z = self.node("Mul", &[&z, "half"], &format!("{name}/gelu/Mul_1"), vec![]);
        let z = self.linear(&format!("{name}.output.dense"), &z, h, config.intermediate);
        let z = self.node("Add", &[&z, &y], &format!("{name}/output/residual"), vec![]);
        self.layer_norm(&format!("{name}.output.LayerNorm"), &z, h)
    }

    fn bert(&mut self, config: BertConfig) -> String {
        let (h, heads) = (config.hidden, config.n_heads);
        self.floats("sqrt_head_dim", &[], &[((h / heads) as f32).sqrt()]);
        self.floats("sqrt_2", &[], &[std::f32::consts::SQRT_2]);
        self.floats("one", &[], &[1.0]);
        self.floats("half", &[], &[0.5]);
        self.floats("lowest", &[], &[f32::MIN]);
        self.integers(
            "heads_shape",
            &[4],
            &[0, 0, heads as i64, (h / heads) as i64],
        );
        self.integers("hidden_shape", &[3], &[0, 0, h as i64]);
        self.integers("zero", &[], &[0]);
        self.integers("starts", &[1], &[0]);
        self.integers("axes_1", &[1], &[1]);
        self.integers("axes_12", &[2], &[1, 2]);
        let positions: Vec<i64> = (0..config.positions as i64).collect();
        self.integers("position_ids", &[1, config.positions], &positions);

        let words = self.table("embeddings.word_embeddings.weight", config.vocabulary, h);
        let kinds = self.table("embeddings.token_type_embeddings.weight", 2, h);
        let places = self.table("embeddings.position_embeddings.weight", config.positions, h);
        let length = vec![int("start", 1), int("end", 2)];
        let length = self.node("Shape", &["input_ids"], "embeddings/length", length);
        let slice = ["position_ids", "starts", &length, "axes_1"];
        let position = self.node("Slice", &slice, "embeddings/positions", vec![]);
        let x = self.node("Gather", &[&words, "input_ids"], "embeddings/words", vec![]);
        let t = self.node(
            "Gather",
            &[&kinds, "token_type_ids"],
            "embeddings/types",
            vec![],
        );
        let p = self.node("Gather", &[&places, &position], "embeddings/places", vec![]);
        let x = self.node("Add", &[&x, &t], "embeddings/Add", vec![]);
        let x = self.node("Add", &[&x, &p], "embeddings/Add_1", vec![]);
        let mut x = self.layer_norm("embeddings.LayerNorm", &x, h);

        let to_float = vec![int("to", i64::from(FLOAT))];
        let mask = self.node(
            "Unsqueeze",
            &["attention_mask", "axes_12"],
            "mask/Unsqueeze",
            vec![],
        );
        let mask = self.node("Cast", &[&mask], "mask/Cast", to_float);
        let mask = self.node("Sub", &["one", &mask], "mask/Sub", vec![]);
        let mask = self.node("Mul", &[&mask, "lowest"], "mask/Mul", vec![]);
        for i in 0..config.n_layers {
            x = self.encoder_layer(&format!("encoder.layer.{i}"), &x, &mask, config);
        }

        // Heads are small and stay dense, as pruning recipes leave them.
        self.sparsity = 0.0;
        self.pattern = PrunePattern::Unstructured;
        let first = self.node(
            "Gather",
            &[&x, "zero"],
            "pooler/first",
            vec![int("axis", 1)],
        );
        let pooled = self.linear("pooler.dense", &first, h, h);
        let pooled = self.node("Tanh", &[&pooled], "pooler/Tanh", vec![]);
        let logits = self.linear("classifier", &pooled, config.n_labels, h);
        self.node("Identity", &[&logits], "logits", vec![])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pruning_drops_the_smallest_blocks() {
        let mut w = vec![1.0, 1.0, 5.0, 5.0, 4.0, 4.0, 2.0, 2.0];
        prune(&mut w, 4, 0.5, PrunePattern::Blocks { r: 1, c: 2 });
        assert_eq!(w, [0.0, 0.0, 5.0, 5.0, 4.0, 4.0, 0.0, 0.0]);
    }

    #[test]
    fn n_of_m_keeps_the_largest_of_each_group() {
        let mut w = vec![1.0, -3.0, 2.0, 0.5, 0.0, 1.0, 2.0, 3.0];
        prune(&mut w, 8, 0.0, PrunePattern::NOfM { n: 2, m: 4 });
        assert_eq!(w, [0.0, -3.0, 2.0, 0.0, 0.0, 0.0, 2.0, 3.0]);
    }

    #[test]
    fn patterns_parse() {
        assert_eq!("4x1".parse(), Ok(PrunePattern::Blocks { r: 4, c: 1 }));
        assert_eq!("2:4".parse(), Ok(PrunePattern::NOfM { n: 2, m: 4 }));
        assert!("4:2".parse::<PrunePattern>().is_err());
        assert!("0x1".parse::<PrunePattern>().is_err());
    }
}

//! Builds plans by hand, and beside each step the operator that says what it must give.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::collections::HashMap;

use lancet_artifact::{
    Activation, AttentionParameters, Dim, Layout, MatrixDesc, Plan, Port, Reduction, Step,
    StepKind, Storage, ValueDesc, WeightFormat, Weights,
};
use lancet_codegen::formats::pack;
use lancet_ops::{Attribute, Attributes, Operator, Tensor, TensorView, evaluate};

/// A plan under construction.
#[derive(Default)]
pub(crate) struct Net {
    pub(crate) plan: Plan,
    pub(crate) weights: Weights<'static>,
    constants: HashMap<u32, Tensor>,
    nodes: Vec<(Operator, Attributes, Vec<Option<u32>>, u32)>,
    seed: u32,
}

/// Where reference-only constants (plain weights of packed matrices) are numbered from.
const HIDDEN: u32 = 1 << 20;

impl Net {
    pub(crate) fn symbol(&mut self, name: &str) -> Dim {
        self.plan.symbols.push(name.to_owned());
        Dim::symbol(self.plan.symbols.len() as u32 - 1)
    }

    /// Deterministic values in -1..1.
    pub(crate) fn random(&mut self, n: usize) -> Vec<f32> {
        let mut state = self
            .seed
            .wrapping_mul(747_796_405)
            .wrapping_add(2_891_336_453);
        self.seed += 1;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn value(&mut self, dtype: &str, shape: &[Dim], layout: Layout, storage: Storage) -> u32 {
        let id = self.plan.values.len() as u32;
        self.plan.values.push(ValueDesc {
            name: format!("v{id}"),
            dtype: dtype.to_owned(),
            shape: shape.to_vec(),
            layout,
            storage,
        });
        id
    }

    pub(crate) fn input(&mut self, name: &str, dtype: &str, shape: &[Dim]) -> u32 {
        let port = self.plan.inputs.len() as u32;
        let value = self.value(dtype, shape, Layout::RowMajor, Storage::Input(port));
        self.plan.inputs.push(Port {
            name: name.to_owned(),
            value,
        });
        value
    }

    pub(crate) fn output(&mut self, name: &str, value: u32) {
        self.plan.outputs.push(Port {
            name: name.to_owned(),
            value,
        });
    }

    pub(crate) fn constant(&mut self, shape: &[usize], values: Vec<f32>) -> u32 {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let len = bytes.len() as u64;
        let offset = self.weights.push(bytes);
        let dims: Vec<Dim> = shape.iter().map(|&d| Dim::fixed(d as i64)).collect();
        let id = self.value(
            "f32",
            &dims,
            Layout::RowMajor,
            Storage::Weights { offset, len },
        );
        self.constants.insert(id, Tensor::new(shape, values));
        id
    }

    /// An operand that only the meaning of a step has.
    pub(crate) fn meant(&mut self, tensor: Tensor) -> u32 {
        let id = 2 * HIDDEN + self.constants.len() as u32;
        self.constants.insert(id, tensor);
        id
    }

    /// A step with a result like `shape`, and what it means.
    pub(crate) fn step(
        &mut self,
        kind: StepKind,
        inputs: &[Option<u32>],
        shape: &[Dim],
        layout: Layout,
        meaning: (Operator, Attributes, Vec<Option<u32>>),
    ) -> u32 {
        self.step_of("f32", kind, inputs, (shape, layout), meaning)
    }

    /// As [`Net::step`], with a result of element type `dtype`.
    pub(crate) fn step_of(
        &mut self,
        dtype: &str,
        kind: StepKind,
        inputs: &[Option<u32>],
        (shape, layout): (&[Dim], Layout),
        meaning: (Operator, Attributes, Vec<Option<u32>>),
    ) -> u32 {
        let out = self.value(dtype, shape, layout, Storage::Slot);
        self.plan.steps.push(Step {
            name: format!("s{}", self.plan.steps.len()),
            kind,
            inputs: inputs.to_vec(),
            outputs: vec![out],
        });
        self.nodes.push((meaning.0, meaning.1, meaning.2, out));
        out
    }

    pub(crate) fn same(&mut self, kind: StepKind, x: u32, layout: Layout) -> u32 {
        let shape = self.plan.values[x as usize].shape.clone();
        let meaning = (Operator::Identity, Attributes::new(), vec![Some(x)]);
        self.step(kind, &[Some(x)], &shape, layout, meaning)
    }

    pub(crate) fn portable(&mut self, op: Operator, inputs: &[u32], shape: &[Dim]) -> u32 {
        let kind = StepKind::Portable {
            operator: op.schema().text.to_owned(),
            attributes: vec![],
        };
        let inputs: Vec<Option<u32>> = inputs.iter().map(|&v| Some(v)).collect();
        let meaning = (op, Attributes::new(), inputs.clone());
        self.step(kind, &inputs, shape, Layout::RowMajor, meaning)
    }

    pub(crate) fn embedding(&mut self, pairs: &[(u32, u32)], shape: &[Dim]) -> u32 {
        let inputs: Vec<Option<u32>> = pairs
            .iter()
            .flat_map(|&(i, t)| [Some(i), Some(t)])
            .collect();
        let meaning = (Operator::EmbeddingLookup, Attributes::new(), inputs.clone());
        self.step(
            StepKind::EmbeddingLookup {
                quantization: Vec::new(),
            },
            &inputs,
            shape,
            Layout::Panels,
            meaning,
        )
    }

    pub(crate) fn layer_norm(&mut self, x: u32, k: usize, with_beta: bool) -> u32 {
        let shape = self.plan.values[x as usize].shape.clone();
        let gamma = self.random(k);
        let gamma = self.constant(&[k], gamma);
        let mut inputs = vec![Some(x), Some(gamma)];
        if with_beta {
            let beta = self.random(k);
            inputs.push(Some(self.constant(&[k], beta)));
        }
        let attributes = Attributes::new()
            .with("epsilon", Attribute::Float(1e-5))
            .with("axis", Attribute::Int(-1));
        let meaning = (Operator::LayerNormalization, attributes, inputs.clone());
        self.step(
            StepKind::LayerNorm { epsilon: 1e-5 },
            &inputs,
            &shape,
            Layout::Panels,
            meaning,
        )
    }

    pub(crate) fn linear(
        &mut self,
        x: u32,
        [n, k]: [usize; 2],
        format: WeightFormat,
        activation: Activation,
        bias: bool,
        residual: Option<u32>,
    ) -> u32 {
        let mut shape = self.plan.values[x as usize].shape.clone();
        *shape.last_mut().expect("a rank") = Dim::fixed(n as i64);
        let mut w = self.random(n * k);
        if format != WeightFormat::Dense {
            for (i, w) in w.iter_mut().enumerate() {
                if (i as u32).wrapping_mul(2_654_435_761) >> 16 & 3 != 0 {
                    *w = 0.0;
                }
            }
        }
        let packed = pack(format, n, k, &w).expect("packs");
        let len = packed.bytes.len() as u64;
        let offset = self.weights.push(packed.bytes);
        let matrix = self.plan.matrices.len() as u32;
        self.plan.matrices.push(MatrixDesc {
            pattern: "unknown".to_owned(),
            predicted_speedup: 1.0,
            predicted_cycles: Vec::new(),
            name: format!("m{matrix}"),
            format: packed.format,
            arithmetic: packed.arithmetic,
            n: n as u32,
            k: k as u32,
            offset,
            len,
            row_blocks: packed.row_blocks,
            nnz: packed.nnz as u64,
        });
        let hidden = HIDDEN + matrix;
        self.constants.insert(hidden, Tensor::new([n, k], w));
        let bias = bias.then(|| {
            let bias = self.random(n);
            self.constant(&[n], bias)
        });
        let attributes =
            Attributes::new().with("activation", Attribute::Str(activation.name().to_owned()));
        let meaning = (
            Operator::Linear,
            attributes,
            vec![Some(x), Some(hidden), bias, residual],
        );
        let kind = StepKind::Linear { matrix, activation };
        self.step(
            kind,
            &[Some(x), bias, residual],
            &shape,
            Layout::Panels,
            meaning,
        )
    }

    pub(crate) fn attention(
        &mut self,
        qkv: [u32; 3],
        heads: u32,
        mask: Option<u32>,
        others: &[Option<u32>],
    ) -> u32 {
        let mut shape = self.plan.values[qkv[0] as usize].shape.clone();
        shape[2] = self.plan.values[qkv[2] as usize].shape[2].clone();
        let inputs: Vec<Option<u32>> = qkv
            .into_iter()
            .map(Some)
            .chain([mask])
            .chain(others.iter().copied())
            .collect();
        let attributes = Attributes::new()
            .with("num_heads", Attribute::Int(i64::from(heads)))
            .with("scale", Attribute::Float(0.4))
            .with("masked_value", Attribute::Float(f32::MIN));
        let meaning = (
            Operator::ScaledDotProductAttention,
            attributes,
            inputs.clone(),
        );
        let kind = StepKind::Attention(AttentionParameters {
            num_heads: heads,
            scale: 0.4,
            masked_value: f32::MIN,
            rounding: [None; 3],
            exact_keys: None,
            over_queries: None,
        });
        self.step(kind, &inputs, &shape, Layout::Panels, meaning)
    }

    /// Inputs for the last operands of attention: a mask of queries, and numbers by query and by key with their indices.
    pub(crate) fn positions(&mut self, [b, s]: [&Dim; 2], heads: usize) -> [Option<u32>; 5] {
        let mask = self.input("query_mask", "bool", &[b.clone(), s.clone()]);
        let mut all = [Some(mask); 5];
        for (side, name) in ["by_query", "by_key"].into_iter().enumerate() {
            let rows = [
                b,
                &Dim::fixed(heads as i64),
                s,
                &Dim::fixed(POSITIONS as i64),
            ];
            let rows = self.input(name, "f32", &rows.map(Dim::clone));
            let index = self.input(&format!("{name}_index"), "i64", &[twice(s)]);
            all[1 + 2 * side] = Some(rows);
            all[2 + 2 * side] = Some(index);
        }
        all
    }

    /// What the outputs must be, operator by operator.
    pub(crate) fn reference(&self, inputs: &[(&str, Tensor)]) -> Vec<Tensor> {
        let mut values = self.constants.clone();
        for port in &self.plan.inputs {
            let (_, tensor) = inputs.iter().find(|(n, _)| *n == port.name).expect("given");
            values.insert(port.value, tensor.clone());
        }
        for (op, attributes, operands, out) in &self.nodes {
            let views: Vec<Option<TensorView<'_>>> = operands
                .iter()
                .map(|v| v.map(|v| values[&v].view()))
                .collect();
            let last = views.iter().rposition(Option::is_some).map_or(0, |i| i + 1);
            let mut results = evaluate(*op, attributes, &views[..last], 1).expect("evaluates");
            let result = results.swap_remove(0);
            values.insert(*out, result);
        }
        self.plan
            .outputs
            .iter()
            .map(|p| values[&p.value].clone())
            .collect()
    }
}

/// A step of these lines.
pub(crate) fn elementwise(body: &[&str]) -> StepKind {
    StepKind::Elementwise {
        body: body.iter().map(|&line| line.to_owned()).collect(),
    }
}

/// A small encoder layer with everything around it: embeddings, norms, attention, formats of every kind, views, portable
/// steps between.
pub(crate) fn encoder(with_portable: bool) -> Net {
    let formats = [
        WeightFormat::Dense,
        WeightFormat::Unstructured,
        WeightFormat::Bsr { r: 4, c: 1 },
        WeightFormat::Bsr { r: 1, c: 4 },
    ];
    encoder_of(formats, with_portable)
}

/// [`encoder`] whose layers have weights in these formats.
pub(crate) fn encoder_of(formats: [WeightFormat; 4], with_portable: bool) -> Net {
    let (k, ff, heads) = (24, 40, 2);
    let mut net = Net::default();
    let (b, s) = (net.symbol("batch"), net.symbol("seq"));
    let shape = [b.clone(), s.clone(), Dim::fixed(k as i64)];
    let ids = net.input("ids", "i64", &[b.clone(), s.clone()]);
    let types = net.input("types", "i64", &[Dim::fixed(1), s.clone()]);
    let mask = net.input("mask", "i64", &[b.clone(), s.clone()]);
    let relative = net.input("relative", "f32", &[Dim::fixed(heads as i64), twice(&s)]);
    let positions = net.positions([&b, &s], heads);
    let words = net.random(11 * k);
    let words = net.constant(&[11, k], words);
    let kinds = net.random(3 * k);
    let kinds = net.constant(&[3, k], kinds);
    let x = net.embedding(&[(ids, words), (types, kinds)], &shape);
    let mut x = net.layer_norm(x, k, true);
    for (layer, format) in formats.into_iter().enumerate() {
        let qkv =
            [0; 3].map(|_| net.linear(x, [k, k], format, Activation::None, layer % 2 == 0, None));
        let bias = (layer == 1).then(|| {
            let bias = net.random(heads);
            net.constant(&[heads, 1, 1], bias)
        });
        let mask = (layer != 2).then_some(mask);
        let relative = (layer != 0).then_some(relative);
        let mut others = vec![bias, relative];
        if layer == 3 {
            others.extend(positions);
        }
        let a = net.attention(qkv, heads as u32, mask, &others);
        let a = net.linear(a, [k, k], format, Activation::None, true, Some(x));
        let a = net.layer_norm(a, k, layer != 3);
        let kind = [
            Activation::Gelu,
            Activation::Relu,
            Activation::GeluTanh,
            Activation::Silu,
        ][layer];
        let h = net.linear(a, [ff, k], format, kind, true, None);
        x = net.linear(h, [k, ff], format, Activation::None, true, Some(a));
        if layer == 0 {
            let shape = shape.clone();
            let sum = (Operator::Add, Attributes::new(), vec![Some(x), Some(a)]);
            x = net.step(
                elementwise(&["add x0 x1"]),
                &[Some(x), Some(a)],
                &shape,
                Layout::Panels,
                sum,
            );
            let tanh = (Operator::Tanh, Attributes::new(), vec![Some(x)]);
            let kind = elementwise(&["tanh x0"]);
            x = net.step(kind, &[Some(x)], &shape, Layout::Panels, tanh);
        }
        if with_portable && layer == 1 {
            let plain = net.same(StepKind::FromPanels, x, Layout::RowMajor);
            let softsign = net.portable(Operator::Softsign, &[plain], &shape);
            x = net.same(StepKind::ToPanels, softsign, Layout::Panels);
        }
    }
    let out = net.same(StepKind::FromPanels, x, Layout::RowMajor);
    net.output("hidden", out);
    let axes = net.meant(Tensor::new([1], vec![1i64]));
    let attributes = Attributes::new().with("keepdims", Attribute::Int(0));
    let meaning = (
        Operator::ReduceMean,
        attributes,
        vec![Some(out), Some(axes)],
    );
    let mean = StepKind::Reduce {
        reduction: Reduction::Mean,
        axes: 1..2,
    };
    let shape = [b, Dim::fixed(k as i64)];
    let mean = net.step(mean, &[Some(out)], &shape, Layout::RowMajor, meaning);
    net.output("mean", mean);
    let attributes = Attributes::new().with("perm", Attribute::Ints(vec![1, 0]));
    let meaning = (Operator::Transpose, attributes, vec![Some(mean)]);
    let permutation = vec![1, 0];
    let turned = net.step(
        StepKind::Transpose { permutation },
        &[Some(mean)],
        &[shape[1].clone(), shape[0].clone()],
        Layout::RowMajor,
        meaning,
    );
    net.output("turned", turned);
    let attributes = Attributes::new().with("axis", Attribute::Int(1));
    let both = [Some(turned), Some(turned)];
    let joined = net.step(
        StepKind::Concat { axis: 1 },
        &both,
        &[shape[1].clone(), twice(&shape[0])],
        Layout::RowMajor,
        (Operator::Concat, attributes, both.to_vec()),
    );
    net.output("joined", joined);
    net
}

/// Inputs of [`encoder`].
pub(crate) fn encoder_inputs(batch: usize, seq: usize) -> Vec<(&'static str, Tensor)> {
    let ids = (0..batch * seq)
        .map(|i| (i * 7 % 11) as i64 - if i % 5 == 0 { 11 } else { 0 })
        .collect();
    let types = (0..seq).map(|i| (i % 3) as i64).collect();
    let mask = (0..batch * seq)
        .map(|i| i64::from(i % seq <= seq / (1 + i / seq)))
        .collect();
    let relative = (0..4 * seq)
        .map(|i| match i % 7 {
            0 => f32::MIN,
            _ => -(i as f32 / 9.0).sin(),
        })
        .collect();
    let mut inputs = vec![
        ("ids", Tensor::new([batch, seq], ids)),
        ("types", Tensor::new([1, seq], types)),
        ("mask", Tensor::new([batch, seq], mask)),
        ("relative", Tensor::new([2, 2 * seq], relative)),
    ];
    inputs.extend(position_inputs(batch, seq, 2));
    inputs
}

pub(crate) fn views<'a>(inputs: &'a [(&'a str, Tensor)]) -> Vec<(&'a str, TensorView<'a>)> {
    inputs.iter().map(|(n, t)| (*n, t.view())).collect()
}

/// Numbers in a row of positions.
pub(crate) const POSITIONS: usize = 5;

/// Values of [`Net::positions`]. Element 0 of the indices belongs to no pair.
pub(crate) fn position_inputs(
    batch: usize,
    seq: usize,
    heads: usize,
) -> Vec<(&'static str, Tensor)> {
    let n = batch * heads * seq * POSITIONS;
    let rows = |step: f32| {
        let values = (0..n)
            .map(|i| (i as f32 * step).sin())
            .collect::<Vec<f32>>();
        Tensor::new([batch, heads, seq, POSITIONS], values)
    };
    let index = |at: fn(i64) -> i64| {
        let distances = (1..2 * seq as i64).map(|e| at(e - seq as i64));
        let all = std::iter::once(i64::MAX).chain(distances);
        Tensor::new([2 * seq], all.collect::<Vec<i64>>())
    };
    let seen = (0..batch * seq).map(|i| i % 4 != 2).collect::<Vec<bool>>();
    vec![
        ("query_mask", Tensor::new([batch, seq], seen)),
        ("by_query", rows(0.7)),
        ("by_query_index", index(|d| (d + 2).clamp(0, 4))),
        ("by_key", rows(1.1)),
        ("by_key_index", index(|d| -1 - d.abs().min(4))),
    ]
}

/// A size, two times.
pub(crate) fn twice(size: &Dim) -> Dim {
    let terms = size.terms.iter();
    Dim {
        terms: terms.map(|(c, symbols)| (2 * c, symbols.clone())).collect(),
    }
}

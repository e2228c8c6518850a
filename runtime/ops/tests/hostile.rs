//! No operands or attributes, however wrong, make an operator panic.
//!
//! Sizes and integers are small or far too large, so that what is refused is refused before memory is asked for.

use std::sync::Arc;

use half::{bf16, f16};
use lancet_ops::{Attribute, AttributeType, Attributes, DType, Data, Operator, Tensor, evaluate};

/// Knuth's linear congruential generator: the same cases on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next()).expect("31 bits fit") % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn integer(&mut self) -> i64 {
        const FAR: [i64; 6] = [
            i64::MIN,
            i64::MIN + 1,
            i64::MAX,
            i64::MAX - 1,
            1 << 40,
            -(1 << 40),
        ];
        if self.below(12) == 0 {
            self.pick(&FAR)
        } else {
            self.below(7) as i64 - 2
        }
    }

    fn float(&mut self) -> f64 {
        match self.below(10) {
            0 => self.pick(&[
                f64::NAN,
                f64::INFINITY,
                f64::NEG_INFINITY,
                1e300,
                -1e300,
                -0.0,
            ]),
            _ => self.below(9) as f64 / 2.0 - 2.0,
        }
    }

    fn shape(&mut self) -> Vec<usize> {
        match self.below(40) {
            0 => vec![0, 1 << 62, 4],
            1 => vec![1 << 40, 0],
            _ => (0..self.below(5))
                .map(|_| self.pick(&[0, 1, 1, 2, 2, 2, 3, 4]))
                .collect(),
        }
    }

    fn tensor(&mut self, dtype: DType, shape: Vec<usize>) -> Tensor {
        let n = if shape.contains(&0) {
            0
        } else {
            shape.iter().product::<usize>()
        };
        macro_rules! fill {
            ($($variant:ident => $element:expr,)*) => {
                match dtype { $(DType::$variant => Data::$variant((0..n).map(|_| $element).collect()),)* }
            };
        }
        let data = fill! {
            F32 => self.float() as f32, F64 => self.float(),
            F16 => f16::from_f64(self.float()), BF16 => bf16::from_f64(self.float()),
            I8 => self.integer() as i8, I16 => self.integer() as i16,
            I32 => self.integer() as i32, I64 => self.integer(),
            U8 => self.integer() as u8, U16 => self.below(5) as u16,
            U32 => self.below(5) as u32, U64 => self.integer() as u64,
            Bool => self.below(2) == 1,
        };
        Tensor::try_new(shape, data).expect("the shape was filled")
    }

    fn attribute(&mut self, name: &str, ty: AttributeType) -> Attribute {
        const WORDS: [&str; 28] = [
            "",
            "none",
            "f32",
            "u8",
            "i8",
            "bf16",
            "bool",
            "NOTSET",
            "VALID",
            "SAME_UPPER",
            "SAME_LOWER",
            "add",
            "mul",
            "max",
            "reflect",
            "edge",
            "wrap",
            "CRD",
            "LEFT",
            "RIGHT",
            "bidirectional",
            "reverse",
            "relu",
            "gelu",
            "tanh",
            "ab,bc->ac",
            "...i,i...->...",
            "ii,i->",
        ];
        match ty {
            AttributeType::Int => Attribute::Int(self.integer()),
            AttributeType::Float => Attribute::Float(self.float() as f32),
            AttributeType::Str if name == "to" => {
                Attribute::Str(self.pick(&["f32", "i64", "u8", "bool"]).to_owned())
            }
            AttributeType::Str => Attribute::Str(self.pick(&WORDS).to_owned()),
            AttributeType::Ints => {
                Attribute::Ints((0..self.below(5)).map(|_| self.integer()).collect())
            }
            AttributeType::Floats => {
                Attribute::Floats((0..self.below(4)).map(|_| self.float() as f32).collect())
            }
            AttributeType::Strs => {
                let names = ["Tanh", "Relu", "Affine", "HardSigmoid", "nothing"];
                Attribute::Strs(
                    (0..self.below(7))
                        .map(|_| self.pick(&names).to_owned())
                        .collect(),
                )
            }
            AttributeType::Tensor => {
                let (dtype, shape) = (
                    self.pick(&DType::ALL),
                    self.pick(&[&[][..], &[1], &[2]]).to_vec(),
                );
                Attribute::Tensor(Arc::new(self.tensor(dtype, shape)))
            }
        }
    }
}

fn attempt(random: &mut Random, op: Operator) -> bool {
    let schema = op.schema();
    let mut attributes = Attributes::new();
    for a in schema.attributes {
        let is_required = matches!(a.default, lancet_ops::DefaultValue::Required);
        if is_required || random.below(3) == 0 {
            attributes.set(a.name, random.attribute(a.name, a.ty));
        }
    }
    let most = schema.operands.1.min(schema.operands.0 + 8);
    let n = schema.operands.0 + random.below(most - schema.operands.0 + 1);
    let (dtype, shape) = (
        random.pick(&[DType::F32, DType::F32, DType::I64, DType::U8, DType::F16]),
        random.shape(),
    );
    let operands: Vec<Option<Tensor>> = (0..n)
        .map(|_| {
            let dtype = if random.below(2) == 0 {
                dtype
            } else {
                random.pick(&DType::ALL)
            };
            let mut shape = if random.below(2) == 0 {
                shape.clone()
            } else {
                random.shape()
            };
            if random.below(4) == 0 {
                shape = vec![random.below(4)];
            }
            (random.below(8) != 0).then(|| random.tensor(dtype, shape))
        })
        .collect();
    let views: Vec<_> = operands
        .iter()
        .map(|t| t.as_ref().map(Tensor::view))
        .collect();
    let n_results = schema.results.0 + random.below(schema.results.1.min(4) - schema.results.0 + 1);
    match evaluate(op, &attributes, &views, n_results) {
        Ok(results) => {
            assert_eq!(results.len(), n_results, "{op}");
            true
        }
        Err(error) => {
            assert!(!error.to_string().contains("dispatched"), "{error}");
            false
        }
    }
}

#[test]
fn no_operands_panic() {
    let mut random = Random(1);
    for &op in Operator::ALL {
        for _ in 0..100 {
            attempt(&mut random, op);
        }
    }
}

/// Applications that are right: the operator, attributes that differ from the defaults, and types and shapes of operands.
/// Integer operands are filled with ones.
const RIGHT: &[(&str, &str, &str)] = &[
    ("and", "", "bool[2,3] bool[3]"),
    ("bit_shift", "direction=LEFT", "u8[2,3] u8[3]"),
    ("where", "", "bool[2,1] f32[3] f32[2,3]"),
    ("clip", "", "f32[2,3] f32[] f32[]"),
    ("reshape", "", "f32[1,1] i64[3]"),
    ("expand", "", "f32[2,1] i64[3]"),
    ("tile", "", "f32[2,3] i64[2]"),
    ("split", "axis=1", "f32[2,1] i64[1]"),
    ("slice", "", "f32[2,3] i64[1] i64[1] i64[1] i64[1]"),
    ("gather", "axis=1", "f32[2,3] i64[2,2]"),
    ("gather_elements", "axis=1", "f32[2,3] i64[2,2]"),
    ("gather_nd", "", "f32[2,3] i64[2,1]"),
    (
        "scatter_elements",
        "reduction=add",
        "f32[2,3] i64[2,2] f32[2,2]",
    ),
    ("scatter_nd", "", "f32[2,3] i64[2,1] f32[2,3]"),
    ("pad", "mode=reflect", "f32[2,3] i64[4]"),
    ("range", "", "i64[] i64[] i64[]"),
    ("trilu", "", "f32[2,3] i64[]"),
    ("one_hot", "", "i64[2] i64[] f32[2]"),
    ("top_k", "", "f32[2,3] i64[1]"),
    ("cum_sum", "", "f32[2,3] i64[]"),
    ("compress", "axis=1", "f32[2,3] bool[2]"),
    ("depth_to_space", "blocksize=2", "f32[1,4,2,3]"),
    ("space_to_depth", "blocksize=2", "f32[1,1,4,2]"),
    ("reverse_sequence", "", "f32[2,3] i64[3]"),
    ("reduce_sum", "", "f32[2,3] i64[1]"),
    ("arg_max", "axis=1", "f32[2,3]"),
    ("matmul", "", "f32[2,1,2,3] f32[3,4]"),
    ("gemm", "transB=1", "f32[2,3] f32[4,3] f32[4]"),
    ("einsum", "equation=bij,bjk->bik", "f32[2,3,2] f32[2,2,3]"),
    ("matmul_integer", "", "u8[2,3] i8[3,4] u8[] i8[4]"),
    (
        "qlinear_matmul",
        "",
        "u8[2,3] f32[] u8[] i8[3,4] f32[4] i8[4] f32[] u8[]",
    ),
    ("conv", "group=2", "f32[1,4,5,3] f32[2,2,3,2] f32[2]"),
    (
        "conv_transpose",
        "group=2",
        "f32[1,4,3,2] f32[4,1,3,2] f32[2]",
    ),
    ("conv_integer", "", "u8[1,2,5] u8[2,2,3] u8[] u8[]"),
    (
        "qlinear_conv",
        "",
        "u8[1,2,5] f32[] u8[] u8[2,2,3] f32[2] u8[2] f32[] u8[] i32[2]",
    ),
    ("average_pool", "kernel_shape=2,2", "f32[1,2,4,3]"),
    ("max_pool", "kernel_shape=2,2", "f32[1,2,4,3]"),
    ("global_average_pool", "", "f32[1,2,4,3]"),
    ("layer_normalization", "", "f32[2,3] f32[3] f32[3]"),
    ("rms_normalization", "", "f32[2,3] f32[3]"),
    ("instance_normalization", "", "f32[2,2,3] f32[2] f32[2]"),
    (
        "group_normalization",
        "num_groups=2",
        "f32[2,4,3] f32[4] f32[4]",
    ),
    (
        "batch_normalization",
        "",
        "f32[2,2,3] f32[2] f32[2] f32[2] f32[2]",
    ),
    ("mean_variance_normalization", "", "f32[2,2,3,1]"),
    (
        "quantize_linear",
        "block_size=2",
        "f32[2,4] f32[2,2] u8[2,2]",
    ),
    ("dequantize_linear", "", "u8[2,4] f32[4] u8[4]"),
    ("dft", "", "f32[2,3,1] i64[] i64[]"),
    (
        "lstm",
        "",
        "f32[3,2,2] f32[1,12,2] f32[1,12,3] f32[1,24] i32[2] f32[1,2,3] f32[1,2,3] f32[1,9]",
    ),
    (
        "ms_dynamic_quantize_lstm",
        "",
        "f32[3,2,2] i8[1,2,12] u8[1,3,12] f32[1,24] i32[2] f32[1,2,3] f32[1,2,3] f32[1,9] f32[1] i8[1] f32[1,12] u8[1,12]",
    ),
    (
        "gru",
        "",
        "f32[3,2,2] f32[1,9,2] f32[1,9,3] f32[1,18] i32[2] f32[1,2,3]",
    ),
    (
        "rnn",
        "",
        "f32[3,2,2] f32[1,3,2] f32[1,3,3] f32[1,6] i32[2] f32[1,2,3]",
    ),
    (
        "attention",
        "",
        "f32[2,4,3,2] f32[2,2,5,2] f32[2,2,5,3] bool[3,6] f32[2,2,1,2] f32[2,2,1,3]",
    ),
    (
        "attention",
        "q_num_heads=2 kv_num_heads=1",
        "f32[2,3,4] f32[2,5,2] f32[2,5,2] f32[3,5] _ _ i64[2]",
    ),
    (
        "rotary_embedding",
        "",
        "f32[2,2,3,4] f32[5,2] f32[5,2] i64[2,3]",
    ),
    (
        "rotary_embedding",
        "num_heads=2",
        "f32[2,3,8] f32[2,3,2] f32[2,3,2]",
    ),
    ("ms_bias_gelu", "", "f32[2,3] f32[3]"),
    (
        "ms_skip_layer_normalization",
        "",
        "f32[2,2,3] f32[2,2,3] f32[3] f32[3] f32[3]",
    ),
    (
        "ms_skip_simplified_layer_normalization",
        "",
        "f32[2,2,3] f32[2,2,3] f32[3] f32[3]",
    ),
    (
        "ms_embed_layer_normalization",
        "",
        "i32[2,3] i32[2,3] f32[4,2] f32[4,2] f32[2,2] f32[2] f32[2] i32[2,3] i32[2,3]",
    ),
    (
        "ms_attention",
        "num_heads=2",
        "f32[2,3,4] f32[4,12] f32[12] i32[2] f32[2,2,2,1,2] f32[1,2,3,4]",
    ),
    (
        "ms_multi_head_attention",
        "num_heads=2",
        "f32[2,3,4] f32[2,3,4] f32[2,3,4] f32[12] i32[2,4] f32[1,1,3,4] f32[2,2,1,2] f32[2,2,1,2]",
    ),
    ("ms_multi_head_attention", "num_heads=2", "f32[2,3,2,3,2]"),
    ("ms_fused_matmul", "transA=1", "f32[3,2] f32[3,4]"),
    (
        "ms_fused_gemm",
        "activation=Relu",
        "f32[2,3] f32[3,4] f32[4]",
    ),
    ("ms_bias_split_gelu", "", "f32[2,4] f32[4]"),
    ("ms_bias_add", "", "f32[2,4] f32[4] f32[2,4]"),
    (
        "ms_dynamic_quantize_matmul",
        "",
        "f32[2,3] i8[3,4] f32[4] i8[4] f32[4]",
    ),
    (
        "ms_matmul_integer_to_float",
        "",
        "u8[2,3] i8[3,4] f32[] f32[4] u8[] i8[4] f32[4]",
    ),
    (
        "ms_rotary_embedding",
        "",
        "f32[2,2,3,4] i64[2,3] f32[5,2] f32[5,2]",
    ),
    (
        "linear",
        "activation=gelu",
        "f32[2,1,3] f32[4,3] f32[4] f32[2,1,4]",
    ),
    ("from_sparse", "shape=2,3", "f32[1] i64[1]"),
    ("embedding_lookup", "", "i64[2,3] f32[4,2] i32[3] f32[3,2]"),
    (
        "scaled_dot_product_attention",
        "num_heads=2",
        "f32[2,3,4] f32[2,5,4] f32[2,5,2] bool[2,5] f32[1,1,3,5] f32[2,8]",
    ),
];

/// Reads `f32[2,3]`; integers are ones, floats are not whole.
fn operand(text: &str) -> Option<Tensor> {
    let (dtype, shape) = text.trim_end_matches(']').split_once('[')?;
    let shape: Vec<usize> = shape
        .split(',')
        .filter(|d| !d.is_empty())
        .map(|d| d.parse().expect("a size"))
        .collect();
    let n = shape.iter().product();
    let data = match dtype {
        "f32" => Data::F32((0..n).map(|i| i as f32 * 0.25 + 0.5).collect()),
        "i64" => Data::I64(vec![1; n]),
        "i32" => Data::I32(vec![1; n]),
        "i8" => Data::I8(vec![1; n]),
        "u8" => Data::U8(vec![1; n]),
        "bool" => Data::Bool((0..n).map(|i| i % 3 != 1).collect()),
        other => panic!("unknown type {other}"),
    };
    Tensor::try_new(shape, data)
}

fn attribute(op: Operator, text: &str) -> (&str, Attribute) {
    let (name, value) = text.split_once('=').expect("name=value");
    let ty = op
        .schema()
        .attributes
        .iter()
        .find(|a| a.name == name)
        .expect("an attribute")
        .ty;
    let value = match ty {
        AttributeType::Int => Attribute::Int(value.parse().expect("an integer")),
        AttributeType::Str => Attribute::Str(value.to_owned()),
        AttributeType::Ints => Attribute::Ints(
            value
                .split(',')
                .map(|v| v.parse().expect("an integer"))
                .collect(),
        ),
        other => panic!("no literal of type {other:?}"),
    };
    (name, value)
}

/// Changes one operand or attribute at a time of applications that are right.
#[test]
fn no_small_mistake_panics() {
    let mut random = Random(2);
    for &(name, attributes, operands) in RIGHT {
        let op = Operator::from_text(name).expect("an operator");
        let mut right = Attributes::new();
        if name == "scaled_dot_product_attention" {
            right.set("scale", Attribute::Float(0.5));
        }
        for text in attributes.split_whitespace() {
            let (name, value) = attribute(op, text);
            right.set(name, value);
        }
        let tensors: Vec<Option<Tensor>> = operands.split_whitespace().map(operand).collect();
        let run = |attributes: &Attributes, tensors: &[Option<Tensor>], n: usize| {
            let views: Vec<_> = tensors
                .iter()
                .map(|t| t.as_ref().map(Tensor::view))
                .collect();
            evaluate(op, attributes, &views, n)
        };
        let schema = op.schema();
        let n_results = schema.results.1.min(4).max(schema.results.0);
        let n_results = if name == "split" { 1 } else { n_results };
        if let Err(e) = run(&right, &tensors, n_results) {
            panic!("{name} {attributes} {operands}: {e}");
        }
        for _ in 0..100 {
            let (mut attributes, mut tensors) = (right.clone(), tensors.clone());
            for _ in 0..=random.below(2) {
                let n_attributes = schema.attributes.len();
                if n_attributes != 0 && random.below(2) == 0 {
                    let a = &schema.attributes[random.below(n_attributes)];
                    attributes.set(a.name, random.attribute(a.name, a.ty));
                } else {
                    let i = random.below(tensors.len());
                    let (mut dtype, mut shape) = match &tensors[i] {
                        Some(t) => (t.dtype(), t.shape().to_vec()),
                        None => (DType::F32, Vec::new()),
                    };
                    match random.below(5) {
                        0 => dtype = random.pick(&DType::ALL),
                        1 => shape = random.shape(),
                        2 if !shape.is_empty() => {
                            let axis = random.below(shape.len());
                            shape[axis] = random.pick(&[0, 1, 2, 3, 5]);
                        }
                        3 => shape.push(1),
                        _ => {}
                    }
                    tensors[i] = (random.below(8) != 0).then(|| random.tensor(dtype, shape));
                }
            }
            let _ = run(&attributes, &tensors, n_results);
        }
    }
}

/// A dimension of no elements anywhere, with every other size right, is refused or gives an empty result.
#[test]
fn empty_dimensions_do_not_panic() {
    for &(name, attributes, operands) in RIGHT {
        let op = Operator::from_text(name).expect("an operator");
        let sizes = ["0", "1", "2", "3", "4", "5"];
        for size in &sizes[1..] {
            let replaced = operands
                .split_whitespace()
                .map(|text| match text.split_once('[') {
                    Some((dtype, shape)) => {
                        let dims = shape.trim_end_matches(']').split(',');
                        let dims: Vec<_> = dims.map(|d| if d == *size { "0" } else { d }).collect();
                        format!("{dtype}[{}]", dims.join(","))
                    }
                    None => text.to_owned(),
                })
                .map(|text| operand(&text))
                .collect::<Vec<_>>();
            let mut given = Attributes::new();
            if name == "scaled_dot_product_attention" {
                given.set("scale", Attribute::Float(0.5));
            }
            for text in attributes.split_whitespace() {
                let (name, value) = attribute(op, text);
                given.set(name, value);
            }
            let views: Vec<_> = replaced
                .iter()
                .map(|t| t.as_ref().map(Tensor::view))
                .collect();
            let _ = evaluate(op, &given, &views, op.schema().results.0);
        }
    }
}

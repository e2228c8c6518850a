//! Models in half precision, from file to answer: run by the kernels that their twins in `f32` run by, and as exact.

use std::collections::BTreeMap;

use half::{bf16, f16};
use lancet::onnx::synth::{BertConfig, write_bert};
use lancet::onnx::{ImportOptions, import_bytes};
use lancet::{CompileOptions, Compiled, ModelOptions, Session, Tensor, compile};
use lancet_artifact::StepKind;
use lancet_ir::eval;
use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::{AttributeProto, GraphProto, Message as _, ModelProto, NodeProto, TensorProto};
use protobuf::Enum as _;

const FLOAT: i32 = DataType::FLOAT as i32;

/// How a file in `f32` is turned to half precision.
#[derive(Clone, Copy)]
struct Conversion {
    to: DataType,
    /// Outputs stay `f32`, behind a cast.
    keep_outputs: bool,
    /// Operators, by type or name, that stay in `f32`, between casts.
    blocked: &'static [&'static str],
    /// Least and greatest constant; what is beyond them is made them.
    greatest: f32,
}

impl Conversion {
    fn bytes(&self, x: f32) -> [u8; 2] {
        let x = x.clamp(-self.greatest, self.greatest);
        if self.to == DataType::FLOAT16 {
            f16::from_f32(x).to_le_bytes()
        } else {
            bf16::from_f32(x).to_le_bytes()
        }
    }

    fn value(&self, x: f32) -> f32 {
        let bytes = self.bytes(x);
        if self.to == DataType::FLOAT16 {
            f16::from_le_bytes(bytes).to_f32()
        } else {
            bf16::from_le_bytes(bytes).to_f32()
        }
    }

    fn blocks(&self, node: &NodeProto) -> bool {
        self.blocked.contains(&node.op_type.as_str()) || self.blocked.contains(&node.name.as_str())
    }

    /// The initializers in `f32` that become narrow: all but those of operators that do not.
    fn narrowed<'g>(&self, graph: &'g mut GraphProto) -> impl Iterator<Item = &'g mut TensorProto> {
        let blocked = graph.node.iter().filter(|node| self.blocks(node));
        let wide: Vec<String> = blocked.flat_map(|node| node.input.clone()).collect();
        let initializers = graph.initializer.iter_mut();
        initializers.filter(move |t| t.data_type == FLOAT && !wide.contains(&t.name))
    }

    /// Converts a whole model, as converters do.
    fn convert(&self, model: &mut ModelProto) {
        let graph = model.graph.as_mut().expect("a graph");
        for tensor in self.narrowed(graph) {
            tensor.raw_data = floats(tensor).flat_map(|x| self.bytes(x)).collect();
            tensor.data_type = self.to.value();
        }
        let is_constant = |name: &String| graph.initializer.iter().any(|t| t.name == *name);
        let mut nodes = Vec::new();
        for mut node in graph.node.clone() {
            let to = node.attribute.iter_mut().find(|a| a.name == "to");
            if let Some(to) = to.filter(|to| to.i == i64::from(FLOAT)) {
                to.i = i64::from(self.to.value());
            }
            if !self.blocks(&node) {
                nodes.push(node);
                continue;
            }
            for (i, input) in node.input.iter_mut().enumerate() {
                if !is_constant(input) {
                    let wide = format!("{}/wide_{i}", node.name);
                    nodes.push(cast(input, &wide, DataType::FLOAT));
                    *input = wide;
                }
            }
            let output = std::mem::replace(&mut node.output[0], format!("{}/wide", node.name));
            let narrow = cast(&node.output[0], &output, self.to);
            nodes.extend([node, narrow]);
        }
        graph.node = nodes;
        self.outputs(graph);
    }

    fn outputs(&self, graph: &mut GraphProto) {
        for output in &mut graph.output {
            if self.keep_outputs {
                let wide = format!("{}/kept", output.name);
                graph.node.push(cast(&output.name, &wide, DataType::FLOAT));
                output.name = wide;
            } else {
                let ty = output.type_.as_mut().expect("a type");
                ty.mut_tensor_type().elem_type = self.to.value();
            }
        }
    }

    /// Rounds the constants of a model to what the converted one has, and leaves it in `f32`.
    fn round(&self, model: &mut ModelProto) {
        for tensor in self.narrowed(model.graph.as_mut().expect("a graph")) {
            tensor.raw_data = (floats(tensor).map(|x| self.value(x)))
                .flat_map(f32::to_le_bytes)
                .collect();
        }
    }
}

/// The elements of an `f32` tensor in raw data.
fn floats(tensor: &TensorProto) -> impl Iterator<Item = f32> {
    let chunks = tensor.raw_data.chunks_exact(4);
    chunks.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

fn cast(from: &str, to: &str, dtype: DataType) -> NodeProto {
    let mut attribute = AttributeProto::new();
    attribute.name = "to".to_owned();
    attribute.type_ = onnx_protobuf::attribute_proto::AttributeType::INT.into();
    attribute.i = i64::from(dtype.value());
    NodeProto {
        op_type: "Cast".to_owned(),
        name: to.to_owned(),
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        attribute: vec![attribute],
        ..Default::default()
    }
}

const CONVERSIONS: [Conversion; 4] = [
    Conversion {
        to: DataType::FLOAT16,
        keep_outputs: true,
        blocked: &[],
        greatest: 1e4,
    },
    Conversion {
        to: DataType::FLOAT16,
        keep_outputs: false,
        blocked: &["LayerNormalization", "Softmax"],
        greatest: 65504.0,
    },
    // The mask is infinite where it is cast.
    Conversion {
        to: DataType::FLOAT16,
        keep_outputs: true,
        blocked: &["Softmax", "mask/Mul"],
        greatest: 65504.0,
    },
    Conversion {
        to: DataType::BFLOAT16,
        keep_outputs: true,
        blocked: &["LayerNormalization", "mask/Mul"],
        greatest: f32::MAX,
    },
];

fn drawn() -> ModelProto {
    let config = BertConfig {
        vocabulary: 60,
        positions: 40,
        hidden: 32,
        intermediate: 64,
        ..BertConfig::TINY
    };
    let mut bytes = Vec::new();
    let pattern = "4x1".parse().expect("a pattern");
    write_bert(config, 0.5, pattern, 7, &mut bytes).expect("written");
    ModelProto::parse_from_bytes(&bytes).expect("a model")
}

fn graph(model: &ModelProto) -> lancet_ir::Graph {
    let bytes = model.write_to_bytes().expect("written");
    import_bytes(&bytes, None, &ImportOptions::default()).expect("imports")
}

fn compiled(model: &ModelProto) -> Compiled {
    compile(graph(model), &CompileOptions::default(), &mut |_, _| {}).expect("compiles")
}

/// Steps of the plan by name, with the operator of portable ones.
fn steps(compiled: &Compiled) -> BTreeMap<String, usize> {
    let (plan, _) = compiled.lower().expect("lowers");
    let mut steps = BTreeMap::new();
    for step in &plan.steps {
        let name = match &step.kind {
            StepKind::Portable { operator, .. } => format!("portable {operator}"),
            other => other.name().to_owned(),
        };
        *steps.entry(name).or_default() += 1;
    }
    steps
}

fn inputs() -> Vec<(&'static str, Tensor)> {
    let (b, s) = (3, 11);
    let of =
        |f: fn(i64) -> i64| Tensor::new([b, s], (0..(b * s) as i64).map(f).collect::<Vec<_>>());
    vec![
        ("input_ids", of(|i| i * 7 % 60)),
        ("attention_mask", of(|i| i64::from(i % 11 < 5 + i / 11))),
        ("token_type_ids", of(|i| i % 2)),
    ]
}

fn run(compiled: Compiled, inputs: &[(&str, Tensor)]) -> Vec<f64> {
    let views: Vec<_> = inputs.iter().map(|(n, t)| (*n, t.view())).collect();
    let model = compiled
        .into_model(&ModelOptions::default())
        .expect("loads");
    let mut results = Session::new(&model).run(&views).expect("runs");
    results.remove(0).1.view().to_f64_vec()
}

fn furthest(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b);
    let distance = |(a, b): (&f64, &f64)| if a == b { 0.0 } else { (a - b).abs() };
    // NaN is no distance that a bound is above.
    pairs
        .map(distance)
        .fold(0.0, |a, d| if d <= a { a } else { d })
}

#[test]
fn half_precision_runs_by_the_same_kernels_and_as_exactly() {
    let inputs = inputs();
    for conversion in CONVERSIONS {
        let mut half = drawn();
        let mut single = half.clone();
        conversion.convert(&mut half);
        conversion.round(&mut single);
        let (narrow, wide) = (compiled(&half), compiled(&single));

        let mut expected = steps(&wide);
        if !conversion.keep_outputs {
            *expected.entry("portable cast".to_owned()).or_default() += 1;
        }
        assert_eq!(steps(&narrow), expected);

        // In single precision it is the twin's answer; as the file says, operator by operator, that is rounded at each.
        let rounding = if conversion.to == DataType::FLOAT16 {
            1e-3
        } else {
            1e-2
        };
        let by_operators = eval(&graph(&half), &inputs).expect("evaluates");
        let (narrow, wide) = (run(narrow, &inputs), run(wide, &inputs));
        let exact = if conversion.keep_outputs { 1e-6 } else { 1e-4 };
        assert!(furthest(&narrow, &wide) <= exact, "{narrow:?} {wide:?}");
        let by_operators = by_operators[0].1.view().to_f64_vec();
        assert!(
            furthest(&narrow, &by_operators) <= rounding,
            "{narrow:?} {by_operators:?}"
        );
    }
}

#[test]
fn weights_in_half_precision_are_held_once() {
    let mut half = drawn();
    CONVERSIONS[0].convert(&mut half);
    let mut single = drawn();
    CONVERSIONS[0].round(&mut single);
    let size = |model: &ModelProto| {
        let mut artifact = Vec::new();
        compiled(model).write(&mut artifact).expect("written");
        artifact.len()
    };
    assert_eq!(size(&half), size(&single));
}

#[test]
fn a_remark_says_that_half_precision_is_widened() {
    let mut half = drawn();
    CONVERSIONS[0].convert(&mut half);
    let report = compiled(&half).report;
    let mut remarks = report.remarks.iter();
    let remark = remarks.find(|r| r.pass == "widen-half-precision");
    let remark = remark.expect("a remark").message.clone();
    assert!(
        remark.contains("operations in half precision are computed in f32"),
        "{remark}"
    );
}

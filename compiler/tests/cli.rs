//! The command line as its users meet it: the built binary, its exit codes, and the files that it writes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use ndarray::{Array2, ArrayD, IxDyn, OwnedRepr};
use ndarray_npy::{NpzReader, NpzWriter};
use onnx_protobuf::{
    AttributeProto, GraphProto, Message as _, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto, tensor_shape_proto,
    type_proto,
};
use serde_json::Value;
use tempfile::TempDir;

/// What a call printed and how it ended.
struct Outcome {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Outcome {
    /// Fails the test unless the call ended with this exit code.
    #[track_caller]
    fn exits(self, code: i32) -> Outcome {
        assert_eq!(
            self.code, code,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self
    }

    /// Fails the test unless the message for people contains `text`.
    #[track_caller]
    fn says(self, text: &str) -> Outcome {
        assert!(self.stderr.contains(text), "stderr: {}", self.stderr);
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).expect("stdout is one JSON value")
    }
}

/// Runs `lancet` with arguments separated by spaces; `{}` stands for the paths, in order.
fn lancet(args: &str, paths: &[&Path]) -> Outcome {
    let mut paths = paths.iter();
    let args = args.split_whitespace().map(|a| match a {
        "{}" => paths.next().expect("a path for each {}").into(),
        word => PathBuf::from(word),
    });
    let output: Output = Command::new(env!("CARGO_BIN_EXE_lancet"))
        .args(args)
        .output()
        .expect("the binary runs");
    Outcome {
        code: output.status.code().expect("no signal ended it"),
        stdout: String::from_utf8(output.stdout).expect("stdout is text"),
        stderr: String::from_utf8(output.stderr).expect("stderr is text"),
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("the folder can be read");
    let mut names: Vec<String> = entries
        .map(|e| e.expect("an entry").file_name().display().to_string())
        .collect();
    names.sort();
    names
}

/// A drawn BERT and its artifact, made once by the command itself.
struct Tiny {
    _dir: TempDir,
    onnx: PathBuf,
    artifact: PathBuf,
}

static TINY: LazyLock<Tiny> = LazyLock::new(|| {
    let dir = folder();
    let (onnx, artifact) = (dir.path().join("tiny.onnx"), dir.path().join("tiny.lancet"));
    lancet(
        "synth bert-tiny --sparsity 0.9 --pattern 4x1 --seed 3 -o {}",
        &[&onnx],
    )
    .exits(0);
    lancet("compile {} -o {}", &[&onnx, &artifact]).exits(0);
    Tiny {
        _dir: dir,
        onnx,
        artifact,
    }
});

fn value_info(name: &str, shape: &[i64]) -> ValueInfoProto {
    let dim = |&size: &i64| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(size)),
        ..Default::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: 1,
        shape: Some(TensorShapeProto {
            dim: shape.iter().map(dim).collect(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    ValueInfoProto {
        name: name.to_owned(),
        type_: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

/// `y = op(x)` for `x: f32[3]`.
fn write_model(path: &Path, ops: &[&str]) {
    let mut graph = GraphProto::new();
    graph.name = "g".to_owned();
    graph.input.push(value_info("x", &[3]));
    graph.output.push(value_info("y", &[3]));
    for (i, op) in ops.iter().enumerate() {
        let (from, to) = (i, i + 1);
        let name = |i: usize| match i {
            0 => "x".to_owned(),
            i if i == ops.len() => "y".to_owned(),
            i => format!("t{i}"),
        };
        graph.node.push(NodeProto {
            op_type: (*op).to_owned(),
            name: format!("node_{i}"),
            input: vec![name(from)],
            output: vec![name(to)],
            ..Default::default()
        });
    }
    write_graph(path, graph);
}

fn write_graph(path: &Path, graph: GraphProto) {
    let mut model = ModelProto::new();
    model.ir_version = 8;
    model.opset_import.push(OperatorSetIdProto {
        version: 17,
        ..Default::default()
    });
    model.graph = Some(graph).into();
    let bytes = model.write_to_bytes().expect("the message is complete");
    fs::write(path, bytes).expect("the model is written");
}

fn write_tensor(path: &Path, dims: &[i64], values: &[f32]) {
    let tensor = TensorProto {
        data_type: 1,
        dims: dims.to_vec(),
        float_data: values.to_vec(),
        ..Default::default()
    };
    let bytes = tensor.write_to_bytes().expect("the message is complete");
    fs::write(path, bytes).expect("the tensor is written");
}

/// A case of two layers of bytes, `x[35, 5]` to `y[35, 2]`, that is said to give zeros.
fn write_quantized_case(dir: &Path) {
    let mut graph = GraphProto::new();
    graph.name = "g".to_owned();
    graph.input.push(value_info("x", &[35, 5]));
    graph.output.push(value_info("y", &[35, 2]));
    let scalar = |name: &str, data_type: i32, byte: Option<i32>| TensorProto {
        name: name.to_owned(),
        data_type,
        int32_data: byte.into_iter().collect(),
        float_data: if data_type == 1 { vec![0.25] } else { vec![] },
        ..Default::default()
    };
    let weights = |name: &str, k: i64, n: i64, weight: &dyn Fn(i64) -> u8| TensorProto {
        name: name.to_owned(),
        data_type: 3,
        dims: vec![k, n],
        raw_data: (0..k * n).map(weight).collect(),
        ..Default::default()
    };
    graph.initializer.extend([
        scalar("scale", 1, None),
        scalar("zero", 2, Some(100)),
        scalar("none", 3, Some(0)),
        weights("w0", 5, 6, &|i| (i % 7) as u8),
        weights("w1", 6, 2, &|i| 3 + i as u8),
    ]);
    for (op, inputs, output) in [
        ("QuantizeLinear", vec!["x", "scale", "zero"], "q"),
        ("MatMulInteger", vec!["q", "w0", "zero", "none"], "sum"),
        ("Cast", vec!["sum"], "f"),
        ("QuantizeLinear", vec!["f", "scale", "zero"], "r"),
        ("MatMulInteger", vec!["r", "w1", "zero", "none"], "total"),
        ("Cast", vec!["total"], "y"),
    ] {
        let mut node = NodeProto {
            op_type: op.to_owned(),
            name: format!("make_{output}"),
            input: inputs.into_iter().map(ToOwned::to_owned).collect(),
            output: vec![output.to_owned()],
            ..Default::default()
        };
        if op == "Cast" {
            node.attribute.push(AttributeProto {
                name: "to".to_owned(),
                type_: attribute_proto::AttributeType::INT.into(),
                i: 1,
                ..Default::default()
            });
        }
        graph.node.push(node);
    }
    let set = dir.join("test_data_set_0");
    fs::create_dir_all(&set).expect("the folder is made");
    write_graph(&dir.join("model.onnx"), graph);
    let x: Vec<f32> = (0..175u8).map(|i| f32::from(i % 19) - 9.0).collect();
    write_tensor(&set.join("input_0.pb"), &[35, 5], &x);
    write_tensor(&set.join("output_0.pb"), &[35, 2], &[0.0; 70]);
}

/// A case in the layout of the ONNX test suite: `relu` of -1, 0, 2, and what it is said to be.
fn write_case(dir: &Path, expected: [f32; 3]) {
    let set = dir.join("test_data_set_0");
    fs::create_dir_all(&set).expect("the folder is made");
    write_model(&dir.join("model.onnx"), &["Relu"]);
    for (file, values) in [("input_0.pb", [-1.0, 0.0, 2.0]), ("output_0.pb", expected)] {
        write_tensor(&set.join(file), &[3], &values);
    }
}

/// A request of two sequences of seven tokens, of which the second is padded.
fn write_request(path: &Path) {
    let mut npz = NpzWriter::new(File::create(path).expect("the file is made"));
    let ids = Array2::from_shape_fn((2, 7), |(b, t)| (101 + 13 * b + 7 * t) as i64);
    let mask = Array2::from_shape_fn((2, 7), |(b, t)| i64::from(b == 0 || t < 4));
    npz.add_array("input_ids", &ids).expect("written");
    npz.add_array("attention_mask", &mask).expect("written");
    npz.add_array("token_type_ids", &Array2::<i64>::zeros((2, 7)))
        .expect("written");
    npz.finish().expect("written");
}

fn read_logits(path: &Path) -> ArrayD<f32> {
    let mut npz = NpzReader::new(File::open(path).expect("the file is there")).expect("a zip");
    let names = npz.names().expect("names");
    assert_eq!(names.len(), 1, "{names:?}");
    npz.by_name::<OwnedRepr<f32>, IxDyn>(&names[0])
        .expect("an f32 array")
}

#[test]
fn usage_is_2() {
    let dir = folder();
    let out = dir.path().join("m.onnx");
    lancet("", &[]).exits(2);
    lancet("frobnicate", &[]).exits(2);
    lancet("check", &[]).exits(2);
    lancet("synth bert-tiny --sparsity 1.5 -o {}", &[&out])
        .exits(2)
        .says("--sparsity 1.5");
    lancet("synth bert-tiny --pattern 4y1 -o {}", &[&out])
        .exits(2)
        .says("4y1");
    lancet("bench {} --seconds 0", &[&TINY.onnx]).exits(2);
    lancet("bench {} --iters 0", &[&TINY.onnx]).exits(2);
    lancet("bench {} --threads 0", &[&TINY.onnx]).exits(2);
    lancet("bench {} --threads 1000000", &[&TINY.onnx]).exits(2);
    lancet("dump {} --stage nothing", &[&TINY.onnx])
        .exits(2)
        .says("nothing");
    let args = "compile {} -o {} --passes detect-sparsity{format=4y1}";
    lancet(args, &[&TINY.onnx, &out]).exits(2).says("4y1");
    lancet("compile {} -o {} --dump-ir-after dce", &[&TINY.onnx, &out])
        .exits(2)
        .says("dce");
    assert!(names(dir.path()).is_empty());
}

#[test]
fn unknown_passes_are_named_with_the_known_ones() {
    let dir = folder();
    let out = dir.path().join("m.lancet");
    let args = "compile {} -o {} --passes fold-constants,rise-gelu";
    lancet(args, &[&TINY.onnx, &out])
        .exits(2)
        .says("rise-gelu")
        .says("raise-gelu");
    let text = dir.path().join("g.ir");
    fs::write(&text, "graph @g(%x: f32[2]) {\n  return %x\n}\n").expect("written");
    lancet("opt {} --passes no-such", &[&text])
        .exits(2)
        .says("no-such");
}

#[test]
fn invalid_files_are_3() {
    let dir = folder();
    let garbage = dir.path().join("garbage.onnx");
    fs::write(&garbage, b"this is no model").expect("written");
    for verb in [
        "compile {}",
        "bench {}",
        "inspect {}",
        "dump {} --stage plan",
    ] {
        lancet(verb, &[&garbage]).exits(3).says("garbage.onnx");
    }
    let cut = dir.path().join("cut.lancet");
    let bytes = fs::read(&TINY.artifact).expect("the artifact is there");
    fs::write(&cut, &bytes[..bytes.len() / 2]).expect("written");
    lancet("bench {}", &[&cut]).exits(3).says("cut.lancet");
    lancet("inspect {}", &[&cut]).exits(3);
    lancet("run {} --inputs {}", &[&TINY.onnx, &garbage])
        .exits(3)
        .says("garbage.onnx");
    let text = dir.path().join("g.ir");
    fs::write(&text, "graph @g(%x: f32[2]) {\n  return %y\n}\n").expect("written");
    lancet("opt {}", &[&text]).exits(3).says("2:");
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).expect("made");
    lancet("check {}", &[&empty]).exits(3).says("no model.onnx");
}

#[test]
fn unsupported_is_4_and_names_every_node() {
    let dir = folder();
    let model = dir.path().join("m.onnx");
    write_model(&model, &["Relu", "Frobnicate", "Grobnicate"]);
    lancet("compile {}", &[&model])
        .exits(4)
        .says("node_1")
        .says("Frobnicate")
        .says("node_2")
        .says("Grobnicate");
    assert_eq!(names(dir.path()), ["m.onnx"]);
}

#[test]
fn limits_are_5() {
    let args = "bench {} --batch 1000000 --seq 1000000 --iters 1";
    lancet(args, &[&TINY.artifact]).exits(5);
}

#[test]
fn missing_files_are_6() {
    let dir = folder();
    let none = dir.path().join("none");
    for verb in [
        "compile {}",
        "bench {}",
        "inspect {}",
        "dump {} --stage import",
        "check {}",
        "opt {}",
    ] {
        lancet(verb, &[&none]).exits(6).says("none");
    }
    lancet("run {} --inputs {}", &[&TINY.onnx, &none]).exits(6);
    let out = none.join("m.lancet");
    lancet("compile {} -o {}", &[&TINY.onnx, &out]).exits(6);
    lancet("synth bert-tiny -o {}", &[&out]).exits(6);
}

#[test]
fn check_answers_yes_or_no() {
    let dir = folder();
    write_case(&dir.path().join("good"), [0.0, 0.0, 2.0]);
    lancet("check {}", &[dir.path()]).exits(0);
    write_case(&dir.path().join("bad"), [0.0, 0.0, 2.5]);
    let table = lancet("check {}", &[dir.path()]).exits(1);
    assert!(
        table.stdout.ends_with("1 passed, 1 failed\n"),
        "{}",
        table.stdout
    );
    let json = lancet("check --json --layerwise {}", &[dir.path()])
        .exits(1)
        .json();
    assert_eq!((&json["passed"], &json["failed"]), (&1.into(), &1.into()));
    let bad = &json["cases"][0];
    assert_eq!(
        (&bad["name"], &bad["max_abs"]),
        (&"bad".into(), &0.5.into())
    );
    let problems = bad["problems"].to_string();
    assert!(problems.contains("plan and evaluator agree"), "{problems}");
}

/// Bytes that a plan holds four features together, or as whole numbers in `f32`, are shown as the graph has them.
#[test]
fn every_value_of_a_quantized_case_is_compared() {
    let dir = folder();
    write_quantized_case(dir.path());
    let json = lancet("check --json --layerwise {}", &[dir.path()])
        .exits(1)
        .json();
    let problems = json["cases"][0]["problems"].to_string();
    assert!(problems.contains("plan and evaluator agree"), "{problems}");
}

#[test]
fn a_case_without_data_does_not_agree() {
    let dir = folder();
    write_model(&dir.path().join("model.onnx"), &["Relu"]);
    lancet("check {}", &[dir.path()]).exits(1);
}

/// An artifact appears whole or not at all, and what was there before stays until then.
#[test]
fn files_are_replaced_whole_and_only_when_asked() {
    let dir = folder();
    let (good, bad, out) = (
        dir.path().join("good.onnx"),
        dir.path().join("bad.onnx"),
        dir.path().join("m.lancet"),
    );
    write_model(&good, &["Relu"]);
    write_model(&bad, &["Frobnicate"]);
    fs::write(&out, "mine").expect("written");
    lancet("compile {} -o {}", &[&good, &out])
        .exits(2)
        .says("--force");
    lancet("compile {} -o {} --force", &[&bad, &out]).exits(4);
    assert_eq!(fs::read(&out).expect("still there"), b"mine");
    lancet("compile {} -o {} --force", &[&good, &out]).exits(0);
    assert_ne!(fs::read(&out).expect("still there"), b"mine");
    assert_eq!(names(dir.path()), ["bad.onnx", "good.onnx", "m.lancet"]);
    // Without -o the artifact stands beside the model.
    lancet("compile {}", &[&good]).exits(0);
    assert!(dir.path().join("good.lancet").is_file());
}

#[test]
fn onnx_and_artifact_give_the_same_bits() {
    let dir = folder();
    let request = dir.path().join("request.npz");
    write_request(&request);
    let mut answers = Vec::new();
    for (model, threads) in [
        (&TINY.onnx, "1"),
        (&TINY.artifact, "1"),
        (&TINY.artifact, "3"),
    ] {
        let out = dir.path().join("answer.npz");
        let args = format!("run {{}} --inputs {{}} --outputs {{}} --threads {threads} --json");
        let json = lancet(&args, &[model, &request, &out]).exits(0).json();
        assert_eq!(json["outputs"][0]["shape"], serde_json::json!([2, 2]));
        answers.push(read_logits(&out).mapv(f32::to_bits));
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0], answers[2]);
    // The same model through no pass at all, by the portable operators.
    let plain = dir.path().join("plain.lancet");
    let out = dir.path().join("plain.npz");
    lancet(
        "compile {} -o {} --passes fold-constants",
        &[&TINY.onnx, &plain],
    )
    .exits(0);
    lancet("run {} --inputs {} --outputs {}", &[&plain, &request, &out]).exits(0);
    let plain = read_logits(&out);
    for (&plain, &bits) in plain.iter().zip(&answers[0]) {
        assert!((plain - f32::from_bits(bits)).abs() < 1e-4);
    }
}

#[test]
fn requests_that_do_not_fit_are_2() {
    let dir = folder();
    let request = dir.path().join("request.npz");
    let mut npz = NpzWriter::new(File::create(&request).expect("made"));
    npz.add_array("input_ids", &Array2::<i64>::zeros((1, 3)))
        .expect("written");
    npz.finish().expect("written");
    lancet("run {} --inputs {}", &[&TINY.artifact, &request])
        .exits(2)
        .says("attention_mask");
}

#[test]
fn bench_and_inspect_report_as_json() {
    let args = "bench {} --batch 2 --seq 9 --threads 1 --iters 3 --json";
    let bench = lancet(args, &[&TINY.artifact]).exits(0).json();
    assert_eq!(bench["iterations"], 3);
    assert_eq!(bench["threads"], 1);
    for key in [
        "median_ms",
        "p5_ms",
        "p95_ms",
        "mean_ms",
        "tokens_per_second",
    ] {
        assert!(bench[key].as_f64().is_some_and(|v| 0.0 < v), "{key}");
    }
    for model in [&TINY.onnx, &TINY.artifact] {
        let inspect = lancet("inspect {} --json", &[model]).exits(0).json();
        assert_eq!(inspect["inputs"].as_array().map(Vec::len), Some(3));
        let matrices = inspect["matrices"].as_array().expect("a list");
        // Query, key, value, output, and the two of the feed-forward part, in two layers.
        let pruned = matrices.iter().filter(|m| {
            m["sparsity"]
                .as_f64()
                .is_some_and(|s| (0.89..0.91).contains(&s))
        });
        assert!(4 <= pruned.count(), "{inspect}");
        assert_eq!(inspect["measured"]["seq"], 128);
        for step in inspect["portable"].as_array().expect("a list") {
            assert!(step["operator"].is_string() && step["name"].is_string());
            let share = step["share"].as_f64();
            assert!(share.is_some_and(|s| (0.0..0.5).contains(&s)), "{step}");
        }
    }
    for verb in ["inspect {}", "bench {} --iters 2 --seq 5 --profile"] {
        let text = lancet(verb, &[&TINY.artifact]).exits(0).stdout;
        assert!(text.contains("linear") || text.contains("median"), "{text}");
    }
}

#[test]
fn kernels_are_dumped_for_other_cpus() {
    for (cpu, register, loops) in [
        ("avx2", "ymm0", "84 instructions for 384"),
        ("avx512", "zmm0", "84 instructions for 768"),
    ] {
        let args = format!("dump {{}} --stage asm --cpu {cpu}");
        let dump = lancet(&args, &[&TINY.onnx]).exits(0).stdout;
        let main_loop = format!("; main loop: {loops} multiply-adds\n");
        assert!(
            dump.contains(&main_loop) && dump.contains(register),
            "{dump}"
        );
    }
}

#[test]
fn dumps_of_the_graph_are_text_that_passes_read() {
    let dir = folder();
    let model = dir.path().join("m.onnx");
    write_model(&model, &["Identity", "Relu"]);
    let import = lancet("dump {} --stage import", &[&model]).exits(0).stdout;
    let text = dir.path().join("m.ir");
    fs::write(&text, &import).expect("written");
    let same = lancet("opt {}", &[&text]).exits(0).stdout;
    assert_eq!(same, import);
    let shorter = lancet("opt {} --passes eliminate-identities", &[&text])
        .exits(0)
        .stdout;
    assert!(import.contains("identity") && !shorter.contains("identity"));
    for stage in [
        "eliminate-identities",
        "assign-layout",
        "plan",
        "clif",
        "asm",
    ] {
        let args = format!("dump {{}} --stage {stage}");
        let text = lancet(&args, &[&TINY.onnx]).exits(0).stdout;
        assert!(!text.is_empty(), "{stage}");
    }
}

#[test]
fn compile_tells_what_passes_did() {
    let dir = folder();
    let out = dir.path().join("m.lancet");
    let args = "compile {} -o {} --force --remarks --time-passes";
    lancet(args, &[&TINY.onnx, &out])
        .exits(0)
        .says("applied: raise-linear")
        .says(" ms ");
    let args = "compile {} -o {} --force --json";
    let json = lancet(args, &[&TINY.onnx, &out]).exits(0).json();
    let bytes = fs::metadata(&out).expect("written").len();
    assert_eq!(json["bytes"], bytes);
    assert!(
        json["variants"][0]["passes"]
            .as_array()
            .is_some_and(|p| 5 < p.len())
    );
    let args = "compile {} -o {} --force --dump-ir-after raise-linear";
    let dump = lancet(args, &[&TINY.onnx, &out]).exits(0).stdout;
    assert!(dump.starts_with("; after raise-linear\ngraph @"), "{dump}");
}

/// Equal seeds draw equal files.
#[test]
fn synth_repeats_itself() {
    let dir = folder();
    let again = dir.path().join("again.onnx");
    let args = "synth bert-tiny --sparsity 0.9 --pattern 4x1 --seed 3 --json -o {}";
    let json = lancet(args, &[&again]).exits(0).json();
    let bytes = fs::read(&again).expect("written");
    assert_eq!(json["bytes"], bytes.len());
    assert!(bytes == fs::read(&TINY.onnx).expect("written"));
}

/// Slices of one model share what they have in common, and each is found by its name.
#[test]
fn variants_are_slices_of_one_model() {
    let dir = folder();
    let (whole, both) = (dir.path().join("whole"), dir.path().join("both"));
    lancet("compile {} -o {}", &[&TINY.onnx, &whole]).exits(0);
    let args = "compile {} -o {} --variant full --variant half:width=0.5,depth=0.5 --json";
    let json = lancet(args, &[&TINY.onnx, &both]).exits(0).json();
    assert_eq!(json["variants"][1]["name"], "half");
    let bytes = |p: &Path| fs::metadata(p).expect("written").len();
    assert!(
        bytes(&both) < 2 * bytes(&whole),
        "embeddings and layers are shared"
    );
    let parameters = |variant: &str| {
        let args = format!("inspect {{}} {variant} --json");
        lancet(&args, &[&both]).exits(0).json()["parameters"].clone()
    };
    assert_eq!(parameters(""), parameters("--variant full"));
    assert!(parameters("--variant half").as_u64() < parameters("").as_u64());
    lancet("bench {} --variant half --iters 1 --seq 8", &[&both]).exits(0);
    lancet("bench {} --variant quarter --iters 1", &[&both])
        .exits(2)
        .says("unknown variant `quarter`: the artifact has `full`, `half`");
    lancet("bench {} --variant half --iters 1", &[&TINY.onnx])
        .exits(2)
        .says("only artifacts have variants");
    lancet("compile {} -o {} --force --width 1.5", &[&TINY.onnx, &both])
        .exits(2)
        .says("above 0, at most 1");
}

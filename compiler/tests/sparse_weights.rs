//! Sparse initializers, from file to answer: the same artifact as their dense twins, in memory of the values.

#[path = "onnx/model.rs"]
#[allow(dead_code, reason = "each test binary uses a part of this")]
mod model;

use lancet::onnx::{ErrorKind, ImportOptions, import_bytes};
use lancet::{CompileError, CompileOptions, Compiled, ModelOptions, Session, Tensor, compile};
use onnx_protobuf::SparseTensorProto;
use onnx_protobuf::tensor_proto::DataType;
use protobuf::MessageField;

use model::{D, Model, f32s, i64s, node};

/// A matrix as the values that are not zero.
#[derive(Clone)]
struct Matrix {
    shape: [i64; 2],
    positions: Vec<i64>,
    values: Vec<f32>,
}

/// A matrix with one value in each stretch of `every` positions, in an order of its own.
fn matrix([rows, columns]: [i64; 2], every: i64) -> Matrix {
    let count = rows * columns / every;
    let positions = (0..count).map(|i| (count - 1 - i) * every + i * 7919 % every);
    Matrix {
        shape: [rows, columns],
        positions: positions.collect(),
        values: (0..count).map(|i| (i % 17) as f32 / 8.0 - 1.0625).collect(),
    }
}

fn sparse(name: &str, m: &Matrix, coordinates: bool) -> SparseTensorProto {
    let n = m.values.len() as i64;
    let indices = if coordinates {
        let pair = |p: &i64| [p / m.shape[1], p % m.shape[1]];
        let pairs: Vec<i64> = m.positions.iter().flat_map(pair).collect();
        i64s("", &[n, 2], &pairs)
    } else {
        i64s("", &[n], &m.positions)
    };
    SparseTensorProto {
        values: MessageField::some(f32s(name, &[n], &m.values)),
        indices: MessageField::some(indices),
        dims: m.shape.to_vec(),
        ..Default::default()
    }
}

/// `y = x · w`, or with the transpose of `w`.
fn product(inputs: i64, transposed: bool) -> Model {
    let model = Model::new(17)
        .input("x", DataType::FLOAT, &[D::S("tokens"), D::N(inputs)])
        .output("y");
    if transposed {
        let turned = node("Transpose", "w", "t");
        model.node(turned).node(node("MatMul", "x t", "y"))
    } else {
        model.node(node("MatMul", "x w", "y"))
    }
}

fn with_sparse(mut model: Model, tensor: SparseTensorProto) -> Model {
    let graph = model.0.graph.as_mut().expect("made by new");
    graph.sparse_initializer.push(tensor);
    model
}

fn compiled(model: &Model) -> Compiled {
    let graph = import_bytes(&model.bytes(), None, &ImportOptions::default()).expect("imports");
    compile(graph, &CompileOptions::default(), &mut |_, _| {}).expect("compiles")
}

#[test]
fn the_artifact_is_that_of_the_dense_twin() {
    for (shape, every, transposed) in [
        ([96, 64], 7, false),
        ([64, 100], 9, true),
        ([520, 300], 11, false),
        ([300, 8], 2, true),
    ] {
        let m = matrix(shape, every);
        let mut elements = vec![0.0; (shape[0] * shape[1]) as usize];
        for (&p, &v) in m.positions.iter().zip(&m.values) {
            elements[p as usize] = v;
        }
        let inputs = shape[usize::from(transposed)];
        let dense = product(inputs, transposed).tensor(f32s("w", &shape, &elements));
        let mut expected = Vec::new();
        compiled(&dense).write(&mut expected).expect("writes");
        for coordinates in [false, true] {
            let tensor = sparse("w", &m, coordinates);
            let mut found = Vec::new();
            let twin = compiled(&with_sparse(product(inputs, transposed), tensor));
            twin.write(&mut found).expect("writes");
            assert!(found == expected, "{shape:?} {transposed} {coordinates}");
        }
    }
}

#[test]
fn memory_is_that_of_the_values() {
    // 6.4 GB if it were dense.
    let (n, every) = (40_000, 40_000);
    let m = matrix([n, n], every);
    let before = peak_bytes();
    let model = with_sparse(product(n, false), sparse("w", &m, true));
    let model = compiled(&model)
        .into_model(&ModelOptions::default())
        .expect("lowers");
    let x: Vec<f32> = (0..2 * n).map(|i| (i % 13) as f32 - 6.0).collect();
    let x = Tensor::new([2, n as usize], x);
    let y = Session::new(&model).run(&[("x", x.view())]).expect("runs");
    if let Some((before, after)) = before.zip(peak_bytes()) {
        assert!(after - before < 256 << 20, "{} bytes", after - before);
    }
    let mut expected = vec![0.0f32; 2 * n as usize];
    let x = x.as_slice::<f32>().expect("f32");
    for (&p, &v) in m.positions.iter().zip(&m.values) {
        for token in 0..2 {
            expected[(token * n + p % n) as usize] += x[(token * n + p / n) as usize] * v;
        }
    }
    let y = y[0].1.as_slice::<f32>().expect("f32");
    let close = |(y, e): (&f32, &f32)| (y - e).abs() <= 1e-4 * (1.0 + e.abs());
    assert!(y.iter().zip(&expected).all(close));
}

/// The most memory that this process has had, where the system tells.
fn peak_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kilobytes: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes << 10)
}

#[test]
fn sizes_without_values_are_refused() {
    let few = |n: i64| Matrix {
        shape: [n, n],
        positions: vec![0, 5, n * (n - 1)],
        values: vec![1.0, 2.0, 3.0],
    };
    let m = Matrix {
        positions: vec![0, 1, 2],
        ..few(2)
    };
    let huge = Matrix {
        shape: [1 << 31, 1 << 31],
        ..m
    };
    let model = with_sparse(product(1 << 31, false), sparse("w", &huge, true));
    let error = import_bytes(&model.bytes(), None, &ImportOptions::default()).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(error.to_string().contains("too many elements"), "{error}");

    // A weight with more rows than its values are good for.
    let large = few(1 << 29);
    let model = with_sparse(product(1 << 29, false), sparse("w", &large, true));
    let error = compiled(&model)
        .write(&mut Vec::new())
        .expect_err("refused");
    assert!(matches!(&error, CompileError::Lower(_)));
    assert!(error.to_string().contains("too large to pack"), "{error}");

    // Something else than a weight.
    let model = product(1 << 20, false)
        .node(node("Relu", "w", "z"))
        .output("z");
    let model = with_sparse(model, sparse("w", &few(1 << 20), false));
    let error = compiled(&model)
        .write(&mut Vec::new())
        .expect_err("refused");
    assert!(
        error.to_string().contains("too large to be made dense"),
        "{error}"
    );
}

#[test]
fn what_is_no_weight_is_made_dense() {
    let m = matrix([6, 4], 3);
    let model = Model::new(17)
        .input("ids", DataType::INT64, &[D::S("tokens")])
        .node(node("Gather", "w ids", "y"))
        .output("y");
    let model = with_sparse(model, sparse("w", &m, true));
    let model = compiled(&model).into_model(&ModelOptions::default());
    let ids = Tensor::new([3], vec![5i64, 0, 2]);
    let y = Session::new(&model.expect("lowers")).run(&[("ids", ids.view())]);
    let y = y.expect("runs");
    let mut rows = [[0.0f32; 4]; 6];
    for (&p, &v) in m.positions.iter().zip(&m.values) {
        rows[p as usize / 4][p as usize % 4] = v;
    }
    let expected = [rows[5], rows[0], rows[2]].concat();
    assert_eq!(y[0].1.as_slice::<f32>(), Some(&expected[..]));
}

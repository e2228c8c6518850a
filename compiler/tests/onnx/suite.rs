//! The test-suite layout: what is found, and what counts as equal.

use std::fs;

use lancet::onnx::testsuite::{Tolerance, compare, discover};
use lancet_ops::Tensor;
use onnx_protobuf::Message as _;

use crate::model::{Model, f32s, node};

#[test]
fn cases_are_found_with_their_data_in_number_order() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let case = dir.path().join("nested/b");
    let model = Model::new(13).node(node("Relu", "x", "y")).output("y");
    for set in ["test_data_set_10", "test_data_set_2", "other"] {
        let set = case.join(set);
        fs::create_dir_all(&set).expect("created");
        for k in [0, 1, 2, 10] {
            let tensor = f32s("", &[1], &[k as f32])
                .write_to_bytes()
                .expect("complete");
            fs::write(set.join(format!("input_{k}.pb")), tensor).expect("written");
        }
        let tensor = f32s("y", &[1], &[3.0]).write_to_bytes().expect("complete");
        fs::write(set.join("output_0.pb"), tensor).expect("written");
    }
    fs::write(case.join("model.onnx"), model.bytes()).expect("written");
    fs::write(
        case.join("tolerance.json"),
        r#"{"atol": 0.5, "mean_abs": 0.1}"#,
    )
    .expect("written");

    let cases = discover(dir.path()).expect("a case");
    let [found] = cases.as_slice() else {
        panic!("{cases:?}");
    };
    assert_eq!(found.name, "nested/b");
    assert_eq!(found.tolerance.atol, 0.5);
    assert_eq!(found.tolerance.rtol, 1e-3);
    assert_eq!(found.tolerance.mean_abs, Some(0.1));
    let sets: Vec<String> = found
        .data_sets
        .iter()
        .map(|d| d.dir.file_name().unwrap_or_default().display().to_string())
        .collect();
    assert_eq!(sets, ["test_data_set_2", "test_data_set_10"]);
    let (inputs, outputs) = found.data_sets[0].load().expect("readable");
    let values: Vec<f32> = inputs
        .iter()
        .filter_map(|(_, t)| t.as_slice::<f32>()?.first().copied())
        .collect();
    assert_eq!(values, [0.0, 1.0, 2.0, 10.0]);
    assert_eq!(outputs[0].0, "y");
    assert_eq!(discover(&case).expect("the case itself")[0].name, "b");
    assert!(discover(&case.join("other")).is_err());
}

#[test]
fn tensors_are_arranged_by_name_or_by_position() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir(dir.path().join("test_data_set_0")).expect("created");
    fs::write(dir.path().join("model.onnx"), b"").expect("written");
    let set = &discover(dir.path()).expect("a case")[0].data_sets[0];
    let tensors = |a: &str, b: &str| {
        vec![
            (a.to_owned(), Tensor::scalar(1i64)),
            (b.to_owned(), Tensor::scalar(2i64)),
        ]
    };
    let one_two = vec![Tensor::scalar(1i64), Tensor::scalar(2i64)];
    let two_one = vec![Tensor::scalar(2i64), Tensor::scalar(1i64)];
    assert_eq!(
        set.arrange(tensors("p", "q"), &["q", "p"]).expect("fits"),
        two_one
    );
    assert_eq!(
        set.arrange(tensors("", ""), &["q", "p"]).expect("fits"),
        one_two
    );
    assert!(set.arrange(tensors("p", "q"), &["p"]).is_err());
    assert_eq!(
        set.arrange(tensors("p", "p"), &["p", "p"]).expect("fits"),
        one_two
    );
}

#[test]
fn comparison() {
    let t = |v: &[f32]| Tensor::new(vec![v.len()], v.to_vec());
    let tolerance = Tolerance {
        rtol: 0.0,
        atol: 0.5,
        mean_abs: Some(0.25),
    };
    let c = |e: &[f32], f: &[f32]| compare(&t(e), &t(f), &tolerance);
    assert!(c(&[1.0, 2.0], &[1.5, 2.0]).agrees());
    assert!(
        !c(&[1.0, 2.0], &[1.5, 2.5]).agrees(),
        "the mean is too large"
    );
    let wrong = c(&[1.0, 2.0, 3.0], &[1.0, 2.0, 4.0]);
    assert_eq!((wrong.n_wrong, wrong.worst, wrong.max_abs), (1, 2, 1.0));
    assert!(c(&[f32::NAN, f32::INFINITY], &[f32::NAN, f32::INFINITY]).agrees());
    for found in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(!c(&[1.0], &[found]).agrees());
        assert!(!c(&[found], &[1.0]).agrees());
    }
    assert!(!c(&[f32::INFINITY], &[f32::NEG_INFINITY]).agrees());
    let ints = |v: i64| Tensor::scalar(v);
    let exact = Tolerance {
        rtol: 0.0,
        atol: 0.0,
        mean_abs: None,
    };
    assert!(!compare(&ints(i64::MAX), &ints(i64::MAX - 1), &exact).agrees());
    assert!(!compare(&ints(1), &Tensor::scalar(1i32), &exact).agrees());
    assert!(!compare(&t(&[1.0]), &Tensor::scalar(1.0f32), &exact).agrees());
}

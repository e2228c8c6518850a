//! Constants of every element type, raw, typed and sparse, and what is wrong with them.

use onnx_protobuf::tensor_proto::DataType;
use onnx_protobuf::{Message as _, SparseTensorProto, TensorProto};
use protobuf::{Enum as _, MessageField};

use crate::model::{Model, f32s, i64s, node, raw};
use crate::outcome;

fn constant(tensor: TensorProto) -> String {
    outcome(&Model::new(13).tensor(tensor).output("w"))
}

fn empty(ty: DataType, dims: &[i64]) -> TensorProto {
    raw("w", ty, dims, Vec::new())
}

#[test]
fn raw_elements_of_every_type() {
    let bytes: Vec<u8> = (1..=16).collect();
    let types = [
        (DataType::FLOAT, 4),
        (DataType::DOUBLE, 2),
        (DataType::FLOAT16, 8),
        (DataType::BFLOAT16, 8),
        (DataType::INT8, 16),
        (DataType::INT16, 8),
        (DataType::INT32, 4),
        (DataType::INT64, 2),
        (DataType::UINT8, 16),
        (DataType::UINT16, 8),
        (DataType::UINT32, 4),
        (DataType::UINT64, 2),
        (DataType::BOOL, 16),
    ];
    let text: Vec<String> = types
        .iter()
        .map(|(ty, n)| constant(raw("w", *ty, &[*n], bytes.clone())))
        .collect();
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn typed_elements() {
    let with = |ty, f: &dyn Fn(&mut TensorProto)| {
        let mut t = empty(ty, &[2]);
        f(&mut t);
        constant(t)
    };
    insta::assert_snapshot!(
        [
            with(DataType::FLOAT, &|t| t.float_data = vec![1.5, -2.0]),
            with(DataType::DOUBLE, &|t| t.double_data = vec![1.5, -2.0]),
            with(DataType::FLOAT16, &|t| t.int32_data = vec![0x3c00, 0xc000]),
            with(DataType::BFLOAT16, &|t| t.int32_data = vec![0x3f80, 0xc000]),
            with(DataType::INT8, &|t| t.int32_data = vec![-128, 127]),
            with(DataType::UINT8, &|t| t.int32_data = vec![0, 255]),
            with(DataType::BOOL, &|t| t.int32_data = vec![0, 1]),
            with(DataType::INT32, &|t| t.int32_data = vec![0, -1]),
            with(DataType::UINT32, &|t| t.uint64_data =
                vec![0, 4_294_967_295]),
            with(DataType::UINT64, &|t| t.uint64_data = vec![0, u64::MAX]),
            with(DataType::INT8, &|t| t.int32_data = vec![-129, 127]),
            with(DataType::FLOAT, &|t| t.float_data = vec![1.0]),
            with(DataType::FLOAT, &|t| t.double_data = vec![1.0, 2.0]),
        ]
        .join("\n")
    );
}

#[test]
fn elements_of_less_than_a_byte() {
    let with = |ty: i32, f: &dyn Fn(&mut TensorProto)| {
        let mut w = empty(DataType::UNDEFINED, &[5]);
        w.data_type = ty;
        f(&mut w);
        let dequantize = node("DequantizeLinear", "w scale", "y");
        outcome(
            &Model::new(25)
                .tensor(w)
                .tensor(f32s("scale", &[], &[1.0]))
                .node(dequantize)
                .output("y"),
        )
    };
    let [int4, uint4] = [DataType::INT4, DataType::UINT4].map(|ty| ty.value());
    // The 2-bit types are newer than these messages.
    let [uint2, int2] = [25, 26];
    insta::assert_snapshot!(
        [
            with(int4, &|t| t.raw_data = vec![0x87, 0xf0, 0x01]),
            with(uint4, &|t| t.raw_data = vec![0x87, 0xf0, 0x01]),
            with(int4, &|t| t.int32_data = vec![0x87, 0xf0, 0x01]),
            with(int2, &|t| t.raw_data = vec![0b1110_0100, 0b10]),
            with(uint2, &|t| t.raw_data = vec![0b1110_0100, 0b10]),
            with(int4, &|t| t.raw_data = vec![0x87, 0xf0]),
            with(int4, &|t| t.int32_data = vec![0x87, 0xf0]),
        ]
        .join("\n")
    );
}

#[test]
fn sizes_that_disagree() {
    insta::assert_snapshot!(
        [
            constant(f32s("w", &[3], &[1.0, 2.0])),
            constant(f32s("w", &[-2], &[1.0, 2.0])),
            constant(f32s("w", &[1 << 62, 1 << 62], &[1.0])),
            constant(f32s("w", &[1 << 40], &[1.0])),
            constant(empty(DataType::FLOAT, &[0, 5])),
            constant(empty(DataType::UNDEFINED, &[0])),
            constant(empty(DataType::STRING, &[0])),
            constant(empty(DataType::INT4, &[0])),
        ]
        .join("\n")
    );
}

fn sparse(dims: &[i64], indices: TensorProto, values: &[f32]) -> String {
    let mut model = Model::new(13).output("w");
    let tensor = SparseTensorProto {
        values: MessageField::some(f32s("w", &[values.len() as i64], values)),
        indices: MessageField::some(indices),
        dims: dims.to_vec(),
        ..Default::default()
    };
    let graph = model.0.graph.as_mut().expect("made by new");
    graph.sparse_initializer.push(tensor);
    outcome(&model)
}

#[test]
fn sparse_constants() {
    insta::assert_snapshot!(
        [
            sparse(&[2, 3], i64s("", &[2], &[1, 5]), &[1.0, 2.0]),
            sparse(&[2, 3], i64s("", &[2, 2], &[0, 1, 1, 2]), &[1.0, 2.0]),
            sparse(&[2, 3], i64s("", &[2], &[1, 6]), &[1.0, 2.0]),
            sparse(&[2, 3], i64s("", &[2], &[1, 1]), &[1.0, 2.0]),
            sparse(&[2, 3], i64s("", &[3], &[1, 2, 3]), &[1.0, 2.0]),
            sparse(&[1 << 20, 1 << 20], i64s("", &[2], &[1, 5]), &[1.0, 2.0]),
        ]
        .join("\n")
    );
}

#[test]
fn tensor_files() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("input_0.pb");
    let bytes = f32s("x", &[2], &[1.0, 2.0])
        .write_to_bytes()
        .expect("complete");
    std::fs::write(&path, &bytes).expect("written");
    let (name, tensor) = lancet::onnx::read_tensor_file(&path).expect("a tensor");
    assert_eq!(name, "x");
    assert_eq!(tensor.as_slice::<f32>(), Some(&[1.0, 2.0][..]));
    std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("written");
    let errors = lancet::onnx::read_tensor_file(&path).expect_err("refused");
    assert_eq!(errors.kind(), lancet::onnx::ErrorKind::Invalid);
    assert_eq!(DataType::FLOAT.value(), 1);
}

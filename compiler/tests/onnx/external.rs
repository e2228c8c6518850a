//! External data: what is read, and what is refused.

use std::fs;
use std::path::Path;

use lancet::onnx::{ErrorKind, ImportOptions, import_file};
use onnx_protobuf::tensor_proto::{DataLocation, DataType};
use onnx_protobuf::{StringStringEntryProto, TensorProto};

use crate::describe;
use crate::model::{Model, raw};

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto {
        key: key.to_owned(),
        value: value.to_owned(),
        ..Default::default()
    }
}

fn external(entries: &[(&str, &str)]) -> TensorProto {
    TensorProto {
        data_location: DataLocation::EXTERNAL.into(),
        external_data: entries.iter().map(|(k, v)| entry(k, v)).collect(),
        ..raw("w", DataType::UINT8, &[3], Vec::new())
    }
}

/// Kind and text of the outcome of a model in `dir` whose only constant has these entries.
fn outcome(dir: &Path, entries: &[(&str, &str)]) -> (Option<ErrorKind>, String) {
    let path = dir.join("model.onnx");
    let model = Model::new(13).tensor(external(entries)).output("w");
    fs::write(&path, model.bytes()).expect("written");
    match import_file(&path, &ImportOptions::default()) {
        Ok(graph) => (None, describe(&graph)),
        Err(e) => (Some(e.kind()), e.to_string()),
    }
}

#[test]
fn ranges_are_read() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir(dir.path().join("sub")).expect("created");
    fs::write(dir.path().join("sub/w.bin"), [1u8, 2, 3, 4, 5]).expect("written");
    let at = |entries: &[(&str, &str)]| {
        let mut all = vec![("location", "sub/w.bin")];
        all.extend_from_slice(entries);
        outcome(dir.path(), &all)
    };
    let (kind, text) = at(&[("offset", "2"), ("length", "3")]);
    assert_eq!(kind, None, "{text}");
    assert!(text.contains("U8([3, 4, 5])"), "{text}");
    let (kind, text) = at(&[]);
    assert_eq!(kind, None, "{text}");
    assert!(text.contains("U8([1, 2, 3])"), "{text}");
    for wrong in [
        &[("offset", "3")][..],
        &[("offset", "18446744073709551615")],
        &[("length", "2")],
        &[("length", "-3")],
        &[("offset", "a")],
    ] {
        let (kind, text) = at(wrong);
        assert_eq!(kind, Some(ErrorKind::Invalid), "{text}");
    }
}

#[test]
fn paths_stay_in_the_folder() {
    let outer = tempfile::tempdir().expect("a temporary folder");
    fs::write(outer.path().join("secret"), [1u8, 2, 3]).expect("written");
    let dir = outer.path().join("model");
    fs::create_dir(&dir).expect("created");
    fs::create_dir(dir.join("folder")).expect("created");
    let absolute = outer.path().join("secret").display().to_string();
    for location in [
        "../secret",
        &absolute,
        "folder",
        "folder/../../secret",
        "",
        "a\\b",
    ] {
        let (kind, text) = outcome(&dir, &[("location", location)]);
        assert_eq!(kind, Some(ErrorKind::Invalid), "{location}: {text}");
    }
    let (kind, text) = outcome(&dir, &[("location", "missing")]);
    assert_eq!(kind, Some(ErrorKind::Io), "{text}");
    let (kind, text) = outcome(&dir, &[("offset", "0")]);
    assert_eq!(kind, Some(ErrorKind::Invalid), "{text}");
}

#[cfg(unix)]
#[test]
fn links_may_not_leave_the_folder() {
    use std::os::unix::fs::symlink;
    let outer = tempfile::tempdir().expect("a temporary folder");
    fs::write(outer.path().join("secret"), [1u8, 2, 3]).expect("written");
    let dir = outer.path().join("model");
    fs::create_dir(&dir).expect("created");
    fs::write(dir.join("own"), [4u8, 5, 6]).expect("written");
    symlink("../secret", dir.join("out")).expect("linked");
    symlink("own", dir.join("in")).expect("linked");
    let (kind, text) = outcome(&dir, &[("location", "out")]);
    assert_eq!(kind, Some(ErrorKind::Invalid), "{text}");
    let (kind, text) = outcome(&dir, &[("location", "in")]);
    assert_eq!(kind, None, "{text}");
}

//! The text of every kind of kernel: kernel IR at 256 bits, Cranelift IR, and machine code.

use lancet_artifact::{
    Activation, Binary, Element, Extent, Float, Reach, Reduction, Vertical, VerticalOp,
    VerticalOperand,
};
use lancet_codegen::{
    Arithmetic, CallingConvention, Code, CpuFeatures, Isa, KernelSpec, WeightFormat, disassemble,
    emit, kernels,
};

const FORMATS: [WeightFormat; 4] = [
    WeightFormat::Dense,
    WeightFormat::Unstructured,
    WeightFormat::Bsr { r: 4, c: 1 },
    WeightFormat::Bsr { r: 1, c: 4 },
];

/// What follows an integer product: bias, scale of each feature, ReLU, and bytes again.
fn requantize() -> Vertical {
    let operand = |element, extent| VerticalOperand { element, extent };
    Vertical {
        operands: vec![
            operand(Element::I32, Extent::Panels),
            operand(Element::I32, Extent::Features),
            operand(Element::F32, Extent::Features),
            operand(Element::F32, Extent::Scalar),
            operand(Element::I32, Extent::Scalar),
        ],
        ops: vec![
            VerticalOp::Binary {
                op: Binary::Add,
                a: 0,
                b: 1,
            },
            VerticalOp::ToFloat { a: 5 },
            VerticalOp::Binary {
                op: Binary::Mul,
                a: 6,
                b: 2,
            },
            VerticalOp::Activation {
                kind: Activation::Relu,
                a: 7,
            },
            VerticalOp::Quantize {
                a: 8,
                scale: 3,
                zero_point: Some(4),
            },
        ],
    }
}

/// One spec of each kind, on a panel of `panel` tokens.
fn specs(panel: u32, lanes: u32) -> Vec<KernelSpec> {
    let mut specs: Vec<KernelSpec> = FORMATS
        .into_iter()
        .map(|format| KernelSpec::Matmul {
            format,
            panel,
            lanes,
        })
        .collect();
    specs.extend([
        KernelSpec::Epilogue {
            activation: Activation::Gelu,
            residual: true,
            panel,
            lanes,
        },
        KernelSpec::Elementwise {
            body: "mul x0 x1; relu v0".to_owned(),
            operands: vec![(Reach::Panel, Float::F32), (Reach::Rows, Float::F32)],
            result: Float::F32,
            panel,
            lanes,
        },
        KernelSpec::Elementwise {
            body: "f64 x0; mul v0 x1; round v1; f32 v2; max v3 -128".to_owned(),
            operands: vec![(Reach::Panel, Float::F32), (Reach::Rows, Float::F64)],
            result: Float::F32,
            panel,
            lanes,
        },
        KernelSpec::IntegerMatmul {
            format: WeightFormat::Bsr { r: 1, c: 4 },
            arithmetic: Arithmetic::Bytes,
            panel,
            lanes,
        },
        KernelSpec::IntegerMatmul {
            format: WeightFormat::Dense,
            arithmetic: Arithmetic::Words,
            panel,
            lanes,
        },
        KernelSpec::ByteRows { panel, lanes },
        KernelSpec::IntegerMatmul {
            format: WeightFormat::Unstructured,
            arithmetic: Arithmetic::Bytes,
            panel,
            lanes,
        },
        KernelSpec::Vertical {
            vertical: requantize(),
            panel,
            lanes,
        },
        KernelSpec::Reduce {
            reduction: Reduction::Sum,
            float: Float::F32,
            lanes,
        },
        KernelSpec::Reduce {
            reduction: Reduction::Max,
            float: Float::F64,
            lanes,
        },
        KernelSpec::EmbeddingSum { tables: 3, panel },
        KernelSpec::LayerNorm { panel, lanes },
        KernelSpec::RmsNorm { panel, lanes },
        KernelSpec::AttentionTile { rounds: [false; 3] },
        KernelSpec::AttentionTile { rounds: [true; 3] },
        KernelSpec::AttentionProduct,
        KernelSpec::AttentionSoftmax,
    ]);
    specs
}

#[test]
fn kernel_ir() {
    for spec in specs(16, 16) {
        let program = kernels::build(&spec, &CpuFeatures::avx2()).expect("a kernel for every kind");
        insta::assert_snapshot!(program.name.clone(), program);
    }
}

#[test]
fn cranelift_ir() {
    for spec in specs(8, 8) {
        let kernel =
            emit(&spec, &CpuFeatures::baseline(Isa::Aarch64)).expect("a kernel for every kind");
        assert!(matches!(kernel.code, Code::Clif(_)));
        insta::assert_snapshot!(format!("clif_{}", kernel.name), disassemble(&kernel));
    }
}

#[test]
fn machine_code() {
    for (name, features) in [
        ("ymm", CpuFeatures::avx2()),
        ("zmm", CpuFeatures::avx512()),
        (
            "win64",
            CpuFeatures {
                convention: CallingConvention::Win64,
                ..CpuFeatures::avx2()
            },
        ),
    ] {
        let spec = KernelSpec::Matmul {
            format: WeightFormat::Dense,
            panel: 16,
            lanes: 16,
        };
        let kernel = emit(&spec, &features).expect("a kernel for every width");
        insta::assert_snapshot!(format!("x64_{name}"), disassemble(&kernel));
    }
}

#[test]
fn dot_products_of_bytes() {
    for (name, features, in_quads) in [
        ("avx_vnni", CpuFeatures::avx_vnni(), 43),
        ("avx512_vnni", CpuFeatures::avx512_vnni(), 27),
    ] {
        for (stored, format, main_loop) in [
            ("", WeightFormat::Bsr { r: 1, c: 4 }, (in_quads, 512)),
            ("_pairs", WeightFormat::Unstructured, (26, 128)),
        ] {
            let spec = KernelSpec::IntegerMatmul {
                format,
                arithmetic: Arithmetic::Bytes,
                panel: 32,
                lanes: 32,
            };
            let kernel = emit(&spec, &features).expect("a kernel for every width");
            let text = disassemble(&kernel);
            let program = kernels::build(&spec, &features).expect("it was emitted");
            let found = program.main_loop().expect("products are in a loop");
            assert_eq!((found.instructions, found.multiply_adds), main_loop);
            // From where the first branch back leads to that branch.
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            let is_back = |line: &&str| line.contains("jne");
            let end = lines.iter().position(is_back).expect("a loop ends");
            let target = lines[end]
                .rsplit(' ')
                .next()
                .expect("a branch has a target");
            let target = target
                .trim_end_matches('h')
                .trim_start_matches('0')
                .to_lowercase();
            let start = lines
                .iter()
                .position(|line| line.starts_with(&format!("{target}  ")));
            assert_eq!(
                end + 1 - start.expect("inside the kernel"),
                found.instructions
            );
            insta::assert_snapshot!(format!("x64_{name}{stored}"), text);
        }
    }
}

/// Every kernel exists for every tile on every target, and equal inputs give equal bytes.
#[test]
fn every_target() {
    let riscv = CpuFeatures {
        riscv_v: true,
        ..CpuFeatures::baseline(Isa::Riscv64)
    };
    let targets = [
        CpuFeatures::avx2(),
        CpuFeatures::avx512(),
        CpuFeatures::avx512_vnni(),
        CpuFeatures::avx_vnni(),
        CpuFeatures {
            convention: CallingConvention::Win64,
            ..CpuFeatures::avx512()
        },
        CpuFeatures::baseline(Isa::X64),
        CpuFeatures::baseline(Isa::Aarch64),
        riscv,
    ];
    for features in targets {
        for (panel, lanes) in [
            (8, 8),
            (16, 8),
            (16, 16),
            (32, 8),
            (32, 16),
            (32, 24),
            (32, 32),
        ] {
            for spec in specs(panel, lanes) {
                let kernel =
                    emit(&spec, &features).unwrap_or_else(|e| panic!("{spec:?} {features:?}: {e}"));
                match (
                    kernel.code,
                    emit(&spec, &features).expect("emitted above").code,
                ) {
                    (Code::Bytes(a), Code::Bytes(b)) => assert!(a == b && features.wide()),
                    (Code::Clif(a), Code::Clif(b)) => {
                        assert_eq!(a.display().to_string(), b.display().to_string())
                    }
                    _ => panic!("{spec:?} changed emitters"),
                }
            }
        }
    }
    assert!(emit(&specs(8, 8)[0], &CpuFeatures::baseline(Isa::Riscv64)).is_err());
    for (panel, lanes) in [(12, 8), (8, 16), (16, 4), (32, 0)] {
        assert!(emit(&specs(panel, lanes)[0], &CpuFeatures::avx2()).is_err());
    }
}

/// `fuse-elementwise` lets seven results live at once, that of a line among them.
#[test]
fn every_function_fits_beside_six_results() {
    let functions = [
        "abs",
        "neg",
        "sign",
        "relu",
        "atan",
        "ceil",
        "cos",
        "erf",
        "exp",
        "floor",
        "log",
        "reciprocal",
        "round",
        "sigmoid",
        "sin",
        "softplus",
        "sqrt",
        "tanh",
        "gelu",
        "gelu_tanh",
        "silu",
        "quick_gelu",
        "add",
        "sub",
        "mul",
        "div",
        "min",
        "max",
        "pow",
        "where",
    ];
    for function in functions {
        let mut lines: Vec<String> = (0..6).map(|i| format!("neg x{i}")).collect();
        lines.push(match function {
            "where" => "where x0 x1 x2".to_owned(),
            "add" | "sub" | "mul" | "div" | "min" | "max" | "pow" => format!("{function} x0 x1"),
            _ => format!("{function} x0"),
        });
        lines.extend((0..6).map(|i| format!("add v{i} v{}", i + 6)));
        for float in [Float::F32, Float::F64] {
            let mut lines = lines.clone();
            if float == Float::F64 {
                lines.push("f64 v12".to_owned());
            }
            let spec = KernelSpec::Elementwise {
                body: lines.join("; "),
                operands: vec![(Reach::Panel, Float::F32); 6],
                result: float,
                panel: 32,
                lanes: 32,
            };
            let kernel = emit(&spec, &CpuFeatures::avx2());
            assert!(kernel.is_ok(), "{function}: {:?}", kernel.err());
        }
    }
}

#[test]
fn panels_are_as_wide_as_kernels_take_at_once() {
    let widths = |features: CpuFeatures| FORMATS.map(|f| kernels::panel_width(f, &features));
    assert_eq!(widths(CpuFeatures::avx2()), [32, 32, 16, 32]);
    assert_eq!(widths(CpuFeatures::avx512()), [32; 4]);
}

//! Elementwise functions behind a linear layer.

use lancet_artifact::{Activation, KernelSpec};
use lancet_ops::{Attribute, Attributes, DataView, Operator, TensorView, evaluate};

/// What the epilogue kernel of these panels is specialised on.
pub(super) fn epilogue(
    activation: Activation,
    residual: bool,
    panel: u32,
    lanes: u32,
) -> KernelSpec {
    KernelSpec::Epilogue {
        activation,
        residual,
        panel,
        lanes,
    }
}

/// Applies `kind` in place, by the operators that define it.
pub(super) fn portable(kind: Activation, y: &mut [f32]) {
    let (operator, attributes) = match kind {
        Activation::None => return,
        Activation::Relu => (Operator::Relu, Attributes::new()),
        Activation::Gelu => (Operator::Gelu, Attributes::new()),
        Activation::GeluTanh => {
            let tanh = Attribute::Str("tanh".to_owned());
            (Operator::Gelu, Attributes::new().with("approximate", tanh))
        }
        Activation::Round => (Operator::Round, Attributes::new()),
        Activation::Tanh => (Operator::Tanh, Attributes::new()),
        Activation::Sigmoid | Activation::Silu => (Operator::Sigmoid, Attributes::new()),
        Activation::QuickGelu => {
            let alpha = Attribute::Float(1.702);
            (
                Operator::MsQuickGelu,
                Attributes::new().with("alpha", alpha),
            )
        }
    };
    let shape = [y.len()];
    let view = TensorView::new(&shape, DataView::F32(y)).expect("the shape is the length");
    let result = evaluate(operator, &attributes, &[Some(view)], 1)
        .expect("an elementwise operator takes any tensor");
    let values = result[0]
        .as_slice::<f32>()
        .expect("an elementwise operator keeps the type");
    for (y, &v) in y.iter_mut().zip(values) {
        *y = if kind == Activation::Silu { *y * v } else { v };
    }
}

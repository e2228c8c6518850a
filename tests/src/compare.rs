//! How far two tensors are apart.

use lancet_ops::{Tensor, with_elements};

/// How much a result may differ from the expected one, element by element: `|a - b| <= max_abs + max_rel * |b|`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tolerance {
    pub max_abs: f64,
    pub max_rel: f64,
}

/// Compares `found` with `expected`.
///
/// # Errors
/// What differs most, or that the types do.
pub fn compare(found: &Tensor, expected: &Tensor, tolerance: Tolerance) -> Result<(), String> {
    if found.dtype() != expected.dtype() || found.shape() != expected.shape() {
        return Err(format!(
            "expected {}{:?}, found {}{:?}",
            expected.dtype(),
            expected.shape(),
            found.dtype(),
            found.shape()
        ));
    }
    let (a, b) = (wide(found), wide(expected));
    let worst = a
        .iter()
        .zip(&b)
        .enumerate()
        .filter(|(_, (a, b))| !close(**a, **b, tolerance))
        .max_by(|x, y| {
            let error = |(_, (a, b)): &(usize, (&f64, &f64))| (**a - **b).abs();
            error(x).total_cmp(&error(y))
        });
    match worst {
        None => Ok(()),
        Some((i, (a, b))) => Err(format!(
            "element {i}: expected {b:?}, found {a:?}, beyond max_abs = {:e}, max_rel = {:e}",
            tolerance.max_abs, tolerance.max_rel
        )),
    }
}

/// Whether two numbers are within the tolerance; NaN is like NaN, and zeros of either sign are alike.
fn close(a: f64, b: f64, tolerance: Tolerance) -> bool {
    a == b
        || (a.is_nan() && b.is_nan())
        || (a - b).abs() <= tolerance.max_abs + tolerance.max_rel * b.abs()
            && a.is_finite()
            && b.is_finite()
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    trait Wide: Copy {
        fn wide(self) -> f64;
    }
    macro_rules! wide {
        ($($ty:ty: $x:ident => $e:expr),*) => { $(impl Wide for $ty { fn wide(self) -> f64 { let $x = self; $e } })* };
    }
    wide!(f32: x => x.into(), f64: x => x, half::f16: x => x.into(), half::bf16: x => x.into(),
          i8: x => x.into(), i16: x => x.into(), i32: x => x.into(), i64: x => x as f64,
          u8: x => x.into(), u16: x => x.into(), u32: x => x.into(), u64: x => x as f64,
          bool: x => u8::from(x).into());
    with_elements!(tensor.data().view(), v => v.iter().map(|x| x.wide()).collect())
}

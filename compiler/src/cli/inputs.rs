//! Inputs that a benchmark draws: plausible values for the roles that names tell.

use lancet::{DType, Data, Tensor};
use lancet_artifact::{Dim, Plan, Port, ValueDesc};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::{Failure, Kind};

/// What is known of one input before sizes are bound.
struct InputSpec<'a> {
    name: &'a str,
    dtype: DType,
    /// The name of a symbolic dimension, or a fixed size.
    dims: Vec<Result<usize, &'a str>>,
}

/// Most elements of an input.
const MAX_ELEMENTS: usize = 1 << 28;

/// Draws every input for a batch and a length.
///
/// A dimension whose symbol contains `seq`, `len` or `tok` is the length, one that contains `batch` the batch; others are
/// told by their position, outermost first. Identifiers are small, other integers zero. Masks are ones for the first
/// `lengths[i]` tokens of sequence `i` and zeros behind; all ones without lengths.
///
/// # Errors
/// [`Kind::Limit`] if an input would have more than [`MAX_ELEMENTS`].
pub(super) fn draw(
    plan: &Plan,
    batch: usize,
    seq: usize,
    lengths: Option<&[usize]>,
) -> Result<Vec<(String, Tensor)>, Failure> {
    let mut rng = Pcg64Mcg::seed_from_u64(0);
    specs(plan)
        .iter()
        .map(|spec| {
            let shape: Vec<usize> = spec
                .dims
                .iter()
                .enumerate()
                .map(|(i, d)| size(i, *d, batch, seq))
                .collect();
            let n = shape
                .iter()
                .try_fold(1usize, |n, &d| n.checked_mul(d))
                .filter(|&n| n <= MAX_ELEMENTS);
            let Some(n) = n else {
                let message = format!(
                    "input `{}` {shape:?}: more than {MAX_ELEMENTS} elements",
                    spec.name
                );
                return Err(Failure::new(Kind::Limit, message));
            };
            let seen = |i: usize| match (lengths, shape.as_slice()) {
                (Some(lengths), &[b, s]) if (b, s) == (batch, seq) => i % s < lengths[i / s],
                _ => true,
            };
            let data = elements(spec, n, seen, &mut rng);
            let tensor =
                Tensor::try_new(shape, data).expect("as many elements were drawn as the shape has");
            Ok((spec.name.to_owned(), tensor))
        })
        .collect()
}

fn specs(plan: &Plan) -> Vec<InputSpec<'_>> {
    let dims = |desc: &'_ ValueDesc| {
        let dim = |d: &Dim| match (d.as_fixed(), d.as_symbol()) {
            (Some(n), _) => Ok(usize::try_from(n).unwrap_or(0)),
            (None, Some(s)) => Err(plan.symbols[s as usize].as_str()),
            (None, None) => Err(""),
        };
        desc.shape.iter().map(dim).collect()
    };
    let spec = |port: &'_ Port| {
        let desc = &plan.values[port.value as usize];
        let dtype = desc.dtype.parse();
        (dims(desc), dtype.expect("the loader checked element types"))
    };
    plan.inputs
        .iter()
        .map(|port| {
            let (dims, dtype) = spec(port);
            let name = port.name.as_str();
            InputSpec { name, dtype, dims }
        })
        .collect()
}

fn size(position: usize, dim: Result<usize, &str>, batch: usize, seq: usize) -> usize {
    let name = match dim {
        Ok(fixed) => return fixed,
        Err(name) => name.to_ascii_lowercase(),
    };
    if ["seq", "len", "tok"].iter().any(|s| name.contains(s)) {
        seq
    } else if name.contains("batch") || position == 0 {
        batch
    } else {
        seq
    }
}

/// `n` elements; `seen(i)` is what a mask says of place `i`.
fn elements(
    spec: &InputSpec<'_>,
    n: usize,
    seen: impl Fn(usize) -> bool,
    rng: &mut Pcg64Mcg,
) -> Data {
    let name = spec.name.to_ascii_lowercase();
    let is_mask = name.contains("mask");
    let mut integer = |i| match () {
        () if is_mask => i64::from(seen(i)),
        () if name.contains("type") || name.contains("segment") => 0,
        () if name.contains("ids") => rng.random_range(1..100),
        () => 0,
    };
    match spec.dtype {
        DType::I64 => Data::I64((0..n).map(integer).collect()),
        DType::I32 => Data::I32((0..n).map(|i| integer(i) as i32).collect()),
        DType::Bool => Data::Bool((0..n).map(|i| !is_mask || seen(i)).collect()),
        DType::F32 if is_mask => Data::F32((0..n).map(|i| f32::from(u8::from(seen(i)))).collect()),
        DType::F32 => Data::F32((0..n).map(|_| rng.random_range(-1.0..1.0)).collect()),
        other => Data::zeros(other, n),
    }
}

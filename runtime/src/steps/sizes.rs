//! Steps that write sizes and repeat elements.

use lancet_artifact::Dim;

use crate::bind::Binding;

/// Writes `dims` as `i64`.
pub(crate) fn dims(dims: &[Dim], binding: &Binding, out: &mut [u8]) -> Result<(), String> {
    for (i, (dim, out)) in dims.iter().zip(out.chunks_exact_mut(8)).enumerate() {
        let value = dim
            .eval(&|s| binding.symbols[s as usize])
            .ok_or_else(|| format!("size {i} overflows"))?;
        out.copy_from_slice(&value.to_ne_bytes());
    }
    Ok(())
}

/// Repeats the elements of `from`, each of `size_bytes`, to fill `shape`.
pub(crate) fn broadcast(
    (from, from_shape): (&[u8], &[usize]),
    shape: &[usize],
    size_bytes: usize,
    out: &mut [u8],
) -> Result<(), String> {
    let leading = shape.len() - from_shape.len();
    let fits = from_shape
        .iter()
        .zip(&shape[leading..])
        .all(|(&f, &t)| f == t || f == 1);
    if !fits {
        return Err(format!(
            "cannot broadcast shape {from_shape:?} to {shape:?}"
        ));
    }
    if out.is_empty() {
        return Ok(());
    }
    // The innermost dimensions that are not repeated move as one run of bytes.
    let mut same = 0;
    while same < from_shape.len()
        && from_shape[from_shape.len() - 1 - same] == shape[shape.len() - 1 - same]
    {
        same += 1;
    }
    let run = from_shape[from_shape.len() - same..]
        .iter()
        .product::<usize>()
        * size_bytes;
    let outer = &shape[..shape.len() - same];
    for (i, out) in out.chunks_exact_mut(run).enumerate() {
        let (mut rest, mut at, mut stride) = (i, 0, run);
        for d in (0..outer.len()).rev() {
            let index = rest % outer[d];
            rest /= outer[d];
            if d >= leading {
                let size = from_shape[d - leading];
                if size != 1 {
                    at += index * stride;
                }
                stride *= size;
            }
        }
        out.copy_from_slice(&from[at..at + run]);
    }
    Ok(())
}

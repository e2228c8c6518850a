//! Operators that read or write at computed places: gather, scatter, pad, one-hot, triangles, selection.

use crate::call::{Call, OpResult};
use crate::layout::{for_each_index, product, strides};
use crate::number::{Number, for_number};
use crate::{DType, Data, Element, OpError, Tensor};

/// Elements `index` of each dimension of `src`, or `fill` where one is `None`.
///
/// `indices[axis]` has an entry for each place of the result's dimension `axis`.
pub(crate) fn take<T: Copy>(
    src: &[T],
    shape: &[usize],
    indices: &[Vec<Option<usize>>],
    fill: T,
) -> Vec<T> {
    let sizes: Vec<usize> = indices.iter().map(Vec::len).collect();
    let steps = strides(shape);
    let Some((last, outer)) = indices.split_last() else {
        return src.to_vec();
    };
    let mut out = Vec::with_capacity(product(&sizes));
    let places = strides(&sizes[..outer.len()]);
    let n_rows = if product(&sizes) == 0 {
        0
    } else {
        product(&sizes[..outer.len()])
    };
    for row in 0..n_rows {
        let mut at = Some(0usize);
        for (axis, index) in outer.iter().enumerate() {
            let i = (row / places[axis]) % sizes[axis];
            at = at.zip(index[i]).map(|(a, i)| a + i * steps[axis]);
        }
        match at {
            Some(at) => out.extend(last.iter().map(|i| i.map_or(fill, |i| src[at + i]))),
            None => out.extend(std::iter::repeat_n(fill, last.len())),
        }
    }
    out
}

/// `Gather`: slices of the data along `axis`; negative indices count from the end.
pub(crate) fn gather(call: &Call<'_>) -> OpResult {
    fn apply<T: Element>(call: &Call<'_>, v: &[T], axis: usize) -> OpResult {
        let (x, ids) = (call.operand(0)?, call.operand(1)?);
        let d = x.shape()[axis];
        let mut shape = x.shape()[..axis].to_vec();
        shape.extend(ids.shape());
        shape.extend(&x.shape()[axis + 1..]);
        let n = call.size(&shape, T::DTYPE)?;
        let inner = product(&x.shape()[axis + 1..]);
        let indices = call
            .integers(1)?
            .into_iter()
            .map(|i| call.normalize_index(1, i, d))
            .collect::<Result<Vec<_>, _>>()?;
        let mut data = Vec::with_capacity(n);
        if n != 0 {
            for outer in 0..product(&x.shape()[..axis]) {
                for i in &indices {
                    let start = (outer * d + i) * inner;
                    data.extend_from_slice(&v[start..start + inner]);
                }
            }
        }
        call.tensor(&shape, data)
    }
    let x = call.operand(0)?;
    let axis = call.axis("axis", x.rank())?;
    with_elements!(x.data(), v => apply(call, v, axis))
}

/// Offsets into a tensor of `shape` of elements whose index along `axis` is given and otherwise is that of the index.
fn element_offsets(call: &Call<'_>, shape: &[usize], axis: usize) -> Result<Vec<usize>, OpError> {
    let ids = call.operand(1)?;
    let fits = ids.rank() == shape.len()
        && ids
            .shape()
            .iter()
            .zip(shape)
            .enumerate()
            .all(|(a, (i, d))| a == axis || i <= d);
    if !fits {
        return Err(call.shape_error(format!(
            "indices of shape {:?} for data of shape {shape:?}",
            ids.shape()
        )));
    }
    let values = call.integers(1)?;
    let mut steps = strides(shape);
    let step = steps[axis];
    steps[axis] = 0;
    let mut result = Vec::with_capacity(values.len());
    let mut bad = None;
    for_each_index(ids.shape(), [&steps], [0], |[base]| {
        match call.normalize_index(1, values[result.len()], shape[axis]) {
            Ok(i) => result.push(base + i * step),
            Err(e) => {
                bad.get_or_insert(e);
                result.push(0);
            }
        }
    });
    bad.map_or(Ok(result), Err)
}

/// `GatherElements`.
pub(crate) fn gather_elements(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let axis = call.axis("axis", x.rank())?;
    let offsets = element_offsets(call, x.shape(), axis)?;
    let shape = call.operand(1)?.shape();
    call.size(shape, x.dtype())?;
    with_elements!(x.data(), v => call.tensor(shape, offsets.iter().map(|&o| v[o]).collect()))
}

/// Offsets into a tensor of `shape` of the slices that operand 1 names, `batch_dims` leading dimensions being common;
/// and the number of elements in a slice.
fn slice_offsets(
    call: &Call<'_>,
    shape: &[usize],
    batch_dims: usize,
) -> Result<(Vec<usize>, usize), OpError> {
    let ids = call.operand(1)?;
    let mismatch = || {
        call.shape_error(format!(
            "indices of shape {:?} for data of shape {shape:?}",
            ids.shape()
        ))
    };
    let (&depth, outer) = ids.shape().split_last().ok_or_else(mismatch)?;
    let end = batch_dims.checked_add(depth).ok_or_else(mismatch)?;
    if shape.len() < end || outer.len() < batch_dims || outer[..batch_dims] != shape[..batch_dims] {
        return Err(mismatch());
    }
    let n_slices = call.size(outer, DType::I64)?;
    let steps = strides(shape);
    let inner = product(&shape[end..]);
    let per_batch = product(&outer[batch_dims..]);
    let batch_step = product(&shape[batch_dims..]);
    let values = call.integers(1)?;
    let offsets = (0..n_slices)
        .map(|i| {
            let mut at = (i / per_batch).saturating_mul(batch_step);
            for (axis, &v) in values[i * depth..(i + 1) * depth].iter().enumerate() {
                let axis = batch_dims + axis;
                let place = call.normalize_index(1, v, shape[axis])?;
                at = at.saturating_add(place.saturating_mul(steps[axis]));
            }
            Ok(at)
        })
        .collect::<Result<_, _>>()?;
    Ok((offsets, inner))
}

/// `GatherND`.
pub(crate) fn gather_nd(call: &Call<'_>) -> OpResult {
    fn apply<T: Element>(
        call: &Call<'_>,
        v: &[T],
        shape: &[usize],
        offsets: &[usize],
        inner: usize,
    ) -> OpResult {
        let n = call.size(shape, T::DTYPE)?;
        let mut data = Vec::with_capacity(n);
        if n != 0 {
            for &o in offsets {
                data.extend_from_slice(&v[o..o + inner]);
            }
        }
        call.tensor(shape, data)
    }
    let x = call.operand(0)?;
    let batch_dims = usize::try_from(call.int("batch_dims"))
        .map_err(|_| call.attribute_error("batch_dims", "is negative"))?;
    let (offsets, inner) = slice_offsets(call, x.shape(), batch_dims)?;
    let ids = call.operand(1)?.shape();
    let (depth, outer) = ids.split_last().expect("slice_offsets checked the rank");
    let mut shape = outer.to_vec();
    shape.extend(&x.shape()[batch_dims + depth..]);
    with_elements!(x.data(), v => apply(call, v, &shape, &offsets, inner))
}

/// Writes updates to a copy of the data, combining as attribute `reduction` says.
fn scatter(call: &Call<'_>, places: &[usize], inner: usize) -> OpResult {
    fn write<T: Element>(
        call: &Call<'_>,
        v: &[T],
        places: &[usize],
        inner: usize,
        f: impl Fn(T, T) -> T,
    ) -> OpResult {
        let mut data = v.to_vec();
        let updates = call.slice::<T>(2)?;
        if inner != 0 {
            for (&at, update) in places.iter().zip(updates.chunks_exact(inner)) {
                for (d, &u) in data[at..at + inner].iter_mut().zip(update) {
                    *d = f(*d, u);
                }
            }
        }
        call.tensor(call.operand(0)?.shape(), data)
    }
    fn reduce<T: Number>(call: &Call<'_>, places: &[usize], inner: usize) -> OpResult {
        let f = match call.str("reduction") {
            "add" => T::add,
            "mul" => T::mul,
            "min" => T::least,
            "max" => T::greatest,
            other => {
                return Err(call.attribute_error("reduction", format!("unknown value `{other}`")));
            }
        };
        write(call, call.slice::<T>(0)?, places, inner, f)
    }
    let x = call.operand(0)?;
    if call.str("reduction") == "none" {
        return with_elements!(x.data(), v => write(call, v, places, inner, |_, u| u));
    }
    if let Some(v) = x.as_slice::<bool>() {
        let f: fn(bool, bool) -> bool = match call.str("reduction") {
            "add" | "max" => |a, b| a | b,
            "mul" | "min" => |a, b| a & b,
            other => {
                return Err(call.attribute_error("reduction", format!("unknown value `{other}`")));
            }
        };
        return write(call, v, places, inner, f);
    }
    for_number!(x.dtype(), T => reduce::<T>(call, places, inner), else Err(call.dtype_error(0, x.dtype())))
}

/// `ScatterElements`. Where indices repeat, updates apply in order.
pub(crate) fn scatter_elements(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let axis = call.axis("axis", x.rank())?;
    let (ids, updates) = (call.operand(1)?, call.operand(2)?);
    if ids.shape() != updates.shape() {
        return Err(call.shape_error(format!(
            "indices {:?} and updates {:?} differ in shape",
            ids.shape(),
            updates.shape()
        )));
    }
    scatter(call, &element_offsets(call, x.shape(), axis)?, 1)
}

/// `ScatterND`. Where indices repeat, updates apply in order.
pub(crate) fn scatter_nd(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let (offsets, inner) = slice_offsets(call, x.shape(), 0)?;
    let (depth, outer) = call
        .operand(1)?
        .shape()
        .split_last()
        .expect("slice_offsets checked the rank");
    let mut expected = outer.to_vec();
    expected.extend(&x.shape()[*depth..]);
    let updates = call.operand(2)?;
    if updates.shape() != expected {
        return Err(call.shape_error(format!(
            "expected updates of shape {expected:?}, found {:?}",
            updates.shape()
        )));
    }
    scatter(call, &offsets, inner)
}

/// `Pad`, in the mode that the attribute names; negative pads crop.
pub(crate) fn pad(call: &Call<'_>) -> OpResult {
    fn apply<T: Element>(
        call: &Call<'_>,
        v: &[T],
        shape: &[usize],
        indices: &[Vec<Option<usize>>],
    ) -> OpResult {
        let fill = match call.optional(2) {
            None => T::default(),
            Some(_) => match *call.slice::<T>(2)? {
                [fill] => fill,
                [] => T::default(),
                _ => return Err(call.value_error(2, "more than one element")),
            },
        };
        call.tensor(shape, take(v, call.operand(0)?.shape(), indices, fill))
    }
    let x = call.operand(0)?;
    let pads = call.integers(1)?;
    let axes = match call.optional_integers(3)? {
        Some(axes) => call.normalize_axes(&axes, x.rank())?,
        None => (0..x.rank()).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err(call.shape_error(format!("{} pads for {} axes", pads.len(), axes.len())));
    }
    let mut before = vec![0i64; x.rank()];
    let mut shape = x.shape().to_vec();
    for (i, &axis) in axes.iter().enumerate() {
        let (a, b) = (pads[i], pads[i + axes.len()]);
        before[axis] = a;
        let size =
            i128::try_from(shape[axis]).expect("a size fits") + i128::from(a) + i128::from(b);
        let size = i64::try_from(size).map_err(|_| call.value_error(1, "a size overflows"))?;
        shape[axis] = call.to_size(1, size)?;
    }
    let n = call.size(&shape, x.dtype())?;
    let mode = call.str("mode");
    if !["constant", "edge", "reflect", "wrap"].contains(&mode) {
        return Err(call.attribute_error("mode", format!("unknown value `{mode}`")));
    }
    if n == 0 {
        return Ok(Tensor::zeros(x.dtype(), shape));
    }
    let mut indices = Vec::with_capacity(x.rank());
    for (axis, &to) in shape.iter().enumerate() {
        let d = i64::try_from(x.shape()[axis]).unwrap_or(i64::MAX);
        if d == 0 && mode != "constant" {
            return Err(call.shape_error(format!("nothing to repeat along axis {axis}")));
        }
        let place = |i: usize| {
            let i = i64::try_from(i).expect("a place in memory") - before[axis];
            let from = match mode {
                "edge" => i.clamp(0, d - 1),
                "reflect" if d == 1 => 0,
                "reflect" => {
                    let r = i.rem_euclid(2 * (d - 1));
                    r.min(2 * (d - 1) - r)
                }
                "wrap" => i.rem_euclid(d),
                _ => i,
            };
            (0..d).contains(&from).then_some(from as usize)
        };
        indices.push((0..to).map(place).collect());
    }
    with_elements!(x.data(), v => apply(call, v, &shape, &indices))
}

/// `Trilu`: the upper or lower triangle of the last two dimensions, the `k`-th diagonal included, and zeros elsewhere.
pub(crate) fn trilu(call: &Call<'_>) -> OpResult {
    fn apply<T: Element>(call: &Call<'_>, v: &[T], k: i64, is_upper: bool) -> OpResult {
        let shape = call.operand(0)?.shape();
        let [.., m, n] = *shape else {
            return Err(call.shape_error(format!("expected rank 2 or more, found shape {shape:?}")));
        };
        let keep = |i: usize| {
            let (row, column) = ((i / n) % m, i % n);
            let diagonal = (column as i64).saturating_sub(row as i64);
            if is_upper {
                k <= diagonal
            } else {
                diagonal <= k
            }
        };
        call.tensor(
            shape,
            v.iter()
                .enumerate()
                .map(|(i, &x)| if keep(i) { x } else { T::default() })
                .collect(),
        )
    }
    let k = if call.optional(1).is_some() {
        call.integer(1)?
    } else {
        0
    };
    with_elements!(call.operand(0)?.data(), v => apply(call, v, k, call.flag("upper")))
}

/// `EyeLike`: ones on the `k`-th diagonal of a matrix of the operand's shape.
pub(crate) fn eye_like(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let [m, n] = *x.shape() else {
        return Err(call.shape_error(format!("expected a matrix, found shape {:?}", x.shape())));
    };
    let dtype = call.dtype("dtype")?.unwrap_or(x.dtype());
    call.size(x.shape(), DType::F64)?;
    let mut ones = vec![0u8; x.len()];
    for row in 0..m.min(ones.len()) {
        let column = i128::try_from(row).expect("a size fits") + i128::from(call.int("k"));
        if let Ok(column) = usize::try_from(column)
            && column < n
        {
            ones[row * n + column] = 1;
        }
    }
    crate::cast::with_data(
        call,
        x,
        crate::cast::convert(&crate::DataView::U8(&ones), dtype),
    )
}

/// `OneHot`: `values[1]` where the new dimension's index is the given one, else `values[0]`.
pub(crate) fn one_hot(call: &Call<'_>) -> OpResult {
    fn apply<T: Element>(call: &Call<'_>, values: &[T], depth: usize) -> OpResult {
        let &[off, on] = values else {
            return Err(
                call.value_error(2, format!("expected two elements, found {}", values.len()))
            );
        };
        let ids = call.operand(0)?;
        let axis = call.axis("axis", ids.rank() + 1)?;
        let mut shape = ids.shape().to_vec();
        shape.insert(axis, depth);
        let n = call.size(&shape, T::DTYPE)?;
        let inner = product(&ids.shape()[axis..]);
        let mut data = vec![off; n];
        let d = depth as i64;
        for (i, v) in ids.to_i64_vec().into_iter().enumerate() {
            let place = if v < 0 { v.saturating_add(d) } else { v };
            if (0..d).contains(&place) {
                data[((i / inner) * depth + place as usize) * inner + i % inner] = on;
            }
        }
        call.tensor(&shape, data)
    }
    let depth = match call.operand(1)?.to_i64_vec()[..] {
        [v] => call.to_size(1, v)?,
        _ => return Err(call.value_error(1, "expected one element")),
    };
    with_elements!(call.operand(2)?.data(), v => apply(call, v, depth))
}

/// `NonZero`: indices of elements that are not zero, a column each; a scalar has none.
pub(crate) fn non_zero(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let Data::Bool(set) = crate::cast::convert(&x.data(), DType::Bool) else {
        return Err(call.dtype_error(0, x.dtype()));
    };
    let places: Vec<usize> = (0..set.len()).filter(|&i| set[i]).collect();
    let steps = strides(x.shape());
    let shape = [x.rank(), places.len()];
    call.size(&shape, DType::I64)?;
    let data = steps
        .iter()
        .zip(x.shape())
        .flat_map(|(&s, &d)| places.iter().map(move |&p| ((p / s) % d) as i64))
        .collect();
    call.tensor(&shape, data)
}

/// `Compress`: slices along `axis`, or elements of the flattened data, whose condition is true.
pub(crate) fn compress(call: &Call<'_>) -> OpResult {
    let x = call.operand(0)?;
    let flat = [x.len()];
    let (shape, axis) = match call.optional_int("axis") {
        Some(axis) => (x.shape(), call.normalize_axis(axis, x.rank())?),
        None => (&flat[..], 0),
    };
    let condition = call.slice::<bool>(1)?;
    if shape[axis] < condition.len() {
        return Err(call.shape_error(format!(
            "{} conditions for a dimension of {}",
            condition.len(),
            shape[axis]
        )));
    }
    let kept: Vec<Option<usize>> = (0..condition.len())
        .filter(|&i| condition[i])
        .map(Some)
        .collect();
    let mut to = shape.to_vec();
    to[axis] = kept.len();
    if call.size(&to, x.dtype())? == 0 {
        return Ok(Tensor::zeros(x.dtype(), to));
    }
    let mut indices: Vec<Vec<Option<usize>>> = shape
        .iter()
        .enumerate()
        .map(|(a, &d)| {
            if a == axis {
                Vec::new()
            } else {
                (0..d).map(Some).collect()
            }
        })
        .collect();
    indices[axis] = kept;
    with_elements!(x.data(), v => call.tensor(&to, take(v, shape, &indices, Default::default())))
}

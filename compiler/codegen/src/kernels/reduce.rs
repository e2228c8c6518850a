//! Sums and extremes over rows, lane by lane.
//!
//! Arguments: `[0]` rows; `[1]` x, the first row; `[2]` bytes from one row to the next; `[3]` y. Sums, of elements or of their
//! squares, are f64 and begin with 0; extremes are of the type of the elements, are NaN once an element is, and begin with
//! the infinity that any other number replaces. Each lane takes its elements in the order of the rows.

use lancet_artifact::Reduction;

use super::Tile;
use crate::kir::{Binary, Builder, Compare, Float, Program, Scalar, Unary, Vector, at};

/// The kernel of a reduction that is no mean.
pub(super) fn program(name: String, reduction: Reduction, float: Float, tile: &Tile) -> Program {
    let mut b = Builder::new(name, tile.vl);
    let [rows, x, stride, y] = [0, 1, 2, 3].map(|i| b.arg(i));
    let sums = matches!(reduction, Reduction::Sum | Reduction::L2);
    let lanes = if sums { Float::F64 } else { float };
    // Numbers of a vector.
    let n = tile.vl * 4 / lanes.size_bytes();
    let accumulators = b.vectors(tile.lanes / n);
    for &acc in &accumulators {
        let start = match reduction {
            Reduction::Sum | Reduction::Mean | Reduction::L2 => 0.0,
            Reduction::Max => f64::NEG_INFINITY,
            Reduction::Min => f64::INFINITY,
        };
        b.number(lanes, acc, start);
    }
    b.repeat(rows, |b| {
        for (v, &acc) in accumulators.iter().enumerate() {
            let element = b.vector();
            let offset = (v * n * float.size_bytes()) as i32;
            load(b, element, (x, offset), (float, lanes));
            match reduction {
                Reduction::Max => extreme(b, Binary::Max, lanes, acc, element),
                Reduction::Min => extreme(b, Binary::Min, lanes, acc, element),
                Reduction::Sum | Reduction::Mean => b.binary(Binary::Add64, acc, acc, element),
                Reduction::L2 => {
                    b.binary(Binary::Mul64, element, element, element);
                    b.binary(Binary::Add64, acc, acc, element);
                }
            }
            b.free_vector(element);
        }
        b.add_scalar(x, stride);
    });
    for (v, &acc) in accumulators.iter().enumerate() {
        b.store(at(y, v as i32 * b.vector_bytes()), acc);
    }
    b.finish()
}

/// Elements of a row, in lanes of a type that holds them.
fn load(b: &mut Builder, dst: Vector, (x, offset): (Scalar, i32), (float, lanes): (Float, Float)) {
    if float == lanes {
        b.load(dst, at(x, offset));
    } else {
        b.load_half(dst, at(x, offset));
        b.unary(Unary::Widen, dst, dst);
    }
}

/// `acc = acc op element`, and what is none of two numbers.
fn extreme(b: &mut Builder, op: Binary, lanes: Float, acc: Vector, element: Vector) {
    let result = b.vector();
    b.binary(op.of(lanes), element, acc, element);
    b.select_of(lanes, result, (Compare::Unordered, acc, acc), acc, element);
    b.copy(acc, result);
    b.free_vector(result);
}

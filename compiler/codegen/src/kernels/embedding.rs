//! The sum of rows of embedding tables, into one token of a panel.
//!
//! Rows are contiguous and a panel is feature-major, so sums of a vector's width go through a line of scratch memory and
//! from there, one by one, to their places.
//!
//! Arguments: first the rows, `tables` of them; then `y` at the token's lane of the first feature; the number of features;
//! scratch memory of a vector.

use crate::kir::{Addr, Builder, Program, Scalar, Vector, Width, at};

/// Rows that one kernel sums at most: what fits the scalar registers.
pub const MAX_TABLES: u32 = 6;

pub(super) fn program(name: String, vl: usize, tables: u32, panel: u32) -> Program {
    let mut b = Builder::new(name, vl);
    let stride = (panel * 4) as i32;
    let rows: Vec<Scalar> = (0..tables as usize).map(|i| b.arg(i)).collect();
    let (y, scratch) = (b.arg(tables as usize), b.arg(tables as usize + 2));
    let element = b.scalar();
    let count = b.arg(tables as usize + 1);
    let rest = b.scalar();
    b.mov(rest, count);
    b.and_imm(rest, vl as u32 - 1);
    b.shr_imm(count, vl.trailing_zeros() as u8);

    let sum = b.vector();
    let step = |b: &mut Builder, n: usize, load: &dyn Fn(&mut Builder, Vector, Addr)| {
        load(b, sum, at(rows[0], 0));
        for &row in &rows[1..] {
            let v = b.vector();
            load(b, v, at(row, 0));
            b.add(sum, sum, v);
            b.free_vector(v);
        }
        b.store(at(scratch, 0), sum);
        for j in 0..n as i32 {
            b.load_scalar(element, Width::B32, at(scratch, 4 * j));
            b.store_scalar(at(y, j * stride), Width::B32, element);
        }
        b.add_imm(y, n as i32 * stride);
        for &row in &rows {
            b.add_imm(row, n as i32 * 4);
        }
    };
    b.repeat(count, |b| step(b, vl, &|b, v, addr| b.load(v, addr)));
    b.repeat(rest, |b| step(b, 1, &|b, v, addr| b.broadcast(v, addr)));
    b.finish()
}

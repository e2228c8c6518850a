//! Sparse weights times one token panel: streams of records, two rows (or four consecutive ones) in flight.
//!
//! Arguments: row block, x panel, y at the block's first row, bias at the block's first row; weights that are needed after
//! this block, and by how many bytes each group moves on in asking for them.
//!
//! What makes these loops fast is that nothing is waited for: offsets of x are loaded one record ahead and peeled from
//! one register, values are broadcast four at a time and splat from a register, output pointers are known one group
//! ahead and their lines asked for three groups ahead, and groups of equal length follow each other.

use super::{Chunk, Tile};
use crate::formats::HEADER_BYTES;
use crate::formats::sparse::{ENTRY_BYTES, GROUP_BYTES, GROUPS_AHEAD, Kind};
use crate::kir::{Addr, Builder, Program, Scalar, Vector, Width, at};

/// Rows of the next k-block's x that each group asks for.
const X_ROWS_AHEAD: i32 = 2;

/// Cache lines of weights that each group asks memory for.
const FAR_LINES: i32 = 2;

pub(super) fn program(name: String, kind: Kind, tile: &Tile) -> Program {
    let mut b = Builder::new(name, tile.vl);
    let [block, x, bias, entry, count, far, far_step] = [(); 7].map(|()| b.slot());
    let y = b.scalar();
    for (i, s) in [block, x, y, bias, far, far_step].into_iter().enumerate() {
        b.load_scalar(s, Width::B64, at(b.args(), i as i32 * 8));
    }
    b.free_scalar(b.args());
    let in_flight = kind.strips_in_flight();
    let mut scalars = |n: usize| -> Vec<Scalar> { (0..n).map(|_| b.scalar()).collect() };
    let kernel = Sparse {
        kind,
        tile: *tile,
        block,
        x,
        y,
        bias,
        entry,
        count,
        far,
        far_step,
        offsets: scalars(kind.units_per_record()),
        peel: scalars(1)[0],
        xk: scalars(1)[0],
        stream: scalars(1)[0],
        group: scalars(1)[0],
        rows: scalars(in_flight),
        next_rows: scalars(in_flight),
        n: scalars(1)[0],
    };
    let blocks = b.slot();
    b.load_scalar(blocks, Width::B32, at(block, 0));
    b.lea(entry, at(block, HEADER_BYTES as i32));
    kernel.k_block(&mut b, true);
    b.add_imm(blocks, -1);
    b.repeat(blocks, |b| kernel.k_block(b, false));
    b.finish()
}

/// Vectors of a row of the panel that are computed together.
pub(super) fn chunk_vectors(kind: Kind, tile: &Tile) -> usize {
    match kind {
        Kind::Single | Kind::Inputs4 => 4,
        Kind::Outputs4 if tile.lanes / tile.vl == 3 => 3,
        Kind::Outputs4 => 2,
    }
}

struct Sparse {
    kind: Kind,
    tile: Tile,
    block: Scalar,
    x: Scalar,
    y: Scalar,
    bias: Scalar,
    /// Entry of the current k-block.
    entry: Scalar,
    count: Scalar,
    /// What the next group asks memory for, and by how much it moves on.
    far: Scalar,
    far_step: Scalar,
    /// Offsets of x of the current record.
    offsets: Vec<Scalar>,
    /// Offsets of the next record, not taken apart yet; free for other uses between records.
    peel: Scalar,
    /// First row of x in the k-block.
    xk: Scalar,
    stream: Scalar,
    group: Scalar,
    /// Outputs of the strips of the current and the next group.
    rows: Vec<Scalar>,
    next_rows: Vec<Scalar>,
    n: Scalar,
}

/// Registers of one group: accumulators by chain and vector. Chains belong to strips in turn, and are summed at the end.
struct Chains {
    /// Rows of a strip.
    n_rows: usize,
    /// `[chain][row][vector]`.
    acc: Vec<Vec<Vec<Vector>>>,
    temps: Vec<Vector>,
}

impl Sparse {
    fn k_block(&self, b: &mut Builder, first: bool) {
        for chunk in self.tile.chunks(chunk_vectors(self.kind, &self.tile)) {
            let t = self.peel;
            b.mov(self.xk, self.x);
            b.load_scalar(t, Width::B32, at(self.entry, 0));
            b.lea(self.xk, at(self.xk, 0).index(t, self.tile.scale()));
            b.load_scalar(self.group, Width::B32, at(self.entry, 12));
            b.add_scalar(self.group, self.block);
            b.load_scalar(self.stream, Width::B32, at(self.entry, 16));
            b.add_scalar(self.stream, self.block);
            self.load_offsets(b, 0);
            for i in 0..self.offsets.len() {
                self.peel_offset(b, i);
            }
            for (i, &row) in self.rows.iter().enumerate() {
                b.load_scalar(row, Width::B32, at(self.group, i as i32 * 4));
                b.lea(row, at(self.y, 0).index(row, self.tile.scale()));
            }
            for (count, n_strips) in [(4, self.kind.strips_in_flight()), (8, 1)] {
                let single = count == 8;
                b.load_scalar(self.count, Width::B32, at(self.entry, count));
                b.repeat(self.count, |b| {
                    self.one_group(b, first, single, n_strips, chunk)
                });
            }
        }
        b.add_imm(self.entry, ENTRY_BYTES as i32);
    }

    /// Loads the offsets of the record `ahead` records after the current one.
    fn load_offsets(&self, b: &mut Builder, ahead: usize) {
        let bytes = ahead * self.kind.record_bytes() + self.kind.values_bytes();
        let width = if self.offsets.len() == 4 {
            Width::B64
        } else {
            Width::B32
        };
        b.load_scalar(self.peel, width, at(self.stream, bytes as i32));
    }

    /// Takes offset `i` of the next record; in order.
    fn peel_offset(&self, b: &mut Builder, i: usize) {
        if i + 1 < self.offsets.len() {
            b.low16(self.offsets[i], self.peel);
            b.shr_imm(self.peel, 16);
        } else {
            b.mov(self.offsets[i], self.peel);
        }
    }

    fn chains(&self, b: &mut Builder, single: bool, chunk: Chunk) -> Chains {
        let n_rows = if self.kind == Kind::Outputs4 && !single {
            4
        } else {
            1
        };
        let v = chunk.n_vectors;
        // Enough chains to hide the latency of an FMA, within the registers.
        let n_chains = match self.kind {
            Kind::Outputs4 if v == 1 || self.tile.vl == 16 => 2,
            Kind::Outputs4 => 1,
            Kind::Single | Kind::Inputs4 if v <= 3 || self.tile.vl == 16 => 4,
            Kind::Single | Kind::Inputs4 => 2,
        };
        let acc = (0..n_chains)
            .map(|_| (0..n_rows).map(|_| b.vectors(v)).collect())
            .collect();
        let n_temps = match self.kind {
            Kind::Single => 4,
            Kind::Inputs4 => 4,
            Kind::Outputs4 => v + 1,
        };
        Chains {
            n_rows,
            acc,
            temps: b.vectors(n_temps),
        }
    }

    fn y_at(&self, row: Scalar, r: usize, j: usize, chunk: Chunk) -> Addr {
        at(
            row,
            r as i32 * self.tile.row_bytes() + chunk.bytes + (j * self.tile.vl * 4) as i32,
        )
    }

    fn one_group(&self, b: &mut Builder, first: bool, single: bool, n_strips: usize, chunk: Chunk) {
        let chains = self.chains(b, single, chunk);
        let t = self.peel;
        for (c, chain) in chains.acc.iter().enumerate() {
            if first && c < n_strips {
                b.load_scalar(t, Width::B32, at(self.group, c as i32 * 4));
                b.shr_imm(t, 3);
            }
            for (r, vectors) in chain.iter().enumerate() {
                for (j, &v) in vectors.iter().enumerate() {
                    if c >= n_strips {
                        b.zero(v);
                    } else if !first {
                        b.load(v, self.y_at(self.rows[c], r, j, chunk));
                    } else if j == 0 {
                        b.broadcast(
                            v,
                            at(self.bias, r as i32 * 4).index(t, crate::kir::Scale::X1),
                        );
                    } else {
                        b.copy(v, vectors[0]);
                    }
                }
            }
        }
        self.look_ahead(b, chunk);
        b.load_scalar(self.n, Width::B32, at(self.group, 8));
        b.repeat(self.n, |b| match self.kind {
            Kind::Single => self.record_single(b, &chains, chunk),
            Kind::Inputs4 => self.record_inputs(b, &chains, chunk),
            Kind::Outputs4 => self.record_outputs(b, &chains, chunk),
        });
        for s in 0..n_strips {
            for r in 0..chains.n_rows {
                for j in 0..chunk.n_vectors {
                    let sum = chains.acc[s][r][j];
                    for chain in chains.acc[s..].iter().step_by(n_strips).skip(1) {
                        b.add(sum, sum, chain[r][j]);
                    }
                    b.store(self.y_at(self.rows[s], r, j, chunk), sum);
                }
            }
        }
        for (&row, &next) in self.rows.iter().zip(&self.next_rows) {
            b.mov(row, next);
        }
        b.add_imm(self.group, GROUP_BYTES as i32);
        b.free_vectors(&chains.temps);
        for v in chains.acc.into_iter().flatten().flatten() {
            b.free_vector(v);
        }
    }

    /// Computes the next group's output pointers and asks for the outputs three groups ahead, for some of the next k-block's
    /// inputs, and memory for some of the weights after this row block.
    fn look_ahead(&self, b: &mut Builder, chunk: Chunk) {
        let scale = self.tile.scale();
        for (i, &row) in self.next_rows.iter().enumerate() {
            b.load_scalar(
                row,
                Width::B32,
                at(self.group, (GROUP_BYTES + i * 4) as i32),
            );
            b.lea(row, at(self.y, 0).index(row, scale));
        }
        let rows = if self.kind == Kind::Outputs4 { 4 } else { 1 };
        let bytes = chunk.n_vectors as i32 * self.tile.vl as i32 * 4;
        b.mov(self.peel, self.far);
        for line in 0..FAR_LINES {
            b.prefetch_far(at(self.peel, line * 64));
        }
        b.add_scalar(self.peel, self.far_step);
        b.mov(self.far, self.peel);
        for i in 0..self.rows.len() {
            let ahead = (GROUPS_AHEAD * GROUP_BYTES + i * 4) as i32;
            b.load_scalar(self.peel, Width::B32, at(self.group, ahead));
            for r in 0..rows {
                for line in (0..bytes).step_by(64) {
                    let bytes = r * self.tile.row_bytes() + chunk.bytes + line;
                    b.prefetch(at(self.y, bytes).index(self.peel, scale));
                }
            }
        }
        b.load_scalar(self.peel, Width::B32, at(self.group, 12));
        for r in 0..X_ROWS_AHEAD {
            for line in (0..bytes).step_by(64) {
                let bytes = r * self.tile.row_bytes() + chunk.bytes + line;
                b.prefetch(at(self.xk, bytes).index(self.peel, scale));
            }
        }
    }

    /// The address of vector `j` of the input row of unit `unit`, `column` rows further.
    fn x_at(&self, unit: usize, column: usize, j: usize, chunk: Chunk) -> Addr {
        let bytes =
            column as i32 * self.tile.row_bytes() + chunk.bytes + (j * self.tile.vl * 4) as i32;
        at(self.xk, bytes).index(self.offsets[unit], self.tile.scale())
    }

    fn record_single(&self, b: &mut Builder, chains: &Chains, chunk: Chunk) {
        self.load_offsets(b, 1);
        let (values, splats) = (chains.temps[0], &chains.temps[1..]);
        b.broadcast4(values, at(self.stream, 0));
        for unit in 0..4 {
            let w = splats[unit % splats.len()];
            b.splat_lane(w, values, unit as u8);
            let chain = &chains.acc[unit % chains.acc.len()][0];
            for (j, &acc) in chain.iter().enumerate() {
                b.fma(acc, w, self.x_at(unit, 0, j, chunk));
            }
            self.peel_offset(b, unit);
        }
        b.add_imm(self.stream, self.kind.record_bytes() as i32);
    }

    fn record_inputs(&self, b: &mut Builder, chains: &Chains, chunk: Chunk) {
        self.load_offsets(b, 1);
        let (values, splats) = chains.temps.split_at(2);
        for (unit, &v) in values.iter().enumerate() {
            b.broadcast4(v, at(self.stream, unit as i32 * 16));
        }
        for column in 0..4 {
            for (unit, &v) in values.iter().enumerate() {
                let w = splats[unit];
                b.splat_lane(w, v, column as u8);
                let chain = &chains.acc[(unit + 2 * column) % chains.acc.len()][0];
                for (j, &acc) in chain.iter().enumerate() {
                    b.fma(acc, w, self.x_at(unit, column, j, chunk));
                }
            }
        }
        for unit in 0..2 {
            self.peel_offset(b, unit);
        }
        b.add_imm(self.stream, self.kind.record_bytes() as i32);
    }

    fn record_outputs(&self, b: &mut Builder, chains: &Chains, chunk: Chunk) {
        self.load_offsets(b, 1);
        let (w, xs) = (chains.temps[0], &chains.temps[1..]);
        for unit in 0..2 {
            for (j, &x) in xs.iter().enumerate() {
                b.load(x, self.x_at(unit, 0, j, chunk));
            }
            self.peel_offset(b, unit);
            for (r, vectors) in chains.acc[unit % chains.acc.len()].iter().enumerate() {
                b.broadcast(w, at(self.stream, (unit * 16 + r * 4) as i32));
                for (&acc, &x) in vectors.iter().zip(xs) {
                    b.fma(acc, w, x);
                }
            }
        }
        b.add_imm(self.stream, self.kind.record_bytes() as i32);
    }
}

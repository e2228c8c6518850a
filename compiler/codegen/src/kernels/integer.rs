//! Integer weights times one panel of quads: streams of `{ i8 w[4], u16 offset }`, one row at a time, exact in i32.
//!
//! Arguments: row block, x panel `u8[ceil(k / 4)][W][4]`, y at the block's first row, `i32[n_rows][W]`.
//!
//! One vector register of x holds four inputs of each of its tokens, so that one quad of weights, broadcast, meets all of
//! them. By what the CPU has and what the weights prove:
//!
//! * *dots* (VNNI): one dot product in 32 bits for each vector. 32 tokens in 512 bits take 6 instructions for 128
//!   multiply-adds: two loads, two dot products, the broadcast and the offset; at 256 bits 10.
//! * *bins*: products of bytes, added in 16 bits over a bin that cannot saturate, then widened: per quad and vector a load,
//!   a multiplication and an addition, per bin and vector two more.
//! * *words*: bytes widened to 16 bits, even and odd ones apart: seven instructions per quad and vector.

use lancet_artifact::Arithmetic;

use super::{Chunk, Tile};
use crate::CpuFeatures;
use crate::formats::HEADER_BYTES;
use crate::formats::integer::{BINS, ENTRY_BYTES, GROUP_BYTES, QUAD_BYTES};
use crate::kir::{Addr, Binary, Builder, Program, Scalar, Shift, Vector, Width, at};

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Dots,
    Bins,
    Words,
}

impl Method {
    pub(super) fn of(arithmetic: Arithmetic, features: &CpuFeatures) -> Method {
        if features.dots() {
            Method::Dots
        } else if arithmetic == Arithmetic::Bytes && features.wide() {
            Method::Bins
        } else {
            Method::Words
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Method::Dots => "dots",
            Method::Bins => "bins",
            Method::Words => "words",
        }
    }
}

pub(super) fn program(name: String, method: Method, tile: &Tile) -> Program {
    let mut b = Builder::new(name, tile.vl);
    let [block, x, entry, count] = [(); 4].map(|()| b.slot());
    let y = b.scalar();
    for (i, s) in [block, x, y].into_iter().enumerate() {
        b.load_scalar(s, Width::B64, at(b.args(), i as i32 * 8));
    }
    b.free_scalar(b.args());
    let kernel = Integer {
        method,
        tile: *tile,
        block,
        x,
        y,
        entry,
        count,
        offset: b.scalar(),
        xk: b.scalar(),
        stream: b.scalar(),
        group: b.scalar(),
        row: b.scalar(),
        n: b.scalar(),
    };
    let blocks = b.slot();
    b.load_scalar(blocks, Width::B32, at(block, 0));
    b.lea(entry, at(block, HEADER_BYTES as i32));
    kernel.k_block(&mut b, true);
    b.add_imm(blocks, -1);
    b.repeat(blocks, |b| kernel.k_block(b, false));
    b.finish()
}

struct Integer {
    method: Method,
    tile: Tile,
    block: Scalar,
    x: Scalar,
    y: Scalar,
    /// Entry of the current k-block.
    entry: Scalar,
    count: Scalar,
    /// Offset of x of the current quad.
    offset: Scalar,
    /// First row of x in the k-block.
    xk: Scalar,
    stream: Scalar,
    group: Scalar,
    /// Output of the current group.
    row: Scalar,
    n: Scalar,
}

/// Registers of one group.
struct Registers {
    /// Sums by chain and vector; chains take quads in turn and are summed at the end.
    chains: Vec<Vec<Vector>>,
    /// Bins: ones, in 16 bits. Words: the even bytes of a lane.
    constant: Vector,
    /// Bins: the sums of the bin.
    words: Vec<Vector>,
    temps: Vec<Vector>,
}

impl Integer {
    fn k_block(&self, b: &mut Builder, first: bool) {
        for chunk in self.tile.chunks(4) {
            b.mov(self.xk, self.x);
            b.load_scalar(self.offset, Width::B32, at(self.entry, 0));
            b.lea(
                self.xk,
                at(self.xk, 0).index(self.offset, self.tile.scale()),
            );
            b.load_scalar(self.count, Width::B32, at(self.entry, 4));
            b.load_scalar(self.group, Width::B32, at(self.entry, 8));
            b.add_scalar(self.group, self.block);
            b.load_scalar(self.stream, Width::B32, at(self.entry, 12));
            b.add_scalar(self.stream, self.block);
            let registers = self.registers(b, chunk);
            b.repeat(self.count, |b| self.one_row(b, first, &registers, chunk));
            registers.free(b);
        }
        b.add_imm(self.entry, ENTRY_BYTES as i32);
    }

    fn registers(&self, b: &mut Builder, chunk: Chunk) -> Registers {
        let v = chunk.n_vectors;
        // Dot products wait for each other; sums of the other methods take one cycle.
        let n_chains = match self.method {
            Method::Dots => 8 / v.next_power_of_two(),
            Method::Bins | Method::Words => 1,
        };
        let registers = Registers {
            chains: (0..n_chains).map(|_| b.vectors(v)).collect(),
            constant: b.vector(),
            words: b.vectors(if self.method == Method::Bins { v } else { 0 }),
            temps: b.vectors(match self.method {
                Method::Dots | Method::Words => 5,
                Method::Bins => 6,
            }),
        };
        match self.method {
            Method::Dots => {}
            Method::Bins => b.constant_bits(registers.constant, 0x0001_0001),
            Method::Words => b.constant_bits(registers.constant, 0x00ff_00ff),
        }
        registers
    }

    fn one_row(&self, b: &mut Builder, first: bool, registers: &Registers, chunk: Chunk) {
        b.load_scalar(self.row, Width::B32, at(self.group, 0));
        b.lea(self.row, at(self.y, 0).index(self.row, self.tile.scale()));
        for (c, chain) in registers.chains.iter().enumerate() {
            for (j, &acc) in chain.iter().enumerate() {
                if first || c > 0 {
                    b.zero(acc);
                } else {
                    b.load(acc, self.at_vector(at(self.row, 0), j, chunk));
                }
            }
        }
        match self.method {
            Method::Bins => {
                for (i, &size) in BINS.iter().enumerate() {
                    b.load_scalar(self.n, Width::B16, at(self.group, 4 + 2 * i as i32));
                    b.repeat(self.n, |b| {
                        for i in 0..size {
                            self.quad_of_bin(b, registers, chunk, (i, size));
                        }
                        b.add_imm(self.stream, (size * QUAD_BYTES) as i32);
                    });
                }
            }
            Method::Dots | Method::Words => {
                const UNROLL: usize = 4;
                for (unroll, loads) in [(UNROLL, 2), (1, 0)] {
                    b.load_scalar(self.n, Width::B32, at(self.group, 12));
                    b.shr_imm(self.n, loads);
                    if unroll == 1 {
                        b.and_imm(self.n, UNROLL as u32 - 1);
                    }
                    b.repeat(self.n, |b| {
                        for i in 0..unroll {
                            if self.method == Method::Dots {
                                self.quad_of_dots(b, registers, chunk, i);
                            } else {
                                self.quad_of_words(b, registers, chunk, i);
                            }
                        }
                        b.add_imm(self.stream, (unroll * QUAD_BYTES) as i32);
                    });
                }
            }
        }
        let (sums, others) = registers.chains.split_at(1);
        for (j, &sum) in sums[0].iter().enumerate() {
            for other in others {
                b.binary(Binary::IntAdd, sum, sum, other[j]);
            }
            b.store(self.at_vector(at(self.row, 0), j, chunk), sum);
        }
        b.add_imm(self.group, GROUP_BYTES as i32);
    }

    fn at_vector(&self, addr: Addr, j: usize, chunk: Chunk) -> Addr {
        addr.plus(chunk.bytes + (j * self.tile.vl * 4) as i32)
    }

    /// Loads the offset of quad `i` and broadcasts its weights.
    fn quad(&self, b: &mut Builder, w: Vector, i: usize) {
        let bytes = (i * QUAD_BYTES) as i32;
        b.load_scalar(self.offset, Width::B16, at(self.stream, bytes + 4));
        b.broadcast(w, at(self.stream, bytes));
    }

    fn x_at(&self, j: usize, chunk: Chunk) -> Addr {
        self.at_vector(
            at(self.xk, 0).index(self.offset, self.tile.scale()),
            j,
            chunk,
        )
    }

    fn quad_of_bin(
        &self,
        b: &mut Builder,
        registers: &Registers,
        chunk: Chunk,
        (i, size): (usize, usize),
    ) {
        let (ws, temps) = registers.temps.split_at(2);
        let w = ws[i % 2];
        self.quad(b, w, i);
        for (j, &sum) in registers.words.iter().enumerate() {
            let t = if i == 0 { sum } else { temps[j] };
            b.load(t, self.x_at(j, chunk));
            b.binary(Binary::BytePairs, t, t, w);
            if i > 0 {
                b.binary(Binary::WordAdd, sum, sum, t);
            }
        }
        if i + 1 == size {
            for (&sum, &acc) in registers.words.iter().zip(&registers.chains[0]) {
                b.binary(Binary::WordPairs, sum, sum, registers.constant);
                b.binary(Binary::IntAdd, acc, acc, sum);
            }
        }
    }

    fn quad_of_dots(&self, b: &mut Builder, registers: &Registers, chunk: Chunk, i: usize) {
        let (w, xs) = (registers.temps[0], &registers.temps[1..]);
        self.quad(b, w, i);
        let chain = &registers.chains[i % registers.chains.len()];
        for (j, (&acc, &x)) in chain.iter().zip(xs).enumerate() {
            b.load(x, self.x_at(j, chunk));
            b.dot(acc, x, w);
        }
    }

    fn quad_of_words(&self, b: &mut Builder, registers: &Registers, chunk: Chunk, i: usize) {
        let [w, even, x, y, _] = registers.temps[..] else {
            return;
        };
        let odd = w;
        self.quad(b, w, i);
        b.shift(Shift::WordLeft, even, w, 8);
        b.shift(Shift::WordRightArithmetic, even, even, 8);
        b.shift(Shift::WordRightArithmetic, odd, w, 8);
        for (j, &acc) in registers.chains[0].iter().enumerate() {
            b.load(x, self.x_at(j, chunk));
            b.shift(Shift::WordRightLogical, y, x, 8);
            b.binary(Binary::And, x, x, registers.constant);
            b.binary(Binary::WordPairs, x, x, even);
            b.binary(Binary::WordPairs, y, y, odd);
            b.binary(Binary::IntAdd, acc, acc, x);
            b.binary(Binary::IntAdd, acc, acc, y);
        }
    }
}

impl Registers {
    fn free(self, b: &mut Builder) {
        for chain in &self.chains {
            b.free_vectors(chain);
        }
        b.free_vector(self.constant);
        b.free_vectors(&self.words);
        b.free_vectors(&self.temps);
    }
}

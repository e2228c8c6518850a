//! Integer weights times one panel of bytes, one row at a time, exact in i32.
//!
//! Arguments: row block, x panel, y at the block's first row, `i32[n_rows][W]`. The panel holds quads, `u8[ceil(k / 4)][W][4]`, for a
//! stream of quads `{ i8 w[4], u16 offset }`, and byte rows `u8[k][16 or 32]` for a stream of pairs `{ i8 w[4], u16 offset[2] }`.
//!
//! One vector register of x holds four inputs of each of its tokens, so that one quad of weights, broadcast, meets all of
//! them. By what the CPU has and what the weights prove:
//!
//! * *dots* (VNNI): one dot product in 32 bits for each vector. 32 tokens in 512 bits take 6 instructions for 128
//!   multiply-adds: two loads, two dot products, the broadcast and the offset; at 256 bits 10.
//! * *bins*: products of bytes, added in 16 bits over a bin that cannot saturate, then widened: per quad and vector a load,
//!   a multiplication and an addition, per bin and vector two more.
//! * *words*: bytes widened to 16 bits, even and odd ones apart: seven instructions per quad and vector.
//!
//! One register of x holds one input of each of four times as many tokens. Two of them, interleaved, are what the products of a
//! *pair* of weights are computed of, whichever inputs they are: per pair and 16 tokens two interleavings, two multiplications and
//! two additions in 16 bits. Bins of as many pairs, two and two, are interleaved as well and widened together. With dot products
//! two pairs are interleaved once more to a quad: per two pairs and 16 tokens nine interleavings and four dot products.

use lancet_artifact::Arithmetic;

use super::{Chunk, Tile};
use crate::CpuFeatures;
use crate::formats::HEADER_BYTES;
use crate::formats::integer::{ENTRY_BYTES, GROUP_BYTES, Stream};
use crate::kir::{
    Addr, Binary, Builder, Half, Piece, Program, Scalar, Scale, Shift, Vector, Width, at,
};

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Dots,
    Bins,
    Words,
    Pairs,
    DotsOfPairs,
}

impl Method {
    pub(super) fn of(stream: Stream, arithmetic: Arithmetic, features: &CpuFeatures) -> Method {
        if features.dots() {
            match stream {
                Stream::Quads => Method::Dots,
                Stream::Pairs => Method::DotsOfPairs,
            }
        } else if stream == Stream::Pairs {
            Method::Pairs
        } else if arithmetic == Arithmetic::Bytes && features.wide() {
            Method::Bins
        } else {
            Method::Words
        }
    }

    /// The lanes of `tile` at the width of this method's panels.
    pub(super) fn tile(self, tile: Tile) -> Tile {
        match self {
            Method::Pairs | Method::DotsOfPairs => tile.of_byte_rows(),
            Method::Dots | Method::Bins | Method::Words => tile,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Method::Dots => "quads_dots",
            Method::Bins => "quads_bins",
            Method::Words => "quads_words",
            Method::Pairs => "pairs",
            Method::DotsOfPairs => "pairs_dots",
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
        second: b.scalar(),
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
    /// Offset of x of the current quad, or of the first weight of a pair.
    offset: Scalar,
    /// That of the second.
    second: Scalar,
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
    /// Bins and pairs: ones, in 16 bits. Words: the even bytes of a lane.
    constant: Vector,
    /// Bins and pairs: the sums of a bin; of two bins of pairs.
    words: Vec<Vector>,
    temps: Vec<Vector>,
}

impl Integer {
    fn k_block(&self, b: &mut Builder, first: bool) {
        for chunk in self.tile.chunks(4) {
            b.mov(self.xk, self.x);
            b.load_scalar(self.offset, Width::B32, at(self.entry, 0));
            b.lea(self.xk, at(self.xk, 0).index(self.offset, self.x_scale()));
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
            Method::Bins | Method::Words | Method::Pairs | Method::DotsOfPairs => 1,
        };
        let n_words = match self.method {
            Method::Dots | Method::Words | Method::DotsOfPairs => 0,
            Method::Bins => v,
            Method::Pairs => 2 * v.div_ceil(2),
        };
        let registers = Registers {
            chains: (0..n_chains).map(|_| b.vectors(v)).collect(),
            constant: b.vector(),
            words: b.vectors(n_words),
            temps: b.vectors(match self.method {
                Method::Dots | Method::Words => 5,
                Method::Bins => 6,
                Method::Pairs => 3,
                Method::DotsOfPairs => 7,
            }),
        };
        match self.method {
            Method::Dots | Method::DotsOfPairs => {}
            Method::Bins | Method::Pairs => b.constant_bits(registers.constant, 0x0001_0001),
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
            Method::Bins | Method::Pairs => {
                let stream = self.stream_kind();
                for (i, &size) in stream.bins().iter().enumerate() {
                    b.load_scalar(self.n, Width::B16, at(self.group, 4 + 2 * i as i32));
                    b.repeat(self.n, |b| {
                        for i in 0..size {
                            match stream {
                                Stream::Quads => self.quad_of_bin(b, registers, chunk, (i, size)),
                                Stream::Pairs => self.pair_of_bins(b, registers, (i, size)),
                            }
                        }
                        b.add_imm(self.stream, (size * stream.record_bytes()) as i32);
                    });
                }
            }
            // Bins hold an even number of pairs.
            Method::DotsOfPairs => {
                b.load_scalar(self.n, Width::B32, at(self.group, 12));
                b.shr_imm(self.n, 1);
                b.repeat(self.n, |b| {
                    self.two_pairs_of_dots(b, registers);
                    b.add_imm(self.stream, 2 * Stream::Pairs.record_bytes() as i32);
                });
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
                        b.add_imm(self.stream, (unroll * Stream::Quads.record_bytes()) as i32);
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

    fn stream_kind(&self) -> Stream {
        match self.method {
            Method::Pairs | Method::DotsOfPairs => Stream::Pairs,
            Method::Dots | Method::Bins | Method::Words => Stream::Quads,
        }
    }

    /// What offsets of x are multiplied by.
    fn x_scale(&self) -> Scale {
        match self.stream_kind() {
            Stream::Pairs => self.tile.byte_row_scale(),
            Stream::Quads => self.tile.scale(),
        }
    }

    fn at_vector(&self, addr: Addr, j: usize, chunk: Chunk) -> Addr {
        addr.plus(chunk.bytes + (j * self.tile.vl * 4) as i32)
    }

    /// Loads the offset of quad `i` and broadcasts its weights.
    fn quad(&self, b: &mut Builder, w: Vector, i: usize) {
        let bytes = (i * Stream::Quads.record_bytes()) as i32;
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

    /// Broadcasts the weights of the pair at `bytes` of the stream; where its two rows of x are.
    fn pair(&self, b: &mut Builder, w: Vector, bytes: i32) -> [Addr; 2] {
        b.load_scalar(self.second, Width::B32, at(self.stream, bytes + 4));
        b.low16(self.offset, self.second);
        b.shr_imm(self.second, 16);
        b.broadcast(w, at(self.stream, bytes));
        [self.offset, self.second].map(|offset| at(self.xk, 0).index(offset, self.x_scale()))
    }

    /// Pair `i` of two bins of together `size`. Sums of 16 tokens each are in one register for the low half of their bytes and,
    /// where there are as many tokens, one for the high half.
    fn pair_of_bins(&self, b: &mut Builder, registers: &Registers, (i, size): (usize, usize)) {
        let [w, x, t] = registers.temps[..] else {
            return;
        };
        let (first, second) = registers.words.split_at(registers.words.len() / 2);
        let sums = if i < size / 2 { first } else { second };
        let [x_at, other] = self.pair(b, w, (i * Stream::Pairs.record_bytes()) as i32);
        let starts = i % (size / 2) == 0;
        b.load(x, x_at);
        for (&sum, half) in sums.iter().zip([Half::Low, Half::High]) {
            let products = if starts { sum } else { t };
            b.binary(Binary::Interleave(Piece::Byte, half), products, x, other);
            b.binary(Binary::BytePairs, products, products, w);
            if !starts {
                b.binary(Binary::WordAdd, sum, sum, products);
            }
        }
        if i + 1 == size {
            for (j, &acc) in registers.chains[0].iter().enumerate() {
                let half = [Half::Low, Half::High][j % 2];
                b.binary(
                    Binary::Interleave(Piece::Word, half),
                    t,
                    first[j / 2],
                    second[j / 2],
                );
                b.binary(Binary::WordPairs, t, t, registers.constant);
                b.binary(Binary::IntAdd, acc, acc, t);
            }
        }
    }

    /// Two pairs as a quad: `temps` has the weights and what the bytes of each pair become, interleaved.
    fn two_pairs_of_dots(&self, b: &mut Builder, registers: &Registers) {
        let [w, other_w, x, first_low, first_high, low, high] = registers.temps[..] else {
            return;
        };
        for (i, (weights, halves)) in [(w, [first_low, first_high]), (other_w, [low, high])]
            .into_iter()
            .enumerate()
        {
            let bytes = (i * Stream::Pairs.record_bytes()) as i32;
            let [x_at, other] = self.pair(b, weights, bytes);
            b.load(x, x_at);
            for (to, half) in halves.into_iter().zip([Half::Low, Half::High]) {
                b.binary(Binary::Interleave(Piece::Byte, half), to, x, other);
            }
        }
        b.binary(Binary::Interleave(Piece::Word, Half::Low), w, w, other_w);
        for (j, &acc) in registers.chains[0].iter().enumerate() {
            let (first, second) = [(first_low, low), (first_high, high)][j / 2];
            let half = [Half::Low, Half::High][j % 2];
            b.binary(Binary::Interleave(Piece::Word, half), x, first, second);
            b.dot(acc, x, w);
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

//! Executable kernels, and the calls to them.
//!
//! A [`Kernel`] is an entry point with the `Arc` of the memory that it lies in. Its methods are safe: each checks the sizes of
//! what it is given against what the kernel of its kind reads and writes, which is all that a kernel relies on, and packed
//! weights come as a [`Matrix`], whose bytes were validated when it was made and cannot change afterwards.

use std::sync::Arc;

use lancet_artifact::{
    Arithmetic, Extent, Float, KernelSpec, MatrixDesc, Reach, Reduction, RowBlock, Vertical,
    VerticalOp, VerticalOperand, WeightFormat,
};
use lancet_codegen::formats::{self, FormatError};
pub(crate) use lancet_codegen::kernels::attention::{QUERIES, ROWS};
use lancet_codegen::kernels::attention_tile::{HEIGHTS, heights};
pub(crate) use lancet_codegen::kernels::attention_tile::{KEYS, PARAMETERS};
use lancet_codegen::kernels::byte_rows;

use crate::mmap::Bytes;

/// A kernel that can be called.
#[derive(Clone)]
pub(crate) struct Kernel {
    /// `extern "C" fn(args: *const u64)` in the memory that `_memory` owns.
    entry: *const u8,
    spec: KernelSpec,
    name: Arc<str>,
    _memory: Arc<memory::Memory>,
}

// SAFETY: the entry point is immutable code, kept alive by `_memory`.
unsafe impl Send for Kernel {}
// SAFETY: as above; calling it from several threads at once touches only the operands of each call.
unsafe impl Sync for Kernel {}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// Operands that a function of elements may have.
pub(crate) const MAX_OPERANDS: usize = 16;

/// Packed weights that were proved safe to run on.
#[derive(Clone)]
pub(crate) struct Matrix {
    bytes: Arc<Bytes>,
    /// First byte of the matrix in `bytes`.
    start: usize,
    format: WeightFormat,
    arithmetic: Arithmetic,
    n: usize,
    k: usize,
    row_blocks: Arc<[RowBlock]>,
    /// Groups of each row block.
    n_groups: Arc<[usize]>,
}

impl Matrix {
    /// Validates a packed matrix. `bytes` from `weights_start` is the weights section that `desc` was checked against.
    pub(crate) fn new(
        bytes: &Arc<Bytes>,
        weights_start: usize,
        desc: &MatrixDesc,
    ) -> Result<Matrix, FormatError> {
        let (n, k) = (desc.n as usize, desc.k as usize);
        let start = weights_start + desc.offset as usize;
        let packed = &bytes.as_slice()[start..start + desc.len as usize];
        formats::validate(
            (desc.format, desc.arithmetic),
            n,
            k,
            &desc.row_blocks,
            packed,
        )?;
        let n_groups = desc.row_blocks.iter().map(|block| {
            let block = &packed[block.offset as usize..][..block.len as usize];
            match desc.arithmetic {
                Arithmetic::Float => formats::n_groups(desc.format, block),
                Arithmetic::Bytes | Arithmetic::Words => 0,
            }
        });
        Ok(Matrix {
            n_groups: n_groups.collect(),
            bytes: Arc::clone(bytes),
            start,
            format: desc.format,
            arithmetic: desc.arithmetic,
            n,
            k,
            row_blocks: desc.row_blocks.as_slice().into(),
        })
    }

    /// Number of outputs.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// Number of inputs.
    pub(crate) fn k(&self) -> usize {
        self.k
    }

    /// How the weights are stored.
    pub(crate) fn format(&self) -> WeightFormat {
        self.format
    }

    /// What products are computed in.
    pub(crate) fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// The parts of the work.
    pub(crate) fn row_blocks(&self) -> &[RowBlock] {
        &self.row_blocks
    }

    /// What a kernel asks memory for while it computes block `i` with a panel, which is pass `pass` of `n_passes`: its share of the
    /// bytes that follow the block, as an address, and the bytes by which each group moves on.
    fn ahead(&self, i: usize, [pass, n_passes]: [usize; 2]) -> [u64; 2] {
        let block = &self.row_blocks[i];
        let following = self.row_blocks.get(i + 1).unwrap_or(block).len as usize;
        let share = following / n_passes;
        let step = share.checked_div(self.n_groups[i]).unwrap_or(0);
        let start = self.block(i).as_ptr() as u64 + block.len;
        [start + (pass * share) as u64, step.min(128) as u64]
    }

    /// The bytes of a row block.
    pub(crate) fn block(&self, i: usize) -> &[u8] {
        let block = &self.row_blocks[i];
        let start = self.start + block.offset as usize;
        &self.bytes.as_slice()[start..start + block.len as usize]
    }
}

/// What attention of one tile of queries reads.
pub(crate) struct AttentionTile<'a> {
    /// Panels of [`KEYS`] keys from the first panel's first row on, and elements from one to the next.
    pub(crate) keys: (&'a [f32], usize),
    /// The same of values.
    pub(crate) values: (&'a [f32], usize),
    pub(crate) n_keys: usize,
    /// Rows of [`QUERIES`] queries, and elements from one to the next.
    pub(crate) queries: (&'a [f32], usize),
    /// For each key, and -inf up to a multiple of [`KEYS`].
    pub(crate) mask: &'a [f32],
    /// Features of a key and a query, and of a value.
    pub(crate) d: [usize; 2],
    /// What the kernel multiplies with and rounds by.
    pub(crate) parameters: &'a [f32; PARAMETERS],
}

impl AttentionTile<'_> {
    /// Elements of memory that the kernel uses beside its scores.
    pub(crate) const STATE: usize = 3 * QUERIES;
}

impl Kernel {
    /// The kernel's name.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Calls the entry point.
    ///
    /// # Safety
    /// `args` are what the kernel's documentation asks for: as many, with every address valid for what it reads or writes
    /// there, and nothing that it writes is accessed by anyone else meanwhile.
    unsafe fn call(&self, args: &[u64]) {
        // SAFETY: `entry` is the start of a finished function of this signature (set in `compile` only), and its memory is
        // alive because `_memory` is.
        unsafe {
            let entry: extern "C" fn(*const u64) = std::mem::transmute(self.entry);
            entry(args.as_ptr());
        }
    }

    /// Runs the probe and returns the floating-point operations that it did.
    ///
    /// # Panics
    /// If this is not the probe.
    pub(crate) fn probe(&self, repetitions: u64, vl: usize) -> u64 {
        assert!(matches!(self.spec, KernelSpec::FmaProbe), "{}", self.name);
        // SAFETY: the probe reads its one argument and accesses no other memory.
        unsafe { self.call(&[repetitions]) }
        2 * repetitions * (lancet_codegen::kernels::probe::FMAS * vl) as u64
    }

    /// One row block times one panel: `y = w x + bias`.
    ///
    /// `x` is `[k][panel]`, `y` and `bias` have the rows of the block. The panel is number `pass` of `n_passes` that this block is
    /// multiplied with.
    ///
    /// # Panics
    /// If the sizes or the matrix are not those of this kernel.
    pub(crate) fn matmul(
        &self,
        matrix: &Matrix,
        block: usize,
        passes: [usize; 2],
        x: &[f32],
        bias: &[f32],
        y: &mut [f32],
    ) {
        let KernelSpec::Matmul { format, panel, .. } = self.spec else {
            panic!("{} is not a matrix kernel", self.name);
        };
        let (panel, n_rows) = (panel as usize, matrix.row_blocks[block].n_rows as usize);
        assert!(
            format == matrix.format
                && matrix.arithmetic == Arithmetic::Float
                && x.len() >= matrix.k * panel
                && y.len() >= n_rows * panel
                && bias.len() >= n_rows,
            "{}: sizes do not fit",
            self.name
        );
        let [ahead, step] = matrix.ahead(block, passes);
        let args = [
            matrix.block(block).as_ptr() as u64,
            x.as_ptr() as u64,
            y.as_mut_ptr() as u64,
            bias.as_ptr() as u64,
            ahead,
            step,
        ];
        // SAFETY: the block was validated for this format and `k` (`Matrix::new`), so every address that the kernel forms
        // lies in the block, in `k` rows of x, or in the block's rows of y and bias, whose lengths were just checked; from
        // `ahead` on it only prefetches, which cannot fault.
        unsafe { self.call(&args) }
    }

    /// One row block times one panel of quads or byte rows: `y = w x`, all in dwords: `x` is `[ceil(k / 4)][panel]`, or
    /// `[k][byte row]`, `y` has the rows of the block.
    ///
    /// # Panics
    /// If the sizes or the matrix are not those of this kernel.
    pub(crate) fn integer_matmul(&self, matrix: &Matrix, block: usize, x: &[f32], y: &mut [f32]) {
        let KernelSpec::IntegerMatmul {
            format,
            arithmetic,
            panel,
            lanes,
        } = self.spec
        else {
            panic!("{} is not an integer matrix kernel", self.name);
        };
        let (panel, n_rows) = (panel as usize, matrix.row_blocks[block].n_rows as usize);
        let needed = match formats::in_byte_rows(format) {
            true => matrix.k * byte_rows::length(lanes as usize) / 4,
            false => matrix.k.div_ceil(4) * panel,
        };
        assert!(
            format == matrix.format
                && arithmetic == matrix.arithmetic
                && x.len() >= needed
                && y.len() >= n_rows * panel,
            "{}: sizes do not fit",
            self.name
        );
        let args = [
            matrix.block(block).as_ptr() as u64,
            x.as_ptr() as u64,
            y.as_mut_ptr() as u64,
        ];
        // SAFETY: the block was validated for this format, arithmetic and `k` (`Matrix::new`), so every address that the
        // kernel forms lies in the block, in the rows of x, or in the block's rows of y, whose lengths were just checked.
        unsafe { self.call(&args) }
    }

    /// The first `n_quads` rows of quads of a panel as four rows of bytes each: `x` is `[n_quads][panel]`, `y` as many byte rows.
    ///
    /// # Panics
    /// If the sizes are not those of this kernel.
    pub(crate) fn byte_rows(&self, x: &[f32], n_quads: usize, y: &mut [f32]) {
        let KernelSpec::ByteRows { panel, lanes } = self.spec else {
            panic!("{} does not make rows of bytes", self.name);
        };
        assert!(
            x.len() >= n_quads * panel as usize
                && y.len() >= n_quads * byte_rows::length(lanes as usize),
            "{}: sizes do not fit",
            self.name
        );
        let args = [x.as_ptr() as u64, n_quads as u64, y.as_mut_ptr() as u64];
        // SAFETY: the kernel reads `n_quads` rows of x and writes four byte rows for each, which are a quarter of as many dwords
        // as they have bytes; both lengths were just checked.
        unsafe { self.call(&args) }
    }

    /// `y = activation(y) + residual` over rows of one panel.
    ///
    /// # Panics
    /// If the sizes are not those of this kernel.
    pub(crate) fn epilogue(&self, residual: Option<&[f32]>, y: &mut [f32]) {
        let KernelSpec::Epilogue {
            residual: wanted,
            panel,
            ..
        } = self.spec
        else {
            panic!("{} is not an epilogue", self.name);
        };
        assert!(
            wanted == residual.is_some() && residual.is_none_or(|r| r.len() >= y.len()),
            "{}: sizes do not fit",
            self.name
        );
        let rows = y.len() / panel as usize;
        let residual = residual.map_or(std::ptr::null(), <[f32]>::as_ptr);
        let args = [y.as_mut_ptr() as u64, residual as u64, rows as u64];
        // SAFETY: the kernel accesses `rows` rows of `panel` floats of y and, if it has one, of the residual; both are at
        // least that long.
        unsafe { self.call(&args) }
    }

    /// An elementwise expression over `rows` rows of one panel, all in dwords. Operands begin at the first of these rows; one that
    /// is `None` is `y` itself.
    ///
    /// # Panics
    /// If the sizes are not those of this kernel.
    pub(crate) fn vertical(&self, operands: &[Option<&[f32]>], rows: usize, y: &mut [f32]) {
        let KernelSpec::Vertical {
            vertical, panel, ..
        } = &self.spec
        else {
            panic!("{} is no expression", self.name);
        };
        let panel = *panel as usize;
        let in_quads = matches!(vertical.ops.last(), Some(VerticalOp::Quantize { .. }));
        let y_rows = if in_quads { rows.div_ceil(4) } else { rows };
        let fits = |(operand, slice): (&VerticalOperand, &Option<&[f32]>)| {
            let len = match operand.extent {
                Extent::Panels => rows * panel,
                Extent::Features => rows,
                Extent::Scalar => 1,
            };
            slice.map_or(!in_quads && operand.extent == Extent::Panels, |s| {
                s.len() >= len
            })
        };
        assert!(
            y.len() >= y_rows * panel
                && operands.len() == vertical.operands.len()
                && vertical.operands.iter().zip(operands).all(fits),
            "{}: sizes do not fit",
            self.name
        );
        let mut args = [0u64; 5 + Vertical::MAX_OPERANDS];
        let y = y.as_mut_ptr();
        args[0] = y as u64;
        args[1] = if in_quads { rows / 4 } else { rows } as u64;
        for (i, arg) in args[2..5].iter_mut().enumerate() {
            *arg = u64::from(i < rows % 4);
        }
        for (arg, slice) in args[5..].iter_mut().zip(operands) {
            *arg = slice.map_or(y as u64, |s| s.as_ptr() as u64);
        }
        // SAFETY: the kernel accesses `rows` rows of `panel` dwords of every panel among the operands, `rows` dwords of every
        // vector and one of every number, and writes as many rows of y, or a quarter where four become one; all are at least
        // that long. It reads an element of y before it writes it.
        unsafe { self.call(&args) }
    }

    /// `y = f(operands)` over rows of one panel.
    ///
    /// # Panics
    /// If the sizes are not those of this kernel.
    pub(crate) fn elementwise(&self, operands: &[&[u8]], y: &mut [u8]) {
        let of = |x: &&[u8]| (x.as_ptr() as u64, x.len());
        // SAFETY: these are slices.
        unsafe { self.elementwise_of(operands.iter().map(of), y) }
    }

    /// As [`elementwise`](Kernel::elementwise), of what is in `y` and then of `others`.
    ///
    /// # Panics
    /// As [`elementwise`](Kernel::elementwise).
    pub(crate) fn elementwise_in_place(&self, others: &[&[u8]], y: &mut [u8]) {
        let of = |x: &[u8]| (x.as_ptr() as u64, x.len());
        let operands = std::iter::once(of(y)).chain(others.iter().map(|x| of(x)));
        // SAFETY: these are slices; kernels may write over an operand.
        unsafe { self.elementwise_of(operands, y) }
    }

    /// Calls the kernel of a function of elements.
    ///
    /// # Safety
    /// Each operand is an address and how many bytes may be read there.
    unsafe fn elementwise_of(&self, operands: impl Iterator<Item = (u64, usize)>, y: &mut [u8]) {
        let KernelSpec::Elementwise {
            operands: wanted,
            result,
            panel,
            ..
        } = &self.spec
        else {
            panic!("{} is no function of elements", self.name);
        };
        let panel = *panel as usize;
        let rows = y.len() / (panel * result.size_bytes());
        let needed = |(reach, float): &(Reach, Float)| {
            let n = match reach {
                Reach::Panel => rows * panel,
                Reach::Rows => rows,
                Reach::Lanes => panel,
                Reach::One => 1,
            };
            n * float.size_bytes()
        };
        let mut args = [0u64; MAX_OPERANDS + 2];
        args[0] = rows as u64;
        args[1] = y.as_mut_ptr() as u64;
        let mut n = 0;
        for (address, len) in operands {
            let fits = wanted.get(n).is_some_and(|w| needed(w) <= len);
            assert!(fits && n < MAX_OPERANDS, "{}: sizes do not fit", self.name);
            args[2 + n] = address;
            n += 1;
        }
        assert!(n == wanted.len(), "{}: {n} operands", self.name);
        // SAFETY: the kernel writes `rows` rows of `panel` numbers of y and reads of each operand what its reach says, which was
        // just checked.
        unsafe { self.call(&args[..n + 2]) }
    }

    /// Reduces columns of x: `rows` rows of as many lanes as the kernel has, `stride` bytes from one to the next.
    ///
    /// # Panics
    /// If the sizes are not those of this kernel.
    pub(crate) fn reduce(&self, x: &[u8], rows: usize, stride: usize, y: &mut [u8]) {
        let KernelSpec::Reduce {
            reduction,
            float,
            lanes,
        } = self.spec
        else {
            panic!("{} is no reduction", self.name);
        };
        let size = match reduction {
            Reduction::Max | Reduction::Min => float.size_bytes(),
            Reduction::Sum | Reduction::Mean | Reduction::L2 => size_of::<f64>(),
        };
        let lanes = lanes as usize;
        let read = (rows.checked_sub(1)).map_or(0, |n| n * stride + lanes * float.size_bytes());
        assert!(
            read <= x.len() && lanes * size <= y.len(),
            "{}: sizes do not fit",
            self.name
        );
        let args = [
            rows as u64,
            x.as_ptr() as u64,
            stride as u64,
            y.as_mut_ptr() as u64,
        ];
        // SAFETY: the kernel reads `lanes` numbers of each of `rows` rows of x and writes as many accumulators, which was just
        // checked.
        unsafe { self.call(&args) }
    }

    /// The sum of `rows` into lane `lane` of a panel `y[k][panel]`.
    ///
    /// # Panics
    /// If the sizes are not those of this kernel.
    pub(crate) fn embedding_sum(&self, rows: &[&[f32]], lane: usize, y: &mut [f32]) {
        let KernelSpec::EmbeddingSum { tables, panel } = self.spec else {
            panic!("{} is not an embedding sum", self.name);
        };
        let k = rows.first().map_or(0, |r| r.len());
        assert!(
            rows.len() == tables as usize
                && rows.iter().all(|r| r.len() == k)
                && lane < panel as usize
                && y.len() >= k * panel as usize,
            "{}: sizes do not fit",
            self.name
        );
        let mut scratch = [0f32; 16];
        let mut args = [0u64; lancet_codegen::kernels::embedding::MAX_TABLES as usize + 3];
        let n = rows.len();
        for (arg, row) in args.iter_mut().zip(rows) {
            *arg = row.as_ptr() as u64;
        }
        args[n] = y[lane..].as_mut_ptr() as u64;
        args[n + 1] = k as u64;
        args[n + 2] = scratch.as_mut_ptr() as u64;
        // SAFETY: the kernel reads `k` floats of each row and writes one float of each of `k` rows of the panel, at a lane
        // inside it; scratch holds the widest vector.
        unsafe { self.call(&args) }
    }

    /// Layer norm, or root-mean-square norm, over the features of one panel.
    ///
    /// # Panics
    /// If the sizes are not those of this kernel.
    pub(crate) fn layer_norm(
        &self,
        x: &[f32],
        gamma: &[f32],
        beta: &[f32],
        epsilon: f32,
        y: &mut [f32],
    ) {
        let (KernelSpec::LayerNorm { panel, .. } | KernelSpec::RmsNorm { panel, .. }) = self.spec
        else {
            panic!("{} is not a norm", self.name);
        };
        let k = gamma.len();
        assert!(
            x.len() >= k * panel as usize && y.len() >= k * panel as usize && beta.len() >= k,
            "{}: sizes do not fit",
            self.name
        );
        let parameters = [1.0 / k as f32, epsilon];
        let args = [
            x.as_ptr() as u64,
            y.as_mut_ptr() as u64,
            gamma.as_ptr() as u64,
            beta.as_ptr() as u64,
            k as u64,
            parameters.as_ptr() as u64,
        ];
        // SAFETY: the kernel reads `k` rows of `panel` floats of x, `k` floats of gamma and beta and two parameters, and
        // writes `k` rows of y; all are at least that long.
        unsafe { self.call(&args) }
    }

    /// `out[i][t] = sum_key v[i][key] p[key][t]`, where `p` is the softmax over keys of `scale sum_j k[j][key] q[j][t] + mask[key]`,
    /// both to the base of 2. Rows of `out` are `stride` elements apart.
    ///
    /// # Panics
    /// If there is no key or an operand is shorter than the kernel reads or writes.
    pub(crate) fn attention_tile(
        &self,
        tile: &AttentionTile<'_>,
        scores: &mut [f32],
        state: &mut [f32],
        (out, stride): (&mut [f32], usize),
    ) {
        assert!(
            matches!(self.spec, KernelSpec::AttentionTile { .. }),
            "{} is not attention",
            self.name
        );
        let ([d, dv], n_keys) = (tile.d, tile.n_keys);
        let panels = n_keys.div_ceil(KEYS);
        let rows_fit = |len: usize, rows: usize, row: usize, width: usize| {
            rows == 0 || len >= (rows - 1) * row + width
        };
        assert!(
            n_keys > 0
                && rows_fit(tile.keys.0.len(), panels, tile.keys.1, d * KEYS)
                && rows_fit(tile.values.0.len(), panels, tile.values.1, dv * KEYS)
                && rows_fit(tile.queries.0.len(), d, tile.queries.1, QUERIES)
                && rows_fit(out.len(), dv, stride, QUERIES)
                && scores.len() >= panels * KEYS * QUERIES
                && tile.mask.len() >= panels * KEYS
                && state.len() >= AttentionTile::STATE,
            "{}: sizes do not fit",
            self.name
        );
        let rest = n_keys % KEYS;
        let [a, b, c] = heights(dv);
        let args = [
            tile.keys.0.as_ptr() as u64,
            tile.values.0.as_ptr() as u64,
            (tile.keys.1 * 4) as u64,
            (tile.values.1 * 4) as u64,
            tile.queries.0.as_ptr() as u64,
            (tile.queries.1 * 4) as u64,
            scores.as_mut_ptr() as u64,
            tile.mask.as_ptr() as u64,
            out.as_mut_ptr() as u64,
            (stride * 4) as u64,
            d as u64,
            (n_keys / KEYS) as u64,
            rest as u64,
            rest.div_ceil(HEIGHTS[1]) as u64,
            a as u64,
            b as u64,
            c as u64,
            tile.parameters.as_ptr() as u64,
            state.as_mut_ptr() as u64,
        ];
        // SAFETY: of keys and values the kernel reads `d` and `dv` rows of 32 in each panel that holds a key, of queries `d` rows
        // of 16, of the mask a float for each key of these panels, and the parameters. It writes as many rows of 16 scores, `dv` rows of 16 of the
        // result (`heights` gives rows that sum to `dv`), and the state. All were just checked to be there.
        unsafe { self.call(&args) }
    }

    /// `c[i][t] = sum_j a[i * row + j * step] b[j * b_row + t]` for at least `n` rows i, `k` steps j and a tile of queries t.
    ///
    /// # Panics
    /// If an operand is shorter than the kernel reads or writes: rows go up to a multiple of [`ROWS`].
    pub(crate) fn attention_product(
        &self,
        a: &[f32],
        [row, step]: [usize; 2],
        (b, b_row): (&[f32], usize),
        k: usize,
        n: usize,
        c: &mut [f32],
    ) {
        assert!(
            matches!(self.spec, KernelSpec::AttentionProduct),
            "{} is not a product of attention",
            self.name
        );
        let tiles = n.div_ceil(ROWS);
        if tiles == 0 {
            return;
        }
        let last = (tiles * ROWS - 1) * row + k.saturating_sub(1) * step;
        assert!(
            (k == 0 || (last < a.len() && b.len() >= (k - 1) * b_row + QUERIES))
                && c.len() >= tiles * ROWS * QUERIES,
            "{}: sizes do not fit",
            self.name
        );
        let args = [
            a.as_ptr() as u64,
            b.as_ptr() as u64,
            c.as_mut_ptr() as u64,
            k as u64,
            (row * 4) as u64,
            (step * 4) as u64,
            (b_row * 4) as u64,
            tiles as u64,
        ];
        // SAFETY: the last element of a that the kernel reads is `last`, of b it reads tiles of `k` rows and of c it writes
        // `tiles * ROWS` rows of `QUERIES` floats; all were just checked.
        unsafe { self.call(&args) }
    }

    /// `s[key][t] = exp(scale s[key][t] + mask[key] - max)` in place, and `sums[t] = 1 / sum over keys`.
    ///
    /// # Panics
    /// If there is no key or the sizes are not those of one tile.
    pub(crate) fn attention_softmax(
        &self,
        s: &mut [f32],
        mask: &[f32],
        scale: f32,
        sums: &mut [f32; QUERIES],
    ) {
        assert!(
            matches!(self.spec, KernelSpec::AttentionSoftmax),
            "{} is not a softmax",
            self.name
        );
        let keys = s.len() / QUERIES;
        assert!(
            keys > 0 && mask.len() >= keys,
            "{}: sizes do not fit",
            self.name
        );
        let args = [
            s.as_mut_ptr() as u64,
            keys as u64,
            mask.as_ptr() as u64,
            (&raw const scale) as u64,
            sums.as_mut_ptr() as u64,
        ];
        // SAFETY: the kernel accesses `keys` rows of `QUERIES` scores, `keys` floats of the mask, the scale and `QUERIES` sums.
        unsafe { self.call(&args) }
    }
}

#[cfg(feature = "jit")]
mod memory {
    //! Where the code lies.

    use std::collections::HashMap;
    use std::mem::ManuallyDrop;
    use std::sync::Arc;

    use cranelift_codegen::settings::{self, Configurable};
    use cranelift_jit::{JITBuilder, JITModule};
    use cranelift_module::{Linkage, Module, default_libcall_names};
    use lancet_artifact::KernelSpec;
    use lancet_codegen::{Code, CpuFeatures, Kernel as Emitted};

    use super::Kernel;

    /// A finished module. Nothing uses it any more but its memory.
    pub(super) struct Memory(ManuallyDrop<JITModule>);

    // SAFETY: the module is not accessed after it was finished, except to free its memory when the last owner drops it.
    unsafe impl Sync for Memory {}

    impl Drop for Memory {
        fn drop(&mut self) {
            // SAFETY: the module is taken once, here. Every kernel in it holds an `Arc` of this value, so none is left, and
            // none runs.
            unsafe { ManuallyDrop::take(&mut self.0).free_memory() }
        }
    }

    /// Emits kernels for this CPU and makes them executable, all in one module.
    ///
    /// # Errors
    /// What went wrong, as text, if one of the kernels cannot be emitted here.
    pub(crate) fn compile(
        specs: &[KernelSpec],
        features: &CpuFeatures,
    ) -> Result<HashMap<KernelSpec, Kernel>, String> {
        let kernels: Vec<Emitted> = specs
            .iter()
            .map(|spec| lancet_codegen::emit(spec, features).map_err(|e| e.to_string()))
            .collect::<Result<_, _>>()?;
        let mut flags = settings::builder();
        for (name, value) in [
            ("opt_level", "none"),
            (
                "enable_verifier",
                if cfg!(debug_assertions) {
                    "true"
                } else {
                    "false"
                },
            ),
            ("is_pic", "false"),
            ("use_colocated_libcalls", "false"),
        ] {
            flags.set(name, value).map_err(|e| e.to_string())?;
        }
        let isa = cranelift_native::builder()?
            .finish(settings::Flags::new(flags))
            .map_err(|e| e.to_string())?;
        let mut module = JITModule::new(JITBuilder::with_isa(isa, default_libcall_names()));
        let mut ids = Vec::with_capacity(kernels.len());
        for (i, kernel) in kernels.iter().enumerate() {
            let name = format!("{}.{i}", kernel.name);
            let id = match &kernel.code {
                Code::Bytes(bytes) => {
                    let mut signature = module.make_signature();
                    let pointer = module.target_config().pointer_type();
                    signature
                        .params
                        .push(cranelift_codegen::ir::AbiParam::new(pointer));
                    let id = module
                        .declare_function(&name, Linkage::Export, &signature)
                        .map_err(|e| e.to_string())?;
                    module
                        .define_function_bytes(id, 64, bytes, &[])
                        .map_err(|e| e.to_string())?;
                    id
                }
                Code::Clif(function) => {
                    let id = module
                        .declare_function(&name, Linkage::Export, &function.signature)
                        .map_err(|e| e.to_string())?;
                    let mut context =
                        cranelift_codegen::Context::for_function((**function).clone());
                    module
                        .define_function(id, &mut context)
                        .map_err(|e| format!("{name}: {e:?}"))?;
                    id
                }
            };
            ids.push(id);
        }
        module.finalize_definitions().map_err(|e| e.to_string())?;
        let entries: Vec<*const u8> = ids
            .iter()
            .map(|&id| module.get_finalized_function(id))
            .collect();
        let memory = Arc::new(Memory(ManuallyDrop::new(module)));
        Ok(kernels
            .into_iter()
            .zip(entries)
            .map(|(kernel, entry)| {
                let compiled = Kernel {
                    entry,
                    spec: kernel.spec.clone(),
                    name: kernel.name.into(),
                    _memory: Arc::clone(&memory),
                };
                (kernel.spec, compiled)
            })
            .collect())
    }
}

#[cfg(not(feature = "jit"))]
mod memory {
    //! Without the feature there is no code, and no kernel is ever made.

    use std::collections::HashMap;

    use lancet_artifact::KernelSpec;
    use lancet_codegen::CpuFeatures;

    pub(super) enum Memory {}

    pub(crate) fn compile(
        _: &[KernelSpec],
        _: &CpuFeatures,
    ) -> Result<HashMap<KernelSpec, super::Kernel>, String> {
        Err("built without the `jit` feature".to_owned())
    }
}

pub(crate) use memory::compile;

//! Every kernel: one file per kind, each a function from its parameters to a kernel IR program.

pub mod attention;
pub mod attention_tile;
pub mod byte_rows;
mod dense;
mod elementwise;
pub mod embedding;
mod epilogue;
mod integer;
mod layer_norm;
mod math;
mod math64;
pub mod probe;
mod reduce;
mod sparse;
mod vertical;

use lancet_artifact::{Arithmetic, Reduction, WeightFormat};

use crate::formats::integer::Stream;
use crate::formats::sparse::Kind;
use crate::kir::{Program, Scale};
use crate::{CpuFeatures, EmitError, KernelSpec};

use layer_norm::Norm;

/// Writes the program of `spec`, at the vector width that suits the CPU.
///
/// # Errors
/// [`EmitError::Spec`] if no kernel has these parameters.
pub fn build(spec: &KernelSpec, features: &CpuFeatures) -> Result<Program, EmitError> {
    let error = |reason| EmitError::Spec {
        spec: Box::new(spec.clone()),
        reason,
    };
    match *spec {
        KernelSpec::Matmul {
            format,
            panel,
            lanes,
        } => {
            let tile = Tile::new(panel, lanes, features).map_err(error)?;
            if crate::formats::stored_format(format, usize::MAX) != format {
                return Err(error("matrices are not stored in this format"));
            }
            let name = match format {
                WeightFormat::Dense => "dense".to_owned(),
                WeightFormat::Unstructured => "unstructured".to_owned(),
                WeightFormat::Bsr { r, c } => format!("bsr{r}x{c}"),
            };
            let name = format!("f32_matmul_{name}_{panel}x{lanes}_v{}", tile.vl);
            Ok(match Kind::of(format) {
                None => dense::program(name, &tile),
                Some(kind) => sparse::program(name, kind, &tile),
            })
        }
        KernelSpec::IntegerMatmul {
            format,
            arithmetic,
            panel,
            lanes,
        } => {
            let tile = Tile::new(panel, lanes, features).map_err(error)?;
            if !matches!(arithmetic, Arithmetic::Bytes | Arithmetic::Words)
                || crate::formats::stored_format_of(arithmetic, format, usize::MAX) != format
            {
                return Err(error("integers are not stored in this format"));
            }
            let method = integer::Method::of(Stream::of(format), arithmetic, features);
            let (tile, how) = (method.tile(tile), method.name());
            let name = format!("i8_matmul_{how}_{panel}x{lanes}_v{}", tile.vl);
            Ok(integer::program(name, method, &tile))
        }
        KernelSpec::ByteRows { panel, lanes } => {
            let tile = Tile::new(panel, lanes, features).map_err(error)?;
            let tile = tile.of_byte_rows();
            let name = format!("i8_byte_rows_{panel}x{lanes}_v{}", tile.vl);
            Ok(byte_rows::program(name, &tile))
        }
        KernelSpec::Epilogue {
            activation,
            residual,
            panel,
            lanes,
        } => {
            let tile = Tile::new(panel, lanes, features).map_err(error)?;
            let add = if residual { "_add" } else { "" };
            let name = format!("f32_{activation}{add}_{panel}x{lanes}_v{}", tile.vl);
            Ok(epilogue::program(name, activation, residual, &tile))
        }
        KernelSpec::Vertical {
            ref vertical,
            panel,
            lanes,
        } => {
            let tile = Tile::new(panel, lanes, features).map_err(error)?;
            let result = vertical
                .check()
                .map_err(|_| error("the expression is malformed"))?;
            let name = vertical::name(vertical, result);
            let name = format!("{name}_{panel}x{lanes}_v{}", tile.vl);
            Ok(vertical::program(name, vertical, result, &tile))
        }
        KernelSpec::Elementwise {
            ref body,
            ref operands,
            result,
            panel,
            lanes,
        } => {
            let tile = Tile::new(panel, lanes, features).map_err(error)?;
            // The functions, as far as a name should go.
            let words: Vec<&str> = body
                .split(';')
                .filter_map(|line| line.split_whitespace().next())
                .collect();
            let shown = words[..words.len().min(4)].join("_");
            let more = if words.len() > 4 {
                format!("_{}", words.len())
            } else {
                String::new()
            };
            let name = format!(
                "{}_{shown}{more}_{panel}x{lanes}_v{}",
                result.name(),
                tile.vl
            );
            elementwise::program(name, body, (operands, result), &tile).map_err(error)
        }
        KernelSpec::Reduce {
            reduction,
            float,
            lanes,
        } => {
            let tile = Tile::new(32, lanes, features).map_err(error)?;
            if reduction == Reduction::Mean {
                return Err(error("a mean is a sum"));
            }
            let name = format!("{}_{reduction}_{lanes}_v{}", float.name(), tile.vl);
            Ok(reduce::program(name, reduction, float, &tile))
        }
        KernelSpec::LayerNorm { panel, lanes } => {
            let tile = Tile::new(panel, lanes, features).map_err(error)?;
            let name = format!("f32_layer_norm_{panel}x{lanes}_v{}", tile.vl);
            Ok(layer_norm::program(name, Norm::Layer, &tile))
        }
        KernelSpec::RmsNorm { panel, lanes } => {
            let tile = Tile::new(panel, lanes, features).map_err(error)?;
            let name = format!("f32_rms_norm_{panel}x{lanes}_v{}", tile.vl);
            Ok(layer_norm::program(name, Norm::RootMeanSquare, &tile))
        }
        KernelSpec::EmbeddingSum { tables, panel } => {
            if !(1..=embedding::MAX_TABLES).contains(&tables) || !matches!(panel, 8 | 16 | 32) {
                return Err(error("1 to 6 tables, panels of 8, 16 or 32 tokens"));
            }
            let vl = features.vl(8);
            let name = format!("f32_embedding_sum{tables}_{panel}_v{vl}");
            Ok(embedding::program(name, vl, tables, panel))
        }
        KernelSpec::AttentionProduct => {
            let vl = features.vl(attention::QUERIES);
            Ok(attention::product_program(
                format!("f32_attention_product_v{vl}"),
                vl,
            ))
        }
        KernelSpec::AttentionTile { rounds } => {
            let vl = features.vl(attention::QUERIES);
            let rounded = ["_products", "_scores", "_probabilities"];
            let rounded: String = (rounded.iter().zip(rounds))
                .filter_map(|(what, rounds)| rounds.then_some(*what))
                .collect();
            let rounded = if rounded.is_empty() {
                rounded
            } else {
                format!("_round{rounded}")
            };
            let name = format!("f32_attention_tile{rounded}_v{vl}");
            Ok(attention_tile::program(name, vl, rounds))
        }
        KernelSpec::FmaProbe => {
            let vl = features.vl(16);
            Ok(probe::program(format!("f32_fma_probe_v{vl}"), vl))
        }
        KernelSpec::AttentionSoftmax => {
            let vl = features.vl(attention::QUERIES);
            Ok(attention::softmax_program(
                format!("f32_attention_softmax_v{vl}"),
                vl,
            ))
        }
    }
}

/// Tokens of the panels that the `f32` kernel of `format` runs fastest on: 16 or 32.
///
/// Rows of a panel are as long as the panel is wide. A kernel that computes half of a row at a time reads every other cache
/// line of the panel, and these fall into half of the sets of the first-level cache.
pub fn panel_width(format: WeightFormat, features: &CpuFeatures) -> usize {
    const WIDEST: u32 = 32;
    let (Some(kind), Ok(tile)) = (Kind::of(format), Tile::new(WIDEST, WIDEST, features)) else {
        return WIDEST as usize;
    };
    (sparse::chunk_vectors(kind, &tile) * tile.vl).clamp(16, WIDEST as usize)
}

/// The part of a token panel that a kernel computes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    /// Tokens of a panel: 8, 16 or 32.
    panel: usize,
    /// Leading tokens that are computed.
    lanes: usize,
    /// Lanes of a vector.
    vl: usize,
}

/// Vectors of a tile that are computed together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    /// First byte within a row of the panel.
    bytes: i32,
    n_vectors: usize,
}

impl Tile {
    fn new(panel: u32, lanes: u32, features: &CpuFeatures) -> Result<Self, &'static str> {
        if !matches!(panel, 8 | 16 | 32) {
            return Err("panels have 8, 16 or 32 tokens");
        }
        if lanes == 0 || !lanes.is_multiple_of(8) || lanes > panel {
            return Err("lanes are a multiple of 8 within the panel");
        }
        let lanes = lanes as usize;
        Ok(Tile {
            panel: panel as usize,
            lanes,
            vl: features.vl(lanes),
        })
    }

    /// Bytes of a row of the panel.
    fn row_bytes(&self) -> i32 {
        (self.panel * 4) as i32
    }

    /// What offsets in units of a row of 8 tokens are multiplied by.
    fn scale(&self) -> Scale {
        match self.panel {
            8 => Scale::X1,
            16 => Scale::X2,
            _ => Scale::X4,
        }
    }

    /// The lanes in chunks of at most `max` vectors.
    fn chunks(&self, max: usize) -> Vec<Chunk> {
        let n = self.lanes / self.vl;
        (0..n)
            .step_by(max)
            .map(|v| Chunk {
                bytes: (v * self.vl * 4) as i32,
                n_vectors: max.min(n - v),
            })
            .collect()
    }
}

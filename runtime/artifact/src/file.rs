//! The bytes of an artifact: header, plans, weights.
//!
//! An artifact holds one plan or several, its variants, over one weights section; each has a name of its own.
//!
//! ```text
//!  0  magic           8 bytes
//!  8  format version  u32
//! 12  header checksum u32, CRC-32 of the header with this field zero
//! 16  plans offset    u64        24  plans length    u64
//! 32  weights offset  u64        40  weights length  u64
//! 48  plans checksum  u32        52  weights checksum u32
//! 56  reserved        u64, zero
//! 64  plans, then zeros up to a multiple of 4096, then weights up to the end of the file
//! ```
//!
//! Everything is little-endian. Checks go from the outside in: magic, version, header, lengths, checksums, the plan's
//! message, the plan.

use std::collections::HashSet;
use std::io::Write;
use std::ops::Range;

use crate::{ArtifactError, Plan, Weights, wire};

const MAGIC: [u8; 8] = *b"\x89LANCET\n";
const HEADER_BYTES: usize = 64;
const PAGE_BYTES: u64 = 4096;

/// The format version that this build writes, and the only one that it reads.
pub const FORMAT_VERSION: u32 = 6;

/// Greatest length of the encoded plans together, which bounds the memory that decoding a hostile one takes.
pub const MAX_PLAN_BYTES: u64 = 16 << 20;

/// Writes an artifact: its variants, of which the first is the default, over one weights section.
///
/// # Errors
/// [`ArtifactError::Variants`] if there is none or two share a name, [`ArtifactError::Plan`] if a plan does not hold
/// together with these weights, [`ArtifactError::Io`].
pub fn write(
    variants: &[(&str, &Plan)],
    weights: &Weights<'_>,
    out: &mut impl Write,
) -> Result<(), ArtifactError> {
    check_names(variants.iter().map(|v| v.0))?;
    for (_, plan) in variants {
        plan.validate(weights.len_bytes())?;
    }
    let bytes = wire::variants_to_bytes(variants);
    let plans_bytes = bytes.len() as u64;
    if plans_bytes > MAX_PLAN_BYTES {
        return Err(ArtifactError::Section {
            section: "plans",
            offset: HEADER_BYTES as u64,
            len: plans_bytes,
            message: "longer than the format allows",
        });
    }
    let plans_end = HEADER_BYTES as u64 + plans_bytes;
    let weights_offset = plans_end.next_multiple_of(PAGE_BYTES);
    let header = Header {
        plans: (HEADER_BYTES as u64, plans_bytes),
        weights: (weights_offset, weights.len_bytes()),
        plans_crc: crc32fast::hash(&bytes),
        weights_crc: weights.crc32(),
    };
    out.write_all(&header.to_bytes())?;
    out.write_all(&bytes)?;
    out.write_all(&[0u8; PAGE_BYTES as usize][..(weights_offset - plans_end) as usize])?;
    weights.write_to(out)?;
    out.flush()?;
    Ok(())
}

/// Names and plans of an artifact, the default one first.
pub type Variants = Vec<(String, Plan)>;

/// Reads an artifact: the variants, at least one, and where in `bytes` the weights section is.
///
/// # Errors
/// [`ArtifactError`] with what is wrong and where. No bytes cause a panic.
pub fn read(bytes: &[u8]) -> Result<(Variants, Range<usize>), ArtifactError> {
    let header = Header::from_bytes(bytes)?;
    let plans = section(bytes, "plans", header.plans)?;
    if header.plans.1 > MAX_PLAN_BYTES {
        return Err(ArtifactError::Section {
            section: "plans",
            offset: header.plans.0,
            len: header.plans.1,
            message: "longer than the format allows",
        });
    }
    let weights = section(bytes, "weights", header.weights)?;
    if header.weights.0 % PAGE_BYTES != 0 {
        return Err(ArtifactError::Section {
            section: "weights",
            offset: header.weights.0,
            len: header.weights.1,
            message: "not at a multiple of 4096",
        });
    }
    check_crc("plans", header.plans_crc, &bytes[plans.clone()])?;
    check_crc("weights", header.weights_crc, &bytes[weights.clone()])?;
    let variants = wire::variants_from_bytes(&bytes[plans])?;
    check_names(variants.iter().map(|v| v.0.as_str()))?;
    for (_, plan) in &variants {
        plan.validate(weights.len() as u64)?;
    }
    Ok((variants, weights))
}

/// At least one variant, and no two of one name.
fn check_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), ArtifactError> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(ArtifactError::Variants(format!("two are named `{name}`")));
        }
    }
    if seen.is_empty() {
        return Err(ArtifactError::Variants("there is none".to_owned()));
    }
    Ok(())
}

/// True if `bytes` begin like an artifact; two bytes of a file say enough to tell it from an ONNX model.
pub fn is_artifact(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

struct Header {
    /// Offset and length.
    plans: (u64, u64),
    weights: (u64, u64),
    plans_crc: u32,
    weights_crc: u32,
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0u8; HEADER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&self.plans.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.plans.1.to_le_bytes());
        out[32..40].copy_from_slice(&self.weights.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.weights.1.to_le_bytes());
        out[48..52].copy_from_slice(&self.plans_crc.to_le_bytes());
        out[52..56].copy_from_slice(&self.weights_crc.to_le_bytes());
        let crc = crc32fast::hash(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn from_bytes(bytes: &[u8]) -> Result<Header, ArtifactError> {
        if !is_artifact(bytes) {
            return Err(ArtifactError::Magic);
        }
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(ArtifactError::Truncated {
                section: "header",
                expected: HEADER_BYTES as u64,
                found: bytes.len() as u64,
            });
        };
        let u32_at =
            |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        let u64_at = |i: usize| u64::from(u32_at(i)) | u64::from(u32_at(i + 4)) << 32;
        let version = u32_at(8);
        if version != FORMAT_VERSION {
            return Err(ArtifactError::Version {
                found: version,
                supported: FORMAT_VERSION,
            });
        }
        let mut zeroed = *header;
        zeroed[12..16].fill(0);
        check_crc("header", u32_at(12), &zeroed)?;
        Ok(Header {
            plans: (u64_at(16), u64_at(24)),
            weights: (u64_at(32), u64_at(40)),
            plans_crc: u32_at(48),
            weights_crc: u32_at(52),
        })
    }
}

fn section(
    bytes: &[u8],
    section: &'static str,
    (offset, len): (u64, u64),
) -> Result<Range<usize>, ArtifactError> {
    let Some(end) = offset.checked_add(len) else {
        return Err(ArtifactError::Section {
            section,
            offset,
            len,
            message: "its end overflows",
        });
    };
    if offset < HEADER_BYTES as u64 {
        return Err(ArtifactError::Section {
            section,
            offset,
            len,
            message: "overlaps the header",
        });
    }
    if end > bytes.len() as u64 {
        return Err(ArtifactError::Truncated {
            section,
            expected: end,
            found: bytes.len() as u64,
        });
    }
    Ok(offset as usize..end as usize)
}

fn check_crc(section: &'static str, expected: u32, bytes: &[u8]) -> Result<(), ArtifactError> {
    let found = crc32fast::hash(bytes);
    if found != expected {
        return Err(ArtifactError::Checksum {
            section,
            expected,
            found,
        });
    }
    Ok(())
}

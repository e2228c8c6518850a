//! Reads the structure of a protobuf file without the elements of its tensors.
//!
//! A model is mostly `raw_data`. Parsing it whole would hold every weight twice, so this walks the wire format once and
//! writes a *skeleton*: the same messages, in which each `raw_data` is a 16-byte [`Payload`] that says where the bytes
//! stand in the file. `onnx_protobuf` parses the skeleton, and each tensor is later read straight to where it stays.
//!
//! Only the fields named in [`field`] are kept. What is dropped (documentation, metadata, types of intermediate values)
//! is never allocated, and what is kept is counted, so that a small file cannot become a large tree of messages.
//! Every length is checked against its parent's, hence against the length of the file.

use std::io::{self, BufRead, Read, Seek};

use super::error::Fault;

/// Where the bytes of a tensor stand in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Payload {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Payload {
    /// Reads what [`skeleton`] wrote in the place of `raw_data`.
    pub(crate) fn decode(raw_data: &[u8]) -> Option<Payload> {
        let (offset, len) = raw_data.split_at_checked(8)?;
        Some(Payload {
            offset: u64::from_le_bytes(offset.try_into().ok()?),
            len: u64::from_le_bytes(len.try_into().ok()?),
        })
    }
}

/// A source that can be read at any position.
pub(crate) trait Source: BufRead + Seek {}

impl<T: BufRead + Seek> Source for T {}

/// The messages whose fields are looked at one by one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    SparseTensor,
    Function,
}

enum Field {
    Keep,
    /// Numeric elements of a tensor: kept, and not counted as structure.
    Elements,
    Enter(Message),
    Payload,
    Drop,
}

/// What becomes of a field, by the numbers of `onnx.proto`.
fn field(message: Message, number: u64) -> Field {
    match (message, number) {
        (Message::Model, 7) => Field::Enter(Message::Graph),
        (Message::Model, 25) => Field::Enter(Message::Function),
        (Message::Model, 1 | 8) => Field::Keep,
        (Message::Graph, 1) | (Message::Function, 7) => Field::Enter(Message::Node),
        (Message::Graph, 5) => Field::Enter(Message::Tensor),
        (Message::Graph, 15) => Field::Enter(Message::SparseTensor),
        (Message::Graph, 2 | 11 | 12) => Field::Keep,
        (Message::Node, 5) | (Message::Function, 11) => Field::Enter(Message::Attribute),
        (Message::Node, 1 | 2 | 3 | 4 | 7 | 8) => Field::Keep,
        (Message::Attribute, 5) => Field::Enter(Message::Tensor),
        (Message::Attribute, 6) => Field::Enter(Message::Graph),
        (Message::Attribute, 22) => Field::Enter(Message::SparseTensor),
        (Message::Attribute, 1 | 2 | 3 | 4 | 7 | 8 | 9 | 20 | 21) => Field::Keep,
        (Message::Tensor, 4 | 5 | 7 | 10 | 11) => Field::Elements,
        (Message::Tensor, 1 | 2 | 3 | 8 | 13 | 14) => Field::Keep,
        (Message::Tensor, 9) => Field::Payload,
        (Message::SparseTensor, 1 | 2) => Field::Enter(Message::Tensor),
        (Message::SparseTensor, 3) => Field::Keep,
        (Message::Function, 1 | 4 | 5 | 6 | 9 | 10 | 13) => Field::Keep,
        _ => Field::Drop,
    }
}

/// Deepest nesting of messages. Each level of nested graphs takes three.
const MAX_DEPTH: usize = 64;
/// Most messages that are entered.
const MAX_MESSAGES: usize = 4_000_000;
/// Most bytes kept, elements of tensors aside.
const MAX_STRUCTURE_BYTES: u64 = 64 << 20;

/// The skeleton of the message of `len` bytes at the start of `source`.
///
/// # Errors
/// A [`Fault`] that says what is wrong: truncated or malformed wire format, too much structure, or the source's own error.
pub(crate) fn skeleton(
    source: &mut dyn Source,
    len: u64,
    message: Message,
) -> Result<Vec<u8>, Fault> {
    let mut walker = Walker {
        source,
        position: 0,
        out: Vec::new(),
        n_messages: 0,
        structure_bytes: 0,
    };
    walker.message(message, len, 0)?;
    Ok(walker.out)
}

struct Walker<'a> {
    source: &'a mut dyn Source,
    position: u64,
    out: Vec<u8>,
    n_messages: usize,
    structure_bytes: u64,
}

impl Walker<'_> {
    /// Copies the fields of a message that ends at position `end`.
    fn message(&mut self, message: Message, end: u64, depth: usize) -> Result<(), Fault> {
        self.n_messages += 1;
        if depth > MAX_DEPTH {
            return Err(Fault::limit(format!(
                "messages are nested deeper than {MAX_DEPTH} levels"
            )));
        }
        if self.n_messages > MAX_MESSAGES {
            return Err(Fault::limit(format!(
                "the file has more than {MAX_MESSAGES} nodes, attributes and tensors"
            )));
        }
        while self.position < end {
            let tag = self.varint(end)?;
            let number = tag >> 3;
            let action = field(message, number);
            match tag & 7 {
                0 => {
                    let value = self.varint(end)?;
                    if !matches!(action, Field::Drop) {
                        self.put_varint(tag);
                        self.put_varint(value);
                        self.count(&action, 2)?;
                    }
                }
                1 => self.fixed(tag, 8, end, &action)?,
                5 => self.fixed(tag, 4, end, &action)?,
                2 => {
                    let len = self.varint(end)?;
                    let field_end = self
                        .position
                        .checked_add(len)
                        .filter(|&e| e <= end)
                        .ok_or_else(|| {
                            Fault::invalid(format!(
                                "the file ends, or a message does, before {len} bytes of a field do"
                            ))
                        })?;
                    match action {
                        Field::Drop => self.skip(len)?,
                        Field::Payload => self.payload(tag, len)?,
                        Field::Enter(child) => self.enter(tag, child, field_end, depth)?,
                        Field::Keep | Field::Elements => {
                            self.count(&action, len)?;
                            self.put_varint(tag);
                            self.put_varint(len);
                            self.copy(len)?;
                        }
                    }
                }
                _ => return Err(Fault::invalid("malformed protobuf: unknown wire type")),
            }
        }
        Ok(())
    }

    /// Copies a nested message. Its length is known only afterwards, so five bytes are kept for it.
    fn enter(&mut self, tag: u64, child: Message, end: u64, depth: usize) -> Result<(), Fault> {
        self.put_varint(tag);
        let at = self.out.len();
        self.out.extend([0x80, 0x80, 0x80, 0x80, 0]);
        self.message(child, end, depth + 1)?;
        let len = u32::try_from(self.out.len() - at - 5)
            .map_err(|_| Fault::limit("elements outside `raw_data` take more than 4 GiB"))?;
        for i in 0..5 {
            self.out[at + i] |= ((len >> (7 * i)) & 0x7f) as u8;
        }
        Ok(())
    }

    fn payload(&mut self, tag: u64, len: u64) -> Result<(), Fault> {
        self.put_varint(tag);
        self.put_varint(16);
        self.out.extend(self.position.to_le_bytes());
        self.out.extend(len.to_le_bytes());
        self.skip(len)
    }

    fn fixed(&mut self, tag: u64, len: u64, end: u64, action: &Field) -> Result<(), Fault> {
        if end - self.position < len {
            return Err(truncated());
        }
        if matches!(action, Field::Drop) {
            return self.skip(len);
        }
        self.count(action, len)?;
        self.put_varint(tag);
        self.copy(len)
    }

    fn count(&mut self, action: &Field, len: u64) -> Result<(), Fault> {
        if !matches!(action, Field::Elements) {
            self.structure_bytes = self.structure_bytes.saturating_add(len);
        }
        if self.structure_bytes > MAX_STRUCTURE_BYTES {
            return Err(Fault::limit(format!(
                "the file has more than {} MiB of names and attributes",
                MAX_STRUCTURE_BYTES >> 20
            )));
        }
        Ok(())
    }

    fn copy(&mut self, len: u64) -> Result<(), Fault> {
        let n = (&mut self.source)
            .take(len)
            .read_to_end(&mut self.out)
            .map_err(Fault::Read)?;
        self.position += len;
        if n as u64 == len {
            Ok(())
        } else {
            Err(truncated())
        }
    }

    fn skip(&mut self, len: u64) -> Result<(), Fault> {
        let by = i64::try_from(len).map_err(|_| truncated())?;
        self.source.seek_relative(by).map_err(Fault::Read)?;
        self.position += len;
        Ok(())
    }

    fn varint(&mut self, end: u64) -> Result<u64, Fault> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            if self.position >= end {
                return Err(truncated());
            }
            let mut byte = [0u8];
            self.source.read_exact(&mut byte).map_err(|e| {
                if e.kind() == io::ErrorKind::UnexpectedEof {
                    truncated()
                } else {
                    Fault::Read(e)
                }
            })?;
            self.position += 1;
            if shift < 64 {
                value |= u64::from(byte[0] & 0x7f) << shift;
            }
            if byte[0] & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Fault::invalid("malformed protobuf: a number is too long"))
    }

    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }
}

fn truncated() -> Fault {
    Fault::invalid("the file is truncated, or it is no ONNX model")
}

//! A list of instructions with labels and a constant pool, encoded in one block.
//!
//! Labels are instruction addresses in iced's sense: a label's number is the `ip` of the instruction it is bound to, and
//! the block encoder resolves branches and pool references to it.

use iced_x86::{BlockEncoder, BlockEncoderOptions, Instruction, InstructionBlock};

use crate::EmitError;

/// Alignment of innermost loops, in bytes.
const LOOP_ALIGNMENT: usize = 32;

/// The longest single no-operation instructions of 1 to 9 bytes.
const NOPS: [&[u8]; 9] = [
    &[0x90],
    &[0x66, 0x90],
    &[0x0f, 0x1f, 0x00],
    &[0x0f, 0x1f, 0x40, 0x00],
    &[0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
    &[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
    &[0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
];

#[derive(Default)]
pub(super) struct Assembler {
    instructions: Vec<Instruction>,
    n_labels: u64,
    pending: Option<u64>,
    /// Labels of innermost loops, in code order.
    aligned: Vec<u64>,
    /// (bits, dwords of them, label)
    pool: Vec<(u64, usize, u64)>,
}

impl Assembler {
    pub(super) fn push(&mut self, mut instruction: Instruction) {
        instruction.set_ip(self.pending.take().unwrap_or(0));
        self.instructions.push(instruction);
    }

    pub(super) fn label(&mut self) -> u64 {
        self.n_labels += 1;
        self.n_labels
    }

    /// Binds `label` to the next instruction; at most one label can wait, so an earlier one gets a no-operation.
    pub(super) fn bind(&mut self, label: u64, align: bool) {
        if self.pending.is_some() {
            self.push(Instruction::with(iced_x86::Code::Nopd));
        }
        self.pending = Some(label);
        if align {
            self.aligned.push(label);
        }
    }

    /// The label of a pool entry holding `bits`, over and over, in `n_dwords` dwords.
    pub(super) fn constant(&mut self, bits: u64, n_dwords: usize) -> u64 {
        if let Some(&(_, _, label)) = self
            .pool
            .iter()
            .find(|(b, n, _)| *b == bits && *n >= n_dwords)
        {
            return label;
        }
        let label = self.label();
        self.pool.push((bits, n_dwords, label));
        label
    }

    pub(super) fn finish(mut self) -> Result<Vec<u8>, EmitError> {
        for (bits, n_dwords, label) in std::mem::take(&mut self.pool) {
            self.bind(label, false);
            let (low, high) = (bits as u32, (bits >> 32) as u32);
            let words = [low, high, low, high];
            for chunk in (0..n_dwords).step_by(4) {
                let n = (n_dwords - chunk).min(4);
                self.push(Instruction::with_declare_dword(&words[..n])?);
            }
        }
        for label in std::mem::take(&mut self.aligned) {
            let (_, offsets) = self.encode()?;
            let at = self.instructions.iter().position(|i| i.ip() == label);
            let Some(at) = at else { continue };
            let offset = offsets.get(at).copied().unwrap_or(0) as usize;
            let mut gap = offset.next_multiple_of(LOOP_ALIGNMENT) - offset;
            while gap > 0 {
                let n = gap.min(NOPS.len());
                let mut nop = Instruction::with_declare_byte(NOPS[n - 1])?;
                nop.set_ip(0);
                self.instructions.insert(at, nop);
                gap -= n;
            }
        }
        Ok(self.encode()?.0)
    }

    fn encode(&self) -> Result<(Vec<u8>, Vec<u32>), EmitError> {
        let block = InstructionBlock::new(&self.instructions, 0);
        let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
        let result = BlockEncoder::encode(64, block, options)?;
        Ok((result.code_buffer, result.new_instruction_offsets))
    }
}

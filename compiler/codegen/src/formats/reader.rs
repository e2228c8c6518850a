//! Checked little-endian reads and writes of tables.

/// The `u32` at byte `at`, or an error for [`super::FormatError::Invalid`].
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Result<usize, &'static str> {
    let end = at.checked_add(4).ok_or("is cut short")?;
    let word = bytes.get(at..end).and_then(|b| <[u8; 4]>::try_from(b).ok());
    Ok(u32::from_le_bytes(word.ok_or("is cut short")?) as usize)
}

/// The `u16` at byte `at`.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Result<usize, &'static str> {
    let end = at.checked_add(2).ok_or("is cut short")?;
    let word = bytes.get(at..end).and_then(|b| <[u8; 2]>::try_from(b).ok());
    Ok(u16::from_le_bytes(word.ok_or("is cut short")?) as usize)
}

/// Writes a `u32` at byte `at` of a buffer that is long enough.
pub(super) fn put_u32(bytes: &mut [u8], at: usize, value: usize) {
    let value = u32::try_from(value).expect("row blocks are far smaller than 4 GiB");
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Pads with zeros to a multiple of `alignment`.
pub(super) fn align(bytes: &mut Vec<u8>, alignment: usize) {
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
}

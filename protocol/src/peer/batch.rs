//! Several messages in one frame.

/// What a record takes beside its bytes.
pub const RECORD_HEAD_LEN: usize = 4;

/// Begins a record at the end of a body; append its bytes, then call [`end_record`] with what this
/// returned.
pub fn begin_record(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; RECORD_HEAD_LEN]);
    start
}

/// Ends the record begun at `start`. Its bytes must fit a frame, which has the lower limit.
pub fn end_record(out: &mut [u8], start: usize) {
    let len = u32::try_from(out.len() - start - RECORD_HEAD_LEN).unwrap_or(u32::MAX);
    out[start..start + RECORD_HEAD_LEN].copy_from_slice(&len.to_be_bytes());
}

/// The records of a body, in order.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    left: &'a [u8],
}

impl<'a> Records<'a> {
    /// Those of `body`.
    #[must_use]
    pub fn new(body: &'a [u8]) -> Self {
        Self { left: body }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<&'a [u8], Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left.is_empty() {
            return None;
        }
        let cut = self.left.split_first_chunk().and_then(|(head, rest)| {
            rest.split_at_checked(usize::try_from(u32::from_be_bytes(*head)).ok()?)
        });
        let (record, rest) = cut.unwrap_or_default();
        self.left = rest;
        Some(if cut.is_some() { Ok(record) } else { Err(Malformed) })
    }
}

/// A record says that it is longer than its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a record does not end within its frame")]
pub struct Malformed;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_in_order_and_a_short_one_ends_them() {
        let mut body = Vec::new();
        for record in [&b"first"[..], b"", b"third"] {
            let start = begin_record(&mut body);
            body.extend_from_slice(record);
            end_record(&mut body, start);
        }
        let all: Result<Vec<_>, _> = Records::new(&body).collect();
        assert_eq!(all, Ok(vec![&b"first"[..], b"", b"third"]));

        body.pop();
        let short: Vec<_> = Records::new(&body).collect();
        assert_eq!(short, [Ok(&b"first"[..]), Ok(b""), Err(Malformed)]);
        assert_eq!(Records::new(&[0, 0]).collect::<Vec<_>>(), [Err(Malformed)]);
        assert_eq!(Records::new(&[]).count(), 0);
    }
}

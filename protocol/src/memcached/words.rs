//! A line into words: eight bytes at a time, since words are short and there are several on a line.

/// The words of a line: what lies between spaces. No other byte separates, as in memcached, so
/// that a key may have any byte but a space and a line end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tokens<'a> {
    rest: &'a [u8],
}

impl<'a> Tokens<'a> {
    #[inline]
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { rest: trim_start(text) }
    }

    /// What has not been given out, from the next word on.
    #[inline]
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Tokens<'a> {
    /// Never empty.
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let len = word_len(self.rest);
        let (token, rest) = self.rest.split_at(len);
        self.rest = trim_start(rest);
        Some(token)
    }
}

/// Whether there is nothing but spaces.
pub(super) fn is_blank(text: &[u8]) -> bool {
    text.iter().all(|&byte| byte == b' ')
}

/// How many bytes there are before the first space.
///
/// Words are short and there are several on a line: eight bytes at a time, in line, finds their
/// ends before a call of a vector search has begun.
#[inline]
pub(super) fn word_len(text: &[u8]) -> usize {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const SPACES: u64 = u64::from_le_bytes([b' '; 8]);
    let (words, _) = text.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let differs = u64::from_le_bytes(*word) ^ SPACES;
        // The lowest bit set belongs to the first byte that is zero here.
        let found = differs.wrapping_sub(ONES) & !differs & (ONES << 7);
        if found != 0 {
            return index * 8 + (found.trailing_zeros() / 8) as usize;
        }
    }
    let done = words.len() * 8;
    text[done..].iter().position(|&byte| byte == b' ').map_or(text.len(), |at| done + at)
}

#[inline]
fn trim_start(text: &[u8]) -> &[u8] {
    let mut text = text;
    while let [b' ', rest @ ..] = text {
        text = rest;
    }
    text
}

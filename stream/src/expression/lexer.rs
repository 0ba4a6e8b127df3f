//! Text to tokens, each with its place.

use super::{ExpressionError, Message, error};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Number(f64),
    Text(String),
    Name(String),
    /// An operator or bracket.
    Mark(&'static str),
    End,
}

impl Token {
    pub fn shown(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => format!("\"{text}\""),
            Self::Name(name) => format!("\"{name}\""),
            Self::Mark(mark) => format!("\"{mark}\""),
            Self::End => "the end".to_owned(),
        }
    }
}

/// Longer marks first.
const MARKS: [&str; 20] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "+", "-", "*", "/", "%", "?", ":", "(", ")",
    ",", ".",
];

/// All tokens with their byte offsets; the last is [`Token::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<(usize, Token)>, ExpressionError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.as_bytes().get(at) {
        let rest = &text[at..];
        let (token, len) = match byte {
            b' ' | b'\t' | b'\n' | b'\r' => {
                at += 1;
                continue;
            }
            b'0'..=b'9' => number(rest, at)?,
            b'"' | b'\'' => string(rest, at)?,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                let is_name = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
                let len = rest.bytes().take_while(is_name).count();
                (Token::Name(rest[..len].to_owned()), len)
            }
            _ => {
                let mark = MARKS.into_iter().find(|mark| rest.starts_with(mark));
                let Some(mark) = mark else {
                    let found = rest.chars().next().map(|c| format!("\"{c}\"")).unwrap_or_default();
                    let expected = "a number, a string, a name or an operator";
                    return error(at, Message::Expected { expected, found });
                };
                (Token::Mark(mark), mark.len())
            }
        };
        tokens.push((at, token));
        at += len;
    }
    tokens.push((text.len(), Token::End));
    Ok(tokens)
}

fn number(rest: &str, at: usize) -> Result<(Token, usize), ExpressionError> {
    let bytes = rest.as_bytes();
    let digits = |from: usize| bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let mut len = digits(0);
    if bytes.get(len) == Some(&b'.') && bytes.get(len + 1).is_some_and(u8::is_ascii_digit) {
        len += 1 + digits(len + 1);
    }
    if matches!(bytes.get(len), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(len + 1), Some(b'+' | b'-')));
        let exponent = digits((len + 1 + sign).min(bytes.len()));
        if exponent > 0 {
            len += 1 + sign + exponent;
        }
    }
    match crate::number::finite(&bytes[..len]) {
        Some(number) => Ok((Token::Number(number), len)),
        None => {
            let found = rest[..len].to_owned();
            error(at, Message::Expected { expected: "a number that a double can hold", found })
        }
    }
}

fn string(rest: &str, at: usize) -> Result<(Token, usize), ExpressionError> {
    let quote = rest.as_bytes()[0];
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        if c == char::from(quote) {
            return Ok((Token::Text(text), i + 1));
        }
        if c != '\\' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some((_, c @ ('\\' | '"' | '\''))) => text.push(c),
            Some((_, 't')) => text.push('\t'),
            Some((_, 'n')) => text.push('\n'),
            other => {
                let found = other.map_or("the end".to_owned(), |(_, c)| format!("\"{c}\""));
                let expected = "\\\\, \\\", \\', \\t or \\n";
                return error(at + i, Message::Expected { expected, found });
            }
        }
    }
    let found = "the end".to_owned();
    error(at + rest.len(), Message::Expected { expected: "a closing quote", found })
}

//! The language of `filter` and `map`: small, typed, without loops, a subset of CEL's syntax.
//!
//! ```text
//!   sensor.startsWith("boiler") && value > -40.0 ? (value - 32.0) / 1.8 : value
//! ```
//!
//! - names: `sensor` (string), `value` and `time` (numbers; `time` in milliseconds since 1970);
//! - literals: `1`, `1.5`, `2e3`, `"text"`, `'text'`, `true`, `false`;
//! - operators, loosest first: `?:`, `||`, `&&`, `== !=  < <= > >=`, `+ -`, `* / %`, unary `- !`;
//! - methods of strings: `startsWith`, `endsWith`, `contains`, `size`;
//! - functions: `abs ceil exp floor ln max min pow round sqrt is_finite`.
//!
//! All numbers are doubles: no overflow, and no error at run time. A value that is no finite number
//! at the end is filtered out. Text is checked once; what runs is a flat program over columns, a
//! few hundred readings at a time, so that the cost of choosing an operation is shared.

mod compile;
mod lexer;
mod parser;
mod program;

pub use self::program::{Program, transform};

/// The longest text of an expression in bytes.
pub const TEXT_LEN_MAX: usize = 4096;
/// How deep an expression may nest.
pub const DEPTH_MAX: usize = 32;

/// The type of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// True or false.
    Bool,
    /// A number.
    Double,
    /// A text.
    String,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Self::Bool => "a truth value",
            Self::Double => "a number",
            Self::String => "a string",
        }
    }
}

/// Why a text is no expression, and where.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("at column {column}: {message}")]
pub struct ExpressionError {
    /// The byte of the text, from 1.
    pub column: usize,
    /// What was expected, and what is there.
    pub message: Message,
}

/// What is wrong with an expression.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// Something else was expected here.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// What.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A name that does not exist.
    #[error("there is no {kind} \"{name}\"; there are {known}")]
    Unknown {
        /// Name, function or method.
        kind: &'static str,
        /// The name.
        name: String,
        /// What there is.
        known: &'static str,
    },
    /// A part has the wrong type.
    #[error("{what} must be {expected}, this is {found}")]
    Type {
        /// Which part.
        what: String,
        /// The type it must have.
        expected: &'static str,
        /// The type it has.
        found: &'static str,
    },
    /// A call with too few or too many arguments.
    #[error("{name} takes {expected} arguments, {found} are given")]
    Arguments {
        /// The function.
        name: String,
        /// How many it takes.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// Nested beyond the bound.
    #[error("nested more than {DEPTH_MAX} deep")]
    TooDeep,
    /// Longer than the bound.
    #[error("longer than {TEXT_LEN_MAX} bytes")]
    TooLong,
}

fn error<T>(at: usize, message: Message) -> Result<T, ExpressionError> {
    Err(ExpressionError { column: at + 1, message })
}

//! Tokens to a tree, by precedence. Types come later.

use super::lexer::{Token, tokens};
use super::{DEPTH_MAX, ExpressionError, Message, TEXT_LEN_MAX, error};

/// A tree with the place of each part.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub at: usize,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Number(f64),
    Text(String),
    Bool(bool),
    Name(String),
    Unary(&'static str, Box<Node>),
    Binary(&'static str, Box<Node>, Box<Node>),
    Choice(Box<[Node; 3]>),
    Call(String, Vec<Node>),
    Method(Box<Node>, String, Vec<Node>),
}

pub(super) fn parse(text: &str) -> Result<Node, ExpressionError> {
    if text.len() > TEXT_LEN_MAX {
        return error(TEXT_LEN_MAX, Message::TooLong);
    }
    let mut parser = Parser { tokens: tokens(text)?, next: 0, depth: 0 };
    let node = parser.choice()?;
    match parser.peek() {
        Token::End => Ok(node),
        _ => parser.expected("an operator or the end"),
    }
}

/// Binary operators, loosest first.
const LEVELS: [&[&str]; 5] =
    [&["||"], &["&&"], &["==", "!=", "<=", ">=", "<", ">"], &["+", "-"], &["*", "/", "%"]];
/// The level at which one operator is allowed, not a chain: `a < b < c` is a mistake.
const COMPARISON: usize = 2;

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
}

impl Parser {
    fn choice(&mut self) -> Result<Node, ExpressionError> {
        self.deeper()?;
        let at = self.at();
        let condition = self.binary(0)?;
        let node = if self.take("?") {
            let then = self.choice()?;
            if !self.take(":") {
                return self.expected("\":\" and the other value");
            }
            let other = self.choice()?;
            Node { at, kind: Kind::Choice(Box::new([condition, then, other])) }
        } else {
            condition
        };
        self.depth -= 1;
        Ok(node)
    }

    fn binary(&mut self, level: usize) -> Result<Node, ExpressionError> {
        let Some(marks) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        // A chain leans to the left, so each link makes the tree one deeper.
        let mut links = 0;
        loop {
            let at = self.at();
            let Some(mark) = marks.iter().find(|mark| self.take(mark)) else { break };
            links += 1;
            if level == COMPARISON && links > 1 {
                self.next -= 1;
                return self.expected("&& or || between comparisons");
            }
            if links > DEPTH_MAX {
                return error(at, Message::TooDeep);
            }
            let right = self.binary(level + 1)?;
            left = Node { at, kind: Kind::Binary(mark, Box::new(left), Box::new(right)) };
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Node, ExpressionError> {
        let at = self.at();
        for mark in ["-", "!"] {
            if self.take(mark) {
                self.deeper()?;
                let node = self.unary()?;
                self.depth -= 1;
                return Ok(Node { at, kind: Kind::Unary(mark, Box::new(node)) });
            }
        }
        let mut node = self.primary()?;
        let mut links = 0;
        while self.take(".") {
            links += 1;
            let at = self.at();
            if links > DEPTH_MAX {
                return error(at, Message::TooDeep);
            }
            let Token::Name(name) = self.peek().clone() else {
                return self.expected("the name of a method");
            };
            self.next += 1;
            if !self.take("(") {
                return self.expected("\"(\" and arguments");
            }
            let arguments = self.arguments()?;
            node = Node { at, kind: Kind::Method(Box::new(node), name, arguments) };
        }
        Ok(node)
    }

    fn primary(&mut self) -> Result<Node, ExpressionError> {
        let at = self.at();
        let kind = match self.peek().clone() {
            Token::Number(number) => Kind::Number(number),
            Token::Text(text) => Kind::Text(text),
            Token::Name(name) if name == "true" || name == "false" => Kind::Bool(name == "true"),
            Token::Name(name) => {
                self.next += 1;
                let kind = match self.take("(") {
                    true => Kind::Call(name, self.arguments()?),
                    false => Kind::Name(name),
                };
                return Ok(Node { at, kind });
            }
            Token::Mark("(") => {
                self.next += 1;
                let node = self.choice()?;
                if !self.take(")") {
                    return self.expected("\")\"");
                }
                return Ok(node);
            }
            _ => return self.expected("a value"),
        };
        self.next += 1;
        Ok(Node { at, kind })
    }

    /// What follows an opening bracket.
    fn arguments(&mut self) -> Result<Vec<Node>, ExpressionError> {
        let mut arguments = Vec::new();
        if self.take(")") {
            return Ok(arguments);
        }
        loop {
            arguments.push(self.choice()?);
            if self.take(")") {
                return Ok(arguments);
            }
            if !self.take(",") {
                return self.expected("\",\" or \")\"");
            }
        }
    }

    fn deeper(&mut self) -> Result<(), ExpressionError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX { error(self.at(), Message::TooDeep) } else { Ok(()) }
    }

    fn at(&self) -> usize {
        self.tokens[self.next].0
    }

    fn peek(&self) -> &Token {
        &self.tokens[self.next].1
    }

    fn take(&mut self, mark: &str) -> bool {
        let found = matches!(self.peek(), Token::Mark(m) if *m == mark);
        self.next += usize::from(found);
        found
    }

    fn expected<T>(&self, expected: &'static str) -> Result<T, ExpressionError> {
        error(self.at(), Message::Expected { expected, found: self.peek().shown() })
    }
}

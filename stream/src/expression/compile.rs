//! A tree to a flat program: names resolved, types checked, each part given a column.
//!
//! A part's column is its depth, so a program needs as many columns as its tree is deep, and an
//! operation overwrites the column of its first operand.

use super::parser::{Kind, Node, parse};
use super::program::{Operation, Program, Step, Text};
use super::{ExpressionError, Message, Type, error};

impl Program {
    /// Compiles a text that must be of type `wanted`.
    pub fn compile(text: &str, wanted: Type) -> Result<Self, ExpressionError> {
        let node = parse(text)?;
        let mut compiler = Compiler::default();
        let found = compiler.node(&node, 0)?;
        expect(&node, "the result", wanted, found)?;
        Ok(Self::new(compiler.steps, compiler.texts, compiler.columns))
    }
}

#[derive(Default)]
struct Compiler {
    steps: Vec<Step>,
    texts: Vec<Vec<u8>>,
    columns: usize,
}

const NAMES: &str = "sensor, value and time";
const FUNCTIONS: &str = "abs, ceil, exp, floor, ln, max, min, pow, round, sqrt and is_finite";
const METHODS: &str = "startsWith, endsWith, contains and size";

impl Compiler {
    /// Makes `column` hold the node's value; a string makes nothing (see `text`).
    fn node(&mut self, node: &Node, column: usize) -> Result<Type, ExpressionError> {
        self.columns = self.columns.max(column + 1);
        match &node.kind {
            Kind::Number(number) => self.push(Operation::Number(*number), column, Type::Double),
            Kind::Bool(bool) => self.push(Operation::Number(f64::from(*bool)), column, Type::Bool),
            Kind::Text(_) => Ok(Type::String),
            Kind::Name(name) => match name.as_str() {
                "sensor" => Ok(Type::String),
                "value" => self.push(Operation::Value, column, Type::Double),
                "time" => self.push(Operation::Time, column, Type::Double),
                _ => unknown(node, "name", name, NAMES),
            },
            Kind::Unary(mark, inner) => {
                let (operation, of) = match *mark {
                    "!" => (Operation::Not, Type::Bool),
                    _ => (Operation::Negate, Type::Double),
                };
                self.operand(inner, mark, of, column)?;
                self.push(operation, column, of)
            }
            Kind::Binary(mark, left, right) => self.binary(mark, left, right, column),
            Kind::Choice(parts) => {
                let [condition, then, other] = &**parts;
                self.operand(condition, "?", Type::Bool, column)?;
                let of = self.node(then, column + 1)?;
                if of == Type::String {
                    expect(then, "what ? chooses from", Type::Double, of)?;
                }
                let found = self.node(other, column + 2)?;
                expect(other, "what follows : like what precedes it", of, found)?;
                self.push(Operation::Choose, column, of)
            }
            Kind::Call(name, arguments) => self.call(node, name, arguments, column),
            Kind::Method(of, name, arguments) => self.method(node, of, name, arguments, column),
        }
    }

    fn binary(
        &mut self,
        mark: &'static str,
        left: &Node,
        right: &Node,
        column: usize,
    ) -> Result<Type, ExpressionError> {
        let (operation, of, gives) = match mark {
            "||" => (Operation::Or, Some(Type::Bool), Type::Bool),
            "&&" => (Operation::And, Some(Type::Bool), Type::Bool),
            "==" => (Operation::Equal, None, Type::Bool),
            "!=" => (Operation::Unequal, None, Type::Bool),
            "<" => (Operation::Less, Some(Type::Double), Type::Bool),
            "<=" => (Operation::LessEqual, Some(Type::Double), Type::Bool),
            ">" => (Operation::Greater, Some(Type::Double), Type::Bool),
            ">=" => (Operation::GreaterEqual, Some(Type::Double), Type::Bool),
            "+" => (Operation::Add, Some(Type::Double), Type::Double),
            "-" => (Operation::Subtract, Some(Type::Double), Type::Double),
            "*" => (Operation::Multiply, Some(Type::Double), Type::Double),
            "/" => (Operation::Divide, Some(Type::Double), Type::Double),
            _ => (Operation::Remainder, Some(Type::Double), Type::Double),
        };
        let found = self.node(left, column)?;
        let of = of.unwrap_or(found);
        let what = || format!("the left side of {mark}");
        expect(left, what, of, found)?;
        let found = self.node(right, column + 1)?;
        expect(right, || format!("the right side of {mark}"), of, found)?;
        if of != Type::String {
            return self.push(operation, column, gives);
        }
        let (a, b) = (self.text(left), self.text(right));
        self.push(Operation::TextEqual(a, b), column, Type::Bool)?;
        if operation == Operation::Unequal {
            self.push(Operation::Not, column, Type::Bool)?;
        }
        Ok(Type::Bool)
    }

    fn call(
        &mut self,
        node: &Node,
        name: &str,
        arguments: &[Node],
        column: usize,
    ) -> Result<Type, ExpressionError> {
        let (operation, takes, gives) = match name {
            "abs" => (Operation::Abs, 1, Type::Double),
            "ceil" => (Operation::Ceil, 1, Type::Double),
            "exp" => (Operation::Exp, 1, Type::Double),
            "floor" => (Operation::Floor, 1, Type::Double),
            "ln" => (Operation::Ln, 1, Type::Double),
            "round" => (Operation::Round, 1, Type::Double),
            "sqrt" => (Operation::Sqrt, 1, Type::Double),
            "is_finite" => (Operation::IsFinite, 1, Type::Bool),
            "max" => (Operation::Max, 2, Type::Double),
            "min" => (Operation::Min, 2, Type::Double),
            "pow" => (Operation::Pow, 2, Type::Double),
            _ => return unknown(node, "function", name, FUNCTIONS),
        };
        count(node, name, takes, arguments)?;
        for (i, argument) in arguments.iter().enumerate() {
            self.operand(argument, name, Type::Double, column + i)?;
        }
        self.push(operation, column, gives)
    }

    fn method(
        &mut self,
        node: &Node,
        of: &Node,
        name: &str,
        arguments: &[Node],
        column: usize,
    ) -> Result<Type, ExpressionError> {
        let takes = match name {
            "startsWith" | "endsWith" | "contains" => 1,
            "size" => 0,
            _ => return unknown(node, "method", name, METHODS),
        };
        count(node, name, takes, arguments)?;
        let found = self.node(of, column)?;
        expect(of, || format!("what .{name} is asked of"), Type::String, found)?;
        let text = self.text(of);
        let Some(argument) = arguments.first() else {
            return self.push(Operation::TextSize(text), column, Type::Double);
        };
        let found = self.node(argument, column)?;
        expect(argument, || format!("the argument of {name}"), Type::String, found)?;
        let part = self.text(argument);
        let operation = match name {
            "startsWith" => Operation::StartsWith(text, part),
            "endsWith" => Operation::EndsWith(text, part),
            _ => Operation::Contains(text, part),
        };
        self.push(operation, column, Type::Bool)
    }

    fn operand(
        &mut self,
        node: &Node,
        of: &str,
        wanted: Type,
        column: usize,
    ) -> Result<(), ExpressionError> {
        let found = self.node(node, column)?;
        expect(node, || format!("an operand of {of}"), wanted, found)
    }

    /// A node of type string: the sensor or a literal.
    fn text(&mut self, node: &Node) -> Text {
        let Kind::Text(text) = &node.kind else { return Text::Sensor };
        self.texts.push(text.as_bytes().to_vec());
        Text::Literal(self.texts.len() - 1)
    }

    fn push(
        &mut self,
        operation: Operation,
        column: usize,
        gives: Type,
    ) -> Result<Type, ExpressionError> {
        self.columns = self.columns.max(column + 1);
        self.steps.push(Step { operation, column });
        Ok(gives)
    }
}

fn expect(
    node: &Node,
    what: impl Describe,
    wanted: Type,
    found: Type,
) -> Result<(), ExpressionError> {
    if wanted == found {
        return Ok(());
    }
    let (expected, found) = (wanted.name(), found.name());
    error(node.at, Message::Type { what: what.describe(), expected, found })
}

/// A description that is made only for an error.
trait Describe {
    fn describe(self) -> String;
}

impl Describe for &str {
    fn describe(self) -> String {
        self.to_owned()
    }
}

impl<F: FnOnce() -> String> Describe for F {
    fn describe(self) -> String {
        self()
    }
}

fn unknown(
    node: &Node,
    kind: &'static str,
    name: &str,
    known: &'static str,
) -> Result<Type, ExpressionError> {
    error(node.at, Message::Unknown { kind, name: name.to_owned(), known })
}

fn count(
    node: &Node,
    name: &str,
    expected: usize,
    arguments: &[Node],
) -> Result<(), ExpressionError> {
    let found = arguments.len();
    if found == expected {
        return Ok(());
    }
    error(node.at, Message::Arguments { name: name.to_owned(), expected, found })
}

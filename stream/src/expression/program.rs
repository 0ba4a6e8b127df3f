//! Runs a compiled expression over the columns of a batch.
//!
//! Truth values are 1 and 0 in the same columns as numbers, so that every operation is a loop over
//! doubles without a branch on data. Both sides of `&&`, `||` and `?:` are computed; nothing here
//! can fail, so that makes no difference to the result.

use crate::reading::Batch;

/// An expression, ready to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    steps: Vec<Step>,
    texts: Vec<Vec<u8>>,
    columns: usize,
}

/// One operation on the columns from `column` on; the result replaces the first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    pub operation: Operation,
    pub column: usize,
}

/// A string operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Text {
    Sensor,
    Literal(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Operation {
    Number(f64),
    Value,
    Time,
    Not,
    Negate,
    Or,
    And,
    Equal,
    Unequal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Choose,
    Abs,
    Ceil,
    Exp,
    Floor,
    Ln,
    Round,
    Sqrt,
    IsFinite,
    Max,
    Min,
    Pow,
    TextEqual(Text, Text),
    TextSize(Text),
    StartsWith(Text, Text),
    EndsWith(Text, Text),
    Contains(Text, Text),
}

/// How many readings a step works on at a time: a few columns of it fit the first cache.
const ROWS: usize = 256;

type Column = [f64; ROWS];

impl Program {
    pub(super) fn new(steps: Vec<Step>, texts: Vec<Vec<u8>>, columns: usize) -> Self {
        Self { steps, texts, columns }
    }

    /// Computes the result for every reading of a batch; truth values are 1 and 0.
    pub fn run(&self, batch: &Batch, results: &mut Vec<f64>) {
        results.clear();
        results.reserve(batch.len());
        let mut columns = vec![[0.0; ROWS]; self.columns + 2];
        for start in (0..batch.len()).step_by(ROWS) {
            let rows = ROWS.min(batch.len() - start);
            for step in &self.steps {
                self.step(step, batch, start, rows, &mut columns[step.column..]);
            }
            results.extend_from_slice(&columns[0][..rows]);
        }
    }

    fn step(&self, step: &Step, batch: &Batch, start: usize, rows: usize, columns: &mut [Column]) {
        let [a, b, c, ..] = columns else { return };
        let flag = f64::from;
        let text = |text: Text, row: usize| match text {
            Text::Sensor => batch.sensor(start + row),
            Text::Literal(at) => &self.texts[at],
        };
        let texts = |a: &mut Column, x, y, test: fn(&[u8], &[u8]) -> bool| {
            for (row, a) in a[..rows].iter_mut().enumerate() {
                *a = flag(test(text(x, row), text(y, row)));
            }
        };
        match step.operation {
            Operation::Number(number) => a.fill(number),
            Operation::Value => a[..rows].copy_from_slice(&batch.values()[start..start + rows]),
            Operation::Time => {
                let times = &batch.times()[start..start + rows];
                a.iter_mut().zip(times).for_each(|(a, time)| *a = *time as f64);
            }
            Operation::Not => unary(a, |a| 1.0 - a),
            Operation::Negate => unary(a, |a| -a),
            Operation::Or => binary(a, b, f64::max),
            Operation::And => binary(a, b, |a, b| a * b),
            Operation::Equal => binary(a, b, |a, b| flag(a == b)),
            Operation::Unequal => binary(a, b, |a, b| flag(a != b)),
            Operation::Less => binary(a, b, |a, b| flag(a < b)),
            Operation::LessEqual => binary(a, b, |a, b| flag(a <= b)),
            Operation::Greater => binary(a, b, |a, b| flag(a > b)),
            Operation::GreaterEqual => binary(a, b, |a, b| flag(a >= b)),
            Operation::Add => binary(a, b, |a, b| a + b),
            Operation::Subtract => binary(a, b, |a, b| a - b),
            Operation::Multiply => binary(a, b, |a, b| a * b),
            Operation::Divide => binary(a, b, |a, b| a / b),
            Operation::Remainder => binary(a, b, |a, b| a % b),
            Operation::Choose => {
                for ((a, b), c) in a.iter_mut().zip(b.iter()).zip(c.iter()) {
                    *a = if *a != 0.0 { *b } else { *c };
                }
            }
            Operation::Abs => unary(a, f64::abs),
            Operation::Ceil => unary(a, f64::ceil),
            Operation::Exp => unary(a, f64::exp),
            Operation::Floor => unary(a, f64::floor),
            Operation::Ln => unary(a, f64::ln),
            Operation::Round => unary(a, f64::round),
            Operation::Sqrt => unary(a, f64::sqrt),
            Operation::IsFinite => unary(a, |a| flag(a.is_finite())),
            Operation::Max => binary(a, b, f64::max),
            Operation::Min => binary(a, b, f64::min),
            Operation::Pow => binary(a, b, f64::powf),
            Operation::TextEqual(x, y) => texts(a, x, y, |x, y| x == y),
            Operation::TextSize(x) => {
                for (row, a) in a[..rows].iter_mut().enumerate() {
                    *a = String::from_utf8_lossy(text(x, row)).chars().count() as f64;
                }
            }
            Operation::StartsWith(x, y) => texts(a, x, y, |x, y| x.starts_with(y)),
            Operation::EndsWith(x, y) => texts(a, x, y, |x, y| x.ends_with(y)),
            Operation::Contains(x, y) => {
                texts(a, x, y, |x, y| memchr::memmem::find(x, y).is_some());
            }
        }
    }
}

fn unary(a: &mut Column, of: impl Fn(f64) -> f64) {
    a.iter_mut().for_each(|a| *a = of(*a));
}

fn binary(a: &mut Column, b: &Column, of: impl Fn(f64, f64) -> f64) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a = of(*a, *b));
}

/// Keeps the readings for which `filter` holds, and gives them the value of `map`; drops those whose
/// value then is no finite number. Returns how many were dropped.
pub fn transform(filter: Option<&Program>, map: Option<&Program>, batch: &mut Batch) -> u64 {
    if filter.is_none() && map.is_none() {
        return 0;
    }
    let before = batch.len();
    let mut results = Vec::new();
    let mut keep = vec![true; before];
    if let Some(filter) = filter {
        filter.run(batch, &mut results);
        keep.iter_mut().zip(&results).for_each(|(keep, result)| *keep = *result != 0.0);
    }
    match map {
        Some(map) => map.run(batch, &mut results),
        None => batch.values().clone_into(&mut results),
    }
    keep.iter_mut().zip(&results).for_each(|(keep, value)| *keep &= value.is_finite());
    batch.rewrite(&keep, &results);
    (before - batch.len()) as u64
}

//! The expression language: what it means, what it says about mistakes, and random expressions
//! against a naive interpreter of trees that shares no code with it.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use kiln_stream::expression::{Program, Type, transform};
use kiln_stream::reading::{Batch, Reading};
use proptest::prelude::*;

fn batch(readings: &[(&str, i64, f64)]) -> Batch {
    let mut batch = Batch::new();
    for (sensor, time, value) in readings {
        let sensor = sensor.as_bytes();
        batch.push(Reading { sensor, time: *time, value: *value }).unwrap();
    }
    batch
}

fn eval(text: &str, wanted: Type, batch: &Batch) -> Vec<f64> {
    let mut results = Vec::new();
    Program::compile(text, wanted)
        .unwrap_or_else(|e| panic!("{text}: {e}"))
        .run(batch, &mut results);
    results
}

#[test]
fn operators_bind_as_in_cel() {
    let batch = batch(&[("boiler-1", 7, 50.0)]);
    for (text, expected) in [
        ("1 + 2 * 3 - 4 / 2", 5.0),
        ("-2 * -3", 6.0),
        ("10 % 4 % 3", 2.0),
        ("value > 10 ? time : -1", 7.0),
        ("true ? 1 : false ? 2 : 3", 1.0),
        ("(value - 32) / 1.8", 10.0),
        ("max(abs(-3), min(1e2, pow(2, 3)))", 8.0),
        ("sensor.size() + 'héé'.size()", 11.0),
        ("floor(-1.5) + ceil(1.2) + round(2.5) + sqrt(16)", 7.0),
        ("8 - 2 - 1", 5.0),
    ] {
        assert_eq!(eval(text, Type::Double, &batch), [expected], "{text}");
    }
    for (text, expected) in [
        ("true || false && false", 1.0),
        ("!(1 < 2) || 2 >= 2", 1.0),
        ("sensor.startsWith(\"boiler\") && sensor.endsWith('1') && sensor.contains(\"-\")", 1.0),
        ("sensor == \"boiler-1\" && sensor != 'x'", 1.0),
        ("1 + 1 == 2 && !(3 != 3)", 1.0),
        ("is_finite(1 / 0) || is_finite(ln(-1))", 0.0),
        ("\"a\\\"b\" == 'a\"b'", 1.0),
    ] {
        assert_eq!(eval(text, Type::Bool, &batch), [expected], "{text}");
    }
}

#[test]
fn a_mistake_is_reported_with_its_place_and_what_was_expected() {
    for (text, wanted, message) in [
        ("", Type::Bool, "at column 1: expected a value, found the end"),
        ("value >", Type::Bool, "at column 8: expected a value, found the end"),
        ("value > 1 2", Type::Bool, "at column 11: expected an operator or the end, found 2"),
        (
            "valeu > 1",
            Type::Bool,
            "at column 1: there is no name \"valeu\"; there are sensor, value and time",
        ),
        (
            "value > \"x\"",
            Type::Bool,
            "at column 9: the right side of > must be a number, this is a string",
        ),
        ("value", Type::Bool, "at column 1: the result must be a truth value, this is a number"),
        ("sensor", Type::Double, "at column 1: the result must be a number, this is a string"),
        (
            "1 < value < 3",
            Type::Bool,
            "at column 11: expected && or || between comparisons, found \"<\"",
        ),
        (
            "value && true",
            Type::Bool,
            "at column 1: the left side of && must be a truth value, this is a number",
        ),
        ("abs(1, 2)", Type::Double, "at column 1: abs takes 1 arguments, 2 are given"),
        ("cosh(1)", Type::Double, "at column 1: there is no function \"cosh\""),
        (
            "value.size()",
            Type::Double,
            "at column 1: what .size is asked of must be a string, this is a number",
        ),
        ("sensor.matches(\"x\")", Type::Bool, "at column 8: there is no method \"matches\""),
        (
            "true ? 1 : true",
            Type::Double,
            "at column 12: what follows : like what precedes it must be a number",
        ),
        (
            "value # 2",
            Type::Double,
            "at column 7: expected a number, a string, a name or an operator, found \"#\"",
        ),
        ("sensor == \"x", Type::Bool, "at column 13: expected a closing quote, found the end"),
        ("(1 + 2", Type::Double, "at column 7: expected \")\", found the end"),
        (
            "'é' == 1",
            Type::Bool,
            "at column 9: the right side of == must be a string, this is a number",
        ),
    ] {
        let error = Program::compile(text, wanted).unwrap_err().to_string();
        assert!(error.starts_with(message), "{text}: {error}");
    }
}

#[test]
fn depth_and_length_are_bounded() {
    for text in [
        "(".repeat(1000),
        "-".repeat(1000) + "1",
        "!".repeat(4000),
        "1+".repeat(1000) + "1",
        "1?".repeat(1000),
        "max(1,".repeat(500),
        " ".repeat(5000) + "1",
    ] {
        assert!(Program::compile(&text, Type::Double).is_err());
    }
}

#[test]
fn filter_and_map_keep_finite_values_only_and_count_the_rest() {
    let mut readings = batch(&[("a", 1, 1.0), ("b", 2, 0.0), ("a", 3, 4.0), ("test", 4, 5.0)]);
    let filter = Program::compile("sensor != \"test\"", Type::Bool).unwrap();
    let map = Program::compile("1 / value", Type::Double).unwrap();
    assert_eq!(transform(Some(&filter), Some(&map), &mut readings), 2);
    assert_eq!(readings, batch(&[("a", 1, 1.0), ("a", 3, 0.25)]));
    assert_eq!(transform(None, None, &mut readings), 0);
}

#[derive(Clone, Debug)]
enum Tree {
    Number(f64),
    Value,
    Time,
    Truth(bool),
    Starts(String),
    Unary(&'static str, Box<Tree>),
    Binary(&'static str, Box<Tree>, Box<Tree>),
    Choice(Box<Tree>, Box<Tree>, Box<Tree>),
    Call(&'static str, Vec<Tree>),
}

impl Tree {
    fn text(&self) -> String {
        match self {
            Self::Number(n) => n.to_string(),
            Self::Value => "value".to_owned(),
            Self::Time => "time".to_owned(),
            Self::Truth(t) => t.to_string(),
            Self::Starts(prefix) => format!("sensor.startsWith(\"{prefix}\")"),
            Self::Unary(mark, a) => format!("{mark}({})", a.text()),
            Self::Binary(mark, a, b) => format!("({}) {mark} ({})", a.text(), b.text()),
            Self::Choice(a, b, c) => format!("({}) ? ({}) : ({})", a.text(), b.text(), c.text()),
            Self::Call(name, args) => {
                let args: Vec<_> = args.iter().map(Tree::text).collect();
                format!("{name}({})", args.join(", "))
            }
        }
    }

    fn number(&self, r: &Reading<'_>) -> f64 {
        match self {
            Self::Number(n) => *n,
            Self::Value => r.value,
            Self::Time => r.time as f64,
            Self::Unary("-", a) => -a.number(r),
            Self::Binary("+", a, b) => a.number(r) + b.number(r),
            Self::Binary("-", a, b) => a.number(r) - b.number(r),
            Self::Binary("*", a, b) => a.number(r) * b.number(r),
            Self::Binary("/", a, b) => a.number(r) / b.number(r),
            Self::Binary("%", a, b) => a.number(r) % b.number(r),
            Self::Choice(a, b, c) => {
                if a.truth(r) {
                    b.number(r)
                } else {
                    c.number(r)
                }
            }
            Self::Call("abs", args) => args[0].number(r).abs(),
            Self::Call("sqrt", args) => args[0].number(r).sqrt(),
            Self::Call("max", args) => args[0].number(r).max(args[1].number(r)),
            _ => unreachable!("not a number"),
        }
    }

    fn truth(&self, r: &Reading<'_>) -> bool {
        match self {
            Self::Truth(t) => *t,
            Self::Starts(prefix) => r.sensor.starts_with(prefix.as_bytes()),
            Self::Unary("!", a) => !a.truth(r),
            Self::Binary("&&", a, b) => a.truth(r) && b.truth(r),
            Self::Binary("||", a, b) => a.truth(r) || b.truth(r),
            Self::Binary("<", a, b) => a.number(r) < b.number(r),
            Self::Binary(">=", a, b) => a.number(r) >= b.number(r),
            Self::Binary("==", a, b) => a.number(r) == b.number(r),
            Self::Binary("!=", a, b) => a.number(r) != b.number(r),
            Self::Choice(a, b, c) => {
                if a.truth(r) {
                    b.truth(r)
                } else {
                    c.truth(r)
                }
            }
            _ => unreachable!("not a truth value"),
        }
    }
}

fn numbers(depth: u32) -> BoxedStrategy<Tree> {
    let leaf =
        prop_oneof![(0.0..100.0f64).prop_map(Tree::Number), Just(Tree::Value), Just(Tree::Time),];
    if depth == 0 {
        return leaf.boxed();
    }
    let n = || numbers(depth - 1).prop_map(Box::new);
    prop_oneof![
        leaf,
        n().prop_map(|a| Tree::Unary("-", a)),
        (prop::sample::select(vec!["+", "-", "*", "/", "%"]), n(), n())
            .prop_map(|(mark, a, b)| Tree::Binary(mark, a, b)),
        (truths(depth - 1), n(), n()).prop_map(|(a, b, c)| Tree::Choice(Box::new(a), b, c)),
        (prop::sample::select(vec!["abs", "sqrt"]), numbers(depth - 1))
            .prop_map(|(name, a)| Tree::Call(name, vec![a])),
        (numbers(depth - 1), numbers(depth - 1)).prop_map(|(a, b)| Tree::Call("max", vec![a, b])),
    ]
    .boxed()
}

fn truths(depth: u32) -> BoxedStrategy<Tree> {
    let leaf =
        prop_oneof![any::<bool>().prop_map(Tree::Truth), "[a-c]{0,2}".prop_map(Tree::Starts),];
    if depth == 0 {
        return leaf.boxed();
    }
    let t = || truths(depth - 1).prop_map(Box::new);
    let n = || numbers(depth - 1).prop_map(Box::new);
    prop_oneof![
        leaf,
        t().prop_map(|a| Tree::Unary("!", a)),
        (prop::sample::select(vec!["&&", "||"]), t(), t())
            .prop_map(|(mark, a, b)| Tree::Binary(mark, a, b)),
        (prop::sample::select(vec!["<", ">=", "==", "!="]), n(), n())
            .prop_map(|(mark, a, b)| Tree::Binary(mark, a, b)),
        (t(), t(), t()).prop_map(|(a, b, c)| Tree::Choice(a, b, c)),
    ]
    .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compiled_programs_equal_a_naive_interpreter(
        number in numbers(4),
        truth in truths(4),
        readings in prop::collection::vec(("[a-c]{1,3}", -50i64..50, -10.0..10.0f64), 1..600),
    ) {
        let readings: Vec<_> = readings.iter().map(|(s, t, v)| (s.as_str(), *t, *v)).collect();
        let batch = batch(&readings);
        let found = eval(&number.text(), Type::Double, &batch);
        for (found, reading) in found.iter().zip(batch.iter()) {
            let expected = number.number(&reading);
            prop_assert!(*found == expected || (found.is_nan() && expected.is_nan()), "{}", number.text());
        }
        let found = eval(&truth.text(), Type::Bool, &batch);
        for (found, reading) in found.iter().zip(batch.iter()) {
            prop_assert_eq!(*found, f64::from(truth.truth(&reading)), "{}", truth.text());
        }
    }

    #[test]
    fn any_text_compiles_or_is_refused(text in "[a-z0-9.()+*<>=!&|?:,\"' -]{0,60}") {
        let _ = Program::compile(&text, Type::Double);
    }
}

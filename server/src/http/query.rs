//! The part of an address behind `?`, checked: no name is passed over that a request does not know,
//! for it is more likely misspelt than meaningless.

use std::borrow::Cow;

use kiln_protocol::command::Ttl;

use super::{percent, problem::Problem};

/// The longest time that an item may be given.
const TTL_MS_MAX: u64 = 1_000_000 * 86_400_000;

/// What a time looks like, as a regular expression.
pub(super) const TTL_PATTERN: &str = "^(never|[1-9][0-9]{0,12}ms|[1-9][0-9]{0,9}s?|\
     [1-9][0-9]{0,8}m|[1-9][0-9]{0,6}h|[1-9][0-9]{0,5}d)$";

/// The parameters of a request.
#[derive(Debug, Default)]
pub(super) struct Query<'a>(Vec<(Cow<'a, str>, Cow<'a, [u8]>)>);

impl<'a> Query<'a> {
    /// Reads the query of a request that knows `names`.
    pub(super) fn parse(text: Option<&'a str>, names: &[&str]) -> Result<Self, Problem> {
        let mut parameters: Vec<(Cow<'a, str>, Cow<'a, [u8]>)> = Vec::new();
        let parts = text.unwrap_or_default().split('&').filter(|part| !part.is_empty());
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let decode = |text| {
                percent::decode_query(text)
                    .map_err(|error| Problem::bad_request(format!("the query is wrong: {error}")))
            };
            let name = match decode(name)? {
                Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
                Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
            };
            if !names.contains(&&*name) {
                let known = if names.is_empty() { "none" } else { &names.join(", ") };
                let name: String = name.chars().take(50).collect();
                let detail = format!("there is no query parameter `{name}` here; known: {known}");
                return Err(Problem::bad_request(detail));
            }
            if parameters.iter().any(|(other, _)| *other == name) {
                return Err(Problem::bad_request(format!("the query has `{name}` twice")));
            }
            parameters.push((name, decode(value)?));
        }
        Ok(Self(parameters))
    }

    /// The bytes of a parameter.
    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| &**value)
    }

    /// The text of a parameter.
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, Problem> {
        let text = self.bytes(name).map(std::str::from_utf8).transpose();
        text.map_err(|_| Problem::bad_request(format!("`{name}` must be text in UTF-8")))
    }

    /// A parameter that is a whole number of at most `max`.
    pub(super) fn number(&self, name: &str, max: u64) -> Result<Option<u64>, Problem> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let number = decimal(text).filter(|number| *number <= max);
        let wrong = || Problem::bad_request(format!("`{name}` must be a number of 0 to {max}"));
        number.map(Some).ok_or_else(wrong)
    }

    /// A parameter that is `true` or `false`; false when it is not there.
    pub(super) fn switch(&self, name: &str) -> Result<bool, Problem> {
        match self.text(name)? {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Problem::bad_request(format!("`{name}` must be true or false"))),
        }
    }

    /// A parameter that says how long an item is to stay.
    pub(super) fn ttl(&self, name: &str) -> Result<Option<Ttl>, Problem> {
        self.text(name)?.map(|text| ttl(text).ok_or_else(|| bad_ttl(name))).transpose()
    }
}

/// What is wrong with a time.
pub(super) fn bad_ttl(name: &str) -> Problem {
    Problem::bad_request(format!(
        "`{name}` must be `never` or a time above 0 like 1500ms, 30s, 5m, 12h or 7d; a number alone \
         is seconds"
    ))
}

/// Reads a time to live: `1500ms`, `30s`, `5m`, `12h`, `7d`, `never`, or seconds without a unit.
pub(super) fn ttl(text: &str) -> Option<Ttl> {
    if text == "never" {
        return Some(Ttl::Never);
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.starts_with('0') {
        return None;
    }
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let ms = decimal(number)?.checked_mul(unit_ms)?;
    (1..=TTL_MS_MAX).contains(&ms).then_some(Ttl::After(ms))
}

/// A number of decimal digits and nothing else.
pub(super) fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_or_is_in_seconds_and_is_above_zero() {
        for (text, ms) in [("1ms", 1), ("30s", 30_000), ("2", 2_000), ("1m", 60_000)] {
            assert_eq!(ttl(text), Some(Ttl::After(ms)), "{text}");
        }
        assert_eq!(ttl("7d"), Some(Ttl::After(7 * 86_400_000)));
        assert_eq!(ttl("never"), Some(Ttl::Never));
        for bad in [
            "",
            "0",
            "0s",
            "-1",
            "1.5s",
            "s",
            "1w",
            "99999999999999999999",
            "1000001d",
            "+1",
            "01s",
        ] {
            assert_eq!(ttl(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_that_are_not_known_or_come_twice_are_refused() {
        let parse = |text| Query::parse(Some(text), &["ttl", "flags"]);
        let query = parse("ttl=30s&&flags=%37").unwrap();
        assert_eq!(query.text("ttl").unwrap(), Some("30s"));
        assert_eq!(query.number("flags", 10).unwrap(), Some(7));
        assert!(query.number("flags", 6).is_err());
        for bad in ["tll=1", "ttl=1&ttl=2", "ttl=%4", "%zz=1", "=1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_need_not_be_text() {
        let query = Query::parse(Some("prefix=%FF+%2B"), &["prefix"]).unwrap();
        assert_eq!(query.bytes("prefix"), Some(&b"\xFF +"[..]));
        assert!(query.text("prefix").is_err());
    }
}

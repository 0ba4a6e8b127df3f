//! Entity tags: an item's version, in quotes.
//!
//! An encoded answer has a tag of its own, the version with the encoding behind it, as HTTP wants
//! it of strong tags. In a condition either stands for the version: a client may send back what it
//! got with a compressed answer.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use super::problem::{Kind, Problem};

/// Tags that one condition may name.
const TAGS_MAX: usize = 32;

/// The tag of a version, as it is sent with this encoding.
pub(super) fn tag(version: u64, encoding: Option<&'static str>) -> HeaderValue {
    let text = match encoding {
        None => format!("\"{version}\""),
        Some(encoding) => format!("\"{version}-{encoding}\""),
    };
    // Digits, letters and quotes only.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("\"0\""))
}

/// What a request asks of the item as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// `If-Match: *`.
    Exists,
    /// `If-None-Match: *`.
    Absent,
    /// `If-Match` with these versions. Tags that are none of ours are left out.
    OneOf(Vec<u64>),
    /// `If-None-Match` with these versions.
    NoneOf(Vec<u64>),
    /// `If-Match` and `If-None-Match`, in this order.
    Both(Box<[Self; 2]>),
}

impl Condition {
    /// Whether an item of this version, or no item, meets the condition.
    pub(super) fn holds(&self, version: Option<u64>) -> bool {
        match (self, version) {
            (Self::Exists, version) => version.is_some(),
            (Self::Absent, version) => version.is_none(),
            (Self::OneOf(versions), version) => version.is_some_and(|v| versions.contains(&v)),
            (Self::NoneOf(versions), version) => !version.is_some_and(|v| versions.contains(&v)),
            (Self::Both(both), version) => both.iter().all(|one| one.holds(version)),
        }
    }

    /// Whether a reader who is refused has the item of this version already.
    pub(super) fn is_known(&self, version: u64) -> bool {
        match self {
            Self::Absent | Self::NoneOf(_) => !self.holds(Some(version)),
            Self::Exists | Self::OneOf(_) => false,
            // What must match is looked at first.
            Self::Both(both) => both[0].holds(Some(version)) && both[1].is_known(version),
        }
    }

    /// The condition of a request.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let wanted = list(headers, header::IF_MATCH, false)?;
        let unwanted = list(headers, header::IF_NONE_MATCH, true)?;
        let wanted = wanted.map(|tags| match tags {
            Tags::Any => Self::Exists,
            Tags::These(versions) => Self::OneOf(versions),
        });
        let unwanted = unwanted.map(|tags| match tags {
            Tags::Any => Self::Absent,
            Tags::These(versions) => Self::NoneOf(versions),
        });
        Ok(match (wanted, unwanted) {
            (Some(wanted), Some(unwanted)) => Some(Self::Both(Box::new([wanted, unwanted]))),
            (wanted, unwanted) => wanted.or(unwanted),
        })
    }

    /// The single version that a request may compare, for operations that can do no more.
    pub(super) fn single(&self) -> Result<u64, Problem> {
        match self {
            Self::OneOf(versions) if versions.len() == 1 => Ok(versions[0]),
            Self::OneOf(versions) if versions.is_empty() => Err(failed()),
            _ => Err(Problem::bad_request("this takes If-Match with one entity tag, and no other")),
        }
    }
}

/// The condition does not hold.
pub(super) fn failed() -> Problem {
    Problem::new(Kind::ConditionFailed, "the item is not as the condition of the request says")
}

/// Whether a `Range` still applies: `If-Range` names this version, or is not there.
pub(super) fn range_applies(headers: &HeaderMap, version: u64) -> bool {
    match headers.get(header::IF_RANGE) {
        None => true,
        // A date never matches: items have none.
        Some(value) => value.as_bytes() == tag(version, None).as_bytes(),
    }
}

enum Tags {
    Any,
    These(Vec<u64>),
}

fn list(headers: &HeaderMap, name: HeaderName, weak: bool) -> Result<Option<Tags>, Problem> {
    let bad = || {
        Problem::bad_request(format!("{name} must be * or up to {TAGS_MAX} entity tags in quotes"))
    };
    let mut versions = None;
    let mut count = 0;
    for value in headers.get_all(&name) {
        let mut rest = value.to_str().map_err(|_| bad())?.trim();
        if rest == "*" && versions.is_none() {
            versions = Some(None);
            continue;
        }
        let Some(versions) = versions.get_or_insert_with(|| Some(Vec::new())) else {
            return Err(bad());
        };
        while !rest.is_empty() {
            // A list may have nothing between two commas, or nothing at all.
            if let Some(more) = rest.strip_prefix(',') {
                rest = more.trim_start();
                continue;
            }
            let is_weak = rest.starts_with("W/");
            let quoted = rest.strip_prefix("W/").unwrap_or(rest).strip_prefix('"');
            let (opaque, after) = quoted.and_then(|text| text.split_once('"')).ok_or_else(bad)?;
            count += 1;
            if count > TAGS_MAX {
                return Err(bad());
            }
            // A weak tag is never the same as a strong one where that is asked for.
            if weak || !is_weak {
                versions.extend(version(opaque));
            }
            let after = after.trim_start();
            rest = match after.strip_prefix(',') {
                Some(more) => more.trim_start(),
                None if after.is_empty() => after,
                None => return Err(bad()),
            };
        }
    }
    Ok(versions.map(|versions| versions.map_or(Tags::Any, Tags::These)))
}

fn version(opaque: &str) -> Option<u64> {
    let digits = opaque.strip_suffix("-gzip").or(opaque.strip_suffix("-zstd")).unwrap_or(opaque);
    super::query::decimal(digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn condition(name: HeaderName, values: &[&str]) -> Result<Option<Condition>, Problem> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name.clone(), HeaderValue::from_str(value).unwrap());
        }
        Condition::of(&headers)
    }

    #[test]
    fn a_condition_is_any_or_a_list_of_tags_over_one_or_more_lines() {
        let wanted = |values: &[&str]| condition(header::IF_MATCH, values).unwrap();
        assert_eq!(wanted(&[]), None);
        assert_eq!(wanted(&["*"]), Some(Condition::Exists));
        assert_eq!(wanted(&["\"7\""]), Some(Condition::OneOf(vec![7])));
        assert_eq!(wanted(&["\"7\" , \"8\"", "\"9\""]), Some(Condition::OneOf(vec![7, 8, 9])));
        assert_eq!(wanted(&["\"7-gzip\""]), Some(Condition::OneOf(vec![7])));
        assert_eq!(wanted(&["\"7\",, \"8\","]), Some(Condition::OneOf(vec![7, 8])));
        assert_eq!(wanted(&[""]), Some(Condition::OneOf(vec![])));
        let unwanted = condition(header::IF_NONE_MATCH, &["W/\"7\",\"x\""]).unwrap();
        assert_eq!(unwanted, Some(Condition::NoneOf(vec![7])));
    }

    #[test]
    fn of_two_conditions_both_must_hold_and_what_must_match_is_looked_at_first() {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_MATCH, HeaderValue::from_static("\"7\", \"8\""));
        headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("\"8\""));
        let both = Condition::of(&headers).unwrap().unwrap();
        assert!(both.holds(Some(7)));
        assert!(!both.holds(Some(8)) && both.is_known(8));
        assert!(!both.holds(Some(9)) && !both.is_known(9));
        assert!(!both.holds(None) && both.single().is_err());
    }

    #[test]
    fn a_tag_that_is_weak_or_of_another_server_matches_nothing() {
        for value in ["W/\"7\"", "\"seven\"", "\"\"", "\"99999999999999999999\""] {
            let condition = condition(header::IF_MATCH, &[value]).unwrap().unwrap();
            assert_eq!(condition, Condition::OneOf(vec![]), "{value}");
            assert!(!condition.holds(Some(7)) && condition.single().is_err());
        }
    }

    #[test]
    fn what_is_no_list_of_tags_is_refused() {
        for bad in ["7", "\"7", "\"7\" \"8\"", "*, \"7\"", "w/\"7\"", "\"7\", 8"] {
            assert!(condition(header::IF_MATCH, &[bad]).is_err(), "{bad}");
        }
        assert!(condition(header::IF_MATCH, &["*", "\"7\""]).is_err());
        assert!(condition(header::IF_MATCH, &["\"7\"", "*"]).is_err());
        let many = vec!["\"1\""; TAGS_MAX + 1].join(",");
        assert!(condition(header::IF_MATCH, &[&many]).is_err());
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_refused(value in "[ -~]{0,80}") {
            let _ = condition(header::IF_MATCH, &[&value]);
        }

        #[test]
        fn the_tag_of_a_version_stands_for_it(version: u64) {
            for encoding in [None, Some("gzip"), Some("zstd")] {
                let tag = tag(version, encoding);
                let condition = condition(header::IF_MATCH, &[tag.to_str().unwrap()]).unwrap();
                prop_assert_eq!(condition, Some(Condition::OneOf(vec![version])));
            }
        }
    }
}

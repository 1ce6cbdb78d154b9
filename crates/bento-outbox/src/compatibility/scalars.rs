//! Numbers and strings: what is written lies within what is read.

use std::cmp::Ordering;

use serde_json::{Number, Value};

use super::alternatives::{Alternative, Types};

/// A limit of numbers, and whether it is one itself.
#[derive(Clone, Copy)]
struct Bound {
    at: Exact,
    inclusive: bool,
}

/// A number without loss, as far as documents have them.
#[derive(Clone, Copy)]
enum Exact {
    Integer(i128),
    Float(f64),
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Lower,
    Upper,
}

/// Equality of JSON, in which 1 and 1.0 are the same.
pub(super) fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            Exact::of(one).compare(Exact::of(other)) == Ordering::Equal
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(a, b)| equal(a, b))
        }
        (Value::Object(one), Value::Object(other)) => {
            let same = |(name, value): (&String, &Value)| {
                other.get(name).is_some_and(|other| equal(value, other))
            };
            one.len() == other.len() && one.iter().all(same)
        }
        _ => one == other,
    }
}

/// Whether a number is an integer for JSON Schema, as 1.0 is.
pub(super) fn is_integer(number: &Number) -> bool {
    match Exact::of(number) {
        Exact::Integer(_) => true,
        Exact::Float(float) => float.fract() == 0.0,
    }
}

/// Why what is written may not be what `keyword` of a reader asks of numbers; nothing when it is.
pub(super) fn number_break(
    written: &Alternative<'_>,
    keyword: &str,
    asked: &Value,
) -> Option<String> {
    let Value::Number(number) = asked else {
        return Some(unproved(keyword));
    };
    let (end, inclusive) = match keyword {
        "minimum" => (End::Lower, true),
        "exclusiveMinimum" => (End::Lower, false),
        "maximum" => (End::Upper, true),
        "exclusiveMaximum" => (End::Upper, false),
        _ => return multiple_break(written, number),
    };
    let asked = Bound {
        at: Exact::of(number),
        inclusive,
    };
    let word = if end == End::Lower { "under" } else { "over" };
    let breaks = || {
        let not = if inclusive { "" } else { " or be it" };
        Some(format!("may be {word} {number}{not}"))
    };
    within(written, end, asked, breaks)
}

/// As [`number_break`], for a `format` that is a range of numbers; none for any other format.
pub(super) fn range_break(written: &Alternative<'_>, format: &str) -> Option<Option<String>> {
    let breaks = || Some(format!("may be a number that is no {format}"));
    match format {
        // Every number of a document is read as one.
        "double" => return Some(None),
        "float" => {
            let fits = written.all("format").any(|said| said == "float");
            return Some(if fits { None } else { breaks() });
        }
        _ => {}
    }
    let (lowest, highest) = range(format)?;
    let mut ends = [(End::Lower, lowest), (End::Upper, highest)].into_iter();
    Some(ends.find_map(|(end, at)| {
        within(
            written,
            end,
            Bound {
                at,
                inclusive: true,
            },
            breaks,
        )
    }))
}

/// Whether what is written stays on the right side of a bound.
fn within(
    written: &Alternative<'_>,
    end: End,
    asked: Bound,
    breaks: impl Fn() -> Option<String>,
) -> Option<String> {
    if let Some(values) = &written.values {
        let numbers = values.iter().filter_map(|value| value.as_number());
        let mut bounds = numbers.map(|number| Bound {
            at: Exact::of(number),
            inclusive: true,
        });
        return if bounds.all(|bound| bound.is_within(asked, end)) {
            None
        } else {
            breaks()
        };
    }
    let integers = !written.types.meet(Types::NUMBER.without(Types::INTEGER));
    let tightest = written
        .parts
        .iter()
        .flat_map(|part| part.keywords)
        .filter_map(|(keyword, value)| Bound::said(keyword, value, end))
        .map(|bound| {
            if integers {
                bound.of_integers(end)
            } else {
                bound
            }
        });
    let mut bounds = tightest.filter(|bound| bound.is_within(asked, end));
    if bounds.next().is_some() {
        None
    } else {
        breaks()
    }
}

fn multiple_break(written: &Alternative<'_>, asked: &Number) -> Option<String> {
    let breaks = Some(format!("may be no multiple of {asked}"));
    let Exact::Integer(asked) = Exact::of(asked) else {
        return breaks;
    };
    let divides = |number: &Number| matches!(Exact::of(number), Exact::Integer(number) if asked != 0 && number % asked == 0);
    let fits = match &written.values {
        Some(values) => values
            .iter()
            .filter_map(|value| value.as_number())
            .all(divides),
        None => {
            let only_integers = !written.types.meet(Types::NUMBER.without(Types::INTEGER));
            written
                .all("multipleOf")
                .filter_map(Value::as_number)
                .any(divides)
                || (only_integers && asked == 1)
        }
    };
    if fits { None } else { breaks }
}

/// Why what is written may not be what `keyword` of a reader asks of strings; nothing when it is.
pub(super) fn string_break(
    written: &Alternative<'_>,
    keyword: &str,
    asked: &Value,
) -> Option<String> {
    let breaks = match keyword {
        "minLength" => format!("may be shorter than {asked}"),
        "maxLength" => format!("may be longer than {asked}"),
        "pattern" => format!("may not match {asked}"),
        "format" => format!("may not have the format {asked}"),
        _ => unproved(keyword),
    };
    let lengths = ["minLength", "maxLength"].contains(&keyword);
    let fits = match (&written.values, asked.as_u64()) {
        (Some(values), Some(asked)) if lengths => {
            let mut texts = values.iter().filter_map(|value| value.as_str());
            texts.all(|text| fits_length(keyword, text.chars().count() as u64, asked))
        }
        (None, Some(asked)) if lengths => {
            let mut said = written.all(key(keyword)).filter_map(Value::as_u64);
            said.any(|said| fits_length(keyword, said, asked))
                || (keyword == "minLength" && asked == 0)
        }
        // Whether one pattern has all that another has, or a listed value, is not looked into.
        _ => written.all(key(keyword)).any(|said| said == asked),
    };
    if fits { None } else { Some(breaks) }
}

/// Whether `said` (a length or count) keeps what `keyword` asks, at least or at most.
pub(super) fn fits_length(keyword: &str, said: u64, asked: u64) -> bool {
    if keyword.starts_with("min") {
        said >= asked
    } else {
        said <= asked
    }
}

/// A keyword that is compatible only with itself.
pub(super) fn unproved(keyword: &str) -> String {
    format!("cannot be compared by {keyword:?}, which differs")
}

/// The same keyword with a life of its own.
fn key(keyword: &str) -> &'static str {
    match keyword {
        "minLength" => "minLength",
        "maxLength" => "maxLength",
        "pattern" => "pattern",
        "format" => "format",
        "contentEncoding" => "contentEncoding",
        _ => "contentMediaType",
    }
}

/// The lowest and the highest number of a format.
fn range(format: &str) -> Option<(Exact, Exact)> {
    let integers = |lowest: i128, highest: i128| (Exact::Integer(lowest), Exact::Integer(highest));
    Some(match format {
        "int8" => integers(i8::MIN.into(), i8::MAX.into()),
        "int16" => integers(i16::MIN.into(), i16::MAX.into()),
        "int32" => integers(i32::MIN.into(), i32::MAX.into()),
        "int64" | "int" => integers(i64::MIN.into(), i64::MAX.into()),
        "int128" => integers(i128::MIN, i128::MAX),
        "uint8" => integers(0, u8::MAX.into()),
        "uint16" => integers(0, u16::MAX.into()),
        "uint32" => integers(0, u32::MAX.into()),
        "uint64" | "uint" => integers(0, u64::MAX.into()),
        // 2^128, which is as good as the highest one.
        "uint128" => (Exact::Integer(0), Exact::Float(3.402_823_669_209_385e38)),
        _ => return None,
    })
}

impl Bound {
    /// What a keyword of the writer says about this end.
    fn said(keyword: &str, value: &Value, end: End) -> Option<Self> {
        let lower = end == End::Lower;
        match (keyword, lower) {
            ("minimum", true) | ("maximum", false) => Some(Self {
                at: Exact::of(value.as_number()?),
                inclusive: true,
            }),
            ("exclusiveMinimum", true) | ("exclusiveMaximum", false) => Some(Self {
                at: Exact::of(value.as_number()?),
                inclusive: false,
            }),
            ("format", _) => {
                let (lowest, highest) = range(value.as_str()?)?;
                Some(Self {
                    at: if lower { lowest } else { highest },
                    inclusive: true,
                })
            }
            _ => None,
        }
    }

    /// The same bound for integers: over 5 is from 6.
    fn of_integers(self, end: End) -> Self {
        match self.at {
            Exact::Integer(at) if !self.inclusive => {
                let next = if end == End::Lower {
                    at.saturating_add(1)
                } else {
                    at.saturating_sub(1)
                };
                Self {
                    at: Exact::Integer(next),
                    inclusive: true,
                }
            }
            _ => self,
        }
    }

    fn is_within(self, asked: Self, end: End) -> bool {
        match (self.at.compare(asked.at), end) {
            (Ordering::Equal, _) => asked.inclusive || !self.inclusive,
            (Ordering::Greater, End::Lower) | (Ordering::Less, End::Upper) => true,
            _ => false,
        }
    }
}

impl Exact {
    fn of(number: &Number) -> Self {
        if let Some(integer) = number.as_i128() {
            return Self::Integer(integer);
        }
        let float = number.as_f64().unwrap_or(f64::NAN);
        // As far as i128 goes every whole float is an integer without loss.
        #[expect(clippy::cast_possible_truncation, reason = "whole and in range")]
        if float.fract() == 0.0 && float.abs() < 1e38 {
            Self::Integer(float as i128)
        } else {
            Self::Float(float)
        }
    }

    fn compare(self, other: Self) -> Ordering {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a float that is not whole is under 2^53"
        )]
        let float = |exact| match exact {
            Self::Integer(integer) => integer as f64,
            Self::Float(float) => float,
        };
        match (self, other) {
            (Self::Integer(one), Self::Integer(other)) => one.cmp(&other),
            (one, other) => float(one)
                .partial_cmp(&float(other))
                .unwrap_or(Ordering::Less),
        }
    }
}

//! Elements: which are written, and which are read.

use serde_json::{Map, Value};

use super::SchemaBreak;
use super::alternatives::{All, Alternative};
use super::covers::Comparison;
use super::scalars::{fits_length, unproved};

impl<'a> Comparison<'a> {
    /// What one keyword about arrays breaks.
    pub(super) fn array_breaks(
        &mut self,
        written: &Alternative<'a>,
        read: &'a Map<String, Value>,
        keyword: &'a str,
        path: &str,
    ) -> Vec<SchemaBreak> {
        let asked = &read[keyword];
        match (keyword, asked) {
            ("minItems" | "maxItems", asked) => {
                let Some(asked) = asked.as_u64() else {
                    return vec![self.because(path, &unproved(keyword))];
                };
                let mut said = written.all(keyword).filter_map(Value::as_u64);
                let nothing_asked = keyword == "minItems" && asked == 0;
                if nothing_asked || said.any(|said| fits_length(keyword, said, asked)) {
                    return Vec::new();
                }
                let word = if keyword == "minItems" {
                    "fewer"
                } else {
                    "more"
                };
                vec![self.because(path, &format!("may have {word} elements than {asked}"))]
            }
            ("uniqueItems", asked) => {
                let said = written.all(keyword).any(|said| said == &Value::Bool(true));
                if said || asked == &Value::Bool(false) || written.elements_max() <= 1 {
                    return Vec::new();
                }
                vec![self.because(path, "may have an element twice, and they refuse that")]
            }
            // The elements are compared once, whichever of the keywords are there.
            ("items", _) => self.elements(written, read, path),
            (_, _) if read.contains_key("items") => Vec::new(),
            ("prefixItems", _) => self.elements(written, read, path),
            _ => Vec::new(), // `additionalItems` means nothing without a list of items
        }
    }

    fn elements(
        &mut self,
        written: &Alternative<'a>,
        read: &'a Map<String, Value>,
        path: &str,
    ) -> Vec<SchemaBreak> {
        let mut breaks = Vec::new();
        let first = written
            .parts
            .iter()
            .map(|part| first_elements(part.keywords).len());
        let first = first.chain([first_elements(read).len()]).max().unwrap_or(0);
        for at in (0..first).filter(|at| (*at as u64) < written.elements_max()) {
            let asked = element(read, at).into_iter().collect();
            breaks.extend(self.place(&written.element(at), &asked, &format!("{path}[{at}]")));
        }
        if written.elements_max() > first as u64 {
            let asked = element(read, first).into_iter().collect();
            breaks.extend(self.place(&written.element(first), &asked, &format!("{path}[]")));
        }
        breaks
    }
}

impl<'a> Alternative<'a> {
    fn elements_max(&self) -> u64 {
        self.all("maxItems")
            .filter_map(Value::as_u64)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// What the element at an index follows.
    fn element(&self, at: usize) -> All<'a> {
        self.parts
            .iter()
            .filter_map(|part| element(part.keywords, at))
            .collect()
    }
}

/// The schemas of the first elements: `prefixItems`, or `items` as a list until draft 2019-09.
fn first_elements(keywords: &Map<String, Value>) -> &[Value] {
    let list = |name| keywords.get(name).and_then(Value::as_array);
    list("prefixItems")
        .or_else(|| list("items"))
        .map_or(&[], Vec::as_slice)
}

/// What the element at an index follows by the keywords of one part.
fn element(keywords: &Map<String, Value>, at: usize) -> Option<&Value> {
    let rest = match keywords.get("items") {
        Some(Value::Array(_)) => keywords.get("additionalItems"),
        other => other,
    };
    first_elements(keywords).get(at).or(rest)
}

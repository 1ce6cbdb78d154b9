//! A Rust file, parsed as far as the rules need: what is code, and which of it is tests.

/// One file. Offsets mean the same place in both texts.
pub(super) struct Source {
    /// The text with comments and the insides of literals blanked.
    pub(super) code: String,
    /// The code without its tests; empty if the whole file is test code.
    pub(super) production: String,
}

impl Source {
    /// Parses a file's text.
    pub(super) fn parse(text: &str) -> Self {
        let code = without_comments_and_literals(text);
        let production = without_tests(&code);
        Self { code, production }
    }
}

/// The line, counted from 1, that `offset` is on.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
}

/// Every identifier and keyword with its offset.
pub(super) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut offset = 0;
    code.split(|c: char| !is_word_char(c))
        .filter_map(move |word| {
            let start = offset;
            offset += word.len()
                + code[start + word.len()..]
                    .chars()
                    .next()
                    .map_or(0, char::len_utf8);
            (!word.is_empty()).then_some((start, word))
        })
}

/// The word that `code` starts with, after white space.
pub(super) fn first_word(code: &str) -> Option<&str> {
    words(code)
        .next()
        .filter(|(start, _)| code[..*start].trim().is_empty())
        .map(|(_, word)| word)
}

/// The offset of the bracket that closes the one at `open`, or the end of the code.
pub(super) fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (offset, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return offset;
        }
    }
    code.len()
}

fn is_word_char(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Whether an attribute's inside, say `cfg(test)` or `tokio::test(flavor = "…")`, makes its item a test.
fn marks_a_test(attribute: &str) -> bool {
    let attribute: String = attribute.chars().filter(|c| !c.is_whitespace()).collect();
    let name = attribute.split('(').next().unwrap_or_default();
    name == "test"
        || name.ends_with("::test")
        || attribute == "cfg(test)"
        || attribute.starts_with("cfg(all(test,")
        || attribute.starts_with("cfg(test,")
}

/// Where each test item begins, attribute included, and ends.
pub(super) fn test_items(code: &str) -> Vec<(usize, usize)> {
    let (mut items, mut from) = (Vec::new(), 0);
    while let Some(found) = code[from..].find("#[") {
        let start = from + found;
        let end = closing(code, start + 1);
        from = (end + 1).min(code.len());
        if marks_a_test(&code[start + 2..end]) {
            from = end_of_item(code, from);
            items.push((start, from));
        }
    }
    items
}

/// The end of the item at `from`: of its body, or of its `;`.
fn end_of_item(code: &str, mut from: usize) -> usize {
    while let Some(next) = code[from..].find(['{', '(', '[', ';', '}']) {
        let offset = from + next;
        match code.as_bytes()[offset] {
            b'{' => return (closing(code, offset) + 1).min(code.len()),
            b';' => return offset + 1,
            b'}' => return offset,
            _ => from = (closing(code, offset) + 1).min(code.len()),
        }
    }
    code.len()
}

fn without_tests(code: &str) -> String {
    let mut bytes = code.as_bytes().to_vec();
    for (start, end) in test_items(code) {
        blank(&mut bytes[start..end]);
    }
    text_of(bytes)
}

fn without_comments_and_literals(text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let before = text[..at].chars().next_back();
        let starts_a_word = !before.is_some_and(is_word_char);
        let hidden = if rest.starts_with("//") {
            0..rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            0..block_comment(rest)
        } else if let Some(inside) = raw_string(rest).filter(|_| starts_a_word) {
            inside
        } else if rest.starts_with('"') {
            1..string(rest)
        } else if let Some(end) = character(rest) {
            1..end
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
            continue;
        };
        blank(&mut bytes[at + hidden.start..at + hidden.end]);
        let is_comment = hidden.start == 0;
        // Behind the closing quote, lest it be taken for an opening one.
        at = (at + hidden.end + usize::from(!is_comment)).min(text.len());
    }
    text_of(bytes)
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    let bytes = rest.as_bytes();
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

/// The inside of `r"…"`, `br#"…"#` and their like.
fn raw_string(rest: &str) -> Option<std::ops::Range<usize>> {
    let prefix = ["r", "br", "cr"]
        .into_iter()
        .find(|prefix| rest.starts_with(prefix))?;
    let after = &rest[prefix.len()..];
    let hashes = after.len() - after.trim_start_matches('#').len();
    let inside = after[hashes..].strip_prefix('"')?;
    let start = rest.len() - inside.len();
    let end = inside
        .find(&format!("\"{}", "#".repeat(hashes)))
        .unwrap_or(inside.len());
    Some(start..start + end)
}

/// Where the quote that ends the string is.
fn string(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at.min(bytes.len())
}

/// Where the quote that ends a character literal is; `None` for a lifetime.
fn character(rest: &str) -> Option<usize> {
    let inside = rest.strip_prefix('\'')?;
    let first = inside.chars().next()?;
    if first == '\\' {
        return Some(3 + inside.get(2..)?.find('\'')?);
    }
    let end = 1 + first.len_utf8();
    rest[end..].starts_with('\'').then_some(end)
}

fn blank(bytes: &mut [u8]) {
    for byte in bytes.iter_mut().filter(|byte| **byte != b'\n') {
        *byte = b' ';
    }
}

fn text_of(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("whole characters are blanked, so what is left is still UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_not_code() {
        let hidden = [
            "a(); // HIDDEN ü",
            "/// HIDDEN\na();",
            "a(/* HIDDEN /* HIDDEN */ HIDDEN */);",
            "a(\"HIDDEN \\\" HIDDEN\", b\"HIDDEN\");",
            "a(r\"HIDDEN\", r#\"HIDDEN \" HIDDEN\"#, br##\"HIDDEN\"# HIDDEN\"##);",
            "a(\"\\\\\", '\"', \"HIDDEN\");",
            "a('\\'', \"HIDDEN\"); a('\\u{1F600}', \"HIDDEN\"); a('ü', \"HIDDEN\");",
        ];
        for text in hidden {
            let code = Source::parse(text).code;
            assert!(
                !code.contains("HIDDEN") && code.contains("a("),
                "{text} became {code}"
            );
            assert_eq!(code.len(), text.len());
        }
        let shown = "fn f<'a>(x: &'a str, r#type: u8) -> &'a str { SHOWN }";
        assert_eq!(Source::parse(shown).code, shown);
    }

    #[test]
    fn tests_are_code_but_not_production() {
        let tests = [
            "#[cfg(test)]\nmod tests { fn f() { TEST } }\nREAL",
            "#[cfg(all(test, feature = \"sqlite\"))]\n#[path = \"x.rs\"]\nmod tests;\nREAL",
            "#[test]\nfn f() -> [u8; 2] { TEST }\nREAL",
            "#[tokio::test(flavor = \"multi_thread\")]\nasync fn f() { if a { TEST } TEST }\nREAL",
            "#[cfg(test)] use TEST::{A, B}; REAL",
        ];
        for text in tests {
            let source = Source::parse(text);
            assert!(
                !source.production.contains("TEST") && source.production.contains("REAL"),
                "{text}"
            );
            assert!(
                source.code.contains("TEST") || text.contains("mod tests;"),
                "{text}"
            );
        }
        let real = "#[cfg(any(test, unix))] fn f() { REAL }";
        assert!(Source::parse(real).production.contains("REAL"));
    }

    #[test]
    fn words_come_with_their_place() {
        let found: Vec<_> = words("use ä::b_1;").collect();
        assert_eq!(found, [(0, "use"), (4, "ä"), (8, "b_1")]);
        assert_eq!(first_word("  abc d"), Some("abc"));
        assert_eq!(first_word("(abc"), None);
        assert_eq!(line_of("a\nb\nc", 4), 3);
    }
}

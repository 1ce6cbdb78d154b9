use serde_json::json;

use super::*;
use CompatibilityMode::{Backward, Forward, Full};

fn said(old: &Value, new: &Value, mode: CompatibilityMode) -> Vec<String> {
    schema_breaks(old, new, mode)
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn object(properties: Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required})
}

fn closed(mut schema: Value) -> Value {
    schema["additionalProperties"] = false.into();
    schema
}

/// What each way breaks; both lists are in the order of [`said`].
fn assert_breaks(old: &Value, new: &Value, backward: &[&str], forward: &[&str]) {
    assert_eq!(
        said(old, new, Backward),
        backward,
        "backward\nold {old}\nnew {new}"
    );
    assert_eq!(
        said(old, new, Forward),
        forward,
        "forward\nold {old}\nnew {new}"
    );
    let both: Vec<&str> = backward.iter().chain(forward).copied().collect();
    assert_eq!(said(old, new, Full), both);
}

#[test]
fn a_field_that_comes_or_goes_breaks_who_needs_it_or_refuses_it() {
    let total = json!({"type": "integer"});
    let one = object(json!({"total": total}), &["total"]);
    let two =
        |required: &[&str]| object(json!({"total": total, "by": {"type": "string"}}), required);
    let needs = "by: new readers break: old data may lack it, and they require it";
    assert_breaks(&one, &two(&["total"]), &[], &[]);
    assert_breaks(&one, &two(&["total", "by"]), &[needs], &[]);
    let refuses =
        "by: old readers break: new data may have it, and they refuse fields that they do not know";
    assert_breaks(
        &closed(one.clone()),
        &closed(two(&["total"])),
        &[],
        &[refuses],
    );
    let refuses =
        "by: new readers break: old data may have it, and they refuse fields that they do not know";
    assert_breaks(
        &closed(two(&[])),
        &closed(object(json!({"total": total}), &[])),
        &[refuses],
        &[],
    );
    assert_breaks(
        &two(&["total"]),
        &two(&[]),
        &[],
        &["total: old readers break: new data may lack it, and they require it"],
    );
    let open = json!({"type": "object", "properties": {"total": total}, "required": ["total"], "additionalProperties": true});
    let other_form = "by: new readers break: old data may have any field there, and they know this one in another form";
    assert_eq!(said(&open, &two(&["total"]), Backward)[0], other_form);
}

#[test]
fn types_and_lists_of_values_may_grow_where_they_are_read() {
    let of = |schema: Value| object(json!({"x": schema}), &["x"]);
    let case = |old: Value, new: Value, backward: &[&str], forward: &[&str]| {
        let lines = |says: &[&str], side| -> Vec<String> {
            says.iter()
                .map(|says| format!("x: {side} readers break: {says}"))
                .collect()
        };
        let (backward, forward) = (lines(backward, "new"), lines(forward, "old"));
        let refs = |lines: &[String]| {
            lines
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join("|")
        };
        let got = |mode| said(&of(old.clone()), &of(new.clone()), mode).join("|");
        assert_eq!(got(Backward), refs(&backward), "{old} {new}");
        assert_eq!(got(Forward), refs(&forward), "{old} {new}");
    };
    let integer = json!({"type": "integer"});
    case(
        integer.clone(),
        json!({"type": "number"}),
        &[],
        &["new data may be a number with a fraction, and they take an integer"],
    );
    case(
        integer.clone(),
        json!({"type": "string"}),
        &["old data may be an integer, and they take a string"],
        &["new data may be a string, and they take an integer"],
    );
    case(
        integer.clone(),
        json!({"type": ["integer", "null"]}),
        &[],
        &["new data may be null, and they take an integer"],
    );
    case(
        json!({"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        json!({"type": ["null", "integer"]}),
        &[],
        &[],
    );
    case(
        json!({"enum": ["a", "b"]}),
        json!({"enum": ["a", "b", "c"]}),
        &[],
        &["new data may be \"c\", and they take \"a\" or \"b\""],
    );
    case(
        json!({"enum": ["a"]}),
        json!({"type": "string", "const": "a"}),
        &[],
        &[],
    );
    case(
        json!({"enum": ["a", "bcd"]}),
        json!({"type": "string", "maxLength": 2}),
        &["old data may be longer than 2"],
        &["new data may be other than \"a\" or \"bcd\""],
    );
    case(
        json!({"type": "boolean"}),
        json!({"enum": [true, false, null]}),
        &[],
        &["new data may be null, and they take a boolean"],
    );
    case(
        json!({"format": "int32", "type": "integer"}),
        json!({"format": "int64", "type": "integer"}),
        &[],
        &["new data may be a number that is no int32"],
    );
    case(
        json!({"minimum": 0, "maximum": 255, "type": "integer"}),
        json!({"format": "uint8", "type": "integer"}),
        &[],
        &[],
    );
    case(
        json!({"format": "uint64", "type": "integer"}),
        json!({"format": "int128", "type": "integer"}),
        &[],
        &["new data may be a number that is no uint64"],
    );
    case(
        json!({"format": "uint128", "type": "integer"}),
        json!({"format": "int128", "type": "integer"}),
        &["old data may be a number that is no int128"],
        &["new data may be a number that is no uint128"],
    );
    case(
        json!({"type": "number", "format": "float"}),
        json!({"type": "number", "format": "double"}),
        &[],
        &["new data may be a number that is no float"],
    );
    case(
        json!({"exclusiveMinimum": 4, "type": "integer"}),
        json!({"minimum": 5, "type": "integer"}),
        &[],
        &[],
    );
    case(
        json!({"minimum": 5, "type": "number"}),
        json!({"exclusiveMinimum": 4.5, "type": "number"}),
        &[],
        &["new data may be under 5"],
    );
    case(
        json!({"maximum": 9007199254740992_i64, "type": "number"}),
        json!({"maximum": 9007199254740993_i64, "type": "number"}),
        &[],
        &["new data may be over 9007199254740992"],
    );
    case(
        json!({"multipleOf": 4, "type": "integer"}),
        json!({"multipleOf": 2, "type": "integer"}),
        &[],
        &["new data may be no multiple of 4"],
    );
    case(
        json!({"minLength": 2, "type": "string"}),
        json!({"minLength": 1, "type": "string"}),
        &[],
        &["new data may be shorter than 2"],
    );
    case(
        json!({"pattern": "a", "type": "string"}),
        json!({"type": "string"}),
        &[],
        &["new data may not match \"a\""],
    );
    case(
        json!({"format": "uuid", "type": "string"}),
        json!({"format": "email", "type": "string"}),
        &["old data may not have the format \"email\""],
        &["new data may not have the format \"uuid\""],
    );
}

#[test]
fn elements_are_compared_by_their_place() {
    let list = |items: Value| object(json!({"lines": {"type": "array", "items": items}}), &[]);
    let price = |of: &str| object(json!({"price": {"type": of}}), &["price"]);
    assert_breaks(
        &list(price("integer")),
        &list(price("string")),
        &["lines[].price: new readers break: old data may be an integer, and they take a string"],
        &["lines[].price: old readers break: new data may be a string, and they take an integer"],
    );
    let pair = |first: &str, count: u32| json!({"type": "array", "prefixItems": [{"type": first}, true], "minItems": count, "maxItems": count});
    assert_breaks(
        &pair("integer", 2),
        &pair("number", 3),
        &["the document: new readers break: old data may have fewer elements than 3"],
        &[
            "the document: old readers break: new data may have more elements than 2",
            "[0]: old readers break: new data may be a number with a fraction, and they take an integer",
        ],
    );
    let unique = |is: bool| json!({"type": "array", "uniqueItems": is});
    assert_breaks(
        &unique(true),
        &unique(false),
        &[],
        &[
            "the document: old readers break: new data may have an element twice, and they refuse that",
        ],
    );
    let old_draft = json!({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "string"}], "additionalItems": {"type": "integer"}});
    let new_draft = json!({"prefixItems": [{"type": "string"}], "items": {"type": "integer"}});
    assert_breaks(&old_draft, &new_draft, &[], &[]);
}

#[test]
fn a_new_variant_breaks_old_readers_by_its_name() {
    let tagged = |names: &[&str]| -> Value {
        let variant = |name: &&str| closed(object(json!({"how": {"const": name}}), &["how"]));
        json!({"oneOf": names.iter().map(variant).collect::<Vec<_>>()})
    };
    let new_variant = "the document: old readers break: new data may be an object with how \"cheque\", which is none of what they take";
    assert_breaks(
        &tagged(&["card", "cash"]),
        &tagged(&["cash", "card", "cheque"]),
        &[],
        &[new_variant],
    );

    let external = |names: &[&str]| -> Value {
        let variant = |name: &&str| closed(object(json!({*name: {"type": "string"}}), &[name]));
        json!({"oneOf": names.iter().map(variant).chain([json!({"const": "none"})]).collect::<Vec<_>>()})
    };
    let new_variant = "the document: old readers break: new data may be an object with cheque, which is none of what they take";
    assert_breaks(
        &external(&["card"]),
        &external(&["card", "cheque"]),
        &[],
        &[new_variant],
    );

    // The variant that is nearest is told of.
    let with = |of: &str| {
        json!({"oneOf": [
            object(json!({"how": {"const": "cash"}}), &["how"]),
            object(json!({"how": {"const": "card"}, "last4": {"type": of}}), &["how", "last4"]),
        ]})
    };
    assert_eq!(
        said(&with("string"), &with("integer"), Backward),
        ["last4: new readers break: old data may be a string, and they take an integer"]
    );
    let twice = json!({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 9}]});
    assert!(
        said(&json!({"type": "string"}), &twice, Backward)[0]
            .contains("more than one of the reader's oneOf")
    );
}

#[test]
fn references_are_followed_and_circles_end() {
    let tree = |of: &str| {
        json!({
            "$ref": "#/$defs/Node",
            "$defs": {"Node": object(json!({"value": {"type": of}, "children": {"items": {"$ref": "#/$defs/Node"}}}), &[])},
        })
    };
    assert_breaks(&tree("integer"), &tree("integer"), &[], &[]);
    assert_breaks(
        &tree("integer"),
        &tree("number"),
        &[],
        &[
            "value: old readers break: new data may be a number with a fraction, and they take an integer",
        ],
    );
    let moved = json!({
        "$ref": "#/definitions/T",
        "definitions": {"T": object(json!({"value": {"type": "integer"}, "children": {"items": {"$ref": "#"}}}), &[])},
    });
    assert_breaks(&tree("integer"), &moved, &[], &[]);
    let endless = json!({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}});
    assert_breaks(&endless, &json!({}), &[], &[]);

    let elsewhere = |name: &str| object(json!({"x": {"$ref": name}}), &[]);
    assert_breaks(&elsewhere("other.json"), &elsewhere("other.json"), &[], &[]);
    assert_eq!(
        said(&elsewhere("other.json"), &elsewhere("more.json"), Backward).len(),
        1
    );
    assert_eq!(
        said(&elsewhere("#/$defs/None"), &elsewhere("#/none"), Backward).len(),
        1
    );
    // Until draft 7 what is beside a reference means nothing.
    let beside = |dialect: &str| json!({"$schema": dialect, "properties": {"x": {"$ref": "#/$defs/S", "type": "integer"}}, "$defs": {"S": {"type": "string"}}});
    let old = object(json!({"x": {"type": "string"}}), &[]);
    assert_eq!(
        said(
            &old,
            &beside("http://json-schema.org/draft-07/schema#"),
            Backward
        ),
        Vec::<String>::new()
    );
    assert_eq!(
        said(
            &old,
            &beside("https://json-schema.org/draft/2020-12/schema"),
            Backward
        )
        .len(),
        1
    );
}

#[test]
fn what_cannot_be_compared_is_compatible_only_with_itself() {
    let with = |keyword: &str, value: Value| json!({"type": "object", keyword: value});
    for (keyword, one, other) in [
        ("not", json!({"type": "string"}), json!({"type": "number"})),
        (
            "propertyNames",
            json!({"maxLength": 1}),
            json!({"maxLength": 2}),
        ),
        (
            "dependentRequired",
            json!({"a": ["b"]}),
            json!({"a": ["c"]}),
        ),
        ("somethingNew", json!(1), json!(2)),
        ("type", json!("thing"), json!("thong")),
        ("minimum", json!("1"), json!("2")),
    ] {
        let (old, new) = (with(keyword, one), with(keyword, other));
        assert_breaks(&old, &old, &[], &[]);
        if keyword != "minimum" {
            let breaks = said(&old, &new, Backward);
            assert!(breaks[0].contains(keyword), "{breaks:?}");
        }
    }
    let if_then =
        |then: Value| json!({"if": {"required": ["a"]}, "then": then, "properties": {"a": true}});
    assert_eq!(
        said(
            &if_then(json!({"required": ["b"]})),
            &if_then(json!({"required": ["c"]})),
            Backward
        )
        .len(),
        1
    );
    let annotated = json!({"type": "string", "title": "T", "description": "D", "default": "", "x-own": 1, "$id": "urn:x"});
    assert_breaks(&annotated, &json!({"type": "string"}), &[], &[]);
    let many: Value = (0..40)
        .map(|_| json!({"anyOf": [{"minimum": 1}, {"maximum": 2}, {"type": "string"}]}))
        .collect();
    let huge = said(
        &json!({"allOf": many}),
        &json!({"allOf": [many, {"minLength": 1}]}),
        Backward,
    );
    assert_eq!(
        huge,
        ["the document: new readers break: old data has too many alternatives to be compared"]
    );
    let deep = |of: &str| (0..100).fold(json!({"type": of}), |inner, _| json!({"items": inner}));
    assert!(said(&deep("string"), &deep("number"), Backward)[0].contains("too large"));
}

#[test]
fn schemas_in_larger_documents_are_found_by_their_place() {
    let document = |of: &str| {
        json!({"components": {"schemas": {
            "A": {"schema": {"properties": {"b": {"$ref": "#/components/schemas/B/schema"}}}},
            "B": {"schema": {"type": of}},
        }}})
    };
    let (old, new) = (document("integer"), document("string"));
    let at = "/components/schemas/A/schema";
    let breaks = schema_breaks_at((&old, at), (&new, at), Backward);
    assert_eq!((breaks.len(), breaks[0].path.as_str()), (1, "b"));
    assert_eq!(
        schema_breaks_at((&old, at), (&new, "/nowhere"), Backward).len(),
        1
    );
}

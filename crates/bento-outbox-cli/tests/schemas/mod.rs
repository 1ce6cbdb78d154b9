//! `schema check`: files, folders and AsyncAPI documents.

use std::fs;

use serde_json::{Value, json};

use crate::place::{Place, Ran};

fn total(of: &str, required: bool) -> Value {
    let required: &[&str] = if required { &["total"] } else { &[] };
    json!({"type": "object", "properties": {"total": {"type": of}}, "required": required})
}

/// A place with these files.
fn place(files: &[(&str, &Value)]) -> Place {
    let place = Place::new();
    for (name, json) in files {
        let path = place.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, json.to_string()).unwrap();
    }
    place
}

fn check(place: &Place, arguments: &[&str]) -> Ran {
    place.run(&[&["schema", "check"], arguments].concat())
}

#[test]
fn two_files_are_compared_each_way() {
    let place = place(&[
        ("old.json", &total("integer", true)),
        ("new.json", &total("number", false)),
    ]);
    let ran = check(&place, &["old.json", "new.json"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (Some(0), "", "1 schema compared, backward: compatible\n")
    );
    let ran = check(&place, &["old.json", "new.json", "--mode", "full"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (
            Some(1),
            "new.json: total: old readers break: new data may be a number with a fraction, and they take an integer\n\
             new.json: total: old readers break: new data may lack it, and they require it\n",
            "1 schema compared, full: 2 breaks\n"
        )
    );
    let ran = check(&place, &["new.json", "old.json", "--json"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(1), ""));
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        report,
        json!({"mode": "backward", "compatible": false, "compared": 1, "retired": [], "breaks": [
            {"schema": "old.json", "path": "total", "breaks": "new_readers",
             "reason": "old data may be a number with a fraction, and they take an integer"},
            {"schema": "old.json", "path": "total", "breaks": "new_readers",
             "reason": "old data may lack it, and they require it"},
        ], "upcast": []})
    );
    let ran = check(
        &place,
        &["old.json", "old.json", "--mode", "full", "--json"],
    );
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.code, &report["compatible"]), (Some(0), &json!(true)));
}

#[test]
fn the_examples_schemas_refuse_a_breaking_fourth_version() {
    let committed = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../bento-outbox/examples/evolution/schemas"
    );
    let third = fs::read(format!("{committed}/order.placed.v3.schema.json")).unwrap();
    let mut fourth: Value = serde_json::from_slice(&third).unwrap();
    fourth["properties"]["total"] = json!({"type": "string"});
    let place = place(&[("schemas/order.placed.v4.schema.json", &fourth)]);
    for file in fs::read_dir(committed).unwrap() {
        let file = file.unwrap().path();
        fs::copy(
            &file,
            place.path().join("schemas").join(file.file_name().unwrap()),
        )
        .unwrap();
    }
    let ran = check(&place, &[committed, "schemas"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (
            Some(1),
            "order.placed.v4.schema.json: total: new readers break: old data may be an object, and they take a string\n",
            "4 schemas compared, backward: 1 break\n"
        )
    );
    // Where every reader has an upcaster, that is no news; where some other version has one, it is.
    let upcast = |version: &str| check(&place, &[committed, "schemas", "--upcast", version]);
    let ran = upcast("order.placed@3");
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (
            Some(0),
            "order.placed.v4.schema.json: total: new readers break: old data may be an object, and they take a string (upcast)\n",
            "4 schemas compared, backward: compatible, 1 break upcast\n"
        )
    );
    let ran = upcast("order.placed@2");
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("the flag is not needed"), "{ran:?}");
}

#[test]
fn the_first_schemas_break_nobody() {
    let place = place(&[
        ("schemas/placed.v1.schema.json", &total("integer", true)),
        ("new.json", &total("integer", true)),
    ]);
    fs::create_dir(place.path().join("empty")).unwrap();
    for old in ["missing", "empty"] {
        for (new, note) in [
            ("schemas", "NEW has 1 schema"),
            ("new.json", "NEW has 1 schema"),
        ] {
            let ran = check(&place, &[old, new]);
            assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
            assert!(ran.stderr.contains("nothing to compare with"), "{ran:?}");
            assert!(ran.stderr.contains(note), "{ran:?}");
        }
    }
    assert_eq!(check(&place, &["schemas", "missing"]).code, Some(2));
    assert_eq!(check(&place, &["schemas", "empty"]).code, Some(2));
}

#[test]
fn an_upcaster_helps_new_versions_and_no_old_readers() {
    let (integer, string) = (total("integer", true), total("string", true));
    let place = place(&[
        ("old/placed.v1.schema.json", &integer),
        ("changed/placed.v1.schema.json", &string),
        ("new/placed.v1.schema.json", &integer),
        ("new/placed.v2.schema.json", &string),
    ]);
    let ran = check(&place, &["old", "changed", "--upcast", "placed@1"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let ran = check(&place, &["old", "new", "--upcast", "placed@1"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let full = [
        "old", "new", "--upcast", "placed@1", "--mode", "full", "--json",
    ];
    let ran = check(&place, &full);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(ran.code, Some(1));
    assert_eq!(report["breaks"][0]["breaks"], "old_readers");
    assert_eq!(report["upcast"][0]["breaks"], "new_readers");
}

#[test]
fn a_version_that_lost_its_schema_is_said() {
    let integer = total("integer", true);
    let message = |payload: bool| {
        if payload {
            json!({"payload": integer})
        } else {
            json!({})
        }
    };
    let asyncapi = |second: bool| {
        json!({"asyncapi": "3.0.0", "channels": {"c": {"address": "placed", "messages": {
            "placed.v1": message(true), "placed.v2": message(second)}}}})
    };
    let place = place(&[
        ("old/placed.v1.schema.json", &integer),
        ("new/placed.v1.schema.json", &integer),
        ("new/asyncapi.json", &asyncapi(false)),
        ("alone.json", &asyncapi(false)),
        ("whole.json", &asyncapi(true)),
    ]);
    for pair in [["old", "new"], ["whole.json", "alone.json"]] {
        let ran = check(&place, &pair);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(
            ran.stderr.contains("placed.v2 has no schema in NEW"),
            "{ran:?}"
        );
    }
}

#[test]
fn in_folders_a_version_is_compared_with_itself_or_the_one_before_it() {
    let name = |version| format!("placed.v{version}.schema.json");
    let (integer, string) = (total("integer", true), total("string", true));
    let old = [("old", 1, &string), ("old", 2, &integer)];
    let new = [
        ("new", 2, &integer),
        ("new", 3, &integer),
        ("new", 4, &string),
    ];
    let files: Vec<(String, &Value)> = old
        .into_iter()
        .chain(new)
        .map(|(folder, version, schema)| (format!("{folder}/shop/{}", name(version)), schema))
        .collect();
    let files: Vec<(&str, &Value)> = files
        .iter()
        .map(|(name, schema)| (name.as_str(), *schema))
        .collect();
    let place = place(&files);
    fs::write(place.path().join("new/README.md"), "no schema").unwrap();
    fs::create_dir(place.path().join("new/.git")).unwrap();
    fs::write(place.path().join("new/.git/x.json"), "no JSON").unwrap();

    let ran = check(&place, &["old", "new"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (
            Some(1),
            "shop/placed.v4.schema.json: total: new readers break: old data may be an integer, and they take a string\n\
             shop/placed.v1.schema.json: the document: new readers break: old data may be of this version, which is not described any more\n",
            "3 schemas compared, backward: 2 breaks\n"
        )
    );
    let ran = check(&place, &["old", "old"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (Some(0), "2 schemas compared, backward: compatible\n")
    );
}

#[test]
fn a_version_that_is_retired_breaks_nobody() {
    let (integer, string) = (total("integer", true), total("string", true));
    let asyncapi = |versions: &[u32]| {
        let names = versions.iter().map(|version| format!("placed.v{version}"));
        let messages: serde_json::Map<String, Value> = names
            .map(|name| (name, json!({"payload": integer})))
            .collect();
        json!({"asyncapi": "3.0.0", "channels": {"c": {"address": "placed", "messages": messages}}})
    };
    let place = place(&[
        ("old/placed.v1.schema.json", &string),
        ("old/placed.v2.schema.json", &integer),
        ("old/replaced.v1.schema.json", &integer),
        ("old/asyncapi.json", &asyncapi(&[1, 2])),
        ("new/placed.v2.schema.json", &integer),
        ("new/replaced.v1.schema.json", &integer),
        ("new/asyncapi.json", &asyncapi(&[2])),
        ("later/placed.v3.schema.json", &string),
        ("later/replaced.v1.schema.json", &integer),
        ("old.json", &asyncapi(&[1, 2])),
        ("new.json", &asyncapi(&[2])),
        ("a.json", &integer),
    ]);
    let ran = check(&place, &["old", "new", "--mode", "full"]);
    assert_eq!(
        (ran.code, ran.stdout.lines().count()),
        (Some(1), 2),
        "{ran:?}"
    );
    for pair in [["old", "new"], ["old.json", "new.json"]] {
        let ran = check(
            &place,
            &[&pair[..], &["--mode", "full", "--retire", "placed@1"]].concat(),
        );
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
        assert!(
            ran.stderr.starts_with("placed@1 is gone on purpose\n"),
            "{ran:?}"
        );
    }
    // What no data is left of is nothing to be compared with either.
    let all = [
        "old", "later", "--retire", "placed@1", "--retire", "placed@2", "--json",
    ];
    let ran = check(&place, &all);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (ran.code, report),
        (
            Some(0),
            json!({"mode": "backward", "compatible": true, "compared": 1,
                   "retired": ["placed@1", "placed@2"], "breaks": [], "upcast": []})
        )
    );
    let ran = check(&place, &["old", "later", "--retire", "placed@1"]);
    assert_eq!(
        (ran.code, ran.stdout.lines().count()),
        (Some(1), 2),
        "{ran:?}"
    );

    let ran = check(&place, &["new", "new", "--retire", "placed@1"]);
    assert_eq!(ran.code, Some(0));
    assert!(ran.stderr.contains("the flag is not needed"), "{ran:?}");
    for (arguments, says) in [
        (
            ["old", "new", "--retire", "placed@2"],
            "NEW still describes that version, in placed.v2.schema.json",
        ),
        (
            ["a.json", "a.json", "--retire", "placed@1"],
            "for folders and AsyncAPI documents",
        ),
        (["old", "new", "--retire", "placed"], "TYPE@VERSION"),
        (["old", "new", "--retire", "placed@x"], "no version"),
    ] {
        let ran = check(&place, &arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
        assert!(ran.stderr.contains(says), "{ran:?}");
    }
}

#[test]
fn help_shows_no_settings_that_are_not_used() {
    let place = Place::new();
    for help in [
        &["schema", "check", "--help"][..],
        &["schema", "--help"],
        &["completions", "--help"],
    ] {
        let ran = place.run(help);
        assert_eq!(ran.code, Some(0));
        assert!(
            !ran.stdout.contains("-url") && !ran.stdout.contains("--config"),
            "{ran:?}"
        );
    }
    // They are taken all the same, as by every command.
    let ran = place.run(&[
        "--config",
        "none.toml",
        "schema",
        "check",
        "--database-url",
        "x:y",
        "a",
        "b",
    ]);
    assert!(ran.stderr.contains("cannot read b"), "{ran:?}");
}

#[test]
fn asyncapi_documents_are_compared_message_by_message_and_by_their_topics() {
    let document = |topic: &str, of: &str, bare: bool| {
        let mut document = json!({
            "asyncapi": "3.0.0",
            "info": {"title": "Shop", "version": "1"},
            "channels": {"orders": {"address": topic, "messages": {
                "placed": {"$ref": "#/components/messages/placed.v1"},
                "told": {"payload": {"type": of}},
            }}},
            "components": {
                "messages": {"placed.v1": {"payload": {"$ref": "#/components/schemas/placed"}}},
                "schemas": {
                    "placed": {
                        "schemaFormat": "application/schema+json;version=draft-2020-12",
                        "schema": {"properties": {"by": {"$ref": "#/components/schemas/by"}}},
                    },
                    "by": {"type": of},
                },
            },
        });
        if bare {
            document["components"]["messages"]["placed.v1"] = json!({});
        }
        document
    };
    let place = place(&[
        ("old.json", &document("shop.orders", "integer", false)),
        ("new.json", &document("shop.new", "string", false)),
        ("bare.json", &document("shop.orders", "integer", true)),
        ("both/asyncapi.json", &document("shop.new", "string", false)),
        ("both/placed.v1.schema.json", &json!({})),
        (
            "was/asyncapi.json",
            &document("shop.orders", "integer", false),
        ),
        ("was/placed.v1.schema.json", &json!({})),
        ("two.json", &json!({"asyncapi": "2.6.0"})),
        ("schema.json", &json!({})),
    ]);
    let ran = check(&place, &["old.json", "new.json", "--mode", "full"]);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(ran.code, Some(1));
    assert_eq!(
        lines,
        [
            "placed.v1: by: new readers break: old data may be an integer, and they take a string",
            "placed.v1: by: old readers break: new data may be a string, and they take an integer",
            "told: the document: new readers break: old data may be an integer, and they take a string",
            "told: the document: old readers break: new data may be a string, and they take an integer",
            "placed.v1: the document: old readers break: new data is not on the topic shop.orders any more, where they read",
            "told: the document: old readers break: new data is not on the topic shop.orders any more, where they read",
        ]
    );
    let ran = check(&place, &["old.json", "bare.json"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (
            Some(0),
            "1 schema compared, backward: compatible\nplaced.v1 has no schema in NEW and is not compared\n"
        )
    );
    // Beside schemas only the topics count: the schemas say the rest.
    let ran = check(&place, &["was", "both", "--mode", "full"]);
    assert_eq!(ran.stdout.lines().count(), 2, "{ran:?}");
    assert!(
        ran.stdout
            .lines()
            .all(|line| line.starts_with("asyncapi.json: ") && line.contains("topic"))
    );
    for (pair, says) in [
        (["old.json", "two.json"], "only 3 is known"),
        (
            ["old.json", "schema.json"],
            "two JSON Schemas, two AsyncAPI documents or two folders",
        ),
        (["was", "old.json"], "two folders"),
    ] {
        let ran = check(&place, &pair);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.stderr.contains(says), "{ran:?}");
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let place = place(&[("old.json", &json!({})), ("list.json", &json!([1]))]);
    fs::write(place.path().join("broken.json"), "{\n\"a\": }").unwrap();
    fs::create_dir(place.path().join("empty")).unwrap();
    let ran_of = |new: &str| check(&place, &["old.json", new]);
    for (new, says) in [
        (
            "broken.json",
            "broken.json: is not JSON, at line 2 column 6",
        ),
        ("list.json", "list.json: is no JSON Schema"),
        ("missing.json", "cannot read missing.json"),
        ("empty", "empty has no .json files"),
    ] {
        let ran = ran_of(new);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
        assert!(ran.stderr.contains(says), "{ran:?}");
    }
    assert_eq!(check(&place, &["old.json"]).code, Some(2));
    assert_eq!(
        check(&place, &["old.json", "old.json", "--mode", "sideways"]).code,
        Some(2)
    );
}

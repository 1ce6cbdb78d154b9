//! The OpenAPI document, as it is published.

use std::collections::HashSet;

use bento_outbox_dashboard::OPENAPI;
use serde_json::Value;

/// The document.
pub(crate) fn document() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

/// Each path with each method that it has.
pub(crate) fn operations() -> HashSet<(String, String)> {
    let document = document();
    let paths = document["paths"].as_object().unwrap();
    let of_path = |(path, methods): (&String, &Value)| {
        let methods: Vec<String> = methods.as_object().unwrap().keys().cloned().collect();
        let path = path.clone();
        methods
            .into_iter()
            .map(move |method| (path.clone(), method))
    };
    paths.iter().flat_map(of_path).collect()
}

/// The paths that want the token.
pub(crate) fn behind_the_door() -> Vec<String> {
    let document = document();
    let paths = document["paths"].as_object().unwrap();
    let open = |methods: &Value| {
        let mut methods = methods.as_object().unwrap().values();
        methods.all(|operation| operation["security"] == Value::Array(Vec::new()))
    };
    let closed = paths.iter().filter(|(_, methods)| !open(methods));
    closed.map(|(path, _)| path.clone()).collect()
}

//! What an operator looks at: `why`, `events`, `status --watch`, `tail`, and `replay`.

mod events;
mod replay;
mod tail;
mod why;

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::place::{Place, Ran, eventually, into_closed_pipe, signal};

/// A line of `append` for the aggregate `order ID`.
fn event(id: &str, number: usize) -> String {
    format!(
        "{{\"type\":\"order.placed\",\"aggregate_type\":\"order\",\"aggregate_id\":\"{id}\",\"payload\":{{ \"n\" : {number} }}}}\n"
    )
}

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"))
}

/// The program in the background, with what it prints in a file.
struct Watched {
    child: Child,
    out: PathBuf,
}

impl Watched {
    fn start(place: &Place, arguments: &[&str]) -> Self {
        let out = place.path().join("out");
        let child = place
            .command(arguments)
            .stdout(File::create(&out).unwrap())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, out }
    }

    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.out).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(Into::into).collect()
    }

    /// Gives it a signal and waits for its end.
    fn told(self, name: &str) -> Ran {
        signal(&self.child, name);
        let ran = Ran::of(self.child.wait_with_output().unwrap());
        Ran {
            stdout: fs::read_to_string(self.out).unwrap(),
            ..ran
        }
    }
}

#[test]
fn the_status_is_shown_again_and_again() {
    let place = Place::migrated();
    place.append(event("7", 1)).succeeded();
    let watched = Watched::start(&place, &["status", "--watch", "1", "--json"]);
    eventually(|| !watched.lines().is_empty());
    place.append(event("7", 2)).succeeded();
    eventually(|| {
        let last = watched.lines().pop().unwrap();
        json(&last)["total"]["new"] == 2
    });
    let ran = watched.told("-INT").succeeded();
    assert_eq!(ran.stderr, "", "{ran:?}");
    assert!(
        ran.stdout
            .lines()
            .all(|line| json(line)["tenants"].is_array())
    );

    let watched = Watched::start(&place, &["status", "--watch"]);
    eventually(|| watched.lines().len() >= 7);
    let ran = watched.told("-TERM").succeeded();
    let blocks: Vec<&str> = ran.stdout.split("\n\n").collect();
    assert!(blocks.len() >= 2, "{ran:?}");
    assert!(
        blocks.iter().all(|block| block.starts_with("tenant\tnew")),
        "{ran:?}"
    );
    assert!(!ran.stdout.contains('\u{1b}'), "no terminal is redrawn");

    for wrong in [
        vec!["status", "--watch", "0"],
        vec!["status", "--watch", "soon"],
        vec!["status", "--watch", "--check"],
    ] {
        assert_eq!(place.run(&wrong).code, Some(2), "{wrong:?}");
    }
    let ran = into_closed_pipe(&place, &["status", "--watch", "1"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
}

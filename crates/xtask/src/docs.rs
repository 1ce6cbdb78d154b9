//! `cargo x docs`: the API pages and the book.

use crate::workspace::{Workspace, find_program};

/// Builds both.
pub(crate) fn run(workspace: &mut Workspace) -> Result<(), String> {
    api(workspace)?;
    book(workspace)
}

/// The API pages, a broken link being an error.
pub(crate) fn api(workspace: &mut Workspace) -> Result<(), String> {
    let mut command = workspace.cargo("doc --workspace --no-deps --all-features");
    workspace.run(command.env("RUSTDOCFLAGS", "-D warnings"))
}

fn book(workspace: &mut Workspace) -> Result<(), String> {
    if find_program("mdbook", &[]).is_none() {
        eprintln!(
            "mdbook: not installed, so the book is not built here; `cargo install mdbook --locked` does it"
        );
        return Ok(());
    }
    workspace.run(workspace.command("mdbook").args(["build", "docs"]))
}

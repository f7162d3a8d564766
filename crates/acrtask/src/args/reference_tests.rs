//! The page `docs/cli.md`: every command and flag, generated from the parsers.

use std::path::Path;

use clap_markdown::{MarkdownOptions, help_markdown_custom};

use super::Cli;

/// Compares the page with the flags of the program. `INSTA_UPDATE=always` writes it.
#[test]
fn reference_page_matches_the_flags() {
    let options = MarkdownOptions::new()
        .title("Command line".to_owned())
        .show_footer(false)
        .show_aliases(true);
    let expected = help_markdown_custom::<Cli>(&options);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    if std::env::var("INSTA_UPDATE").is_ok_and(|mode| mode == "always") {
        std::fs::write(&path, &expected).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        page == expected,
        "docs/cli.md is not up to date; run this test with INSTA_UPDATE=always"
    );
}

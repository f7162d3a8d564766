//! Renderings of templates, as tables in `cases/*.txt`. The expected values come from Go.

use acrtask_template::{Limits, Template};

/// Data of every row in the tables.
fn data() -> serde_json::Value {
    serde_json::json!({
        "n": 5,
        "s": "abc",
        "f": 1.5,
        "l": [1, "a", null],
        "m": {"k": "v", "z": null},
    })
}

fn limits() -> Limits {
    Limits {
        now: Some("2026-01-02T03:04:05Z".parse().expect("a timestamp")),
        ..Limits::default()
    }
}

fn render(template: &str) -> Result<String, String> {
    Template::parse("t", template)
        .and_then(|template| template.render(&data(), &limits()))
        .map_err(|error| error.message)
}

/// Returns the template and the expected result of a row. `None` for a comment.
fn parse_row(line: &str) -> Option<(String, Result<String, String>)> {
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let text = |text: &str| {
        let text = text.strip_prefix(' ').unwrap_or(text);
        text.strip_suffix('\u{2403}')
            .unwrap_or(text)
            .replace('\u{23ce}', "\n")
    };
    if let Some((template, expected)) = line.split_once(" \u{21d2}") {
        return Some((text(template), Ok(text(expected))));
    }
    let (template, expected) = line.split_once(" \u{21cf}").expect("a row has an arrow");
    Some((text(template), Err(text(expected))))
}

/// Compares every row of a table, and returns the number of rows.
fn check_table(name: &str) -> usize {
    let path = format!("{}/tests/cases/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(&path).expect("the table is there");
    let mut rows = 0;
    let mut differences = Vec::new();
    for (template, expected) in table.lines().filter_map(parse_row) {
        rows += 1;
        let found = render(&template);
        if found != expected {
            differences.push(format!(
                "{template}\n  expected {expected:?}\n  found    {found:?}"
            ));
        }
    }
    assert!(
        differences.is_empty(),
        "{name}: {} of {rows} rows differ\n{}",
        differences.len(),
        differences.join("\n")
    );
    rows
}

/// Defines a test for each table, so that a failure names it.
macro_rules! tables {
    ($($name:ident at_least $rows:literal;)*) => {
        $(#[test]
        fn $name() {
            // A truncated table would pass.
            assert!(check_table(stringify!($name)) >= $rows);
        })*

        #[test]
        fn every_table_is_checked() {
            let folder = format!("{}/tests/cases", env!("CARGO_MANIFEST_DIR"));
            let mut present: Vec<String> = std::fs::read_dir(folder)
                .expect("the tables are there")
                .map(|entry| entry.expect("a file").file_name().to_string_lossy().replace(".txt", ""))
                .collect();
            present.sort();
            assert_eq!(present, [$(stringify!($name)),*]);
        }
    };
}

tables! {
    dates at_least 600;
    defaults_and_types at_least 60;
    dicts at_least 50;
    differs at_least 20;
    encoding at_least 40;
    language at_least 160;
    lists at_least 45;
    numbers at_least 70;
    paths_and_urls at_least 700;
    printf at_least 400;
    regex at_least 100;
    strings at_least 90;
    versions at_least 300;
}

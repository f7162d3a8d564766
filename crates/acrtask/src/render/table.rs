//! Tables for people. Pure.

use std::fmt::Write as _;

use super::{style::Style, text};

/// Rows below a heading that names the whole, indented; a table without rows is left out.
pub(crate) fn titled(heading: &str, rows: Vec<Vec<String>>, style: Style, out: &mut String) {
    if rows.iter().all(Vec::is_empty) {
        return;
    }
    let _ = writeln!(out, "\n{}", style.bold(heading));
    for line in lines(&rows, style) {
        let _ = writeln!(out, "  {line}");
    }
}

/// Rows below a line with the names of the columns; without rows, `nothing`.
pub(crate) fn list(
    columns: &[&str],
    rows: Vec<Vec<String>>,
    nothing: &str,
    style: Style,
) -> String {
    if rows.is_empty() {
        return format!("{}\n", style.dim(nothing));
    }
    let mut all = vec![columns.iter().map(|name| style.bold(name)).collect()];
    all.extend(rows);
    lines(&all, style).map(|line| line + "\n").collect()
}

/// Names and what they stand for; what is empty is left out.
pub(crate) fn facts(pairs: &[(&str, String)], style: Style) -> String {
    let rows: Vec<Vec<String>> = pairs
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| vec![style.dim(name), value.clone()])
        .collect();
    lines(&rows, style).map(|line| line + "\n").collect()
}

/// Columns that line up. A cell is one line, whatever a server put into it.
fn lines(rows: &[Vec<String>], style: Style) -> impl Iterator<Item = String> + use<> {
    let clean = |cell: &String| match style.is_colored() {
        true => text::colored(cell).into_owned(),
        false => text::plain(cell).into_owned(),
    };
    let clean_row = |row: &Vec<String>| row.iter().map(clean).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(clean_row).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| {
            rows.iter()
                .filter_map(|row| row.get(c))
                .map(|t| text::width(t))
                .max()
                .unwrap_or(0)
        })
        .collect();
    rows.into_iter().map(move |row| {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| text::pad(cell, *width))
            .collect();
        cells.join("  ").trim_end().to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec!["a".into(), "long value".into()],
            vec!["longer".into(), "b".into()],
        ];
        assert_eq!(
            list(&["NAME", "WHAT"], rows, "none", Style::PLAIN),
            "NAME    WHAT\na       long value\nlonger  b\n"
        );
        assert_eq!(list(&["NAME"], Vec::new(), "none", Style::PLAIN), "none\n");
        let evil = vec![vec!["a\x1b[2J\u{202e}\nb".into(), "\x1b[31mx".into()]];
        assert_eq!(
            list(&["A", "B"], evil, "", Style::PLAIN),
            "A     B\na�␊b  x\n"
        );
        assert_eq!(
            facts(&[("a", "1".into()), ("b", String::new())], Style::PLAIN),
            "a  1\n"
        );
    }
}

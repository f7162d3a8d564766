//! Tables for terminal output. Pure.

use std::fmt::Write as _;

use super::{style::Style, text};

/// Writes a heading and indented rows; writes nothing without rows.
pub(crate) fn write_section(heading: &str, rows: Vec<Vec<String>>, style: Style, out: &mut String) {
    if rows.iter().all(Vec::is_empty) {
        return;
    }
    let _ = writeln!(out, "\n{}", style.bold(heading));
    for line in align_columns(&rows, style) {
        let _ = writeln!(out, "  {line}");
    }
}

/// Renders rows below the names of the columns, or `if_empty` without rows.
pub(crate) fn render_list(
    columns: &[&str],
    rows: Vec<Vec<String>>,
    if_empty: &str,
    style: Style,
) -> String {
    if rows.is_empty() {
        return format!("{}\n", style.dim(if_empty));
    }
    let mut all = vec![columns.iter().map(|name| style.bold(name)).collect()];
    all.extend(rows);
    align_columns(&all, style).map(|line| line + "\n").collect()
}

/// Renders names with their values, without empty values.
pub(crate) fn key_values(pairs: &[(&str, String)], style: Style) -> String {
    let rows: Vec<Vec<String>> = pairs
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| vec![style.dim(name), value.clone()])
        .collect();
    align_columns(&rows, style)
        .map(|line| line + "\n")
        .collect()
}

/// Aligns columns. Each cell becomes one line, regardless of its content.
fn align_columns(rows: &[Vec<String>], style: Style) -> impl Iterator<Item = String> + use<> {
    let clean = |cell: &String| match style.is_colored() {
        true => text::colored_line(cell).into_owned(),
        false => text::plain_line(cell).into_owned(),
    };
    let clean_row = |row: &Vec<String>| row.iter().map(clean).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(clean_row).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| {
            rows.iter()
                .filter_map(|row| row.get(c))
                .map(|t| text::display_width(t))
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
    fn columns_are_aligned_and_cells_sanitized() {
        let rows = vec![
            vec!["a".into(), "long value".into()],
            vec!["longer".into(), "b".into()],
        ];
        assert_eq!(
            render_list(&["NAME", "WHAT"], rows, "none", Style::PLAIN),
            "NAME    WHAT\na       long value\nlonger  b\n"
        );
        assert_eq!(
            render_list(&["NAME"], Vec::new(), "none", Style::PLAIN),
            "none\n"
        );
        let evil = vec![vec!["a\x1b[2J\u{202e}\nb".into(), "\x1b[31mx".into()]];
        assert_eq!(
            render_list(&["A", "B"], evil, "", Style::PLAIN),
            "A     B\na�␊b  x\n"
        );
        assert_eq!(
            key_values(&[("a", "1".into()), ("b", String::new())], Style::PLAIN),
            "a  1\n"
        );
    }
}

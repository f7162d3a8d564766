//! Aliases: `$Name` in the text of a task file from `v1.1.0` on, and image names as the first word
//! of a cmd.
//!
//! This module works on lines and characters, before YAML is parsed. It cuts the `alias:` block out
//! and searches the rest, inside quotes too. A [`Patched`] records where each byte came from.

use std::{collections::BTreeMap, ops::Range};

use acrtask_template::Sources;

use crate::{
    code::Code,
    diagnostic::Diagnostic,
    origin::Patched,
    read::{Fields, Report, Text},
    resolve::MAX_FILE,
    run_variables::{BUILTIN_IMAGES, Lookup, RunVariables},
    yaml::{self, Kind},
};

/// Names of the predefined aliases, each of a run variable.
pub(crate) const PREDEFINED: [&str; 9] = [
    "ID",
    "SharedVolume",
    "Registry",
    "RegistryName",
    "Date",
    "OS",
    "Architecture",
    "Commit",
    "Branch",
];

/// The aliases of a task file.
#[derive(Debug)]
pub(crate) struct Aliases {
    directive: char,
    values: BTreeMap<String, String>,
    /// The untrusted ranges of the values, by alias name.
    pub(crate) untrusted: BTreeMap<String, Vec<(Range<usize>, Sources)>>,
}

impl Aliases {
    /// Returns the aliases of a file without an `alias:` block.
    pub(crate) fn predefined(variables: &RunVariables) -> Self {
        let builtin = BUILTIN_IMAGES
            .iter()
            .map(|(name, image)| ((*name).to_owned(), (*image).to_owned()));
        let images = variables
            .images
            .iter()
            .map(|(name, image)| (name.clone(), image.clone()));
        let run_variables = PREDEFINED
            .iter()
            .map(|name| ((*name).to_owned(), format!("{{{{.Run.{name}}}}}")));
        Self {
            directive: '$',
            // A later entry overwrites an earlier one of the same name.
            values: builtin.chain(images).chain(run_variables).collect(),
            untrusted: BTreeMap::new(),
        }
    }

    /// Returns the image that replaces the word `name` at the start of a cmd. `None` if it is not
    /// an alias, or if it is the alias of a run variable.
    pub(crate) fn image(&self, name: &str) -> Option<&str> {
        if PREDEFINED.contains(&name) {
            return None;
        }
        self.values.get(name).map(String::as_str)
    }
}

/// A task file split into its `alias:` block and the rest, both without comment lines.
pub(crate) struct SplitFile {
    pub(crate) block: Patched,
    pub(crate) rest: Patched,
}

/// Cuts the `alias:` block out of `text`: its lines up to the next top-level key.
pub(crate) fn split_alias_block(text: &str) -> SplitFile {
    let mut separated = SplitFile {
        block: Patched::default(),
        rest: Patched::default(),
    };
    let mut inside = false;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let span = start..start + line.len();
        start = span.end;
        let bare = line.strip_suffix('\n').unwrap_or(line);
        let bare = bare.strip_suffix('\r').unwrap_or(bare);
        if bare.trim_start().starts_with('#') {
            continue;
        }
        let is_alias = bare
            .strip_prefix("alias")
            .is_some_and(|rest| rest.trim_start().starts_with(':'));
        let is_key =
            bare.contains(':') && !bare.starts_with(|c: char| c.is_whitespace() || c == ':');
        if is_alias && !inside {
            inside = true;
        } else if is_key && inside {
            inside = false;
        }
        let into = if inside {
            &mut separated.block
        } else {
            &mut separated.rest
        };
        into.copy(text, span.start..span.start + bare.len());
        if line.ends_with('\n') {
            into.copy(text, span.end - 1..span.end);
        } else {
            into.replace(span.end..span.end, "\n");
        }
    }
    separated
}

/// Reads the rendered `alias:` block and the sources that its `src` lists.
pub(crate) fn read_block(
    block: &str,
    variables: &RunVariables,
    lookup: &dyn Lookup,
    report: &mut Report<'_>,
) -> Aliases {
    let mut aliases = Aliases {
        directive: '$',
        values: BTreeMap::new(),
        untrusted: BTreeMap::new(),
    };
    match yaml::parse(block) {
        Err(diagnostic) => report.push(diagnostic),
        Ok(document) => {
            if let Some(root) = &document.root {
                let example = "alias:\n  values:\n    name: value";
                if let Some(mut top) = Fields::open(root, "the alias block", example, block, report)
                    && let Some(node) = top.take_node("alias")
                    && let Some(fields) = top.open_inner(node, "`alias`", example)
                {
                    read_fields(fields, lookup, &mut aliases);
                }
            }
        }
    }
    for (name, value) in Aliases::predefined(variables).values {
        aliases.values.entry(name).or_insert(value);
    }
    aliases
}

fn read_fields(mut fields: Fields<'_, '_, '_>, lookup: &dyn Lookup, aliases: &mut Aliases) {
    if let Some(directive) = fields.take_text("directive") {
        let mut chars = directive.value.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) if !c.is_ascii_alphanumeric() => aliases.directive = c,
            _ => fields.report(
                Diagnostic::error(
                    Code::AliasDirective,
                    format!(
                        "`directive` is one character that is not a letter or digit, not `{}`",
                        directive.value
                    ),
                )
                .at(directive.span, "one character")
                .help("write for example `directive: '%'`"),
            ),
        }
    }
    if let Some(node) = fields.take_node("values")
        && let Some(values) = fields.open_inner(node, "`values`", "values:\n  name: value")
    {
        read_values(values, aliases);
    }
    let sources = fields.take_texts("src");
    // A later source takes precedence over an earlier one. Values of the block take precedence over
    // both.
    for source in sources.iter().rev() {
        match load_source(&source.value, lookup) {
            Ok(values) => {
                for (name, value) in values {
                    aliases.values.entry(name).or_insert(value);
                }
            }
            Err(reason) => fields.report(
                Diagnostic::error(
                    Code::AliasSource,
                    format!("the aliases of `{}` cannot be read: {reason}", source.value),
                )
                .at(source.span.clone(), "named here")
                .help("name a file or an http(s) URL that contains lines like `name: value`"),
            ),
        }
    }
    fields.finish("`alias`", |_| None);
}

fn read_values(mut values: Fields<'_, '_, '_>, aliases: &mut Aliases) {
    for (key, value) in values.pairs() {
        let Some(name) = key.scalar() else {
            continue;
        };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
            let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
            values.report(
                Diagnostic::error(
                    Code::AliasName,
                    format!("the alias `{name}` is not made of letters and digits alone"),
                )
                .at(key.span.clone(), "A-Z, a-z and 0-9 only")
                .help(format!(
                    "write `{}`",
                    if plain.is_empty() { "name" } else { &plain }
                )),
            );
            continue;
        }
        if let Some(Text { value, .. }) = values.read_text(value, name) {
            aliases.values.insert(name.to_owned(), value);
        }
    }
}

/// Reads a map of names to texts from a file or URL.
fn load_source(location: &str, lookup: &dyn Lookup) -> Result<Vec<(String, String)>, String> {
    let text = lookup.alias_source(location)?;
    let document = yaml::parse(&text).map_err(|d| {
        let line = crate::diagnostic::Position::of(&text, d.start()).line;
        format!("line {line}: {}", d.message)
    })?;
    let Some(root) = document.root else {
        return Ok(Vec::new());
    };
    let Kind::Map(pairs) = &root.kind else {
        return Err(format!(
            "it contains {}, not a map of names and values",
            root.describe()
        ));
    };
    pairs
        .iter()
        .map(|(key, value)| match (key.scalar(), value.scalar()) {
            (Some(name), Some(_))
                if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric()) =>
            {
                Err(format!(
                    "the alias `{name}` is not made of letters and digits alone"
                ))
            }
            (Some(name), Some(value)) => Ok((name.to_owned(), value.to_owned())),
            (name, _) => Err(format!("`{}` is not text", name.unwrap_or("a key"))),
        })
        .collect()
}

/// Replaces each alias in `text`. A doubled directive becomes a single one. Unknown names stay
/// unchanged.
///
/// # Errors
///
/// Returns a diagnostic if the result would be larger than [`MAX_FILE`].
pub(crate) fn replace_aliases(text: &str, aliases: &Aliases) -> Result<Patched, Diagnostic> {
    let mut out = Patched::default();
    let mut copied = 0;
    let mut rest = text.char_indices().peekable();
    while let Some((start, c)) = rest.next() {
        if c != aliases.directive {
            continue;
        }
        if let Some((_, next)) = rest.peek()
            && *next == aliases.directive
        {
            rest.next();
            out.copy(text, copied..start + c.len_utf8());
            copied = start + 2 * c.len_utf8();
            continue;
        }
        let name_start = start + c.len_utf8();
        let mut end = name_start;
        while let Some((at, _)) = rest.next_if(|(_, c)| c.is_ascii_alphanumeric()) {
            end = at + 1;
        }
        let span: Range<usize> = start..end;
        if let Some(value) = aliases.values.get(&text[name_start..end]) {
            out.copy(text, copied..start);
            let out_start = out.text.len();
            out.replace(span.clone(), value);
            let untrusted = aliases.untrusted.get(&text[name_start..end]);
            for (range, sources) in untrusted.into_iter().flatten() {
                let range = out_start + range.start..out_start + range.end;
                out.untrusted.push((range, *sources));
            }
            copied = end;
            if out.text.len() > MAX_FILE {
                return Err(Diagnostic::error(
                    Code::TooLarge,
                    "the file is too large once its aliases are replaced",
                )
                .at(span, "up to here")
                .help(format!("{} KiB are allowed", MAX_FILE >> 10)));
            }
        } else if let Some((_, next)) = rest.peek()
            && *next == aliases.directive
        {
            // The reference executor consumes a directive after an unknown name, so it starts no
            // alias.
            rest.next();
        }
    }
    out.copy(text, copied..text.len());
    Ok(out)
}

/// Replaces the first word of a cmd line by its image if the word is an alias. Also returns the
/// range of that word in `line`.
pub(crate) fn expand_image(line: &str, aliases: &Aliases) -> Option<(String, Range<usize>)> {
    let trimmed = line.trim();
    let word = trimmed.split(' ').next().unwrap_or_default();
    let image = aliases.image(word)?;
    let start = line.len() - line.trim_start().len();
    Some((
        format!("{image}{}", &trimmed[word.len()..]),
        start..start + word.len(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aliases(directive: char) -> Aliases {
        Aliases {
            directive,
            values: [
                ("A", "1"),
                ("Registry", "{{.Run.Registry}}"),
                ("bash", "img:1"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
            untrusted: BTreeMap::new(),
        }
    }

    #[test]
    fn aliases_are_replaced_as_by_the_reference_executor() {
        for (text, expected) in [
            ("x $A y", "x 1 y"),
            ("$A$A", "11"),
            ("$$A", "$A"),
            ("$$$A", "$1"),
            ("$B $A", "$B 1"),
            ("$B$A", "$B$A"),
            ("'$A'", "'1'"),
            ("$Ab", "$Ab"),
            ("$A_b", "1_b"),
            ("$", "$"),
            ("$ä$A", "$ä1"),
            ("${A}", "${A}"),
            ("$Registry/x", "{{.Run.Registry}}/x"),
            ("a $A", "a 1"),
        ] {
            assert_eq!(
                replace_aliases(text, &aliases('$')).unwrap().text,
                expected,
                "{text}"
            );
        }
        assert_eq!(
            replace_aliases("§A $A §§", &aliases('§')).unwrap().text,
            "1 $A §"
        );
    }

    #[test]
    fn alias_block_is_split_from_the_rest() {
        let text = "version: v1.1.0\nalias:\n  # gone\n  values:\n    a: b\n\nsteps:\r\n  - cmd: x\n#c\n  - cmd: y";
        let separated = split_alias_block(text);
        assert_eq!(separated.block.text, "alias:\n  values:\n    a: b\n\n");
        assert_eq!(
            separated.rest.text,
            "version: v1.1.0\nsteps:\n  - cmd: x\n  - cmd: y\n"
        );
    }

    #[test]
    fn images_need_no_directive() {
        let aliases = aliases('$');
        for (line, expected) in [
            ("bash echo", Some("img:1 echo")),
            ("  bash  echo \n", Some("img:1  echo")),
            ("bash\n-c x", None),
            ("Registry x", None),
            ("x bash", None),
        ] {
            let image = expand_image(line, &aliases).map(|(line, _)| line);
            assert_eq!(image.as_deref(), expected, "{line}");
        }
    }
}

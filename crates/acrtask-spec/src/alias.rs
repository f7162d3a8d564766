//! Aliases: `$Name` in the text of a task file from `v1.1.0` on, and image names for the first word of a
//! cmd.
//!
//! Everything here works on lines and characters, before YAML: the `alias:` block is cut out, and the
//! rest is searched, inside quotes too. What a place was before is kept in a [`Patched`].

use std::{collections::BTreeMap, ops::Range};

use acrtask_template::Sources;

use crate::{
    diagnostic::Diagnostic,
    facts::{BUILTIN_IMAGES, Lookup, RunFacts},
    origin::Patched,
    read::{Fields, Report, Text},
    resolve::MAX_FILE,
    yaml::{self, Kind},
};

/// Names that stand for a fact of the run.
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
    /// The untrusted ranges of the values, by the name of the alias.
    pub(crate) untrusted: BTreeMap<String, Vec<(Range<usize>, Sources)>>,
}

impl Aliases {
    /// Those that a file has without an `alias:` block.
    pub(crate) fn predefined(facts: &RunFacts) -> Self {
        let builtin = BUILTIN_IMAGES
            .iter()
            .map(|(name, image)| ((*name).to_owned(), (*image).to_owned()));
        let images = facts
            .images
            .iter()
            .map(|(name, image)| (name.clone(), image.clone()));
        let run_facts = PREDEFINED
            .iter()
            .map(|name| ((*name).to_owned(), format!("{{{{.Run.{name}}}}}")));
        Self {
            directive: '$',
            // Of two with one name the later one is kept.
            values: builtin.chain(images).chain(run_facts).collect(),
            untrusted: BTreeMap::new(),
        }
    }

    /// The image that the bare word `name` stands for at the beginning of a cmd.
    pub(crate) fn image(&self, name: &str) -> Option<&str> {
        if PREDEFINED.contains(&name) {
            return None;
        }
        self.values.get(name).map(String::as_str)
    }
}

/// A task file taken apart: the `alias:` block and the rest, both without their comment lines.
pub(crate) struct Separated {
    pub(crate) block: Patched,
    pub(crate) rest: Patched,
}

/// Cuts the `alias:` block out of `text`: its lines up to the next top-level key.
pub(crate) fn separate(text: &str) -> Separated {
    let mut separated = Separated {
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

/// Reads the rendered `alias:` block and what it names in `src`.
pub(crate) fn read(
    block: &str,
    facts: &RunFacts,
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
                    && let Some(node) = top.node("alias")
                    && let Some(fields) = top.inner(node, "`alias`", example)
                {
                    read_fields(fields, lookup, &mut aliases);
                }
            }
        }
    }
    for (name, value) in Aliases::predefined(facts).values {
        aliases.values.entry(name).or_insert(value);
    }
    aliases
}

fn read_fields(mut fields: Fields<'_, '_, '_>, lookup: &dyn Lookup, aliases: &mut Aliases) {
    if let Some(directive) = fields.text("directive") {
        let mut chars = directive.value.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) if !c.is_ascii_alphanumeric() => aliases.directive = c,
            _ => fields.report(
                Diagnostic::error(
                    "alias-directive",
                    format!(
                        "`directive` takes one character that is no letter or digit, not `{}`",
                        directive.value
                    ),
                )
                .at(directive.span, "one character")
                .help("write for example `directive: '%'`"),
            ),
        }
    }
    if let Some(node) = fields.node("values")
        && let Some(values) = fields.inner(node, "`values`", "values:\n  name: value")
    {
        read_values(values, aliases);
    }
    let sources = fields.texts("src");
    // A later source wins over an earlier one; what is set already wins over both.
    for source in sources.iter().rev() {
        match load(&source.value, lookup) {
            Ok(values) => {
                for (name, value) in values {
                    aliases.values.entry(name).or_insert(value);
                }
            }
            Err(reason) => fields.report(
                Diagnostic::error(
                    "alias-source",
                    format!("the aliases of `{}` cannot be read: {reason}", source.value),
                )
                .at(source.span.clone(), "named here")
                .help("name a file or an http(s) URL that holds lines like `name: value`"),
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
                    "alias-name",
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
        if let Some(Text { value, .. }) = values.text_of(value, name) {
            aliases.values.insert(name.to_owned(), value);
        }
    }
}

/// Reads a map of names to texts from outside.
fn load(location: &str, lookup: &dyn Lookup) -> Result<Vec<(String, String)>, String> {
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
            "it holds {}, not a map of names and values",
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

/// Replaces each alias in `text`. A doubled directive stands for itself, and an unknown name stays.
///
/// # Errors
///
/// Where the result would be too large.
pub(crate) fn replace(text: &str, aliases: &Aliases) -> Result<Patched, Diagnostic> {
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
                    "too-large",
                    "the file is too large once its aliases are replaced",
                )
                .at(span, "up to here")
                .help(format!("{} KiB are allowed", MAX_FILE >> 10)));
            }
        } else if let Some((_, next)) = rest.peek()
            && *next == aliases.directive
        {
            // After an unknown name a directive begins nothing: the reference executor has spent it.
            rest.next();
        }
    }
    out.copy(text, copied..text.len());
    Ok(out)
}

/// The cmd line with the image in place of its first word, where that is an alias, and by how much
/// the bytes after it moved.
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
    fn replaces_as_the_reference_does() {
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
                replace(text, &aliases('$')).unwrap().text,
                expected,
                "{text}"
            );
        }
        assert_eq!(replace("§A $A §§", &aliases('§')).unwrap().text, "1 $A §");
    }

    #[test]
    fn cuts_the_block_out() {
        let text = "version: v1.1.0\nalias:\n  # gone\n  values:\n    a: b\n\nsteps:\r\n  - cmd: x\n#c\n  - cmd: y";
        let separated = separate(text);
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

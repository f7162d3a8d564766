//! Parsing of the flags of the smaller `docker` subcommands.

/// The flags and other arguments of a subcommand.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Args {
    /// Long name and value of each flag. A switch has no value.
    flags: Vec<(&'static str, Option<String>)>,
    /// The other arguments, in order.
    pub(super) rest: Vec<String>,
}

/// A flag that a subcommand supports.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flag {
    /// Long name without dashes: `tail`.
    pub(super) long: &'static str,
    /// Short name without dash: `n`. A space if there is none.
    pub(super) short: char,
    /// Set if the flag has a value.
    pub(super) value: bool,
}

/// Returns a flag without a value.
pub(super) const fn switch(long: &'static str, short: char) -> Flag {
    Flag {
        long,
        short,
        value: false,
    }
}

/// Returns a flag with a value.
pub(super) const fn valued(long: &'static str, short: char) -> Flag {
    Flag {
        long,
        short,
        value: true,
    }
}

impl Args {
    /// Parses `words`. Refuses a flag that is not in `supported` by its name.
    pub(super) fn parse(words: &[String], supported: &[Flag]) -> Result<Self, String> {
        let mut out = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--" {
                out.rest.extend(words.cloned());
                break;
            }
            if let Some(long) = word.strip_prefix("--") {
                let (name, inline) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (long, None),
                };
                let flag = supported.iter().find(|flag| flag.long == name);
                let flag =
                    flag.ok_or_else(|| format!("the flag --{name} is not supported here"))?;
                let value = match (flag.value, inline) {
                    (true, None) => Some(
                        words
                            .next()
                            .cloned()
                            .ok_or_else(|| format!("--{name} needs a value"))?,
                    ),
                    (_, inline) => inline,
                };
                out.flags.push((flag.long, value));
            } else if let Some(letters) = word.strip_prefix('-').filter(|l| !l.is_empty()) {
                let mut letters = letters.chars();
                while let Some(letter) = letters.next() {
                    let flag = supported.iter().find(|flag| flag.short == letter);
                    let flag =
                        flag.ok_or_else(|| format!("the flag -{letter} is not supported here"))?;
                    if !flag.value {
                        out.flags.push((flag.long, None));
                        continue;
                    }
                    let rest = letters.as_str().trim_start_matches('=');
                    let value = if rest.is_empty() {
                        words.next().cloned()
                    } else {
                        Some(rest.to_owned())
                    };
                    let value = value.ok_or_else(|| format!("-{letter} needs a value"))?;
                    out.flags.push((flag.long, Some(value)));
                    break;
                }
            } else {
                out.rest.push(word.clone());
            }
        }
        Ok(out)
    }

    pub(super) fn has(&self, long: &str) -> bool {
        self.flags
            .iter()
            .any(|(name, value)| *name == long && value.as_deref() != Some("false"))
    }

    /// Returns the last value of a flag.
    pub(super) fn value(&self, long: &str) -> Option<&str> {
        let mut values = self.flags.iter().filter(|(name, _)| *name == long);
        values.next_back().and_then(|(_, value)| value.as_deref())
    }

    /// Returns every value of a flag.
    pub(super) fn values(&self, long: &str) -> impl Iterator<Item = &str> {
        self.flags
            .iter()
            .filter(move |(name, _)| *name == long)
            .filter_map(|(_, value)| value.as_deref())
    }

    /// Returns exactly `N` arguments.
    pub(super) fn exactly<const N: usize>(&self, what: &str) -> Result<[&str; N], String> {
        let rest: Vec<&str> = self.rest.iter().map(String::as_str).collect();
        rest.try_into().map_err(|_| format!("takes {what}"))
    }

    /// Returns at least one argument.
    pub(super) fn at_least_one(&self, what: &str) -> Result<&[String], String> {
        if self.rest.is_empty() {
            return Err(format!("takes {what}"));
        }
        Ok(&self.rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_arguments_are_parsed() {
        let supported = [
            switch("force", 'f'),
            valued("tail", 'n'),
            switch("all", 'a'),
        ];
        let read = |text: &str| {
            let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            Args::parse(&words, &supported)
        };
        let args = read("-fa one --tail 5 two -n7 -- -x").unwrap();
        assert!(args.has("force") && args.has("all"));
        assert_eq!(args.value("tail"), Some("7"));
        assert_eq!(args.values("tail").collect::<Vec<_>>(), ["5", "7"]);
        assert_eq!(args.rest, ["one", "two", "-x"]);
        assert!(!read("--force=false").unwrap().has("force"));
        for bad in ["--colour", "-z", "--tail", "-n"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}

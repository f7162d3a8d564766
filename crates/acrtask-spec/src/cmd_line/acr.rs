//! Commands of `acr` that the executor runs without the image of the original program.

use super::Word;

/// Name of the image of the original program, which the word `acr` means.
const IMAGE: &str = "mcr.microsoft.com/acr/acr-cli";

/// First words of commands that the executor runs.
const COMMANDS: [&str; 5] = ["purge", "retention", "tag", "manifest", "version"];

/// Returns `true` if the executor runs the command with this first word and these arguments.
pub(super) fn is_acr_command(head: &str, arguments: &[Word]) -> bool {
    let is_program = head == "acr"
        || head
            .strip_prefix(IMAGE)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '@']));
    let first = arguments.first().and_then(Word::literal);
    is_program && first.is_some_and(|first| COMMANDS.contains(&first.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acr_command_is_recognized_by_word_and_image() {
        for (line, expected) in [
            ("acr purge", true),
            ("mcr.microsoft.com/acr/acr-cli:0.19 purge", true),
            ("mcr.microsoft.com/acr/acr-cli version", true),
            ("mcr.microsoft.com/acr/acr-cli-other:1 purge", false),
            ("example.com/acr purge", false),
            ("acr retention", true),
            ("acr annotate", false),
            ("acr", false),
        ] {
            let words: Vec<Word> = line.split(' ').skip(1).map(Word::text).collect();
            let head = line.split(' ').next().unwrap_or_default();
            assert_eq!(is_acr_command(head, &words), expected, "{line}");
        }
    }
}

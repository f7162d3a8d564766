//! Characters that a terminal displays in place, without hidden effects.
//!
//! Refused are controls (C0, DEL, C1), marks and overrides of the writing direction, line
//! separators, and characters without width that make two names appear equal. Joiners that scripts
//! and emoji need ([`is_joiner`]) are allowed in texts and refused in names.

/// Returns `true` if `c` cannot move the cursor, reorder the text around it or hide in it.
pub fn is_printable(c: char) -> bool {
    !matches!(c,
        '\0'..='\x1f' | '\x7f'..='\u{9f}'
        // Soft hyphen, direction marks, zero-width space, word joiner and invisible operators.
        | '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        // Annotations, tags and the rest of the plane without visible characters.
        | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Returns `true` if `c` invisibly joins or separates the letters around it.
fn is_joiner(c: char) -> bool {
    matches!(
        c,
        '\u{200c}' | '\u{200d}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{3164}'
    )
}

/// Returns the first character of `name` that a name must not contain.
pub fn unprintable_in_name(name: &str) -> Option<char> {
    name.chars().find(|c| !is_printable(*c) || is_joiner(*c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_contain_only_what_is_seen() {
        for name in ["ci", "Zoë's laptop", "构建", "team 🚀"] {
            assert_eq!(unprintable_in_name(name), None, "{name}");
        }
        for c in [
            '\x1b',
            '\x07',
            '\r',
            '\n',
            '\x7f',
            '\u{9b}',
            '\u{85}',
            '\u{202e}',
            '\u{2066}',
            '\u{200b}',
            '\u{200d}',
            '\u{2028}',
            '\u{feff}',
            '\u{e0041}',
            '\u{ad}',
        ] {
            assert_eq!(unprintable_in_name(&format!("a{c}b")), Some(c));
        }
    }

    #[test]
    fn emoji_and_scripts_keep_their_joiners() {
        assert!("👩‍💻 نمی‌خواهم".chars().all(is_printable));
    }
}

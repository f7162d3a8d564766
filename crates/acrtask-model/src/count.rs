//! Counted nouns for messages.

/// Returns the number with its noun: `1 byte`, `2 bytes`. The plural of the noun ends in `s`.
pub fn count(number: impl TryInto<u64>, noun: &str) -> String {
    match number.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {noun}"),
        number => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_of_one_is_singular() {
        assert_eq!(count(0_u64, "byte"), "0 bytes");
        assert_eq!(count(1_u64, "byte"), "1 byte");
        assert_eq!(count(2_usize, "field"), "2 fields");
    }
}

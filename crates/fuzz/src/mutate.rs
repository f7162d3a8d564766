//! Mutations of an input: of bits, bytes, ranges, numbers and words, and splices of two inputs.

use rand::{Rng as _, rngs::SmallRng, seq::IndexedRandom as _};

/// Bytes with a meaning in many formats.
const BYTES: &[u8] = b"\0\x01\x7f\x80\xff\n\r\t \"'\\/{}[]()<>:;,.|&$#@!%*=+-_`~0aA\x1b";
/// Numbers at typical limits.
const NUMBERS: &[&str] = &[
    "0",
    "-1",
    "1",
    "127",
    "128",
    "255",
    "256",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e-400",
    "NaN",
    "0x7fffffff",
    "1_000",
    "01",
    "1.0",
];
/// Maximum length of a repeated range.
const MAX_REPEAT: usize = 2000;

/// Applies one to eight changes to `input`. `other` is a second input, `words` are those of the
/// target's language.
pub(crate) fn mutate(
    mut input: Vec<u8>,
    other: &[u8],
    words: &[&str],
    rng: &mut SmallRng,
) -> Vec<u8> {
    let changes = 1 << rng.random_range(0..4);
    for _ in 0..rng.random_range(1..=changes) {
        apply_change(&mut input, other, words, rng);
    }
    input
}

fn apply_change(input: &mut Vec<u8>, other: &[u8], words: &[&str], rng: &mut SmallRng) {
    let at = rng.random_range(0..=input.len());
    let range = range_of(input, rng);
    match rng.random_range(0..14) {
        0 if at < input.len() => input[at] ^= 1 << rng.random_range(0..8),
        1 if at < input.len() => input[at] = rng.random(),
        2 if at < input.len() => input[at] = *BYTES.choose(rng).unwrap_or(&0),
        3 => input.insert(at, *BYTES.choose(rng).unwrap_or(&0)),
        4 => drop(input.drain(range)),
        5 => {
            let copy = input[range].to_vec();
            input.splice(at..at, copy);
        }
        6 => {
            let copy = input[range].to_vec();
            let times = rng.random_range(1..=MAX_REPEAT / (copy.len() + 1) + 2);
            input.splice(at..at, copy.repeat(times));
        }
        7 | 8 => {
            if let Some(word) = words.choose(rng) {
                input.splice(at..at, word.bytes());
            }
        }
        9 => {
            if let Some(word) = words.choose(rng) {
                input.splice(range, word.bytes());
            }
        }
        10 => {
            let number = NUMBERS.choose(rng).unwrap_or(&"0");
            let digits = digits_from(input, at);
            input.splice(digits, number.bytes());
        }
        11 => {
            let from = range_of(other, rng);
            input.splice(at..at, other[from].to_vec());
        }
        12 => {
            let cut = rng.random_range(0..=other.len());
            input.truncate(at);
            input.extend_from_slice(&other[cut..]);
        }
        13 => {
            let c = rng.random::<char>();
            input.splice(at..at, c.to_string().bytes());
        }
        _ => input.truncate(at),
    }
}

/// Returns a random range, usually a short one.
fn range_of(bytes: &[u8], rng: &mut SmallRng) -> std::ops::Range<usize> {
    let from = rng.random_range(0..=bytes.len());
    let longest = if rng.random_bool(0.8) {
        16
    } else {
        bytes.len()
    };
    let len = rng.random_range(0..=longest.min(bytes.len() - from));
    from..from + len
}

/// Returns the range of the digits at or after `at`. Empty if none exist.
fn digits_from(input: &[u8], at: usize) -> std::ops::Range<usize> {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let Some(from) = input[at..].iter().position(is_digit) else {
        return at..at;
    };
    let from = at + from;
    let len = input[from..]
        .iter()
        .take_while(|byte| is_digit(byte))
        .count();
    from..from + len
}

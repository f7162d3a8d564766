//! Base 64, base 32 and digests.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256, Sha512};

use super::{Env, Function, Outcome, functions, text_at, value_at};
use crate::{error::Fault, value::Value};

pub(crate) static TABLE: &[Function] = functions! {
    "b64enc" (Any) b64enc;
    "b64dec" (Text) |env, args| match decode_base64(text_at(args, 0)) {
        Ok(bytes) => text_from_bytes(env, bytes),
        // Sprig returns the error as the text.
        Err(offset) => env.new_text(format!("illegal base64 data at input byte {offset}")),
    };
    "b32enc" (Text) |env, args| env.new_text(b32enc(text_at(args, 0).as_bytes()));
    "b32dec" (Text) |env, args| match b32dec(text_at(args, 0)) {
        Ok(bytes) => text_from_bytes(env, bytes),
        Err(offset) => env.new_text(format!("illegal base32 data at input byte {offset}")),
    };
    "sha1sum" (Text) |env, args| digest_text(env, args, |bytes| hex(&sha1::Sha1::digest(bytes)));
    "sha256sum" (Text) |env, args| digest_text(env, args, |bytes| hex(&Sha256::digest(bytes)));
    "sha512sum" (Text) |env, args| digest_text(env, args, |bytes| hex(&Sha512::digest(bytes)));
    "adler32sum" (Text) |env, args| digest_text(env, args, |bytes| adler32(bytes).to_string());
};

/// Encodes like the reference executor's own `b64enc`. A missing value gives the empty text. Other
/// values than texts give Go's `<T Value>`.
fn b64enc(env: &mut Env, args: &[Value]) -> Outcome {
    match value_at(args, 0) {
        Value::Text(text) => env.new_text(STANDARD.encode(text.as_bytes())),
        value if value.is_nil() => env.new_text(""),
        value => env.new_text(STANDARD.encode(format!("<{} Value>", value.type_name()))),
    }
}

fn text_from_bytes(env: &mut Env, bytes: Vec<u8>) -> Outcome {
    match String::from_utf8(bytes) {
        Ok(text) => env.new_text(text),
        Err(_) => Err(Fault::call("the decoded bytes are not text")
            .with_help("a task file can contain UTF-8 text only")),
    }
}

/// Decodes like Go, which skips line breaks. The error is the offset of the first fault.
fn decode_base64(text: &str) -> Result<Vec<u8>, usize> {
    let kept: Vec<(usize, u8)> = text
        .bytes()
        .enumerate()
        .filter(|(_, byte)| !matches!(byte, b'\r' | b'\n'))
        .collect();
    let plain: Vec<u8> = kept.iter().map(|(_, byte)| *byte).collect();
    let offset_in_text = |index: usize| kept.get(index).map_or(text.len(), |(offset, _)| *offset);
    STANDARD.decode(&plain).map_err(|error| match error {
        base64::DecodeError::InvalidByte(index, _)
        | base64::DecodeError::InvalidLastSymbol(index, _) => offset_in_text(index),
        // Go reports the start of the incomplete group.
        base64::DecodeError::InvalidLength(length) => offset_in_text(length / 4 * 4),
        base64::DecodeError::InvalidPadding => offset_in_text(plain.len() / 4 * 4),
    })
}

const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

fn b32enc(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(5) * 8);
    for group in bytes.chunks(5) {
        let mut buffer = [0_u8; 8];
        buffer[3..3 + group.len()].copy_from_slice(group);
        let bits = u64::from_be_bytes(buffer);
        let symbols = (group.len() * 8).div_ceil(5);
        for index in 0..8 {
            if index < symbols {
                let symbol = (bits >> (35 - 5 * index)) & 31;
                out.push(char::from(BASE32[usize::try_from(symbol).unwrap_or(0)]));
            } else {
                out.push('=');
            }
        }
    }
    out
}

fn b32dec(text: &str) -> Result<Vec<u8>, usize> {
    let kept: Vec<(usize, u8)> = text
        .bytes()
        .enumerate()
        .filter(|(_, byte)| !matches!(byte, b'\r' | b'\n'))
        .collect();
    let mut out = Vec::with_capacity(kept.len() / 8 * 5);
    let groups: Vec<&[(usize, u8)]> = kept.chunks(8).collect();
    for (number, group) in groups.iter().enumerate() {
        if group.len() < 8 {
            return Err(group.first().map_or(text.len(), |_| text.len()));
        }
        let symbols = group
            .iter()
            .position(|(_, byte)| *byte == b'=')
            .unwrap_or(8);
        let mut bits = 0_u64;
        for (index, (offset, byte)) in group.iter().enumerate() {
            let value = if index < symbols {
                BASE32
                    .iter()
                    .position(|symbol| symbol == byte)
                    .ok_or(*offset)?
            } else if *byte == b'=' {
                0
            } else {
                return Err(*offset);
            };
            bits = (bits << 5) | u64::try_from(value).unwrap_or(0);
        }
        let count = match symbols {
            8 => 5,
            7 => 4,
            5 => 3,
            4 => 2,
            2 => 1,
            _ => return Err(group[symbols.min(7)].0),
        };
        if symbols < 8 && number + 1 < groups.len() {
            return Err(groups[number + 1][0].0);
        }
        out.extend_from_slice(&bits.to_be_bytes()[3..3 + count]);
    }
    Ok(out)
}

fn digest_text(env: &mut Env, args: &[Value], sum: fn(&[u8]) -> String) -> Outcome {
    let bytes = text_at(args, 0).as_bytes();
    env.meter.charge_read(bytes.len() * 4)?;
    env.new_text(sum(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn adler32(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65_521;
    let (a, b) = bytes.iter().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % MODULUS;
        (a, (b + a) % MODULUS)
    });
    (b << 16) | a
}

//! Numbers. Integers are `int64` and wrap around. Floats are computed in decimal, as in Sprig.

use super::{Env, Function, Outcome, functions, int_at, value_at};
use crate::{error::Fault, format, literal, value::Value};

pub(crate) static TABLE: &[Function] = functions! {
    "int" (Any) |_, args| Ok(Value::Int(to_int(value_at(args, 0))));
    "int64" (Any) |_, args| Ok(Value::Int64(to_int(value_at(args, 0))));
    "float64" (Any) |_, args| Ok(Value::Float(to_float(value_at(args, 0))));
    "atoi" (Text) |_, args| {
        let number = match value_at(args, 0) {
            Value::Text(text) => text.parse().unwrap_or(0),
            _ => 0,
        };
        Ok(Value::Int(number))
    };
    // Reads the octal digits of a file mode.
    "toDecimal" (Any) |env, args| {
        let text = format::display(env, value_at(args, 0))?;
        Ok(Value::Int64(i64::from_str_radix(&text, 8).unwrap_or(0)))
    };
    "add1" (Any) |_, args| Ok(Value::Int64(to_int(value_at(args, 0)).wrapping_add(1)));
    "add" (; Any) |_, args| Ok(Value::Int64(args.iter().map(to_int).fold(0, i64::wrapping_add)));
    "sub" (Any, Any) |_, args| Ok(Value::Int64(to_int(value_at(args, 0)).wrapping_sub(to_int(value_at(args, 1)))));
    "mul" (Any; Any) |_, args| Ok(Value::Int64(args.iter().map(to_int).fold(1, i64::wrapping_mul)));
    "div" (Any, Any) |_, args| divide_integers(args, i64::wrapping_div);
    "mod" (Any, Any) |_, args| divide_integers(args, i64::wrapping_rem);
    "max" (Any; Any) |_, args| Ok(Value::Int64(args.iter().map(to_int).max().unwrap_or(0)));
    "biggest" (Any; Any) |_, args| Ok(Value::Int64(args.iter().map(to_int).max().unwrap_or(0)));
    "min" (Any; Any) |_, args| Ok(Value::Int64(args.iter().map(to_int).min().unwrap_or(0)));
    "maxf" (Any; Any) |_, args| Ok(Value::Float(find_extreme(args, |next, found| next > found)));
    "minf" (Any; Any) |_, args| Ok(Value::Float(find_extreme(args, |next, found| next < found)));
    "floor" (Any) |_, args| Ok(Value::Float(to_float(value_at(args, 0)).floor()));
    "ceil" (Any) |_, args| Ok(Value::Float(to_float(value_at(args, 0)).ceil()));
    "round" (Any, Int; Float) round;
    "add1f" (Any) |env, args| fold_decimals(env, &[value_at(args, 0).clone(), Value::Int(1)], None, Decimal::plus);
    "addf" (; Any) |env, args| fold_decimals(env, args, Some(Value::Int(0)), Decimal::plus);
    "subf" (Any; Any) |env, args| fold_decimals(env, args, None, Decimal::minus);
    "mulf" (Any; Any) |env, args| fold_decimals(env, args, None, Decimal::times);
    "divf" (Any; Any) |env, args| fold_decimals(env, args, None, Decimal::divided_by);
};

/// Converts a value to an integer. A float is truncated, and true is 1. A text gives its number, or
/// 0.
///
/// A text is read in base ten, like Sprig 2.22. If that fails, it is read like Sprig 3: `0x10`,
/// `1_000`, `5.0`.
#[allow(clippy::cast_possible_truncation, reason = "Go cuts as well")]
pub(crate) fn to_int(value: &Value) -> i64 {
    match value {
        Value::Int(value) | Value::Int64(value) | Value::Duration(value) => *value,
        Value::Month(value) | Value::Weekday(value) => i64::from(*value),
        Value::Uint8(value) => i64::from(*value),
        Value::Uint64(value) => i64::try_from(*value).unwrap_or(i64::MAX),
        // A float that does not fit gives the smallest integer, as on the processors that run
        // tasks.
        Value::Float(value) if *value >= -9.3e18 && *value < 9_223_372_036_854_775_808.0 => {
            *value as i64
        }
        Value::Float(_) => i64::MIN,
        Value::Bool(value) => i64::from(*value),
        Value::Text(text) => text
            .parse()
            .ok()
            .or_else(|| {
                let whole = match text.split_once('.') {
                    Some((whole, zeros))
                        if zeros.bytes().all(|byte| byte == b'0') && !zeros.is_empty() =>
                    {
                        whole
                    }
                    _ => text,
                };
                literal::parse_int_base0(whole).and_then(|number| i64::try_from(number).ok())
            })
            .unwrap_or(0),
        _ => 0,
    }
}

#[allow(clippy::cast_precision_loss, reason = "Go converts the same way")]
fn to_float(value: &Value) -> f64 {
    match value {
        Value::Float(value) => *value,
        Value::Text(text) => literal::parse_float(text).unwrap_or(0.0),
        Value::Uint64(value) => *value as f64,
        value => to_int(value) as f64,
    }
}

fn divide_integers(args: &[Value], divide: fn(i64, i64) -> i64) -> Outcome {
    match to_int(value_at(args, 1)) {
        0 => Err(Fault::call("runtime error: integer divide by zero")),
        divisor => Ok(Value::Int64(divide(to_int(value_at(args, 0)), divisor))),
    }
}

fn find_extreme(args: &[Value], better: fn(f64, f64) -> bool) -> f64 {
    let mut found = to_float(value_at(args, 0));
    for value in args.iter().skip(1).map(to_float) {
        if value.is_nan() || better(value, found) {
            found = value;
        }
    }
    found
}

/// Rounds half up. The third argument replaces the fraction from which it rounds up.
fn round(_: &mut Env, args: &[Value]) -> Outcome {
    let from = match args.get(2) {
        Some(Value::Float(from)) => *from,
        _ => 0.5,
    };
    #[allow(clippy::cast_precision_loss, reason = "places are few")]
    let power = 10_f64.powf(int_at(args, 1) as f64);
    let shifted = power * to_float(value_at(args, 0));
    let rounded = if shifted.fract() >= from {
        shifted.ceil()
    } else {
        shifted.floor()
    };
    Ok(Value::Float(rounded / power))
}

/// A decimal number: `digits * 10^exponent`. Digits beyond 38 are lost.
#[derive(Debug, Clone, Copy)]
struct Decimal {
    digits: i128,
    exponent: i32,
}

/// Number of digits of a quotient after the point.
const QUOTIENT_PLACES: i32 = 16;

impl Decimal {
    /// Returns the shortest decimal that parses to `number`.
    fn from(number: f64) -> Result<Self, Fault> {
        if !number.is_finite() {
            return Err(Fault::call(format!(
                "Cannot create a Decimal from {}",
                format::float_text(number)
            )));
        }
        let text = format!("{number:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let fraction = mantissa
            .split_once('.')
            .map_or(0, |(_, fraction)| fraction.len());
        let digits = mantissa.replace('.', "").parse().unwrap_or(0);
        let exponent = exponent.parse::<i32>().unwrap_or(0) - i32::try_from(fraction).unwrap_or(0);
        Ok(Self { digits, exponent })
    }

    fn to_float(self) -> f64 {
        format!("{}e{}", self.digits, self.exponent)
            .parse()
            .unwrap_or(0.0)
    }

    /// Brings both numbers to the smaller exponent. `None` if that needs too many digits.
    fn align_exponents(self, other: Self) -> Option<(i128, i128, i32)> {
        let exponent = self.exponent.min(other.exponent);
        let scale = |number: Self| {
            let places = u32::try_from(number.exponent - exponent).ok()?;
            if number.digits == 0 {
                Some(0)
            } else {
                number.digits.checked_mul(10_i128.checked_pow(places)?)
            }
        };
        Some((scale(self)?, scale(other)?, exponent))
    }

    fn plus(self, other: Self) -> Result<Self, Fault> {
        match self
            .align_exponents(other)
            .and_then(|(left, right, exponent)| Some((left.checked_add(right)?, exponent)))
        {
            Some((digits, exponent)) => Ok(Self { digits, exponent }),
            None => Self::from(self.to_float() + other.to_float()),
        }
    }

    fn minus(self, other: Self) -> Result<Self, Fault> {
        self.plus(Self {
            digits: other.digits.wrapping_neg(),
            ..other
        })
    }

    fn times(self, other: Self) -> Result<Self, Fault> {
        match self.digits.checked_mul(other.digits) {
            Some(digits) => Ok(Self {
                digits,
                exponent: self.exponent + other.exponent,
            }),
            None => Self::from(self.to_float() * other.to_float()),
        }
    }

    fn divided_by(self, other: Self) -> Result<Self, Fault> {
        if other.digits == 0 {
            return Err(Fault::call("decimal division by 0"));
        }
        // The quotient has 16 places and is rounded half away from zero.
        let shift = self.exponent - other.exponent + QUOTIENT_PLACES;
        let scaled = 10_i128.checked_pow(shift.unsigned_abs());
        let operands = scaled.and_then(|scale| {
            if shift >= 0 {
                Some((self.digits.checked_mul(scale)?, other.digits))
            } else {
                Some((self.digits, other.digits.checked_mul(scale)?))
            }
        });
        let Some((numerator, denominator)) = operands else {
            return Self::from(self.to_float() / other.to_float());
        };
        let (quotient, remainder) = (numerator / denominator, numerator % denominator);
        let up = remainder.unsigned_abs() >= denominator.unsigned_abs().div_ceil(2);
        let sign = if (numerator < 0) == (denominator < 0) {
            1
        } else {
            -1
        };
        Ok(Self {
            digits: quotient + if up { sign } else { 0 },
            exponent: -QUOTIENT_PLACES,
        })
    }
}

fn fold_decimals(
    env: &mut Env,
    args: &[Value],
    start: Option<Value>,
    operate: fn(Decimal, Decimal) -> Result<Decimal, Fault>,
) -> Outcome {
    env.meter.charge_steps(args.len() as u64 * 4)?;
    let mut numbers = start
        .iter()
        .chain(args)
        .map(|value| Decimal::from(to_float(value)));
    let mut result = numbers.next().unwrap_or(Ok(Decimal {
        digits: 0,
        exponent: 0,
    }))?;
    for number in numbers {
        result = operate(result, number?)?;
    }
    Ok(Value::Float(result.to_float()))
}

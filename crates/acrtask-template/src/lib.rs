//! Go's `text/template` with Sprig's text functions, bounded in time, memory and output.
//!
//! A task file is such a template over the facts and values of its run. This crate is pure: it reads no clock, no file,
//! no environment and no network, and the same template over the same data and [`Limits`] gives the same bytes.
//!
//! ```
//! use acrtask_template::{Limits, Template};
//!
//! let template = Template::parse("acr-task.yaml", "image: {{.Run.Registry}}/app:{{.Values.tag | default \"latest\"}}")?;
//! let data = serde_json::json!({"Run": {"Registry": "reg.example.com"}, "Values": {}});
//! assert_eq!(template.render(&data, &Limits::default())?, "image: reg.example.com/app:latest");
//! # Ok::<(), acrtask_template::TemplateError>(())
//! ```
//!
//! # Which functions
//!
//! Go's own, and Sprig's text functions: the names of Sprig 3, which include all of 2.22, the version that the reference
//! executor uses. Its one function of its own is kept: `b64enc` of nothing is the empty text. Where 2.22 and 3 differ:
//!
//! - a text is read as a number in base ten, as 2.22 does (`int "08"` is 8); what that cannot read is read as 3 does;
//! - `mergeOverwrite` of a map over a value, and `semverCompare "!=1.2"`, are as 3 has them;
//! - functions that stop a rendering in 2.22 (`trunc -2 "text"`) are as 3 has them.
//!
//! Functions that read the machine, make keys or passwords, or are random are left out: [`LEFT_OUT`] has each with its
//! reason, and the help of the error says it.
//!
//! # What differs from Go
//!
//! - A value that is missing writes nothing where Go writes `<no value>`: the reference executor takes those words out
//!   of every rendering.
//! - Texts are UTF-8. A function that would cut a character in two, or decode bytes that are no text, is refused.
//! - `now` is given with the [`Limits`]; the local time zone is UTC.
//! - `keys` and `values` are in the order of the keys; Go's order changes from run to run.
//! - Left out: complex numbers, other delimiters, `%p`, `%b` and `%x` of floats, one name for two groups of a regular
//!   expression, the rarer methods of `time.Time`.
//! - Bounded: see [`Limits`]. A template also may have at most 512 KiB and 1000 variables in one scope, and blocks and
//!   parentheses nest at most 100 deep.
//!
//! The tables in `tests/cases` hold what Go renders, and `differs.txt` among them each of these differences.

mod ast;
mod error;
mod exec;
mod format;
mod funcs;
mod lexer;
mod limits;
mod literal;
mod parse;
mod source_map;
mod untrusted;
mod value;

use std::ops::Range;

pub use crate::{
    error::{TemplateError, TemplateErrorKind},
    funcs::{LEFT_OUT, function_names},
    limits::Limits,
    source_map::SourceMap,
    untrusted::{Sources, Untrusted},
};

/// A parsed template.
#[derive(Debug)]
pub struct Template {
    name: String,
    text: String,
    trees: parse::Trees,
}

/// A rendering, and where each of its bytes came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// What the template wrote.
    pub text: String,
    /// From offsets in `text` to offsets in the template.
    pub map: SourceMap,
    /// Byte ranges of `text` that were computed from untrusted input, in order. May be empty ranges.
    pub untrusted: Vec<(Range<usize>, Sources)>,
}

impl Template {
    /// Parses `text`. `name` is the name by which the template could call itself.
    ///
    /// # Errors
    ///
    /// The first fault in `text`, with the bytes that are to blame, as [`TemplateErrorKind::Parse`]; a text that is too
    /// long or nests too deep as [`TemplateErrorKind::Limit`].
    pub fn parse(name: &str, text: &str) -> Result<Self, TemplateError> {
        let trees = parse::parse(name, text)?;
        Ok(Self {
            name: name.to_owned(),
            text: text.to_owned(),
            trees,
        })
    }

    /// Renders the template over `data`.
    ///
    /// # Errors
    ///
    /// [`TemplateErrorKind::Exec`] where the template does not fit the data or a function refuses its arguments,
    /// [`TemplateErrorKind::Limit`] where it would take more than `limits` allow.
    pub fn render(
        &self,
        data: &serde_json::Value,
        limits: &Limits,
    ) -> Result<String, TemplateError> {
        self.render_mapped(data, limits)
            .map(|rendered| rendered.text)
    }

    /// Renders the template over `data`, and says where each byte came from.
    ///
    /// # Errors
    ///
    /// As [`Template::render`].
    pub fn render_mapped(
        &self,
        data: &serde_json::Value,
        limits: &Limits,
    ) -> Result<Rendered, TemplateError> {
        self.render_untrusted(data, &Untrusted::default(), limits)
    }

    /// Renders the template over `data`, and records which output was computed from `untrusted` input.
    ///
    /// # Errors
    ///
    /// As [`Template::render`].
    pub fn render_untrusted(
        &self,
        data: &serde_json::Value,
        untrusted: &Untrusted,
        limits: &Limits,
    ) -> Result<Rendered, TemplateError> {
        let output = exec::execute(&self.text, &self.trees, &self.name, data, untrusted, limits)?;
        Ok(Rendered {
            text: output.text,
            map: output.map,
            untrusted: output.untrusted,
        })
    }
}

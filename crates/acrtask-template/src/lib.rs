//! Go's `text/template` with Sprig's text functions, bounded in time, memory and output.
//!
//! A task file is such a template over the variables and values of its run. This crate is pure: it
//! reads no clock, no file, no environment and no network. The same template over the same data and
//! [`Limits`] renders to the same bytes.
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
//! # Functions
//!
//! The functions are Go's own and Sprig's text functions. The names are those of Sprig 3, which
//! include all of 2.22, the version of the reference executor. As in the reference executor,
//! `b64enc` of a missing value is the empty text. Where 2.22 and 3 differ:
//!
//! - A text is read as a decimal number, like 2.22 (`int "08"` is 8). A text that 2.22 cannot read
//!   is read like 3.
//! - `mergeOverwrite` of a map over a value, and `semverCompare "!=1.2"`, work like 3.
//! - Functions that stop a rendering in 2.22 (`trunc -2 "text"`) work like 3.
//!
//! Left out are functions that read the machine, create keys or passwords, or are random.
//! [`LEFT_OUT`] lists them with their reasons, which the help of the error contains.
//!
//! # Differences from Go
//!
//! - A missing value writes nothing, where Go writes `<no value>`. The reference executor removes
//!   these words from every rendering.
//! - Texts are UTF-8. A function refuses to cut a character in two, and to decode bytes that are
//!   not text.
//! - `now` is part of the [`Limits`]. The local time zone is UTC.
//! - `keys` and `values` are in key order. Go's order changes from run to run.
//! - Left out: complex numbers, other delimiters, `%p`, `%b` and `%x` of floats, one name for two
//!   groups of a regular expression, the rarer methods of `time.Time`.
//! - Renderings are bounded by [`Limits`]. A template has at most 512 KiB, and at most 1000
//!   variables in one scope. Blocks and parentheses nest at most 100 deep.
//!
//! The tables in `tests/cases` contain the renderings of Go. `differs.txt` covers each of these
//! differences.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

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

/// A rendering with the origin of each of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// Rendered text.
    pub text: String,
    /// Mapping of offsets in `text` to offsets in the template.
    pub map: SourceMap,
    /// Byte ranges of `text` that were computed from untrusted input, in order. A range may be
    /// empty.
    pub untrusted: Vec<(Range<usize>, Sources)>,
}

impl Template {
    /// Parses `text`. `name` is the name by which the template can call itself.
    ///
    /// # Errors
    ///
    /// Returns [`TemplateErrorKind::Parse`] with the span of the first fault. Returns
    /// [`TemplateErrorKind::Limit`] if the text is too long or nests too deep.
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
    /// Returns [`TemplateErrorKind::Exec`] if the template does not fit the data, or a function
    /// refuses its arguments. Returns [`TemplateErrorKind::Limit`] if the rendering exceeds
    /// `limits`.
    pub fn render(
        &self,
        data: &serde_json::Value,
        limits: &Limits,
    ) -> Result<String, TemplateError> {
        self.render_mapped(data, limits)
            .map(|rendered| rendered.text)
    }

    /// Renders the template over `data`, and records the origin of each byte.
    ///
    /// # Errors
    ///
    /// Same as [`Template::render`].
    pub fn render_mapped(
        &self,
        data: &serde_json::Value,
        limits: &Limits,
    ) -> Result<Rendered, TemplateError> {
        self.render_untrusted(data, &Untrusted::default(), limits)
    }

    /// Renders the template over `data`, and records which output was computed from `untrusted`
    /// input.
    ///
    /// # Errors
    ///
    /// Same as [`Template::render`].
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

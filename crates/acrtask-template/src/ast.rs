//! The parsed template.
//!
//! Invariants:
//! - Spans are inside the template's text.
//! - A function expression refers to an existing function.
//! - `break` and `continue` are inside a `range` of the same template.
//! - A pipeline has at least one command, and a command at least one word.

use std::{ops::Range, sync::Arc};

use crate::funcs::Function;

/// A byte range of the template's text. 32 bits suffice, because longer texts are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl Span {
    pub(crate) fn extend_to(self, other: Span) -> Span {
        Span {
            start: self.start,
            end: other.end.max(self.start),
        }
    }

    pub(crate) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    pub(crate) fn slice(self, text: &str) -> &str {
        text.get(self.range()).unwrap_or_default()
    }
}

#[derive(Debug)]
pub(crate) enum Node {
    Text(Span),
    /// `{{pipeline}}`. `at` is the offset of its `{{`.
    Action {
        at: u32,
        pipeline: Pipeline,
    },
    Break,
    Continue,
    If(Conditional),
    With(Conditional),
    Range(Box<RangeLoop>),
    Template {
        name: Arc<str>,
        span: Span,
        pipeline: Option<Pipeline>,
    },
}

/// An `if` or `with` with its `else if` or `else with` branches and its `else`.
#[derive(Debug)]
pub(crate) struct Conditional {
    pub(crate) branches: Vec<(Pipeline, Vec<Node>)>,
    pub(crate) otherwise: Vec<Node>,
}

#[derive(Debug)]
pub(crate) struct RangeLoop {
    pub(crate) pipeline: Pipeline,
    pub(crate) body: Vec<Node>,
    pub(crate) otherwise: Vec<Node>,
}

#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) span: Span,
    pub(crate) variables: Vec<Variable>,
    /// `true` for `=` instead of `:=`.
    pub(crate) assigns: bool,
    pub(crate) commands: Vec<Command>,
}

#[derive(Debug)]
pub(crate) struct Variable {
    /// Name with its `$`.
    pub(crate) name: Arc<str>,
    pub(crate) span: Span,
}

#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) span: Span,
    pub(crate) words: Vec<Expr>,
}

#[derive(Debug)]
pub(crate) struct Expr {
    pub(crate) span: Span,
    pub(crate) kind: ExprKind,
}

#[derive(Debug)]
pub(crate) enum ExprKind {
    Dot,
    Nil,
    Bool(bool),
    Number(Number),
    Text(Arc<str>),
    /// `.A.B`
    Field(Vec<Arc<str>>),
    /// `$x.A.B`. The name includes its `$`.
    Variable(Arc<str>, Vec<Arc<str>>),
    Function(&'static Function),
    Pipeline(Pipeline),
    /// `(pipeline).A.B` or `function.A.B`
    Chain(Box<Expr>, Vec<Arc<str>>),
}

/// A number literal. Its use decides which of its types counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Number {
    pub(crate) integer: Option<i64>,
    pub(crate) float: f64,
    /// Type of the number where any type is allowed. A float if written as one.
    pub(crate) ideal: Ideal,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Ideal {
    Integer,
    Float,
    /// The number fits 64 bits unsigned, but not `int`.
    TooLarge,
}

//! Renders a tree over data, with the semantics of Go's `text/template` under `missingkey=zero`.
//!
//! A missing value writes nothing, because the reference executor removes `<no value>` from the
//! rendering. [`crate::Limits`] bound each rendering.

mod eval;

use std::{ops::Range, sync::Arc};

use crate::{
    ast::{Conditional, Node, Pipeline, RangeLoop, Span},
    error::{Fault, FaultKind, TemplateError, TemplateErrorKind},
    format::{self, quote},
    funcs::{self, Env},
    limits::{Limits, Meter},
    parse::Trees,
    source_map::SourceMap,
    untrusted::{Sources, Untrusted},
    value::{Heap, Value},
};

type Executed<T> = Result<T, TemplateError>;

/// The effect of a node on the loop around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// The rendered text with its origins.
pub(crate) struct Output {
    pub(crate) text: String,
    pub(crate) map: SourceMap,
    pub(crate) untrusted: Vec<(Range<usize>, Sources)>,
}

/// A variable in scope.
struct Variable {
    name: Arc<str>,
    value: Value,
    sources: Sources,
}

pub(crate) fn execute(
    text: &str,
    trees: &Trees,
    name: &str,
    data: &serde_json::Value,
    untrusted: &Untrusted,
    limits: &Limits,
) -> Executed<Output> {
    let mut env = Env {
        heap: Heap::default(),
        meter: Meter::new(limits),
        now: limits.now,
    };
    let root = env
        .heap
        .import_json(&mut env.meter, data)
        .map_err(|fault| at_span(fault, Span::default()))?;
    env.heap.mark_untrusted(&root, untrusted);
    let mut executor = Executor {
        text,
        trees,
        env,
        variables: vec![root_variable(&root, Sources::NONE)],
        untrusted,
        read_sources: Sources::NONE,
        piped_sources: Sources::NONE,
        dot_sources: Sources::NONE,
        depth: 0,
        max_depth: limits.depth,
        output_bytes: limits.output_bytes,
        output: Output {
            text: String::new(),
            map: SourceMap::default(),
            untrusted: Vec::new(),
        },
    };
    if let Some(body) = trees.get(name) {
        executor.exec_nodes(&root, body)?;
    }
    Ok(executor.output)
}

/// Creates the variable `$` of a template that is called with `dot`.
fn root_variable(dot: &Value, sources: Sources) -> Variable {
    Variable {
        name: "$".into(),
        value: dot.clone(),
        sources,
    }
}

struct Executor<'a> {
    text: &'a str,
    trees: &'a Trees,
    env: Env,
    /// Variables in scope, the innermost last.
    variables: Vec<Variable>,
    untrusted: &'a Untrusted,
    /// Sources of all reads for the value that is being evaluated.
    read_sources: Sources,
    /// Sources of the value that the pipeline passes to its next command.
    piped_sources: Sources,
    /// The sources of dot.
    dot_sources: Sources,
    depth: usize,
    max_depth: usize,
    output_bytes: usize,
    output: Output,
}

fn at_span(fault: Fault, span: Span) -> TemplateError {
    TemplateError {
        message: fault.message,
        span: span.range(),
        help: fault.help,
        kind: match fault.kind {
            FaultKind::Call => TemplateErrorKind::Exec,
            FaultKind::Limit => TemplateErrorKind::Limit,
        },
    }
}

fn error<T>(span: Span, message: impl Into<String>) -> Executed<T> {
    Err(at_span(Fault::call(message), span))
}

impl Executor<'_> {
    fn charge_step(&mut self, span: Span) -> Executed<()> {
        self.env
            .meter
            .charge_steps(1)
            .map_err(|fault| at_span(fault, span))
    }

    /// Runs `inner` one level deeper.
    fn run_nested<T>(
        &mut self,
        span: Span,
        inner: impl FnOnce(&mut Self) -> Executed<T>,
    ) -> Executed<T> {
        if self.depth >= self.max_depth {
            let fault = Fault::limit(format!(
                "templates and blocks nest deeper than {}",
                self.max_depth
            ))
            .with_help("a template that calls itself needs an `if` that ends it");
            return Err(at_span(fault, span));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// Runs `inner` one level deeper, with a dot from these sources.
    fn run_nested_with_dot<T>(
        &mut self,
        span: Span,
        dot: Sources,
        inner: impl FnOnce(&mut Self) -> Executed<T>,
    ) -> Executed<T> {
        let outer = std::mem::replace(&mut self.dot_sources, dot);
        let result = self.run_nested(span, inner);
        self.dot_sources = outer;
        result
    }

    /// Evaluates the pipeline of a node. Returns its value and the sources of that value.
    fn eval_node_pipeline(
        &mut self,
        dot: &Value,
        pipeline: &Pipeline,
    ) -> Executed<(Value, Sources)> {
        self.read_sources = Sources::NONE;
        let value = self.eval_pipeline(dot, pipeline)?;
        Ok((value, std::mem::take(&mut self.read_sources)))
    }

    /// Returns the sources of all entries inside `value`.
    fn collect_sources(&mut self, value: &Value, span: Span) -> Executed<Sources> {
        self.env
            .heap
            .collect_sources(&mut self.env.meter, value)
            .map_err(|fault| at_span(fault, span))
    }

    fn write_output(&mut self, text: &str, span: Span) -> Executed<()> {
        if text.len() > self.output_bytes - self.output.text.len() {
            let fault = Fault::limit(format!(
                "the rendering would be longer than {} bytes",
                self.output_bytes
            ));
            return Err(at_span(fault, span));
        }
        self.env
            .meter
            .charge_read(text.len())
            .map_err(|fault| at_span(fault, span))?;
        self.output.text.push_str(text);
        Ok(())
    }

    fn exec_nodes(&mut self, dot: &Value, nodes: &[Node]) -> Executed<Flow> {
        for node in nodes {
            let flow = self.exec_node(dot, node)?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn exec_node(&mut self, dot: &Value, node: &Node) -> Executed<Flow> {
        match node {
            Node::Text(span) => {
                self.charge_step(*span)?;
                self.output
                    .map
                    .push_literal(self.output.text.len(), span.start as usize);
                let start = self.output.text.len();
                self.write_output(span.slice(self.text), *span)?;
                self.note_untrusted_text(start, &span.range());
                Ok(Flow::Next)
            }
            Node::Action { at, pipeline } => {
                let (value, mut sources) = self.eval_node_pipeline(dot, pipeline)?;
                if pipeline.variables.is_empty() && !value.is_nil() {
                    sources |= self.collect_sources(&value, pipeline.span)?;
                    let start = self.output.text.len();
                    if !sources.is_empty() && !matches!(value, Value::Bool(_)) {
                        self.output.untrusted.push((start..start, sources));
                    }
                    let text = format::display(&mut self.env, &value)
                        .map_err(|fault| at_span(fault, pipeline.span))?;
                    if !text.is_empty() {
                        self.output
                            .map
                            .push_action(self.output.text.len(), *at as usize);
                        self.write_output(&text, pipeline.span)?;
                    }
                    if let Some((range, _)) = self.output.untrusted.last_mut()
                        && range.start == start
                        && !sources.is_empty()
                    {
                        range.end = self.output.text.len();
                    }
                }
                Ok(Flow::Next)
            }
            Node::Break => Ok(Flow::Break),
            Node::Continue => Ok(Flow::Continue),
            Node::If(conditional) => self.exec_conditional(dot, conditional, false),
            Node::With(conditional) => self.exec_conditional(dot, conditional, true),
            Node::Range(range) => self.exec_range(dot, range),
            Node::Template {
                name,
                span,
                pipeline,
            } => self.exec_template(dot, name, *span, pipeline.as_ref()),
        }
    }

    /// Records the untrusted parts of template text that was written at `start`.
    fn note_untrusted_text(&mut self, start: usize, span: &Range<usize>) {
        for (part, sources) in &self.untrusted.template {
            let (from, to) = (part.start.max(span.start), part.end.min(span.end));
            if from < to {
                let at = start + (from - span.start);
                self.output.untrusted.push((at..at + (to - from), *sources));
            }
        }
    }

    fn exec_conditional(
        &mut self,
        dot: &Value,
        conditional: &Conditional,
        with: bool,
    ) -> Executed<Flow> {
        let mark = self.variables.len();
        let mut chosen = None;
        for (pipeline, body) in &conditional.branches {
            let (value, sources) = self.eval_node_pipeline(dot, pipeline)?;
            if value.is_truthy(&self.env.heap) {
                let (dot, sources) = if with {
                    (value, sources)
                } else {
                    (dot.clone(), self.dot_sources)
                };
                chosen = Some((dot, sources, body, pipeline.span));
                break;
            }
        }
        let flow = match chosen {
            Some((dot, sources, body, span)) => {
                self.run_nested_with_dot(span, sources, |executor| executor.exec_nodes(&dot, body))?
            }
            None => self.exec_nodes(dot, &conditional.otherwise)?,
        };
        self.variables.truncate(mark);
        Ok(flow)
    }

    fn exec_range(&mut self, dot: &Value, range: &RangeLoop) -> Executed<Flow> {
        let mark = self.variables.len();
        let span = range.pipeline.span;
        let (value, sources) = self.eval_node_pipeline(dot, &range.pipeline)?;
        let two = range.pipeline.variables.len() > 1;
        let mut ran = false;
        match &value {
            Value::Nil | Value::NilField => {}
            Value::Int(count) | Value::Int64(count) | Value::Duration(count) => {
                self.check_one_variable(range, &value)?;
                for index in 0..*count {
                    ran = true;
                    let item = match value {
                        Value::Int64(_) => Value::Int64(index),
                        Value::Duration(_) => Value::Duration(index),
                        _ => Value::Int(index),
                    };
                    if self.iterate(range, Value::Nil, item, sources)? == Flow::Break {
                        break;
                    }
                }
            }
            Value::Uint8(count) => {
                self.check_one_variable(range, &value)?;
                for index in 0..*count {
                    ran = true;
                    if self.iterate(range, Value::Nil, Value::Uint8(index), sources)? == Flow::Break
                    {
                        break;
                    }
                }
            }
            Value::Uint64(count) => {
                self.check_one_variable(range, &value)?;
                for index in 0..*count {
                    ran = true;
                    if self.iterate(range, Value::Nil, Value::Uint64(index), sources)?
                        == Flow::Break
                    {
                        break;
                    }
                }
            }
            Value::List(list) => {
                for (index, item) in list.items().iter().enumerate() {
                    ran = true;
                    let index = if two {
                        funcs::int_value(index)
                    } else {
                        Value::Nil
                    };
                    if self.iterate(range, index, item.as_field(), sources)? == Flow::Break {
                        break;
                    }
                }
            }
            Value::Map(map) => {
                let entries = self
                    .env
                    .copy_entries(*map)
                    .map_err(|fault| at_span(fault, span))?;
                for (key, item) in entries {
                    ran = true;
                    let sources = sources | self.env.heap.sources.entry_sources(*map, &key);
                    let key = Value::Text(key);
                    if self.iterate(range, key, item.as_field(), sources)? == Flow::Break {
                        break;
                    }
                }
            }
            other => {
                let text =
                    format::display(&mut self.env, other).map_err(|fault| at_span(fault, span))?;
                return error(span, format!("range can't iterate over {text}"));
            }
        }
        let flow = if ran {
            Flow::Next
        } else {
            self.exec_nodes(dot, &range.otherwise)?
        };
        self.variables.truncate(mark);
        Ok(flow)
    }

    fn check_one_variable(&mut self, range: &RangeLoop, value: &Value) -> Executed<()> {
        if range.pipeline.variables.len() < 2 {
            return Ok(());
        }
        let span = range.pipeline.span;
        let text = format::display(&mut self.env, value).map_err(|fault| at_span(fault, span))?;
        error(
            span,
            format!("can't use {text} to iterate over more than one variable"),
        )
    }

    /// Runs the body of a loop once. `Continue` ends only this iteration.
    fn iterate(
        &mut self,
        range: &RangeLoop,
        index: Value,
        item: Value,
        sources: Sources,
    ) -> Executed<Flow> {
        let span = range.pipeline.span;
        self.charge_step(span)?;
        let variables = &range.pipeline.variables;
        // The pipeline left its variables on the stack. The last one is the element.
        let bound: &[(usize, &Value)] = match variables.len() {
            0 => &[],
            1 => &[(0, &item)],
            _ => &[(0, &index), (1, &item)],
        };
        for (position, value) in bound {
            let Some(variable) = variables.get(*position) else {
                continue;
            };
            if range.pipeline.assigns {
                self.assign(&variable.name, variable.span, (*value).clone(), sources)?;
            } else {
                let from_top = variables.len() - position;
                let slot = self.variables.len() - from_top;
                self.variables[slot].value = (*value).clone();
                self.variables[slot].sources = sources;
            }
        }
        let mark = self.variables.len();
        let flow = self.run_nested_with_dot(span, sources, |executor| {
            executor.exec_nodes(&item, &range.body)
        })?;
        self.variables.truncate(mark);
        Ok(if flow == Flow::Break {
            Flow::Break
        } else {
            Flow::Next
        })
    }

    fn exec_template(
        &mut self,
        dot: &Value,
        name: &str,
        span: Span,
        pipeline: Option<&Pipeline>,
    ) -> Executed<Flow> {
        let trees = self.trees;
        let Some(body) = trees.get(name) else {
            return error(span, format!("template {} not defined", quote(name)));
        };
        let mark = self.variables.len();
        let (dot, sources) = match pipeline {
            Some(pipeline) => self.eval_node_pipeline(dot, pipeline)?,
            None => (Value::Nil, Sources::NONE),
        };
        self.variables.truncate(mark);
        let own = vec![root_variable(&dot, sources)];
        let outer = std::mem::replace(&mut self.variables, own);
        let result =
            self.run_nested_with_dot(span, sources, |executor| executor.exec_nodes(&dot, body));
        self.variables = outer;
        result?;
        Ok(Flow::Next)
    }
}

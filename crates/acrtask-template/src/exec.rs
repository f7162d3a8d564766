//! Renders a tree over data, with the semantics of Go's `text/template` under `missingkey=zero`.
//!
//! A missing key, and anything else that is nothing, writes nothing (the reference executor takes `<no value>` out of
//! the rendering). Bounded by [`crate::Limits`].

use std::sync::Arc;

use crate::{
    ast::{Command, Conditional, Expr, ExprKind, Ideal, Node, Number, Pipeline, RangeLoop, Span},
    error::{Fault, FaultKind, TemplateError, TemplateErrorKind},
    format::{self, quote},
    funcs::{self, Body, Env, Function, Param},
    limits::{Limits, Meter},
    parse::Trees,
    source_map::SourceMap,
    value::{Element, Heap, Value},
};

type Executed<T> = Result<T, TemplateError>;

/// What a node asks of the loop around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// What was written, and where it came from.
pub(crate) struct Output {
    pub(crate) text: String,
    pub(crate) map: SourceMap,
}

pub(crate) fn execute(
    text: &str,
    trees: &Trees,
    name: &str,
    data: &serde_json::Value,
    limits: &Limits,
) -> Executed<Output> {
    let mut env = Env {
        heap: Heap::default(),
        meter: Meter::new(limits),
        now: limits.now,
    };
    let root = env
        .heap
        .import(&mut env.meter, data)
        .map_err(|fault| located(fault, Span::default()))?;
    let mut executor = Executor {
        text,
        trees,
        env,
        variables: vec![("$".into(), root.clone())],
        depth: 0,
        max_depth: limits.depth,
        output_bytes: limits.output_bytes,
        output: Output {
            text: String::new(),
            map: SourceMap::default(),
        },
    };
    if let Some(body) = trees.get(name) {
        executor.list(&root, body)?;
    }
    Ok(executor.output)
}

struct Executor<'a> {
    text: &'a str,
    trees: &'a Trees,
    env: Env,
    /// The variables in scope, innermost last.
    variables: Vec<(Arc<str>, Value)>,
    depth: usize,
    max_depth: usize,
    output_bytes: usize,
    output: Output,
}

fn located(fault: Fault, span: Span) -> TemplateError {
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
    Err(located(Fault::call(message), span))
}

impl Executor<'_> {
    fn step(&mut self, span: Span) -> Executed<()> {
        self.env.meter.step(1).map_err(|fault| located(fault, span))
    }

    /// Runs `inner` one level deeper.
    fn nested<T>(
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
            return Err(located(fault, span));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn write(&mut self, text: &str, span: Span) -> Executed<()> {
        if text.len() > self.output_bytes - self.output.text.len() {
            let fault = Fault::limit(format!(
                "the rendering would be longer than {} bytes",
                self.output_bytes
            ));
            return Err(located(fault, span));
        }
        self.env
            .meter
            .read(text.len())
            .map_err(|fault| located(fault, span))?;
        self.output.text.push_str(text);
        Ok(())
    }

    fn list(&mut self, dot: &Value, nodes: &[Node]) -> Executed<Flow> {
        for node in nodes {
            let flow = self.node(dot, node)?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn node(&mut self, dot: &Value, node: &Node) -> Executed<Flow> {
        match node {
            Node::Text(span) => {
                self.step(*span)?;
                self.output
                    .map
                    .push_literal(self.output.text.len(), span.start as usize);
                self.write(span.of(self.text), *span)?;
                Ok(Flow::Next)
            }
            Node::Action { at, pipeline } => {
                let value = self.pipeline(dot, pipeline)?;
                if pipeline.variables.is_empty() && !value.is_nil() {
                    let text = format::display(&mut self.env, &value)
                        .map_err(|fault| located(fault, pipeline.span))?;
                    if !text.is_empty() {
                        self.output
                            .map
                            .push_action(self.output.text.len(), *at as usize);
                        self.write(&text, pipeline.span)?;
                    }
                }
                Ok(Flow::Next)
            }
            Node::Break => Ok(Flow::Break),
            Node::Continue => Ok(Flow::Continue),
            Node::If(conditional) => self.conditional(dot, conditional, false),
            Node::With(conditional) => self.conditional(dot, conditional, true),
            Node::Range(range) => self.range(dot, range),
            Node::Template {
                name,
                span,
                pipeline,
            } => self.template(dot, name, *span, pipeline.as_ref()),
        }
    }

    fn conditional(
        &mut self,
        dot: &Value,
        conditional: &Conditional,
        with: bool,
    ) -> Executed<Flow> {
        let mark = self.variables.len();
        let mut chosen = None;
        for (pipeline, body) in &conditional.branches {
            let value = self.pipeline(dot, pipeline)?;
            if value.truth(&self.env.heap) {
                chosen = Some((if with { value } else { dot.clone() }, body, pipeline.span));
                break;
            }
        }
        let flow = match chosen {
            Some((dot, body, span)) => self.nested(span, |executor| executor.list(&dot, body))?,
            None => self.list(dot, &conditional.otherwise)?,
        };
        self.variables.truncate(mark);
        Ok(flow)
    }

    fn range(&mut self, dot: &Value, range: &RangeLoop) -> Executed<Flow> {
        let mark = self.variables.len();
        let span = range.pipeline.span;
        let value = self.pipeline(dot, &range.pipeline)?;
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
                    if self.iterate(range, Value::Nil, item)? == Flow::Break {
                        break;
                    }
                }
            }
            Value::Uint8(count) => {
                self.check_one_variable(range, &value)?;
                for index in 0..*count {
                    ran = true;
                    if self.iterate(range, Value::Nil, Value::Uint8(index))? == Flow::Break {
                        break;
                    }
                }
            }
            Value::Uint64(count) => {
                self.check_one_variable(range, &value)?;
                for index in 0..*count {
                    ran = true;
                    if self.iterate(range, Value::Nil, Value::Uint64(index))? == Flow::Break {
                        break;
                    }
                }
            }
            Value::List(list) => {
                for (index, item) in list.items().iter().enumerate() {
                    ran = true;
                    let index = if two { funcs::int(index) } else { Value::Nil };
                    if self.iterate(range, index, item.as_field())? == Flow::Break {
                        break;
                    }
                }
            }
            Value::Map(map) => {
                let entries = self
                    .env
                    .entries(*map)
                    .map_err(|fault| located(fault, span))?;
                for (key, item) in entries {
                    ran = true;
                    if self.iterate(range, Value::Text(key), item.as_field())? == Flow::Break {
                        break;
                    }
                }
            }
            other => {
                let text =
                    format::display(&mut self.env, other).map_err(|fault| located(fault, span))?;
                return error(span, format!("range can't iterate over {text}"));
            }
        }
        let flow = if ran {
            Flow::Next
        } else {
            self.list(dot, &range.otherwise)?
        };
        self.variables.truncate(mark);
        Ok(flow)
    }

    fn check_one_variable(&mut self, range: &RangeLoop, value: &Value) -> Executed<()> {
        if range.pipeline.variables.len() < 2 {
            return Ok(());
        }
        let span = range.pipeline.span;
        let text = format::display(&mut self.env, value).map_err(|fault| located(fault, span))?;
        error(
            span,
            format!("can't use {text} to iterate over more than one variable"),
        )
    }

    /// Runs the body of a loop once; `Continue` is its own affair.
    fn iterate(&mut self, range: &RangeLoop, index: Value, item: Value) -> Executed<Flow> {
        let span = range.pipeline.span;
        self.step(span)?;
        let variables = &range.pipeline.variables;
        // The pipeline left its variables on the stack: the last one stands for the element.
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
                self.assign(&variable.name, variable.span, (*value).clone())?;
            } else {
                let from_top = variables.len() - position;
                let slot = self.variables.len() - from_top;
                self.variables[slot].1 = (*value).clone();
            }
        }
        let mark = self.variables.len();
        let flow = self.nested(span, |executor| executor.list(&item, &range.body))?;
        self.variables.truncate(mark);
        Ok(if flow == Flow::Break {
            Flow::Break
        } else {
            Flow::Next
        })
    }

    fn template(
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
        let dot = match pipeline {
            Some(pipeline) => self.pipeline(dot, pipeline)?,
            None => Value::Nil,
        };
        self.variables.truncate(mark);
        let outer = std::mem::replace(&mut self.variables, vec![("$".into(), dot.clone())]);
        let result = self.nested(span, |executor| executor.list(&dot, body));
        self.variables = outer;
        result?;
        Ok(Flow::Next)
    }

    fn assign(&mut self, name: &str, span: Span, value: Value) -> Executed<()> {
        match self
            .variables
            .iter_mut()
            .rev()
            .find(|(present, _)| &**present == name)
        {
            Some((_, slot)) => {
                *slot = value;
                Ok(())
            }
            None => error(span, format!("undefined variable: {name}")),
        }
    }

    fn pipeline(&mut self, dot: &Value, pipeline: &Pipeline) -> Executed<Value> {
        let mut value = None;
        for command in &pipeline.commands {
            value = Some(self.command(dot, command, value)?.settled());
        }
        let value = value.unwrap_or(Value::Nil);
        for variable in &pipeline.variables {
            if pipeline.assigns {
                self.assign(&variable.name, variable.span, value.clone())?;
            } else {
                self.variables.push((variable.name.clone(), value.clone()));
            }
        }
        Ok(value)
    }

    /// Evaluates a command; `last` is what the pipeline hands it as its last argument.
    fn command(&mut self, dot: &Value, command: &Command, last: Option<Value>) -> Executed<Value> {
        self.step(command.span)?;
        let Some((first, arguments)) = command.words.split_first() else {
            return error(command.span, "empty command");
        };
        match &first.kind {
            ExprKind::Field(path) => {
                let receiver = dot.clone();
                self.field_chain(dot, receiver, path, first.span, arguments, last)
            }
            ExprKind::Chain(inner, path) => {
                let receiver = self.chain_receiver(dot, inner, first.span)?;
                self.field_chain(dot, receiver, path, first.span, arguments, last)
            }
            ExprKind::Variable(name, path) if !path.is_empty() => {
                let receiver = self.variable(name, first.span)?;
                self.field_chain(dot, receiver, path, first.span, arguments, last)
            }
            ExprKind::Function(function) => self.call(dot, function, command.span, arguments, last),
            _ => {
                if !arguments.is_empty() || last.is_some() {
                    let text = first.span.of(self.text);
                    return error(
                        first.span,
                        format!("can't give argument to non-function {text}"),
                    );
                }
                match &first.kind {
                    ExprKind::Nil => error(first.span, "nil is not a command"),
                    _ => self.operand(dot, first),
                }
            }
        }
    }

    fn chain_receiver(&mut self, dot: &Value, inner: &Expr, span: Span) -> Executed<Value> {
        if matches!(inner.kind, ExprKind::Nil) {
            return error(
                span,
                format!("indirection through explicit nil in {}", span.of(self.text)),
            );
        }
        self.operand(dot, inner)
    }

    fn variable(&mut self, name: &str, span: Span) -> Executed<Value> {
        let distance = self
            .variables
            .iter()
            .rev()
            .position(|(present, _)| &**present == name);
        let Some(distance) = distance else {
            return error(span, format!("undefined variable: {name}"));
        };
        self.env
            .meter
            .step(distance as u64 / 8)
            .map_err(|fault| located(fault, span))?;
        Ok(self.variables[self.variables.len() - 1 - distance]
            .1
            .clone())
    }

    /// The value of an expression that is an argument of any type, or stands alone.
    fn operand(&mut self, dot: &Value, expr: &Expr) -> Executed<Value> {
        self.step(expr.span)?;
        match &expr.kind {
            ExprKind::Dot => Ok(dot.clone()),
            ExprKind::Nil => Ok(Value::Nil),
            ExprKind::Bool(value) => Ok(Value::Bool(*value)),
            ExprKind::Number(number) => ideal(*number, expr.span, self.text),
            ExprKind::Text(text) => Ok(Value::Text(text.clone())),
            ExprKind::Field(path) => self.field_chain(dot, dot.clone(), path, expr.span, &[], None),
            ExprKind::Variable(name, path) => {
                let value = self.variable(name, expr.span)?;
                if path.is_empty() {
                    Ok(value)
                } else {
                    self.field_chain(dot, value, path, expr.span, &[], None)
                }
            }
            ExprKind::Function(function) => self.call(dot, function, expr.span, &[], None),
            ExprKind::Pipeline(pipeline) => {
                self.nested(expr.span, |executor| executor.pipeline(dot, pipeline))
            }
            ExprKind::Chain(inner, path) => {
                let receiver = self.chain_receiver(dot, inner, expr.span)?;
                self.field_chain(dot, receiver, path, expr.span, &[], None)
            }
        }
    }

    fn field_chain(
        &mut self,
        dot: &Value,
        mut receiver: Value,
        path: &[Arc<str>],
        span: Span,
        arguments: &[Expr],
        last: Option<Value>,
    ) -> Executed<Value> {
        let Some((final_name, names)) = path.split_last() else {
            return Ok(receiver);
        };
        for name in names {
            receiver = self.field(dot, &receiver, name, span, &[], None)?;
        }
        self.field(dot, &receiver, final_name, span, arguments, last)
    }

    fn field(
        &mut self,
        dot: &Value,
        receiver: &Value,
        name: &Arc<str>,
        span: Span,
        arguments: &[Expr],
        last: Option<Value>,
    ) -> Executed<Value> {
        self.step(span)?;
        match receiver {
            Value::Nil => return Ok(Value::Nil),
            Value::NilField => {
                let fault = Fault::call(format!("nil pointer evaluating interface {{}}.{name}")).with_help(format!(
                    "what stands before `.{name}` has no value here; with `{{{{with ...}}}}{{{{.{name}}}}}{{{{end}}}}` \
                     it may be missing"
                ));
                return Err(located(fault, span));
            }
            Value::Map(map) => {
                if !arguments.is_empty() || last.is_some() {
                    return error(span, format!("{name} is not a method but has arguments"));
                }
                return Ok(match self.env.heap.get(*map).get(name) {
                    Some(value) => value.as_field(),
                    None if map.element == Element::Text => Value::text(""),
                    None => Value::NilField,
                });
            }
            _ => {}
        }
        if let Some(method) = funcs::find_method(receiver, name) {
            // The receiver is the method's first argument.
            return self.call_with(dot, method, span, Some(receiver.clone()), arguments, last);
        }
        let fault = Fault::call(format!(
            "can't evaluate field {name} in type {}",
            receiver.type_name()
        ));
        let fault = match receiver {
            Value::Text(_) => fault.with_help(format!(
                "what stands before `.{name}` is a text; a text has no fields"
            )),
            _ => fault,
        };
        Err(located(fault, span))
    }

    fn call(
        &mut self,
        dot: &Value,
        function: &'static Function,
        span: Span,
        arguments: &[Expr],
        last: Option<Value>,
    ) -> Executed<Value> {
        self.call_with(dot, function, span, None, arguments, last)
    }

    fn call_with(
        &mut self,
        dot: &Value,
        function: &'static Function,
        span: Span,
        receiver: Option<Value>,
        arguments: &[Expr],
        last: Option<Value>,
    ) -> Executed<Value> {
        let offset = usize::from(receiver.is_some());
        let count = arguments.len() + usize::from(last.is_some());
        let fixed = function.params.len() - offset;
        let wrong = match function.rest {
            Some(_) if count < fixed => {
                Some(format!("want at least {fixed} got {}", arguments.len()))
            }
            None if count != fixed => Some(format!("want {fixed} got {count}")),
            _ => None,
        };
        if let Some(wrong) = wrong {
            let fault = Fault::call(format!(
                "wrong number of args for {}: {wrong}",
                function.name
            ));
            return Err(located(fault.with_help(function.usage()), span));
        }
        let param = |index: usize| {
            function
                .params
                .get(index + offset)
                .copied()
                .or(function.rest)
                .unwrap_or(Param::Any)
        };
        let body = match function.body {
            Body::Plain(body) => body,
            Body::ShortCircuit { stops_at } => {
                let mut value = Value::Nil;
                for argument in arguments {
                    value = self.operand(dot, argument)?;
                    if value.truth(&self.env.heap) == stops_at {
                        return Ok(value);
                    }
                }
                return Ok(last.unwrap_or(value));
            }
        };
        let mut values = Vec::with_capacity(count + offset);
        values.extend(receiver);
        for (index, argument) in arguments.iter().enumerate() {
            values.push(self.argument(dot, param(index), argument)?);
        }
        if let Some(last) = last {
            values.push(self.checked(last, param(count - 1), span)?.settled());
        }
        let bytes = values
            .iter()
            .map(|value| value.shallow_bytes(&self.env.heap))
            .sum();
        self.env
            .meter
            .read(bytes)
            .map_err(|fault| located(fault, span))?;
        body(&mut self.env, &values).map_err(|fault| match fault.kind {
            FaultKind::Limit => located(fault, span),
            FaultKind::Call => {
                let message = format!("error calling {}: {}", function.name, fault.message);
                located(Fault { message, ..fault }, span)
            }
        })
    }

    /// An argument for a parameter of type `param`: literals take that type, other values must have it.
    fn argument(&mut self, dot: &Value, param: Param, expr: &Expr) -> Executed<Value> {
        let literal = |found: &str| {
            error(
                expr.span,
                format!("expected {found}; found {}", expr.span.of(self.text)),
            )
        };
        match (&expr.kind, param) {
            (ExprKind::Nil, Param::Any | Param::Dict) => Ok(Value::Nil),
            (ExprKind::Nil, _) => error(
                expr.span,
                format!("cannot assign nil to {}", param.type_name()),
            ),
            (ExprKind::Bool(_), Param::Any | Param::Bool)
            | (ExprKind::Text(_), Param::Any | Param::Text)
            | (ExprKind::Number(_), Param::Any) => Ok(self.operand(dot, expr)?),
            (ExprKind::Number(number), Param::Int) => match number.integer {
                Some(value) => Ok(Value::Int(value)),
                None => literal("integer"),
            },
            (ExprKind::Number(number), Param::Float) => Ok(Value::Float(number.float)),
            (ExprKind::Bool(_) | ExprKind::Text(_) | ExprKind::Number(_), _) => match param {
                Param::Text => literal("string"),
                Param::Int => literal("integer"),
                Param::Bool => literal("bool"),
                Param::Float => literal("float"),
                _ => error(
                    expr.span,
                    format!(
                        "can't handle {} for arg of type {}",
                        expr.span.of(self.text),
                        param.type_name()
                    ),
                ),
            },
            _ => {
                let value = self.operand(dot, expr)?;
                Ok(self.checked(value, param, expr.span)?.settled())
            }
        }
    }

    fn checked(&mut self, value: Value, param: Param, span: Span) -> Executed<Value> {
        let fits = match (&value, param) {
            (_, Param::Any)
            | (Value::Text(_), Param::Text)
            | (Value::Int(_), Param::Int)
            | (Value::Bool(_), Param::Bool)
            | (Value::Float(_), Param::Float)
            | (Value::Time(_), Param::Time)
            | (Value::Duration(_), Param::Duration)
            | (Value::Version(_), Param::Version)
            | (Value::Nil, Param::Dict) => true,
            (Value::Map(map), Param::Dict) => map.element == Element::Any,
            (Value::Nil, _) => {
                let fault = Fault::call(format!("invalid value; expected {}", param.type_name()));
                return Err(located(fault.with_help(missing_help(param)), span));
            }
            _ => false,
        };
        if fits {
            return Ok(value);
        }
        let found = if value.is_nil() {
            "interface {}".to_owned()
        } else {
            value.type_name()
        };
        let fault = Fault::call(format!(
            "wrong type for value; expected {}; got {found}",
            param.type_name()
        ));
        let fault = match (&value, param) {
            (Value::NilField, _) => fault.with_help(missing_help(param)),
            (_, Param::Int) => fault.with_help("convert it with `int`"),
            (_, Param::Text) => fault.with_help("convert it with `toString`"),
            _ => fault,
        };
        Err(located(fault, span))
    }
}

fn missing_help(param: Param) -> String {
    let example = match param {
        Param::Int => "0",
        Param::Bool => "false",
        Param::Float => "0.0",
        Param::Dict => "dict",
        _ => "\"\"",
    };
    format!("the value is missing; give it a default: `(default {example} .Values.NAME)`")
}

fn ideal(number: Number, span: Span, text: &str) -> Executed<Value> {
    match (number.ideal, number.integer) {
        (Ideal::Float, _) => Ok(Value::Float(number.float)),
        (Ideal::Integer, Some(value)) => Ok(Value::Int(value)),
        _ => error(span, format!("{} overflows int", span.of(text))),
    }
}

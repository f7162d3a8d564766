//! Evaluates pipelines: variables, fields, and calls with the checks that Go makes of their arguments.

use std::sync::Arc;

use super::{Executed, Executor, Variable, error, located};
use crate::{
    ast::{Command, Expr, ExprKind, Ideal, Number, Pipeline, Span},
    error::{Fault, FaultKind},
    funcs::{self, Body, Function, Param},
    untrusted::Sources,
    value::{Element, Value},
};

impl Executor<'_> {
    pub(super) fn assign(
        &mut self,
        name: &str,
        span: Span,
        value: Value,
        sources: Sources,
    ) -> Executed<()> {
        let index = self.index_of(name, span)?;
        self.variables[index].value = value;
        self.variables[index].sources = sources;
        Ok(())
    }

    /// Where the innermost variable of this name is. Charged: it is looked for among all in scope.
    fn index_of(&mut self, name: &str, span: Span) -> Executed<usize> {
        let mut inward = self.variables.iter().rev();
        let Some(distance) = inward.position(|variable| &*variable.name == name) else {
            return error(span, format!("undefined variable: {name}"));
        };
        self.env
            .meter
            .step(distance as u64 / 8)
            .map_err(|fault| located(fault, span))?;
        Ok(self.variables.len() - 1 - distance)
    }

    pub(super) fn pipeline(&mut self, dot: &Value, pipeline: &Pipeline) -> Executed<Value> {
        let outer = std::mem::take(&mut self.read);
        let outer_piped = self.piped;
        let mut value = None;
        let mut sources = Sources::NONE;
        for command in &pipeline.commands {
            self.piped = sources;
            let result = self.command(dot, command, value)?.settled();
            let read = std::mem::take(&mut self.read);
            sources = match result {
                Value::Bool(_) => Sources::NONE,
                // `set` gives the map itself, whose entries have sources of their own.
                Value::Map(_) if is_set(command) => read,
                _ => sources | read,
            };
            value = Some(result);
        }
        let value = value.unwrap_or(Value::Nil);
        sources |= self.untrusted.of_template(&pipeline.span.range());
        for variable in &pipeline.variables {
            if pipeline.assigns {
                self.assign(&variable.name, variable.span, value.clone(), sources)?;
            } else {
                self.variables.push(Variable {
                    name: variable.name.clone(),
                    value: value.clone(),
                    sources,
                });
            }
        }
        self.read = outer | sources;
        self.piped = outer_piped;
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
                self.read |= self.dot;
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
        let index = self.index_of(name, span)?;
        self.read |= self.variables[index].sources;
        Ok(self.variables[index].value.clone())
    }

    /// The value of an expression that is an argument of any type, or stands alone.
    fn operand(&mut self, dot: &Value, expr: &Expr) -> Executed<Value> {
        self.step(expr.span)?;
        match &expr.kind {
            ExprKind::Dot => {
                self.read |= self.dot;
                Ok(dot.clone())
            }
            ExprKind::Nil => Ok(Value::Nil),
            ExprKind::Bool(value) => Ok(Value::Bool(*value)),
            ExprKind::Number(number) => ideal(*number, expr.span, self.text),
            ExprKind::Text(text) => Ok(Value::Text(text.clone())),
            ExprKind::Field(path) => {
                self.read |= self.dot;
                self.field_chain(dot, dot.clone(), path, expr.span, &[], None)
            }
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
                self.read |= self.env.heap.sources.of_entry(*map, name);
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
        mut last: Option<Value>,
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
        let outer = std::mem::take(&mut self.read);
        let piped = self.piped;
        let body = match function.body {
            Body::Plain(body) => body,
            Body::ShortCircuit { stops_at } => {
                let mut value = Value::Nil;
                for argument in arguments {
                    value = self.operand(dot, argument)?;
                    if value.truth(&self.env.heap) == stops_at {
                        last = None;
                        break;
                    }
                }
                let value = last.unwrap_or(value);
                self.read = match value {
                    Value::Bool(_) => outer,
                    _ => outer | self.read,
                };
                return Ok(value);
            }
        };
        let mut values = Vec::with_capacity(count + offset);
        let mut sources = Vec::with_capacity(count + offset);
        sources.extend(receiver.as_ref().map(|_| Sources::NONE));
        values.extend(receiver);
        for (index, argument) in arguments.iter().enumerate() {
            values.push(self.argument(dot, param(index), argument)?);
            sources.push(std::mem::take(&mut self.read));
        }
        if let Some(last) = last {
            values.push(self.checked(last, param(count - 1), span)?.settled());
            sources.push(piped);
        }
        let bytes = values
            .iter()
            .map(|value| value.shallow_bytes(&self.env.heap))
            .sum();
        self.env
            .meter
            .read(bytes)
            .map_err(|fault| located(fault, span))?;
        let result = body(&mut self.env, &values).map_err(|fault| match fault.kind {
            FaultKind::Limit => located(fault, span),
            FaultKind::Call => {
                let message = format!("error calling {}: {}", function.name, fault.message);
                located(Fault { message, ..fault }, span)
            }
        })?;
        let own = match result {
            Value::Bool(_) => Sources::NONE,
            _ => self
                .env
                .sources_of_call(function.name, &values, &sources)
                .map_err(|fault| located(fault, span))?,
        };
        self.read = outer | own;
        Ok(result)
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

fn is_set(command: &Command) -> bool {
    command.words.first().is_some_and(
        |first| matches!(&first.kind, ExprKind::Function(function) if function.name == "set"),
    )
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

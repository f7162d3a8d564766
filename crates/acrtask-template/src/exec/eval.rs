//! Evaluation of pipelines: variables, fields and calls, with Go's checks of arguments.

use std::sync::Arc;

use super::{Executed, Executor, Variable, at_span, error};
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
        let index = self.find_variable(name, span)?;
        self.variables[index].value = value;
        self.variables[index].sources = sources;
        Ok(())
    }

    /// Returns the index of the innermost variable with this name. Charges the search among all
    /// variables in scope.
    fn find_variable(&mut self, name: &str, span: Span) -> Executed<usize> {
        let mut inward = self.variables.iter().rev();
        let Some(distance) = inward.position(|variable| &*variable.name == name) else {
            return error(span, format!("undefined variable: {name}"));
        };
        self.env
            .meter
            .charge_steps(distance as u64 / 8)
            .map_err(|fault| at_span(fault, span))?;
        Ok(self.variables.len() - 1 - distance)
    }

    pub(super) fn eval_pipeline(&mut self, dot: &Value, pipeline: &Pipeline) -> Executed<Value> {
        let outer = std::mem::take(&mut self.read_sources);
        let outer_piped = self.piped_sources;
        let mut value = None;
        let mut sources = Sources::NONE;
        for command in &pipeline.commands {
            self.piped_sources = sources;
            let result = self.eval_command(dot, command, value)?.nil_field_to_nil();
            let read = std::mem::take(&mut self.read_sources);
            sources = match result {
                Value::Bool(_) => Sources::NONE,
                // `set` returns the map itself, whose entries have their own sources.
                Value::Map(_) if calls_set(command) => read,
                _ => sources | read,
            };
            value = Some(result);
        }
        let value = value.unwrap_or(Value::Nil);
        sources |= self.untrusted.template_sources(&pipeline.span.range());
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
        self.read_sources = outer | sources;
        self.piped_sources = outer_piped;
        Ok(value)
    }

    /// Evaluates a command. `last` is the value of the previous command, passed as last argument.
    fn eval_command(
        &mut self,
        dot: &Value,
        command: &Command,
        last: Option<Value>,
    ) -> Executed<Value> {
        self.charge_step(command.span)?;
        let Some((first, arguments)) = command.words.split_first() else {
            return error(command.span, "empty command");
        };
        match &first.kind {
            ExprKind::Field(path) => {
                let receiver = dot.clone();
                self.read_sources |= self.dot_sources;
                self.eval_field_chain(dot, receiver, path, first.span, arguments, last)
            }
            ExprKind::Chain(inner, path) => {
                let receiver = self.eval_chain_receiver(dot, inner, first.span)?;
                self.eval_field_chain(dot, receiver, path, first.span, arguments, last)
            }
            ExprKind::Variable(name, path) if !path.is_empty() => {
                let receiver = self.read_variable(name, first.span)?;
                self.eval_field_chain(dot, receiver, path, first.span, arguments, last)
            }
            ExprKind::Function(function) => {
                self.eval_call(dot, function, command.span, arguments, last)
            }
            _ => {
                if !arguments.is_empty() || last.is_some() {
                    let text = first.span.slice(self.text);
                    return error(
                        first.span,
                        format!("can't give argument to non-function {text}"),
                    );
                }
                match &first.kind {
                    ExprKind::Nil => error(first.span, "nil is not a command"),
                    _ => self.eval_operand(dot, first),
                }
            }
        }
    }

    fn eval_chain_receiver(&mut self, dot: &Value, inner: &Expr, span: Span) -> Executed<Value> {
        if matches!(inner.kind, ExprKind::Nil) {
            return error(
                span,
                format!(
                    "indirection through explicit nil in {}",
                    span.slice(self.text)
                ),
            );
        }
        self.eval_operand(dot, inner)
    }

    fn read_variable(&mut self, name: &str, span: Span) -> Executed<Value> {
        let index = self.find_variable(name, span)?;
        self.read_sources |= self.variables[index].sources;
        Ok(self.variables[index].value.clone())
    }

    /// Evaluates an expression as an argument of any type, or as a command of its own.
    fn eval_operand(&mut self, dot: &Value, expr: &Expr) -> Executed<Value> {
        self.charge_step(expr.span)?;
        match &expr.kind {
            ExprKind::Dot => {
                self.read_sources |= self.dot_sources;
                Ok(dot.clone())
            }
            ExprKind::Nil => Ok(Value::Nil),
            ExprKind::Bool(value) => Ok(Value::Bool(*value)),
            ExprKind::Number(number) => ideal_value(*number, expr.span, self.text),
            ExprKind::Text(text) => Ok(Value::Text(text.clone())),
            ExprKind::Field(path) => {
                self.read_sources |= self.dot_sources;
                self.eval_field_chain(dot, dot.clone(), path, expr.span, &[], None)
            }
            ExprKind::Variable(name, path) => {
                let value = self.read_variable(name, expr.span)?;
                if path.is_empty() {
                    Ok(value)
                } else {
                    self.eval_field_chain(dot, value, path, expr.span, &[], None)
                }
            }
            ExprKind::Function(function) => self.eval_call(dot, function, expr.span, &[], None),
            ExprKind::Pipeline(pipeline) => {
                self.run_nested(expr.span, |executor| executor.eval_pipeline(dot, pipeline))
            }
            ExprKind::Chain(inner, path) => {
                let receiver = self.eval_chain_receiver(dot, inner, expr.span)?;
                self.eval_field_chain(dot, receiver, path, expr.span, &[], None)
            }
        }
    }

    fn eval_field_chain(
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
            receiver = self.eval_field(dot, &receiver, name, span, &[], None)?;
        }
        self.eval_field(dot, &receiver, final_name, span, arguments, last)
    }

    fn eval_field(
        &mut self,
        dot: &Value,
        receiver: &Value,
        name: &Arc<str>,
        span: Span,
        arguments: &[Expr],
        last: Option<Value>,
    ) -> Executed<Value> {
        self.charge_step(span)?;
        match receiver {
            Value::Nil => return Ok(Value::Nil),
            Value::NilField => {
                let fault = Fault::call(format!("nil pointer evaluating interface {{}}.{name}")).with_help(format!(
                    "the part before `.{name}` has no value here; with `{{{{with ...}}}}{{{{.{name}}}}}{{{{end}}}}` \
                     it may be missing"
                ));
                return Err(at_span(fault, span));
            }
            Value::Map(map) => {
                if !arguments.is_empty() || last.is_some() {
                    return error(span, format!("{name} is not a method but has arguments"));
                }
                self.read_sources |= self.env.heap.sources.entry_sources(*map, name);
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
            return self.eval_call_with(dot, method, span, Some(receiver.clone()), arguments, last);
        }
        let fault = Fault::call(format!(
            "can't evaluate field {name} in type {}",
            receiver.type_name()
        ));
        let fault = match receiver {
            Value::Text(_) => fault.with_help(format!(
                "the part before `.{name}` is text; text has no fields"
            )),
            _ => fault,
        };
        Err(at_span(fault, span))
    }

    fn eval_call(
        &mut self,
        dot: &Value,
        function: &'static Function,
        span: Span,
        arguments: &[Expr],
        last: Option<Value>,
    ) -> Executed<Value> {
        self.eval_call_with(dot, function, span, None, arguments, last)
    }

    fn eval_call_with(
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
            return Err(at_span(fault.with_help(function.usage()), span));
        }
        let param = |index: usize| {
            function
                .params
                .get(index + offset)
                .copied()
                .or(function.rest)
                .unwrap_or(Param::Any)
        };
        let outer = std::mem::take(&mut self.read_sources);
        let piped = self.piped_sources;
        let body = match function.body {
            Body::Plain(body) => body,
            Body::ShortCircuit { stops_at } => {
                let mut value = Value::Nil;
                for argument in arguments {
                    value = self.eval_operand(dot, argument)?;
                    if value.is_truthy(&self.env.heap) == stops_at {
                        last = None;
                        break;
                    }
                }
                let value = last.unwrap_or(value);
                self.read_sources = match value {
                    Value::Bool(_) => outer,
                    _ => outer | self.read_sources,
                };
                return Ok(value);
            }
        };
        let mut values = Vec::with_capacity(count + offset);
        let mut sources = Vec::with_capacity(count + offset);
        sources.extend(receiver.as_ref().map(|_| Sources::NONE));
        values.extend(receiver);
        for (index, argument) in arguments.iter().enumerate() {
            values.push(self.eval_argument(dot, param(index), argument)?);
            sources.push(std::mem::take(&mut self.read_sources));
        }
        if let Some(last) = last {
            values.push(
                self.check_type(last, param(count - 1), span)?
                    .nil_field_to_nil(),
            );
            sources.push(piped);
        }
        let bytes = values
            .iter()
            .map(|value| value.shallow_bytes(&self.env.heap))
            .sum();
        self.env
            .meter
            .charge_read(bytes)
            .map_err(|fault| at_span(fault, span))?;
        let result = body(&mut self.env, &values).map_err(|fault| match fault.kind {
            FaultKind::Limit => at_span(fault, span),
            FaultKind::Call => {
                let message = format!("error calling {}: {}", function.name, fault.message);
                at_span(Fault { message, ..fault }, span)
            }
        })?;
        let own = match result {
            Value::Bool(_) => Sources::NONE,
            _ => self
                .env
                .call_sources(function.name, &values, &sources)
                .map_err(|fault| at_span(fault, span))?,
        };
        self.read_sources = outer | own;
        Ok(result)
    }

    /// Evaluates an argument for a parameter of type `param`. Literals take that type. Other values
    /// must have it.
    fn eval_argument(&mut self, dot: &Value, param: Param, expr: &Expr) -> Executed<Value> {
        let literal = |found: &str| {
            error(
                expr.span,
                format!("expected {found}; found {}", expr.span.slice(self.text)),
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
            | (ExprKind::Number(_), Param::Any) => Ok(self.eval_operand(dot, expr)?),
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
                        expr.span.slice(self.text),
                        param.type_name()
                    ),
                ),
            },
            _ => {
                let value = self.eval_operand(dot, expr)?;
                Ok(self.check_type(value, param, expr.span)?.nil_field_to_nil())
            }
        }
    }

    fn check_type(&mut self, value: Value, param: Param, span: Span) -> Executed<Value> {
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
                return Err(at_span(fault.with_help(missing_help(param)), span));
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
        Err(at_span(fault, span))
    }
}

fn calls_set(command: &Command) -> bool {
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

fn ideal_value(number: Number, span: Span, text: &str) -> Executed<Value> {
    match (number.ideal, number.integer) {
        (Ideal::Float, _) => Ok(Value::Float(number.float)),
        (Ideal::Integer, Some(value)) => Ok(Value::Int(value)),
        _ => error(span, format!("{} overflows int", span.slice(text))),
    }
}

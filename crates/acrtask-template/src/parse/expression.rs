//! Parser of pipelines, commands and their words.

use std::sync::Arc;

use super::{Parsed, Parser, error, error_with_help};
use crate::{
    ast::{Command, Expr, ExprKind, Pipeline, Span, Variable},
    format::quote,
    funcs,
    lexer::{Keyword, Token, TokenKind},
    literal,
};

impl Parser<'_> {
    pub(super) fn parse_text_literal(&self, token: &Token) -> Parsed<Arc<str>> {
        match literal::unquote(token.span.slice(self.text)) {
            Ok(text) => Ok(text.into()),
            Err(message) => error(token.span, message),
        }
    }

    pub(super) fn parse_pipeline(&mut self, context: &str, end: &TokenKind) -> Parsed<Pipeline> {
        let start = self.peek_non_space().span;
        self.count_node(start)?;
        let (variables, assigns) = self.parse_declarations(context)?;
        let mut commands: Vec<Command> = Vec::new();
        loop {
            let token = self.peek_non_space().clone();
            match &token.kind {
                kind if kind == end => {
                    self.next();
                    self.check_pipeline(&commands, context, start.extend_to(token.span))?;
                    let last = commands.last().map_or(start, |command| command.span);
                    return Ok(Pipeline {
                        span: start.extend_to(last),
                        variables,
                        assigns,
                        commands,
                    });
                }
                TokenKind::Bool
                | TokenKind::CharConstant
                | TokenKind::Dot
                | TokenKind::Field
                | TokenKind::Identifier
                | TokenKind::Number
                | TokenKind::Keyword(Keyword::Nil)
                | TokenKind::RawString
                | TokenKind::Str
                | TokenKind::Variable
                | TokenKind::LeftParen => commands.push(self.parse_command()?),
                _ => return self.unexpected_token(&token, context),
            }
        }
    }

    /// Parses `$x :=`, `$x =`, and in a range `$i, $e :=`.
    fn parse_declarations(&mut self, context: &str) -> Parsed<(Vec<Variable>, bool)> {
        let mut variables = Vec::new();
        let mut assigns = false;
        while self.peek_non_space().kind == TokenKind::Variable {
            let before = self.position;
            let token = self.next();
            let next = self.peek_non_space().clone();
            let is_comma = next.kind == TokenKind::Char && next.span.slice(self.text) == ",";
            if !is_comma && !matches!(next.kind, TokenKind::Assign | TokenKind::Declare) {
                // The variable is an operand, followed by a space.
                self.position = before;
                break;
            }
            self.next();
            let name: Arc<str> = token.span.slice(self.text).into();
            self.declare_variable(name.clone(), token.span)?;
            variables.push(Variable {
                name,
                span: token.span,
            });
            if !is_comma {
                assigns = next.kind == TokenKind::Assign;
                break;
            }
            if context != "range" || variables.len() > 1 {
                return error(next.span, format!("too many declarations in {context}"));
            }
            let following = self.peek_non_space().clone();
            if !matches!(
                following.kind,
                TokenKind::Variable | TokenKind::RightDelim | TokenKind::RightParen
            ) {
                return error(following.span, "range can only initialize variables");
            }
        }
        Ok((variables, assigns))
    }

    fn check_pipeline(&self, commands: &[Command], context: &str, span: Span) -> Parsed<()> {
        if commands.is_empty() {
            return error(span, format!("missing value for {context}"));
        }
        for (index, command) in commands.iter().enumerate().skip(1) {
            if let Some(
                ExprKind::Bool(_)
                | ExprKind::Dot
                | ExprKind::Nil
                | ExprKind::Number(_)
                | ExprKind::Text(_),
            ) = command.words.first().map(|word| &word.kind)
            {
                return error(
                    command.span,
                    format!("non executable command in pipeline stage {}", index + 1),
                );
            }
        }
        Ok(())
    }

    fn parse_command(&mut self) -> Parsed<Command> {
        let start = self.peek_non_space().span;
        self.count_node(start)?;
        let mut words: Vec<Expr> = Vec::new();
        loop {
            self.skip_space();
            if let Some(word) = self.parse_operand()? {
                words.push(word);
            }
            let token = self.peek().clone();
            match token.kind {
                TokenKind::Space => {
                    self.next();
                }
                TokenKind::RightDelim | TokenKind::RightParen => break,
                TokenKind::Pipe => {
                    self.next();
                    break;
                }
                _ => return self.unexpected_token(&token, "operand"),
            }
        }
        let Some(last) = words.last() else {
            return error(start, "empty command");
        };
        Ok(Command {
            span: start.extend_to(last.span),
            words,
        })
    }

    fn parse_operand(&mut self) -> Parsed<Option<Expr>> {
        let Some(mut expr) = self.parse_term()? else {
            return Ok(None);
        };
        if self.peek().kind != TokenKind::Field {
            return Ok(Some(expr));
        }
        let mut fields = Vec::new();
        let mut span = expr.span;
        while self.peek().kind == TokenKind::Field {
            let token = self.next();
            self.count_node(token.span)?;
            span = span.extend_to(token.span);
            fields.push(Arc::from(&token.span.slice(self.text)[1..]));
        }
        match &mut expr.kind {
            ExprKind::Field(path) | ExprKind::Variable(_, path) => {
                path.append(&mut fields);
                expr.span = span;
            }
            ExprKind::Bool(_)
            | ExprKind::Text(_)
            | ExprKind::Number(_)
            | ExprKind::Nil
            | ExprKind::Dot => {
                let term = expr.span.slice(self.text);
                return error(span, format!("unexpected . after term {}", quote(term)));
            }
            ExprKind::Function(_) | ExprKind::Pipeline(_) | ExprKind::Chain(..) => {
                expr = Expr {
                    span,
                    kind: ExprKind::Chain(Box::new(expr), fields),
                };
            }
        }
        Ok(Some(expr))
    }

    fn parse_term(&mut self) -> Parsed<Option<Expr>> {
        let token = self.peek_non_space().clone();
        let span = token.span;
        let text = span.slice(self.text);
        let kind = match token.kind {
            TokenKind::Identifier => match funcs::find_function(text) {
                Some(function) => ExprKind::Function(function),
                None => {
                    let path_follows = self.text[span.range().end..].starts_with('.');
                    return error_with_help(
                        span,
                        format!("function {} not defined", quote(text)),
                        Some(funcs::help_for_unknown(text, path_follows)),
                    );
                }
            },
            TokenKind::Dot => ExprKind::Dot,
            TokenKind::Keyword(Keyword::Nil) => ExprKind::Nil,
            TokenKind::Variable => {
                let name: Arc<str> = text.into();
                if !self.variables.contains(&name) {
                    return error_with_help(
                        span,
                        format!("undefined variable {}", quote(text)),
                        Some(format!(
                            "a variable is made with `{{{{{text} := ...}}}}`, in the same block or around it"
                        )),
                    );
                }
                ExprKind::Variable(name, Vec::new())
            }
            TokenKind::Field => ExprKind::Field(vec![text[1..].into()]),
            TokenKind::Bool => ExprKind::Bool(text == "true"),
            TokenKind::CharConstant | TokenKind::Number => match literal::parse_number(text) {
                Ok(number) => ExprKind::Number(number),
                Err(message) => {
                    let help = text
                        .starts_with('\'')
                        .then(|| "a text is written between double quotes".to_owned());
                    return error_with_help(span, message, help);
                }
            },
            TokenKind::Str | TokenKind::RawString => {
                ExprKind::Text(self.parse_text_literal(&token)?)
            }
            TokenKind::LeftParen => {
                self.next();
                let pipeline = self.parse_nested(span, |parser| {
                    parser.parse_pipeline("parenthesized pipeline", &TokenKind::RightParen)
                })?;
                let close = self
                    .tokens
                    .get(self.position.saturating_sub(1))
                    .map_or(span, |token| token.span);
                self.count_node(span)?;
                return Ok(Some(Expr {
                    span: span.extend_to(close),
                    kind: ExprKind::Pipeline(pipeline),
                }));
            }
            _ => return Ok(None),
        };
        self.count_node(span)?;
        self.next();
        Ok(Some(Expr { span, kind }))
    }
}

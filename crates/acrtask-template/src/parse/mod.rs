//! Parser with the rules and messages of Go's `text/template/parse`.
//!
//! Left out: complex numbers, and other delimiters than `{{` and `}}`. Bounded: the length of the
//! text, the number of nodes, and the nesting of blocks and parentheses.

mod expression;

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    ast::{Conditional, Node, RangeLoop, Span},
    error::{TemplateError, TemplateErrorKind},
    format::quote,
    lexer::{Keyword, Lexer, Token, TokenKind},
};

/// Maximum length of a template in bytes. The longest known task file has 50 KB.
const MAX_TEXT: usize = 512 << 10;
/// Maximum number of words, actions and pieces of text in a template.
const MAX_NODES: usize = 100_000;
/// Maximum number of variables in scope. Each use searches them.
const MAX_VARIABLES: usize = 1000;
/// Maximum nesting of blocks and parentheses in total.
const MAX_DEPTH: usize = 100;

/// The templates of one text: the main one under its own name, and those of `define` and `block`.
pub(crate) type Trees = BTreeMap<Arc<str>, Vec<Node>>;

pub(crate) fn parse(name: &str, text: &str) -> Result<Trees, TemplateError> {
    if text.len() > MAX_TEXT {
        return Err(TemplateError {
            message: format!(
                "the template has {} bytes; at most {MAX_TEXT} are allowed",
                text.len()
            ),
            span: 0..0,
            help: None,
            kind: TemplateErrorKind::Limit,
        });
    }
    let mut parser = Parser {
        text,
        tokens: Lexer::tokenize(text),
        position: 0,
        variables: vec!["$".into()],
        range_depth: 0,
        depth: 0,
        nodes: 0,
        trees: Trees::new(),
    };
    let root = parser.parse_root()?;
    let end = parser
        .tokens
        .last()
        .map_or(Span::default(), |token| token.span);
    parser.add_template(name.into(), root, end)?;
    Ok(parser.trees)
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    position: usize,
    /// Variables in scope, with their `$`.
    variables: Vec<Arc<str>>,
    range_depth: usize,
    depth: usize,
    nodes: usize,
    trees: Trees,
}

type Parsed<T> = Result<T, TemplateError>;

/// The end of a list of nodes.
enum Terminator {
    End(Span),
    /// `{{else}}`
    Else(Span),
    /// `{{else` of `{{else if` or `{{else with`. The keyword follows.
    ElseThen(Span),
}

impl Terminator {
    fn span(&self) -> Span {
        match self {
            Self::End(span) | Self::Else(span) | Self::ElseThen(span) => *span,
        }
    }

    fn written(&self) -> &'static str {
        match self {
            Self::End(_) => "{{end}}",
            Self::Else(_) | Self::ElseThen(_) => "{{else}}",
        }
    }
}

enum Item {
    Node(Node),
    Terminator(Terminator),
    /// A definition, which adds no node.
    Nothing,
}

fn error<T>(span: Span, message: impl Into<String>) -> Parsed<T> {
    Err(TemplateError {
        message: message.into(),
        span: span.range(),
        help: None,
        kind: TemplateErrorKind::Parse,
    })
}

fn error_with_help<T>(span: Span, message: impl Into<String>, help: Option<String>) -> Parsed<T> {
    Err(TemplateError {
        message: message.into(),
        span: span.range(),
        help,
        kind: TemplateErrorKind::Parse,
    })
}

impl Parser<'_> {
    fn peek(&self) -> &Token {
        // The last token is Eof or Error. `next` never moves past it.
        self.tokens
            .get(self.position)
            .or(self.tokens.last())
            .expect("the lexer always ends with Eof or Error")
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        if self.position + 1 < self.tokens.len() {
            self.position += 1;
        }
        token
    }

    fn skip_space(&mut self) {
        while self.peek().kind == TokenKind::Space {
            self.next();
        }
    }

    fn peek_non_space(&mut self) -> &Token {
        self.skip_space();
        self.peek()
    }

    fn next_non_space(&mut self) -> Token {
        self.skip_space();
        self.next()
    }

    fn unexpected_token<T>(&self, token: &Token, context: &str) -> Parsed<T> {
        let found = match &token.kind {
            TokenKind::Error(error) => {
                return Err(TemplateError {
                    message: error.message.clone(),
                    span: token.span.range(),
                    help: error.help.clone(),
                    kind: error.kind,
                });
            }
            TokenKind::Eof => "EOF".to_owned(),
            TokenKind::Keyword(_) | TokenKind::Dot => format!("<{}>", token.span.slice(self.text)),
            _ => {
                let text = token.span.slice(self.text);
                match text.char_indices().nth(10) {
                    Some((end, _)) => format!("{}...", quote(&text[..end])),
                    None => quote(text),
                }
            }
        };
        let help = match (&token.kind, context) {
            (TokenKind::Char, _) => match token.span.slice(self.text) {
                "\\" => Some("inside an action quotes are written without a backslash"),
                "!" => Some("`!` is written `not`"),
                "&" => Some("`a && b` is written `and a b`"),
                "<" | ">" => Some("`a < b` is written `lt a b`, `a > b` `gt a b`"),
                "}" => Some("an action ends with `}}`"),
                _ => None,
            },
            (TokenKind::Assign, _) => Some("`a == b` is written `eq a b`"),
            _ => None,
        };
        error_with_help(
            token.span,
            format!("unexpected {found} in {context}"),
            help.map(str::to_owned),
        )
    }

    fn expect(&mut self, kind: &TokenKind, context: &str) -> Parsed<Token> {
        let token = self.next_non_space();
        if token.kind == *kind {
            Ok(token)
        } else {
            self.unexpected_token(&token, context)
        }
    }

    fn count_node(&mut self, span: Span) -> Parsed<()> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return self.limit_error(
                span,
                format!("the template has more than {MAX_NODES} parts"),
            );
        }
        Ok(())
    }

    /// Adds a variable to the scope.
    fn declare_variable(&mut self, name: Arc<str>, span: Span) -> Parsed<()> {
        if self.variables.len() >= MAX_VARIABLES {
            return self.limit_error(
                span,
                format!("the template has more than {MAX_VARIABLES} variables in one scope"),
            );
        }
        self.variables.push(name);
        Ok(())
    }

    fn limit_error<T>(&self, span: Span, message: String) -> Parsed<T> {
        Err(TemplateError {
            message,
            span: span.range(),
            help: None,
            kind: TemplateErrorKind::Limit,
        })
    }

    /// Runs `inner` one level deeper.
    fn parse_nested<T>(
        &mut self,
        span: Span,
        inner: impl FnOnce(&mut Self) -> Parsed<T>,
    ) -> Parsed<T> {
        if self.depth >= MAX_DEPTH {
            return self.limit_error(span, "max expression depth exceeded".to_owned());
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// Adds a template. Another one of the same name may replace an empty or blank one.
    fn add_template(&mut self, name: Arc<str>, body: Vec<Node>, span: Span) -> Parsed<()> {
        let is_empty = |body: &[Node], text: &str| {
            body.iter()
                .all(|node| matches!(node, Node::Text(span) if span.slice(text).trim().is_empty()))
        };
        match self.trees.get(&name) {
            Some(present) if !is_empty(present, self.text) => {
                if !is_empty(&body, self.text) {
                    return error(
                        span,
                        format!("multiple definition of template {}", quote(&name)),
                    );
                }
            }
            _ => {
                self.trees.insert(name, body);
            }
        }
        Ok(())
    }

    fn parse_root(&mut self) -> Parsed<Vec<Node>> {
        let mut list = Vec::new();
        while self.peek().kind != TokenKind::Eof {
            match self.parse_item(true)? {
                Item::Node(node) => list.push(node),
                Item::Terminator(terminator) => {
                    return error_with_help(
                        terminator.span(),
                        format!("unexpected {}", terminator.written()),
                        Some("it closes nothing: no `if`, `with`, `range`, `define` or `block` is open here".to_owned()),
                    );
                }
                Item::Nothing => {}
            }
        }
        Ok(list)
    }

    /// Parses the nodes up to `{{end}}` or `{{else}}` of the block that starts at `opened`.
    fn parse_list(&mut self, opened: Span) -> Parsed<(Vec<Node>, Terminator)> {
        self.parse_nested(opened, |parser| {
            let mut list = Vec::new();
            while parser.peek_non_space().kind != TokenKind::Eof {
                match parser.parse_item(false)? {
                    Item::Node(node) => list.push(node),
                    Item::Terminator(terminator) => return Ok((list, terminator)),
                    Item::Nothing => {}
                }
            }
            error_with_help(
                opened,
                "unexpected EOF",
                Some("this block has no `{{end}}`".to_owned()),
            )
        })
    }

    fn parse_item(&mut self, top: bool) -> Parsed<Item> {
        let token = self.next_non_space();
        self.count_node(token.span)?;
        match token.kind {
            TokenKind::Text => Ok(Item::Node(Node::Text(token.span))),
            TokenKind::LeftDelim => self.parse_action(token.span, top),
            _ => self.unexpected_token(&token, "input"),
        }
    }

    /// Parses an action whose `{{` is `opening`.
    fn parse_action(&mut self, opening: Span, top: bool) -> Parsed<Item> {
        let word = self.peek_non_space().clone();
        let TokenKind::Keyword(keyword) = word.kind else {
            let pipeline = self.parse_pipeline("command", &TokenKind::RightDelim)?;
            return Ok(Item::Node(Node::Action {
                at: opening.start,
                pipeline,
            }));
        };
        if keyword == Keyword::Nil {
            let pipeline = self.parse_pipeline("command", &TokenKind::RightDelim)?;
            return Ok(Item::Node(Node::Action {
                at: opening.start,
                pipeline,
            }));
        }
        self.next();
        let span = opening.extend_to(word.span);
        match keyword {
            Keyword::Define if top => {
                self.parse_definition(span)?;
                Ok(Item::Nothing)
            }
            Keyword::Define | Keyword::Nil => self.unexpected_token(&word, "command"),
            Keyword::Block => self.parse_block(span).map(Item::Node),
            Keyword::Break => self.parse_loop_control(&word, "{{break}}", Node::Break),
            Keyword::Continue => self.parse_loop_control(&word, "{{continue}}", Node::Continue),
            Keyword::Else => {
                if matches!(
                    self.peek_non_space().kind,
                    TokenKind::Keyword(Keyword::If | Keyword::With)
                ) {
                    return Ok(Item::Terminator(Terminator::ElseThen(span)));
                }
                let close = self.expect(&TokenKind::RightDelim, "else")?;
                Ok(Item::Terminator(Terminator::Else(
                    span.extend_to(close.span),
                )))
            }
            Keyword::End => {
                let close = self.expect(&TokenKind::RightDelim, "end")?;
                Ok(Item::Terminator(Terminator::End(
                    span.extend_to(close.span),
                )))
            }
            Keyword::If => Ok(Item::Node(Node::If(self.parse_conditional(
                span,
                "if",
                Keyword::If,
            )?))),
            Keyword::With => Ok(Item::Node(Node::With(self.parse_conditional(
                span,
                "with",
                Keyword::With,
            )?))),
            Keyword::Range => self.parse_range(span).map(Item::Node),
            Keyword::Template => {
                let name = self.parse_template_name("template clause")?;
                let pipeline = if self.peek_non_space().kind == TokenKind::RightDelim {
                    self.next();
                    None
                } else {
                    Some(self.parse_pipeline("template clause", &TokenKind::RightDelim)?)
                };
                Ok(Item::Node(Node::Template {
                    name,
                    span,
                    pipeline,
                }))
            }
        }
    }

    fn parse_loop_control(&mut self, word: &Token, written: &str, node: Node) -> Parsed<Item> {
        self.expect(&TokenKind::RightDelim, written)?;
        if self.range_depth == 0 {
            return error(word.span, format!("{written} outside {{{{range}}}}"));
        }
        Ok(Item::Node(node))
    }

    fn parse_conditional(
        &mut self,
        opening: Span,
        context: &str,
        keyword: Keyword,
    ) -> Parsed<Conditional> {
        let mark = self.variables.len();
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        loop {
            let pipeline = self.parse_pipeline(context, &TokenKind::RightDelim)?;
            let (body, terminator) = self.parse_list(opening)?;
            branches.push((pipeline, body));
            match terminator {
                Terminator::End(_) => break,
                Terminator::ElseThen(span) => {
                    let word = self.next_non_space();
                    if word.kind != TokenKind::Keyword(keyword) {
                        return self
                            .unexpected_token(&word, "input")
                            .or_else(|fault| error(span, fault.message));
                    }
                }
                Terminator::Else(_) => {
                    otherwise = self.parse_else(opening)?;
                    break;
                }
            }
        }
        self.variables.truncate(mark);
        Ok(Conditional {
            branches,
            otherwise,
        })
    }

    fn parse_else(&mut self, opening: Span) -> Parsed<Vec<Node>> {
        let (list, terminator) = self.parse_list(opening)?;
        match terminator {
            Terminator::End(_) => Ok(list),
            other => error(
                other.span(),
                format!("expected end; found {}", other.written()),
            ),
        }
    }

    fn parse_range(&mut self, opening: Span) -> Parsed<Node> {
        let mark = self.variables.len();
        let pipeline = self.parse_pipeline("range", &TokenKind::RightDelim)?;
        self.range_depth += 1;
        let listed = self.parse_list(opening);
        self.range_depth -= 1;
        let (body, terminator) = listed?;
        let otherwise = match terminator {
            Terminator::End(_) => Vec::new(),
            Terminator::Else(_) => self.parse_else(opening)?,
            Terminator::ElseThen(span) => {
                let word = self.next_non_space();
                return self
                    .unexpected_token(&word, "input")
                    .or_else(|fault| error(span, fault.message));
            }
        };
        self.variables.truncate(mark);
        Ok(Node::Range(Box::new(RangeLoop {
            pipeline,
            body,
            otherwise,
        })))
    }

    /// Parses the body of another template. Outer variables and loops are not accessible.
    fn parse_separate_body(&mut self, opening: Span, context: &str) -> Parsed<Vec<Node>> {
        let variables = std::mem::replace(&mut self.variables, vec!["$".into()]);
        let range_depth = std::mem::take(&mut self.range_depth);
        let listed = self.parse_list(opening);
        self.variables = variables;
        self.range_depth = range_depth;
        match listed? {
            (body, Terminator::End(_)) => Ok(body),
            (_, other) => error(
                other.span(),
                format!("unexpected {} in {context}", other.written()),
            ),
        }
    }

    fn parse_definition(&mut self, opening: Span) -> Parsed<()> {
        const CONTEXT: &str = "define clause";
        let name = self.parse_template_name(CONTEXT)?;
        self.expect(&TokenKind::RightDelim, CONTEXT)?;
        let body = self.parse_separate_body(opening, CONTEXT)?;
        self.add_template(name, body, opening)
    }

    fn parse_block(&mut self, opening: Span) -> Parsed<Node> {
        const CONTEXT: &str = "block clause";
        let name = self.parse_template_name(CONTEXT)?;
        let pipeline = self.parse_pipeline(CONTEXT, &TokenKind::RightDelim)?;
        let body = self.parse_separate_body(opening, CONTEXT)?;
        self.add_template(name.clone(), body, opening)?;
        Ok(Node::Template {
            name,
            span: opening,
            pipeline: Some(pipeline),
        })
    }

    fn parse_template_name(&mut self, context: &str) -> Parsed<Arc<str>> {
        let token = self.next_non_space();
        match token.kind {
            TokenKind::Str | TokenKind::RawString => self.parse_text_literal(&token),
            _ => self.unexpected_token(&token, context),
        }
    }
}

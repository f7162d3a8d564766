//! Builds the tree, with the rules and messages of Go's `text/template/parse`.
//!
//! Left out: complex numbers, and other delimiters than `{{` and `}}`.
//! Bounded: the length of the text, the number of nodes, and how deep blocks and parentheses nest.

mod expression;

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    ast::{Conditional, Node, RangeLoop, Span},
    error::{TemplateError, TemplateErrorKind},
    format::quote,
    lexer::{Keyword, Lexer, Token, TokenKind},
};

/// Longest template in bytes. The longest real task file has 50 KB.
const MAX_TEXT: usize = 512 << 10;
/// Most words, actions and pieces of text in a template.
const MAX_NODES: usize = 100_000;
/// Most variables in scope: each use is looked for among them.
const MAX_VARIABLES: usize = 1000;
/// How deep blocks and parentheses may nest, together.
const MAX_DEPTH: usize = 100;

/// The templates of one text: the main one under its own name, and what `define` and `block` added.
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
        tokens: Lexer::tokens(text),
        position: 0,
        variables: vec!["$".into()],
        range_depth: 0,
        depth: 0,
        nodes: 0,
        trees: Trees::new(),
    };
    let root = parser.root()?;
    let end = parser
        .tokens
        .last()
        .map_or(Span::default(), |token| token.span);
    parser.add(name.into(), root, end)?;
    Ok(parser.trees)
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    position: usize,
    /// The variables in scope, with their `$`.
    variables: Vec<Arc<str>>,
    range_depth: usize,
    depth: usize,
    nodes: usize,
    trees: Trees,
}

type Parsed<T> = Result<T, TemplateError>;

/// What ended a list of nodes.
enum Terminator {
    End(Span),
    /// `{{else}}`
    Else(Span),
    /// `{{else` of `{{else if` or `{{else with`: the keyword follows.
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
    /// A definition: it leaves no node where it stands.
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
        // The last token is Eof or Error, and is never passed: see `next`.
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

    fn unexpected<T>(&self, token: &Token, context: &str) -> Parsed<T> {
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
            TokenKind::Keyword(_) | TokenKind::Dot => format!("<{}>", token.span.of(self.text)),
            _ => {
                let text = token.span.of(self.text);
                match text.char_indices().nth(10) {
                    Some((end, _)) => format!("{}...", quote(&text[..end])),
                    None => quote(text),
                }
            }
        };
        let help = match (&token.kind, context) {
            (TokenKind::Char, _) => match token.span.of(self.text) {
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
            self.unexpected(&token, context)
        }
    }

    fn count(&mut self, span: Span) -> Parsed<()> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return self.limit(
                span,
                format!("the template has more than {MAX_NODES} parts"),
            );
        }
        Ok(())
    }

    /// Takes a variable into scope.
    fn declare(&mut self, name: Arc<str>, span: Span) -> Parsed<()> {
        if self.variables.len() >= MAX_VARIABLES {
            return self.limit(
                span,
                format!("the template has more than {MAX_VARIABLES} variables in one scope"),
            );
        }
        self.variables.push(name);
        Ok(())
    }

    fn limit<T>(&self, span: Span, message: String) -> Parsed<T> {
        Err(TemplateError {
            message,
            span: span.range(),
            help: None,
            kind: TemplateErrorKind::Limit,
        })
    }

    /// Runs `inner` one level deeper.
    fn nested<T>(&mut self, span: Span, inner: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth >= MAX_DEPTH {
            return self.limit(span, "max expression depth exceeded".to_owned());
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// Adds a template. One that is empty, or only spaces, gives way to another of its name.
    fn add(&mut self, name: Arc<str>, body: Vec<Node>, span: Span) -> Parsed<()> {
        let is_empty = |body: &[Node], text: &str| {
            body.iter()
                .all(|node| matches!(node, Node::Text(span) if span.of(text).trim().is_empty()))
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

    fn root(&mut self) -> Parsed<Vec<Node>> {
        let mut list = Vec::new();
        while self.peek().kind != TokenKind::Eof {
            match self.item(true)? {
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

    /// The nodes up to `{{end}}` or `{{else}}` of the block that `opened` began.
    fn list(&mut self, opened: Span) -> Parsed<(Vec<Node>, Terminator)> {
        self.nested(opened, |parser| {
            let mut list = Vec::new();
            while parser.peek_non_space().kind != TokenKind::Eof {
                match parser.item(false)? {
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

    fn item(&mut self, top: bool) -> Parsed<Item> {
        let token = self.next_non_space();
        self.count(token.span)?;
        match token.kind {
            TokenKind::Text => Ok(Item::Node(Node::Text(token.span))),
            TokenKind::LeftDelim => self.action(token.span, top),
            _ => self.unexpected(&token, "input"),
        }
    }

    /// An action whose `{{` is `opening`.
    fn action(&mut self, opening: Span, top: bool) -> Parsed<Item> {
        let word = self.peek_non_space().clone();
        let TokenKind::Keyword(keyword) = word.kind else {
            let pipeline = self.pipeline("command", &TokenKind::RightDelim)?;
            return Ok(Item::Node(Node::Action {
                at: opening.start,
                pipeline,
            }));
        };
        if keyword == Keyword::Nil {
            let pipeline = self.pipeline("command", &TokenKind::RightDelim)?;
            return Ok(Item::Node(Node::Action {
                at: opening.start,
                pipeline,
            }));
        }
        self.next();
        let span = opening.to(word.span);
        match keyword {
            Keyword::Define if top => {
                self.definition(span)?;
                Ok(Item::Nothing)
            }
            Keyword::Define | Keyword::Nil => self.unexpected(&word, "command"),
            Keyword::Block => self.block(span).map(Item::Node),
            Keyword::Break => self.loop_control(&word, "{{break}}", Node::Break),
            Keyword::Continue => self.loop_control(&word, "{{continue}}", Node::Continue),
            Keyword::Else => {
                if matches!(
                    self.peek_non_space().kind,
                    TokenKind::Keyword(Keyword::If | Keyword::With)
                ) {
                    return Ok(Item::Terminator(Terminator::ElseThen(span)));
                }
                let close = self.expect(&TokenKind::RightDelim, "else")?;
                Ok(Item::Terminator(Terminator::Else(span.to(close.span))))
            }
            Keyword::End => {
                let close = self.expect(&TokenKind::RightDelim, "end")?;
                Ok(Item::Terminator(Terminator::End(span.to(close.span))))
            }
            Keyword::If => Ok(Item::Node(Node::If(self.conditional(
                span,
                "if",
                Keyword::If,
            )?))),
            Keyword::With => Ok(Item::Node(Node::With(self.conditional(
                span,
                "with",
                Keyword::With,
            )?))),
            Keyword::Range => self.range(span).map(Item::Node),
            Keyword::Template => {
                let name = self.template_name("template clause")?;
                let pipeline = if self.peek_non_space().kind == TokenKind::RightDelim {
                    self.next();
                    None
                } else {
                    Some(self.pipeline("template clause", &TokenKind::RightDelim)?)
                };
                Ok(Item::Node(Node::Template {
                    name,
                    span,
                    pipeline,
                }))
            }
        }
    }

    fn loop_control(&mut self, word: &Token, written: &str, node: Node) -> Parsed<Item> {
        self.expect(&TokenKind::RightDelim, written)?;
        if self.range_depth == 0 {
            return error(word.span, format!("{written} outside {{{{range}}}}"));
        }
        Ok(Item::Node(node))
    }

    fn conditional(
        &mut self,
        opening: Span,
        context: &str,
        keyword: Keyword,
    ) -> Parsed<Conditional> {
        let mark = self.variables.len();
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        loop {
            let pipeline = self.pipeline(context, &TokenKind::RightDelim)?;
            let (body, terminator) = self.list(opening)?;
            branches.push((pipeline, body));
            match terminator {
                Terminator::End(_) => break,
                Terminator::ElseThen(span) => {
                    let word = self.next_non_space();
                    if word.kind != TokenKind::Keyword(keyword) {
                        return self
                            .unexpected(&word, "input")
                            .or_else(|fault| error(span, fault.message));
                    }
                }
                Terminator::Else(_) => {
                    otherwise = self.else_list(opening)?;
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

    fn else_list(&mut self, opening: Span) -> Parsed<Vec<Node>> {
        let (list, terminator) = self.list(opening)?;
        match terminator {
            Terminator::End(_) => Ok(list),
            other => error(
                other.span(),
                format!("expected end; found {}", other.written()),
            ),
        }
    }

    fn range(&mut self, opening: Span) -> Parsed<Node> {
        let mark = self.variables.len();
        let pipeline = self.pipeline("range", &TokenKind::RightDelim)?;
        self.range_depth += 1;
        let listed = self.list(opening);
        self.range_depth -= 1;
        let (body, terminator) = listed?;
        let otherwise = match terminator {
            Terminator::End(_) => Vec::new(),
            Terminator::Else(_) => self.else_list(opening)?,
            Terminator::ElseThen(span) => {
                let word = self.next_non_space();
                return self
                    .unexpected(&word, "input")
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

    /// A template of its own inside the text: variables and loops around it are out of reach.
    fn separate_body(&mut self, opening: Span, context: &str) -> Parsed<Vec<Node>> {
        let variables = std::mem::replace(&mut self.variables, vec!["$".into()]);
        let range_depth = std::mem::take(&mut self.range_depth);
        let listed = self.list(opening);
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

    fn definition(&mut self, opening: Span) -> Parsed<()> {
        const CONTEXT: &str = "define clause";
        let name = self.template_name(CONTEXT)?;
        self.expect(&TokenKind::RightDelim, CONTEXT)?;
        let body = self.separate_body(opening, CONTEXT)?;
        self.add(name, body, opening)
    }

    fn block(&mut self, opening: Span) -> Parsed<Node> {
        const CONTEXT: &str = "block clause";
        let name = self.template_name(CONTEXT)?;
        let pipeline = self.pipeline(CONTEXT, &TokenKind::RightDelim)?;
        let body = self.separate_body(opening, CONTEXT)?;
        self.add(name.clone(), body, opening)?;
        Ok(Node::Template {
            name,
            span: opening,
            pipeline: Some(pipeline),
        })
    }

    fn template_name(&mut self, context: &str) -> Parsed<Arc<str>> {
        let token = self.next_non_space();
        match token.kind {
            TokenKind::Str | TokenKind::RawString => self.text_literal(&token),
            _ => self.unexpected(&token, context),
        }
    }
}

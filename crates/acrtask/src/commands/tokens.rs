//! `acrtask token`: what opens a server.

use acrtask_api::admin::{CreateToken, Federation, NewToken, Scope, Token};
use jiff::Timestamp;

use super::remote::{block_on, client, print_json, say};
use crate::{
    args::{
        control::{
            CreateTokenArgs, FederateCommand, FederationArgs, ListArgs, ScopeArg, TokenCommand,
        },
        server::ListOutput,
    },
    error::CliError,
    exit::Exit,
    render::{run::ago, style::Style, table},
};

/// What a scope is called.
pub(crate) fn scope_name(scope: &Scope) -> &'static str {
    match scope {
        Scope::Read => "read",
        Scope::Run => "run",
        Scope::Write => "write",
        Scope::Admin => "admin",
    }
}

fn scopes(args: &[ScopeArg]) -> Vec<Scope> {
    args.iter()
        .map(|scope| match scope {
            ScopeArg::Read => Scope::Read,
            ScopeArg::Run => Scope::Run,
            ScopeArg::Write => Scope::Write,
            ScopeArg::Admin => Scope::Admin,
        })
        .collect()
}

fn scope_names(scopes: &[Scope]) -> String {
    let names: Vec<_> = scopes.iter().map(scope_name).collect();
    names.join(",")
}

/// One of the words about tokens.
pub(crate) fn token(command: &TokenCommand, style: Style) -> Result<Exit, CliError> {
    match command {
        TokenCommand::Create(args) => create(args),
        TokenCommand::List(args) => list(args, style),
        TokenCommand::Revoke(args) => {
            let client = client(&args.server)?;
            block_on(async { Ok(client.delete(&["tokens", &args.id], &[]).await?) })?;
            say(&format!("revoked {}", args.id));
            Ok(Exit::Succeeded)
        }
        TokenCommand::Federate(FederateCommand::Create(args)) => federate(args),
        TokenCommand::Federate(FederateCommand::List(args)) => federations(args, style),
        TokenCommand::Federate(FederateCommand::Delete(args)) => {
            let client = client(&args.server)?;
            block_on(async { Ok(client.delete(&["federations", &args.name], &[]).await?) })?;
            say(&format!("deleted the federation {}", args.name));
            Ok(Exit::Succeeded)
        }
    }
}

fn create(args: &CreateTokenArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let body = CreateToken {
        name: args.name.clone(),
        scopes: scopes(&args.scope),
        tasks: args.tasks.clone(),
        pools: args.pool.clone(),
        ttl_secs: args.ttl,
    };
    let new: NewToken = block_on(async { Ok(client.post(&["tokens"], &body).await?) })?;
    if args.output.output == ListOutput::Json {
        return print_json(&new);
    }
    say(&format!(
        "token {} ({}); it is shown this once",
        new.token.id,
        scope_names(&new.token.scopes)
    ));
    super::print(format!("{}\n", new.secret.0).as_bytes())
}

fn list(args: &ListArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let found: Vec<Token> = block_on(async { Ok(client.get(&["tokens"], &[]).await?) })?;
    if args.output.output == ListOutput::Json {
        return print_json(&found);
    }
    let now = Timestamp::now();
    let rows = found.iter().map(|token| {
        vec![
            token.id.clone(),
            token.name.clone(),
            scope_names(&token.scopes),
            token.tasks.clone().unwrap_or_else(|| "*".into()),
            ago(token.created_at, now),
            token
                .last_used_at
                .map_or("never".into(), |used| ago(used, now)),
            token
                .expires_at
                .map_or("never".into(), |end| end.to_string()),
        ]
    });
    let text = table::list(
        &["ID", "NAME", "SCOPES", "TASKS", "CREATED", "USED", "ENDS"],
        rows.collect(),
        "there are no tokens",
        style,
    );
    super::print(text.as_bytes())
}

fn federate(args: &FederationArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let body = Federation {
        name: args.name.clone(),
        issuer: args.issuer.clone(),
        audience: args.audience.clone(),
        subject: args.subject.clone(),
        scopes: scopes(&args.scope),
        tasks: args.tasks.clone(),
        pools: args.pool.clone(),
        ttl_secs: args.ttl,
    };
    block_on(async {
        Ok(client
            .put(&["federations", &args.name], None, &body)
            .await?)
    })?;
    say(&format!(
        "{} gives tokens to {} of {}",
        args.name, args.subject, args.issuer
    ));
    Ok(Exit::Succeeded)
}

fn federations(args: &ListArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let found: Vec<Federation> = block_on(async { Ok(client.get(&["federations"], &[]).await?) })?;
    if args.output.output == ListOutput::Json {
        return print_json(&found);
    }
    let rows = found.iter().map(|one| {
        vec![
            one.name.clone(),
            one.issuer.clone(),
            one.audience.clone(),
            one.subject.clone(),
            scope_names(&one.scopes),
            one.tasks.clone().unwrap_or_else(|| "*".into()),
        ]
    });
    let text = table::list(
        &["NAME", "ISSUER", "AUDIENCE", "SUBJECT", "SCOPES", "TASKS"],
        rows.collect(),
        "there are no federations",
        style,
    );
    super::print(text.as_bytes())
}

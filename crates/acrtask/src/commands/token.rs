//! `acrtask token`: manages API tokens and trusted issuers.

use acrtask_api::admin::{CreateToken, Federation, NewToken, Scope, Token};
use jiff::Timestamp;

use super::remote::{block_on, client, print_json, print_message};
use crate::{
    args::{
        server::ListArgs,
        server::ListOutput,
        token::{CreateTokenArgs, FederateCommand, FederationArgs, ScopeArg, TokenCommand},
    },
    error::CliError,
    exit::Exit,
    render::{run::format_age, style::Style, table},
};

/// Returns the name of a scope.
pub(crate) fn scope_name(scope: &Scope) -> &'static str {
    match scope {
        Scope::Read => "read",
        Scope::Run => "run",
        Scope::Write => "write",
        Scope::Admin => "admin",
    }
}

fn parse_scopes(args: &[ScopeArg]) -> Vec<Scope> {
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

/// Runs a subcommand of `acrtask token`.
pub(crate) fn token(command: &TokenCommand, style: Style) -> Result<Exit, CliError> {
    match command {
        TokenCommand::Create(args) => create(args),
        TokenCommand::List(args) => list(args, style),
        TokenCommand::Revoke(args) => {
            let client = client(&args.server)?;
            block_on(async { Ok(client.delete(&["tokens", &args.id], &[]).await?) })?;
            print_message(&format!("revoked {}", args.id));
            Ok(Exit::Succeeded)
        }
        TokenCommand::Federate(FederateCommand::Create(args)) => create_federation(args),
        TokenCommand::Federate(FederateCommand::List(args)) => list_federations(args, style),
        TokenCommand::Federate(FederateCommand::Delete(args)) => {
            let client = client(&args.server)?;
            block_on(async { Ok(client.delete(&["federations", &args.name], &[]).await?) })?;
            print_message(&format!("deleted the federation {}", args.name));
            Ok(Exit::Succeeded)
        }
    }
}

fn create(args: &CreateTokenArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let body = CreateToken {
        name: args.name.clone(),
        scopes: parse_scopes(&args.scope),
        tasks: args.tasks.clone(),
        pools: args.pool.clone(),
        ttl_secs: args.ttl,
    };
    let new: NewToken = block_on(async { Ok(client.post(&["tokens"], &body).await?) })?;
    if args.output.output == ListOutput::Json {
        return print_json(&new);
    }
    print_message(&format!(
        "token {} ({}); it is shown only once",
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
            format_age(token.created_at, now),
            token
                .last_used_at
                .map_or("never".into(), |used| format_age(used, now)),
            token
                .expires_at
                .map_or("never".into(), |end| end.to_string()),
        ]
    });
    let text = table::render_list(
        &["ID", "NAME", "SCOPES", "TASKS", "CREATED", "USED", "ENDS"],
        rows.collect(),
        "no tokens",
        style,
    );
    super::print(text.as_bytes())
}

fn create_federation(args: &FederationArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let body = Federation {
        name: args.name.clone(),
        issuer: args.issuer.clone(),
        audience: args.audience.clone(),
        subject: args.subject.clone(),
        scopes: parse_scopes(&args.scope),
        tasks: args.tasks.clone(),
        pools: args.pool.clone(),
        ttl_secs: args.ttl,
    };
    block_on(async {
        Ok(client
            .put(&["federations", &args.name], None, &body)
            .await?)
    })?;
    print_message(&format!(
        "{} grants tokens to {} of {}",
        args.name, args.subject, args.issuer
    ));
    Ok(Exit::Succeeded)
}

fn list_federations(args: &ListArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let found: Vec<Federation> = block_on(async { Ok(client.get(&["federations"], &[]).await?) })?;
    if args.output.output == ListOutput::Json {
        return print_json(&found);
    }
    let rows = found.iter().map(|federation| {
        vec![
            federation.name.clone(),
            federation.issuer.clone(),
            federation.audience.clone(),
            federation.subject.clone(),
            scope_names(&federation.scopes),
            federation.tasks.clone().unwrap_or_else(|| "*".into()),
        ]
    });
    let text = table::render_list(
        &["NAME", "ISSUER", "AUDIENCE", "SUBJECT", "SCOPES", "TASKS"],
        rows.collect(),
        "no federations",
        style,
    );
    super::print(text.as_bytes())
}

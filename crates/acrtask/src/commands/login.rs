//! `acrtask login`, `logout`, `whoami`.

use acrtask_api::{
    admin::{ExchangeToken, Me, NewToken},
    run::SecretText,
};
use acrtask_model::Secret;

use super::remote::{block_on, client, print_json, print_message, read_secret};
use crate::{
    args::{
        PathOrStdin,
        server::{ListOutput, LoginArgs, LogoutArgs, WhoamiArgs},
        values::PasswordSource,
    },
    client::{
        Client, Connection,
        config::{Config, Login},
        display_url, server_url,
    },
    error::CliError,
    exit::Exit,
    render::{style::Style, table},
};

/// Checks a server's token and stores the login.
pub(crate) fn login(args: &LoginArgs) -> Result<Exit, CliError> {
    let url = server_url(&args.url)?;
    let ca = match &args.ca {
        Some(path) => Some(path.canonicalize().map_err(|error| {
            CliError::usage(format!(
                "cannot read the certificates in {}",
                path.display()
            ))
            .because(&error)
        })?),
        None => None,
    };
    let mut connection = Connection {
        url: url.clone(),
        token: None,
        ca: ca.clone(),
        allow_plaintext: args.allow_plaintext,
    };
    // Rejects an invalid connection before it asks for a token.
    let anonymous = Client::new(&connection)?;
    let token = match &args.oidc_token_file {
        Some(from) => {
            let identity = read_secret(&input_source(from), "the identity token")?;
            exchange_token(&anonymous, &identity)?
        }
        None => read_token(args)?,
    };
    connection.token = Some(token.clone());
    let authenticated = Client::new(&connection)?;
    let me: Me = block_on(async { Ok(authenticated.get(&["me"], &[]).await?) })?;
    let mut config = Config::read()?;
    config.log_in(
        &url,
        Login {
            token: SecretText(token.expose().to_owned()),
            ca,
            allow_plaintext: args.allow_plaintext,
        },
    );
    let path = config.write()?;
    print_message(&format!(
        "logged in to {} as {} ({}); stored in {}",
        display_url(&url),
        me.name,
        describe_scopes(&me),
        path.display()
    ));
    Ok(Exit::Succeeded)
}

fn input_source(from: &PathOrStdin) -> PasswordSource {
    match from {
        PathOrStdin::Stdin => PasswordSource::Stdin,
        PathOrStdin::Path(path) => PasswordSource::File(path.clone()),
    }
}

fn read_token(args: &LoginArgs) -> Result<Secret, CliError> {
    let from = match &args.token_file {
        Some(from) => input_source(from),
        None if std::env::var("ACRTASK_TOKEN").is_ok_and(|token| !token.is_empty()) => {
            PasswordSource::Env("ACRTASK_TOKEN".into())
        }
        None => {
            use std::io::IsTerminal as _;
            if std::io::stdin().is_terminal() {
                print_message("enter the token, then press Enter and Ctrl-D:");
            }
            PasswordSource::Stdin
        }
    };
    let token = read_secret(&from, "the token")?;
    Ok(Secret::new(token.expose().trim()))
}

fn exchange_token(client: &Client, identity: &Secret) -> Result<Secret, CliError> {
    let body = ExchangeToken {
        token: SecretText(identity.expose().trim().to_owned()),
    };
    let token: NewToken = block_on(async { Ok(client.post(&["auth", "exchange"], &body).await?) })?;
    Ok(Secret::new(token.secret.0))
}

fn describe_scopes(me: &Me) -> String {
    let scopes: Vec<_> = me.scopes.iter().map(super::token::scope_name).collect();
    match &me.tasks {
        Some(tasks) => format!("{}; tasks {tasks}", scopes.join(", ")),
        None => scopes.join(", "),
    }
}

/// Deletes the stored login for a server.
pub(crate) fn logout(args: &LogoutArgs) -> Result<Exit, CliError> {
    let mut config = Config::read()?;
    let url = match args.url.as_deref().or(config.current.as_deref()) {
        Some(url) => server_url(url)?,
        None => {
            print_message("no login is stored");
            return Ok(Exit::Succeeded);
        }
    };
    if config.log_out(&url) {
        config.write()?;
        print_message(&format!(
            "deleted the login for {}; the token stays valid until it is revoked",
            display_url(&url)
        ));
    } else {
        print_message(&format!("no login is stored for {}", display_url(&url)));
    }
    Ok(Exit::Succeeded)
}

/// Shows the current server and what the token may do there.
pub(crate) fn whoami(args: &WhoamiArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let me: Me = block_on(async { Ok(client.get(&["me"], &[]).await?) })?;
    if args.output.output == ListOutput::Json {
        return print_json(&me);
    }
    let text = table::key_values(
        &[
            ("server", display_url(client.url()).to_owned()),
            ("version", me.server_version.clone()),
            ("token", me.name.clone()),
            ("may", describe_scopes(&me)),
        ],
        style,
    );
    super::print(text.as_bytes())
}

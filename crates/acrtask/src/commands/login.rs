//! `acrtask login`, `logout`, `whoami`.

use acrtask_api::{
    admin::{ExchangeToken, Me, NewToken},
    run::SecretText,
};
use acrtask_model::Secret;

use super::remote::{block_on, client, print_json, say, secret};
use crate::{
    args::{
        PathOrStdin,
        server::{ListOutput, LoginArgs, LogoutArgs, WhoamiArgs},
        values::PasswordFrom,
    },
    client::{
        Client, Connection,
        config::{Config, Login},
        server_url, shown,
    },
    error::CliError,
    exit::Exit,
    render::{style::Style, table},
};

/// Remembers a server and the token for it, once the server knows the token.
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
    // Refused before a token is asked for.
    let anonymous = Client::new(&connection)?;
    let token = match &args.oidc_token_file {
        Some(from) => {
            let identity = secret(&place(from), "the identity token")?;
            exchange(&anonymous, &identity)?
        }
        None => given_token(args)?,
    };
    connection.token = Some(token.clone());
    let known = Client::new(&connection)?;
    let me: Me = block_on(async { Ok(known.get(&["me"], &[]).await?) })?;
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
    say(&format!(
        "logged in to {} as {} ({}); stored in {}",
        shown(&url),
        me.name,
        scopes(&me),
        path.display()
    ));
    Ok(Exit::Succeeded)
}

fn place(from: &PathOrStdin) -> PasswordFrom {
    match from {
        PathOrStdin::Stdin => PasswordFrom::Stdin,
        PathOrStdin::Path(path) => PasswordFrom::File(path.clone()),
    }
}

fn given_token(args: &LoginArgs) -> Result<Secret, CliError> {
    let from = match &args.token_file {
        Some(from) => place(from),
        None if std::env::var("ACRTASK_TOKEN").is_ok_and(|token| !token.is_empty()) => {
            PasswordFrom::Env("ACRTASK_TOKEN".into())
        }
        None => {
            use std::io::IsTerminal as _;
            if std::io::stdin().is_terminal() {
                say("the token, then Enter and Ctrl-D:");
            }
            PasswordFrom::Stdin
        }
    };
    let token = secret(&from, "the token")?;
    Ok(Secret::new(token.expose().trim()))
}

fn exchange(client: &Client, identity: &Secret) -> Result<Secret, CliError> {
    let body = ExchangeToken {
        token: SecretText(identity.expose().trim().to_owned()),
    };
    let token: NewToken = block_on(async { Ok(client.post(&["auth", "exchange"], &body).await?) })?;
    Ok(Secret::new(token.secret.0))
}

fn scopes(me: &Me) -> String {
    let scopes: Vec<_> = me.scopes.iter().map(super::tokens::scope_name).collect();
    match &me.tasks {
        Some(tasks) => format!("{}; tasks {tasks}", scopes.join(", ")),
        None => scopes.join(", "),
    }
}

/// Forgets a server.
pub(crate) fn logout(args: &LogoutArgs) -> Result<Exit, CliError> {
    let mut config = Config::read()?;
    let url = match args.url.as_deref().or(config.current.as_deref()) {
        Some(url) => server_url(url)?,
        None => {
            say("there is no login");
            return Ok(Exit::Succeeded);
        }
    };
    if config.log_out(&url) {
        config.write()?;
        say(&format!(
            "forgot the login for {}; the token itself holds until it is revoked",
            shown(&url)
        ));
    } else {
        say(&format!("there is no login for {}", shown(&url)));
    }
    Ok(Exit::Succeeded)
}

/// Shows which server is meant, and what the token may do there.
pub(crate) fn whoami(args: &WhoamiArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let me: Me = block_on(async { Ok(client.get(&["me"], &[]).await?) })?;
    if args.output.output == ListOutput::Json {
        return print_json(&me);
    }
    let text = table::facts(
        &[
            ("server", shown(client.url()).to_owned()),
            ("version", me.server_version.clone()),
            ("token", me.name.clone()),
            ("may", scopes(&me)),
        ],
        style,
    );
    super::print(text.as_bytes())
}

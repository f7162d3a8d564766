//! `acrtask task`: tasks that a server keeps.

use acrtask_api::{
    run::{Page, SecretText, StartTask},
    spec::Work,
    task::{Task, TaskDefinition},
    webhook::Trigger,
};
use jiff::Timestamp;

use super::{
    apply,
    context::Context,
    define,
    remote::{block_on, client, print_json, say},
    runs::started,
    timers, upload,
};
use crate::{
    args::{
        ColorWhen,
        server::ListOutput,
        stored::{
            CreateArgs, ExportArgs, ListTasksArgs, NamedArgs, RunTaskArgs, ShowTaskArgs,
            TaskCommand, UpdateArgs,
        },
    },
    client::Client,
    declare,
    error::CliError,
    exit::Exit,
    render::{self, style::Style},
};

/// Triggers that are shown with a task.
const SHOWN_TRIGGERS: u32 = 10;

/// One of the words about tasks.
pub(crate) fn task(
    command: &TaskCommand,
    color: ColorWhen,
    stderr: Style,
    stdout: Style,
) -> Result<Exit, CliError> {
    match command {
        TaskCommand::Create(args) => create(args),
        TaskCommand::Update(args) => update(args),
        TaskCommand::Show(args) => show(args, stdout),
        TaskCommand::List(args) => list(args, stdout),
        TaskCommand::Delete(args) => delete(args),
        TaskCommand::Run(args) => run(args, color, stderr),
        TaskCommand::Enable(args) => set_enabled(args, true),
        TaskCommand::Disable(args) => set_enabled(args, false),
        TaskCommand::Timer(command) => timers::timer(command, stdout),
        TaskCommand::TriggerUrl(command) => timers::trigger_url(command, stdout),
        TaskCommand::Export(args) => export(args),
        TaskCommand::Apply(args) => apply::apply(args, stderr, stdout),
    }
}

/// The task `name` as the server has it.
pub(super) async fn find(client: &Client, name: &str) -> Result<Task, CliError> {
    Ok(client.get(&["tasks", name], &[]).await?)
}

fn create(args: &CreateArgs) -> Result<Exit, CliError> {
    let new = define::created(args.name.name(), &args.what)?;
    let client = client(&args.server)?;
    block_on(async {
        let task: Task = client.post(&["tasks"], &new.definition).await?;
        let name = &task.definition.name;
        define::store_secrets(&client, name, &new)
            .await
            .map_err(|error| after_the_task(&error, name, "created"))?;
        say(&format!("created the task {name}"));
        Ok(Exit::Succeeded)
    })
}

fn update(args: &UpdateArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    block_on(async {
        let name = args.name.name();
        let task = find(&client, name).await?;
        let new = define::updated(task.definition, args)?;
        // What the definition names has to be there.
        define::store_secrets(&client, name, &new).await?;
        put(&client, name, &new.definition, task.generation).await?;
        say(&format!("updated the task {name}"));
        Ok(Exit::Succeeded)
    })
}

/// Puts a definition in the place of the one of `generation`.
pub(super) async fn put(
    client: &Client,
    name: &str,
    definition: &TaskDefinition,
    generation: i64,
) -> Result<(), CliError> {
    Ok(client
        .put(&["tasks", name], Some(generation), definition)
        .await?)
}

fn after_the_task(error: &CliError, name: &str, done: &str) -> CliError {
    CliError::usage(format!(
        "the task {name} was {done}, but not its secrets: {error}"
    ))
    .help(format!("set them: `acrtask secret set NAME --task {name}`"))
}

fn show(args: &ShowTaskArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let name = args.name.name();
    let (task, triggers) = block_on(async {
        let limit = [("limit", SHOWN_TRIGGERS.to_string())];
        let task = find(&client, name).await?;
        let triggers: Page<Trigger> = client.get(&["tasks", name, "triggers"], &limit).await?;
        Ok((task, triggers.items))
    })?;
    match args.output.output {
        ListOutput::Json => print_json(&task),
        ListOutput::Text => {
            let yaml = declare::yaml(&task.definition)?;
            let mut text = render::run::task(&task, &yaml, style);
            let starts = &task.definition.triggers;
            text += &render::webhooks::triggers(starts, style);
            text += &render::timers::triggers(&triggers, Timestamp::now(), style);
            super::print(text.as_bytes())
        }
    }
}

fn list(args: &ListTasksArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let tasks = block_on(all(&client, args.prefix.as_deref()))?;
    match args.output.output {
        ListOutput::Json => print_json(&tasks),
        ListOutput::Text => super::print(render::run::tasks(&tasks, style).as_bytes()),
    }
}

/// Every task whose name begins so.
async fn all(client: &Client, prefix: Option<&str>) -> Result<Vec<Task>, CliError> {
    let mut tasks: Vec<Task> = Vec::new();
    let mut cursor: Option<String> = None;
    loop {
        let mut query = Vec::new();
        query.extend(prefix.map(|prefix| ("prefix", prefix.to_owned())));
        query.extend(cursor.iter().map(|cursor| ("cursor", cursor.clone())));
        let page: Page<Task> = client.get(&["tasks"], &query).await?;
        tasks.extend(page.items);
        cursor = page.next;
        if cursor.is_none() {
            return Ok(tasks);
        }
    }
}

fn delete(args: &NamedArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let name = args.name.name();
    block_on(async { Ok(client.delete(&["tasks", name], &[]).await?) })?;
    say(&format!("deleted the task {name}"));
    Ok(Exit::Succeeded)
}

fn set_enabled(args: &NamedArgs, enabled: bool) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let name = args.name.name();
    let word = if enabled { "enable" } else { "disable" };
    block_on(async {
        Ok(client
            .tell(&["tasks", name, word], &serde_json::json!({}))
            .await?)
    })?;
    say(&format!("{word}d the task {name}"));
    Ok(Exit::Succeeded)
}

fn export(args: &ExportArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let tasks = block_on(async {
        match &args.name {
            Some(name) => Ok(vec![find(&client, name).await?]),
            None => all(&client, None).await,
        }
    })?;
    let documents = tasks
        .iter()
        .map(|task| declare::yaml(&task.definition))
        .collect::<Result<Vec<_>, _>>()?;
    super::print(documents.join("---\n").as_bytes())
}

fn run(args: &RunTaskArgs, color: ColorWhen, stderr: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let mut secrets = std::collections::BTreeMap::new();
    for pair in &args.set_secret {
        let (name, value) = pair.resolve("--set-secret", |name| std::env::var(name).ok())?;
        secrets.insert(name, SecretText(value.expose().to_owned()));
    }
    let context = match &args.context {
        Some(text) => Some(Context::named(
            text,
            &args.git,
            acrtask_source::Options::default(),
        )?),
        None if args.git.submodules.is_some() || args.git.lfs.is_some() => {
            return Err(CliError::usage("--submodules and --lfs need --context")
                .help("of the task's own context: `acrtask task update NAME --submodules`"));
        }
        None => None,
    };
    let packed = match &context {
        Some(context) => {
            let work = args.file.clone().map(|path| Work::File { path });
            upload::pack(context, work.as_ref(), Vec::new())?
        }
        None => None,
    };
    let mut request = StartTask {
        set: args
            .set
            .iter()
            .map(|pair| (pair.key.clone(), pair.value.clone()))
            .collect(),
        secrets,
        context: None,
        file: args.file.clone(),
        priority: args.priority,
        no_push: args.no_push,
    };
    block_on(async {
        if let Some(context) = &context {
            request.context = Some(upload::source(&client, context, packed.as_ref()).await?);
        }
        let run = client
            .start(&["tasks", args.name.name(), "runs"], &request)
            .await?;
        started(&client, &run, args.no_wait, args.output(), color, stderr).await
    })
}

//! `acrtask task`: tasks stored on a server.

use acrtask_api::{
    run::{Page, SecretText, StartTask},
    spec::RunSource,
    task::{Task, TaskDefinition},
    webhook::Trigger,
};
use jiff::Timestamp;

use super::{
    apply,
    context::Context,
    remote::{block_on, client, print_json, print_message},
    runs::follow_or_print_id,
    task_flags, timer, upload,
};
use crate::{
    args::{
        ColorWhen,
        server::ListOutput,
        task::{
            CreateArgs, ExportArgs, ListTasksArgs, RunTaskArgs, ShowTaskArgs, TaskCommand,
            TaskNameArgs, UpdateArgs,
        },
    },
    client::Client,
    error::CliError,
    exit::Exit,
    render::{self, style::Style},
    task_files,
};

/// Triggers shown with a task.
const SHOWN_TRIGGERS: u32 = 10;

/// Runs a subcommand of `acrtask task`.
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
        TaskCommand::Timer(command) => timer::timer(command, stdout),
        TaskCommand::TriggerUrl(command) => timer::trigger_url(command, stdout),
        TaskCommand::Export(args) => export(args),
        TaskCommand::Apply(args) => apply::apply(args, stderr, stdout),
    }
}

/// Fetches the task `name`.
pub(super) async fn find_task(client: &Client, name: &str) -> Result<Task, CliError> {
    Ok(client.get(&["tasks", name], &[]).await?)
}

fn create(args: &CreateArgs) -> Result<Exit, CliError> {
    let new = task_flags::create_draft(args.name.name(), &args.definition)?;
    let client = client(&args.server)?;
    block_on(async {
        let task: Task = client.post(&["tasks"], &new.definition).await?;
        let name = &task.definition.name;
        task_flags::store_secrets(&client, name, &new)
            .await
            .map_err(|error| secrets_error(&error, name, "created"))?;
        print_message(&format!("created the task {name}"));
        Ok(Exit::Succeeded)
    })
}

fn update(args: &UpdateArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    block_on(async {
        let name = args.name.name();
        let task = find_task(&client, name).await?;
        let new = task_flags::update_draft(task.definition, args)?;
        // The secrets that the definition refers to must exist first.
        task_flags::store_secrets(&client, name, &new).await?;
        put_task(&client, name, &new.definition, task.generation).await?;
        print_message(&format!("updated the task {name}"));
        Ok(Exit::Succeeded)
    })
}

/// Replaces the definition if the stored one still has `generation`.
pub(super) async fn put_task(
    client: &Client,
    name: &str,
    definition: &TaskDefinition,
    generation: i64,
) -> Result<(), CliError> {
    Ok(client
        .put(&["tasks", name], Some(generation), definition)
        .await?)
}

fn secrets_error(error: &CliError, name: &str, done: &str) -> CliError {
    CliError::usage(format!(
        "the task {name} was {done}, but its secrets were not stored: {error}"
    ))
    .help(format!("set them: `acrtask secret set NAME --task {name}`"))
}

fn show(args: &ShowTaskArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let name = args.name.name();
    let (task, triggers) = block_on(async {
        let limit = [("limit", SHOWN_TRIGGERS.to_string())];
        let task = find_task(&client, name).await?;
        let triggers: Page<Trigger> = client.get(&["tasks", name, "triggers"], &limit).await?;
        Ok((task, triggers.items))
    })?;
    match args.output.output {
        ListOutput::Json => print_json(&task),
        ListOutput::Text => {
            let yaml = task_files::to_yaml(&task.definition)?;
            let mut text = render::run::render_task(&task, &yaml, style);
            let starts = &task.definition.triggers;
            text += &render::webhooks::render_trigger_settings(starts, style);
            text += &render::timers::render_trigger_history(&triggers, Timestamp::now(), style);
            super::print(text.as_bytes())
        }
    }
}

fn list(args: &ListTasksArgs, style: Style) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let tasks = block_on(list_tasks(&client, args.prefix.as_deref()))?;
    match args.output.output {
        ListOutput::Json => print_json(&tasks),
        ListOutput::Text => super::print(render::run::render_tasks(&tasks, style).as_bytes()),
    }
}

/// Fetches all tasks whose names start with `prefix`.
async fn list_tasks(client: &Client, prefix: Option<&str>) -> Result<Vec<Task>, CliError> {
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

fn delete(args: &TaskNameArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let name = args.name.name();
    block_on(async { Ok(client.delete(&["tasks", name], &[]).await?) })?;
    print_message(&format!("deleted the task {name}"));
    Ok(Exit::Succeeded)
}

fn set_enabled(args: &TaskNameArgs, enabled: bool) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let name = args.name.name();
    let action = if enabled { "enable" } else { "disable" };
    block_on(async {
        Ok(client
            .post_discarding(&["tasks", name, action], &serde_json::json!({}))
            .await?)
    })?;
    print_message(&format!("{action}d the task {name}"));
    Ok(Exit::Succeeded)
}

fn export(args: &ExportArgs) -> Result<Exit, CliError> {
    let client = client(&args.server)?;
    let tasks = block_on(async {
        match &args.name {
            Some(name) => Ok(vec![find_task(&client, name).await?]),
            None => list_tasks(&client, None).await,
        }
    })?;
    let documents = tasks
        .iter()
        .map(|task| task_files::to_yaml(&task.definition))
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
        Some(text) => Some(Context::parse(
            text,
            &args.git,
            acrtask_source::Options::default(),
        )?),
        None if args.git.submodules.is_some() || args.git.lfs.is_some() => {
            return Err(CliError::usage("--submodules and --lfs require --context")
                .help("for the task's own context: `acrtask task update NAME --submodules`"));
        }
        None => None,
    };
    let packed = match &context {
        Some(context) => {
            let source = args.file.clone().map(|path| RunSource::File { path });
            upload::pack_context(context, source.as_ref(), Vec::new())?
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
            request.context =
                Some(upload::upload_context(&client, context, packed.as_ref()).await?);
        }
        let run = client
            .start_run(&["tasks", args.name.name(), "runs"], &request)
            .await?;
        follow_or_print_id(&client, &run, args.no_wait, args.output(), color, stderr).await
    })
}

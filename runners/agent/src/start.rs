//! Start of a runner: its folder, its key, its engine, and then the agent.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::{
    agent::Agent,
    config::AgentConfig,
    engine::Engine,
    error::AgentError,
    key::StateDir,
    register::{self, Servers},
};

/// Runs a runner until `shutdown` is cancelled and its runs are finished or handed back.
///
/// The caller handles signals and sets up logging.
///
/// # Errors
/// [`AgentError`] if a retry would not help.
pub async fn run(config: AgentConfig, shutdown: CancellationToken) -> Result<(), AgentError> {
    acrtask_registry::install_crypto_provider();
    let mut servers = Servers::new(&config)?;
    let state = StateDir::open(&config.state_dir)?;
    let starting = async {
        let key = register::load_or_register(&config, &mut servers, &state).await?;
        let engine = Engine::connect(&config, &state.work()).await;
        Ok::<_, AgentError>((key, engine, servers))
    };
    let (key, engine, servers) = tokio::select! {
        started = starting => started?,
        () = shutdown.cancelled() => return Ok(()),
    };
    Agent::new(config, state, key, Arc::new(engine))
        .run(servers, shutdown)
        .await
}

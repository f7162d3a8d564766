//! Flags for the log and the traces of long-running commands.

use clap::{Args, ValueEnum};

/// Log format and traces of long-running commands.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Telemetry")]
pub(crate) struct TelemetryArgs {
    /// Choose the form of the program's own log on standard error
    #[arg(long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) log_format: LogFormat,

    /// Send traces to this OTLP endpoint over gRPC: http://HOST:4317 [default: none]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub(crate) otlp_endpoint: Option<String>,
}

/// Forms of the program's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines of text
    #[default]
    Text,
    /// JSON with one object per line
    Json,
}

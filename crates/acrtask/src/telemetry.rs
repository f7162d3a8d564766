//! The program's own log on standard error, and its traces. Events of a run are not part of it.

use std::{io::IsTerminal, time::Duration};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing_subscriber::{
    EnvFilter, Layer, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::{
    args::telemetry::{LogFormat, TelemetryArgs},
    error::CliError,
};

/// Default log filter of commands that end on their own. Certificate errors are part of the
/// command's error already.
const DEFAULT_FILTER: &str = "error,rustls_platform_verifier=off";
/// Default log filter of long-running commands.
const LONG_RUNNING_FILTER: &str =
    "info,h2=warn,hyper=warn,hyper_util=warn,tonic=warn,tower=warn,sqlx=warn,rustls=warn";

/// Maximum wait for the export of the last traces.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// Logs to standard error, for commands that end on their own.
pub(crate) fn init_stderr_log(filter: Option<&str>) {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter.unwrap_or(DEFAULT_FILTER)))
        .with_writer(std::io::stderr)
        // Otherwise the layer reports a closed standard error on standard error, and panics.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

/// Guard that exports the last traces when it is dropped.
#[derive(Debug)]
pub(crate) struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

/// Starts the log and the traces of a long-running command. Call it once, inside the runtime.
pub(crate) fn start(
    service: &'static str,
    filter: Option<&str>,
    args: &TelemetryArgs,
) -> Result<Telemetry, CliError> {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    let lines = match args.log_format {
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
    };
    let endpoint = args.otlp_endpoint.as_deref().filter(|url| !url.is_empty());
    let traces = endpoint
        .map(|url| trace_provider(service, url))
        .transpose()?;
    let spans = traces.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("acrtask"))
            .with_filter(EnvFilter::new(LONG_RUNNING_FILTER))
    });
    let filter = EnvFilter::new(filter.unwrap_or(LONG_RUNNING_FILTER));
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(spans)
        .init();
    Ok(Telemetry { traces })
}

fn trace_provider(service: &'static str, url: &str) -> Result<SdkTracerProvider, CliError> {
    let refuse = |error: &(dyn std::error::Error + 'static)| {
        CliError::usage(format!("traces cannot be sent to `{url}`"))
            .because(error)
            .help("write --otlp-endpoint http://HOST:4317, an OTLP endpoint over gRPC")
    };
    acrtask_registry::install_crypto_provider();
    let address = url::Url::parse(url).map_err(|error| refuse(&error))?;
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(url);
    if address.scheme() == "https" {
        let tls = tonic::transport::ClientTlsConfig::new();
        exporter = exporter.with_tls_config(tls.with_native_roots());
    }
    let exporter = exporter.build().map_err(|error| refuse(&error))?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(Resource::builder().with_service_name(service).build())
        .build())
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(traces) = &self.traces
            && let Err(error) = traces.shutdown_with_timeout(SHUTDOWN_TIMEOUT)
        {
            tracing::warn!(%error, "could not send the last traces");
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    };
    use tokio::sync::mpsc;

    use super::*;

    struct Collector(mpsc::Sender<ExportTraceServiceRequest>);

    #[tonic::async_trait]
    impl TraceService for Collector {
        async fn export(
            &self,
            request: tonic::Request<ExportTraceServiceRequest>,
        ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
            self.0.send(request.into_inner()).await.unwrap();
            Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn spans_reach_a_collector() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, mut received) = mpsc::channel(8);
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(TraceServiceServer::new(Collector(sender)))
                .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)),
        );
        let provider = trace_provider("acrtask-test", &url).unwrap();
        let spans = tracing_opentelemetry::layer().with_tracer(provider.tracer("acrtask"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(spans), || {
            tracing::info_span!("a run", run = "r1").in_scope(|| ());
        });
        // Dropping the guard exports the remaining spans.
        tokio::task::spawn_blocking(move || {
            drop(Telemetry {
                traces: Some(provider),
            })
        })
        .await
        .unwrap();
        let request = format!("{:?}", received.recv().await.unwrap());
        for word in ["a run", "r1", "acrtask-test"] {
            assert!(request.contains(word), "{word}: {request}");
        }
    }

    #[tokio::test]
    async fn trace_provider_rejects_an_invalid_endpoint() {
        assert!(trace_provider("acrtask-test", "collector:4317 x").is_err());
    }
}

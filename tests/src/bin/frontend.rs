//! BuildKit frontend, as named by a `# syntax=` line. It delegates the work to BuildKit's own
//! Dockerfile frontend.
//!
//! BuildKit runs it in a container and serves gRPC on its standard input and output. The frontend
//! is the client. It returns the result as the bytes it received.

use std::{collections::HashMap, sync::Mutex};

use hyper_util::rt::TokioIo;
use prost::Message;
use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// The fields of the request `Solve` that this frontend needs.
#[derive(Clone, PartialEq, Message)]
struct Solve {
    #[prost(string, tag = "2")]
    frontend: String,
    #[prost(map = "string, string", tag = "3")]
    options: HashMap<String, String>,
    #[prost(bool, tag = "5")]
    allow_result_return: bool,
    #[prost(bool, tag = "6")]
    allow_result_array: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Solved {
    #[prost(bytes = "vec", tag = "3")]
    result: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Return {
    #[prost(bytes = "vec", tag = "1")]
    result: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    error: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let stdio = tokio::io::join(tokio::io::stdin(), tokio::io::stdout());
    let stdio = Mutex::new(Some(TokioIo::new(stdio)));
    let connector = tower::service_fn(move |_| {
        let stdio = stdio.lock().ok().and_then(|mut stdio| stdio.take());
        std::future::ready(stdio.ok_or_else(|| std::io::Error::other("there is one connection")))
    });
    let channel = Endpoint::from_static("http://buildkit")
        .connect_with_connector(connector)
        .await?;
    let mut client = Grpc::new(channel);
    let solve = Solve {
        frontend: "dockerfile.v0".into(),
        options: read_options(),
        allow_result_return: true,
        allow_result_array: true,
    };
    let answer = match call::<_, Solved>(&mut client, "Solve", solve).await {
        Ok(solved) => Return {
            result: solved.result,
            error: None,
        },
        Err(status) => Return {
            result: Vec::new(),
            error: Some(Status {
                code: status.code().into(),
                message: status.message().into(),
            }),
        },
    };
    call::<_, Nothing>(&mut client, "Return", answer).await?;
    // Returning from `main` would wait for the pending read of standard input.
    std::process::exit(0)
}

/// Returns the options of the build.
fn read_options() -> HashMap<String, String> {
    std::env::vars()
        .filter(|(name, _)| name.starts_with("BUILDKIT_FRONTEND_OPT_"))
        .filter_map(|(_, option)| {
            let (key, value) = option.split_once('=')?;
            Some((key.to_owned(), value.to_owned()))
        })
        .filter(|(key, _)| key != "source")
        .collect()
}

async fn call<Q, A>(
    client: &mut Grpc<Channel>,
    method: &'static str,
    request: Q,
) -> Result<A, tonic::Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let path = format!("/moby.buildkit.v1.frontend.LLBBridge/{method}");
    let path =
        PathAndQuery::try_from(path).map_err(|error| tonic::Status::internal(error.to_string()))?;
    client
        .ready()
        .await
        .map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let request = tonic::Request::new(request);
    let answer = client
        .unary(request, path, ProstCodec::<Q, A>::default())
        .await?;
    Ok(answer.into_inner())
}

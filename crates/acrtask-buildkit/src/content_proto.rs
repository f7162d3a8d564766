//! Messages of containerd's content store, `containerd.services.content.v1.Content`, with the
//! fields in use.
//!
//! Source: `api/services/content/v1/content.proto` of containerd. Written by hand, because no crate
//! has this service without the rest.

use std::collections::HashMap;

use prost::Message;
use prost_types::Timestamp;

/// Name of the service, with its slashes.
pub(crate) const PREFIX: &str = "/containerd.services.content.v1.Content/";

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Info {
    #[prost(string, tag = "1")]
    pub(crate) digest: String,
    #[prost(int64, tag = "2")]
    pub(crate) size: i64,
    #[prost(message, optional, tag = "3")]
    pub(crate) created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "4")]
    pub(crate) updated_at: Option<Timestamp>,
    #[prost(map = "string, string", tag = "5")]
    pub(crate) labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct InfoRequest {
    #[prost(string, tag = "1")]
    pub(crate) digest: String,
}

/// Response to `Info` and to `Update`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct InfoResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) info: Option<Info>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct UpdateRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) info: Option<Info>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReadRequest {
    #[prost(string, tag = "1")]
    pub(crate) digest: String,
    #[prost(int64, tag = "2")]
    pub(crate) offset: i64,
    /// Number of bytes. 0 reads to the end.
    #[prost(int64, tag = "3")]
    pub(crate) size: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReadResponse {
    #[prost(int64, tag = "1")]
    pub(crate) offset: i64,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatusRequest {
    #[prost(string, tag = "1")]
    pub(crate) r#ref: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct IngestStatus {
    #[prost(message, optional, tag = "1")]
    pub(crate) started_at: Option<Timestamp>,
    #[prost(message, optional, tag = "2")]
    pub(crate) updated_at: Option<Timestamp>,
    #[prost(string, tag = "3")]
    pub(crate) r#ref: String,
    #[prost(int64, tag = "4")]
    pub(crate) offset: i64,
    #[prost(int64, tag = "5")]
    pub(crate) total: i64,
    #[prost(string, tag = "6")]
    pub(crate) expected: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<IngestStatus>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum WriteAction {
    Stat = 0,
    Write = 1,
    Commit = 2,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WriteRequest {
    #[prost(enumeration = "WriteAction", tag = "1")]
    pub(crate) action: i32,
    #[prost(string, tag = "2")]
    pub(crate) r#ref: String,
    #[prost(int64, tag = "3")]
    pub(crate) total: i64,
    #[prost(string, tag = "4")]
    pub(crate) expected: String,
    #[prost(int64, tag = "5")]
    pub(crate) offset: i64,
    #[prost(bytes = "vec", tag = "6")]
    pub(crate) data: Vec<u8>,
    #[prost(map = "string, string", tag = "7")]
    pub(crate) labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct WriteResponse {
    #[prost(enumeration = "WriteAction", tag = "1")]
    pub(crate) action: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) started_at: Option<Timestamp>,
    #[prost(message, optional, tag = "3")]
    pub(crate) updated_at: Option<Timestamp>,
    #[prost(int64, tag = "4")]
    pub(crate) offset: i64,
    #[prost(int64, tag = "5")]
    pub(crate) total: i64,
    #[prost(string, tag = "6")]
    pub(crate) digest: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Empty {}

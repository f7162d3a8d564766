//! The part of the Azure Resource Manager (ARM) API that clients of Azure Container Registry use:
//! addresses, documents, and their conversion to and from the types of the acrtask API.
//!
//! The crate is pure: the server reads requests, checks rights and stores results.
//!
//! Invariants:
//! * Names and paths compare without regard to case, as in ARM.
//! * Unknown members of a request are ignored. A member that acrtask cannot carry out is refused
//!   with words.
//! * No document contains the value of a secret.

mod block_list;
mod directory;
mod filter;
mod operation;
mod range;
mod registry;
mod request;
mod run;
mod task;
mod task_document;

pub use block_list::{BlockListError, is_block_id, parse_block_list};
pub use directory::{
    GROUP, Host, LOGIN_PATH, SUBSCRIPTION, TENANT, group_document, list_document,
    metadata_document, openid_document, registry_document, registry_id, resource_document,
    subscription_document, tenant_document,
};
pub use filter::{FilterError, RunQuery, parse_filter, parse_resource_type};
pub use operation::{Operation, PathError, RegistryOperation};
pub use range::{ByteRange, RangeError};
pub use registry::{ArmRegistry, ArmRegistryError};
pub use request::{Refusal, RunRequest, UPLOAD_PREFIX, parse_run_request};
pub use run::{RunDetails, completion_word, run_document, summary_line};
pub use task::{Login, PutTask, SecretInput, parse_task};
pub use task_document::{TaskDocument, merge_patch, task_document};

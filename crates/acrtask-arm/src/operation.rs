//! Operations of the ARM API, parsed from the method and path of a request.

use acrtask_api::admin::Scope;
use percent_encoding::percent_decode_str;

use crate::{GROUP, SUBSCRIPTION};

/// An operation of the ARM API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Lists the only subscription.
    ListSubscriptions,
    /// Shows the subscription.
    ShowSubscription,
    /// Lists the only tenant.
    ListTenants,
    /// Lists the only resource group.
    ListGroups,
    /// Shows the resource group.
    ShowGroup,
    /// Lists the registries as resources.
    ListResources,
    /// Lists the registries.
    ListRegistries,
    /// An operation on the registry with this name.
    OfRegistry(String, RegistryOperation),
}

/// An operation on a registry. Texts are the names of its runs, tasks and task runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryOperation {
    /// Shows the registry.
    Show,
    /// Returns a URL for the upload of a context.
    CreateUpload,
    /// Creates a run.
    ScheduleRun,
    /// Lists runs.
    ListRuns,
    /// Shows a run.
    ShowRun(String),
    /// Changes the archive flag of a run.
    UpdateRun(String),
    /// Cancels a run.
    CancelRun(String),
    /// Returns the URL of the log of a run.
    LinkLog(String),
    /// Lists tasks.
    ListTasks,
    /// Shows a task.
    ShowTask(String),
    /// Shows a task with markers in the place of its secrets.
    ShowTaskDetails(String),
    /// Creates or replaces a task.
    PutTask(String),
    /// Changes parts of a task.
    UpdateTask(String),
    /// Deletes a task.
    DeleteTask(String),
    /// Lists task runs.
    ListTaskRuns,
    /// Shows a task run.
    ShowTaskRun(String),
    /// Creates a task run, which starts a run.
    PutTaskRun(String),
    /// Deletes a task run, but not its run.
    DeleteTaskRun(String),
    /// Returns the use of the registry.
    ListUsages,
    /// Lists resources that no registry has here: webhooks, replications and others.
    ListNothing,
}

/// Reasons why a path is not the path of an operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The subscription does not exist.
    #[error("the subscription `{0}` could not be found: the only one is `{SUBSCRIPTION}`")]
    UnknownSubscription(String),
    /// The resource group does not exist.
    #[error("the resource group `{0}` could not be found: the only one is `{GROUP}`")]
    UnknownGroup(String),
    /// The resource is not supported.
    #[error("this server does not support {0}")]
    Unsupported(String),
    /// The resource does not support the method.
    #[error("the resource does not support {0}")]
    UnsupportedMethod(String),
}

impl Operation {
    /// Parses the method and the path of a request, without its query.
    ///
    /// # Errors
    /// Returns the part of the address that does not exist.
    pub fn parse(method: &str, path: &str) -> Result<Self, PathError> {
        let parts: Vec<String> = path
            .split('/')
            .filter(|part| !part.is_empty())
            .map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned())
            .collect();
        let unsupported = || PathError::Unsupported(path.chars().take(300).collect());
        let words: Vec<String> = parts.iter().map(|part| part.to_ascii_lowercase()).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let operation = match words.as_slice() {
            ["tenants"] => Self::ListTenants,
            ["subscriptions"] => Self::ListSubscriptions,
            ["subscriptions", subscription, rest @ ..] => {
                if *subscription != SUBSCRIPTION {
                    return Err(PathError::UnknownSubscription(parts[1].clone()));
                }
                match rest {
                    [] => Self::ShowSubscription,
                    ["resourcegroups"] => Self::ListGroups,
                    ["resources"] => Self::ListResources,
                    ["providers", "microsoft.containerregistry", "registries"] => {
                        Self::ListRegistries
                    }
                    ["resourcegroups", group, rest @ ..] => {
                        if *group != GROUP {
                            return Err(PathError::UnknownGroup(parts[3].clone()));
                        }
                        match rest {
                            [] => Self::ShowGroup,
                            ["resources"] => Self::ListResources,
                            ["providers", "microsoft.containerregistry", "registries"] => {
                                Self::ListRegistries
                            }
                            [
                                "providers",
                                "microsoft.containerregistry",
                                "registries",
                                _,
                                rest @ ..,
                            ] => {
                                let operation = RegistryOperation::parse(method, rest, &parts[8..])
                                    .ok_or_else(unsupported)??;
                                return Ok(Self::OfRegistry(parts[7].clone(), operation));
                            }
                            _ => return Err(unsupported()),
                        }
                    }
                    _ => return Err(unsupported()),
                }
            }
            _ => return Err(unsupported()),
        };
        if method == "GET" {
            Ok(operation)
        } else {
            Err(PathError::UnsupportedMethod(method.into()))
        }
    }

    /// Returns the scope that a caller needs. `None` if any valid token is accepted.
    pub fn required_scope(&self) -> Option<Scope> {
        match self {
            Self::OfRegistry(_, operation) => operation.required_scope(),
            _ => None,
        }
    }
}

impl RegistryOperation {
    /// Parses the path below a registry: in lower case, and as the client wrote it. `None` if
    /// the resource does not exist.
    fn parse(method: &str, words: &[&str], parts: &[String]) -> Option<Result<Self, PathError>> {
        let name = || parts.get(1).cloned().unwrap_or_default();
        let wrong_method = || Err(PathError::UnsupportedMethod(method.into()));
        let of = |wanted: &str, operation: Self| {
            Some(if method == wanted {
                Ok(operation)
            } else {
                wrong_method()
            })
        };
        match words {
            [] => of("GET", Self::Show),
            ["listbuildsourceuploadurl"] => of("POST", Self::CreateUpload),
            ["schedulerun"] => of("POST", Self::ScheduleRun),
            ["listusages"] => of("GET", Self::ListUsages),
            ["runs"] => of("GET", Self::ListRuns),
            ["runs", _] if method == "PATCH" => Some(Ok(Self::UpdateRun(name()))),
            ["runs", _] => of("GET", Self::ShowRun(name())),
            ["runs", _, "cancel"] => of("POST", Self::CancelRun(name())),
            ["runs", _, "listlogsasurl"] => of("POST", Self::LinkLog(name())),
            ["tasks"] => of("GET", Self::ListTasks),
            ["tasks", _, "listdetails"] => of("POST", Self::ShowTaskDetails(name())),
            ["tasks", _] => Some(match method {
                "GET" => Ok(Self::ShowTask(name())),
                "PUT" => Ok(Self::PutTask(name())),
                "PATCH" => Ok(Self::UpdateTask(name())),
                "DELETE" => Ok(Self::DeleteTask(name())),
                _ => wrong_method(),
            }),
            ["taskruns"] => of("GET", Self::ListTaskRuns),
            ["taskruns", _, "listdetails"] => of("POST", Self::ShowTaskRun(name())),
            ["taskruns", _] => Some(match method {
                "GET" => Ok(Self::ShowTaskRun(name())),
                "PUT" => Ok(Self::PutTaskRun(name())),
                "DELETE" => Ok(Self::DeleteTaskRun(name())),
                _ => wrong_method(),
            }),
            ["agentpools" | "webhooks" | "scopemaps" | "tokens" | "replications"] => {
                of("GET", Self::ListNothing)
            }
            _ => None,
        }
    }

    /// Returns the scope that a caller needs. `None` if any valid token is accepted.
    pub fn required_scope(&self) -> Option<Scope> {
        match self {
            Self::Show | Self::ListUsages | Self::ListNothing => None,
            Self::ListRuns
            | Self::ShowRun(_)
            | Self::LinkLog(_)
            | Self::ListTasks
            | Self::ShowTask(_)
            | Self::ShowTaskDetails(_)
            | Self::ListTaskRuns
            | Self::ShowTaskRun(_) => Some(Scope::Read),
            Self::CreateUpload
            | Self::ScheduleRun
            | Self::UpdateRun(_)
            | Self::CancelRun(_)
            | Self::PutTaskRun(_)
            | Self::DeleteTaskRun(_) => Some(Scope::Run),
            Self::PutTask(_) | Self::UpdateTask(_) | Self::DeleteTask(_) => Some(Scope::Write),
        }
    }

    /// Returns `true` if the operation stores something that can wait for free disk.
    pub fn stores_data(&self) -> bool {
        matches!(
            self,
            Self::CreateUpload
                | Self::ScheduleRun
                | Self::PutTask(_)
                | Self::UpdateTask(_)
                | Self::PutTaskRun(_)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry_id;

    #[test]
    fn paths_compare_without_regard_to_case() {
        let path = format!("{}/RUNS/r1/listLogSasURL", registry_id("MyReg"));
        for path in [
            path.clone(),
            path.replace("resourceGroups", "RESOURCEGROUPS"),
            format!("/{path}"),
        ] {
            assert_eq!(
                Operation::parse("POST", &path),
                Ok(Operation::OfRegistry(
                    "MyReg".into(),
                    RegistryOperation::LinkLog("r1".into())
                ))
            );
        }
    }

    #[test]
    fn names_are_percent_decoded() {
        let path = format!("{}/tasks/a%20b", registry_id("r"));
        assert_eq!(
            Operation::parse("GET", &path),
            Ok(Operation::OfRegistry(
                "r".into(),
                RegistryOperation::ShowTask("a b".into())
            ))
        );
    }

    #[test]
    fn errors_name_the_missing_part() {
        let id = registry_id("r");
        for (path, word) in [
            (id.replace(GROUP, "other"), "`other` could not be found"),
            (id.replace(SUBSCRIPTION, "other"), "subscription `other`"),
            (
                format!("{id}/connectedRegistries"),
                "does not support /subscriptions",
            ),
            ("/providers".into(), "does not support /providers"),
        ] {
            let error = Operation::parse("GET", &path).unwrap_err().to_string();
            assert!(error.contains(word), "{path}: {error}");
        }
        assert_eq!(
            Operation::parse("POST", &id),
            Err(PathError::UnsupportedMethod("POST".into()))
        );
    }
}

//! The networks of a run.

use acrtask_spec::plan::Network;
use bollard::{models::NetworkCreateRequest, query_parameters::ListNetworksOptionsBuilder};

use super::{Engine, Labels, ignore_not_found, label_filter};
use crate::error::EngineError;

impl Engine {
    pub(crate) async fn create_network(
        &self,
        name: &str,
        network: &Network,
        labels: &Labels,
    ) -> Result<(), EngineError> {
        let request = NetworkCreateRequest {
            name: name.into(),
            driver: Some(network.driver.clone()),
            enable_ipv6: Some(network.ipv6),
            labels: Some(labels.to_map()),
            ..Default::default()
        };
        self.docker
            .create_network(request)
            .await
            .map(drop)
            .map_err(EngineError::could_not(format!(
                "create network {} (driver {})",
                network.name, network.driver
            )))
    }

    /// Removes a network. Succeeds if it does not exist.
    pub(crate) async fn remove_network(&self, name: &str) -> Result<(), EngineError> {
        ignore_not_found(
            self.docker
                .remove_network(name)
                .await
                .map_err(EngineError::could_not(format!("remove network {name}"))),
        )
    }

    /// Returns name and labels of every network with `label`.
    pub(crate) async fn list_networks(
        &self,
        label: &str,
    ) -> Result<Vec<ListedObject>, EngineError> {
        let options = ListNetworksOptionsBuilder::new()
            .filters(&label_filter(label))
            .build();
        let networks = self
            .docker
            .list_networks(Some(options))
            .await
            .map_err(EngineError::could_not("list networks"))?;
        Ok(networks
            .into_iter()
            .filter_map(|network| {
                Some(ListedObject {
                    name: network.name?,
                    labels: network.labels.unwrap_or_default(),
                })
            })
            .collect())
    }
}

/// An object of the engine in a list.
#[derive(Debug, Clone)]
pub(crate) struct ListedObject {
    pub(crate) name: String,
    pub(crate) labels: std::collections::HashMap<String, String>,
}

//! The networks of a run.

use acrtask_spec::plan::Network;
use bollard::{models::NetworkCreateRequest, query_parameters::ListNetworksOptionsBuilder};

use super::{Engine, Labels, gone_is_fine, label_filter};
use crate::error::EngineError;

impl Engine {
    /// Makes a network of a run.
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
            labels: Some(labels.map()),
            ..Default::default()
        };
        self.docker
            .create_network(request)
            .await
            .map(drop)
            .map_err(EngineError::on(format!(
                "create network {} (driver {})",
                network.name, network.driver
            )))
    }

    /// Removes a network; one that is gone already is fine.
    pub(crate) async fn remove_network(&self, name: &str) -> Result<(), EngineError> {
        gone_is_fine(
            self.docker
                .remove_network(name)
                .await
                .map_err(EngineError::on(format!("remove network {name}"))),
        )
    }

    /// Name and labels of every network with `label`.
    pub(crate) async fn list_networks(&self, label: &str) -> Result<Vec<Listed>, EngineError> {
        let options = ListNetworksOptionsBuilder::new()
            .filters(&label_filter(label))
            .build();
        let networks = self
            .docker
            .list_networks(Some(options))
            .await
            .map_err(EngineError::on("list networks"))?;
        Ok(networks
            .into_iter()
            .filter_map(|network| {
                Some(Listed {
                    name: network.name?,
                    labels: network.labels.unwrap_or_default(),
                })
            })
            .collect())
    }
}

/// An object of the engine as a list shows it.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) labels: std::collections::HashMap<String, String>,
}

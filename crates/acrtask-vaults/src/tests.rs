//! Tests with mock servers that respond as the documented services do.

mod azure;
mod hashicorp;

use wiremock::ResponseTemplate;

use crate::{Access, SecretAddress, VaultError, Vaults};

fn responds(status: u16, body: serde_json::Value) -> ResponseTemplate {
    ResponseTemplate::new(status).set_body_json(body)
}

async fn read(vaults: &Vaults, address: SecretAddress) -> Result<String, VaultError> {
    let mut found = vaults.read(&[address], &Access::Everything).await;
    found.remove(0).map(|value| value.expose().to_owned())
}

//! Documents about the cloud itself: metadata, sign-in, tenant, subscription, group and registries.
//!
//! A server has one tenant, one subscription and one resource group. Their ids are fixed.

use serde_json::{Value, json};

use crate::ArmRegistry;

/// Id of the only tenant.
pub const TENANT: &str = "22222222-2222-2222-2222-222222222222";
/// Id of the only subscription.
pub const SUBSCRIPTION: &str = "11111111-1111-1111-1111-111111111111";
/// Name of the only resource group.
pub const GROUP: &str = "acrtask";
/// Path of the login endpoint. Without `/adfs` at its begin, Azure's clients use the public cloud.
pub const LOGIN_PATH: &str = "/adfs";
/// Location of all resources. Clients require one.
const LOCATION: &str = "local";

/// Address under which clients reach the server: `HOST` or `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host(String);

impl Host {
    /// Returns the host. `None` if `text` contains characters that a host cannot contain.
    pub fn new(text: &str) -> Option<Self> {
        let good = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
        let valid = !text.is_empty() && text.len() <= 255 && text.chars().all(good);
        valid.then(|| Self(text.to_owned()))
    }

    /// Returns the URL of the server, without a slash at the end.
    pub fn url(&self) -> String {
        format!("https://{}", self.0)
    }

    /// Returns the name of the host without the port.
    fn domain(&self) -> &str {
        match self.0.rsplit_once(':') {
            Some((domain, port)) if port.bytes().all(|b| b.is_ascii_digit()) => domain,
            _ => &self.0,
        }
    }
}

/// Returns the metadata of the cloud, in the form of an API version.
pub fn metadata_document(host: &Host, api_version: &str) -> Value {
    let url = host.url();
    let login = format!("{url}{LOGIN_PATH}");
    if api_version.starts_with("2015") {
        return json!({
            "galleryEndpoint": url,
            "graphEndpoint": url,
            "portalEndpoint": url,
            "authentication": {"loginEndpoint": login, "audiences": [url]},
        });
    }
    let document = json!({
        "name": "acrtask",
        "resourceManager": url,
        "portal": url,
        "authentication": {
            "loginEndpoint": login,
            "audiences": [url],
            "identityProvider": "AAD",
            "tenant": "common",
        },
        "suffixes": {
            "acrLoginServer": format!("registry.{}", host.domain()),
            "keyVaultDns": format!("vault.{}", host.domain()),
        },
    });
    // Versions before 2022 return a list of clouds.
    match api_version.get(..4) {
        Some("2019" | "2020" | "2021") => json!([document]),
        _ => document,
    }
}

/// Returns the OpenID configuration of the login endpoint.
pub fn openid_document(host: &Host) -> Value {
    let login = format!("{}{LOGIN_PATH}", host.url());
    json!({
        "issuer": login,
        "authorization_endpoint": format!("{login}/oauth2/authorize"),
        "token_endpoint": format!("{login}/oauth2/token"),
        "jwks_uri": format!("{login}/discovery/keys"),
        "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
        "response_types_supported": ["token"],
        "response_modes_supported": ["form_post"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
    })
}

/// Returns a list in the form of ARM.
pub fn list_document(items: Vec<Value>) -> Value {
    json!({ "value": items })
}

/// Returns the subscription.
pub fn subscription_document() -> Value {
    json!({
        "id": format!("/subscriptions/{SUBSCRIPTION}"),
        "subscriptionId": SUBSCRIPTION,
        "tenantId": TENANT,
        "displayName": "acrtask",
        "state": "Enabled",
        "subscriptionPolicies": {"spendingLimit": "Off"},
        "authorizationSource": "RoleBased",
        "managedByTenants": [],
    })
}

/// Returns the tenant.
pub fn tenant_document() -> Value {
    json!({
        "id": format!("/tenants/{TENANT}"),
        "tenantId": TENANT,
        "displayName": "acrtask",
    })
}

/// Returns the resource group.
pub fn group_document() -> Value {
    json!({
        "id": format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}"),
        "name": GROUP,
        "type": "Microsoft.Resources/resourceGroups",
        "location": LOCATION,
        "properties": {"provisioningState": "Succeeded"},
    })
}

/// Returns the ARM id of a registry.
pub fn registry_id(name: &str) -> String {
    format!(
        "/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.ContainerRegistry/registries/{name}"
    )
}

/// Returns a registry as one of the resources of a subscription.
pub fn resource_document(registry: &ArmRegistry) -> Value {
    json!({
        "id": registry_id(&registry.name),
        "name": registry.name,
        "type": "Microsoft.ContainerRegistry/registries",
        "location": LOCATION,
        "sku": {"name": "Premium", "tier": "Premium"},
    })
}

/// Returns a registry with its properties.
pub fn registry_document(registry: &ArmRegistry) -> Value {
    let mut document = resource_document(registry);
    document["properties"] = json!({
        "loginServer": registry.server,
        "provisioningState": "Succeeded",
        "adminUserEnabled": false,
        "creationDate": "2024-01-01T00:00:00Z",
        "publicNetworkAccess": "Enabled",
        "policies": {},
    });
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_contains_only_the_characters_of_hosts() {
        assert_eq!(
            Host::new("ci.test:8443").unwrap().url(),
            "https://ci.test:8443"
        );
        assert_eq!(Host::new("ci.test:8443").unwrap().domain(), "ci.test");
        assert_eq!(Host::new("[::1]").unwrap().domain(), "[::1]");
        for text in ["", "ci.test/x", "a@b", "a b", "a\"b"] {
            assert_eq!(Host::new(text), None, "{text}");
        }
    }

    #[test]
    fn metadata_has_the_form_of_its_version() {
        let host = Host::new("ci.test").unwrap();
        let old = metadata_document(&host, "2015-01-01");
        assert_eq!(
            old["authentication"]["loginEndpoint"],
            "https://ci.test/adfs"
        );
        let new = metadata_document(&host, "2022-09-01");
        assert_eq!(new["authentication"]["identityProvider"], "AAD");
        assert_eq!(new["suffixes"]["acrLoginServer"], "registry.ci.test");
        assert!(metadata_document(&host, "2019-05-01").is_array());
    }
}

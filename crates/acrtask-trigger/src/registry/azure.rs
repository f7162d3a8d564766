//! Azure: webhooks of a container registry, and Event Grid.
//!
//! Source: Microsoft's documentation, "Azure Container Registry webhook schema reference", "Azure
//! Container Registry as an Event Grid source" and "Endpoint validation with Event Grid event
//! schema". Both send events of distribution. Event Grid wraps them, and validates the endpoint
//! once.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{ParsedDelivery, RegistryEvent, distribution::EventBody};
use crate::{Rejection, json::parse};

const VALIDATION: &str = "Microsoft.EventGrid.SubscriptionValidationEvent";
const PUSHED: [&str; 2] = [
    "Microsoft.ContainerRegistry.ImagePushed",
    "Microsoft.ContainerRegistry.ChartPushed",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GridEvent {
    #[serde(default)]
    id: Option<String>,
    /// CloudEvents uses the name `type`.
    #[serde(alias = "type")]
    event_type: String,
    #[serde(default)]
    data: Value,
}

pub(super) fn parse_delivery(body: &[u8]) -> ParsedDelivery {
    let value: Value = parse(body)?;
    let wrapped = value.get("specversion").is_some() || value.get("eventType").is_some();
    if value.is_array() {
        return parse_grid(serde_json::from_value(value)?);
    }
    if wrapped {
        return parse_grid(vec![serde_json::from_value(value)?]);
    }
    let event: EventBody = serde_json::from_value(value)?;
    let id = event.id.clone();
    if event.action == "ping" {
        return Ok((id, RegistryEvent::Ping));
    }
    let otherwise = format!("`{}` is not an image push", event.action.escape_debug());
    let images = event.pushed()?.into_iter().collect();
    Ok((id, RegistryEvent::pushed(images, &otherwise)))
}

fn parse_grid(events: Vec<GridEvent>) -> ParsedDelivery {
    let id = match &events[..] {
        [only] => only.id.clone(),
        _ => None,
    };
    if let Some(event) = events.iter().find(|event| event.event_type == VALIDATION) {
        let code = event.data.get("validationCode").and_then(Value::as_str);
        let code =
            code.ok_or_else(|| Rejection::not_understood("missing field `data.validationCode`"))?;
        let answer = json!({ "validationResponse": code }).to_string();
        return Ok((id, RegistryEvent::Handshake { answer }));
    }
    let pushes = events
        .into_iter()
        .filter(|event| PUSHED.contains(&event.event_type.as_str()));
    let images = pushes
        .filter_map(|event| {
            let event: Result<EventBody, _> = serde_json::from_value(event.data);
            event
                .map_err(Rejection::from)
                .and_then(EventBody::pushed)
                .transpose()
        })
        .collect::<Result<_, _>>()?;
    Ok((
        id,
        RegistryEvent::pushed(images, "the delivery contains no image push"),
    ))
}

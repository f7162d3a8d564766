//! Amazon ECR, through EventBridge.
//!
//! Source: Amazon's documentation, "Amazon ECR events and EventBridge".

use serde::Deserialize;

use super::{ParsedDelivery, RegistryEvent, RegistryPush};
use crate::{Rejection, json::parse};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Body {
    #[serde(default)]
    id: Option<String>,
    detail_type: String,
    source: String,
    #[serde(default)]
    account: String,
    #[serde(default)]
    region: String,
    #[serde(default)]
    detail: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Detail {
    #[serde(default)]
    result: String,
    action_type: String,
    repository_name: String,
    #[serde(default)]
    image_digest: Option<String>,
    #[serde(default)]
    image_tag: Option<String>,
}

pub(super) fn parse_delivery(body: &[u8]) -> ParsedDelivery {
    let body: Body = parse(body)?;
    if body.source != "aws.ecr" || body.detail_type != "ECR Image Action" {
        let shown: String = body.detail_type.chars().take(60).collect();
        let reason = format!("`{}` is not an image push", shown.escape_debug());
        return Ok((body.id, RegistryEvent::declined(reason)));
    }
    let detail = body
        .detail
        .ok_or_else(|| Rejection::not_understood("missing field `detail`"))?;
    let detail: Detail = serde_json::from_value(detail)?;
    if detail.action_type != "PUSH" || detail.result != "SUCCESS" {
        return Ok((body.id, RegistryEvent::declined("the push did not succeed")));
    }
    let account_is_one =
        body.account.len() == 12 && body.account.bytes().all(|c| c.is_ascii_digit());
    let region_is_one = !body.region.is_empty()
        && body
            .region
            .bytes()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
    if !account_is_one || !region_is_one {
        return Err(Rejection::not_understood(
            "`account` or `region` is missing or wrong",
        ));
    }
    let domain = if body.region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else {
        "amazonaws.com"
    };
    let image = RegistryPush::new(
        &format!("{}.dkr.ecr.{}.{domain}", body.account, body.region),
        &detail.repository_name,
        detail.image_tag.as_deref(),
        detail.image_digest.as_deref(),
    )?;
    Ok((
        body.id,
        RegistryEvent::Pushed {
            images: vec![image],
        },
    ))
}

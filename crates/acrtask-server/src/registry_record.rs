//! Record of a repository for purges: times of tags, needed manifests, and tags of build caches.

use acrtask_api::registry_record::RegistryRecord;
use acrtask_model::reference::cache_tag_start;
use acrtask_store::StoreError;

use crate::{App, run_factory::cache_name};

/// Reads the record of the repository `REGISTRY/REPOSITORY`.
pub(crate) async fn read_record(app: &App, repository: &str) -> Result<RegistryRecord, StoreError> {
    let (mut record, tasks) = app.store.registry_record(repository).await?;
    for task in tasks {
        // Shared caches of tasks have the first name, `cache: enabled` of a step the second.
        record.cache_tags.push(cache_tag_start(&cache_name(&task)));
        record.cache_tags.push(cache_tag_start(&task));
    }
    record.cache_tags.dedup();
    Ok(record)
}

//! Purges and copies, checked with `crane`, `oras`, `cosign` and `notation` at two registries. The
//! distribution registry 2.8 deletes no single tags. The registry of `crane` does, and keeps the
//! tags of deleted manifests.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use acrtask_tests::{
    Outcome, TestEnvironment, new_run_id,
    project::create_folder,
    registry_tools::RegistryTools,
    repository::{INDEX, OLD, Repository},
};
use serde_json::Value;

const SBOM: &str = "application/x-sbom";
const SIGNATURE: &str = "application/vnd.cncf.notary.signature";

fn run(environment: &TestEnvironment, args: &[&str]) -> Outcome {
    let folder = create_folder(&[]);
    let outcome = environment.start_plain(folder.path(), args, &[]).wait();
    assert_eq!(outcome.code, Some(0), "{}", outcome.transcript());
    outcome
}

fn run_json(environment: &TestEnvironment, args: &[&str]) -> Value {
    let outcome = run(environment, &[args, &["-o", "json"]].concat());
    serde_json::from_str(&outcome.stdout).unwrap()
}

/// Index with signatures and an SBOM of one platform.
struct SignedIndex {
    index: String,
    platforms: [String; 2],
}

async fn put_signed(
    tools: &RegistryTools,
    host: &str,
    repository: &Repository,
    tag: &str,
) -> SignedIndex {
    let (index, platforms) = repository
        .put_index(tag, &format!("{} {tag}", repository.name))
        .await;
    let name = format!("{host}/{}", repository.name);
    tools.sign(&format!("{name}@{index}"));
    tools.attach(
        &format!("{name}@{}", platforms[1]),
        &format!("sbom of {tag}"),
    );
    SignedIndex { index, platforms }
}

#[tokio::test]
async fn signed_images_survive_purges_at_both_kinds_of_registry() {
    let (Some(environment), Some(tools)) = (TestEnvironment::find(), RegistryTools::find()) else {
        return;
    };
    tools.create_keys();
    let crane = tools.start_crane_registry();
    for host in [&environment.registry, &crane.host] {
        let name = format!("upkeep/{}/app", new_run_id());
        let repository = Repository::new(host, &name);
        let prod = put_signed(&tools, host, &repository, "prod").await;
        let old = put_signed(&tools, host, &repository, "v0").await;
        // An old index shares a platform with the kept one.
        let (_, mut shared) = repository
            .client
            .fetch_manifest(&format!("{name}:v0"))
            .await
            .unwrap();
        let (_, kept) = repository
            .client
            .fetch_manifest(&format!("{name}:prod"))
            .await
            .unwrap();
        shared["manifests"][0] = kept["manifests"][0].clone();
        let shared = repository.put("v1", INDEX, &shared).await;
        let alias = repository.put_image("v2", &name, OLD).await;
        let (_, image) = repository
            .client
            .fetch_manifest(&format!("{name}:v2"))
            .await
            .unwrap();
        let media = image["mediaType"].as_str().unwrap().to_owned();
        repository.put("keep", &media, &image).await;

        let filter = format!("{name}:^v");
        let purge = [
            "registry",
            "purge",
            host,
            "--filter",
            &filter,
            "--ago",
            "30d",
            "--untagged",
        ];
        let planned = run_json(&environment, &[&purge[..], &["--dry-run"]].concat());
        let done = run_json(&environment, &purge);
        assert_eq!(
            planned["repositories"], done["repositories"],
            "{host}: {done:#}"
        );

        let image = format!("{host}/{name}");
        for tag in ["prod", "keep"] {
            tools.validate(&format!("{image}:{tag}"));
        }
        tools.verify(&format!("{image}@{}", prod.index));
        assert_eq!(
            tools.discover(&format!("{image}@{}", prod.index)),
            [SIGNATURE]
        );
        assert_eq!(
            tools.discover(&format!("{image}@{}", prod.platforms[1])),
            [SBOM]
        );
        assert_eq!(repository.find("keep").await, Some(alias));
        for gone in [
            "v0",
            "v1",
            "v2",
            &old.index,
            &shared,
            &old.platforms[0],
            &old.platforms[1],
        ] {
            assert_eq!(repository.find(gone).await, None, "{host}: {gone}");
        }
        let signature = |digest: &str| format!("{}.sig", digest.replace(':', "-"));
        assert_eq!(
            repository.find(&signature(&old.index)).await,
            None,
            "{host}"
        );
        assert!(
            repository.find(&signature(&prod.index)).await.is_some(),
            "{host}"
        );
        let listed = run(&environment, &["registry", "tags", &image]);
        let unknown: Vec<&str> = listed
            .stdout
            .lines()
            .filter(|tag| !["prod", "keep"].contains(tag))
            .filter(|tag| !tag.contains(&prod.index[7..]) && !tag.contains(&prod.platforms[1][7..]))
            .collect();
        assert_eq!(unknown, [""; 0], "{host}: left-over tags");
    }
}

#[tokio::test]
async fn copies_have_the_platforms_and_signatures_of_the_original() {
    let (Some(environment), Some(tools)) = (TestEnvironment::find(), RegistryTools::find()) else {
        return;
    };
    tools.create_keys();
    let crane = tools.start_crane_registry();
    let hosts = [environment.registry.clone(), crane.host.clone()];
    for (from, to) in [
        (&hosts[0], &hosts[1]),
        (&hosts[1], &hosts[0]),
        (&hosts[0], &hosts[0]),
    ] {
        let id = new_run_id();
        let (name, copy) = (format!("upkeep/{id}/app"), format!("upkeep/{id}/mirror"));
        let repository = Repository::new(from, &name);
        let signed = put_signed(&tools, from, &repository, "prod").await;
        let source = format!("{from}/{name}:prod");
        let target = format!("{to}/{copy}:v1");
        let done = run_json(&environment, &["registry", "copy", &source, &target]);
        assert_eq!(done["digest"], signed.index.as_str(), "{done:#}");
        let way = if from == to { "mounted" } else { "copied" };
        assert_ne!(done["blobs"][way], 0, "{done:#}");

        let image = format!("{to}/{copy}");
        tools.validate(&format!("{image}:v1"));
        tools.verify(&format!("{image}@{}", signed.index));
        assert_eq!(
            tools.discover(&format!("{image}@{}", signed.index)),
            [SIGNATURE]
        );
        assert_eq!(
            tools.discover(&format!("{image}@{}", signed.platforms[1])),
            [SBOM]
        );
        let listed = run_json(&environment, &["registry", "referrers", &target]);
        assert_eq!(
            listed["referrers"].as_array().unwrap().len(),
            3,
            "{listed:#}"
        );
        let listed = run_json(&environment, &["registry", "manifests", &image]);
        let kinds = listed["manifests"].as_array().unwrap().iter();
        let count = |kind: &str| kinds.clone().filter(|one| one["kind"] == kind).count();
        assert_eq!(count("artifact"), 2, "{listed:#}");

        // `oras` copies the same manifests.
        let beside = format!("{to}/upkeep/{id}/oras:v1");
        tools.run(
            "oras",
            &[
                "cp",
                "-r",
                "--from-plain-http",
                "--to-plain-http",
                &source,
                &beside,
            ],
        );
        assert_eq!(
            tools.discover(&beside),
            tools.discover(&format!("{image}:v1")),
            "as oras cp -r"
        );

        // A repeated copy transfers nothing.
        let again = run_json(&environment, &["registry", "copy", &source, &target]);
        let manifests = again["manifests"].as_array().unwrap();
        assert!(
            manifests.iter().all(|one| one["existed"] == true),
            "{again:#}"
        );
        assert_eq!(
            (&again["blobs"]["copied"], &again["blobs"]["mounted"]),
            (&0.into(), &0.into())
        );
    }
}

#[tokio::test]
async fn folder_keeps_an_image_with_its_signatures() {
    let (Some(environment), Some(tools)) = (TestEnvironment::find(), RegistryTools::find()) else {
        return;
    };
    tools.create_keys();
    let crane = tools.start_crane_registry();
    let host = &environment.registry;
    let id = new_run_id();
    let name = format!("upkeep/{id}/app");
    let repository = Repository::new(host, &name);
    let signed = put_signed(&tools, host, &repository, "v1").await;
    let folder = create_folder(&[]);
    let path = folder.path().join("backup").display().to_string();
    let place = format!("oci:{path}:v1");
    run(
        &environment,
        &["registry", "copy", &format!("{host}/{name}:v1"), &place],
    );

    // The folder is readable for `oras`, and its image complete.
    let by_oras = format!("{host}/upkeep/{id}/oras:v1");
    let from = format!("{path}:v1");
    tools.run(
        "oras",
        &[
            "cp",
            "-r",
            "--from-oci-layout",
            "--to-plain-http",
            &from,
            &by_oras,
        ],
    );
    tools.validate(&by_oras);
    assert_eq!(tools.discover(&by_oras), [SIGNATURE]);

    let restored = format!("{}/restored/app:v1", crane.host);
    run(&environment, &["registry", "copy", &place, &restored]);
    tools.validate(&restored);
    let image = format!("{}/restored/app", crane.host);
    tools.verify(&format!("{image}@{}", signed.index));
    assert_eq!(
        tools.discover(&format!("{image}@{}", signed.platforms[1])),
        [SBOM]
    );

    // One platform only.
    let single = format!("{}/single/app:v1", crane.host);
    let args = [
        "registry",
        "copy",
        &place,
        &single,
        "--platform",
        "linux/arm64",
    ];
    let done = run_json(&environment, &args);
    assert_eq!(done["digest"], signed.platforms[1].as_str());
    tools.validate(&single);

    // `import` keeps the name.
    let source = format!("{host}/{name}:v1");
    let done = run_json(&environment, &["registry", "import", &crane.host, &source]);
    let target = done["target"].as_str().unwrap();
    assert_eq!(target, format!("{}/{name}:v1@{}", crane.host, signed.index));
    tools.verify(&format!("{}/{name}@{}", crane.host, signed.index));
}

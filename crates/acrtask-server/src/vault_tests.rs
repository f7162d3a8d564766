//! Tests of `vault.rs`.

use std::os::unix::fs::PermissionsExt as _;

use acrtask_model::ContributionSource;
use proptest::prelude::*;

use super::*;

fn key(byte: u8) -> String {
    STANDARD.encode([byte; 32])
}

fn vault(text: &str) -> Vault {
    Vault::parse(text).unwrap()
}

#[test]
fn sealed_value_opens_only_for_its_owner() {
    let vault = vault(&key(1));
    let sealed = vault.seal("secret//npm", b"hunter2");
    assert_eq!(
        vault.open("secret//npm", &sealed).unwrap().expose(),
        "hunter2"
    );
    let moved = vault.open("secret//other", &sealed).unwrap_err();
    assert!(matches!(moved, VaultError::Damaged));
    assert_ne!(
        vault.seal("a", b"x"),
        vault.seal("a", b"x"),
        "a new nonce each time"
    );
    for at in 0..sealed.len() {
        let mut damaged = sealed.clone();
        damaged[at] ^= 1;
        vault.open("secret//npm", &damaged).unwrap_err();
        vault.open("secret//npm", &sealed[..at]).unwrap_err();
    }
    assert!(!format!("{vault:?}").contains(&key(1)));
}

#[test]
fn keys_are_rotated_by_a_new_first_line() {
    let old = vault(&key(1));
    let sealed = old.seal("a", b"x");
    let both = vault(&format!("# new\n{}\n\n# old\n{}\n", key(2), key(1)));
    assert_eq!(both.open("a", &sealed).unwrap().expose(), "x");
    let renewed = both.seal("a", b"y");
    assert_eq!(vault(&key(2)).open("a", &renewed).unwrap().expose(), "y");
    let error = old.open("a", &renewed).unwrap_err();
    assert!(matches!(error, VaultError::OtherKey { .. }));
    assert!(error.to_string().contains("add that key"), "{error}");
}

#[test]
fn invalid_key_file_is_refused_with_its_line() {
    for (text, line) in [
        ("", 0),
        ("# nothing\n", 0),
        ("secret", 1),
        (&format!("{}\n{}", key(1), STANDARD.encode([1; 31])), 2),
    ] {
        assert_eq!(Vault::parse(text).unwrap_err(), line, "{text:?}");
    }
}

#[test]
fn key_file_is_created_once_and_readable_by_its_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/key");
    assert!(Vault::load(&path).is_err());
    let sealed = Vault::load_or_create(&path).unwrap().seal("a", b"x");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = Vault::load_or_create(&path).unwrap();
    assert_eq!(again.open("a", &sealed).unwrap().expose(), "x");
    let names: Vec<_> = std::fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["key"]);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = Vault::load(&path).unwrap_err().to_string();
    let shown = path.display();
    assert_eq!(
        error,
        format!("the key file {shown} can be read by others (mode 640); run `chmod 600 {shown}`")
    );
}

#[test]
fn servers_that_start_at_once_agree_on_one_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let vaults: Vec<Vault> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| Vault::load_or_create(&path).unwrap()))
            .collect();
        starts
            .into_iter()
            .map(|start| start.join().unwrap())
            .collect()
    });
    let sealed = vaults[0].seal("a", b"x");
    for vault in &vaults {
        assert_eq!(vault.open("a", &sealed).unwrap().expose(), "x");
    }
}

proptest! {
    #[test]
    fn sealed_value_opens_to_itself(aad in "\\PC{0,30}", value in "\\PC{0,200}") {
        let vault = vault(&key(3));
        let sealed = vault.seal(&aad, value.as_bytes());
        let opened = vault.open(&aad, &sealed).unwrap();
        prop_assert_eq!(opened.expose(), value.as_str());
    }

    #[test]
    fn arbitrary_sealed_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(vault(&key(3)).open("a", &bytes).is_err());
    }
}

#[test]
fn cache_namespaces_differ_by_domain_and_by_key() {
    let task = |id: &str| TrustDomain::Task { id: id.into() };
    let vault = |byte: u8| Vault {
        keys: vec![Key::new(&[byte; 32])],
    };
    let text =
        |vault: &Vault, domain: &TrustDomain| vault.cache_namespace(domain).expose().to_owned();
    let one = vault(1);
    assert_eq!(text(&one, &task("a")), text(&vault(1), &task("a")));
    let others = [
        text(&one, &task("b")),
        text(
            &one,
            &task("a").contribution(ContributionSource::Fork {
                reference: "pull request 1".into(),
            }),
        ),
        text(&vault(2), &task("a")),
    ];
    assert!(!others.contains(&text(&one, &task("a"))), "{others:?}");
}

//! Modules from servers that behave well, and from those that do not.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod guest;
mod server;

use std::time::{Duration, Instant};

use bytes::Bytes;
use guest::*;
use reflowd_loader::{
    Authorities, DownloadError, DownloadRules, Limits, LoadError, LoadErrorKind, Loader, Source,
};
use reflowd_runtime::{Digest, Module};
use server::{Authority, Server, Way};
use sha2::{Digest as _, Sha256};

/// Long enough for every answer that comes at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// Short enough to wait for.
const SHORT: Duration = Duration::from_millis(300);

fn good() -> Bytes {
    guest(r#"(func (export "process") (result i32) (i32.const 0))"#)
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::new(Sha256::digest(bytes).into())
}

fn within(timeout: Duration) -> DownloadRules {
    DownloadRules { timeout, ..DownloadRules::default() }
}

/// Loads `url` as the module [`good`].
async fn load(url: &str, rules: DownloadRules) -> Result<Digest, LoadError> {
    let limits = Limits { module_size: 1 << 20, ..Limits::default() };
    let loader = Loader::new(limits).with_downloads(rules);
    let sha256 = digest_of(&good());
    let source = Source::Url { url: url.parse().unwrap(), sha256 };
    let module = loader.load(source).await?;
    assert!(loader.by_digest(&sha256).is_some());
    Ok(module.digest())
}

/// Why a server that answers in that way gives no module.
async fn refused(way: Way, rules: DownloadRules) -> LoadErrorKind {
    let server = Server::start(move |_| way.clone());
    let url = server.url("/guest.wasm");
    let error = soon(load(&url, rules)).await.unwrap_err();
    assert!(error.to_string().starts_with(&url), "{error}");
    assert!(!error.is_intrinsic(), "{error}");
    error.kind
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_is_downloaded_once() {
    let server = Server::start(|_| Way::Whole(good().to_vec()));
    let loader = Loader::new(Limits::default());
    let url = server.url("/guest.wasm");
    let source = || Source::Url { url: url.parse().unwrap(), sha256: digest_of(&good()) };
    let module = loader.load(source()).await.unwrap();
    assert_eq!(module.metadata().component, "Guest");
    let again = loader.load(source()).await.unwrap();
    assert!(std::sync::Arc::ptr_eq(&module, &again));
    assert_eq!(server.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_may_have_any_form_that_http_has() {
    for way in [Way::Chunked(good().to_vec()), Way::Unmeasured(good().to_vec())] {
        let server = Server::start(move |_| way.clone());
        load(&server.url("/"), within(PATIENCE)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_end_is_cut_off_at_the_limit() {
    for way in [Way::Endless, Way::EndlessChunks, Way::Huge] {
        let kind = refused(way.clone(), within(PATIENCE)).await;
        let expected = LoadErrorKind::Download(DownloadError::TooLarge { max: 1 << 20 });
        assert_eq!(kind, expected, "{way:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stalls_is_given_up() {
    for way in [Way::Silence, Way::Stall(good().to_vec()), Way::Trickle] {
        let begun = Instant::now();
        let kind = refused(way.clone(), within(SHORT)).await;
        assert_eq!(kind, LoadErrorKind::Download(DownloadError::Timeout(SHORT)), "{way:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{way:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_with_another_digest_are_not_looked_at() {
    let mut other = good().to_vec();
    // A custom section: as good a module, and another one.
    other.extend([0, 3, 1, b'x', b'y']);
    let found = digest_of(&other);
    let mismatch = LoadErrorKind::DigestMismatch { expected: digest_of(&good()), found };
    assert_eq!(refused(Way::Whole(other), within(PATIENCE)).await, mismatch);
    let cut = Way::TooLong(good().to_vec());
    let kind = refused(cut, within(PATIENCE)).await;
    assert!(matches!(kind, LoadErrorKind::DigestMismatch { .. }), "{kind:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_makes_no_sense_is_told() {
    let gone = format!("http://127.0.0.1:{}/", Server::start(|_| Way::Nonsense).port);
    let broken = |kind: &LoadErrorKind| {
        let LoadErrorKind::Download(error) = kind else { return false };
        matches!(error, DownloadError::Broken(_) | DownloadError::Unreachable(_))
    };
    let body = good().to_vec();
    for way in [Way::TooShort(body.clone()), Way::BrokenChunks(body.clone()), Way::Nonsense] {
        let kind = refused(way.clone(), within(PATIENCE)).await;
        assert!(broken(&kind), "{way:?}: {kind:?}");
    }
    let kind = refused(Way::Status(404), within(PATIENCE)).await;
    assert_eq!(kind, LoadErrorKind::Download(DownloadError::Status { status: 404 }));
    let kind = refused(Way::Gzip(body), within(PATIENCE)).await;
    assert_eq!(kind, LoadErrorKind::Download(DownloadError::Encoded("gzip".into())));
    let error = load(&gone, within(PATIENCE)).await.unwrap_err();
    assert!(broken(&error.kind), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_stay_on_the_server() {
    let server = Server::start(|path| match path {
        "/old" => Way::Redirect("/v1/older".into()),
        "/v1/older" => Way::Redirect("new".into()),
        "/v1/new" => Way::Whole(good().to_vec()),
        _ => Way::Status(404),
    });
    load(&server.url("/old"), within(PATIENCE)).await.unwrap();
    assert_eq!(server.requests(), 3);

    let other = Server::start(|_| Way::Whole(good().to_vec()));
    let to_other = other.url("/guest.wasm");
    let by_name = format!("http://localhost:{}/guest.wasm", server.port);
    for to in [to_other.clone(), by_name, "https://example.com/guest.wasm".into()] {
        let kind = refused(Way::Redirect(to.clone()), within(PATIENCE)).await;
        assert_eq!(kind, LoadErrorKind::Download(DownloadError::Redirect { to }));
    }
    for to in ["http://example.com/guest.wasm", "ftp://127.0.0.1/guest.wasm"] {
        let kind = refused(Way::Redirect(to.into()), within(PATIENCE)).await;
        let why = LoadErrorKind::Download(DownloadError::BadRedirect(
            to.parse::<reflowd_loader::ModuleUrl>().unwrap_err(),
        ));
        assert_eq!(kind, why);
    }
    let kind = refused(Way::Redirect("/again".into()), within(PATIENCE)).await;
    assert_eq!(kind, LoadErrorKind::Download(DownloadError::Redirects));
    assert_eq!(other.requests(), 0, "nobody has gone there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_trusted_where_somebody_vouches_for_it() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let to_loopback = Server::start(|_| Way::Whole(good().to_vec()));
    let there = to_loopback.url("/");
    let server = Server::start_tls(&ours, move |path| match path {
        "/down" => Way::Redirect(there.clone()),
        _ => Way::Whole(good().to_vec()),
    });
    let listed = |authority: Option<&Authority>| DownloadRules {
        hosts: vec!["localhost".into()],
        authorities: authority.map_or_else(Authorities::default, |authority| {
            Authorities::from_pem(authority.pem.as_bytes()).unwrap()
        }),
        timeout: PATIENCE,
    };
    load(&server.url("/"), listed(Some(&ours))).await.unwrap();
    for rules in [listed(None), listed(Some(&theirs))] {
        let error = load(&server.url("/"), rules).await.unwrap_err();
        let LoadErrorKind::Download(DownloadError::Certificate(_)) = error.kind else {
            panic!("{error}");
        };
    }
    let error = load(&server.url("/down"), listed(Some(&ours))).await.unwrap_err();
    let to = to_loopback.url("/");
    assert_eq!(error.kind, LoadErrorKind::Download(DownloadError::Redirect { to }));
    assert_eq!(to_loopback.requests(), 0);
    assert_eq!(server.requests(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn https_leads_into_no_inner_network_unless_the_host_is_listed() {
    let authority = Authority::new();
    let server = Server::start_tls(&authority, |_| Way::Whole(good().to_vec()));
    let authorities = Authorities::from_pem(authority.pem.as_bytes()).unwrap();
    let rules = |hosts: &[&str]| DownloadRules {
        hosts: hosts.iter().map(ToString::to_string).collect(),
        authorities: authorities.clone(),
        timeout: PATIENCE,
    };
    let port = server.port;
    for url in [format!("https://localhost:{port}/"), format!("https://127.0.0.1:{port}/")] {
        let error = load(&url, rules(&[])).await.unwrap_err();
        let kind = matches!(error.kind, LoadErrorKind::Download(DownloadError::NotPublic { .. }));
        assert!(kind, "{error}");
        let error = load(&url, rules(&["example.com"])).await.unwrap_err();
        let kind =
            matches!(error.kind, LoadErrorKind::Download(DownloadError::HostNotListed { .. }));
        assert!(kind, "{error}");
    }
    assert_eq!(server.requests(), 0);
    load(&format!("https://127.0.0.1:{port}/"), rules(&["127.0.0.1"])).await.unwrap();
    load(&server.url("/"), rules(&["example.com", "localhost"])).await.unwrap();
    let error = load("https://name.invalid/", rules(&[])).await.unwrap_err();
    let kind = matches!(error.kind, LoadErrorKind::Download(DownloadError::Unresolved { .. }));
    assert!(kind, "{error}");
}

#[test]
fn authorities_are_certificates() {
    let pem = Authority::new().pem;
    let two = format!("{pem}\n{}", Authority::new().pem);
    assert!(Authorities::from_pem(pem.as_bytes()).is_ok());
    assert_ne!(Authorities::from_pem(two.as_bytes()), Authorities::from_pem(pem.as_bytes()));
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let damaged = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
    for (text, part) in [
        ("", "no certificate"),
        ("hello", "no certificate"),
        (&key, "no certificate"),
        (damaged, "number 1 cannot be read"),
        (&format!("{pem}{damaged}"), "number 2 cannot be read"),
        (&pem.replace("-----END", "-----"), "no "),
    ] {
        let why = Authorities::from_pem(text.as_bytes()).unwrap_err().to_string();
        assert!(why.contains(part), "{text}: {why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_url_can_be_looked_at() {
    let server = Server::start(|_| Way::Whole(good().to_vec()));
    let loader = Loader::new(Limits::default());
    let url = server.url("/guest.wasm?token=secret").parse().unwrap();
    assert_eq!(loader.download(&url, None).await.unwrap(), good());
    let error = loader.download(&url, Some(&digest_of(b"other"))).await.unwrap_err();
    assert_eq!(error.reason(), "digest-mismatch");
    assert!(!error.to_string().contains("secret"), "{error}");
}

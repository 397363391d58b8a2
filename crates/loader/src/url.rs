//! Where a module may be downloaded from, as an operator writes it.
//!
//! What can be said against a URL without asking anybody is said when it is
//! parsed, so that a configuration with a URL that can never work is refused
//! where it stands.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Serialize, Serializer};
use thiserror::Error;
use ureq::http::Uri;

/// The longest URL, in bytes.
const MAX_LENGTH: usize = 2048;

/// A URL that a module can be downloaded from: `https`, or `http` on this machine.
///
/// It is shown without its query, which may hold a token.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleUrl(String);

/// A text is no URL that a module can be downloaded from.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum InvalidUrl {
    /// It is no absolute URL.
    #[error("this is no URL; write one such as \"https://example.com/counter.wasm\"")]
    Malformed,
    /// It has more bytes than any server takes.
    #[error("the URL has {0} bytes, and {MAX_LENGTH} are allowed; use a shorter one")]
    TooLong(usize),
    /// Another scheme than `https` and `http`.
    #[error("modules come by https, or by http from this machine, and not by {0}")]
    Scheme(String),
    /// Anybody between here and there could see and hold up what comes by `http`.
    #[error(
        "http is only for 127.0.0.1, [::1] and localhost; write https:// for the host `{host}`"
    )]
    Insecure {
        /// The host.
        host: String,
    },
    /// A name and a password, which would be shown with the URL.
    #[error("the URL holds a user's name or password; leave out what stands before the `@`")]
    UserInfo,
}

impl ModuleUrl {
    /// The whole text, its query included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last part of its path: what a file of it would be called.
    #[must_use]
    pub fn file_name(&self) -> &str {
        let path = self.0.split('?').next().unwrap_or_default();
        path.rsplit('/').find(|part| !part.is_empty()).unwrap_or(path)
    }

    /// In parts.
    pub(crate) fn uri(&self) -> Uri {
        self.0.parse().expect("it was parsed when it was made")
    }

    /// The URL that a server at this one sends to with `location`.
    ///
    /// # Errors
    /// There can be no module.
    pub(crate) fn redirected(&self, location: &str) -> Result<Self, InvalidUrl> {
        let uri = self.uri();
        let scheme = uri.scheme_str().unwrap_or_default();
        let authority = uri.authority().map_or("", ureq::http::uri::Authority::as_str);
        // A query may hold a whole URL, so only what stands first says what it is.
        let names_scheme =
            location.split(['/', '?', '#']).next().is_some_and(|first| first.ends_with(':'));
        if let Some(rest) = location.strip_prefix("//") {
            format!("{scheme}://{rest}").parse()
        } else if location.starts_with('/') {
            format!("{scheme}://{authority}{location}").parse()
        } else if names_scheme {
            location.parse()
        } else {
            let folder = uri.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{scheme}://{authority}{folder}/{location}").parse()
        }
    }

    /// Whether both are asked of the same server: scheme, host and port.
    pub(crate) fn same_origin(&self, other: &Self) -> bool {
        self.server() == other.server()
    }

    /// The server that is asked: scheme, host and port.
    #[must_use]
    pub fn server(&self) -> String {
        let uri = self.uri();
        let scheme = uri.scheme_str().unwrap_or_default().to_ascii_lowercase();
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        format!("{scheme}://{host}:{port}")
    }
}

impl FromStr for ModuleUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        if text.len() > MAX_LENGTH {
            return Err(InvalidUrl::TooLong(text.len()));
        }
        let uri: Uri = text.parse().map_err(|_| InvalidUrl::Malformed)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(InvalidUrl::Malformed);
        };
        if authority.as_str().contains('@') {
            return Err(InvalidUrl::UserInfo);
        }
        if authority.host().trim_matches(['[', ']']).is_empty() {
            return Err(InvalidUrl::Malformed);
        }
        match scheme {
            "https" => {}
            "http" if is_this_machine(authority.host()) => {}
            "http" => return Err(InvalidUrl::Insecure { host: authority.host().into() }),
            other => return Err(InvalidUrl::Scheme(other.into())),
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for ModuleUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_once('?') {
            Some((before, _)) => write!(f, "{before}?…"),
            None => f.write_str(&self.0),
        }
    }
}

impl fmt::Debug for ModuleUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// As it is shown.
impl Serialize for ModuleUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn is_this_machine(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> ModuleUrl {
        text.parse().unwrap()
    }

    #[test]
    fn only_https_or_http_on_this_machine() {
        for good in [
            "https://example.com/a.wasm",
            "https://example.com:8443/a?token=x",
            "https://10.0.0.1/a.wasm",
            "http://127.0.0.1:80/a.wasm",
            "http://[::1]/a.wasm",
            "http://LOCALHOST:1/",
        ] {
            assert!(good.parse::<ModuleUrl>().is_ok(), "{good}");
        }
        for (bad, part) in [
            ("", "no URL"),
            ("counter", "no URL"),
            ("/a.wasm", "no URL"),
            ("https:///a.wasm", "no URL"),
            ("https://a b/", "no URL"),
            ("ftp://example.com/a.wasm", "not by ftp"),
            ("file:///a.wasm", "no URL"),
            ("http://example.com/a.wasm", "write https://"),
            ("http://127.1/", "write https://"),
            ("http://2130706433/", "write https://"),
            ("http://localhost.example.com/", "write https://"),
            ("https://me:secret@example.com/", "before the `@`"),
            ("http://127.0.0.1@example.com/", "before the `@`"),
        ] {
            let why = bad.parse::<ModuleUrl>().unwrap_err().to_string();
            assert!(why.contains(part), "{bad}: {why}");
        }
        assert!(format!("https://h/{}", "x".repeat(3000)).parse::<ModuleUrl>().is_err());
    }

    #[test]
    fn a_query_is_not_shown() {
        let url = url("https://example.com/v1/a.wasm?token=secret");
        assert_eq!(url.to_string(), "https://example.com/v1/a.wasm?…");
        assert!(!format!("{url:?}").contains("secret"));
        assert_eq!(url.file_name(), "a.wasm");
        assert!(url.as_str().ends_with("?token=secret"));
    }

    #[test]
    fn a_url_has_a_short_name() {
        for (text, name) in [
            ("https://example.com/v1/a.wasm", "a.wasm"),
            ("https://example.com/", "example.com"),
            ("https://example.com/download/", "download"),
        ] {
            assert_eq!(url(text).file_name(), name);
        }
    }

    #[test]
    fn a_redirect_goes_from_where_it_was_asked() {
        let here = url("https://example.com:8443/v1/a.wasm?x");
        for (location, there) in [
            ("/b", "https://example.com:8443/b"),
            ("b.wasm", "https://example.com:8443/v1/b.wasm"),
            ("//other/b", "https://other/b"),
            ("https://other/b", "https://other/b"),
            ("/b?of=https://other/c", "https://example.com:8443/b?of=https://other/c"),
            ("b?of=https://other/c", "https://example.com:8443/v1/b?of=https://other/c"),
        ] {
            assert_eq!(here.redirected(location).unwrap().as_str(), there, "{location}");
        }
        assert!(here.redirected("http://example.com/b").is_err());
    }

    #[test]
    fn a_server_is_a_scheme_a_host_and_a_port() {
        let here = url("https://example.com/a");
        for (other, same) in [
            ("https://EXAMPLE.com:443/b", true),
            ("https://example.com:444/b", false),
            ("https://www.example.com/b", false),
        ] {
            assert_eq!(here.same_origin(&url(other)), same, "{other}");
        }
        assert!(!url("http://localhost:443/a").same_origin(&url("https://localhost:443/a")));
    }
}

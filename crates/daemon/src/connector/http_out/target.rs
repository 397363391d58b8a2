//! The `url` of a configuration: where requests go, and with which user and password.
//!
//! User and password are percent-encoded, as in any URL. A value of the actor's `env` inserted
//! there is taken literally, whatever characters it has.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderValue, Uri};

use super::{TemplatePiece, fill, filled};
use crate::percent;

/// A URL without its user, and the `Authorization` header made from that.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) url: Uri,
    pub(super) authorization: Option<HeaderValue>,
}

impl Target {
    /// Reads a `url` in which `${NAME}` stands for a value of `env`.
    pub(super) fn read(template: &str, env: &BTreeMap<String, String>) -> Result<Self, String> {
        let (url, user) = match without_user(template) {
            (Some(user), url) => (filled(&url, env)?, Some(credentials(user, env)?)),
            // A value may hold the whole URL, and with it the user.
            (None, _) => match without_user(&filled(template, env)?) {
                (Some(user), url) => (url, Some(credentials(user, &BTreeMap::new())?)),
                (None, url) => (url, None),
            },
        };
        let url: Uri = url.parse().map_err(|error| format!("it is no URL: {error}"))?;
        let has_host = !url.host().is_none_or(str::is_empty);
        if !matches!(url.scheme_str(), Some("http" | "https")) || !has_host {
            return Err("it begins with http:// or https:// and a host".into());
        }
        if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("it names a user twice".into());
        }
        let authorization = user.map(|user| {
            let text = format!("Basic {}", BASE64_STANDARD.encode(user));
            let mut value = HeaderValue::from_str(&text).expect("base64 is a header's value");
            value.set_sensitive(true);
            value
        });
        Ok(Self { url, authorization })
    }
}

/// The user of a URL, where it has one, and the URL without.
fn without_user(url: &str) -> (Option<&str>, String) {
    let Some((scheme, rest)) = url.split_once("://") else { return (None, url.into()) };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rsplit_once('@') {
        Some((user, host)) => (Some(user), format!("{scheme}://{host}{}", &rest[end..])),
        None => (None, url.into()),
    }
}

/// `user:password`, as Basic authentication wants it (RFC 7617).
fn credentials(user: &str, env: &BTreeMap<String, String>) -> Result<Vec<u8>, String> {
    let (user, password) = match user.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (user, None),
    };
    let in_user = |why: String| format!("its user: {why}");
    let mut credentials = decoded(user, env, |piece, bytes| {
        // Without a password of its own, a value may hold both: `${AUTH}@`.
        let may_hold_both = password.is_none() && matches!(piece, TemplatePiece::Value(_));
        if bytes.contains(&b':') && !may_hold_both {
            return Err("it has a colon, which a receiver takes for its end".into());
        }
        Ok(())
    })
    .map_err(in_user)?;
    match password {
        Some(password) => {
            credentials.push(b':');
            let password = decoded(password, env, |_, _| Ok(()));
            credentials.extend(password.map_err(|why| format!("its password: {why}"))?);
        }
        None if !credentials.contains(&b':') => credentials.push(b':'),
        None => {}
    }
    if credentials.iter().any(u8::is_ascii_control) {
        return Err("its user or password has a control character".into());
    }
    Ok(credentials)
}

/// Decodes a text, leaving values of `env` as they are; `look` checks each piece.
fn decoded(
    text: &str,
    env: &BTreeMap<String, String>,
    look: impl Fn(&TemplatePiece<'_>, &[u8]) -> Result<(), String>,
) -> Result<Vec<u8>, String> {
    let mut all = Vec::new();
    fill(text, env, |piece| {
        let bytes = match piece {
            TemplatePiece::Text(text) => percent::decoded(text).map_err(|bad| bad.to_string())?,
            TemplatePiece::Value(value) => value.as_bytes().to_vec(),
        };
        look(&piece, &bytes)?;
        all.extend(bytes);
        Ok(())
    })?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> BTreeMap<String, String> {
        let pairs = [
            ("PASS", "p@ss/%41:x\n"),
            ("AUTH", "u:p%40:x"),
            ("HOOK", "https://bot:p%40ss@chat.example/hook?a=b@c"),
            ("BAD", "a\u{7}"),
        ];
        pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    #[track_caller]
    fn check(template: &str, url: &str, user: Option<&str>) {
        let target = Target::read(template, &env()).unwrap();
        assert_eq!(target.url.to_string(), url);
        let sent = target.authorization.map(|value| {
            let value = value.to_str().unwrap().strip_prefix("Basic ").unwrap().to_owned();
            String::from_utf8(BASE64_STANDARD.decode(value).unwrap()).unwrap()
        });
        assert_eq!(sent.as_deref(), user);
    }

    #[test]
    fn user_and_password_are_what_their_escapes_stand_for() {
        check("http://h:1/x@y?z=@", "http://h:1/x@y?z=@", None);
        check("http://user:p%40ss@h/", "http://h/", Some("user:p@ss"));
        check("http://u%2fs:%3a%c3%bc%25@h/a?b", "http://h/a?b", Some("u/s::ü%"));
        check("http://a:b:c@h/", "http://h/", Some("a:b:c"));
        check("http://a@h/", "http://h/", Some("a:"));
        check("http://:b@h/", "http://h/", Some(":b"));
        check("http://a:@[::1]:8/", "http://[::1]:8/", Some("a:"));
    }

    #[test]
    fn a_value_in_the_place_of_a_password_stands_for_itself() {
        check("http://user:${PASS}@h/", "http://h/", Some("user:p@ss/%41:x"));
        check("http://user:%40${PASS}@h/", "http://h/", Some("user:@p@ss/%41:x"));
        check("http://${AUTH}@h/", "http://h/", Some("u:p%40:x"));
        // What is a whole URL is read as one.
        check("${HOOK}", "https://chat.example/hook?a=b@c", Some("bot:p@ss"));
    }

    #[test]
    fn what_cannot_be_said_is_refused_in_words() {
        #[track_caller]
        fn check(template: &str, expected: &str) {
            let why = Target::read(template, &env()).unwrap_err();
            assert!(why.contains(expected), "{template}: {why}");
        }
        check("http://u:50%@h/", "its password: `%` is not percent-encoding; write a percent sign");
        check("http://u%zz:p@h/", "its user: `%zz` is not percent-encoding");
        check("http://a%3Ab:c@h/", "its user: it has a colon");
        check("http://${AUTH}:c@h/", "its user: it has a colon");
        check("http://u:a%0Ab@h/", "control character");
        check("http://u:${BAD}@h/", "control character");
        check("http://u:${NONE}@h/", "there is no `NONE` in the actor's `env`");
        check("ftp://h/", "it begins with http:// or https://");
        check("http:///x", "it is no URL");
        check("/x", "it begins with http:// or https://");
    }
}

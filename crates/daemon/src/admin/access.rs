//! Who may do what over TCP, by tokens.
//!
//! Whoever can open the Unix socket is its owner and may do everything. An address can be
//! reached by others: with tokens set, a request there shows one, and each has a role. A
//! token is compared by its digest, so that how long that takes says nothing about it.

use std::{fmt, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tracing::{debug, info};

use super::Problem;

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// To look: everything that is read with GET.
    Read,
    /// To send messages to actors, and nothing else.
    Send,
    /// Everything.
    Operate,
}

impl Role {
    /// All roles.
    pub(crate) const ALL: [Self; 3] = [Self::Read, Self::Send, Self::Operate];

    /// One word, as the configuration has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Send => "send",
            Self::Operate => "operate",
        }
    }

    fn may(self, needed: Self) -> bool {
        self == Self::Operate || self == needed
    }

    /// What a request needs; nothing for a probe, which says only whether the daemon serves.
    /// One that asks for more than that looks.
    pub(super) fn needed(method: &Method, path: &str, query: Option<&str>) -> Option<Self> {
        let reads = matches!(*method, Method::GET | Method::HEAD);
        match path {
            "/livez" | "/readyz" if reads && query.is_none() => None,
            _ if reads => Some(Self::Read),
            _ if sends(method, path) => Some(Self::Send),
            _ => Some(Self::Operate),
        }
    }
}

/// Whether a request sends messages: `POST /v1/actors/{actor}/ports/{port}`.
fn sends(method: &Method, path: &str) -> bool {
    let parts: Vec<_> = path.split('/').collect();
    *method == Method::POST && matches!(parts[..], ["", "v1", "actors", _, "ports", _])
}

/// The shortest token, in bytes: shorter ones can be guessed.
const SHORTEST_TOKEN: usize = 16;

/// Why a text cannot be a token.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum UnusableToken {
    /// Nothing is there but blanks.
    #[error("is blank")]
    Blank,
    /// A header's value begins and ends with something else.
    #[error("has blanks before or behind it")]
    Surrounded,
    /// A header's value has nothing but ASCII text.
    #[error("has a character that is not ASCII, or controls")]
    Invisible,
    /// It can be guessed.
    #[error("is shorter than {SHORTEST_TOKEN} characters")]
    Short,
}

/// The token in a text, without ends of lines behind it, which editors add.
///
/// # Errors
/// Nobody could ever show it as `Authorization: Bearer …`, or it can be guessed.
pub(crate) fn usable_token(text: &str) -> Result<&str, UnusableToken> {
    let token = text.trim_end_matches(['\r', '\n']);
    if token.trim().is_empty() {
        return Err(UnusableToken::Blank);
    }
    if token.trim() != token {
        return Err(UnusableToken::Surrounded);
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return Err(UnusableToken::Invisible);
    }
    if token.len() < SHORTEST_TOKEN {
        return Err(UnusableToken::Short);
    }
    Ok(token)
}

/// The tokens that are taken over TCP, by their digests. Prints none of them.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Tokens(Vec<(Role, [u8; 32])>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(role, _)| role)).finish()
    }
}

impl Tokens {
    /// One more token.
    pub(crate) fn add(&mut self, role: Role, token: &str) {
        self.0.push((role, digest(token)));
    }

    /// Whether there are none: then everybody who comes may do everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The role of a token; of several equal ones, the one that may do most.
    fn role(&self, token: &str) -> Option<Role> {
        let shown = digest(token);
        let mut found = None;
        // All are looked at, whichever fits.
        for (role, known) in &self.0 {
            if *known == shown {
                found = found.max(Some(*role));
            }
        }
        found
    }

    /// Who comes with these headers, if that one may do it.
    fn admit(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Who, Problem> {
        if self.is_empty() {
            return Ok(Who::Anybody);
        }
        let Some(needed) = Role::needed(method, uri.path(), uri.query()) else {
            return Ok(Who::Anybody);
        };
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = shown.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let role = match token {
            None => {
                let why = "show a token: `Authorization: Bearer …`";
                return Err(unauthorized(why, "Bearer realm=\"reflowd\""));
            }
            Some(token) => self.role(token).ok_or_else(|| {
                let challenge = "Bearer realm=\"reflowd\", error=\"invalid_token\"";
                unauthorized("this token is not known", challenge)
            })?,
        };
        if role.may(needed) {
            return Ok(Who::Token(role));
        }
        let (has, needs) = (role.name(), needed.name());
        let or = if needed == Role::Operate { "" } else { " or `operate`" };
        let why = format!("the token's role is `{has}`, and this needs `{needs}`{or}");
        Err(Problem::new(StatusCode::FORBIDDEN, "role", "not permitted", why).with("needs", needs))
    }
}

fn unauthorized(why: &str, challenge: &'static str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "token", "who is there?", why)
        .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Where a request comes from, as its connection tells. Goes with the request.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub(crate) Arc<str>);

/// Who a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// Nobody has to say.
    Anybody,
    /// Whoever has a token of that role.
    Token(Role),
}

/// Lets a request pass whose token, where there are any, has the role for it; and writes down
/// what changes something, with who asked for it and what came of it.
pub(super) async fn control(
    State(tokens): State<Arc<Tokens>>,
    request: Request,
    next: Next,
) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let path = uri.path();
    let caller = request.extensions().get::<Caller>().map(|caller| Arc::clone(&caller.0));
    let (who, response) = match tokens.admit(&method, &uri, request.headers()) {
        Ok(who) => (Some(who), next.run(request).await),
        Err(problem) => (None, problem.into_response()),
    };
    if matches!(method, Method::GET | Method::HEAD) {
        return response;
    }
    let role = match who {
        Some(Who::Anybody) => "-",
        Some(Who::Token(role)) => role.name(),
        None => "refused",
    };
    let (status, from) = (response.status().as_u16(), caller.as_deref().unwrap_or("-"));
    // Messages are the daemon's work; what else changes something, somebody has decided.
    if sends(&method, path) && who.is_some() {
        debug!(target: "audit", from, role, %method, path, status, "message");
    } else {
        info!(target: "audit", from, role, %method, path, status, "write");
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        let mut tokens = Tokens::default();
        for (role, token) in Role::ALL.into_iter().zip(["reader", "sender", "operator"]) {
            tokens.add(role, token);
        }
        tokens
    }

    #[track_caller]
    fn check(method: Method, path: &str, shown: Option<&str>, expected: Result<(), u16>) {
        let mut headers = HeaderMap::new();
        if let Some(shown) = shown {
            headers.insert(header::AUTHORIZATION, shown.parse().unwrap());
        }
        let found = tokens().admit(&method, &path.parse().unwrap(), &headers);
        let found = found.map(drop).map_err(|problem| problem.into_response().status().as_u16());
        assert_eq!(found, expected, "{method} {path} {shown:?}");
    }

    #[test]
    fn each_role_may_do_its_own_and_the_operator_everything() {
        let (get, post) = (Method::GET, Method::POST);
        let port = "/v1/actors/a/ports/in";
        check(get.clone(), "/v1/actors", Some("Bearer reader"), Ok(()));
        check(get.clone(), "/metrics", Some("bearer reader"), Ok(()));
        check(post.clone(), port, Some("Bearer reader"), Err(403));
        check(post.clone(), port, Some("Bearer sender"), Ok(()));
        check(get.clone(), "/v1/actors", Some("Bearer sender"), Err(403));
        check(post.clone(), "/v1/reload", Some("Bearer sender"), Err(403));
        check(post.clone(), "/v1/actors/a/pause", Some("Bearer sender"), Err(403));
        check(Method::DELETE, "/v1/dead-letters", Some("Bearer reader"), Err(403));
        check(Method::PUT, "/v1/actors/a/state", Some("Bearer sender"), Err(403));
        for (method, path) in [(get, "/v1/actors"), (post.clone(), port), (post, "/v1/reload")] {
            check(method, path, Some("Bearer operator"), Ok(()));
        }
    }

    #[test]
    fn who_shows_no_token_or_another_is_asked_for_one() {
        check(Method::GET, "/v1/actors", None, Err(401));
        check(Method::GET, "/v1/actors", Some("Bearer nobody"), Err(401));
        check(Method::GET, "/v1/actors", Some("Basic reader"), Err(401));
        check(Method::GET, "/v1/actors", Some("reader"), Err(401));
        check(Method::GET, "/livez", None, Ok(()));
        check(Method::POST, "/livez", None, Err(401));
        check(Method::GET, "/readyz", None, Ok(()));
        check(Method::GET, "/readyz?verbose", None, Err(401));
        check(Method::GET, "/readyz?verbose", Some("Bearer reader"), Ok(()));
        let nobody = Tokens::default().admit(
            &Method::POST,
            &Uri::from_static("/v1/reload"),
            &HeaderMap::new(),
        );
        assert!(nobody.is_ok(), "without tokens, whoever comes may do everything");
    }

    #[test]
    fn a_token_is_one_that_a_header_can_have() {
        let good = "0123456789abcdef";
        for (text, expected) in [
            (good.to_owned(), Ok(good)),
            (format!("{good}\n"), Ok(good)),
            (format!("{good}\r\n\n"), Ok(good)),
            (" ".repeat(32), Err(UnusableToken::Blank)),
            ("\n".repeat(32), Err(UnusableToken::Blank)),
            (String::new(), Err(UnusableToken::Blank)),
            (format!(" {good}"), Err(UnusableToken::Surrounded)),
            (format!("{good}\t\n"), Err(UnusableToken::Surrounded)),
            (format!("{good}\u{7f}"), Err(UnusableToken::Invisible)),
            ("0123456789 abcdef".into(), Ok("0123456789 abcdef")),
            (format!("{good}\n{good}"), Err(UnusableToken::Invisible)),
            (format!("{good}\u{1b}"), Err(UnusableToken::Invisible)),
            (format!("{good}é"), Err(UnusableToken::Invisible)),
            ("0123456789abcde\n".into(), Err(UnusableToken::Short)),
        ] {
            assert_eq!(usable_token(&text), expected, "{text:?}");
        }
    }

    #[test]
    fn nothing_prints_a_token() {
        assert_eq!(format!("{:?}", tokens()), "[Read, Send, Operate]");
    }
}

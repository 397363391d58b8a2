//! `Retry-After`: how long a server asks its clients to wait (RFC 9110, 10.2.3).

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, header};

/// The wait that a response asks for; `None` without a valid `Retry-After`. The longest of several
/// counts.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    // A date is relative to the server's clock, which its `Date` header tells.
    let now = headers.get(header::DATE).and_then(date).unwrap_or_else(SystemTime::now);
    let said = headers.get_all(header::RETRY_AFTER).into_iter();
    said.filter_map(|value| seconds(value).or_else(|| until(value, now))).max()
}

/// A wait in seconds; saturates.
fn seconds(value: &HeaderValue) -> Option<Duration> {
    let digits = value.to_str().ok()?.trim();
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| Duration::from_secs(digits.parse().unwrap_or(u64::MAX)))
}

fn until(value: &HeaderValue, now: SystemTime) -> Option<Duration> {
    Some(date(value)?.duration_since(now).unwrap_or_default())
}

fn date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(values: &[&str], expected: Option<u64>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::DATE, "Sun, 06 Nov 1994 08:49:30 GMT".parse().unwrap());
        for value in values {
            headers.append(header::RETRY_AFTER, value.parse().unwrap());
        }
        assert_eq!(retry_after(&headers), expected.map(Duration::from_secs), "{values:?}");
    }

    #[test]
    fn it_is_seconds_or_a_date_in_any_form_that_http_has() {
        check(&[], None);
        check(&["8"], Some(8));
        check(&["0"], Some(0));
        check(&["99999999999999999999999"], Some(u64::MAX));
        check(&["Sun, 06 Nov 1994 08:49:37 GMT"], Some(7));
        check(&["Sunday, 06-Nov-94 08:49:37 GMT"], Some(7));
        check(&["Sun Nov  6 08:49:37 1994"], Some(7));
        check(&["Sun, 06 Nov 1994 08:49:00 GMT"], Some(0));
        check(&["2", "9", "soon"], Some(9));
        for nonsense in ["", "-1", "+1", "1.5", "8s", "soon", "Sun, 99 Nov 1994 08:49:37 GMT"] {
            check(&[nonsense], None);
        }
    }

    #[test]
    fn without_the_server_s_clock_a_date_goes_by_ours() {
        let mut headers = HeaderMap::new();
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3600));
        headers.insert(header::RETRY_AFTER, later.parse().unwrap());
        let wait = retry_after(&headers).unwrap().as_secs();
        assert!((3000..=3600).contains(&wait), "{wait}");
    }
}

//! The export of spans as OpenTelemetry's environment variables configure it.
//!
//! Pure: the variables are passed in. A variable that it does not understand is an error or a
//! warning, and never ignored.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use ureq::http::{HeaderName, HeaderValue, Uri};

use crate::percent;

/// OpenTelemetry's default timeout for a batch.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Every variable that is read here.
const KNOWN: [&str; 16] = [
    "OTEL_SDK_DISABLED",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_PROPAGATORS",
    "OTEL_TRACES_EXPORTER",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_LOG_LEVEL",
];

/// Which traces are collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sampler {
    /// Follows the caller, and samples traces that begin here by `root`.
    ParentBased {
        /// The share of traces that begin here.
        root: Share,
    },
    /// Samples all traces, and ignores the caller.
    Own(Share),
}

/// So many of a million traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share(u32);

impl Share {
    const ALL: Self = Self(1_000_000);
    const NONE: Self = Self(0);

    /// Whether the share includes the trace with that id.
    pub(super) fn has(self, trace: u128) -> bool {
        // Ids count up in their low half; mixed, any share of them is a fair one.
        let mixed = trace.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) >> 96;
        mixed % 1_000_000 < u128::from(self.0)
    }

    fn read(text: &str) -> anyhow::Result<Self> {
        let share: Option<f64> = text.trim().parse().ok();
        let share = share.filter(|share| (0.0..=1.0).contains(share)).with_context(|| {
            format!("OTEL_TRACES_SAMPLER_ARG is `{text}`, and a share from 0 to 1 is needed")
        })?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "from 0 to a million"
        )]
        Ok(Self((share * 1e6).round() as u32))
    }
}

/// Where spans go, and how.
#[derive(Debug, PartialEq)]
pub(super) struct Settings {
    pub(super) url: String,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) sampler: Sampler,
    pub(super) timeout: Duration,
    /// Attributes of the daemon, `service.name` among them.
    pub(super) resource: BTreeMap<String, String>,
    /// Warnings about variables that are not supported, for the log.
    pub(super) warnings: Vec<String>,
}

impl Settings {
    /// `None` if no collector is named, or spans are turned off.
    ///
    /// # Errors
    /// A variable is malformed; the error says what to set it to.
    pub(super) fn read(variables: &BTreeMap<String, String>) -> anyhow::Result<Option<Self>> {
        let var = |name: &str| {
            debug_assert!(KNOWN.contains(&name), "`{name}` is read and not known");
            variables.get(name).map(String::as_str).filter(|value| !value.trim().is_empty())
        };
        let traces_or_all = |traces: &str, all: &str| var(traces).or_else(|| var(all));
        if var("OTEL_SDK_DISABLED").is_some_and(|value| value.trim().eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        let mut warnings = unknown(variables);
        match var("OTEL_TRACES_EXPORTER").map(str::trim) {
            None | Some("otlp") => {}
            Some("none") => return Ok(None),
            Some(other) => {
                warnings.push(format!(
                    "OTEL_TRACES_EXPORTER is `{other}`; spans go by `otlp` or, with `none`, nowhere"
                ));
            }
        }
        let url = match var("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            Some(url) => Some(url.trim().to_owned()),
            None => var("OTEL_EXPORTER_OTLP_ENDPOINT")
                .map(|base| format!("{}/v1/traces", base.trim().trim_end_matches('/'))),
        };
        let Some(url) = url else { return Ok(None) };
        check_endpoint(&url)?;
        let protocol =
            traces_or_all("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL");
        match protocol.map(str::trim) {
            // A collector takes both at the same address.
            None | Some("http/json" | "http/protobuf") => {}
            Some(other) => anyhow::bail!(
                "OTEL_EXPORTER_OTLP_PROTOCOL is `{other}`, and spans go as `http/json`; set it to that, and the endpoint to the collector's HTTP port, by default 4318"
            ),
        }
        if let Some(other) = var("OTEL_PROPAGATORS")
            && !other.split(',').any(|name| name.trim() == "tracecontext")
        {
            warnings.push(format!(
                "OTEL_PROPAGATORS is `{other}`; traces are passed on by `tracecontext`"
            ));
        }
        let list = traces_or_all("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS");
        let headers = pairs("OTEL_EXPORTER_OTLP_HEADERS", list.unwrap_or_default())?;
        let headers = headers.into_iter().map(|(name, value)| header(&name, &value));
        let timeout =
            traces_or_all("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT");
        let timeout = timeout.map(millis).transpose()?.unwrap_or(TIMEOUT);
        let mut resource: BTreeMap<_, _> =
            [("service.name".to_owned(), "reflowd".to_owned())].into();
        let attributes = var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        resource.extend(pairs("OTEL_RESOURCE_ATTRIBUTES", attributes)?);
        if let Some(name) = var("OTEL_SERVICE_NAME") {
            resource.insert("service.name".into(), name.into());
        }
        let sampler = sampler(var("OTEL_TRACES_SAMPLER"), var("OTEL_TRACES_SAMPLER_ARG"))?;
        Ok(Some(Self {
            url,
            headers: headers.collect::<anyhow::Result<_>>()?,
            sampler,
            timeout,
            resource,
            warnings,
        }))
    }
}

fn check_endpoint(url: &str) -> anyhow::Result<()> {
    let uri: Uri = url.parse().with_context(|| {
        format!("`{url}` is not a URL; set OTEL_EXPORTER_OTLP_ENDPOINT to one such as http://127.0.0.1:4318")
    })?;
    anyhow::ensure!(
        matches!(uri.scheme_str(), Some("http" | "https")),
        "spans go by http or https, not to `{url}`; set OTEL_EXPORTER_OTLP_ENDPOINT to a URL such as http://127.0.0.1:4318"
    );
    Ok(())
}

/// Variables of OpenTelemetry that are set and not supported.
fn unknown(variables: &BTreeMap<String, String>) -> Vec<String> {
    let set = variables.iter().filter(|(_, value)| !value.trim().is_empty());
    let unknown = set
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("OTEL_") && !KNOWN.contains(&name.as_str()));
    unknown.map(|name| format!("{name} is set, and reflowd does not follow it")).collect()
}

fn sampler(name: Option<&str>, share: Option<&str>) -> anyhow::Result<Sampler> {
    let share = share.map(Share::read).transpose()?.unwrap_or(Share::ALL);
    Ok(match name.map_or("parentbased_traceidratio", str::trim) {
        "always_on" => Sampler::Own(Share::ALL),
        "always_off" => Sampler::Own(Share::NONE),
        "traceidratio" => Sampler::Own(share),
        "parentbased_always_on" => Sampler::ParentBased { root: Share::ALL },
        "parentbased_always_off" => Sampler::ParentBased { root: Share::NONE },
        "parentbased_traceidratio" => Sampler::ParentBased { root: share },
        other => anyhow::bail!(
            "OTEL_TRACES_SAMPLER is `{other}`; it is one of always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off and parentbased_traceidratio"
        ),
    })
}

fn millis(text: &str) -> anyhow::Result<Duration> {
    let millis = text.trim().parse().ok().filter(|millis: &u64| *millis > 0);
    let millis = millis.with_context(|| {
        format!(
            "OTEL_EXPORTER_OTLP_TIMEOUT is `{text}`, and milliseconds are needed, such as 10000"
        )
    })?;
    Ok(Duration::from_millis(millis))
}

/// `name=value,name=value`, percent-encoded as W3C baggage is.
fn pairs(variable: &str, list: &str) -> anyhow::Result<Vec<(String, String)>> {
    let pairs = list.split(',').filter(|pair| !pair.trim().is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').with_context(|| {
            format!("{variable} has a part without `=`; write `name=value,name=value`")
        })?;
        // No error shows the part, which may be a key.
        let decoded = |text: &str| {
            let bytes = percent::decoded(text.trim()).ok();
            bytes.and_then(|bytes| String::from_utf8(bytes).ok()).with_context(|| {
                format!("{variable} has a `%` that is not followed by two hexadecimal digits, or what it encodes is not UTF-8; write a `%` as `%25`")
            })
        };
        Ok((decoded(name)?, decoded(value)?))
    });
    pairs.collect()
}

/// A header. Its value may be a key, so no error shows it.
fn header(name: &str, value: &str) -> anyhow::Result<(HeaderName, HeaderValue)> {
    let name: HeaderName = name.parse().with_context(|| {
        format!("OTEL_EXPORTER_OTLP_HEADERS: `{name}` cannot be the name of a header")
    })?;
    let value = value.parse().ok().with_context(|| {
        format!("OTEL_EXPORTER_OTLP_HEADERS: the value of `{name}` cannot be that of a header")
    })?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");

    fn read(variables: &[(&str, &str)]) -> anyhow::Result<Option<Settings>> {
        let owned = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Settings::read(&owned.collect())
    }

    /// The settings with these beside an endpoint.
    #[track_caller]
    fn with(more: &[(&str, &str)]) -> Settings {
        read(&[&[ENDPOINT], more].concat()).unwrap().expect("there is an endpoint")
    }

    #[test]
    fn without_a_collector_or_turned_off_there_is_nothing() {
        for variables in [
            &[][..],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
            &[ENDPOINT, ("OTEL_SDK_DISABLED", "true")],
            &[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")],
            &[ENDPOINT, ("OTEL_SDK_DISABLED", " True ")],
            &[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")],
        ] {
            assert_eq!(read(variables).unwrap(), None, "{variables:?}");
        }
        assert!(read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "1")]).unwrap().is_some());
    }

    #[test]
    fn the_usual_variables_are_understood() {
        let settings = with(&[]);
        assert_eq!(settings.url, "http://127.0.0.1:4318/v1/traces");
        assert_eq!(settings.sampler, Sampler::ParentBased { root: Share::ALL });
        assert_eq!(settings.resource["service.name"], "reflowd");
        assert_eq!((settings.timeout, settings.warnings.len()), (TIMEOUT, 0));
        let settings = with(&[
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://collector/traces"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x%2Cy, a = b ,"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=theirs,deployment.environment=a%3Db"),
            ("OTEL_SERVICE_NAME", "mine"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_TRACES_EXPORTER", "otlp"),
            ("OTEL_PROPAGATORS", "tracecontext,baggage"),
        ]);
        assert_eq!(settings.url, "https://collector/traces");
        let headers = settings.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap()));
        let headers: Vec<_> = headers.collect();
        assert_eq!(headers, [("authorization", "Bearer x,y"), ("a", "b")]);
        assert_eq!(settings.sampler, Sampler::ParentBased { root: Share(250_000) });
        assert_eq!(settings.resource["service.name"], "mine");
        assert_eq!(settings.resource["deployment.environment"], "a=b");
        assert_eq!((settings.timeout, settings.warnings), (Duration::from_millis(250), vec![]));
    }

    #[test]
    fn every_sampler_that_opentelemetry_names_is_there() {
        let quarter = Share(250_000);
        for (name, expected) in [
            ("always_on", Sampler::Own(Share::ALL)),
            ("always_off", Sampler::Own(Share::NONE)),
            ("traceidratio", Sampler::Own(quarter)),
            ("parentbased_always_on", Sampler::ParentBased { root: Share::ALL }),
            ("parentbased_always_off", Sampler::ParentBased { root: Share::NONE }),
            ("parentbased_traceidratio", Sampler::ParentBased { root: quarter }),
        ] {
            let variables = [("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", "0.25")];
            assert_eq!(with(&variables).sampler, expected, "{name}");
        }
    }

    #[test]
    fn what_is_not_followed_is_told() {
        for (variable, part) in [
            (("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"), "OTEL_EXPORTER_OTLP_COMPRESSION"),
            (("OTEL_BSP_SCHEDULE_DELAY", "1"), "OTEL_BSP_SCHEDULE_DELAY"),
            (("OTEL_TRACES_EXPORTER", "console"), "`console`"),
            (("OTEL_PROPAGATORS", "b3"), "`b3`"),
        ] {
            let warnings = with(&[variable]).warnings;
            assert!(matches!(&warnings[..], [one] if one.contains(part)), "{warnings:?}");
        }
        assert_eq!(with(&[("OTEL_BSP_SCHEDULE_DELAY", "")]).warnings, [""; 0]);
    }

    #[test]
    fn a_variable_that_makes_no_sense_is_refused() {
        for (variables, part) in [
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4318")][..], "http"),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://x")], "http or https"),
            (&[ENDPOINT, ("OTEL_TRACES_SAMPLER_ARG", "2")], "from 0 to 1"),
            (&[ENDPOINT, ("OTEL_TRACES_SAMPLER", "sometimes")], "always_on"),
            (&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], "http/json"),
            (&[ENDPOINT, ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s")], "milliseconds"),
            (&[ENDPOINT, ("OTEL_EXPORTER_OTLP_HEADERS", "x")], "without `=`"),
            (&[ENDPOINT, ("OTEL_EXPORTER_OTLP_HEADERS", "x=50%")], "%25"),
            (&[ENDPOINT, ("OTEL_EXPORTER_OTLP_HEADERS", "x=%+1")], "%25"),
            (&[ENDPOINT, ("OTEL_EXPORTER_OTLP_HEADERS", "x=%FF")], "UTF-8"),
            (&[ENDPOINT, ("OTEL_EXPORTER_OTLP_HEADERS", "a b=c")], "name of a header"),
            (&[ENDPOINT, ("OTEL_EXPORTER_OTLP_HEADERS", "a=%0Ahush")], "value of `a`"),
            (&[ENDPOINT, ("OTEL_RESOURCE_ATTRIBUTES", "x")], "OTEL_RESOURCE_ATTRIBUTES"),
        ] {
            let error = format!("{:#}", read(variables).unwrap_err());
            assert!(error.contains(part) && !error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn a_share_of_the_traces_is_collected() {
        let of = |share: Share| (1..=100_000).filter(|trace| share.has(*trace)).count();
        assert_eq!((of(Share::NONE), of(Share::ALL)), (0, 100_000));
        let quarter = of(Share(250_000));
        assert!((24_000..26_000).contains(&quarter), "{quarter}");
    }
}

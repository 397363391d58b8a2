//! When ticks are due.
//!
//! Pure: it is told the time.

use croner::{
    Cron,
    parser::{CronParser, Seconds},
};
use jiff::{SignedDuration, Timestamp, Zoned, civil::DateTime, tz::TimeZone};
use reflowd_runtime::{Message, Type};
use serde_json::json;

/// Missed moments are counted one by one up to here; beyond, the count is a lower bound.
const MOST_COUNTED: u64 = 100_000;

/// When ticks are due.
///
/// Pure: it is told the time.
pub(super) struct Schedule {
    cron: Cron,
    zone: TimeZone,
    kind: Cadence,
}

/// How a job reacts to a clock change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cadence {
    /// Runs at fixed times, each of which counts.
    Fixed,
    /// Runs at intervals, by the clock as it is: its hours, minutes or seconds begin with `*`.
    Often,
}

impl Cadence {
    fn of(pattern: &str) -> Self {
        let fields: Vec<_> = pattern.split_whitespace().collect();
        let of_time = if fields.len() > 5 { 3 } else { 2 };
        let often = fields.iter().take(of_time).any(|field| field.starts_with('*'));
        // The only nickname for more than one run a day.
        if often || pattern.trim().eq_ignore_ascii_case("@hourly") {
            Self::Often
        } else {
            Self::Fixed
        }
    }
}

/// Whether a search includes its starting time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SearchFrom {
    At,
    After,
}

/// One tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: Timestamp,
    /// Moments that passed before it without a tick.
    pub(super) missed: u64,
}

impl Schedule {
    pub(super) fn new(text: &str, zone: Option<&str>) -> Result<Self, String> {
        let cron = CronParser::builder()
            .seconds(Seconds::Optional)
            .build()
            .parse(text)
            .map_err(|error| format!("`schedule` is no cron pattern: {error}"))?;
        let zone = match zone {
            None => TimeZone::UTC,
            Some(name) => TimeZone::get(name).map_err(|_| {
                format!("there is no time zone `{name}`; write one such as `Europe/Berlin`")
            })?,
        };
        Ok(Self { cron, zone, kind: Cadence::of(text) })
    }

    pub(super) fn kind(&self) -> Cadence {
        self.kind
    }

    /// The first moment after `last`, or `None` if there is none in the range of years.
    ///
    /// Between two changes of the zone's offset the wall clock runs evenly, so the moments are
    /// those at which it fits the pattern. At a change it jumps, and moments in between are treated
    /// as in cron(8): a job that runs at intervals follows the clock as it is; one at fixed times
    /// runs once, in the first of two identical hours, and at the jump for an hour that does not
    /// exist.
    pub(super) fn after(&self, last: Timestamp) -> Option<Timestamp> {
        let (mut from, mut offset) = (last, self.zone.to_offset(last));
        // The wall clock time from which a moment counts.
        let mut wall = self.next(offset.to_datetime(from), SearchFrom::After)?;
        if let Some(back) = self.set_back_before(last)
            && self.kind == Cadence::Fixed
            && wall < back
        {
            wall = self.next(back, SearchFrom::At)?;
        }
        loop {
            let found = offset.to_timestamp(wall).ok()?;
            let Some(change) = self.zone.following(from).next() else { return Some(found) };
            if found < change.timestamp() {
                return Some(found);
            }
            from = change.timestamp();
            let (before, after) = (offset.to_datetime(from), change.offset().to_datetime(from));
            offset = change.offset();
            wall = match self.kind {
                // The jump goes past it.
                Cadence::Fixed if before <= wall && wall < after => return Some(from),
                // It has had its turn in the first of the two hours.
                Cadence::Fixed => self.next(before.max(after), SearchFrom::At)?,
                Cadence::Often => self.next(after, SearchFrom::At)?,
            };
            // No change matters long before the moment: none sets the clock by more than a day.
            let near = offset.to_timestamp(wall).ok()? - SignedDuration::from_hours(48);
            if near > from {
                (from, offset) = (near, self.zone.to_offset(near));
            }
        }
    }

    /// The latest wall clock time before the clock was last set back, as seen from that moment;
    /// `None` if it was not set back.
    fn set_back_before(&self, moment: Timestamp) -> Option<DateTime> {
        // A change at the moment itself counts as well.
        let change = self.zone.preceding(moment + SignedDuration::from_nanos(1)).next()?;
        let at = change.timestamp();
        let before = self.zone.to_offset(at - SignedDuration::from_nanos(1));
        let (before, after) = (before.to_datetime(at), change.offset().to_datetime(at));
        (before > after).then_some(before)
    }

    /// The first wall clock time that fits the pattern, from there on.
    fn next(&self, from: DateTime, edge: SearchFrom) -> Option<DateTime> {
        let is_inclusive = edge == SearchFrom::At && from.subsec_nanosecond() == 0;
        self.cron.find_next_occurrence(&from, is_inclusive).ok()
    }

    /// The latest moment that has come by `now`, when `next` has.
    pub(super) fn due(&self, next: Timestamp, now: Timestamp) -> Due {
        let mut due = Due { at: next, missed: 0 };
        while let Some(later) = self.after(due.at).filter(|later| *later <= now) {
            if due.missed == MOST_COUNTED {
                return Due { at: self.until(now, later), ..due };
            }
            due = Due { at: later, missed: due.missed + 1 };
        }
        due
    }

    /// The last moment up to `now`, which is later than `known`.
    fn until(&self, now: Timestamp, known: Timestamp) -> Timestamp {
        // A moment follows on the lower bound, and none on the upper.
        let (mut low, mut high) = (known.as_second(), now.as_second());
        let mut last = self.after(known).filter(|moment| *moment <= now).unwrap_or(known);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let at = Timestamp::from_second(middle).expect("it is between two times");
            match self.after(at).filter(|moment| *moment <= now) {
                Some(moment) => (low, last) = (middle, moment),
                None => high = middle,
            }
        }
        last
    }

    pub(super) fn message(&self, due: Due) -> Message {
        let scheduled: Zoned = due.at.to_zoned(self.zone.clone());
        let scheduled = scheduled.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
        let mut data = json!({ "scheduled": scheduled, "time": due.at.as_millisecond() });
        if due.missed > 0 {
            data["missed"] = due.missed.into();
        }
        Message::new(Type::Event, data.to_string()).expect("any JSON is an Event")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(text: &str, zone: &str) -> Schedule {
        Schedule::new(text, Some(zone)).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// The moments after `last`, formatted.
    #[track_caller]
    fn check(text: &str, zone: &str, last: &str, expected: &[&str]) {
        let schedule = schedule(text, zone);
        let mut last = at(last);
        for expected in expected {
            last = schedule.after(last).unwrap();
            let message = schedule.message(Due { at: last, missed: 0 });
            let data: serde_json::Value = serde_json::from_slice(message.data()).unwrap();
            assert_eq!(data["scheduled"], *expected, "{text}");
            assert_eq!(data["time"], last.as_millisecond());
        }
    }

    #[test]
    fn moments_are_those_of_the_zone() {
        check(
            "0 6 * * MON-FRI",
            "Europe/Berlin",
            "2026-11-20T12:00:00Z",
            &["2026-11-23T06:00:00+01:00", "2026-11-24T06:00:00+01:00"],
        );
        check("*/20 * * * * *", "UTC", "2026-01-01T00:00:39Z", &["2026-01-01T00:00:40+00:00"]);
        // The last day of a month, and the second Tuesday.
        check("0 0 L * *", "UTC", "2028-02-01T00:00:00Z", &["2028-02-29T00:00:00+00:00"]);
        check("0 9 * * TUE#2", "UTC", "2026-09-01T00:00:00Z", &["2026-09-08T09:00:00+00:00"]);
    }

    /// The rules of cron(8), row by row: the pattern, the zone, the start, and the moments.
    #[test]
    fn a_clock_that_jumps_is_taken_as_cron_takes_it() {
        const BERLIN: &str = "Europe/Berlin";
        let rows: [(&str, &str, &str, &[&str]); 16] = [
            // Half past two does not exist on that night: it comes when the clock has jumped.
            (
                "30 2 * * *",
                BERLIN,
                "2026-03-28T12:00:00Z",
                &["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"],
            ),
            // Running more than once a day changes none of that,
            (
                "30 2,14 * * *",
                BERLIN,
                "2026-03-29T00:00:00Z",
                &["2026-03-29T03:00:00+02:00", "2026-03-29T14:30:00+02:00"],
            ),
            // and all that fell into the hour come as one.
            (
                "0,15,30,45 2 * * *",
                BERLIN,
                "2026-03-29T00:00:00Z",
                &["2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"],
            ),
            (
                "0-59 2-3 * * *",
                BERLIN,
                "2026-03-29T00:59:00Z",
                &["2026-03-29T03:00:00+02:00", "2026-03-29T03:01:00+02:00"],
            ),
            // A job at intervals follows the clock.
            (
                "*/30 * * * *",
                BERLIN,
                "2026-03-29T00:30:00Z",
                &["2026-03-29T03:00:00+02:00", "2026-03-29T03:30:00+02:00"],
            ),
            ("*/15 2 * * *", BERLIN, "2026-03-29T00:00:00Z", &["2026-03-30T02:00:00+02:00"]),
            // There are two on that one: only the first counts, seen from before, from between
            // and from the second hour.
            (
                "30 2 * * *",
                BERLIN,
                "2026-10-24T12:00:00Z",
                &["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"],
            ),
            (
                "30 2,14 * * *",
                BERLIN,
                "2026-10-24T22:00:00Z",
                &["2026-10-25T02:30:00+02:00", "2026-10-25T14:30:00+01:00"],
            ),
            ("30 2 * * *", BERLIN, "2026-10-25T01:10:00Z", &["2026-10-26T02:30:00+01:00"]),
            ("0 3 * * *", BERLIN, "2026-10-25T01:10:00Z", &["2026-10-25T03:00:00+01:00"]),
            // A job at intervals runs in both.
            (
                "*/30 * * * *",
                BERLIN,
                "2026-10-25T00:00:00Z",
                &[
                    "2026-10-25T02:30:00+02:00",
                    "2026-10-25T02:00:00+01:00",
                    "2026-10-25T02:30:00+01:00",
                    "2026-10-25T03:00:00+01:00",
                ],
            ),
            (
                "@hourly",
                BERLIN,
                "2026-10-24T23:30:00Z",
                &[
                    "2026-10-25T02:00:00+02:00",
                    "2026-10-25T02:00:00+01:00",
                    "2026-10-25T03:00:00+01:00",
                ],
            ),
            // Half an hour,
            (
                "45 1 * * *",
                "Australia/Lord_Howe",
                "2026-04-04T12:00:00Z",
                &["2026-04-05T01:45:00+11:00", "2026-04-06T01:45:00+10:30"],
            ),
            (
                "15 2 * * *",
                "Australia/Lord_Howe",
                "2026-10-03T12:00:00Z",
                &["2026-10-04T02:30:00+11:00", "2026-10-05T02:15:00+11:00"],
            ),
            // a night without midnight,
            (
                "0 0 * * *",
                "Africa/Cairo",
                "2026-04-23T12:00:00Z",
                &["2026-04-24T01:00:00+03:00", "2026-04-25T00:00:00+03:00"],
            ),
            // and a place that skipped a day.
            (
                "0 12 * * *",
                "Pacific/Apia",
                "2011-12-29T23:00:00Z",
                &["2011-12-31T00:00:00+14:00", "2011-12-31T12:00:00+14:00"],
            ),
        ];
        for (text, zone, last, expected) in rows {
            check(text, zone, last, expected);
        }
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        let rows: [(&str, &str, &[&str]); 9] = [
            (
                "0 0 29 2 *",
                "2026-01-01T00:00:00Z",
                &["2028-02-29T00:00:00+00:00", "2032-02-29T00:00:00+00:00"],
            ),
            // There is none in 2100.
            ("0 0 29 2 *", "2096-03-01T00:00:00Z", &["2104-02-29T00:00:00+00:00"]),
            (
                "59 23 L 2 *",
                "2027-01-01T00:00:00Z",
                &["2027-02-28T23:59:00+00:00", "2028-02-29T23:59:00+00:00"],
            ),
            (
                "0 0 31 * *",
                "2026-01-31T00:00:00Z",
                &["2026-03-31T00:00:00+00:00", "2026-05-31T00:00:00+00:00"],
            ),
            // Where both days are given, either matches.
            (
                "0 0 13 * FRI",
                "2026-12-11T00:00:00Z",
                &["2026-12-13T00:00:00+00:00", "2026-12-18T00:00:00+00:00"],
            ),
            // Sunday is 0 and 7.
            ("0 0 * * 7", "2026-11-23T00:00:00Z", &["2026-11-29T00:00:00+00:00"]),
            ("0 0 * * 0", "2026-11-23T00:00:00Z", &["2026-11-29T00:00:00+00:00"]),
            ("@daily", "2026-12-31T12:00:00Z", &["2027-01-01T00:00:00+00:00"]),
            (
                "5,10-12,50-59/5 23 31 DEC *",
                "2026-01-01T00:00:00Z",
                &[
                    "2026-12-31T23:05:00+00:00",
                    "2026-12-31T23:10:00+00:00",
                    "2026-12-31T23:11:00+00:00",
                    "2026-12-31T23:12:00+00:00",
                    "2026-12-31T23:50:00+00:00",
                    "2026-12-31T23:55:00+00:00",
                    "2027-12-31T23:05:00+00:00",
                ],
            ),
        ];
        for (text, last, expected) in rows {
            check(text, "UTC", last, expected);
        }
    }

    #[test]
    fn moments_that_have_passed_are_counted_in_the_latest() {
        let schedule = schedule("* * * * *", "UTC");
        let next = at("2026-01-01T00:01:00Z");
        let due = |now: &str| schedule.due(next, at(now));
        assert_eq!(due("2026-01-01T00:01:00Z"), Due { at: next, missed: 0 });
        assert_eq!(due("2026-01-01T00:01:59Z"), Due { at: next, missed: 0 });
        let late = Due { at: at("2026-01-01T01:00:00Z"), missed: 59 };
        assert_eq!(due("2026-01-01T01:00:30Z"), late);
        let data = schedule.message(late);
        assert!(String::from_utf8_lossy(data.data()).contains("\"missed\":59"));
        // Beyond the counted moments, the rest comes as one tick too.
        let late = Due { at: at("2027-01-01T00:00:00Z"), missed: MOST_COUNTED };
        assert_eq!(due("2027-01-01T00:00:30Z"), late);
    }
}

//! Reads tables key by key, and finds every problem on the way.
//!
//! Deserializing into a struct stops at the first thing that does not fit. Here
//! each key is asked for with what it must be; what does not fit becomes a
//! problem and is left out; and a key that nobody asked for is an unknown one.

use std::{
    cell::RefCell, collections::BTreeSet, fmt, ops::RangeInclusive, path::Path, sync::Arc,
    time::Duration,
};

use bytesize::ByteSize;
use toml::de::{DeTable, DeValue};

use super::{
    names::{list, similar},
    report::{Diagnostic, Place},
};

/// The longest time that a key may give. Adding it to a clock never overflows.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// The problems found so far.
#[derive(Default)]
pub(super) struct Problems(RefCell<Vec<Diagnostic>>);

impl Problems {
    /// One more.
    pub(super) fn add(&self, diagnostic: Diagnostic) {
        self.0.borrow_mut().push(diagnostic);
    }

    /// All of them.
    pub(super) fn into_vec(self) -> Vec<Diagnostic> {
        self.0.into_inner()
    }
}

/// A table, and which of its keys have been asked for.
pub(super) struct Table<'a> {
    /// How the table is called in messages; empty for the top of a file.
    pub(super) name: String,
    file: Arc<Path>,
    entries: &'a DeTable<'a>,
    asked: BTreeSet<&'static str>,
    problems: &'a Problems,
}

impl<'a> Table<'a> {
    /// The top of a file.
    pub(super) fn top(file: Arc<Path>, entries: &'a DeTable<'a>, problems: &'a Problems) -> Self {
        Self { name: String::new(), file, entries, asked: BTreeSet::new(), problems }
    }

    /// The value of a key, whatever it is.
    pub(super) fn get(&mut self, key: &'static str) -> Option<Item<'a>> {
        self.asked.insert(key);
        self.items().find(|item| item.key == key)
    }

    /// Every key of the table. Does not count as asking.
    pub(super) fn items(&self) -> impl Iterator<Item = Item<'a>> + use<'a> {
        let (file, problems) = (Arc::clone(&self.file), self.problems);
        self.entries.iter().map(move |(key, value)| Item {
            key: key.get_ref().to_string(),
            key_place: Place { file: Arc::clone(&file), span: key.span() },
            place: Place { file: Arc::clone(&file), span: value.span() },
            value: value.get_ref(),
            problems,
        })
    }

    /// Reports every key that was not asked for.
    pub(super) fn finish(self) {
        for item in self.items().filter(|item| !self.asked.contains(&*item.key)) {
            let (key, known) = (&item.key, self.asked.iter().copied());
            let within =
                if self.name.is_empty() { String::new() } else { format!(" in `{}`", self.name) };
            let problem = Diagnostic::error("E0101", format!("unknown key `{key}`{within}"));
            self.problems.add(match similar(key, known.clone()) {
                Some(other) => problem
                    .at(&item.key_place, "no such key")
                    .help(format!("`{key}`: did you mean `{other}`?")),
                None => problem
                    .at(&item.key_place, "no such key")
                    .help(format!("the keys here are {}", list(known))),
            });
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &'static str) -> Option<bool> {
        let item = self.get(key)?;
        match item.value {
            DeValue::Boolean(value) => Some(*value),
            _ => item.unfit("`true` or `false`"),
        }
    }

    /// A whole number.
    pub(super) fn integer(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let item = self.get(key)?;
        let DeValue::Integer(value) = item.value else {
            return item.unfit("a whole number, such as 1024");
        };
        let number = i128::from_str_radix(value.as_str(), value.radix()).unwrap_or(i128::MAX);
        item.within(u64::try_from(number).ok(), &range, |n| n.to_string())
    }

    /// A time that is not zero.
    pub(super) fn duration(&mut self, key: &'static str) -> Option<Duration> {
        self.duration_from(key, Duration::from_millis(1))
    }

    /// A time, `least` or longer.
    pub(super) fn duration_from(&mut self, key: &'static str, least: Duration) -> Option<Duration> {
        let item = self.get(key)?;
        if let DeValue::Integer(number) = item.value {
            let text = number.to_string();
            return item.refuse("E0103", format!("`{key}` is a number without a unit"), |d| {
                d.at(&item.place, "of what?")
                    .help(format!("write `{key} = \"{text}s\"` for seconds, or \"{text}ms\""))
            });
        }
        let text = item.string("a time in quotes, such as \"30s\" or \"100ms\"")?;
        match humantime::parse_duration(text) {
            Ok(time) => item.within(Some(time), &(least..=MAX_DURATION), |t| {
                if t == MAX_DURATION {
                    "365days".to_owned()
                } else {
                    humantime::format_duration(t).to_string()
                }
            }),
            Err(error) => item.refuse("E0104", format!("`{key}` is no time: {error}"), |d| {
                d.at(&item.place, "not a time")
                    .help("write a number with its unit, such as \"30s\", \"100ms\" or \"5m\"")
            }),
        }
    }

    /// A size in bytes.
    pub(super) fn size(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let item = self.get(key)?;
        if matches!(item.value, DeValue::Integer(_)) {
            let DeValue::Integer(value) = item.value else { return None };
            let number = i128::from_str_radix(value.as_str(), value.radix()).unwrap_or(i128::MAX);
            return item.within(u64::try_from(number).ok(), &range, size_text);
        }
        let text = item.string("a size in quotes, such as \"100 MiB\", or a number of bytes")?;
        match text.parse::<ByteSize>() {
            Ok(size) => item.within(Some(size.as_u64()), &range, size_text),
            Err(_) => item.refuse("E0104", format!("`{key}` is no size: `{text}`"), |d| {
                d.at(&item.place, "not a size")
                    .help("write a number with its unit, such as \"100 MiB\" or \"64 KiB\"")
            }),
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let item = self.get(key)?;
        let words = || choices.iter().map(|(word, _)| *word);
        let text = item.string(&format!("one of {}", quoted(words())))?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        item.refuse("E0104", format!("`{key}` cannot be \"{text}\""), |d| {
            let help = match similar(text, words()) {
                Some(word) => format!("did you mean \"{word}\"? It is one of {}", quoted(words())),
                None if choices.len() == 1 => format!("this version knows {}", quoted(words())),
                None => format!("it is one of {}", quoted(words())),
            };
            d.at(&item.place, "no such value").help(help)
        })
    }

    /// A list of strings, or one string. What is in the list and no string is reported.
    pub(super) fn strings(&mut self, key: &'static str) -> Option<Vec<(Item<'a>, &'a str)>> {
        self.get(key).map(|item| item.strings())
    }

    /// A table in this one.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Table<'a>> {
        let name =
            if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) };
        self.get(key)?.table(name, &format!("a table: write `[{key}]`"))
    }
}

fn size_text(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

fn quoted<'w>(words: impl Iterator<Item = &'w str>) -> String {
    words.map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}

/// A key with its value.
pub(super) struct Item<'a> {
    /// The key; for one of a list, that of the list.
    pub(super) key: String,
    /// Where the key stands.
    pub(super) key_place: Place,
    /// Where the value stands.
    pub(super) place: Place,
    /// The value.
    pub(super) value: &'a DeValue<'a>,
    problems: &'a Problems,
}

impl<'a> Item<'a> {
    /// Text; anything else is reported as not being `expected`.
    pub(super) fn string(&self, expected: &str) -> Option<&'a str> {
        match self.value {
            DeValue::String(text) => Some(text),
            _ => self.unfit(expected),
        }
    }

    /// A list of strings, or one string.
    pub(super) fn strings(&self) -> Vec<(Item<'a>, &'a str)> {
        let expected = "text in quotes, or a list of such";
        match self.value {
            DeValue::Array(_) => {
                let items = self.list().into_iter();
                items.filter_map(|i| i.string("text in quotes").map(|text| (i, text))).collect()
            }
            _ => self.string(expected).map(|text| (self.again(), text)).into_iter().collect(),
        }
    }

    /// The values of a list; none where it is no list.
    pub(super) fn list(&self) -> Vec<Item<'a>> {
        let DeValue::Array(values) = self.value else { return Vec::new() };
        let place = |span| Place { file: Arc::clone(&self.place.file), span };
        let items = values.iter().map(|value| Item {
            place: place(value.span()),
            value: value.get_ref(),
            ..self.again()
        });
        items.collect()
    }

    fn again(&self) -> Self {
        Self {
            key: self.key.clone(),
            key_place: self.key_place.clone(),
            place: self.place.clone(),
            value: self.value,
            problems: self.problems,
        }
    }

    /// A table called `name`; anything else is reported as not being `expected`.
    pub(super) fn table(&self, name: String, expected: &str) -> Option<Table<'a>> {
        let DeValue::Table(entries) = self.value else { return self.unfit(expected) };
        let file = Arc::clone(&self.place.file);
        Some(Table { name, file, entries, asked: BTreeSet::new(), problems: self.problems })
    }

    /// Reports a value of the wrong kind.
    pub(super) fn unfit<T>(&self, expected: &str) -> Option<T> {
        let found = kind(self.value);
        let message = format!("`{}` is {found}, and must be {expected}", self.key);
        self.refuse("E0103", message, |d| d.at(&self.place, format!("this is {found}")))
    }

    /// Reports that the value cannot be taken.
    pub(super) fn refuse<T>(
        &self,
        code: &'static str,
        message: impl Into<String>,
        describe: impl FnOnce(Diagnostic) -> Diagnostic,
    ) -> Option<T> {
        self.problems.add(describe(Diagnostic::error(code, message)));
        None
    }

    /// The value where it is in range; anything else is reported.
    fn within<T: PartialOrd + Copy>(
        &self,
        value: Option<T>,
        range: &RangeInclusive<T>,
        show: impl Fn(T) -> String,
    ) -> Option<T> {
        if let Some(value) = value.filter(|value| range.contains(value)) {
            return Some(value);
        }
        let (least, most) = (show(*range.start()), show(*range.end()));
        self.refuse("E0104", format!("`{}` is out of range", self.key), |d| {
            d.at(&self.place, format!("must be from {least} to {most}"))
        })
    }
}

/// A value's kind with its article.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "`true` or `false`",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

impl fmt::Debug for Item<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:?}", self.key, self.place)
    }
}

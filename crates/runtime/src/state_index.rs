//! Where the keys of a state stand in its text.
//!
//! A guest asks for one key at a time. Reading the whole text for each would cost as much
//! as the state is large; so a large text is gone through once, for as long as it is the
//! state, and remembers at which offsets its entries begin. The text is known to be a JSON
//! object, so nothing here checks it again.

use std::{
    borrow::Cow,
    hash::{BuildHasher, RandomState},
    ops::Range,
};

use crate::strict_json::string_end;

/// One entry of an object, as places in its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyAndValue {
    /// The key, in its quotes.
    pub(crate) key: Range<usize>,
    /// The value.
    pub(crate) value: Range<usize>,
}

/// The entries of a valid JSON object, in their order.
pub(crate) struct Entries<'t> {
    text: &'t [u8],
    at: usize,
}

impl<'t> Entries<'t> {
    pub(crate) fn of(text: &'t [u8]) -> Self {
        let at = skip_blanks(text, 0) + 1;
        Self { text, at }
    }
}

impl Iterator for Entries<'_> {
    type Item = KeyAndValue;

    fn next(&mut self) -> Option<KeyAndValue> {
        let mut at = skip_blanks(self.text, self.at);
        if self.text.get(at) == Some(&b',') {
            at = skip_blanks(self.text, at + 1);
        }
        if self.text.get(at) != Some(&b'"') {
            return None;
        }
        let entry = entry_at(self.text, at);
        self.at = entry.value.end;
        Some(entry)
    }
}

/// The entry whose key begins there.
fn entry_at(text: &[u8], at: usize) -> KeyAndValue {
    let key = at..string_end(text, at);
    let colon = skip_blanks(text, key.end);
    let start = skip_blanks(text, colon + 1);
    let value = start..skip_value(text, start);
    KeyAndValue { key, value }
}

fn skip_blanks(text: &[u8], mut at: usize) -> usize {
    while text.get(at).is_some_and(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// Behind the value that begins at `at`.
fn skip_value(text: &[u8], mut at: usize) -> usize {
    let mut open = 0_usize;
    loop {
        match text.get(at) {
            None => return text.len(),
            Some(b'"') => at = string_end(text, at),
            Some(b'{' | b'[') => {
                open += 1;
                at += 1;
                continue;
            }
            Some(b'}' | b']') => {
                open -= 1;
                at += 1;
            }
            Some(b',' | b':' | b' ' | b'\t' | b'\n' | b'\r') => {
                at += 1;
                continue;
            }
            // A number or a word.
            Some(_) => {
                while text.get(at).is_some_and(|byte| {
                    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
                }) {
                    at += 1;
                }
            }
        }
        if open == 0 {
            return at;
        }
    }
}

/// The text of a key, given in its quotes.
fn unquoted(quoted: &[u8]) -> Cow<'_, [u8]> {
    let inner = &quoted[1..quoted.len() - 1];
    if !inner.contains(&b'\\') {
        return Cow::Borrowed(inner);
    }
    let text: Option<String> = serde_json::from_slice(quoted).ok();
    text.map_or(Cow::Borrowed(inner), |text| Cow::Owned(text.into_bytes()))
}

/// The last entry of that key, as the text has it; for texts without an index.
pub(crate) fn look_through(text: &[u8], key: &str) -> Option<KeyAndValue> {
    let is_asked = |entry: &KeyAndValue| *unquoted(&text[entry.key.clone()]) == *key.as_bytes();
    Entries::of(text).filter(is_asked).last()
}

/// The places of an object's entries, by their keys.
pub(crate) struct Index {
    /// For each slot, where an entry begins, and one; 0 where there is none.
    slots: Box<[u32]>,
    hasher: RandomState,
}

impl Index {
    /// Bytes that an index of so many entries takes.
    pub(crate) fn cost(entries: usize) -> u64 {
        (slots_for(entries) * size_of::<u32>()) as u64
    }

    /// The index of a text of so many entries; nothing, where the text is too long for one.
    pub(crate) fn new(text: &[u8], entries: usize) -> Option<Self> {
        u32::try_from(text.len()).ok()?;
        let slots = vec![0; slots_for(entries)].into_boxed_slice();
        let mut index = Self { slots, hasher: RandomState::new() };
        for entry in Entries::of(text) {
            let slot = index.slot(text, &unquoted(&text[entry.key.clone()]));
            // Of two entries of one key the last counts.
            index.slots[slot] = u32::try_from(entry.key.start).ok()? + 1;
        }
        Some(index)
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> u64 {
        size_of_val(&*self.slots) as u64
    }

    /// The entry of that key in the text.
    pub(crate) fn find(&self, text: &[u8], key: &str) -> Option<KeyAndValue> {
        let slot = self.slots[self.slot(text, key.as_bytes())];
        let start = usize::try_from(slot.checked_sub(1)?).ok()?;
        Some(entry_at(text, start))
    }

    /// The slot of a key, or the one that it would take.
    fn slot(&self, text: &[u8], key: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        #[expect(clippy::cast_possible_truncation, reason = "any bits of a hash will do")]
        let mut slot = self.hasher.hash_one(key) as usize & mask;
        loop {
            let Some(start) = self.slots[slot].checked_sub(1) else { return slot };
            let start = start as usize;
            if *unquoted(&text[start..string_end(text, start)]) == *key {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }
}

/// Slots for so many entries: a power of two, and never full.
fn slots_for(entries: usize) -> usize {
    (entries + entries / 4 + 1).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, value::RawValue};

    use super::*;

    #[track_caller]
    fn check(text: &str) {
        let bytes = text.as_bytes();
        let entries: Vec<_> = Entries::of(bytes).collect();
        let expected: Value = serde_json::from_str(text).unwrap();
        let index = Index::new(bytes, entries.len()).unwrap();
        assert!(index.bytes() <= Index::cost(entries.len()));
        for (key, value) in expected.as_object().unwrap() {
            for found in [index.find(bytes, key), look_through(bytes, key)] {
                let found = found.unwrap_or_else(|| panic!("{key} in {text}"));
                let raw: &RawValue = serde_json::from_slice(&bytes[found.value]).unwrap();
                assert_eq!(serde_json::from_str::<Value>(raw.get()).unwrap(), *value, "{text}");
            }
        }
        assert_eq!(index.find(bytes, "no such key"), None);
        assert_eq!(look_through(bytes, "no such key"), None);
    }

    #[test]
    fn every_key_is_found_where_it_stands() {
        check("{}");
        check(" { } ");
        check(r#"{"a":1}"#);
        check("\n{\t\"a\" : -1.5e+3 , \"b\":[1,{\"c\":\"]}\"},[]] ,\"c\":true,\"d\": null\r}\n");
        check(r#"{"a\"b":"\\","a\u0062":{"x":"\"}"},"":{},"é":"\u00e9"}"#);
        check(r#"{"a":1,"a":[2],"a":3}"#);
        let many: Vec<_> = (0..5000).map(|n| format!("\"k{n}\": {{\"n\": [{n}]}}")).collect();
        check(&format!("{{{}}}", many.join(" , ")));
    }

    #[test]
    fn an_index_takes_less_than_the_smallest_entries() {
        let many: Vec<_> = (0..10_000).map(|n| format!("\"{n}\":1")).collect();
        let text = format!("{{{}}}", many.join(","));
        assert!(Index::cost(10_000) < 2 * text.len() as u64);
    }
}

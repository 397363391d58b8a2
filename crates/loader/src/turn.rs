//! One turn as values: the context that goes in, what the guest asks of the
//! host meanwhile, and the effects that come out.
//!
//! Nothing here knows an engine. A guest's mistakes in what it sends or sets do
//! not stop it; the first is remembered, and the turn fails when it ends, with
//! the engine intact.

use std::{
    borrow::Cow, collections::HashMap, fmt, marker::PhantomData, ops::ControlFlow, sync::Arc,
};

use bytes::Bytes;
use reflowd_runtime::{
    Context, Effects, Message, MessageError, PortName, SendNow, State, TurnLimits, TurnTrace,
    WrittenMessage, check_json, excerpt,
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    account::{Account, OverHostMemory},
    metadata::{is_wrapped, unwrap_base64},
};

/// What every result must look like, for the error when one does not.
const EXPECTED: &str =
    r#"expected {"outputs": {"<port>": {"type": …, "data": …}, …}, "state": {…} or null}"#;

/// The JSON that a guest's turn begins with. `config` is its config object, encoded.
pub(crate) fn encode(context: &Context, config: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(encoded_len(context, config));
    encode_to(&mut out, context, config);
    out
}

/// About how many bytes [`encode_to`] appends: rarely less.
pub(crate) fn encoded_len(context: &Context, config: &[u8]) -> usize {
    let state = if context.state_in_context { context.state.text().len() } else { 2 };
    let payload: usize =
        context.payload.iter().map(|(p, m)| p.as_str().len() + m.encoded_len() + 4).sum();
    let meta = context.meta.as_ref().map_or(0, |meta| meta.len() + 8);
    payload + config.len() + state + meta + 40
}

/// Appends the JSON that a guest's turn begins with.
pub(crate) fn encode_to(out: &mut Vec<u8>, context: &Context, config: &[u8]) {
    let state = if context.state_in_context { &context.state.text()[..] } else { b"{}" };
    out.extend_from_slice(b"{\"payload\":{");
    for (index, (port, message)) in context.payload.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, port.as_str()).expect("a vector takes every string");
        out.push(b':');
        message.encode_to(out);
    }
    out.extend_from_slice(b"},\"config\":");
    out.extend_from_slice(config);
    out.extend_from_slice(b",\"state\":");
    out.extend_from_slice(state);
    if let Some(meta) = &context.meta {
        out.extend_from_slice(b",\"meta\":");
        out.extend_from_slice(meta);
    }
    out.push(b'}');
}

/// The host's side of a turn that goes on.
pub(crate) struct Side {
    state: State,
    edits: Option<Edits>,
    outputs: Vec<(PortName, Message)>,
    /// What was put out so far, what was sent at once included.
    put_out: PutOut,
    limits: TurnLimits,
    now: Option<Arc<dyn SendNow>>,
    /// The trace that requests belong to.
    pub(crate) trace: Option<TurnTrace>,
    /// The first mistake. The turn fails by it, whatever its result.
    fault: Option<String>,
}

impl Side {
    pub(crate) fn new(context: Context) -> Self {
        Self {
            state: context.state,
            edits: None,
            outputs: Vec::new(),
            put_out: PutOut::default(),
            limits: context.limits,
            now: context.now,
            trace: context.trace,
            fault: None,
        }
    }

    /// `__send_output`: a JSON object from ports to plain values.
    pub(crate) fn send_output(&mut self, text: &[u8], account: &mut Account) {
        if self.fault.is_some() {
            return;
        }
        // Messages that leave at once cannot be taken back if the text turns out to be invalid.
        let checked = if self.now.is_some() { read_through(text) } else { Ok(()) };
        let sent = checked.and_then(|()| {
            for_each_entry(text, |port, value| self.send(port, value.get().as_bytes(), account))
        });
        if let Err(error) = sent {
            let shown = excerpt(text);
            self.blame(format!(
                "__send_output: expected a JSON object from ports to values: {error}; it gave {shown}"
            ));
        }
    }

    /// One plain value for a port.
    fn send(&mut self, port: &str, value: &[u8], account: &mut Account) -> Flow {
        let size = self.fits_output(value.len() as u64);
        let room = size.and_then(|()| account.take(value.len() as u64).map_err(|e| e.to_string()));
        let put = room.and_then(|()| {
            let own = Bytes::copy_from_slice(value);
            let message = Message::from_plain(&own, &own).map_err(|e| e.to_string());
            self.put(port, message, account, |side, port, message| match &side.now {
                Some(now) => now.send(port, message),
                None => side.outputs.push((port, message)),
            })
        });
        self.flow(put.map_err(|why| format!("__send_output: {why}")))
    }

    /// `__get_state`: the JSON value of a key, as this turn has left it.
    pub(crate) fn get_state(&mut self, key: &[u8], account: &mut Account) -> Bytes {
        let null = || Bytes::from_static(b"null");
        let Ok(key) = std::str::from_utf8(key) else {
            self.blame("__get_state: the key is not UTF-8".into());
            return null();
        };
        if let Some(set) = self.edits.as_ref().and_then(|edits| edits.get(key)) {
            return set.clone();
        }
        if let Err(why) = self.index_state(account) {
            self.blame(format!("__get_state: {why}"));
            return null();
        }
        self.state.find(key).map_or_else(null, |place| self.state.text().slice(place))
    }

    /// `__set_state`: sets a key of this turn's copy of the state.
    pub(crate) fn set_state(&mut self, key: &[u8], value: &[u8], account: &mut Account) {
        if self.fault.is_some() {
            return;
        }
        let Ok(key) = std::str::from_utf8(key) else {
            return self.blame("__set_state: the key is not UTF-8".into());
        };
        let (size, max) = (value.len(), self.limits.state);
        if size as u64 > max {
            // It need not be read for that, which takes long.
            return self.blame(format!(
                "__set_state: the state would be over `state_size`: a value of {size} bytes, of {max}"
            ));
        }
        let raw: Result<&RawValue, _> = serde_json::from_slice(value);
        let Ok(raw) = raw else {
            let (key, shown) = (excerpt(key.as_bytes()), excerpt(value));
            return self.blame(format!("__set_state: `{key}` is not set to JSON: {shown}"));
        };
        if let Err(fault) = check_json(raw.get().as_bytes()) {
            return self.blame(format!("__set_state: `{}`: {fault}", excerpt(key.as_bytes())));
        }
        if let Err(why) = self.edit(key, raw.get(), account) {
            self.blame(format!("__set_state: {why}"));
        }
    }

    fn edit(&mut self, key: &str, value: &str, account: &mut Account) -> Result<(), String> {
        let over = |error: OverHostMemory| error.to_string();
        self.index_state(account).map_err(over)?;
        let before = self.state.text().len() as u64;
        let edits = self.edits.get_or_insert_with(|| Edits::new(before));
        let was = match edits.get(key) {
            Some(value) => Some(value.len()),
            None => self.state.find(key).map(|place| place.len()),
        };
        let size = edits.size_with(key, value, was);
        let max = self.limits.state;
        if size > max {
            return Err(format!("the state is over `state_size`: {size} bytes of {max}"));
        }
        account.take(edits.cost(key, value)).map_err(over)?;
        edits.set(key, Bytes::copy_from_slice(value.as_bytes()), size);
        Ok(())
    }

    /// Bytes that have to be gone through before a key of the state is found.
    pub(crate) fn reading_state(&self) -> u64 {
        if self.state.is_indexed() { 0 } else { self.state.text().len() as u64 }
    }

    /// Bytes that are gone through when the turn ends with a result of so many.
    pub(crate) fn finishing(&self, result: usize) -> u64 {
        result as u64 + self.edits.as_ref().map_or(0, |edits| edits.size)
    }

    /// Sees to it that looking for a key takes no time that grows with the state.
    fn index_state(&self, account: &mut Account) -> Result<(), OverHostMemory> {
        if let Some(cost) = self.state.missing_index() {
            account.take(cost)?;
            self.state.index();
        }
        Ok(())
    }

    /// The effects, from what was asked meanwhile and the guest's result.
    ///
    /// # Errors
    /// The first thing that was wrong, in words for whoever wrote the guest.
    pub(crate) fn finish(
        mut self,
        result: Bytes,
        account: &mut Account,
    ) -> Result<Effects, String> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        let over = |error: OverHostMemory| error.to_string();
        if is_wrapped(&result) {
            // Without escapes, and with them.
            account.take(2 * result.len() as u64).map_err(over)?;
        }
        let whole = match unwrap_base64(&result) {
            Cow::Borrowed(_) => result,
            Cow::Owned(inner) => inner.into(),
        };
        let (sent, put_out) = (self.outputs.len(), self.put_out);
        let mut read = Written::<WrittenMessage<'_>>::new(&mut self, &whole, account).read();
        if read.is_err() && self.fault.is_none() {
            // Read again for which of them is wrong.
            self.outputs.truncate(sent);
            self.put_out = put_out;
            read = Written::<&RawValue>::new(&mut self, &whole, account).read();
        }
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        let written = read.map_err(|error| {
            let came = if whole.is_empty() { "nothing".into() } else { excerpt(&whole) };
            format!("{EXPECTED}: {error}; got {came}")
        })?;
        let max = self.limits.state;
        let state = match written {
            Some(state) => {
                let size = state.get().len() as u64;
                if size > max {
                    return Err(format!("the state is over `state_size`: {size} bytes of {max}"));
                }
                account.take(size).map_err(over)?;
                let state = State::from_slice_of(&whole, state.get().as_bytes());
                Some(state.map_err(|e| format!("`state` in the result: {e}"))?)
            }
            None => match self.edits {
                Some(edits) => {
                    account.take(edits.size).map_err(over)?;
                    Some(edits.apply(&self.state))
                }
                None => None,
            },
        };
        Ok(Effects { outputs: self.outputs, state })
    }

    /// A message of the result, which lies within `whole`.
    fn put_result(
        &mut self,
        port: &str,
        message: Result<Message, MessageError>,
        whole: &Bytes,
        account: &mut Account,
    ) -> Flow {
        let copied = |message: &Message| {
            let shared = whole.as_ptr_range().contains(&message.data().as_ptr());
            if shared { 0 } else { message.data().len() as u64 }
        };
        let room = account.take(message.as_ref().map_or(0, copied));
        let put = room.map_err(|e| e.to_string()).and_then(|()| {
            let message = message.map_err(|error| error.to_string());
            self.put(port, message, account, |side, port, message| {
                side.outputs.push((port, message));
            })
        });
        self.flow(put)
    }

    /// Names the port of a message, counts it against the limits, and passes it on.
    fn put(
        &mut self,
        port: &str,
        message: Result<Message, String>,
        account: &mut Account,
        pass: impl FnOnce(&mut Self, PortName, Message),
    ) -> Result<(), String> {
        let name = port.parse::<PortName>().map_err(|e| e.to_string())?;
        let message = message.map_err(|why| format!("port `{name}`: {why}"))?;
        self.put_out.messages += 1;
        if self.put_out.messages > MAX_OUTPUTS {
            return Err(format!(
                "the turn puts out more than {MAX_OUTPUTS} messages; put several into one, as an array"
            ));
        }
        self.fits_output(message.encoded_len() as u64)?;
        self.put_out.bytes += message.encoded_len() as u64;
        account.take(OUTPUT + port.len() as u64).map_err(|e| e.to_string())?;
        pass(self, name, message);
        Ok(())
    }

    /// Whether so many bytes more may be put out.
    fn fits_output(&self, bytes: u64) -> Result<(), String> {
        let (size, max) = (self.put_out.bytes + bytes, self.limits.output);
        if size > max {
            return Err(format!("the outputs are over `output`: {size} bytes of {max}"));
        }
        Ok(())
    }

    /// Tells the reader whether to go on after an entry.
    fn flow(&mut self, put: Result<(), String>) -> Flow {
        match put {
            Ok(()) => Flow::Continue(()),
            Err(why) => {
                self.blame(why);
                Flow::Break(())
            }
        }
    }

    fn blame(&mut self, fault: String) {
        self.fault.get_or_insert(fault);
    }
}

/// How much a turn has put out.
#[derive(Clone, Copy, Default)]
struct PutOut {
    messages: u64,
    /// Of the messages as they are encoded.
    bytes: u64,
}

/// Messages that one turn may put out, however short they are. All of them move at once when
/// it is committed, and whatever else waits for the thread waits for that.
const MAX_OUTPUTS: u64 = 100_000;

/// Bytes that an output takes beside its data and the name of its port: its places in the
/// turn's effects and, later, in a wire's queue.
const OUTPUT: u64 = 256;

/// Bytes that a key takes which a turn has set, beside itself and its value.
const EDIT: u64 = 320;

/// Whether to go on to the next entry.
type Flow = ControlFlow<()>;

/// The changes of a turn to the state.
struct Edits {
    entries: Vec<(Arc<str>, Bytes)>,
    index: HashMap<Arc<str>, usize>,
    /// Bytes of the state with all of them.
    size: u64,
}

impl Edits {
    /// None yet, in a state of so many bytes.
    fn new(size: u64) -> Self {
        Self { entries: Vec::new(), index: HashMap::new(), size }
    }

    fn get(&self, key: &str) -> Option<&Bytes> {
        self.index.get(key).map(|i| &self.entries[*i].1)
    }

    /// Bytes of the state if a key is set whose value had `was` bytes, if there was one.
    fn size_with(&self, key: &str, value: &str, was: Option<usize>) -> u64 {
        let value = value.len() as u64;
        match was {
            Some(was) => (self.size + value).saturating_sub(was as u64),
            // With its quotes, a colon and a comma.
            None => self.size + key.len() as u64 + value + 4,
        }
    }

    /// Bytes that it takes to remember that.
    fn cost(&self, key: &str, value: &str) -> u64 {
        let (key_len, value) = (key.len() as u64, value.len() as u64);
        if self.index.contains_key(key) { value } else { EDIT + key_len + value }
    }

    fn set(&mut self, key: &str, value: Bytes, size: u64) {
        self.size = size;
        if let Some(i) = self.index.get(key) {
            self.entries[*i].1 = value;
        } else {
            let key: Arc<str> = key.into();
            self.index.insert(key.clone(), self.entries.len());
            self.entries.push((key, value));
        }
    }

    /// The state with what was set in it: known keys where they stood, others behind them.
    fn apply(self, state: &State) -> State {
        let (mut known, mut added) = (Vec::new(), Vec::new());
        for (key, value) in &self.entries {
            match state.find(key) {
                Some(place) => known.push((place, &value[..])),
                None => added.push((&**key, &value[..])),
            }
        }
        known.sort_unstable_by_key(|(place, _)| place.start);
        state.edited(&known, added, usize::try_from(self.size).unwrap_or(0))
    }
}

/// Goes through the entries of a JSON object, in their order and with values as they are
/// written, for as long as `each` wants to go on. Nothing is kept of them, and what comes
/// behind is not looked at.
fn for_each_entry(
    text: &[u8],
    mut each: impl FnMut(&str, &RawValue) -> Flow,
) -> Result<(), serde_json::Error> {
    let mut last = Flow::Continue(());
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let read = (&mut deserializer).deserialize_any(ForEach::new(|key: &str, value: &RawValue| {
        last = each(key, value);
        last
    }));
    if last.is_break() { Ok(()) } else { read.and_then(|()| deserializer.end()) }
}

/// Whether the text is a JSON object.
fn read_through(text: &[u8]) -> Result<(), serde_json::Error> {
    for_each_entry(text, |_, _| Flow::Continue(()))
}

/// Reads an object's entries, each as a `V`. Where one is the last that is wanted, reading
/// fails: going through all that follows would take long.
struct ForEach<V, F> {
    each: F,
    value: PhantomData<V>,
}

impl<V, F: FnMut(&str, V) -> Flow> ForEach<V, F> {
    fn new(each: F) -> Self {
        Self { each, value: PhantomData }
    }
}

impl<'de, V: Deserialize<'de>, F: FnMut(&str, V) -> Flow> Visitor<'de> for ForEach<V, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        Err(not_an_object(text))
    }

    fn visit_map<M: MapAccess<'de>>(mut self, mut map: M) -> Result<(), M::Error> {
        while let Some((Key(key), value)) = map.next_entry::<Key<'de>, V>()? {
            if (self.each)(&key, value).is_break() {
                return Err(M::Error::custom("nothing more is read"));
            }
        }
        Ok(())
    }
}

impl<'de, V: Deserialize<'de>, F: FnMut(&str, V) -> Flow> DeserializeSeed<'de> for ForEach<V, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// A string is no object. Without this, the error would show all of it; so would the one of
/// a reader that was asked for a map.
fn not_an_object<E: serde::de::Error>(text: &str) -> E {
    E::custom(format_args!("the string {:?}, expected a JSON object", excerpt(text.as_bytes())))
}

/// A key, borrowed where it is written without escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// A message as it is written in a result.
trait Output<'w>: Deserialize<'w> {
    fn into_message(self, whole: &Bytes) -> Result<Message, MessageError>;
}

impl<'w> Output<'w> for WrittenMessage<'w> {
    fn into_message(self, whole: &Bytes) -> Result<Message, MessageError> {
        Message::from_written(whole, self)
    }
}

impl<'w> Output<'w> for &'w RawValue {
    fn into_message(self, whole: &Bytes) -> Result<Message, MessageError> {
        Message::from_slice_of(whole, self.get().as_bytes())
    }
}

/// A result as guests write it, whose outputs go to the side as they are read.
struct Written<'s, 'w, V> {
    side: &'s mut Side,
    whole: &'w Bytes,
    account: &'s mut Account,
    output: PhantomData<V>,
}

impl<'s, 'w, V: Output<'w>> Written<'s, 'w, V> {
    fn new(side: &'s mut Side, whole: &'w Bytes, account: &'s mut Account) -> Self {
        Self { side, whole, account, output: PhantomData }
    }

    /// Reads it. What remains is its state, if it has one.
    fn read(self) -> Result<Option<&'w RawValue>, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_slice(self.whole);
        let state = (&mut deserializer).deserialize_any(self)?;
        deserializer.end()?;
        Ok(state)
    }
}

impl<'w, V: Output<'w>> Visitor<'w> for Written<'_, 'w, V> {
    type Value = Option<&'w RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Err(not_an_object(text))
    }

    fn visit_map<M: MapAccess<'w>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let Self { side, whole, account, .. } = self;
        let (mut outputs, mut state) = (false, None);
        while let Some(Key(key)) = map.next_key::<Key<'w>>()? {
            match &*key {
                "outputs" if outputs => return Err(M::Error::duplicate_field("outputs")),
                "outputs" => {
                    outputs = true;
                    let each = |port: &str, output: V| {
                        side.put_result(port, output.into_message(whole), whole, account)
                    };
                    map.next_value_seed(ForEach::new(each))?;
                }
                "state" if state.is_some() => return Err(M::Error::duplicate_field("state")),
                "state" => state = Some(map.next_value::<Option<&'w RawValue>>()?),
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        if outputs { Ok(state.flatten()) } else { Err(M::Error::missing_field("outputs")) }
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use parking_lot::Mutex;
    use reflowd_runtime::{MAX_DEPTH, MessageId};

    use super::*;

    fn context(state: &str) -> Context {
        Context {
            payload: Vec::new(),
            state: State::new(state.to_owned()).unwrap(),
            message: MessageId::new(),
            trace: None,
            meta: None,
            state_in_context: true,
            limits: TurnLimits { output: 1000, state: 1000, ..TurnLimits::default() },
            now: None,
            host_memory: None,
        }
    }

    fn shown(effects: &Effects) -> String {
        let outputs: Vec<_> =
            effects.outputs.iter().map(|(p, m)| format!("{p}={}", m.encode())).collect();
        let state = effects.state.as_ref().map(|s| String::from_utf8_lossy(s.text()).into_owned());
        format!("{} {}", outputs.join(" "), state.as_deref().unwrap_or("-"))
    }

    /// An account that has room for all that a test asks for.
    fn roomy() -> Account {
        Account::new(1 << 20)
    }

    #[track_caller]
    fn check(result: &str, expected: Result<&str, &str>) {
        let result = result.replace('\'', "\"");
        let found = Side::new(context("{}")).finish(Bytes::from(result.clone()), &mut roomy());
        match (found, expected) {
            (Ok(found), Ok(expected)) => {
                assert_eq!(shown(&found), expected.replace('\'', "\""), "{result}");
            }
            (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
            (found, _) => panic!("{result}: {found:?}"),
        }
    }

    #[test]
    fn a_result_is_read_or_the_error_says_what_was_expected() {
        check("{'outputs':{}}", Ok(" -"));
        check("{'outputs':{},'state':null,'more':1}", Ok(" -"));
        check("{'outputs':{},'state':{'a': 1e2}}", Ok(" {'a': 1e2}"));
        check(
            "{'outputs':{'b':{'type':'Flow'},'a':{'data':1.0,'type':'Integer'}}}",
            Ok("b={'type':'Flow','data':null} a={'type':'Integer','data':1.0} -"),
        );
        check("", Err("got nothing"));
        check("hello", Err("expected {\"outputs\""));
        check("[1]", Err("got [1]"));
        check("{'state':{}}", Err("missing field `outputs`"));
        check("{'outputs':{},'state':[]}", Err("`state` in the result: a state is a JSON object"));
        check("{'outputs':[]}", Err("a JSON object"));
        let unfit = "{'outputs':{'o':{'type':'Integer','data':'x'}}}";
        check(unfit, Err("port `o`: data that is no Integer"));
        check("{'outputs':{'o':{'type':'Int','data':1}}}", Err("port `o`: unknown type `Int`"));
        check("{'outputs':{'o':7}}", Err("port `o`: expected {\"type\""));
        check("{'outputs':{'':{'type':'Flow'}}}", Err("a port's name is empty"));
        let place = "port `o`: the number 1e400 at `/a/1` fits neither";
        check("{'outputs':{'o':{'type':'Object','data':{'a':[0,1e400]}}}}", Err(place));
        let place = "`state` in the result: the number -1e999 at `/a` fits neither";
        check("{'outputs':{},'state':{'a':-1e999}}", Err(place));
        check(
            "{'outputs':{'o':{'type':'Float','data':1e308}}}",
            Ok("o={'type':'Float','data':1e308} -"),
        );
        let long = "x".repeat(1001);
        let big = format!("{{'outputs':{{'o':{{'type':'String','data':'{long}'}}}}}}");
        check(&big, Err("over `output`"));
        check(&format!("{{'outputs':{{}},'state':{{'a':'{long}'}}}}"), Err("over `state_size`"));
        // What is right with it counts once, though it is read again for what is not.
        let most = "x".repeat(600);
        let wrong = format!("{{'outputs':{{'o':{{'type':'String','data':'{most}'}},'p':7}}}}");
        check(&wrong, Err("port `p`: expected {\"type\""));
        let wrapped = STANDARD.encode(r#"{"outputs":{"o":{"type":"Flow"}}}"#);
        check(&format!("'{wrapped}'"), Ok("o={'type':'Flow','data':null} -"));
    }

    #[test]
    fn sends_come_before_the_result_in_the_order_of_the_calls() {
        let mut side = Side::new(context("{}"));
        side.send_output(br#"{"z":1,"a":{"type":"Stream","data":[1]}}"#, &mut roomy());
        side.send_output(br#"{"z":null}"#, &mut roomy());
        let result = Bytes::from_static(br#"{"outputs":{"r":{"type":"Flow"}}}"#);
        let effects = side.finish(result, &mut roomy()).unwrap();
        let ports: Vec<_> = effects.outputs.iter().map(|(p, m)| (p.as_str(), m.ty())).collect();
        use reflowd_runtime::Type::{Flow, Integer, Optional, Stream};
        assert_eq!(ports, [("z", Integer), ("a", Stream), ("z", Optional), ("r", Flow)]);
    }

    #[test]
    fn sends_leave_at_once_where_the_actor_asks_for_it() {
        #[derive(Default)]
        struct Sent(Mutex<Vec<String>>);
        impl SendNow for Sent {
            fn send(&self, port: PortName, message: Message) {
                self.0.lock().push(format!("{port}={}", message.encode()));
            }
        }
        let sent = Arc::new(Sent::default());
        let mut side = Side::new(Context { now: Some(sent.clone()), ..context("{}") });
        side.send_output(br#"{"a":1}"#, &mut roomy());
        assert_eq!(*sent.0.lock(), [r#"a={"type":"Integer","data":1}"#]);
        assert!(
            side.finish(Bytes::from_static(br#"{"outputs":{}}"#), &mut roomy())
                .unwrap()
                .outputs
                .is_empty()
        );
    }

    #[test]
    fn a_turn_sees_the_state_that_it_has_set() {
        let mut side = Side::new(context(r#"{"b": 1.0, "a":2}"#));
        assert_eq!(side.get_state(b"b", &mut roomy()), "1.0");
        assert_eq!(side.get_state(b"c", &mut roomy()), "null");
        side.set_state(b"c", br#" {"x": 1e2} "#, &mut roomy());
        side.set_state(b"b", b"3", &mut roomy());
        assert_eq!(side.get_state(b"c", &mut roomy()), r#"{"x": 1e2}"#);
        let effects = side.finish(Bytes::from_static(br#"{"outputs":{}}"#), &mut roomy()).unwrap();
        assert_eq!(shown(&effects), r#" {"b": 3, "a":2,"c":{"x": 1e2}}"#);
    }

    #[test]
    fn what_an_earlier_version_took_into_a_state_is_left_there() {
        let mut context = context("{}");
        context.state = State::kept(r#"{"a":1e400,"b":1}"#).unwrap();
        let mut side = Side::new(context);
        side.set_state(b"b", b"2", &mut roomy());
        let effects = side.finish(Bytes::from_static(br#"{"outputs":{}}"#), &mut roomy()).unwrap();
        assert_eq!(shown(&effects), r#" {"a":1e400,"b":2}"#);
    }

    #[test]
    fn a_value_may_be_as_deep_in_a_state_as_in_a_message() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let mut side = Side::new(context("{}"));
        side.set_state(b"k", nested(MAX_DEPTH).as_bytes(), &mut roomy());
        let effects = side.finish(Bytes::from_static(br#"{"outputs":{}}"#), &mut roomy()).unwrap();
        assert!(State::new(effects.state.unwrap().text().clone()).is_ok());
        let deeper = nested(MAX_DEPTH + 1);
        faulty(
            |s| s.set_state(b"k", deeper.as_bytes(), &mut roomy()),
            "nested deeper than 100 levels",
        );
    }

    #[test]
    fn a_state_in_the_result_replaces_what_was_set() {
        let mut side = Side::new(context(r#"{"a":1}"#));
        side.set_state(b"b", b"2", &mut roomy());
        let effects =
            side.finish(Bytes::from_static(br#"{"outputs":{},"state":{"r":0}}"#), &mut roomy());
        assert_eq!(shown(&effects.unwrap()), r#" {"r":0}"#);
    }

    #[test]
    fn a_state_keeps_no_large_result_alive() {
        let kept = |result: String| {
            let result = Bytes::from(result);
            let effects = Side::new(context("{}")).finish(result.clone(), &mut roomy()).unwrap();
            let state = effects.state.unwrap();
            assert_eq!(state.text(), r#"{"a":1}"#);
            result.as_ptr_range().contains(&state.text().as_ptr())
        };
        let blanks = " ".repeat(1 << 20);
        assert!(!kept(format!(r#"{{"outputs":{{}},"state":{blanks}{{"a":1}}}}"#)));
        let port = format!(r#"{{"type":"String","data":"{}"}}"#, "x".repeat(900));
        assert!(!kept(format!(r#"{{"outputs":{{"o":{port}}},"state":{{"a":1}}}}"#)));
        assert!(kept(r#"{"outputs":{},"state":{"a":1}}"#.into()), "nothing is copied in vain");
    }

    #[test]
    fn reading_the_state_does_not_write_it() {
        let mut side = Side::new(context(r#"{"a":1}"#));
        side.get_state(b"a", &mut roomy());
        let effects = side.finish(Bytes::from_static(br#"{"outputs":{}}"#), &mut roomy()).unwrap();
        assert_eq!(effects.state, None);
    }

    #[track_caller]
    fn faulty(ask: impl FnOnce(&mut Side), part: &str) {
        let mut side = Side::new(context("{}"));
        ask(&mut side);
        let why = side.finish(Bytes::from_static(br#"{"outputs":{}}"#), &mut roomy()).unwrap_err();
        assert!(why.contains(part), "{why}");
    }

    #[test]
    fn mistakes_of_a_guest_fail_its_turn() {
        faulty(
            |s| s.send_output(b"\xff\xfe", &mut roomy()),
            "__send_output: expected a JSON object",
        );
        faulty(|s| s.send_output(b"[1]", &mut roomy()), "it gave [1]");
        faulty(
            |s| s.send_output(br#"{"o":{"type":"Integer","data":"x"}}"#, &mut roomy()),
            "port `o`: data",
        );
        faulty(|s| s.send_output(br#"{"":1}"#, &mut roomy()), "name is empty");
        faulty(|s| _ = s.get_state(b"\xff", &mut roomy()), "__get_state: the key is not UTF-8");
        faulty(|s| s.set_state(b"\xff", b"1", &mut roomy()), "__set_state: the key is not UTF-8");
        faulty(|s| s.set_state(b"k", b"nope", &mut roomy()), "`k` is not set to JSON: nope");
        let number = "the number 1e400 fits neither";
        faulty(
            |s| s.set_state(b"k", b"1e400", &mut roomy()),
            &format!("__set_state: `k`: {number}"),
        );
        faulty(
            |s| s.send_output(b"{\"o\":1e400}", &mut roomy()),
            &format!("__send_output: port `o`: {number}"),
        );
        let encoded = b"{\"o\":{\"type\":\"Any\",\"data\":1e400}}";
        faulty(
            |s| s.send_output(encoded, &mut roomy()),
            &format!("__send_output: port `o`: {number}"),
        );
        let text = format!("\"{}\"", "x".repeat(400));
        let many = |s: &mut Side| {
            (0..9).for_each(|i| s.set_state(&[b'a' + i], text.as_bytes(), &mut roomy()));
        };
        faulty(many, "over `state_size`");
        let sends = |s: &mut Side| {
            for _ in 0..9 {
                s.send_output(format!("{{\"o\":{text}}}").as_bytes(), &mut roomy());
            }
        };
        faulty(sends, "over `output`");
    }

    #[test]
    fn a_turn_puts_out_so_many_messages_and_no_more() {
        #[derive(Default)]
        struct Counted(Mutex<u64>);
        impl SendNow for Counted {
            fn send(&self, _: PortName, _: Message) {
                *self.0.lock() += 1;
            }
        }
        let half = usize::try_from(MAX_OUTPUTS / 2).unwrap();
        let put_out = |sent: usize, in_result: usize, now: Option<Arc<Counted>>| {
            let mut side = Side::new(Context { now: now.map(|now| now as _), ..context("{}") });
            side.limits = TurnLimits::default();
            let account = &mut Account::new(1 << 30);
            let entries = |entry: &str, count: usize| vec![entry; count].join(",");
            side.send_output(format!("{{{}}}", entries(r#""o":1"#, sent)).as_bytes(), account);
            let outputs = entries(r#""o":{"type":"Flow"}"#, in_result);
            let effects = side.finish(format!(r#"{{"outputs":{{{outputs}}}}}"#).into(), account);
            effects.map(|effects| effects.outputs.len())
        };
        let over =
            Err("the turn puts out more than 100000 messages; put several into one, as an array");
        let short = |found: Result<usize, String>| {
            found.map_err(|why| why.trim_start_matches("__send_output: ").to_owned())
        };
        let over = over.map_err(str::to_owned);
        assert_eq!(short(put_out(half, half, None)), Ok(2 * half));
        assert_eq!(short(put_out(half, half + 1, None)), over);
        assert_eq!(short(put_out(2 * half + 1, 0, None)), over);
        // What is gone cannot be taken back, but it ends.
        let now = Arc::new(Counted::default());
        assert_eq!(short(put_out(2 * half + 1, 0, Some(now.clone()))), over);
        assert_eq!(*now.0.lock(), MAX_OUTPUTS);
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_is_read() {
        let long = "x".repeat(1001);
        faulty(
            |side| side.set_state(b"k", long.as_bytes(), &mut roomy()),
            "over `state_size`: a value of 1001 bytes, of 1000",
        );
        let value = format!(r#"{{"o":[1e400,"{long}"]}}"#);
        faulty(
            |side| side.send_output(value.as_bytes(), &mut roomy()),
            "the outputs are over `output`",
        );
    }

    #[test]
    fn what_follows_the_last_entry_that_is_wanted_is_not_looked_at() {
        let until_b = |text: &str| {
            let mut seen = String::new();
            let read = for_each_entry(text.as_bytes(), |key, _| {
                seen += key;
                if key == "b" { Flow::Break(()) } else { Flow::Continue(()) }
            });
            (seen, read.is_ok())
        };
        assert_eq!(until_b(r#"{"a":1,"b":2,"c":3,and what"#), ("ab".into(), true));
        assert_eq!(until_b(r#"{"a":1,"c":3}"#), ("ac".into(), true));
        assert_eq!(until_b(r#"{"a":1,"c":3,and what"#), ("ac".into(), false));
        assert_eq!(until_b(r#"{"a":1} more"#), ("a".into(), false));
        // The same of a result, whose outputs end at the first that cannot be taken.
        check("{'outputs':{'':{'type':'Flow'},and what", Err("a port's name is empty"));
    }

    #[test]
    fn what_a_turn_asks_for_is_in_its_account_or_fails_it() {
        let over = |ask: &dyn Fn(&mut Side, &mut Account)| {
            let (mut side, mut account) = (Side::new(context("{}")), Account::new(100_000));
            side.limits = TurnLimits::default();
            ask(&mut side, &mut account);
            assert!(account.held() <= 100_000);
            let why = side.finish(Bytes::from_static(br#"{"outputs":{}}"#), &mut account);
            let why = why.unwrap_err();
            assert!(why.contains("`host_memory` allows 100000"), "{why}");
        };
        over(&|side, account| {
            (0..1000).for_each(|n: u32| side.set_state(n.to_string().as_bytes(), b"1", account));
        });
        over(&|side, account| (0..1000).for_each(|_| side.send_output(br#"{"o":1}"#, account)));
        let entries = vec![r#""o":1"#; 1000].join(",");
        over(&|side, account| side.send_output(format!("{{{entries}}}").as_bytes(), account));
        let long = format!("\"{}\"", "x".repeat(100_000));
        over(&|side, account| side.set_state(b"k", long.as_bytes(), account));
        over(&|side, account| side.send_output(format!("{{\"o\":{long}}}").as_bytes(), account));
        // What was set, and the state that comes of it.
        let half = format!("\"{}\"", "x".repeat(60_000));
        over(&|side, account| side.set_state(b"k", half.as_bytes(), account));
        let keys: Vec<_> = (0..10_000).map(|n| format!("\"{n}\":1")).collect();
        let indexed = State::new(format!("{{{}}}", keys.join(","))).unwrap();
        over(&|side, account| {
            side.state = indexed.clone();
            account.take(90_000).unwrap();
            assert_eq!(side.get_state(b"1", account), "null");
        });
        let outputs = vec![r#""o":{"type":"Flow"}"#; 1000].join(",");
        let blanks = " ".repeat(60_000);
        for result in [
            format!("{{\"outputs\":{{{outputs}}}}}"),
            format!("{{\"outputs\":{{}},\"state\":{{\"k\":{long}}}}}"),
            format!("\"{}\"", STANDARD.encode(format!("{{\"outputs\":{{}}{blanks}}}"))),
        ] {
            let mut account = Account::new(100_000);
            let side = Side { limits: TurnLimits::default(), ..Side::new(context("{}")) };
            let why = side.finish(Bytes::from(result), &mut account).unwrap_err();
            assert!(why.contains("`host_memory` allows 100000"), "{why}");
        }
    }

    #[test]
    fn a_large_state_is_gone_through_once() {
        let entries: Vec<_> = (0..1000).map(|n| format!("\"k{n}\":[{n}]")).collect();
        let state = format!("{{{}}}", entries.join(","));
        let context = context(&state);
        let read = |context: &Context| {
            let mut side = Side::new(context.clone());
            let before = side.reading_state();
            assert_eq!(side.get_state(b"k999", &mut roomy()), "[999]");
            assert_eq!(side.get_state(b"none", &mut roomy()), "null");
            (before, side.reading_state())
        };
        assert_eq!(read(&context), (state.len() as u64, 0));
        assert_eq!(read(&context), (0, 0), "the next turn has the same state");
        let mut side = Side::new(context);
        side.limits = TurnLimits::default();
        side.set_state(b"k7", b"0", &mut roomy());
        side.set_state(b"new", b"{}", &mut roomy());
        let effects = side.finish(Bytes::from_static(br#"{"outputs":{}}"#), &mut roomy());
        let expected =
            state.replace("\"k7\":[7]", "\"k7\":0").replace("[999]}", "[999],\"new\":{}}");
        assert_eq!(effects.unwrap().state.unwrap().text(), &expected);
    }

    #[test]
    fn a_string_in_an_object_s_place_is_not_repeated_in_the_error() {
        let long = format!("\"{}\"", "x".repeat(1 << 20));
        let result = Bytes::from(format!("{{\"outputs\":{long}}}"));
        let account = &mut Account::new(1 << 30);
        let why = Side::new(context("{}")).finish(result, account).unwrap_err();
        assert!(why.len() < 2000 && why.contains("expected a JSON object"), "{why}");
        let result = Bytes::from(format!("{{\"outputs\":{{\"o\":{long}}}}}"));
        let why = Side::new(context("{}")).finish(result, account).unwrap_err();
        assert!(why.len() < 2000 && why.starts_with("port `o`: expected"), "{why}");
        let mut side = Side::new(context("{}"));
        side.send_output(long.as_bytes(), account);
        let why = side.finish(Bytes::from_static(br#"{"outputs":{}}"#), account).unwrap_err();
        assert!(why.len() < 2000, "{}", why.len());
    }

    #[test]
    fn a_context_holds_what_the_guest_may_know() {
        let message = Message::new(reflowd_runtime::Type::Integer, "1.0").unwrap();
        let mut context = context(r#"{"s": 1}"#);
        context.payload = vec![("in".parse().unwrap(), message)];
        let text = |context: &Context| String::from_utf8(encode(context, b"{}")).unwrap();
        let payload = r#"{"payload":{"in":{"type":"Integer","data":1.0}},"config":{},"state":"#;
        assert_eq!(text(&context), format!(r#"{payload}{{"s": 1}}}}"#));
        context.state_in_context = false;
        context.meta = Some(Bytes::from_static(b"{\"id\":1}"));
        assert_eq!(text(&context), format!(r#"{payload}{{}},"meta":{{"id":1}}}}"#));
    }
}

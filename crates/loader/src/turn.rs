//! One turn as values: the context that goes in, what the guest asks of the
//! host meanwhile, and the effects that come out.
//!
//! Nothing here knows an engine. A guest's mistakes in what it sends or sets do
//! not stop it; the first is remembered, and the turn fails when it ends, with
//! the engine intact.

use std::{borrow::Cow, collections::HashMap, fmt, marker::PhantomData, sync::Arc};

use bytes::Bytes;
use reflowd_runtime::{
    Context, Effects, Message, MessageError, PortName, SendNow, State, TurnLimits, TurnTrace,
    WrittenMessage, check_json, excerpt,
};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::metadata::unwrap_base64;

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
    /// Encoded bytes put out so far, those sent at once included.
    put_out: u64,
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
            put_out: 0,
            limits: context.limits,
            now: context.now,
            trace: context.trace,
            fault: None,
        }
    }

    /// `__send_output`: a JSON object from ports to plain values.
    pub(crate) fn send_output(&mut self, text: &[u8]) {
        if self.fault.is_some() {
            return;
        }
        let whole = Bytes::copy_from_slice(text);
        let sent: Result<Entries<'_, &RawValue>, _> = serde_json::from_slice(&whole);
        let sent = match sent {
            Ok(Entries(sent)) => sent,
            Err(error) => {
                let shown = excerpt(text);
                return self.blame(format!(
                    "__send_output: expected a JSON object from ports to values: {error}; it gave {shown}"
                ));
            }
        };
        for (port, value) in sent {
            let message = Message::from_plain(&whole, value.get().as_bytes());
            let message = message.map_err(|e| e.to_string());
            let put = self.put(&port, message, |side, port, message| match &side.now {
                Some(now) => now.send(port, message),
                None => side.outputs.push((port, message)),
            });
            if let Err(why) = put {
                return self.blame(format!("__send_output: {why}"));
            }
        }
    }

    /// `__get_state`: the JSON value of a key, as this turn has left it.
    pub(crate) fn get_state(&mut self, key: &[u8]) -> Bytes {
        match std::str::from_utf8(key) {
            Ok(key) => self.edits().get(key).unwrap_or(Bytes::from_static(b"null")),
            Err(_) => {
                self.blame("__get_state: the key is not UTF-8".into());
                Bytes::from_static(b"null")
            }
        }
    }

    /// `__set_state`: sets a key of this turn's copy of the state.
    pub(crate) fn set_state(&mut self, key: &[u8], value: &[u8]) {
        if self.fault.is_some() {
            return;
        }
        let Ok(key) = std::str::from_utf8(key) else {
            return self.blame("__set_state: the key is not UTF-8".into());
        };
        let raw: Result<&RawValue, _> = serde_json::from_slice(value);
        let Ok(raw) = raw else {
            let shown = excerpt(value);
            return self.blame(format!("__set_state: `{key}` is not set to JSON: {shown}"));
        };
        if let Err(fault) = check_json(raw.get().as_bytes()) {
            return self.blame(format!("__set_state: `{key}`: {fault}"));
        }
        self.edits().set(key, Bytes::copy_from_slice(raw.get().as_bytes()));
        let (size, max) = (self.edits().size(), self.limits.state);
        if size > max {
            self.blame(format!("the state is over `state_size`: {size} bytes of {max}"));
        }
    }

    /// The effects, from what was asked meanwhile and the guest's result.
    ///
    /// # Errors
    /// The first thing that was wrong, in words for whoever wrote the guest.
    pub(crate) fn finish(mut self, result: Bytes) -> Result<Effects, String> {
        let whole = match unwrap_base64(&result) {
            Cow::Borrowed(_) => result,
            Cow::Owned(inner) => inner.into(),
        };
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let state = match serde_json::from_slice::<Written<'_, WrittenMessage<'_>>>(&whole) {
            Ok(written) => {
                for (port, message) in written.outputs.0 {
                    self.put_out(&port, Message::from_written(&whole, message))?;
                }
                written.state
            }
            // Read again for which of them is wrong.
            Err(_) => self.finish_by_part(&whole)?,
        };
        let state = match state {
            Some(state) => {
                let state = State::from_slice_of(&whole, state.get().as_bytes());
                Some(state.map_err(|e| format!("`state` in the result: {e}"))?)
            }
            None => self.edits.filter(|edits| edits.changed).map(Edits::into_state),
        };
        let max = self.limits.state;
        match &state {
            Some(state) if state.text().len() as u64 > max => {
                let size = state.text().len();
                Err(format!("the state is over `state_size`: {size} bytes of {max}"))
            }
            _ => Ok(Effects { outputs: self.outputs, state }),
        }
    }

    /// Puts out what a result gives until something in it is wrong. Returns its state.
    #[cold]
    fn finish_by_part<'w>(&mut self, whole: &'w Bytes) -> Result<Option<&'w RawValue>, String> {
        let written: Written<'_, &RawValue> = serde_json::from_slice(whole).map_err(|error| {
            let came = if whole.is_empty() { "nothing".into() } else { excerpt(whole) };
            format!("{EXPECTED}: {error}; got {came}")
        })?;
        for (port, value) in written.outputs.0 {
            self.put_out(&port, Message::from_slice_of(whole, value.get().as_bytes()))?;
        }
        Ok(written.state)
    }

    fn put_out(
        &mut self,
        port: &str,
        message: Result<Message, MessageError>,
    ) -> Result<(), String> {
        let message = message.map_err(|error| error.to_string());
        self.put(port, message, |side, port, message| side.outputs.push((port, message)))
    }

    /// Names the port of a message, counts it against the limit, and passes it on.
    fn put(
        &mut self,
        port: &str,
        message: Result<Message, String>,
        pass: impl FnOnce(&mut Self, PortName, Message),
    ) -> Result<(), String> {
        let name = port.parse::<PortName>().map_err(|e| e.to_string())?;
        let message = message.map_err(|why| format!("port `{name}`: {why}"))?;
        self.put_out += message.encoded_len() as u64;
        let (size, max) = (self.put_out, self.limits.output);
        if size > max {
            return Err(format!("the outputs are over `output`: {size} bytes of {max}"));
        }
        pass(self, name, message);
        Ok(())
    }

    fn blame(&mut self, fault: String) {
        self.fault.get_or_insert(fault);
    }

    fn edits(&mut self) -> &mut Edits {
        self.edits.get_or_insert_with(|| Edits::of(&self.state))
    }
}

/// A state taken apart by its keys, in their order.
struct Edits {
    entries: Vec<(String, Bytes)>,
    index: HashMap<String, usize>,
    bytes: u64,
    changed: bool,
}

impl Edits {
    fn of(state: &State) -> Self {
        let mut edits =
            Self { entries: Vec::new(), index: HashMap::new(), bytes: 0, changed: false };
        let Entries::<'_, &RawValue>(entries) =
            serde_json::from_slice(state.text()).expect("a state is a JSON object");
        for (key, value) in entries {
            edits.set(&key, state.text().slice_ref(value.get().as_bytes()));
        }
        edits.changed = false;
        edits
    }

    fn get(&self, key: &str) -> Option<Bytes> {
        self.index.get(key).map(|i| self.entries[*i].1.clone())
    }

    fn set(&mut self, key: &str, value: Bytes) {
        self.changed = true;
        self.bytes += value.len() as u64;
        if let Some(i) = self.index.get(key) {
            let old = std::mem::replace(&mut self.entries[*i].1, value);
            self.bytes -= old.len() as u64;
        } else {
            self.bytes += key.len() as u64;
            self.index.insert(key.into(), self.entries.len());
            self.entries.push((key.into(), value));
        }
    }

    /// About what the state takes, without quotes and commas.
    fn size(&self) -> u64 {
        self.bytes
    }

    fn into_state(self) -> State {
        let mut out = vec![b'{'];
        for (index, (key, value)) in self.entries.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            serde_json::to_writer(&mut out, key).expect("a vector takes every string");
            out.push(b':');
            out.extend_from_slice(value);
        }
        out.push(b'}');
        State::kept(out).expect("keys and values that were JSON make a JSON object")
    }
}

/// A result as guests write it.
#[derive(Deserialize)]
struct Written<'a, V> {
    #[serde(borrow, bound(deserialize = "V: Deserialize<'de>"))]
    outputs: Entries<'a, V>,
    #[serde(borrow)]
    state: Option<&'a RawValue>,
}

/// The entries of a JSON object, in their order.
struct Entries<'a, V>(Vec<(Cow<'a, str>, V)>);

/// A key, borrowed where it is written without escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a, V: Deserialize<'de>> Deserialize<'de> for Entries<'a, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for InOrder<V> {
            type Value = Vec<(Cow<'de, str>, V)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut entries = Vec::new();
                while let Some((Key(key), value)) = map.next_entry()? {
                    entries.push((key, value));
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(InOrder(PhantomData)).map(Self)
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
            limits: TurnLimits { output: 1000, state: 1000 },
            now: None,
        }
    }

    fn shown(effects: &Effects) -> String {
        let outputs: Vec<_> =
            effects.outputs.iter().map(|(p, m)| format!("{p}={}", m.encode())).collect();
        let state = effects.state.as_ref().map(|s| String::from_utf8_lossy(s.text()).into_owned());
        format!("{} {}", outputs.join(" "), state.as_deref().unwrap_or("-"))
    }

    #[track_caller]
    fn check(result: &str, expected: Result<&str, &str>) {
        let result = result.replace('\'', "\"");
        let found = Side::new(context("{}")).finish(Bytes::from(result.clone()));
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
        let wrapped = STANDARD.encode(r#"{"outputs":{"o":{"type":"Flow"}}}"#);
        check(&format!("'{wrapped}'"), Ok("o={'type':'Flow','data':null} -"));
    }

    #[test]
    fn sends_come_before_the_result_in_the_order_of_the_calls() {
        let mut side = Side::new(context("{}"));
        side.send_output(br#"{"z":1,"a":{"type":"Stream","data":[1]}}"#);
        side.send_output(br#"{"z":null}"#);
        let result = Bytes::from_static(br#"{"outputs":{"r":{"type":"Flow"}}}"#);
        let effects = side.finish(result).unwrap();
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
        side.send_output(br#"{"a":1}"#);
        assert_eq!(*sent.0.lock(), [r#"a={"type":"Integer","data":1}"#]);
        assert!(side.finish(Bytes::from_static(br#"{"outputs":{}}"#)).unwrap().outputs.is_empty());
    }

    #[test]
    fn a_turn_sees_the_state_that_it_has_set() {
        let mut side = Side::new(context(r#"{"b": 1.0, "a":2}"#));
        assert_eq!(side.get_state(b"b"), "1.0");
        assert_eq!(side.get_state(b"c"), "null");
        side.set_state(b"c", br#" {"x": 1e2} "#);
        side.set_state(b"b", b"3");
        assert_eq!(side.get_state(b"c"), r#"{"x": 1e2}"#);
        let effects = side.finish(Bytes::from_static(br#"{"outputs":{}}"#)).unwrap();
        assert_eq!(shown(&effects), r#" {"b":3,"a":2,"c":{"x": 1e2}}"#);
    }

    #[test]
    fn what_an_earlier_version_took_into_a_state_is_left_there() {
        let mut context = context("{}");
        context.state = State::kept(r#"{"a":1e400,"b":1}"#).unwrap();
        let mut side = Side::new(context);
        side.set_state(b"b", b"2");
        let effects = side.finish(Bytes::from_static(br#"{"outputs":{}}"#)).unwrap();
        assert_eq!(shown(&effects), r#" {"a":1e400,"b":2}"#);
    }

    #[test]
    fn a_value_may_be_as_deep_in_a_state_as_in_a_message() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let mut side = Side::new(context("{}"));
        side.set_state(b"k", nested(MAX_DEPTH).as_bytes());
        let effects = side.finish(Bytes::from_static(br#"{"outputs":{}}"#)).unwrap();
        assert!(State::new(effects.state.unwrap().text().clone()).is_ok());
        let deeper = nested(MAX_DEPTH + 1);
        faulty(|s| s.set_state(b"k", deeper.as_bytes()), "nested deeper than 100 levels");
    }

    #[test]
    fn a_state_in_the_result_replaces_what_was_set() {
        let mut side = Side::new(context(r#"{"a":1}"#));
        side.set_state(b"b", b"2");
        let effects = side.finish(Bytes::from_static(br#"{"outputs":{},"state":{"r":0}}"#));
        assert_eq!(shown(&effects.unwrap()), r#" {"r":0}"#);
    }

    #[test]
    fn a_state_keeps_no_large_result_alive() {
        let kept = |result: String| {
            let result = Bytes::from(result);
            let effects = Side::new(context("{}")).finish(result.clone()).unwrap();
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
        side.get_state(b"a");
        let effects = side.finish(Bytes::from_static(br#"{"outputs":{}}"#)).unwrap();
        assert_eq!(effects.state, None);
    }

    #[track_caller]
    fn faulty(ask: impl FnOnce(&mut Side), part: &str) {
        let mut side = Side::new(context("{}"));
        ask(&mut side);
        let why = side.finish(Bytes::from_static(br#"{"outputs":{}}"#)).unwrap_err();
        assert!(why.contains(part), "{why}");
    }

    #[test]
    fn mistakes_of_a_guest_fail_its_turn() {
        faulty(|s| s.send_output(b"\xff\xfe"), "__send_output: expected a JSON object");
        faulty(|s| s.send_output(b"[1]"), "it gave [1]");
        faulty(|s| s.send_output(br#"{"o":{"type":"Integer","data":"x"}}"#), "port `o`: data");
        faulty(|s| s.send_output(br#"{"":1}"#), "name is empty");
        faulty(|s| _ = s.get_state(b"\xff"), "__get_state: the key is not UTF-8");
        faulty(|s| s.set_state(b"\xff", b"1"), "__set_state: the key is not UTF-8");
        faulty(|s| s.set_state(b"k", b"nope"), "`k` is not set to JSON: nope");
        let number = "the number 1e400 fits neither";
        faulty(|s| s.set_state(b"k", b"1e400"), &format!("__set_state: `k`: {number}"));
        faulty(|s| s.send_output(b"{\"o\":1e400}"), &format!("__send_output: port `o`: {number}"));
        let encoded = b"{\"o\":{\"type\":\"Any\",\"data\":1e400}}";
        faulty(|s| s.send_output(encoded), &format!("__send_output: port `o`: {number}"));
        let text = format!("\"{}\"", "x".repeat(400));
        let many = |s: &mut Side| (0..9).for_each(|i| s.set_state(&[b'a' + i], text.as_bytes()));
        faulty(many, "over `state_size`");
        let sends = |s: &mut Side| {
            for _ in 0..9 {
                s.send_output(format!("{{\"o\":{text}}}").as_bytes());
            }
        };
        faulty(sends, "over `output`");
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

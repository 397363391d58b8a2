//! One typed value on its way from a port to a port.
//!
//! A message keeps its data as the JSON text in which it came. Routing looks at
//! the type and never at the data, so `1e2` stays `1e2`, key order and spaces
//! survive, and a hop costs a reference count. Data is strict JSON ([`strict_json`]), however
//! a message is made, so that its receiver can read it.

use std::{borrow::Cow, fmt};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::strict_json::{self, JsonFault};

/// The type of a message. The names are those of Reflow's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Type {
    /// A signal without data.
    Flow,
    /// Any JSON, meant as something that happened.
    Event,
    /// `true` or `false`.
    Boolean,
    /// A number of integral value that fits 64 bits with sign.
    Integer,
    /// Any number.
    Float,
    /// A string.
    String,
    /// A JSON object.
    Object,
    /// A JSON array.
    Array,
    /// Bytes, as an array of numbers from 0 to 255.
    Stream,
    /// Any JSON or null.
    Optional,
    /// Any JSON.
    Any,
    /// The text of an error.
    Error,
}

impl Type {
    /// All types, in the order in which the guest ABI lists them.
    pub const ALL: [Self; 12] = [
        Self::Flow,
        Self::Event,
        Self::Boolean,
        Self::Integer,
        Self::Float,
        Self::String,
        Self::Object,
        Self::Array,
        Self::Stream,
        Self::Optional,
        Self::Any,
        Self::Error,
    ];

    /// The name by which messages and metadata call the type.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Flow => "Flow",
            Self::Event => "Event",
            Self::Boolean => "Boolean",
            Self::Integer => "Integer",
            Self::Float => "Float",
            Self::String => "String",
            Self::Object => "Object",
            Self::Array => "Array",
            Self::Stream => "Stream",
            Self::Optional => "Optional",
            Self::Any => "Any",
            Self::Error => "Error",
        }
    }

    /// The type of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.name() == name)
    }

    /// Whether some message of this type could be meant for a port of type `port`.
    ///
    /// False only where no value of one is ever a value of the other, such as
    /// Integer into Stream: a wire between such ports is a mistake.
    #[must_use]
    pub fn can_fit(self, port: Self) -> bool {
        use Type::{Any, Array, Event, Float, Integer, Optional, Stream};
        let loose = |ty| matches!(ty, Any | Event | Optional);
        self == port
            || loose(self)
            || loose(port)
            || matches!((self, port), (Integer, Float) | (Float, Integer))
            || matches!((self, port), (Stream, Array) | (Array, Stream))
            || matches!((self, port), (Type::Error, Type::String) | (Type::String, Type::Error))
    }

    /// Whether `data`, one JSON value, is a value of this type.
    fn holds(self, data: &str) -> bool {
        let first = data.as_bytes().first().copied().unwrap_or(b' ');
        match self {
            Self::Flow => data == "null",
            Self::Event | Self::Optional | Self::Any => true,
            Self::Boolean => matches!(data, "true" | "false"),
            Self::Integer => is_integral(data),
            Self::Float => first == b'-' || first.is_ascii_digit(),
            Self::String | Self::Error => first == b'"',
            Self::Object => first == b'{',
            Self::Array => first == b'[',
            Self::Stream => first == b'[' && serde_json::from_str::<Vec<u8>>(data).is_ok(),
        }
    }
}

/// JavaScript and Go write `1.0` and `1e3` for integers, so those count.
fn is_integral(data: &str) -> bool {
    if data.parse::<i64>().is_ok() {
        return true;
    }
    // An integer that i64 could not take is out of range, whatever f64 makes of it.
    if !data.contains(['.', 'e', 'E']) {
        return false;
    }
    let bound = 2f64.powi(63);
    data.parse::<f64>().is_ok_and(|n| n.fract() == 0.0 && (-bound..bound).contains(&n))
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A typed value whose data is strict JSON and fits its type.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    ty: Type,
    data: Bytes,
}

/// Why bytes are not a message. Displays as what was expected.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MessageError {
    /// No JSON at all.
    #[error("this is no JSON: {0}")]
    NotJson(String),
    /// Not an object with a `type`.
    #[error("expected {{\"type\": …, \"data\": …}}: {0}")]
    Shape(String),
    /// A type that does not exist.
    #[error(
        "unknown type `{0}`; the types are Flow, Event, Boolean, Integer, Float, String, Object, Array, Stream, Optional, Any and Error"
    )]
    UnknownType(String),
    /// Data that is no value of its type.
    #[error("data that is no {ty}: {data}")]
    Unfit {
        /// The type that the message claims.
        ty: Type,
        /// The beginning of the data.
        data: String,
    },
    /// Data that is not strict JSON.
    #[error(transparent)]
    Fault(#[from] JsonFault),
}

/// How much of something unfit an error shows, in bytes.
pub const EXCERPT: usize = 200;

impl Message {
    /// A message of type `ty` from the JSON text of its data.
    ///
    /// # Errors
    /// [`MessageError::Unfit`] when the data is not JSON or no value of the type, and
    /// [`MessageError::Fault`] when it is not strict JSON.
    pub fn new(ty: Type, data: impl Into<Bytes>) -> Result<Self, MessageError> {
        let data: Bytes = data.into();
        let unfit = |data: &[u8]| MessageError::Unfit { ty, data: excerpt(data) };
        let raw: &RawValue = serde_json::from_slice(&data).map_err(|_| unfit(&data))?;
        if !ty.holds(raw.get()) {
            strict_json::check(raw.get().as_bytes())?;
            return Err(unfit(&data));
        }
        strict_json::check(raw.get().as_bytes())?;
        let data = share(&data, raw.get().as_bytes());
        Ok(Self { ty, data })
    }

    /// A message from its encoded form, `{"type": …, "data": …}`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(encoded: &Bytes) -> Result<Self, MessageError> {
        Self::from_slice_of(encoded, encoded)
    }

    /// A message from `part`, its encoded form, which lies within `whole`.
    ///
    /// The data shares the memory of `whole`, unless it is a small part of it:
    /// a message that waits must not keep much larger siblings alive.
    ///
    /// # Errors
    /// What is wrong with it.
    ///
    /// # Panics
    /// If `part` does not lie within `whole`.
    pub fn from_slice_of(whole: &Bytes, part: &[u8]) -> Result<Self, MessageError> {
        let message = Self::kept(whole, part)?;
        message.check()?;
        Ok(message)
    }

    /// Like [`Message::from_slice_of`], for data that the daemon itself has stored: what an
    /// earlier version accepted is restored even if it is not strict JSON.
    ///
    /// # Errors
    /// What is wrong with it.
    ///
    /// # Panics
    /// If `part` does not lie within `whole`.
    pub fn kept(whole: &Bytes, part: &[u8]) -> Result<Self, MessageError> {
        let written: WrittenMessage<'_> = serde_json::from_slice(part).map_err(unread)?;
        written.message(whole)
    }

    /// A message that was parsed as part of `whole`.
    ///
    /// # Errors
    /// What is wrong with it.
    ///
    /// # Panics
    /// If it does not lie within `whole`.
    pub fn from_written(whole: &Bytes, written: WrittenMessage<'_>) -> Result<Self, MessageError> {
        let message = written.message(whole)?;
        message.check()?;
        Ok(message)
    }

    /// A message from a plain JSON value, as `__send_output` and `reflowd send` take it.
    ///
    /// null becomes Optional, a boolean Boolean, an integer Integer, another number
    /// Float, a string String, an array Array, an object Object. An object with
    /// exactly the keys `type` (naming one of the twelve) and `data` is that message.
    ///
    /// # Errors
    /// The text is not strict JSON, or a message in it has data that does not fit its type.
    pub fn from_plain(whole: &Bytes, part: &[u8]) -> Result<Self, MessageError> {
        let raw: &RawValue = serde_json::from_slice(part).map_err(unread)?;
        let text = raw.get();
        let ty = match text.as_bytes()[0] {
            b'n' => Type::Optional,
            b't' | b'f' => Type::Boolean,
            b'"' => Type::String,
            b'[' => Type::Array,
            b'{' if is_encoded_message(text) => return Self::from_slice_of(whole, text.as_bytes()),
            b'{' => Type::Object,
            _ if text.parse::<i64>().is_ok() => Type::Integer,
            _ => Type::Float,
        };
        strict_json::check(text.as_bytes())?;
        Ok(Self { ty, data: share(whole, text.as_bytes()) })
    }

    /// Whether a message from `part` shares the memory of `whole` instead of a copy.
    #[must_use]
    pub fn shares(whole: &Bytes, part: &[u8]) -> bool {
        whole.len() <= part.len().saturating_mul(2) + MAX_SIBLINGS
    }

    /// An `Error` message with that text.
    #[must_use]
    pub fn error(text: &str) -> Self {
        let data = serde_json::to_vec(text).expect("a string can be encoded");
        Self { ty: Type::Error, data: data.into() }
    }

    /// Checks that the data is strict JSON. Only a message stored by an earlier version may
    /// fail this.
    ///
    /// # Errors
    /// The first fault in it.
    pub fn check(&self) -> Result<(), JsonFault> {
        strict_json::check(&self.data)
    }

    /// Its type.
    #[must_use]
    pub fn ty(&self) -> Type {
        self.ty
    }

    /// The JSON text of its data; `null` where a Flow has none.
    #[must_use]
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Its encoded length in bytes, as mailboxes count it.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.ty.name().len() + self.data.len() + r#"{"type":"","data":}"#.len()
    }

    /// Appends `{"type":…,"data":…}`.
    pub fn encode_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(br#"{"type":""#);
        out.extend_from_slice(self.ty.name().as_bytes());
        out.extend_from_slice(br#"","data":"#);
        out.extend_from_slice(&self.data);
        out.push(b'}');
    }

    /// `{"type":…,"data":…}` as a string.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = Vec::with_capacity(self.encoded_len());
        self.encode_to(&mut out);
        String::from_utf8(out).expect("JSON text is UTF-8")
    }

    /// A copy that holds nothing but itself.
    ///
    /// A message that came as one of many shares their memory; one that waits
    /// in a mailbox for long should not keep its siblings alive.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self { ty: self.ty, data: Bytes::copy_from_slice(&self.data) }
    }
}

/// A message borrowed from the JSON text that contains it, so that the text is parsed once.
/// Must be an object: serde's derive would also accept an array of the same values.
pub struct WrittenMessage<'a> {
    ty: Cow<'a, str>,
    data: Option<&'a RawValue>,
}

impl WrittenMessage<'_> {
    fn message(self, whole: &Bytes) -> Result<Message, MessageError> {
        let Self { ty: name, data } = self;
        let ty = Type::from_name(&name)
            .ok_or_else(|| MessageError::UnknownType(name.chars().take(40).collect()))?;
        match data {
            Some(data) if ty.holds(data.get()) => {
                Ok(Message { ty, data: share(whole, data.get().as_bytes()) })
            }
            Some(data) => {
                strict_json::check(data.get().as_bytes())?;
                Err(MessageError::Unfit { ty, data: excerpt(data.get().as_bytes()) })
            }
            None if matches!(ty, Type::Flow | Type::Optional | Type::Event | Type::Any) => {
                Ok(Message { ty, data: Bytes::from_static(b"null") })
            }
            None => Err(MessageError::Unfit { ty, data: "none".into() }),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for WrittenMessage<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnObject;
        impl<'de> Visitor<'de> for AnObject {
            type Value = WrittenMessage<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let (mut ty, mut data) = (None, None);
                while let Some(JsonString(key)) = map.next_key()? {
                    match &*key {
                        "type" if ty.is_some() => return Err(M::Error::duplicate_field("type")),
                        "type" => ty = Some(map.next_value::<JsonString<'_>>()?.0),
                        "data" if data.is_some() => return Err(M::Error::duplicate_field("data")),
                        "data" => data = Some(map.next_value()?),
                        _ => _ = map.next_value::<IgnoredAny>()?,
                    }
                }
                let ty = ty.ok_or_else(|| M::Error::missing_field("type"))?;
                Ok(WrittenMessage { ty, data: data.flatten() })
            }
        }
        deserializer.deserialize_map(AnObject)
    }
}

/// A JSON string, borrowed where it is written without escapes.
#[derive(Deserialize)]
struct JsonString<'a>(#[serde(borrow)] Cow<'a, str>);

/// Why there is no message, as the reader of JSON has it.
fn unread(error: serde_json::Error) -> MessageError {
    // The reader shows a whole string that stands in another thing's place.
    let why = excerpt(error.to_string().as_bytes());
    if error.is_data() { MessageError::Shape(why) } else { MessageError::NotJson(why) }
}

/// How many bytes a message may keep alive beside its own, before it is copied.
const MAX_SIBLINGS: usize = 4 << 10;

/// `part` of `whole`, shared or, where that would keep much else alive, copied.
fn share(whole: &Bytes, part: &[u8]) -> Bytes {
    if Message::shares(whole, part) { whole.slice_ref(part) } else { Bytes::copy_from_slice(part) }
}

/// Whether a plain object is meant as a message: exactly `type`, one of the twelve, and `data`.
fn is_encoded_message(text: &str) -> bool {
    /// What is known of an object's keys so far. Another key is no error, whose text would
    /// hold it.
    #[derive(Default)]
    struct Keys {
        ty: bool,
        data: bool,
        other: bool,
    }
    impl<'de> Deserialize<'de> for Keys {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_map(Self::default())
        }
    }
    impl<'de> Visitor<'de> for Keys {
        type Value = Self;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<M: MapAccess<'de>>(mut self, mut map: M) -> Result<Self, M::Error> {
            while let Some(JsonString(key)) = map.next_key::<JsonString<'de>>()? {
                let value = map.next_value::<&'de RawValue>()?;
                let named = || {
                    let name = serde_json::from_str::<JsonString<'_>>(value.get());
                    name.is_ok_and(|name| Type::from_name(&name.0).is_some())
                };
                match &*key {
                    "type" if !self.ty && named() => self.ty = true,
                    "data" if !self.data => self.data = true,
                    _ => self.other = true,
                }
            }
            Ok(self)
        }
    }
    let keys = serde_json::from_str::<Keys>(text);
    keys.is_ok_and(|keys| keys.ty && keys.data && !keys.other)
}

/// The first [`EXCERPT`] bytes of something, as text for an error.
#[must_use]
pub fn excerpt(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(EXCERPT)];
    let mut text = String::from_utf8_lossy(cut).into_owned();
    if cut.len() < bytes.len() {
        text.push('…');
    }
    text
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.ty, excerpt(&self.data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(encoded: &str, expected: Result<(Type, &str), ()>) {
        let bytes = Bytes::copy_from_slice(encoded.as_bytes());
        let got = Message::decode(&bytes);
        let got = got.as_ref().map(|m| (m.ty(), std::str::from_utf8(m.data()).unwrap()));
        assert_eq!(got.map_err(|_| ()), expected, "{encoded}");
    }

    #[test]
    fn data_must_fit_its_type() {
        use Type::*;
        check(r#"{"type":"Flow"}"#, Ok((Flow, "null")));
        check(r#"{"type":"Flow","data":null}"#, Ok((Flow, "null")));
        check(r#"{"type":"Flow","data":1}"#, Err(()));
        check(r#"{"type":"Event","data":{"a":1}}"#, Ok((Event, r#"{"a":1}"#)));
        check(r#"{"type":"Boolean","data":true}"#, Ok((Boolean, "true")));
        check(r#"{"type":"Boolean","data":"true"}"#, Err(()));
        check(r#"{"type":"Integer","data":-7}"#, Ok((Integer, "-7")));
        check(r#"{"type":"Integer","data":1.0}"#, Ok((Integer, "1.0")));
        check(r#"{"type":"Integer","data":1e3}"#, Ok((Integer, "1e3")));
        check(r#"{"type":"Integer","data":1.5}"#, Err(()));
        check(
            r#"{"type":"Integer","data":9223372036854775807}"#,
            Ok((Integer, "9223372036854775807")),
        );
        check(r#"{"type":"Integer","data":9223372036854775808}"#, Err(()));
        check(r#"{"type":"Integer","data":"7"}"#, Err(()));
        check(r#"{"type":"Float","data":7}"#, Ok((Float, "7")));
        check(r#"{"type":"Float","data":null}"#, Err(()));
        check(r#"{"type":"String","data":"x"}"#, Ok((String, "\"x\"")));
        check(r#"{"type":"String"}"#, Err(()));
        check(r#"{"type":"Object","data":{}}"#, Ok((Object, "{}")));
        check(r#"{"type":"Object","data":[]}"#, Err(()));
        check(r#"{"type":"Array","data":[]}"#, Ok((Array, "[]")));
        check(r#"{"type":"Stream","data":[0,255]}"#, Ok((Stream, "[0,255]")));
        check(r#"{"type":"Stream","data":[256]}"#, Err(()));
        check(r#"{"type":"Stream","data":["a"]}"#, Err(()));
        check(r#"{"type":"Optional","data":null}"#, Ok((Optional, "null")));
        check(r#"{"type":"Any","data":[1,{}]}"#, Ok((Any, "[1,{}]")));
        check(r#"{"type":"Error","data":"no"}"#, Ok((Error, "\"no\"")));
        check(r#"{"type":"Error","data":{}}"#, Err(()));
        check(r#"{"type":"Int","data":1}"#, Err(()));
        check(r#"{"data":1}"#, Err(()));
        check(r#"[1]"#, Err(()));
        check(r#" ["Integer",1]"#, Err(()));
        check("", Err(()));
    }

    #[test]
    fn what_is_no_json_is_called_that() {
        let refused = |text: &'static str| {
            let bytes = Bytes::from_static(text.as_bytes());
            let errors = [Message::decode(&bytes), Message::from_plain(&bytes, &bytes)];
            errors.map(|found| found.map_err(|error| error.to_string()).err())
        };
        for text in ["", "{", "{\"a\":1", "nul"] {
            for error in refused(text) {
                assert!(error.unwrap().starts_with("this is no JSON: "), "{text}");
            }
        }
        let [encoded, plain] = refused("7");
        let encoded = encoded.unwrap();
        assert!(
            encoded.starts_with("expected {\"type\"") && encoded.contains("expected an object")
        );
        assert_eq!(plain, None);
    }

    #[test]
    fn data_that_not_every_reader_takes_is_refused_however_it_comes() {
        for (data, why) in [
            ("1e400", "the number 1e400 fits neither"),
            ("[0,{\"a\":-1e999}]", "the number -1e999 at `/1/a` fits neither"),
            ("\"\\ud800\"", "the string has \\ud800"),
        ] {
            let (plain, encoded) =
                (Bytes::from(data), Bytes::from(format!("{{\"type\":\"Any\",\"data\":{data}}}")));
            let made = [
                Message::new(Type::Any, data),
                Message::from_plain(&plain, &plain),
                Message::from_plain(&encoded, &encoded),
                Message::decode(&encoded),
            ];
            for made in made {
                let error = made.unwrap_err();
                assert!(matches!(error, MessageError::Fault(_)), "{error:?}");
                assert!(error.to_string().starts_with(why), "{error}");
            }
            // What was taken before there was the rule can be put back, and told apart.
            assert!(Message::kept(&encoded, &encoded).unwrap().check().is_err());
        }
        for ty in [Type::Float, Type::Integer] {
            let error = Message::new(ty, "1e400").unwrap_err();
            assert!(matches!(error, MessageError::Fault(_)), "{error:?}");
        }
    }

    #[test]
    fn data_keeps_its_bytes() {
        let data = r#"{"b":1.0, "a":1e2,"n":123456789012345678901234567890}"#;
        let text = format!(r#"{{ "type": "Object", "data": {data} }}"#);
        let message = Message::decode(&Bytes::from(text)).unwrap();
        assert_eq!(message.data(), data);
        assert_eq!(message.encode(), format!(r#"{{"type":"Object","data":{data}}}"#));
        assert_eq!(message.encode().len(), message.encoded_len());
    }

    #[test]
    fn a_small_message_keeps_no_large_body() {
        let padded = |text: &str| Bytes::from(format!("{text}{}", " ".repeat(1 << 20)));
        let shares = |message: &Message, whole: &Bytes| {
            whole.as_ptr_range().contains(&message.data().as_ptr())
        };
        let (plain, encoded) = (padded("1"), padded(r#"{"type":"Integer","data":1}"#));
        assert!(!shares(&Message::new(Type::Integer, plain.clone()).unwrap(), &plain));
        assert!(!shares(&Message::from_plain(&plain, &plain).unwrap(), &plain));
        assert!(!shares(&Message::decode(&encoded).unwrap(), &encoded));
        let large = Bytes::from(format!("\"{}\"", "x".repeat(1 << 20)));
        assert!(shares(&Message::new(Type::String, large.clone()).unwrap(), &large));
    }

    #[track_caller]
    fn plain(text: &str, ty: Type, data: &str) {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let message = Message::from_plain(&bytes, &bytes).unwrap();
        assert_eq!((message.ty(), &message.data()[..]), (ty, data.as_bytes()), "{text}");
    }

    #[test]
    fn plain_values_find_their_type() {
        plain("null", Type::Optional, "null");
        plain(" true ", Type::Boolean, "true");
        plain("3", Type::Integer, "3");
        plain("3.0", Type::Float, "3.0");
        plain("3.5", Type::Float, "3.5");
        plain("1e300", Type::Float, "1e300");
        plain("\"s\"", Type::String, "\"s\"");
        plain("[1]", Type::Array, "[1]");
        plain("{\"a\":1}", Type::Object, "{\"a\":1}");
        plain(r#"{"type":"Float","data":1}"#, Type::Float, "1");
        plain(r#"{"type":"lamp","data":1}"#, Type::Object, r#"{"type":"lamp","data":1}"#);
        plain(
            r#"{"type":"Float","data":1,"x":2}"#,
            Type::Object,
            r#"{"type":"Float","data":1,"x":2}"#,
        );
    }

    #[test]
    fn wires_are_refused_only_where_nothing_ever_fits() {
        assert!(!Type::Integer.can_fit(Type::Stream));
        assert!(!Type::Boolean.can_fit(Type::Integer));
        assert!(Type::Integer.can_fit(Type::Float));
        assert!(Type::Any.can_fit(Type::Stream));
        assert!(Type::Object.can_fit(Type::Any));
        assert!(Type::Flow.can_fit(Type::Event));
    }
}

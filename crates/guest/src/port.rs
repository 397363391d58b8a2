//! What an actor says of its ports.

use crate::Type;

/// An inport or outport, as the module's metadata has it.
///
/// ```
/// # use reflowd_guest::Port;
/// const PORTS: &[Port] = &[Port::integer("add").required().about("What to add.")];
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    pub(crate) name: &'static str,
    pub(crate) port_type: Type,
    pub(crate) description: &'static str,
    pub(crate) required: bool,
}

/// One constructor for each type that has data of its own kind.
macro_rules! of_type {
    ($($name:ident: $type:ident, $about:literal;)*) => {
        $(
            #[doc = concat!("A port for ", $about, ".")]
            #[must_use]
            pub const fn $name(name: &'static str) -> Self {
                Self::new(name, Type::$type)
            }
        )*
    };
}

impl Port {
    /// A port for messages of one type.
    #[must_use]
    pub const fn new(name: &'static str, port_type: Type) -> Self {
        Self { name, port_type, description: "", required: false }
    }

    of_type! {
        any: Any, "messages of every type";
        boolean: Boolean, "`true` or `false`";
        integer: Integer, "whole numbers of 64 bits";
        float: Float, "numbers";
        string: String, "text";
        object: Object, "JSON objects, such as structs";
        array: Array, "JSON arrays";
        stream: Stream, "bytes";
        event: Event, "any JSON";
        flow: Flow, "signals without data";
    }

    /// The same, and an actor with `trigger = "all"` waits for it.
    #[must_use]
    pub const fn required(self) -> Self {
        Self { required: true, ..self }
    }

    /// The same, with a sentence for people.
    #[must_use]
    pub const fn about(self, description: &'static str) -> Self {
        Self { description, ..self }
    }
}

//! What a module puts out that its metadata does not say.
//!
//! Real modules do that, so it is delivered where it is wired, and told once for each port
//! and generation. A module makes up the names of its ports as it runs, so only some of
//! them are told, and none shows a secret.

use std::collections::HashSet;

use tracing::warn;

use super::super::{ERROR_PORT, Shared};
use crate::{Message, Metadata, PortName};

/// Ports of one generation that are told.
const MAX_TOLD: usize = 16;

/// Outputs that have been told of one generation.
#[derive(Default)]
pub(super) struct Undeclared {
    told: HashSet<PortName>,
    /// Whether it was told that there are more.
    more: bool,
}

/// What there is to say of an output.
#[derive(Debug, PartialEq, Eq)]
enum Remark {
    /// That it is not what is declared.
    Port,
    /// That there are more such, of which nothing will be said.
    More,
}

impl Undeclared {
    /// Warns of an output that is not declared, if that is worth it.
    pub(super) fn tell(
        &mut self,
        shared: &Shared,
        metadata: &Metadata,
        port: &PortName,
        message: &Message,
    ) {
        if is_declared(metadata, port, message) {
            return;
        }
        let actor = &shared.name;
        match self.remark(port) {
            None => {}
            Some(Remark::Port) => {
                let declared = match metadata.outport(port.as_str()) {
                    None => "does not declare".to_owned(),
                    Some(declared) => format!("declares as {}", declared.port_type),
                };
                let (port, found) = (shared.secrets.mask(port.as_str()), message.ty());
                warn!(%actor, %port, %found, "the module put out on a port that its metadata {declared}; it is delivered where it is wired");
            }
            Some(Remark::More) => {
                warn!(%actor, told = MAX_TOLD, "the module puts out on more ports that its metadata does not have; the others are not told");
            }
        }
    }

    fn remark(&mut self, port: &PortName) -> Option<Remark> {
        if self.told.contains(port) {
            return None;
        }
        if self.told.len() < MAX_TOLD {
            self.told.insert(port.clone());
            return Some(Remark::Port);
        }
        (!std::mem::replace(&mut self.more, true)).then_some(Remark::More)
    }
}

/// Whether an output is what the metadata says of its port. The `error` port needs
/// no saying.
fn is_declared(metadata: &Metadata, port: &PortName, message: &Message) -> bool {
    match metadata.outport(port.as_str()) {
        None => port.as_str() == ERROR_PORT,
        Some(declared) => message.ty().can_fit(declared.port_type),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_makes_up_ports_is_soon_told_no_more() {
        let mut undeclared = Undeclared::default();
        let mut remarks = |number: usize| {
            let port: PortName = format!("p{number}").parse().unwrap();
            undeclared.remark(&port)
        };
        for number in 0..MAX_TOLD {
            assert_eq!(remarks(number), Some(Remark::Port));
            assert_eq!(remarks(number), None);
        }
        assert_eq!(remarks(MAX_TOLD), Some(Remark::More));
        assert_eq!(remarks(MAX_TOLD + 1), None);
    }
}

//! An actor without a guest: Rust in a guest's place.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use reflowd_runtime::{
    Context, Digest, Effects, Engine, InstantiateError, Message, Metadata, Port, PortName, Program,
    Turn, Type,
};

/// Shows each message to a function, and passes it on where there is an outport.
#[derive(Clone)]
pub(crate) struct Native {
    out: Option<PortName>,
    look: Arc<dyn Fn(&Message) + Send + Sync>,
    metadata: Metadata,
}

impl Native {
    pub(crate) fn program(
        inport: &str,
        out: Option<&str>,
        look: impl Fn(&Message) + Send + Sync + 'static,
    ) -> Arc<dyn Program> {
        let port = |name: &str| Port {
            name: name.parse().expect("a plain word names a port"),
            description: String::new(),
            port_type: Type::Any,
            required: true,
        };
        let metadata = Metadata {
            component: "Native".into(),
            description: String::new(),
            inports: vec![port(inport)],
            outports: out.map(port).into_iter().collect(),
            config_schema: None,
            version: None,
        };
        let out = out.map(|name| name.parse().expect("a plain word names a port"));
        Arc::new(Self { out, look: Arc::new(look), metadata })
    }
}

impl Program for Native {
    fn digest(&self) -> Digest {
        Digest::new([0; 32])
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn instantiate(&self) -> BoxFuture<'_, Result<Box<dyn Engine>, InstantiateError>> {
        let engine: Box<dyn Engine> = Box::new(self.clone());
        Box::pin(async { Ok(engine) })
    }
}

impl Engine for Native {
    fn turn(
        self: Box<Self>,
        mut context: Context,
        _deadline: tokio::time::Instant,
    ) -> BoxFuture<'static, Turn> {
        Box::pin(async move {
            let mut effects = Effects::default();
            let (_, message) = context.payload.pop().expect("a turn has a message");
            (self.look)(&message);
            if let Some(out) = &self.out {
                effects.outputs.push((out.clone(), message));
            }
            Ok((self as Box<dyn Engine>, effects))
        })
    }
}

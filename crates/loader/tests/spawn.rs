//! Modules that a program brings along, run as actors.

use reflowd_loader::{Limits, Loader, Source};
use reflowd_runtime::{Message, ProgramSpec, Settings, SpawnError, System, Type};
use tokio::runtime::Handle;

const RELAY: &[u8] = include_bytes!("../../../tests/guests/relay.wasm");

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_start_an_actor_of_one_name_one_does() {
    let loader = Loader::new(Limits::default());
    let source = Source::Bytes { name: "relay.wasm".into(), bytes: RELAY.into() };
    let relay = loader.load(source).await.unwrap();
    let system = System::new(Handle::current());
    let spawn = || {
        let spec = ProgramSpec::new("a".parse().unwrap());
        system.spawn(&*relay, spec, Settings::default())
    };
    let (one, two) = tokio::join!(spawn(), spawn());
    let refused = [one, two].into_iter().filter_map(Result::err).collect::<Vec<_>>();
    assert!(matches!(&refused[..], [SpawnError::Taken { .. }]), "{refused:?}");
    assert_eq!(system.actor("a").unwrap().status().generation.number(), 1);

    let message = Message::new(Type::Integer, "7").unwrap();
    let (_, answer) =
        system.ask(&"a.in".parse().unwrap(), message, None, "a.out".parse().unwrap()).unwrap();
    answer.await.unwrap();
    assert!(system.books().balanced());
    system.kill().await;
}

use reflowd_runtime::Type;
use tempfile::TempDir;

use super::*;

const ODD: &str = "{\"b\":1.0, \"a\":1e2,\n\"n\":123456789012345678901234567890}";

fn remains() -> BTreeMap<ActorName, Remains> {
    let message = Message::new(Type::Any, Bytes::from_static(ODD.as_bytes())).unwrap();
    let port: reflowd_runtime::PortName = "in".parse().unwrap();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03";
    let trace = Trace::of_text(parent, Some("a=1,b=2")).map(Arc::new);
    let one = Envelope::entering(port.clone(), message.clone(), trace);
    let two = Envelope {
        links: Some([one.id].into()),
        hops: 7,
        replayed: true,
        judged: true,
        ..Envelope::entering(port, message, None)
    };
    let state = State::new("{ \"n\": 1.50 }").unwrap();
    let state = Some(EpochState::found(state, Epoch::numbered(3)));
    let a = Remains { state, messages: vec![one, two] };
    [("a".parse().unwrap(), a), ("idle".parse().unwrap(), Remains::default())].into()
}

fn sets() -> (TempDir, SavedSets) {
    let temp = tempfile::tempdir().unwrap();
    let sets = SavedSets::open(temp.path().into());
    (temp, sets)
}

#[test]
fn a_set_comes_back_as_it_was() {
    let (_temp, sets) = sets();
    let before = remains();
    sets.write(&before).unwrap();
    let after = sets.load(&Events::default()).unwrap().unwrap().into_remains();
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
    let message = &after[&"a".parse::<ActorName>().unwrap()].messages[0].message;
    assert_eq!(message.data(), ODD.as_bytes());
}

#[test]
fn a_set_is_taken_up_once() {
    let (temp, sets) = sets();
    sets.write(&remains()).unwrap();
    sets.remove().unwrap();
    assert!(sets.load(&Events::default()).unwrap().is_none());
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
}

#[test]
fn a_set_that_is_cut_anywhere_is_not_read() {
    let (_temp, sets) = sets();
    sets.write(&remains()).unwrap();
    let whole = fs::read(sets.set()).unwrap();
    for length in 0..whole.len() {
        assert!(decode(&whole[..length]).is_err(), "cut at {length}");
    }
}

#[test]
fn a_set_with_a_flipped_bit_is_not_read() {
    let (_temp, sets) = sets();
    sets.write(&remains()).unwrap();
    let mut bytes = fs::read(sets.set()).unwrap();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&bytes).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn what_cannot_be_read_is_kept_aside() {
    for (text, why) in [
        (&b"reflowd saved 2\nwhatever"[..], Unreadable::Version),
        (b"something else", Unreadable::Damaged),
        (b"", Unreadable::Damaged),
    ] {
        assert_eq!(decode(text).unwrap_err(), why);
        let (temp, sets) = sets();
        fs::write(sets.set(), text).unwrap();
        let events = Events::default();
        assert!(sets.load(&events).unwrap().is_none());
        assert_eq!(events.since(0).0[0].kind.name(), "data-damaged");
        let aside = fs::read_dir(temp.path()).unwrap().next().unwrap().unwrap();
        assert!(aside.file_name().to_str().unwrap().starts_with("unreadable-"));
        assert_eq!(fs::read(aside.path()).unwrap(), text);
    }
}

#[test]
fn half_a_set_that_was_being_written_is_not_seen() {
    let (_temp, sets) = sets();
    fs::write(sets.unfinished(), FIRST_LINE).unwrap();
    assert!(sets.load(&Events::default()).unwrap().is_none());
    sets.write(&remains()).unwrap();
    assert!(sets.load(&Events::default()).unwrap().is_some());
}

#[test]
fn a_disk_that_takes_nothing_keeps_no_half_set() {
    let (_temp, sets) = sets();
    std::os::unix::fs::symlink("/dev/full", sets.unfinished()).unwrap();
    sets.write(&remains()).unwrap_err();
    assert!(sets.load(&Events::default()).unwrap().is_none());
}

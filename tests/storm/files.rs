//! New versions by every way in which files come to be on a disk.
//!
//! There are no rescans within the hour: what is not noticed when it happens is never live.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use super::{Row, digest, nothing_changed, sha256, size};
use crate::{
    load::quantile,
    random::Random,
    rig::{World, inflated, shaky},
};

const CONFIG: &str = r#"
[daemon]
modules = "../modules"
data = "../data"
rescan = "1h"
[actors.work]
module = "work"
[actors.screen]
module = "std:stdout"
[[wires]]
from = "work.out"
to = "screen.in"
"#;

/// Puts a module with this stamp in the place of another.
type Way = (&'static str, fn(&World, &[u8], &str));

const WAYS: [Way; 7] = [
    ("cp", |world, bytes, _| run("cp", &[&incoming(world, bytes), &target(world)])),
    ("mv", |world, bytes, _| run("mv", &[&incoming(world, bytes), &target(world)])),
    ("install", |world, bytes, _| {
        run("install", &["-m644".as_ref(), &incoming(world, bytes), &target(world)]);
    }),
    ("rsync", |world, bytes, stamp| {
        let temporary = world.path(&format!("modules/.work.wasm.{stamp}"));
        let mut file = File::create(&temporary).unwrap();
        for piece in bytes.chunks(32 << 10) {
            file.write_all(piece).unwrap();
        }
        drop(file);
        fs::rename(temporary, target(world)).unwrap();
    }),
    ("ConfigMap", |world, bytes, stamp| {
        // A folder for each version, and a link to the one that counts, which the name leads by.
        let (data, link) = (world.path("modules/..data"), target(world));
        let former = fs::read_link(&data).ok();
        let folder = format!("..{stamp}-{}", former.is_some());
        fs::create_dir_all(world.path("modules").join(&folder)).unwrap();
        fs::write(world.path("modules").join(&folder).join("work.wasm"), bytes).unwrap();
        let temporary = world.path("modules/..data_tmp");
        symlink(&folder, &temporary).unwrap();
        fs::rename(&temporary, &data).unwrap();
        if !link.is_symlink() {
            symlink("..data/work.wasm", &temporary).unwrap();
            fs::rename(&temporary, &link).unwrap();
        }
        if let Some(former) = former.filter(|former| *former != Path::new(&folder)) {
            fs::remove_dir_all(world.path("modules").join(former)).unwrap();
        }
    }),
    ("sed -i", |world, _, stamp| {
        let edit = format!("s/SHAKY r[0-9]*/SHAKY {stamp}/");
        run("sed", &["-i".as_ref(), edit.as_ref(), &target(world)]);
    }),
    ("slow writes", |world, bytes, _| {
        let mut file = File::create(target(world)).unwrap();
        for piece in bytes.chunks(bytes.len() / 16 + 1) {
            file.write_all(piece).unwrap();
            file.sync_data().unwrap();
        }
    }),
];

fn target(world: &World) -> std::path::PathBuf {
    world.path("modules/work.wasm")
}

/// The module somewhere else on the same disk.
fn incoming(world: &World, bytes: &[u8]) -> std::path::PathBuf {
    let path = world.path("incoming.wasm");
    fs::write(&path, bytes).unwrap();
    path
}

fn run(program: &str, args: &[&Path]) {
    let status = Command::new(program).args(args).env("LC_ALL", "C").status().unwrap();
    assert!(status.success(), "{program} {args:?}: {status}");
}

/// A module large enough that copying it takes a while.
fn module(stamp: &str) -> Vec<u8> {
    inflated(&shaky(stamp, "steady"), 1 << 20, 1)
}

#[test]
fn files_that_come_by_any_way_go_live_whole_and_once() {
    let mut random = Random::seeded();
    let operations = size(40, 300);
    let world = World::new(CONFIG);
    let mut stamp = "r0000".to_owned();
    world.module("work", &module(&stamp));
    let daemon = world.start();
    let (mut live, mut generation) = (sha256(&module(&stamp)), 1);
    assert_eq!(digest(&daemon, "work"), live);
    let mut took: Vec<Duration> = Vec::new();
    let mut slowest: BTreeMap<(&str, &str), Duration> = BTreeMap::new();
    let mut equal = 0;
    for n in 1..=operations {
        let (name, put) = random.one_of(&WAYS);
        if random.below(5) == 0 {
            put(&daemon.world, &module(&stamp), &stamp);
            nothing_changed(&daemon.reload());
            assert_eq!(daemon.actor("work")["generation"], generation, "{name}, the same content");
            equal += 1;
            continue;
        }
        stamp = format!("r{n:04}");
        let bytes = module(&stamp);
        let whole = sha256(&bytes);
        let link = target(&daemon.world).is_symlink() && ["cp", "slow writes"].contains(&name);
        put(&daemon.world, &bytes, &stamp);
        let written = Instant::now();
        assert_eq!(sha256(&fs::read(target(&daemon.world)).unwrap()), whole, "{name}");
        daemon.until("the new content is live", |d| {
            let now = digest(d, "work");
            assert!(now == live || now == whole, "{name}: {now} is neither old nor new");
            now == whole
        });
        let time = written.elapsed();
        took.push(time);
        let slowest = slowest.entry((name, if link { "by a link" } else { "" })).or_default();
        *slowest = time.max(*slowest);
        (live, generation) = (whole, generation + 1);
        assert_eq!(daemon.actor("work")["generation"], generation, "{name}");
    }
    Row {
        name: "file operations",
        size: format!("{operations} operations, {equal} of them with equal content"),
        messages: None,
        figures: format!(
            "live after the last byte p50 {:.2?}, p99 {:.2?}, at most {:.2?} ({slowest:.2?}); \
             swaps {}, of a wrong digest 0",
            quantile(&took, 500),
            quantile(&took, 990),
            quantile(&took, 1000),
            generation - 1
        ),
    }
    .print();
    assert_eq!(daemon.sum("reflowd_swaps_total"), f64::from(generation - 1));
}

//! The README's tutorial, taken from the README itself: its commands are run, and what it shows
//! of their output has to be what comes.

use std::{fs, process::Command};

use serde_json::Value;

use crate::{
    rig::{Daemon, REFLOWD, World, repository},
    sample::sample,
};

/// The README.
struct Readme(String);

impl Readme {
    fn read() -> Self {
        Self(fs::read_to_string(repository().join("README.md")).unwrap())
    }

    /// The lines of each block of code or output.
    fn blocks(&self) -> Vec<Vec<&str>> {
        let mut blocks = vec![Vec::new()];
        for line in self.0.lines() {
            let last = blocks.last_mut().unwrap();
            match line.strip_prefix("    ") {
                Some(line) => last.push(line),
                // An empty line stands within a block too.
                None if line.is_empty() && !last.is_empty() => last.push(line),
                None => blocks.push(Vec::new()),
            }
        }
        blocks
    }

    /// A command whose line begins so, without its prompt, and what is shown below it.
    #[track_caller]
    fn command(&self, beginning: &str) -> (String, String) {
        for block in self.blocks() {
            let mut lines = block.into_iter().peekable();
            while let Some(line) = lines.next() {
                let Some(mut command) = line.strip_prefix("$ ").map(str::to_owned) else {
                    continue;
                };
                while let Some(first) = command.strip_suffix('\\') {
                    command = format!("{first}{}", lines.next().unwrap());
                }
                let mut output = Vec::new();
                while let Some(line) = lines.next_if(|line| !line.starts_with("$ ")) {
                    output.push(line);
                }
                if command.starts_with(beginning) {
                    return (command, output.join("\n"));
                }
            }
        }
        panic!("the README has no command `{beginning}`");
    }

    /// The lines that begin so, within blocks.
    fn lines(&self, beginning: &str) -> Vec<&str> {
        let blocks = self.blocks().into_iter().flatten();
        blocks.filter(|line| line.starts_with(beginning)).collect()
    }

    /// The one line that begins so.
    #[track_caller]
    fn line(&self, beginning: &str) -> &str {
        let lines = self.lines(beginning);
        assert_eq!(lines.len(), 1, "`{beginning}` is in the README: {lines:#?}");
        lines[0]
    }

    /// What the text says to do, which a test can only do as it says.
    #[track_caller]
    fn says(&self, text: &str) {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(&self.0).contains(&words(text)), "the README does not say: {text}");
    }
}

/// What has to be the same of an output: all but figures, and how it is set. Digests are no
/// figures.
fn shape(output: &str) -> String {
    let is_digest = |word: &str| word.len() == 12 && word.chars().all(|c| c.is_ascii_hexdigit());
    let word = |word: &str| {
        let value = word.rsplit('=').next().unwrap_or(word).trim_end_matches(':');
        if is_digest(value) {
            return word.to_owned();
        }
        let mut out = String::new();
        for c in word.chars() {
            match c {
                '0'..='9' if out.ends_with('0') => {}
                '0'..='9' => out.push('0'),
                '.' if out.ends_with('0') => {}
                c => out.push(c),
            }
        }
        out
    };
    output.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// The keys of an object, in their order.
fn keys(line: &str) -> Vec<String> {
    let object: Value = serde_json::from_str(line).unwrap();
    object.as_object().unwrap().keys().cloned().collect()
}

/// A terminal in the folder of the tutorial.
struct Terminal<'a> {
    world: &'a World,
}

impl Terminal<'_> {
    /// Runs a command as the README has it: its exit code, and all that it says.
    fn run(&self, command: &str) -> (Option<i32>, String) {
        let command = command.replace("./target/release/reflowd", REFLOWD);
        let mut shell = Command::new("sh");
        shell.args(["-c", &command]).current_dir(self.world.path(""));
        let output = shell.env_clear().env("PATH", "/usr/bin:/bin").output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), self.elided(&said))
    }

    /// The same with this folder's path left out, as the README does.
    fn elided(&self, said: &str) -> String {
        let folder = self.world.path("").canonicalize().unwrap();
        said.replace(folder.to_str().unwrap(), "…")
    }

    #[track_caller]
    fn check(&self, (command, shown): &(String, String), code: i32) {
        let (exit, said) = self.run(command);
        assert_eq!(shape(&said), shape(shown), "`{command}` says:\n{said}\nthe README:\n{shown}");
        assert_eq!(exit, Some(code), "{command}: {said}");
    }
}

/// Waits until the log has such a line.
#[track_caller]
fn is_logged(daemon: &Daemon, shown: &str) {
    let shown = shape(shown);
    daemon.until(&format!("the log has `{shown}`"), |daemon| {
        let log = Terminal { world: &daemon.world }.elided(&daemon.log_text());
        let mut lines = log.lines().filter_map(|line| line.split_once(" INFO "));
        lines.any(|(_, line)| shape(&format!("INFO {line}")) == shown)
    });
}

#[test]
fn the_tutorial_goes_as_the_readme_shows_it() {
    let readme = Readme::read();
    let world = sample();
    let mut command = world.command(&[]);
    command.env("REFLOWD_LOG_FORMAT", "text");
    let mut daemon = world.start_as(command);
    let config = daemon.world.path("config/reflowd.toml");
    let original = fs::read_to_string(&config).unwrap();
    let module = fs::read(daemon.world.path("modules/magnitude-filter.wasm")).unwrap();

    let blocks = readme.blocks();
    let ready = blocks.iter().find(|block| block.first() == Some(&"ready")).unwrap();
    for shown in ready.iter().skip(1).filter(|line| !line.is_empty()) {
        assert_eq!(daemon.line().unwrap(), *shown);
    }

    readme.says("change `min_magnitude = 4.5` to `2.5` and save");
    fs::write(&config, original.replace("min_magnitude = 4.5", "min_magnitude = 2.5")).unwrap();
    is_logged(
        &daemon,
        readme.line("INFO engine swapped actor=filter module=magnitude-filter generation=2"),
    );

    let (code, said) = Terminal { world: &daemon.world }.run(readme.line("cp modules/versions/"));
    assert_eq!(code, Some(0), "{said}");
    is_logged(&daemon, readme.line("INFO module loaded"));
    is_logged(
        &daemon,
        readme.line("INFO engine swapped actor=filter module=magnitude-filter generation=3"),
    );
    let classed = readme.lines("{\"region\":").into_iter().find(|line| line.contains("class"));
    let line = loop {
        let line = daemon.line().unwrap();
        if line.contains("class") {
            break line;
        }
    };
    assert_eq!(keys(&line), keys(classed.unwrap()));

    daemon.until("the trial is over", |daemon| daemon.actor("filter")["on_trial"] == false);
    let terminal = Terminal { world: &daemon.world };
    terminal.check(&readme.command("./target/release/reflowd ps"), 0);
    terminal.check(&readme.command("./target/release/reflowd send filter.quake --wait"), 0);

    readme.says("`reload` ends with exit code 1");
    assert_eq!(terminal.run(&readme.command("echo 'not a module'").0).0, Some(0));
    terminal.check(&readme.command("./target/release/reflowd reload"), 1);
    assert_eq!(daemon.actor("filter")["in_sync"], false);
    let ps = terminal.run("./target/release/reflowd ps filter").1;
    assert!(ps.contains("differs"), "{ps}");

    readme.says("Put the module back with `git checkout modules/magnitude-filter.wasm`.");
    daemon.world.module("magnitude-filter", &module);
    readme.says("such as a line `maibox = 3` below `[actors.screen]`");
    let wrong = fs::read_to_string(&config).unwrap();
    let wrong = wrong.replace("[actors.screen]\n", "[actors.screen]\nmaibox = 3\n");
    daemon.world.config(&wrong);
    let check = readme.command("./target/release/reflowd check");
    terminal.check(&check, 78);
    // The place is where it is in the file.
    assert!(terminal.run(&check.0).1.contains("config/reflowd.toml:34:1\n"));
    assert!(check.1.contains("config/reflowd.toml:34:1\n"));

    daemon.world.config(&original);
    daemon.reload();
    let shown = readme.line("INFO stopped: everything was drained").to_owned();
    daemon.signal("-INT");
    let (status, last, _) = daemon.ended();
    assert!(status.success(), "{last}");
    let (_, last) = last.split_once(" INFO ").unwrap();
    assert_eq!(shape(&format!("INFO {last}")), shape(&shown));
}

#[test]
fn a_flow_of_ones_own_goes_as_the_readme_shows_it() {
    let readme = Readme::read();
    let blocks = readme.blocks();
    let flow = blocks.iter().find(|block| block.first() == Some(&"# my.toml")).unwrap();
    let head = Some(&"[actors.region-count]");
    let adopted = blocks.iter().find(|block| block.first() == head).unwrap();
    let world = World::new("");
    world.put("my.toml", flow.join("\n").as_bytes());
    readme.says("`reflowd check my.toml` answers `good: 2 actors, 1 wire`");
    let check = |world: &World| {
        let output = world.run(&["check", "my.toml"]);
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    assert_eq!(check(&world).trim_end(), "good: 2 actors, 1 wire");
    let module = fs::read(repository().join("modules/region-count.wasm")).unwrap();
    world.module("region-count", &module);
    assert_eq!(check(&world).trim_end(), "good: 3 actors (1 for its file alone), 1 wire");
    world.put("my.toml", [flow.join("\n"), adopted.join("\n")].join("\n").as_bytes());
    assert!(check(&world).starts_with("good: 3 actors, 2 wires"), "{}", check(&world));
}

//! `reflowd graph`: the flow as a drawing, or as JSON.
//!
//! The figures are a daemon's. Where none runs, the drawing is what the configuration says,
//! in the same form and without figures.

use std::{fmt::Write as _, path::Path};

use clap::{Args, ValueEnum};

use super::{Client, Exit, Outcome, Stop, client::Places, note, print_data};
use crate::{
    admin::{Edge, Graph, LiveEdge, LiveNode, Node},
    config::{self, Config, Environment, Sources},
};

/// How to draw.
#[derive(Debug, Args)]
pub(crate) struct Draw {
    /// The language of the drawing
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Print JSON
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Draw what the configuration says, whether or not a daemon runs
    #[arg(long)]
    offline: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For Markdown and documentation
    #[default]
    Mermaid,
    /// For Graphviz
    Dot,
}

/// Draws the flow.
pub(super) async fn graph(places: &Places, config: Option<&Path>, wanted: Draw) -> Outcome {
    let graph = match wanted.offline {
        true => configured(config)?,
        false => match Client::connect(places).await {
            Ok(mut client) => client.get("/v1/graph").await?,
            Err(Stop { exit: Exit::NoDaemon, error }) => {
                // Whoever names a socket wants to know that nobody is there.
                if places.is_given() {
                    return Err(Stop { exit: Exit::NoDaemon, error });
                }
                note("no daemon answers: this is what the configuration says");
                configured(config)?
            }
            Err(stop) => return Err(stop),
        },
    };
    let text = match (wanted.json, wanted.format) {
        (true, _) => {
            let value = serde_json::to_value(&graph).map_err(anyhow::Error::from)?;
            format!("{value:#}\n")
        }
        (false, Format::Mermaid) => mermaid(&graph),
        (false, Format::Dot) => dot(&graph),
    };
    print_data(text.as_bytes())?;
    Ok(Exit::Done)
}

/// The flow that the configuration describes.
fn configured(flag: Option<&Path>) -> Result<Graph, Stop> {
    let environment = Environment::of_process();
    let refuse = |report: config::Report| {
        Stop::new(
            Exit::Config,
            anyhow::anyhow!("the configuration is bad\n{}", report.render(true)),
        )
    };
    let path = config::locate(flag, &environment).map_err(refuse)?;
    let (config, report) = config::parse(Sources::read(&path, &environment), &environment);
    if report.errors() > 0 {
        return Err(refuse(report));
    }
    Ok(of_config(&config))
}

fn of_config(config: &Config) -> Graph {
    let actors = config.flow.actors.iter().map(|(name, spec)| {
        let wires = &config.flow.wires;
        let ports = |names: Vec<&str>| {
            let mut names: Vec<String> = names.into_iter().map(ToOwned::to_owned).collect();
            names.sort();
            names.dedup();
            names
        };
        let into = wires.iter().filter(|wire| wire.to.actor == *name);
        let out = wires.iter().filter(|wire| wire.from.actor == *name);
        Node {
            name: name.to_string(),
            module: Some(spec.module.to_string()),
            component: None,
            // Those that are wired: what else a module has stands in the module.
            inports: ports(into.map(|wire| wire.to.port.as_str()).collect()),
            outports: ports(out.map(|wire| wire.from.port.as_str()).collect()),
            live: None,
        }
    });
    let wires = config.flow.wires.iter().map(|wire| Edge {
        from: wire.from.to_string(),
        to: wire.to.to_string(),
        overflow: wire.overflow,
        live: None,
    });
    Graph { actors: actors.collect(), wires: wires.collect() }
}

/// How a node is to stand out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Plain,
    Odd,
    Bad,
}

fn look(live: Option<&LiveNode>) -> Look {
    match live.map(|live| (live.state.as_str(), live.on_trial)) {
        None | Some(("active", false)) => Look::Plain,
        Some(("failed" | "stopped", _)) => Look::Bad,
        Some(_) => Look::Odd,
    }
}

/// What stands in a node, line by line.
fn lines_of(node: &Node) -> Vec<String> {
    let mut lines = vec![node.name.clone()];
    lines.extend(node.module.clone());
    if let Some(live) = &node.live {
        let mut state = live.state.clone();
        if live.on_trial {
            state.push_str(", on trial");
        }
        if let Some(generation) = live.generation {
            state.push_str(&format!(", generation {generation}"));
        }
        lines.push(state);
        let mut figures = match live.source {
            true => format!("{} sent", live.turns),
            false => format!("{} turns, {}/{} queued", live.turns, live.queued, live.mailbox),
        };
        if live.failures > 0 {
            figures.push_str(&format!(", {} failed", live.failures));
        }
        lines.push(figures);
    }
    lines
}

/// What stands at a wire, line by line.
fn words_of(edge: &Edge) -> Vec<String> {
    let port = |end: &str| end.split_once('.').map_or(String::new(), |(_, port)| port.to_owned());
    let mut words = vec![format!("{} → {}", port(&edge.from), port(&edge.to))];
    if let Some(LiveEdge { emitted: _, accepted, refused, pending }) = edge.live {
        let mut figures = accepted.to_string();
        if pending > 0 {
            figures.push_str(&format!(", {pending} waiting"));
        }
        if refused > 0 {
            figures.push_str(&format!(", {refused} refused"));
        }
        words.push(figures);
    }
    words
}

/// The number of the node at one end of a wire: names may be words of the drawing's language,
/// numbers are not.
fn number_of(graph: &Graph, end: &str) -> Option<usize> {
    let actor = end.split_once('.').map_or(end, |(actor, _)| actor);
    graph.actors.iter().position(|node| node.name == actor)
}

fn mermaid(graph: &Graph) -> String {
    let text = |lines: Vec<String>| {
        let lines: Vec<_> = lines.iter().map(|line| in_mermaid(line)).collect();
        lines.join("<br>")
    };
    let mut out = String::from("flowchart LR\n");
    let mut add = |line: String| writeln!(out, "    {line}").expect("a string takes everything");
    for (n, node) in graph.actors.iter().enumerate() {
        let label = text(lines_of(node));
        match node.module.as_deref() {
            Some(module) if module.starts_with("std:") => add(format!("a{n}([\"{label}\"])")),
            _ => add(format!("a{n}[\"{label}\"]")),
        }
        match look(node.live.as_ref()) {
            Look::Plain => {}
            Look::Odd => add(format!("style a{n} stroke:#b80,stroke-width:2px")),
            Look::Bad => add(format!("style a{n} stroke:#c00,stroke-width:3px")),
        }
    }
    for edge in &graph.wires {
        if let (Some(from), Some(to)) = (number_of(graph, &edge.from), number_of(graph, &edge.to)) {
            add(format!("a{from} -->|\"{}\"| a{to}", text(words_of(edge))));
        }
    }
    out
}

/// Text within a quoted label: nothing in it has a meaning there.
fn in_mermaid(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '"' | '#' | '&' | '<' | '>' | ';' | '`' | '\\' | '*' | '_' | '~' => {
                out.push_str(&format!("#{};", u32::from(c)));
            }
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn dot(graph: &Graph) -> String {
    let text = |lines: Vec<String>| {
        let lines: Vec<_> = lines.iter().map(|line| in_dot(line)).collect();
        lines.join("\\n")
    };
    let mut out = String::from("digraph reflowd {\n    rankdir=LR;\n    node [shape=box];\n");
    let mut add = |line: String| writeln!(out, "    {line}").expect("a string takes everything");
    for (n, node) in graph.actors.iter().enumerate() {
        let mut attributes = format!("label=\"{}\"", text(lines_of(node)));
        if node.module.as_deref().is_some_and(|module| module.starts_with("std:")) {
            attributes.push_str(", style=rounded");
        }
        match look(node.live.as_ref()) {
            Look::Plain => {}
            Look::Odd => attributes.push_str(", color=orange, penwidth=2"),
            Look::Bad => attributes.push_str(", color=red, penwidth=3"),
        }
        add(format!("a{n} [{attributes}];"));
    }
    for edge in &graph.wires {
        if let (Some(from), Some(to)) = (number_of(graph, &edge.from), number_of(graph, &edge.to)) {
            add(format!("a{from} -> a{to} [label=\"{}\"];", text(words_of(edge))));
        }
    }
    out.push_str("}\n");
    out
}

/// Text within a quoted string.
fn in_dot(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(module: &str) -> Graph {
        let live = LiveNode {
            state: "failed".into(),
            generation: Some(2),
            on_trial: false,
            source: false,
            queued: 3,
            mailbox: 8,
            turns: 5,
            failures: 1,
        };
        let node = |name: &str, module: &str, live| Node {
            name: name.into(),
            module: Some(module.into()),
            component: None,
            inports: vec![],
            outports: vec![],
            live,
        };
        let counts = LiveEdge { emitted: 9, accepted: 7, refused: 1, pending: 1 };
        Graph {
            actors: vec![node("end", "std:interval", None), node("b", module, Some(live))],
            wires: vec![Edge {
                from: "end.out".into(),
                to: "b.in.x".into(),
                overflow: None,
                live: Some(counts),
            }],
        }
    }

    #[test]
    fn a_flow_is_drawn_in_mermaid() {
        assert_eq!(
            mermaid(&graph("m")),
            "flowchart LR\n    \
             a0([\"end<br>std:interval\"])\n    \
             a1[\"b<br>m<br>failed, generation 2<br>5 turns, 3/8 queued, 1 failed\"]\n    \
             style a1 stroke:#c00,stroke-width:3px\n    \
             a0 -->|\"out → in.x<br>7, 1 waiting, 1 refused\"| a1\n"
        );
    }

    #[test]
    fn a_flow_is_drawn_in_dot() {
        assert_eq!(
            dot(&graph("m")),
            "digraph reflowd {\n    rankdir=LR;\n    node [shape=box];\n    \
             a0 [label=\"end\\nstd:interval\", style=rounded];\n    \
             a1 [label=\"b\\nm\\nfailed, generation 2\\n5 turns, 3/8 queued, 1 failed\", color=red, penwidth=3];\n    \
             a0 -> a1 [label=\"out → in.x\\n7, 1 waiting, 1 refused\"];\n}\n"
        );
    }

    #[test]
    fn no_name_can_leave_its_label() {
        let wild = "x\"]\nclick a0 \"javascript:1\"; <b>#quot;\\";
        let drawn = mermaid(&graph(wild));
        assert_eq!(drawn.lines().count(), 5, "{drawn}");
        assert!(
            !drawn.contains("<b>") && !drawn.contains("x\"") && !drawn.contains("#quot;"),
            "{drawn}"
        );
        let drawn = dot(&graph(wild));
        assert_eq!(drawn.lines().count(), 7, "{drawn}");
        assert!(drawn.contains(r##"x\"] click a0 \"javascript:1\"; <b>#quot;\\\n"##), "{drawn}");
    }
}

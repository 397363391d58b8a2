//! The connectors that talk to the outside, with the outside at their other end.

mod ingress;
mod egress;
mod inside;
mod files;

use std::{
    io::{BufRead, BufReader, Write},
    iter, mem,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
};

use serde_json::Value;

use crate::rig::{Daemon, PATIENCE};

/// The head of every configuration here.
const HEAD: &str =
    "[daemon]\nmodules = \"../modules\"\ndata = \"../data\"\nquiet = \"10ms\"\nautostart = false\n";

/// What came back for a request, headers and all.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The value of a header; its name in lower case.
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

/// A connection that stays open.
struct Client(BufReader<TcpStream>);

impl Client {
    fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// Writes a request without waiting for what comes back.
    fn write(&mut self, method: &str, path: &str, headers: &str, body: &str) {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        );
        // The daemon may answer, and close, before it has read everything.
        _ = self.0.get_mut().write_all(request.as_bytes());
    }

    fn read(&mut self) -> Reply {
        self.try_read().expect("the daemon closed the connection")
    }

    /// What comes back; nothing where the connection is closed first.
    fn try_read(&mut self) -> Option<Reply> {
        let (head, body) = read_message(&mut self.0)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
        Some(Reply { status, head, body })
    }

    fn json(&mut self, method: &str, path: &str, body: &str) -> Reply {
        self.write(method, path, "Content-Type: application/json\r\n", body);
        self.read()
    }

    fn post(&mut self, path: &str, body: &str) -> Reply {
        self.json("POST", path, body)
    }
}

/// The head and the body of a request or an answer; nothing at the end of the connection.
fn read_message(reader: &mut impl BufRead) -> Option<(String, String)> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        head.push_str(&line);
    }
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    Some((head, String::from_utf8(body).unwrap()))
}

/// Where an actor listens, by the daemon's log. The last word counts.
fn address(daemon: &Daemon, actor: &str) -> SocketAddr {
    let find = |daemon: &Daemon| {
        let log = daemon.log_text();
        let lines = log.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut said = lines.filter(|l| l["message"] == "listening" && l["actor"] == actor);
        said.find_map(|line| line["address"].as_str()?.parse().ok())
    };
    daemon.until("it listens", |daemon| find(daemon).is_some());
    find(daemon).unwrap()
}

/// How a receiver meets a request.
#[derive(Clone)]
enum Meets {
    /// It answers with a status, further header lines and a body.
    With(u16, &'static str, String),
    /// It says that the body has this many bytes more than come.
    Stalls(usize, String),
    /// It closes the connection.
    Closes,
    /// It lets the connection break before it has read anything.
    Resets,
}

impl Meets {
    /// JSON; a status of 0 is the end of the connection.
    fn json(&(status, body): &(u16, &str)) -> Self {
        match status {
            0 => Self::Closes,
            _ => Self::With(status, "", body.into()),
        }
    }
}

/// A receiver of requests, which meets them as it is told, one after the other.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    requests: mpsc::Receiver<(String, String)>,
}

impl Receiver {
    /// Meets the requests that come as the list says, and every further one as its last.
    fn meeting(listener: TcpListener, list: Vec<Meets>) -> Self {
        let address = listener.local_addr().unwrap();
        let (sender, requests) = mpsc::sync_channel(1000);
        thread::spawn(move || {
            let last = list.last().cloned();
            let mut next = list.into_iter().chain(iter::repeat_with(|| last.clone().unwrap()));
            let mut meets = next.next().unwrap();
            let mut stalled = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                if let Meets::Resets = meets {
                    // What is not read when the connection is closed resets it.
                    _ = stream.peek(&mut [0]);
                    meets = next.next().unwrap();
                    continue;
                }
                let mut reader = BufReader::new(stream);
                while let Some(request) = read_message(&mut reader) {
                    if sender.send(request).is_err() {
                        return;
                    }
                    let (head, body, missing) = match mem::replace(&mut meets, next.next().unwrap())
                    {
                        Meets::With(status, lines, body) => {
                            (format!("{status} Said\r\n{lines}"), body, 0)
                        }
                        Meets::Stalls(missing, body) => ("200 OK\r\n".into(), body, missing),
                        Meets::Closes | Meets::Resets => break,
                    };
                    let length = body.len() + missing;
                    let answer = format!(
                        "HTTP/1.1 {head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
                    );
                    if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                        break;
                    }
                    if missing > 0 {
                        stalled.push(reader);
                        break;
                    }
                    if let Meets::Resets = meets {
                        break;
                    }
                }
            }
        });
        Self { address, requests }
    }

    fn answering(listener: TcpListener, answers: &[(u16, &str)]) -> Self {
        Self::meeting(listener, answers.iter().map(Meets::json).collect())
    }

    pub(crate) fn new(answers: &[(u16, &str)]) -> Self {
        Self::answering(listener(), answers)
    }

    /// The head and the body of the next request.
    #[track_caller]
    pub(crate) fn next(&self) -> (String, String) {
        self.requests.recv_timeout(PATIENCE).expect("no request came")
    }
}

/// A listener at an address of its own.
fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// The value of a header in the head of a request.
fn header(head: &str, name: &str) -> Option<String> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let mut values = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
    values.next().map(|(_, value)| value.trim().to_owned())
}

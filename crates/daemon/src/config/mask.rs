//! Takes secrets out of what is shown of a configuration.
//!
//! A problem shows the line that it is in, to people, to the log and to whoever may read
//! events; and secrets stand in lines: with a URL, or as the value of a key that asks for
//! one. Each byte of them becomes one `*`, so that places in the text stay where they are.
//!
//! What is shown may be no TOML at all, so this goes by what the text looks like. Where that
//! is in doubt, too much is masked.

use std::ops::Range;

/// Keys with one of these in their name have secrets as their values.
const TELLING: [&str; 8] =
    ["token", "password", "passwd", "passphrase", "secret", "authorization", "api_key", "api-key"];

/// Keys that say where a secret is to be had.
const REFERENCES: [&str; 3] = ["credential", "file", "env"];

/// The table of `[admin]` in which each key is a role and each value a token.
const TOKENS: &str = "tokens";

/// Tables and lists that are followed into each other. Nobody writes as many.
const DEEPEST: usize = 100;

/// A file's text with `*` for each byte of a secret.
pub(super) fn masked(text: &str) -> String {
    let mut reading =
        Reading { text, at: 0, header: Vec::new(), nesting: Vec::new(), secret: Vec::new() };
    reading.file();
    let mut secret = reading.secret;
    secret.extend(urls(text));
    starred(text, &secret)
}

/// A sentence with `*` for each byte of a secret that comes with a URL.
pub(super) fn masked_urls(text: &str) -> String {
    starred(text, &urls(text))
}

/// `text` with `*` in the place of each byte of these stretches, but for ends of lines.
fn starred(text: &str, secret: &[Range<usize>]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for byte in secret.iter().flat_map(Clone::clone) {
        if !matches!(bytes[byte], b'\n' | b'\r') {
            bytes[byte] = b'*';
        }
    }
    String::from_utf8(bytes).expect("whole characters are masked")
}

/// What must not be shown of the URLs in a text: names and passwords, and queries.
fn urls(text: &str) -> Vec<Range<usize>> {
    let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>');
    let mut secret = Vec::new();
    let mut from = 0;
    while let Some(at) = text[from..].find("://") {
        let start = from + at + 3;
        let rest = &text[start..];
        let url = &rest[..rest.find(ends).unwrap_or(rest.len())];
        let authority = &url[..url.find(['/', '?', '#']).unwrap_or(url.len())];
        let port = authority.rsplit_once(':').map_or("", |(_, port)| port);
        // A password may have been written with a character that ends the authority.
        let cut = !authority.contains('@') && !port.bytes().all(|byte| byte.is_ascii_digit());
        let user = if cut { url.rfind('@') } else { authority.rfind('@') };
        secret.extend(user.map(|end| start..start + end));
        let host = user.map_or(0, |end| end + 1);
        let query = url[host..].find('?').map(|query| start + host + query + 1);
        secret.extend(query.map(|query| query..start + url.len()));
        from = start + url.len();
    }
    secret
}

/// Goes through a text and knows by which keys each value is reached.
struct Reading<'t> {
    text: &'t str,
    at: usize,
    /// The keys of the last `[header]`.
    header: Vec<String>,
    /// The keys of the tables and lists that are open, and what closes each.
    nesting: Vec<(Vec<String>, char)>,
    secret: Vec<Range<usize>>,
}

impl Reading<'_> {
    fn file(&mut self) {
        let mut key = Vec::new();
        let mut fresh_line = true;
        while let Some(c) = self.peek() {
            match c {
                '\n' => {
                    self.at += 1;
                    fresh_line = true;
                    key.clear();
                    continue;
                }
                '#' => self.skip_line(),
                '[' if fresh_line && self.is_header() => self.read_header(),
                '=' => {
                    self.at += 1;
                    self.skip_blanks();
                    self.value(&key);
                    key.clear();
                }
                '{' | '[' => {
                    self.open(&[], c);
                }
                '}' | ']' => {
                    self.at += 1;
                    self.close(c);
                    key.clear();
                }
                '"' | '\'' => {
                    let content = self.string();
                    if self.is_in_list() {
                        self.judge(&[], content.clone());
                    }
                    key.push(self.text[content].to_owned());
                }
                ',' => {
                    self.at += 1;
                    key.clear();
                }
                c if c == '.' || c.is_whitespace() => self.at += c.len_utf8(),
                _ => {
                    let word = self.word();
                    if self.is_in_list() {
                        self.judge(&[], word.clone());
                    }
                    key.push(self.text[word].to_owned());
                }
            }
            fresh_line &= c.is_whitespace();
        }
    }

    /// What stands after `=`.
    fn value(&mut self, key: &[String]) {
        match self.peek() {
            Some(c @ ('{' | '[')) => self.open(key, c),
            Some('"' | '\'') => {
                let content = self.string();
                self.judge(key, content);
            }
            Some('\n') | None => {}
            Some(_) => {
                // Something without quotes, which may be all that is wrong with it.
                let start = self.at;
                let rest = &self.text[start..];
                self.at += rest.find(['\n', ',', '}', ']', '#']).unwrap_or(rest.len());
                let length = self.text[start..self.at].trim_end().len();
                self.judge(key, start..start + length);
            }
        }
    }

    /// Masks a value that is reached by `key` from here, if it is a secret.
    fn judge(&mut self, key: &[String], value: Range<usize>) {
        let nested = self.nesting.iter().flat_map(|(keys, _)| keys);
        let mut path = self.header.iter().chain(nested).chain(key).rev().map(String::as_str);
        let Some(last) = path.next() else { return };
        let last = last.to_ascii_lowercase();
        let telling = TELLING.iter().any(|word| last.contains(word));
        let role = path.next() == Some(TOKENS) && matches!(path.next(), None | Some("admin"));
        if (telling || role) && !REFERENCES.contains(&&*last) {
            self.secret.push(value);
        }
    }

    /// Steps over a string and gives what is between its quotes. One that is not closed ends
    /// with its line.
    fn string(&mut self) -> Range<usize> {
        let rest = &self.text[self.at..];
        let quote = &rest[..1];
        let long = quote.repeat(3);
        let (open, close) = if rest.starts_with(&long) { (3, &*long) } else { (1, quote) };
        let body = &rest[open..];
        let mut end = None;
        let mut escaped = false;
        for (i, c) in body.char_indices() {
            if !escaped && body[i..].starts_with(close) {
                end = Some(i);
                break;
            }
            if c == '\n' && open == 1 {
                break;
            }
            escaped = c == '\\' && !escaped && quote == "\"";
        }
        let line = || body.find('\n').unwrap_or(body.len());
        let length = end.unwrap_or_else(|| if open == 1 { line() } else { body.len() });
        let content = self.at + open..self.at + open + length;
        self.at = content.end + if end.is_some() { open } else { 0 };
        content
    }

    /// A word without quotes.
    fn word(&mut self) -> Range<usize> {
        let start = self.at;
        let ends = |c: char| c.is_whitespace() || "=.,{}[]#\"'".contains(c);
        let rest = &self.text[start..];
        self.at += rest.find(ends).unwrap_or(rest.len());
        start..self.at
    }

    /// Whether the line is a `[header]`, and not a list in a list.
    fn is_header(&self) -> bool {
        let inner = self.line().trim_start_matches('[').trim_start();
        !self.is_in_list() || inner.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }

    fn read_header(&mut self) {
        let line = self.line();
        let end = line.find(']').unwrap_or(line.len());
        let inner = line[..end].trim_start_matches('[');
        let bare = |key: &str| key.trim().trim_matches(['"', '\'']).to_owned();
        // Nothing is judged by more than the last of them.
        let keys: Vec<_> = inner.rsplit('.').take(3).map(bare).collect();
        self.header = keys.into_iter().rev().collect();
        self.nesting.clear();
        self.skip_line();
    }

    fn is_in_list(&self) -> bool {
        self.nesting.last().is_some_and(|(_, close)| *close == ']')
    }

    /// Enters a table or a list that `key` has.
    fn open(&mut self, key: &[String], c: char) {
        self.at += 1;
        if self.nesting.len() < DEEPEST {
            self.nesting.push((key.to_vec(), if c == '{' { '}' } else { ']' }));
        }
    }

    /// Leaves what that character closes. What is closed by mistake was not open.
    fn close(&mut self, c: char) {
        if let Some(open) = self.nesting.iter().rposition(|(_, close)| *close == c) {
            self.nesting.truncate(open);
        }
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    /// From here to the end of the line.
    fn line(&self) -> &str {
        let rest = &self.text[self.at..];
        &rest[..rest.find('\n').unwrap_or(rest.len())]
    }

    fn skip_line(&mut self) {
        self.at += self.line().len();
    }

    fn skip_blanks(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start_matches([' ', '\t']).len();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of `text`, exactly the parts in `«»` are masked.
    #[track_caller]
    fn check(marked: &str) {
        let text = marked.replace(['«', '»'], "");
        let mut expected = String::new();
        let mut within = false;
        for c in marked.chars() {
            match c {
                '«' => within = true,
                '»' => within = false,
                '\n' => expected.push('\n'),
                c if within => expected.push_str(&"*".repeat(c.len_utf8())),
                c => expected.push(c),
            }
        }
        assert_eq!(masked(&text), expected);
    }

    #[test]
    fn what_comes_with_a_url_is_masked() {
        check(r#"module = { url = "https://h.example/x.wasm?«token=QSECRET»", sha256 = "zz" }"#);
        check(r#"config = { url = "https://«user:PASSW0RD»@h/", methd = "POST" }"#);
        check(r#"url = "https://«user:PA/S?S»@h/x?«a=b»" # https://h:80/a@b"#);
        check(r#"a = 'http://127.0.0.1:80/a@b' # http://h/?«t=1» and more"#);
        check("url = https://«u:p»@h/x?«t»\nname = 1");
        check("listen = \"[::1]:80\"\nurl = \"https://[::1]:80/x\"");
    }

    #[test]
    fn the_value_of_a_key_that_asks_for_a_secret_is_masked() {
        check("[admin]\ntokens = { operate = \"«literal-é-0123»\", read = { file = \"f\" } }");
        check("[admin.tokens]\nsend = '«literal»'\nread = { env = \"TOKEN\" }");
        check("admin.tokens.read = \"«x»\"\n[actors.tokens]\nmodule = \"m\"");
        check("tokens.read = \"«x»\"\ntokens = [\"«a»\", '«b»']");
        check("[actors.a]\nconfig = { token = \"«x\\\"y»\", listen = \"l\" }\nmodule = \"m\"");
        check("[actors.a.env]\nDB_PASSWORD = \"«hunter2»\"\nOTHER = \"x\"");
        check("headers = { Authorization = \"«Bearer x»\", Accept = \"a\" }");
        check("\"api-key\" = \"\"\"«a\nb\"c»\"\"\"\nx = \"y\"");
        check("[actors.token]\nmodule = \"m\"\nconfig = { secret = { credential = \"c\" } }");
    }

    #[test]
    fn what_is_no_toml_shows_no_secret_either() {
        check("token = «mine» # c\nx = 1");
        check("token = \"«mine»\nx = \"y\"");
        check("tokens = { operate = \"«x»\"\n[actors.a]\nmodule = \"m\"");
        check("a = [1, 2\n[admin.tokens]\nread = «x»");
        check("password =\npassword = «12 34», x = 1");
        check("]]}}[[\ntoken = '«x»'");
    }

    proptest! {
        #[test]
        fn places_stay_where_they_are(text in "([a-z.= \n\"'\\[\\]{},#é\\\\]|://|token|\"\"\")*") {
            let shown = masked(&text);
            prop_assert_eq!(shown.len(), text.len());
            let ends = |text: &str| text.match_indices('\n').map(|(at, _)| at).collect::<Vec<_>>();
            prop_assert_eq!(ends(&shown), ends(&text));
            prop_assert_eq!(masked_urls(&text).len(), text.len());
        }
    }
}

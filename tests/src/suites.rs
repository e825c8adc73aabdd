//! Programs' own test suites, plain and under holo with epochs all the time, compared test by test.

use crate::app::{App, Program, start_plain};
use crate::command;
use crate::node::{Node, Who, hand_over};
use crate::process;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

const PYTHON: &str = "/usr/bin/python3.11";
const PYTHON_TESTS: &str = "/usr/lib/python3.11/test";
const STRESS_NG: &str = "/usr/bin/stress-ng";

/// One suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// A module of CPython's tests; of it only tests that match one of the patterns, or all if there are none.
    Python(&'static str, &'static [&'static str]),
    /// A stressor of stress-ng, for a second, with its own verification.
    StressNg(&'static str),
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Result of each test, by name.
    pub results: BTreeMap<String, String>,
    /// How long it took.
    pub took: Duration,
    /// Epochs that were sealed meanwhile.
    pub epochs: u32,
    /// Why others were not, and how often.
    pub refused: BTreeMap<String, u32>,
}

/// A test whose result under holo is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its name.
    pub test: String,
    /// Result without holo.
    pub plain: String,
    /// Result under holo.
    pub under: String,
}

impl Suite {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Suite::Python(module, _) => format!("python {module}"),
            Suite::StressNg(stressor) => format!("stress-ng {stressor}"),
        }
    }

    fn program(self, dir: &Path) -> Program {
        let dir = dir.to_string_lossy().into_owned();
        let report = format!("{dir}/report.xml");
        match self {
            Suite::Python(module, patterns) => {
                let package = "libpython3.11-testsuite";
                assert!(
                    Path::new(PYTHON_TESTS).join("regrtest.py").exists(),
                    "no {package}: run `make setup`"
                );
                let mut args = vec!["-m", "test", "-v", "-u", "subprocess,cpu", "--tempdir", &dir];
                args.extend(["--junit-xml", &report, "-i", "*VSOCK*"]);
                patterns.iter().for_each(|pattern| args.extend(["-m", pattern]));
                args.push(module);
                Program::new(PYTHON, &args).env("TMPDIR", &dir).env("LANG", "C.UTF-8")
            }
            Suite::StressNg(stressor) => {
                assert!(Path::new(STRESS_NG).exists(), "no stress-ng: run `make setup`");
                let option = format!("--{stressor}");
                let args = [&option, "1", "-t", "1", "--verify", "--oom-avoid", "--temp-path", &dir];
                Program::new(STRESS_NG, &args)
            }
        }
    }

    fn results(self, code: i32, dir: &Path) -> BTreeMap<String, String> {
        let mut results = BTreeMap::new();
        match self {
            Suite::Python(..) => {
                let path = dir.join("report.xml");
                results = junit(&fs::read_to_string(path).unwrap_or_default());
                results.insert("exit status".into(), code.to_string());
            }
            Suite::StressNg(_) => {
                let said = fs::read_to_string(dir.join("stdout")).unwrap_or_default()
                    + &fs::read_to_string(dir.join("stderr")).unwrap_or_default();
                let fails = said.lines().filter(|line| line.contains("stress-ng: fail:")).count();
                results.insert("verification".into(), if fails > 0 { "fail" } else { "pass" }.into());
                results.insert("exit status".into(), code.to_string());
            }
        }
        results
    }

    fn dir(node: &Node, part: &str) -> PathBuf {
        let dir = node.outside("data").join(part);
        hand_over(&dir, node.who());
        dir
    }

    /// Runs it without holo.
    ///
    /// # Panics
    /// When it cannot be started or does not end within `limit`.
    #[must_use]
    pub fn plain(self, limit: Duration) -> Outcome {
        let node = Node::without_agent(Who::Me);
        let dir = Self::dir(&node, "plain");
        let since = Instant::now();
        let mut child = start_plain(&node, &self.program(&dir), "data/plain");
        let status = command::wait_child(&mut child, limit, &self.name());
        let results = self.results(status.code().unwrap_or(-1), &dir);
        Outcome { results, took: since.elapsed(), ..Outcome::default() }
    }

    /// Runs it under holo, with an epoch every `pause`.
    ///
    /// # Panics
    /// When it does not end within `limit`, or leaves a process behind.
    #[must_use]
    pub fn under(self, pause: Duration, limit: Duration) -> Outcome {
        let node = Node::start(Who::Me);
        let dir = Self::dir(&node, "under");
        hand_over(&node.outside("data/root"), node.who());
        let mut outcome = Outcome::default();
        let since = Instant::now();
        let options = ["--park-max", "100ms"];
        let mut app = App::start(&node, "suite", &self.program(&dir), "data/root", &options);
        let code = loop {
            if let Some(code) = app.try_exit() {
                break code;
            }
            assert!(since.elapsed() < limit, "{}: still running after {limit:?}", self.name());
            sleep(pause);
            match app.try_checkpoint(&node) {
                Ok(_) => outcome.epochs += 1,
                // Not known yet, or ended.
                Err(refused) if matches!(refused.code(), 3 | 4) => {}
                Err(refused) => *outcome.refused.entry(without_numbers(&refused.stderr)).or_default() += 1,
            }
        };
        outcome.took = since.elapsed();
        // Said by `holo run`, which becomes the program: its streams are in the other directory.
        for stream in ["stdout", "stderr"] {
            let _ = fs::copy(node.outside("data/root").join(stream), dir.join(stream));
        }
        outcome.results = self.results(code, &dir);
        let left = crate::wait::try_until(Duration::from_secs(3), || {
            let left: Vec<u32> =
                process::marked(&node.mark()).into_iter().filter(|pid| is_app(*pid)).collect();
            left.is_empty().then_some(())
        });
        assert!(left.is_some(), "{}: processes remain: {:?}", self.name(), process::marked(&node.mark()));
        outcome
    }
}

/// Is it none of holo's own?
fn is_app(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    process::alive(pid) && !name.starts_with("holo")
}

/// A reason without its numbers, so that like ones can be counted.
fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    for word in text.trim().trim_start_matches("holo: ").split_whitespace() {
        let word = if word.contains(|c: char| c.is_ascii_digit()) { "N" } else { word };
        out = if out.is_empty() { word.to_owned() } else { out + " " + word };
    }
    out
}

/// Results in a JUnit report: `ok`, `failure`, `error` or `skipped`.
fn junit(text: &str) -> BTreeMap<String, String> {
    let mut results = BTreeMap::new();
    for case in text.split("<testcase ").skip(1) {
        let name =
            case.split_once("name=\"").and_then(|(_, rest)| rest.split_once('"')).map_or("?", |(n, _)| n);
        let head_ends = case.find('>').unwrap_or(0);
        let body = if case[..head_ends].ends_with('/') {
            ""
        } else {
            case.split("</testcase>").next().unwrap_or("")
        };
        let found =
            ["failure", "error", "skipped"].into_iter().find(|kind| body.contains(&format!("<{kind}")));
        results.insert(name.to_owned(), found.unwrap_or("ok").to_owned());
    }
    results
}

/// Tests that came out otherwise.
#[must_use]
pub fn differences(plain: &Outcome, under: &Outcome) -> Vec<Difference> {
    let mut names: Vec<&String> = plain.results.keys().chain(under.results.keys()).collect();
    names.sort();
    names.dedup();
    let result =
        |of: &Outcome, name: &String| of.results.get(name).map_or("missing", String::as_str).to_owned();
    let compared = names.into_iter().map(|name| Difference {
        test: name.clone(),
        plain: result(plain, name),
        under: result(under, name),
    });
    compared.filter(|difference| difference.plain != difference.under).collect()
}

/// Runs a suite both ways, at the same time; what differs is tried again, one after the other and twice at most, since suites have
/// flaws of their own.
///
/// # Panics
/// As [`Suite::plain`] and [`Suite::under`] do.
#[must_use]
pub fn compare(suite: Suite, pause: Duration, limit: Duration) -> (Outcome, Outcome, Vec<Difference>) {
    let (mut plain, mut under) = std::thread::scope(|scope| {
        let plain = scope.spawn(|| suite.plain(limit));
        let under = suite.under(pause, limit);
        let plain = plain.join().unwrap_or_else(|_| panic!("{}: fails without holo", suite.name()));
        (plain, under)
    });
    let mut remaining = differences(&plain, &under);
    for _ in 0..2 {
        if remaining.is_empty() {
            break;
        }
        (plain, under) = (suite.plain(limit), suite.under(pause, limit));
        // Only what differs every time is holo's.
        let now = differences(&plain, &under);
        remaining.retain(|difference| now.iter().any(|other| other.test == difference.test));
    }
    (plain, under, remaining)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_and_compared() {
        let report = "<testsuites><testsuite><testcase name=\"a.b\" time=\"1\"/><testcase name=\"c\"><failure \
                      message=\"x\">y</failure></testcase><testcase name=\"d\"></testcase></testsuite></testsuites>";
        let results = junit(report);
        let expected = [("a.b", "ok"), ("c", "failure"), ("d", "ok")];
        assert_eq!(results.len(), 3);
        assert!(expected.iter().all(|(name, result)| results[*name] == *result), "{results:?}");
        let plain = Outcome { results, ..Outcome::default() };
        let mut under = plain.clone();
        assert!(differences(&plain, &under).is_empty());
        under.results.insert("a.b".into(), "error".into());
        under.results.remove("d");
        let found: Vec<_> = differences(&plain, &under).into_iter().map(|d| (d.test, d.under)).collect();
        assert_eq!(found, [("a.b".into(), "error".to_owned()), ("d".into(), "missing".to_owned())]);
    }

    #[test]
    fn reasons_are_counted_without_their_numbers() {
        assert_eq!(without_numbers("holo: thread 12 of 3 threads\n"), "thread N of N threads");
    }
}

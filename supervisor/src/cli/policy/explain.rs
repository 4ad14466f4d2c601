//! `provost policy explain`: what a policy says about a path or an address, by which rule.
//!
//! It asks what the sandbox asks: the policy compiled for this machine. So it answers as the kernel will, as far as paths
//! go; plain file permissions are not looked at.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use provost_sandbox::compile::access::FileAccess;
use provost_sandbox::compile::{CompileContext, compile};
use serde::Serialize;

use super::{load, pretty, print};
use crate::cli::CliResult;
use crate::cli::args::ExplainArgs;
use crate::cli::config::policy_context;
use crate::{NetVerdict, Policy, Protocol, Supervisor};

/// What is said about one act.
#[derive(Debug, Serialize)]
struct Answer {
    subject: String,
    act: &'static str,
    allowed: bool,
    /// It is asked about before it is refused.
    asked: bool,
    rule: String,
}

pub(super) fn run(args: &ExplainArgs) -> CliResult {
    let context = policy_context(None)?;
    let loaded = load(&args.policy, &context)?;
    let policy = loaded.policy;
    let mut answers = Vec::new();
    let paths: Vec<&String> = args
        .what
        .iter()
        .filter(|what| destination(what).is_none())
        .collect();
    if policy.confined && !paths.is_empty() {
        let kernel = kernel()?;
        let compiled = compile(
            &policy,
            &kernel,
            &CompileContext {
                cwd: context.preset.cwd.clone(),
                home: context.preset.home.clone(),
                program: None,
                observe_reads: false,
            },
        )
        .map_err(|error| error.to_string())?;
        for what in &args.what {
            match destination(what) {
                Some(destination) => answers.extend(connect(&policy, &destination)),
                None => {
                    let path = real(&context.preset.cwd, what);
                    for (act, access) in [
                        ("read", FileAccess::Read),
                        ("execute", FileAccess::Execute),
                        ("write", FileAccess::Write),
                        ("create", FileAccess::Create),
                    ] {
                        let verdict = compiled.access.decide(&path, access);
                        answers.push(Answer {
                            subject: path.display().to_string(),
                            act,
                            allowed: verdict.allowed,
                            asked: policy.ask.files && compiled.access.is_asked(&path, access),
                            rule: verdict.rule,
                        });
                    }
                }
            }
        }
    } else {
        for what in &args.what {
            match destination(what) {
                Some(destination) => answers.extend(connect(&policy, &destination)),
                None => answers.push(Answer {
                    subject: what.clone(),
                    act: "all",
                    allowed: true,
                    asked: false,
                    rule: "unconfined: there is no sandbox".to_owned(),
                }),
            }
        }
    }
    if args.json {
        return print(&pretty(&serde_json::json!(answers))?);
    }
    let mut text = String::new();
    let mut last = String::new();
    for answer in answers {
        if answer.subject != last {
            text += &format!("{}\n", super::super::summary::visible(&answer.subject));
            last.clone_from(&answer.subject);
        }
        let word = match (answer.allowed, answer.asked) {
            (true, _) => "allowed",
            (false, true) => "asked",
            (false, false) => "refused",
        };
        text += &format!(
            "  {:<8} {word:<8} {}\n",
            answer.act,
            super::super::summary::visible(&answer.rule)
        );
    }
    print(&text)
}

/// Where a connection would go.
enum Destination {
    Address(SocketAddr),
    Name(String, u16),
}

/// `192.0.2.1:443`, `[::1]:80`, `example.com:443`, each perhaps with `/udp`; what has another slash in it is a path.
fn destination(what: &str) -> Option<(Destination, Protocol)> {
    let (what, protocol) = match what.strip_suffix("/udp") {
        Some(rest) => (rest, Protocol::Udp),
        None => (what, Protocol::Tcp),
    };
    if let Ok(address) = what.parse() {
        return Some((Destination::Address(address), protocol));
    }
    let (name, port) = what.rsplit_once(':')?;
    let plain = |name: &str| {
        name.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    (!name.is_empty() && plain(name))
        .then(|| port.parse().ok())
        .flatten()
        .map(|port| (Destination::Name(name.to_ascii_lowercase(), port), protocol))
}

fn connect(policy: &Policy, (destination, protocol): &(Destination, Protocol)) -> Vec<Answer> {
    let net = &policy.net;
    let answer = |subject: &str, act, verdict: NetVerdict, asks: bool| Answer {
        subject: subject.to_owned(),
        act,
        asked: !verdict.allowed && asks,
        allowed: verdict.allowed,
        rule: verdict.rule,
    };
    let tcp = *protocol == Protocol::Tcp;
    let asks = policy.ask.net && tcp;
    match destination {
        Destination::Address(address) => {
            let (ip, port) = (address.ip(), address.port());
            let subject = format!("{address}/{protocol}");
            let mut answers = vec![answer(&subject, "connect", net.decide(*protocol, ip, port), asks)];
            if tcp {
                answers.push(answer(&subject, "listen", net.decide_listen(ip, port), false));
            }
            answers
        }
        Destination::Name(name, port) => {
            let subject = format!("{name}:{port}/{protocol}");
            let verdict = net.decide_name(*protocol, name, *port);
            vec![answer(&subject, "connect", verdict, asks)]
        }
    }
}

/// Links are followed as far as the path exists.
fn real(cwd: &Path, what: &str) -> PathBuf {
    let path = match (what.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => cwd.join(what),
    };
    for above in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (above.canonicalize(), path.strip_prefix(above)) {
            return if rest.as_os_str().is_empty() {
                real
            } else {
                real.join(rest)
            };
        }
    }
    path
}

fn kernel() -> Result<crate::KernelSupport, String> {
    let runtime = crate::cli::runtime(0)?;
    runtime.block_on(async {
        let supervisor = Supervisor::builder()
            .start()
            .await
            .map_err(|error| error.to_string())?;
        supervisor.kernel().await.map_err(|error| error.to_string())
    })
}

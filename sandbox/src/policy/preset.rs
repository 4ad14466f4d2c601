//! The built-in policies: `read-only`, `workspace-write`, `unconfined`.

use std::path::PathBuf;

use super::nested;
use super::{
    AskPolicy, Degrade, FilePolicy, Limits, NamePolicy, NetMode, NetPolicy, PathRule, Policy,
    PolicyError,
};

/// The presets' names, the default first.
pub const PRESETS: [&str; 3] = ["workspace-write", "read-only", "unconfined"];

/// What a preset needs to know about who runs what where.
#[derive(Debug, Clone)]
pub struct PresetContext {
    /// The command's working directory, absolute and canonical.
    pub cwd: PathBuf,
    /// The user's home, if there is one.
    pub home: Option<PathBuf>,
    /// The effective user id.
    pub uid: u32,
    /// `XDG_RUNTIME_DIR`, where Provost's own sockets are.
    pub runtime_dir: Option<PathBuf>,
}

/// Names below the home that hold credentials, or Provost's own state.
const HOME_SECRETS: [&str; 19] = [
    ".ssh",
    ".aws",
    ".gnupg",
    ".config/gh",
    ".config/gcloud",
    ".config/provost",
    ".local/share/keyrings",
    ".local/state/provost",
    ".azure",
    ".docker",
    ".kube",
    ".netrc",
    ".git-credentials",
    ".config/git/credentials",
    ".npmrc",
    ".pypirc",
    ".pgpass",
    ".password-store",
    ".vault-token",
];

/// What no sandboxed program reads, whoever runs it.
const SYSTEM_SECRETS: [&str; 4] = [
    "/run/provost",
    "/var/lib/provost",
    "/etc/provost",
    "/run/credentials",
];

/// What only root could read, and root's programs should not.
const ROOT_SECRETS: [&str; 11] = [
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/ssl/private",
    "/etc/ssh/ssh_host_rsa_key",
    "/etc/ssh/ssh_host_ecdsa_key",
    "/etc/ssh/ssh_host_ed25519_key",
    "/etc/krb5.keytab",
];

impl Policy {
    /// A built-in policy by name.
    ///
    /// # Errors
    /// An unknown name.
    pub fn preset(name: &str, context: &PresetContext) -> Result<Self, PolicyError> {
        match name {
            "workspace-write" => Ok(Self::confined_preset(name, context, true)),
            "read-only" => Ok(Self::confined_preset(name, context, false)),
            "unconfined" => Ok(Self::unconfined()),
            other => Err(PolicyError::new(
                "policy",
                other,
                format!("no such preset; the presets are {}", PRESETS.join(", ")),
            )),
        }
    }

    fn confined_preset(name: &str, context: &PresetContext, writable: bool) -> Self {
        let source = format!("preset {name}");
        let rule = |path: PathBuf| PathRule::preset(path, &source);
        let mut deny: Vec<PathRule> = SYSTEM_SECRETS.iter().map(|p| rule(p.into())).collect();
        if let Some(home) = context.home.as_ref().filter(|h| h.is_absolute()) {
            deny.extend(HOME_SECRETS.iter().map(|name| rule(home.join(name))));
        }
        if let Some(runtime) = context.runtime_dir.as_ref().filter(|r| r.is_absolute()) {
            deny.push(rule(runtime.join("provost")));
        }
        if context.uid == 0 {
            deny.extend(ROOT_SECRETS.iter().map(|p| rule(p.into())));
            deny.extend(other_homes(context).into_iter().map(rule));
        }
        let (write, protect, unsearched) = if writable {
            let protected = nested::protected(&context.cwd);
            (
                vec![rule(context.cwd.clone())],
                protected.paths.into_iter().map(rule).collect(),
                protected.unsearched,
            )
        } else {
            (Vec::new(), Vec::new(), None)
        };
        Self {
            name: name.to_owned(),
            confined: true,
            files: FilePolicy {
                read: vec![rule("/".into())],
                execute: Vec::new(),
                write,
                deny,
                protect,
                unsearched,
                private_tmp: writable,
            },
            net: NetPolicy {
                mode: NetMode::Off,
                source,
                unix: Vec::new(),
                allow: Vec::new(),
                listen: Vec::new(),
                names: NamePolicy::default(),
                proxy: false,
            },
            refuse_syscalls: Vec::new(),
            limits: Limits::default(),
            ask: AskPolicy::default(),
            degrade: Degrade::Required,
        }
    }
}

/// Homes of other people, as far as they are where homes usually are. A working directory below one of them
/// stays readable, because it is named.
fn other_homes(context: &PresetContext) -> Vec<PathBuf> {
    let mut homes: Vec<PathBuf> = std::fs::read_dir("/home")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    homes.push("/root".into());
    homes.retain(|home| {
        let own = context.home.as_ref().is_some_and(|own| own.starts_with(home));
        !own && home.is_dir()
    });
    homes
}

impl PresetContext {
    /// The context of this process: its working directory, `HOME`, user and `XDG_RUNTIME_DIR`.
    ///
    /// # Errors
    /// The working directory is gone or unreadable.
    pub fn here() -> std::io::Result<Self> {
        let variable = |name| std::env::var_os(name).map(PathBuf::from);
        Ok(Self {
            cwd: std::env::current_dir()?.canonicalize()?,
            home: variable("HOME"),
            uid: nix::unistd::geteuid().as_raw(),
            runtime_dir: variable("XDG_RUNTIME_DIR"),
        })
    }
}

//! What a denial should look like.

use std::path::Path;

use serde_json::Value;

/// What a denial should look like. Only what is set is compared.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    class: &'static str,
    operations: Vec<&'static str>,
    host: Option<&'static str>,
    addresses: Vec<String>,
    port: Option<u16>,
    protocol: Option<&'static str>,
    path: Option<String>,
    syscall: Option<&'static str>,
    certainty: Option<&'static str>,
}

/// A refused use of a socket.
pub fn network(operation: &'static str) -> Wanted {
    Wanted {
        class: "network",
        operations: vec![operation],
        ..Wanted::default()
    }
}

/// A refused use of a file.
pub fn filesystem() -> Wanted {
    Wanted {
        class: "filesystem",
        ..Wanted::default()
    }
}

/// A system call refused as such; the name may be followed by its argument, `ioctl(TIOCSTI)`.
pub fn syscall(name: &'static str) -> Wanted {
    Wanted {
        class: "syscall",
        syscall: Some(name),
        ..Wanted::default()
    }
}

impl Wanted {
    /// Another operation will do as well.
    pub fn or(mut self, operation: &'static str) -> Self {
        self.operations.push(operation);
        self
    }

    /// Aimed at this name.
    pub fn host(mut self, host: &'static str) -> Self {
        self.host = Some(host);
        self
    }

    /// Aimed at this address.
    pub fn address(mut self, address: impl ToString) -> Self {
        self.addresses.push(address.to_string());
        self
    }

    /// Aimed at this port.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// By this protocol.
    pub fn protocol(mut self, protocol: &'static str) -> Self {
        self.protocol = Some(protocol);
        self
    }

    /// On this path, or on its directory: for a name that is to be made or removed the kernel names the
    /// directory.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = Some(path.into());
        self
    }

    /// Known in this way.
    pub fn certainty(mut self, certainty: &'static str) -> Self {
        self.certainty = Some(certainty);
        self
    }

    /// Whether a denial is as wanted.
    pub fn fits(&self, denial: &Value) -> bool {
        let target = &denial["target"];
        let text = |field: &str| target[field].as_str().unwrap_or("").to_owned();
        let path_fits = self.path.as_deref().is_none_or(|path| {
            let got = text("path");
            got == path || Path::new(path).parent() == Some(Path::new(&got))
        });
        let syscall_fits = self.syscall.is_none_or(|name| {
            let got = text("syscall");
            got == name || got.strip_prefix(name).is_some_and(|rest| rest.starts_with('('))
        });
        denial["class"] == self.class
            && denial["decision"] == "deny"
            && (self.operations.is_empty()
                || self.operations.iter().any(|name| denial["operation"] == *name))
            && (self.addresses.is_empty() || self.addresses.contains(&text("address")))
            && self.host.is_none_or(|host| target["host"] == host)
            && self.port.is_none_or(|port| target["port"] == port)
            && self
                .protocol
                .is_none_or(|protocol| target["protocol"] == protocol)
            && self
                .certainty
                .is_none_or(|certainty| denial["certainty"] == certainty)
            && path_fits
            && syscall_fits
    }
}

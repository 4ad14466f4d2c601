//! What is the supervisor's own, and no policy's to give.

use std::path::{Path, PathBuf};

use super::{PathRule, Policy, PolicyError, is_at_or_below};

/// The words of the rules that [`Policy::hide`] adds.
const SOURCE: &str = "Provost's own";

impl Policy {
    /// Denies what is the supervisor's own (its records, its sockets, its configuration) with everything below, whatever other
    /// rules say. Paths that are not there hide nothing. An unconfined policy stays as it is.
    ///
    /// A socket that the policy allows by name stays: who listens there decides about its peers. One that lies where the command
    /// cannot write needs no rule: connecting is refused anyway, and there is nothing to read.
    ///
    /// # Errors
    /// A rule grants something in it, such as a working directory there.
    pub fn hide(&mut self, own: &[PathBuf]) -> Result<(), PolicyError> {
        if !self.confined {
            return Ok(());
        }
        let resolve = |rules: &[PathRule]| -> Vec<PathBuf> { rules.iter().map(resolved).collect() };
        let files = &self.files;
        let (write, unix) = (resolve(&files.write), resolve(&self.net.unix));
        let (read, execute) = (resolve(&files.read), resolve(&files.execute));
        let mut hidden = Vec::new();
        for path in own {
            let Ok(real) = path.canonicalize() else {
                continue;
            };
            if unix.contains(&real) && !real.is_dir() {
                continue;
            }
            let granted = [
                (&files.read, &read),
                (&files.write, &write),
                (&files.execute, &execute),
                (&self.net.unix, &unix),
            ];
            let mut granted = granted
                .into_iter()
                .flat_map(|(rules, paths)| rules.iter().zip(paths));
            let within = granted.find(|(_, path)| is_at_or_below(path, &real));
            if let Some((rule, _)) = within {
                let why = format!(
                    "it is Provost's own ({}), which no sandboxed command gets; take another place",
                    path.display()
                );
                return Err(PolicyError::path(rule, why));
            }
            if is_socket(&real) && !write.iter().any(|root| is_at_or_below(&real, root)) {
                continue;
            }
            hidden.push(PathRule::explicit(real, SOURCE));
        }
        self.files.deny.extend(hidden);
        Ok(())
    }
}

fn resolved(rule: &PathRule) -> PathBuf {
    rule.path.canonicalize().unwrap_or_else(|_| rule.path.clone())
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    path.symlink_metadata()
        .is_ok_and(|there| there.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::policy::PresetContext;

    struct Place {
        directory: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(directory.path().join("state/spool")).unwrap();
            Self { directory }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().canonicalize().unwrap().join(name)
        }

        fn policy(&self, name: &str, cwd: &str) -> Policy {
            let context = PresetContext {
                cwd: self.path(cwd),
                home: None,
                uid: 1000,
                runtime_dir: None,
            };
            Policy::preset(name, &context).unwrap()
        }
    }

    #[test]
    fn what_a_rule_grants_below_is_refused_also_by_way_of_a_link() {
        let place = Place::new();
        let own = [place.path("state")];
        symlink(place.path("state/spool"), place.path("link")).unwrap();
        for cwd in ["state", "state/spool", "link"] {
            let mut policy = place.policy("workspace-write", cwd);
            let error = policy.hide(&own).unwrap_err();
            assert!(error.to_string().contains("Provost's own"), "{error}");
        }
        place.policy("workspace-write", ".").hide(&own).unwrap();
        place.policy("read-only", "state").hide(&own).unwrap();
        place.policy("unconfined", "state").hide(&own).unwrap();
    }

    #[test]
    fn an_explicit_grant_of_the_very_path_does_not_win() {
        let place = Place::new();
        let mut policy = place.policy("read-only", ".");
        let state = place.path("state");
        policy.files.read.push(PathRule::explicit(&state, "--read"));
        policy.hide(&[state]).unwrap_err();
    }

    #[test]
    fn a_socket_is_hidden_where_it_could_be_replaced_and_left_where_it_is_allowed() {
        let place = Place::new();
        let socket = place.path("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let denies = |mut policy: Policy| {
            policy.hide(&[socket.clone(), place.path("not there")]).unwrap();
            policy.files.deny.iter().any(|rule| rule.path == socket)
        };
        assert!(denies(place.policy("workspace-write", ".")));
        assert!(!denies(place.policy("read-only", ".")));
        let mut allowed = place.policy("workspace-write", ".");
        allowed.net.unix.push(PathRule::explicit(&socket, "--allow-unix"));
        assert!(!denies(allowed));
    }
}

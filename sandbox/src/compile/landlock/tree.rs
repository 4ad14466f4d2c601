//! The paths that a policy names, as a tree, each with Landlock's part of the policy.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use crate::compile::access::{AccessMap, Kind, Origin, Question};
use crate::policy::is_at_or_below;

/// One of the policy's paths, or a directory on the way to one.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) children: BTreeMap<OsString, Node>,
    /// Allowed here and, where nothing below says otherwise, below.
    pub(super) read: Hold,
    /// The same for writing.
    pub(super) write: Hold,
    /// Writing here is writing to a device.
    pub(super) device: bool,
    /// The policy has a rule for exactly this path.
    pub(super) named: bool,
    /// The user's own grant: an error if it is not there.
    pub(super) required_by: Option<String>,
}

/// Whether a path is granted, and whether something below it is not.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hold {
    pub(super) granted: bool,
    /// Something below is refused: the siblings on the way there must be named one by one.
    pub(super) holed: bool,
}

/// Builds the tree of every path that `view` has a rule for. `private_dirs` are mounted over: nothing on the
/// machine's own directory of that name is granted except where a rule names something below it.
pub(super) fn tree(view: &AccessMap, private_dirs: &[PathBuf]) -> Node {
    let mut root = Node::default();
    let rules = view.entries().iter().map(|entry| entry.path.as_path());
    for path in rules.chain(private_dirs.iter().map(PathBuf::as_path)) {
        let mut node = &mut root;
        for component in path.components() {
            if let Component::Normal(name) = component {
                node = node.children.entry(name.to_owned()).or_default();
            }
        }
    }
    for entry in view.entries() {
        if let Some(node) = find(&mut root, &entry.path) {
            node.named = true;
            if entry.grants() && entry.origin == Origin::Explicit {
                node.required_by = Some(entry.source.clone());
            }
        }
    }
    judge(&mut root, &mut PathBuf::from("/"), view, private_dirs);
    root
}

fn find<'a>(root: &'a mut Node, path: &Path) -> Option<&'a mut Node> {
    path.components()
        .try_fold(root, |node, component| match component {
            Component::Normal(name) => node.children.get_mut(name),
            _ => Some(node),
        })
}

fn judge(node: &mut Node, path: &mut PathBuf, view: &AccessMap, private_dirs: &[PathBuf]) {
    let private = private_dirs.iter().find(|dir| is_at_or_below(path, dir));
    let granted = |question| {
        let entry = view.winner(path, question)?;
        let counts = private.is_none_or(|dir| entry.path != *dir && is_at_or_below(&entry.path, dir));
        (entry.grants() && counts).then_some(entry.kind)
    };
    node.read.granted = granted(Question::Reading).is_some();
    let writing = granted(Question::Writing);
    node.write.granted = writing.is_some();
    node.device = writing == Some(Kind::Device);
    for (name, child) in &mut node.children {
        path.push(name);
        judge(child, path, view, private_dirs);
        // What lies below a private directory is mounted there from elsewhere and no hole in its parents.
        if !private_dirs.iter().any(|dir| is_at_or_below(path, dir)) || private.is_some() {
            node.read.holed |= !child.read.granted || child.read.holed;
            node.write.holed |= !child.write.granted || child.write.holed;
        }
        path.pop();
    }
}

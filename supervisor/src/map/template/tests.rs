use proptest::prelude::*;

use super::*;
use crate::map::items::{Items, Source};

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn table() -> Items {
    Items::read(
        "in",
        Source::Csv {
            delimiter: b',',
            header: true,
        },
        &b"name,first name,n\nx;y,$(z),7\n"[..],
    )
    .unwrap()
}

fn expanded(argv: &[&str], items: &Items) -> Result<Vec<String>, TemplateError> {
    let template = CommandTemplate::parse(&words(argv), &items.columns)?;
    template.expand(1, &items.list[0], &items.columns)
}

#[test]
fn an_item_fills_arguments_or_parts_of_them() {
    let row = table();
    assert_eq!(
        expanded(
            &[
                "x",
                "{name}",
                "--a={first name},{name}",
                "{{name}}",
                "{}",
                "{item}",
                "{n}"
            ],
            &row
        )
        .unwrap(),
        [
            "x",
            "x;y",
            "--a=$(z),x;y",
            "{name}",
            row.list[0].whole(),
            row.list[0].whole(),
            "7"
        ]
    );
    let plain = Items::of_arguments(words(&["a b"])).unwrap();
    assert_eq!(
        expanded(&["{}", "{n}", "<{item}>", "{{}}"], &plain).unwrap(),
        ["a b", "1", "<a b>", "{}"]
    );
    assert_eq!(expanded(&["echo", "-n"], &plain).unwrap(), ["echo", "-n", "a b"]);
    // What an item has is no template.
    let braces = Items::of_arguments(words(&["{n}{{}"])).unwrap();
    assert_eq!(expanded(&["echo", "{}"], &braces).unwrap(), ["echo", "{n}{{}"]);
}

#[test]
fn a_mistake_is_told_with_what_may_be_said() {
    let row = table();
    let said = |argv: &[&str]| expanded(argv, &row).unwrap_err().to_string();
    assert_eq!(
        said(&["x", "{nam}"]),
        r#""{nam}": there is no {nam}; there are {name}, {first name}, {n}, {item} and {}; write {{ for a brace"#
    );
    for alone in ["{", "}", "a}b", "{name", "{na{me}", "{{}", "{}}"] {
        assert!(
            said(&["x", alone]).contains("stands alone"),
            "{alone}: {}",
            said(&["x", alone])
        );
    }
    assert!(said(&["make"]).contains("no placeholder"));
    assert!(said(&["awk", "{print $1}", "{name}"]).contains("there is no {print $1}"));
}

#[test]
fn no_shell_reads_what_an_item_has() {
    let row = table();
    for argv in [
        &["sh", "-c", "echo {name}"][..],
        &["/bin/bash", "-ec", "{name}"],
        &["bash", "-x", "-c", "-e", "echo '{name}'"],
        &["sh", "-c", "+e", "a {n}", "x"],
    ] {
        assert!(
            matches!(expanded(argv, &row), Err(TemplateError::Shell { .. })),
            "{argv:?}"
        );
    }
    for argv in [
        &["sh", "-c", "echo \"$1\"", "sh", "{name}"][..],
        &["sh", "{name}", "-c"],
        &["bash", "--norc", "{name}"],
        &["echo", "-c", "{name}"],
    ] {
        assert!(expanded(argv, &row).is_ok(), "{argv:?}");
    }
}

#[test]
fn what_an_object_does_not_have_is_an_error() {
    let items = Items::read("in", Source::JsonLines, &b"{\"a\":1}\n{\"b\":2}\n"[..]).unwrap();
    let template = CommandTemplate::parse(&words(&["x", "{a}"]), &items.columns).unwrap();
    assert_eq!(
        template.expand(1, &items.list[0], &items.columns).unwrap(),
        ["x", "1"]
    );
    let error = template.expand(2, &items.list[1], &items.columns).unwrap_err();
    assert_eq!(error.to_string(), "item 2 has no \"a\"");
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text: String, item in "[^\0]{0,8}") {
        let items = Items::of_arguments(vec![item]).unwrap();
        if let Ok(template) = CommandTemplate::parse(std::slice::from_ref(&text), &items.columns) {
            let made = template.expand(3, &items.list[0], &items.columns).unwrap();
            prop_assert!(made.len() <= 2);
        }
    }

    #[test]
    fn a_text_whose_braces_are_doubled_stands_for_itself(before: String, after: String, item in "[^\0]{0,8}") {
        let doubled = |text: &str| text.replace('{', "{{").replace('}', "}}");
        let items = Items::of_arguments(vec![item.clone()]).unwrap();
        let argument = format!("{}{{}}{}", doubled(&before), doubled(&after));
        let template = CommandTemplate::parse(&["x".to_owned(), argument], &items.columns).unwrap();
        let made = template.expand(1, &items.list[0], &items.columns).unwrap();
        prop_assert_eq!(&made[1], &format!("{before}{item}{after}"));
        prop_assert_eq!(made.len(), 2);
    }
}

use super::*;

fn plan(id: &str, command: &str) -> Plan {
    Plan {
        id: id.to_owned(),
        command: vec![command.to_owned(), "{}".to_owned()],
        columns: vec!["item".to_owned()],
        spec: ProcessStart::default(),
        at_a_time: 4,
        retry: RetryRule::default(),
        halt: Some("now,fail=3%".parse().unwrap()),
        out: None,
        results: None,
        keep_order: false,
    }
}

fn items(count: usize) -> Items {
    Items::of_arguments((0..count).map(|number| format!("{number}\n")).collect()).unwrap()
}

#[test]
fn a_map_is_found_by_its_id_and_by_what_it_does() {
    let directory = tempfile::tempdir().unwrap();
    let maps = Maps::open(&directory.path().join("a/maps")).unwrap();
    for (id, command, count) in [
        ("0001-a", "x", 3),
        ("0002-b", "x", 3),
        ("0003-c", "y", 3),
        ("0004-d", "x", 4),
    ] {
        maps.create(&plan(id, command), &items(count)).unwrap();
    }
    let (found, read) = maps.load("0003").unwrap();
    assert_eq!((found.id.as_str(), read), ("0003-c", items(3)));
    assert_eq!(found.halt, plan("", "").halt);
    let found = |command, count| {
        let like = Plan {
            at_a_time: 9,
            halt: None,
            ..plan("new", command)
        };
        maps.find(&like, &items(count)).unwrap().map(|plan| plan.id)
    };
    assert_eq!(found("x", 3).as_deref(), Some("0002-b"));
    assert_eq!(found("x", 4).as_deref(), Some("0004-d"));
    assert_eq!(found("y", 4), None);
    assert!(matches!(maps.load("000"), Err(PlanError::Unknown { .. })));
    let error = maps.load("echo").unwrap_err().to_string();
    assert!(error.contains("write `--` before the command"), "{error}");
}

#[test]
fn what_was_not_written_to_its_end_is_no_map() {
    let directory = tempfile::tempdir().unwrap();
    let maps = Maps::open(directory.path()).unwrap();
    maps.create(&plan("0001-a", "x"), &items(1)).unwrap();
    fs::remove_file(directory.path().join("0001-a/plan.json")).unwrap();
    assert!(maps.find(&plan("new", "x"), &items(1)).unwrap().is_none());
}

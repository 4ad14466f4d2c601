use std::fs;

use proptest::prelude::*;

use super::*;

fn row(item: usize) -> Row {
    Row {
        item,
        outcome: "exited".to_owned(),
        output: Some("x\n".repeat(item)),
        ..Row::default()
    }
}

/// What it has when it is opened again.
fn opened(path: &Path, items: usize) -> (Journal, Vec<usize>) {
    let mut told = Vec::new();
    let journal = Journal::open(path, items, |row| told.push(row.item)).unwrap();
    (journal, told)
}

#[test]
fn one_client_at_a_time_has_a_map() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("j");
    let (journal, _) = opened(&path, 1);
    assert!(matches!(Journal::open(&path, 1, |_| ()), Err(JournalError::Held)));
    drop(journal);
    opened(&path, 1);
}

#[test]
fn the_first_row_of_an_item_stands() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("j");
    let (mut journal, _) = opened(&path, 2);
    journal.set_ended(row(2)).unwrap();
    let other = Row {
        outcome: "lost".to_owned(),
        ..row(2)
    };
    journal.set_ended(other).unwrap();
    assert_eq!(journal.row(2).unwrap().unwrap().outcome, "exited");
    assert!(journal.row(1).unwrap().is_none());
    drop(journal);
    assert_eq!(opened(&path, 2).1, [2]);
}

proptest! {
    #[test]
    fn whatever_was_written_when_its_writer_died_is_known_again(order in Just((1..=8_usize).collect::<Vec<_>>()).prop_shuffle(), cut in 0..400_usize) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("j");
        let (mut journal, _) = opened(&path, 8);
        let mut ends = vec![0];
        for (count, item) in order.iter().enumerate() {
            journal.set_ended(row(*item)).unwrap();
            ends.push(fs::metadata(&path).unwrap().len());
            journal.set_submitted(count + 1).unwrap();
        }
        drop(journal);
        let length = fs::metadata(&path).unwrap().len().saturating_sub(cut as u64);
        fs::File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
        let whole = ends.iter().filter(|end| **end <= length).count() - 1;

        let (mut journal, told) = opened(&path, 8);
        prop_assert_eq!(&told[..], &order[..whole]);
        for item in &order {
            let known = journal.row(*item).unwrap().map(|row| (row.item, row.output));
            let wanted = told.contains(item).then(|| (*item, row(*item).output));
            prop_assert_eq!(known, wanted);
            journal.set_ended(row(*item)).unwrap();
        }
        drop(journal);
        let (journal, told) = opened(&path, 8);
        prop_assert_eq!(&told[..], &order[..]);
        prop_assert!(journal.submitted() <= 8);
    }
}

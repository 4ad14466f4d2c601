use proptest::prelude::*;

use super::*;
use crate::map::items::{Items, Source};

fn written(format: Format, items: &Items, rows: &[Row]) -> String {
    let mut writer = Writer::new(Vec::new(), format, &items.columns).unwrap();
    for (item, row) in items.list.iter().zip(rows) {
        writer.row(item, row).unwrap();
    }
    String::from_utf8(writer.finish().unwrap()).unwrap()
}

fn row(item: usize) -> Row {
    Row {
        item,
        outcome: "exited".to_owned(),
        exit_code: Some(0),
        succeeded: true,
        attempts: 1,
        duration_ms: 12,
        output: Some("a,\"b\"".to_owned()),
        output_bytes: Some(6),
        result: Some((&serde_json::json!({ "n": 1 })).into()),
        ..Row::default()
    }
}

#[test]
fn a_row_has_the_item_and_what_became_of_it() {
    let csv = Source::Csv {
        delimiter: b',',
        header: true,
    };
    let items = Items::read("in", csv, &b"name,output\nx,y\n"[..]).unwrap();
    assert_eq!(
        written(Format::Csv, &items, &[row(1)]),
        "name,output,outcome,reason,exit_code,signal,denied,attempts,duration_ms,provost_output,output_bytes,\
         result,result_error\n\
         x,y,exited,,0,,false,1,12,\"a,\"\"b\"\"\",6,\"{\"\"n\"\":1}\",\n"
    );
    let items = Items::read("in", Source::JsonLines, &b"{\"b\":[1, 2],\"a\":\"x\"}\n"[..]).unwrap();
    assert_eq!(
        written(Format::JsonLines, &items, &[row(1)]),
        "{\"item\":1,\"input\":{\"b\":[1, 2],\"a\":\"x\"},\"outcome\":\"exited\",\"reason\":null,\"exit_code\":0,\"signal\":null,\
         \"succeeded\":true,\"denied\":false,\"attempts\":1,\"duration_ms\":12,\"output\":\"a,\\\"b\\\"\",\"output_bytes\":6,\"result\":{\"n\":1},\"result_error\":null,\
         \"job\":null,\"process\":null}\n"
    );
}

#[test]
fn the_name_of_the_file_says_how_it_is_written() {
    assert_eq!(Format::of(Path::new("a/b.csv")), Ok(Format::Csv));
    assert_eq!(Format::of(Path::new("b.jsonl")), Ok(Format::JsonLines));
    assert!(Format::of(Path::new("b.json")).unwrap_err().contains(".jsonl"));
}

proptest! {
    #[test]
    fn what_is_written_is_read_as_the_same(items in prop::collection::vec("[^\0]{0,8}", 0..5), output: Option<String>, reason: Option<String>) {
        let items = Items::of_arguments(items).unwrap();
        let rows: Vec<Row> = (1..=items.list.len())
            .map(|number| Row { output: output.clone(), reason: reason.clone(), ..row(number) })
            .collect();
        let text = written(Format::Csv, &items, &rows);
        let read: Vec<csv::StringRecord> = csv::Reader::from_reader(text.as_bytes()).records().map(Result::unwrap).collect();
        prop_assert_eq!(read.len(), rows.len());
        for (record, item) in read.iter().zip(&items.list) {
            prop_assert_eq!(&record[0], item.whole());
            prop_assert_eq!(&record[8], output.as_deref().unwrap_or(""));
        }
        let text = written(Format::JsonLines, &items, &rows);
        prop_assert_eq!(text.matches('\n').count(), rows.len());
        for (line, item) in text.lines().zip(&items.list) {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            prop_assert_eq!(line["input"]["item"].as_str(), Some(item.whole()));
            prop_assert_eq!(line["output"].as_str(), output.as_deref());
        }
    }
}

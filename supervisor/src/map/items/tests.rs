use proptest::prelude::*;

use super::*;

const CSV: Source = Source::Csv {
    delimiter: b',',
    header: true,
};

fn read(source: Source, bytes: &[u8]) -> Result<Items, ItemError> {
    Items::read("in", source, bytes)
}

fn wholes(items: &Items) -> Vec<&str> {
    items.list.iter().map(Item::whole).collect()
}

fn said(source: Source, bytes: &[u8]) -> String {
    read(source, bytes).unwrap_err().to_string()
}

#[test]
fn lines_end_in_either_way_and_the_last_may_have_no_end() {
    let items = read(Source::Lines, b"\xef\xbb\xbfone\r\ntwo words\n\n\r\n three").unwrap();
    assert_eq!(wholes(&items), ["one", "two words", " three"]);
    let items = read(Source::Nul, b"a\nb\0c\r\n\0").unwrap();
    assert_eq!(wholes(&items), ["a\nb", "c\r\n"]);
    for source in [Source::Lines, Source::Nul, Source::JsonLines] {
        assert_eq!(read(source, b"").unwrap().list, []);
    }
}

#[test]
fn what_cannot_be_an_argument_is_refused_with_its_line() {
    assert_eq!(
        said(Source::Lines, b"a\n\xff\xfeb"),
        "in, line 2: it is not UTF-8; convert it first, for example with iconv"
    );
    assert!(said(Source::Lines, b"a\nb\nc\0d").starts_with("in, line 3: it has a NUL byte"));
    assert!(said(Source::Lines, b"\xff\xfea\0").starts_with("in: it is UTF-16"));
    assert!(said(CSV, b"a,b\n1,\0").starts_with("in, line 2: it has a NUL byte"));
    assert!(said(CSV, b"a,b\n1,2\n3,\xff\n").starts_with("in, line 3: it is not UTF-8"));
    assert!(
        said(Source::JsonLines, b"{\"a\":\"\\u0000\"}").starts_with("in, line 1: it has a NUL byte")
    );
}

#[test]
fn an_item_may_be_long_and_not_longer() {
    for (source, end) in [
        (Source::Lines, "\n"),
        (Source::Lines, "\r\n"),
        (Source::Nul, "\0"),
        (Source::Lines, ""),
    ] {
        let most = "x".repeat(ITEM_BYTES_MAX);
        let items = read(source, format!("{most}{end}").as_bytes()).unwrap();
        assert_eq!(wholes(&items), [most.as_str()]);
        let error = said(source, format!("{most}x{end}").as_bytes());
        assert!(
            error.starts_with("in, line 1: it has more than 1048576 bytes"),
            "{error}"
        );
    }
    // The rest of a line without end is not even read.
    let error = Items::read("in", Source::Lines, io::repeat(b'x')).unwrap_err();
    assert!(matches!(error.kind, ItemErrorKind::TooLong));
    let long = format!("a\n{}\n", "x".repeat(ITEM_BYTES_MAX + 1));
    assert!(said(CSV, long.as_bytes()).starts_with("in, line 2: it has more than"));
}

#[test]
fn csv_has_a_header_quotes_and_rows_of_one_length() {
    let items = read(
        CSV,
        b"\xef\xbb\xbfname,a b\r\n\"x,\"\"y\"\"\",\"two\r\nlines\"\r\n\r\nz,\r\n",
    )
    .unwrap();
    assert_eq!(items.columns, ["name", "a b"]);
    assert_eq!(
        wholes(&items),
        [
            r#"{"name":"x,\"y\"","a b":"two\r\nlines"}"#,
            r#"{"name":"z","a b":""}"#
        ]
    );
    assert_eq!(items.list[0].cell(0).unwrap().text, "x,\"y\"");
    assert_eq!(
        said(CSV, b"a,b\n1,2\n3\n"),
        "in, line 3: it has 1 fields, and the header 2; is a quote or a delimiter missing?"
    );
    assert!(said(CSV, b"a,b\n1,2,3\n").starts_with("in, line 2: it has 3 fields"));
    assert!(said(CSV, b"").contains("there is no header"));
    assert!(said(CSV, b"a,b,a\n").contains("two columns are called \"a\""));
    // The index that pandas writes has no name.
    assert_eq!(read(CSV, b",a\n0,x\n").unwrap().columns, ["", "a"]);
    assert_eq!(read(CSV, b"a,b\n").unwrap().list, []);
}

#[test]
fn csv_without_a_header_has_numbers_and_may_have_tabs() {
    let source = Source::Csv {
        delimiter: b'\t',
        header: false,
    };
    let items = read(source, b"a,1\tb\nc\td\n").unwrap();
    assert_eq!(items.columns, ["1", "2"]);
    assert_eq!(items.list[0].cell(0).unwrap().text, "a,1");
    assert_eq!(read(source, b"").unwrap().list, []);
}

#[test]
fn members_of_objects_are_columns_and_other_values_are_items() {
    let input = b"{\"b\":\"x\\ny\",\"a\":[1, 2]}\r\n\n\"text\"\n17\n{\"c\":null,\"a\":1e400}\n";
    let items = read(Source::JsonLines, input).unwrap();
    assert_eq!(items.columns, ["b", "a", "item", "c"]);
    assert_eq!(
        wholes(&items),
        [
            r#"{"b":"x\ny","a":[1, 2]}"#,
            "text",
            "17",
            r#"{"c":null,"a":1e400}"#
        ]
    );
    let cell = |item: usize, column| {
        items.list[item]
            .cell(column)
            .map(|cell: &Cell| (cell.text.as_str(), cell.json))
    };
    assert_eq!(cell(0, 0), Some(("x\ny", false)));
    assert_eq!(cell(0, 1), Some(("[1, 2]", true)));
    assert_eq!(cell(0, 3), None);
    assert_eq!(cell(3, 1), Some(("1e400", true)));
    assert!(said(Source::JsonLines, b"1\n{\"a\":1").starts_with("in, line 2: it is no JSON"));
    assert!(said(Source::JsonLines, b"{\"a\":1,\"a\":2}").contains("two columns are called \"a\""));
    assert!(said(Source::JsonLines, b"1 2").contains("it is no JSON"));
}

proptest! {
    #[test]
    fn any_bytes_are_items_or_an_error(bytes: Vec<u8>, delimiter in prop::sample::select(vec![b',', b';', b'\t']), header: bool) {
        for source in [Source::Lines, Source::Nul, Source::JsonLines, Source::Csv { delimiter, header }] {
            if let Ok(items) = read(source, &bytes) {
                for item in &items.list {
                    prop_assert!(item.cells.len() <= items.columns.len());
                    prop_assert!(!item.whole().contains('\0'));
                }
            }
        }
    }

    #[test]
    fn a_table_is_read_as_it_was_written(table in prop::collection::vec(prop::collection::vec("[^\0]{0,8}", 3), 0..8)) {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["a", "b", "c"]).unwrap();
        for row in &table {
            writer.write_record(row).unwrap();
        }
        let items = read(CSV, &writer.into_inner().unwrap()).unwrap();
        prop_assert_eq!(items.list.len(), table.len());
        for (item, row) in items.list.iter().zip(&table) {
            let object: std::collections::BTreeMap<String, String> = serde_json::from_str(item.whole()).unwrap();
            for (column, field) in row.iter().enumerate() {
                prop_assert_eq!(&item.cell(column).unwrap().text, field);
                prop_assert_eq!(&object[&items.columns[column]], field);
            }
        }
    }

    #[test]
    fn an_item_is_read_as_it_was_kept(cells in prop::collection::vec(prop::option::of(("[^\0]{0,8}", any::<bool>())), 0..4), whole: Option<String>) {
        let cells = cells.into_iter().map(|cell| cell.map(|(text, json)| Cell { text, json })).collect();
        let item = Item { cells, whole };
        let kept = serde_json::to_string(&item).unwrap();
        prop_assert!(!kept.contains('\n'));
        prop_assert_eq!(serde_json::from_str::<Item>(&kept).unwrap(), item);
    }
}

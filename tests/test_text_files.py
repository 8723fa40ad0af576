"""CSV files and text of any origin: read exactly, or refused with line and byte."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ssamba.errors import DataError
from ssamba.files import write_csv
from ssamba.text_files import ListedPaths, read_csv, read_text


def rows_of(folder: Path, content: str | bytes, expected=("path", "label"), encoding=None, **options):
    path = folder / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = read_csv(path, expected, encoding)
    return [tuple(row.values()) for _, row in table.rows(**options)]


PLAIN = [("a.wav", "dog"), ("b, c.wav", "cat")]


@pytest.mark.parametrize(
    "content",
    [
        'path,label\na.wav,dog\n"b, c.wav",cat\n',
        'path,label\r\na.wav,dog\r\n"b, c.wav",cat\r\n',
        'path,label\ra.wav,dog\r"b, c.wav",cat',
        '\ufeffpath,label\n\na.wav,dog\n\n"b, c.wav",cat',
        " path , label \na.wav,dog\n'b, c.wav,cat".replace("'b, c.wav", '"b, c.wav"'),
        'path, label\na.wav, dog\n"b, c.wav", "cat"\n',
        "path;label\na.wav;dog\nb, c.wav;cat\n",
        "path\tlabel\na.wav\tdog\nb, c.wav\tcat\n",
        "path|label\na.wav|dog\nb, c.wav|cat\n",
        "sep=;\npath;label\na.wav;dog\nb, c.wav;cat\n",
        '"path","label"\n"a.wav","dog"\n"b, c.wav","cat"\n',
        'path,label,\na.wav,dog,\n"b, c.wav",cat,\n,,\n',
    ],
)
def test_every_common_form_gives_the_same_rows(tmp_path, content):
    assert rows_of(tmp_path, content) == PLAIN


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(tmp_path, encoding):
    content = "path\tlabel\nä.wav\tKöter\n".encode(encoding)
    assert rows_of(tmp_path, content) == [("ä.wav", "Köter")]
    assert rows_of(tmp_path, content, encoding="cp1252") == [("ä.wav", "Köter")]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16-le", "cp1251", "shift_jis"])
def test_other_encodings_are_named(tmp_path, encoding):
    label = {"cp1251": "сова", "shift_jis": "梟"}.get(encoding, "Köter")
    content = f"path,label\na.wav,{label}\n".encode(encoding)
    assert rows_of(tmp_path, content, encoding=encoding) == [("a.wav", label)]


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        (b"path,label\na.wav,x\nb.wav,K\xf6ter\n", None, r"line 3: byte 0xf6 \(number 27 of the file\).*'b.wav,Köter'"),
        (b"path,label\na.wav,\x81\n", "cp1252", r"line 2: byte 0x81 .* is not cp1252. Name another"),
        ("path,label\na.wav,x\n".encode("utf-16-le"), None, "UTF-16"),
        ("päth\n".encode("utf-16-le") + b"\xff", None, "utf-16"),
        (b"path,label\n", "klingon", "no encoding 'klingon'"),
        (b"path,label\n", "base64", "no encoding 'base64'"),
        (b"path,label\na.wav,x\nb\0.wav,y\n", None, "line 3: holds a zero byte"),
    ],
)
def test_what_cannot_be_decoded_is_refused_with_line_and_byte(tmp_path, content, encoding, message):
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path, content, encoding=encoding)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('path,label\na.wav,dog\n"b.wav,dog\nc.wav,cat\nd.wav,cat\n', r"line 3: a quote .* to the end of the file"),
        ('path,label\na.wav,dog\n"b.wav,dog\nc.wav,cat\nd.wav",cat\n', r"line 3: a quote .* rows to line 5"),
        ('path,label\na.wav,"dog\nb.wav,cat"\nc.wav,cat\n', r"line 2: a quote .* rows to line 3"),
        ('path,label\n"a.wav,dog\nb.wav",cat\n', r"line 2: a quote .* rows to line 3"),
        ('path,label\n12" record.wav,x\n"7" single.wav",x\n', r"line 3: text follows the quote"),
        ('path,label\n"' + "a.wav,x\n" * 40_000, r"line 2: a quote"),
        ("path,label\na.wav,x,y\n", r"line 2: more values than the 2 columns.*quotes"),
        ("path,label\na.wav,x\nb.wav\n", r"line 3: 1 values for 2 columns"),
        ("path,path\na.wav,x\n", r"two columns are named 'path'"),
    ],
)
def test_stray_quotes_and_uneven_rows_are_refused_with_their_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path, content)


def test_line_breaks_inside_a_value_are_kept(tmp_path):
    content = 'path,note,label\na.wav,"first, of\ntwo lines",x\n"b\nc.wav","",y\n"d, e\n.wav","",z\n'
    rows = [("a.wav", "first, of\ntwo lines", "x"), ("b\nc.wav", "", "y"), ("d, e\n.wav", "", "z")]
    assert rows_of(tmp_path, content) == rows
    assert rows_of(tmp_path, 'path,label\n"a,b\nc.wav",x\n', accept=lambda row: True) == [("a,b\nc.wav", "x")]


def test_missing_columns_and_files_are_named(tmp_path):
    (tmp_path / "t.csv").write_text("file;label\n")
    with pytest.raises(DataError, match=r"no column 'path' \(there are: file, label\). Expected path, label"):
        read_csv(tmp_path / "t.csv", ["path", "label"]).require("path", "label")
    with pytest.raises(DataError, match=r"absent.csv: cannot be read \(No such file"):
        read_csv(tmp_path / "absent.csv")
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(DataError, match="there are: none"):
        read_csv(tmp_path / "t.csv").require("path")


def test_values_may_be_missing_at_the_end_of_a_row_if_allowed(tmp_path):
    assert rows_of(tmp_path, "path,label\na.wav\n", short=True) == [("a.wav", "")]


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n\ufeff"), max_size=8)


@given(st.lists(st.tuples(CELLS, CELLS).filter(lambda row: "".join(row).strip()), max_size=5))
def test_what_is_written_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    write_csv(path, ["path", "label"], rows)
    assert [tuple(row.values()) for _, row in read_csv(path, ["path", "label"]).rows()] == rows


def test_line_endings_stay_in_text(tmp_path):
    (tmp_path / "t").write_bytes(b"\xef\xbb\xbfa\r\nb\n")
    assert read_text(tmp_path / "t") == "a\r\nb\n"


@pytest.mark.parametrize(
    ("listed", "there"),
    [
        ("a.wav", "a.wav"),
        (" a.wav ", "a.wav"),
        (" a.wav", " a.wav"),
        ("dog\\1.wav", "dog/1.wav"),
        ("dog\\1.wav", "dog\\1.wav"),
        (".\\Dog\\1.WAV", "dog/1.wav"),
        ("caf\\xe9.wav", "caf\udce9.wav"),
        ("caf\\xe9.wav", "caf\\xe9.wav"),
        ("caf\u00e9.wav", "cafe\u0301.wav"),
        ("cafe\u0301.wav", "caf\u00e9.wav"),
        ("na\u00efve\\a.wav", "nai\u0308ve/a.wav"),
        ("~a.wav", "~a.wav"),
        ("a:b.wav", "a:b.wav"),
        ("C:\\a.wav", "C:\\a.wav"),
        ("-a.wav", "-a.wav"),
    ],
)
def test_a_listed_file_is_found_however_its_name_is_written(tmp_path, listed, there):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).touch()
    found = ListedPaths(tmp_path)(listed)
    assert found.exists()
    assert os.fspath(found) == os.fspath(tmp_path / there)


def test_the_bytes_of_the_encoding_are_tried_as_a_name(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.wav")).touch()
    assert ListedPaths(tmp_path, "cp1252")("café.wav").exists()
    assert ListedPaths(tmp_path)("café.wav") == tmp_path / "café.wav"


@pytest.mark.parametrize("listed", ["C:\\sounds\\1.wav", "d:/sounds/1.wav", "\\\\server\\share\\1.wav"])
def test_absolute_paths_of_windows_are_refused(tmp_path, listed):
    with pytest.raises(DataError, match=r"path of Windows.*relative to the folder"):
        ListedPaths(tmp_path)(listed)


def test_a_name_without_case_must_be_the_only_one(tmp_path):
    for name in ("A.wav", "a.WAV"):
        (tmp_path / name).touch()
    assert ListedPaths(tmp_path)(".\\a.wav") == tmp_path / ".\\a.wav"


@pytest.mark.parametrize("listed", ["", "  ", "a\0.wav"])
def test_what_is_no_path_is_refused(tmp_path, listed):
    with pytest.raises(DataError, match="expected the path of a recording"):
        ListedPaths(tmp_path)(listed)

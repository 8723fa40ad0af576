"""Tables that a spreadsheet program wrote on another system: refused with line and byte, read with --encoding."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def tables(tmp_path, second):
    """A manifest `m.csv` and the table `suite/t.csv`, both of cp1252, with semicolons and paths of Windows."""
    (tmp_path / "suite" / "Klänge").mkdir(parents=True)
    rows = ["{};label;split;group"]
    for number in range(12):
        name = f"{number}.wav"
        (tmp_path / "suite" / "Klänge" / name).write_bytes(second(number))
        split = "train" if number < 8 else "test"
        rows.append(f"{{}}Klänge\\{name};{'Köter' if number % 2 else 'Katze'};{split};")
    for table, header, start in (("m.csv", "path", "suite\\"), ("suite/t.csv", "clip", "")):
        text = "\r\n".join(row.format(start if number else header) for number, row in enumerate(rows))
        (tmp_path / table).write_bytes(text.encode("cp1252"))
    return tmp_path


@pytest.mark.parametrize(
    ("command", "table", "byte"),
    [
        (["finetune", "m.csv", "-o", "run", "--epochs", "1", "--frozen"], "m.csv", 33),
        (["shard", "m.csv", "-o", "shards", "--workers", "0"], "m.csv", 33),
        (["stats", "m.csv", "--workers", "0"], "m.csv", 33),
        (["evaluate", "suite", "-c", "logmel", "--no-cache", "-o", "card.json"], "t.csv", 27),
    ],
)
def test_a_table_of_another_encoding_is_refused_at_the_beginning_and_read_if_it_is_named(
    ssamba, tables, command, table, byte, ssamba_pth
):
    command = [*command, "-c", ssamba_pth] if command[0] == "finetune" else command
    before = sorted(path.name for path in tables.iterdir())
    code, out, err = ssamba(*command)
    assert (code, out) == (1, "")
    assert f"{table}, line 2: byte 0xe4 (number {byte} of the file) is not utf-8" in err
    assert "(--encoding)" in err
    assert "Kl\u00e4nge" in err
    assert sorted(path.name for path in tables.iterdir() if path.name != "shards") == before
    code, out, err = ssamba(*command, "--encoding", "cp1252")
    assert code == 0, err
    if command[0] == "finetune":
        assert json.loads((tables / "run" / "results.json").read_text())["classes"] == ["Katze", "K\u00f6ter"]
    code, _, err = ssamba(*command, "--encoding", "klingon")
    assert code == 1
    assert "there is no encoding 'klingon'" in err

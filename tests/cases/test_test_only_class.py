"""A class that only the test part has (it can never be right): finetune, evaluate and manifest say so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

NOTE = "1 class is tested but not in the training part, so that no model can get its clips right: never (2 test clips)"
SINGLE = "1 class is in a single clip, which is either trained on or tested, never both: once"
FEW = "1 class is in fewer than 5 clips, too few to judge: never (2)"
COUNTS = {("train", "a"): 5, ("train", "b"): 5, ("train", "once"): 1, ("test", "a"): 2, ("test", "b"): 2}
COUNTS |= {("test", "never"): 2}


@pytest.fixture
def data(tmp_path, second):
    """A folder `d` of splits and classes, and a folder `suite` of one task of the same clips."""
    rows = ["clip,label,split,group"]
    for (split, label), count in COUNTS.items():
        (tmp_path / "d" / split / label).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "d" / split / label / f"{i}.wav").write_bytes(second(len(rows)))
            rows.append(f"../d/{split}/{label}/{i}.wav,{label},{split},g{len(rows)}")
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "t.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "d"


def test_finetune_names_the_class_at_the_start_and_in_the_report(ssamba, data, tmp_path, ssamba_pth):
    code, _, err = ssamba("finetune", "d", "-o", "run", "-c", ssamba_pth, "--epochs", "1", "--frozen", "--no-refit")
    assert code == 0, err
    assert f"warning: {NOTE}\nwarning: {SINGLE}\nwarning: {FEW}\n" in err
    notes = json.loads((tmp_path / "run" / "results.json").read_text())["notes"]
    assert [note for note in notes if "class is" in note] == [NOTE, SINGLE, FEW]


def test_evaluate_names_the_class_at_the_start_and_in_the_report(ssamba, data, tmp_path):
    code, out, err = ssamba("evaluate", "suite", "-c", "logmel", "-o", "card.json", "--no-cache")
    assert code == 0, err
    assert err.startswith(f"warning: t: {NOTE}\nwarning: t: {SINGLE}\n")
    assert f"\nt: {NOTE}\nt: {SINGLE}\n" in out
    assert json.loads((tmp_path / "card.json").read_text())["notes"] == {"t": [NOTE, SINGLE]}


def test_manifest_names_the_class_at_the_start_and_in_the_report(ssamba, data):
    code, out, err = ssamba("manifest", "d", "--labels", "folder", "-o", "m.csv")
    assert (code, err) == (0, f"warning: {NOTE}\nwarning: {SINGLE}\nwarning: {FEW}\n")
    assert out.endswith(f"m.csv\nnote: {NOTE}\nnote: {SINGLE}\nnote: {FEW}\n")


def test_a_class_of_one_fold_is_named_with_the_fold(ssamba, tmp_path, second, ssamba_pth):
    rows = ["clip,label,split,group"]
    for fold, labels in (("fold1", "aabb"), ("fold2", "aabb"), ("fold3", "aabbnn")):
        for label in labels:
            name = f"{len(rows)}.wav"
            (tmp_path / name).write_bytes(second(len(rows)))
            rows.append(f"{name},{label},{fold},")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    note = NOTE.replace("never (2 test clips)", "n (2 test clips of fold3)")
    code, _, err = ssamba("evaluate", ".", "-c", "logmel", "--no-cache")
    assert code == 0, err
    assert err.startswith(f"warning: t: {note}\n")
    (tmp_path / "m.csv").write_text("\n".join(rows).replace("clip,", "path,"))
    code, _, err = ssamba("finetune", "m.csv", "-o", "run", "-c", ssamba_pth, "--epochs", "1", "--frozen", "--no-refit")
    assert code == 0, err
    assert f"warning: {note}\n" in err


def test_silence_is_named(ssamba, data, ssamba_pth):
    for path in data.rglob("*.wav"):
        soundfile.write(path, np.zeros(16_000), 16_000)
    for command, line in (
        (("manifest", "d", "--labels", "folder", "-o", "m.csv"), "all 17 recordings are silent"),
        (("evaluate", "suite", "-c", "logmel", "--no-cache"), "t: all 17 recordings are silent"),
        (
            ("finetune", "d", "-o", "run", "-c", ssamba_pth, "--epochs", "1", "--frozen", "--no-refit"),
            "all 17 recordings are silent",
        ),
        (("pretrain", "d", "-o", "pre", "-c", ssamba_pth, "--epochs", "1"), "recordings are silent"),
    ):
        code, _, err = ssamba(*command)
        assert code == 0, err
        assert sum(text.startswith("warning: ") and line in text for text in err.splitlines()) == 1
    assert json.loads(Path("pre/report.json").read_text())["notes"][0].endswith(
        "recordings are silent: a model can learn nothing from them"
    )

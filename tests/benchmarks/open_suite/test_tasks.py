"""Labels follow from paths; the chosen clips have labels; synthesized clips do not depend on the machine."""

from __future__ import annotations

import random

import pytest
from benchmarks.open_suite.synthesis import WORDS, midi_file, notes, utterances
from benchmarks.open_suite.tasks import (
    FONTS,
    OPEN_TASKS,
    Label,
    chosen,
    counted,
    drum8,
    label_of,
    sfx14,
    speaker,
    zh_final,
)

from ssamba.evaluation.suite import open_suite_metadata


@pytest.mark.parametrize(
    ("rule", "package", "path", "label", "group"),
    [
        (sfx14, "openarena-data", "_inner/pak0/sound/weapons/rocket/rocklx1a.wav", "gun_laser", "openarena"),
        (sfx14, "wesnoth-1.16-data", "usr/share/games/wesnoth/1.16/data/core/sounds/wolf-growl-1.ogg", "animal", None),
        (speaker, "asterisk-core-sounds-es-g722", "usr/share/asterisk/sounds/es/digits/5.g722", "allison", "5"),
        (speaker, "tuxpaint-stamps-default", "usr/share/tuxpaint/stamps/animals/cat_desc_fr.ogg", "tux_fr", "cat"),
        (speaker, "klettres-data", "usr/share/klettres/en_GB/alpha/a-1.ogg", "kl_en_GB", "a-1"),
        (
            speaker,
            "fillets-ng-data-nl",
            "usr/share/games/fillets-ng/sound/x/nl/bar-m-hi.ogg",
            "fillets_nl_m",
            "bar-m-hi",
        ),
        (speaker, "gcin-voice", "usr/share/gcin-voice/ogg/ㄅㄚ1/3.ogg", "gcin_3", "ㄅㄚ1"),
        (zh_final, "gcin-voice", "usr/share/gcin-voice/ogg/ㄍㄨㄛ2/5.ogg", "ㄨㄛ", "5"),
        (zh_final, "gcin-voice", "usr/share/gcin-voice/ogg/ㄅ/3.ogg", "syllabic", "3"),
        (zh_final, "gcin-voice", "usr/share/gcin-voice/ogg/ㄦ2/3.ogg", "ㄦ", "3"),
        (drum8, "hydrogen-drumkits", "usr/share/hydrogen/data/drumkits/Millo/Kick_1.flac", "kick", "Millo"),
        (drum8, "sonic-pi-samples", "usr/share/sonic-pi/samples/drum_cowbell.flac", "cowbell", "sonicpi"),
    ],
)
def test_a_path_determines_the_label(rule, package, path, label, group):
    found = rule(package, path)
    assert isinstance(found, Label)
    assert found.label == label
    assert found.group == (group or package)
    assert rule(package, path.rpartition(".")[0] + ".txt") is None


@pytest.mark.parametrize(
    ("rule", "package", "path"),
    [
        (sfx14, "x", "usr/sounds/door_hit.wav"),  # two classes match
        (sfx14, "x", "usr/sounds/voices/laser.wav"),
        (sfx14, "x", "usr/music/theme.ogg"),
        (sfx14, "x", "usr/sounds/qqq.wav"),
        (speaker, "asterisk-core-sounds-en-g722", "usr/share/asterisk/sounds/en/silence/1.g722"),
        (speaker, "tuxpaint-stamps-default", "usr/cat_desc_ml.ogg"),
        (speaker, "tuxpaint-stamps-default", "usr/cat.ogg"),
        (speaker, "other", "usr/a.ogg"),
        (drum8, "lmms-common", "usr/drums/kick_loop.ogg"),
        (drum8, "lmms-common", "usr/drums/bell.ogg"),
    ],
)
def test_a_recording_of_no_class_or_of_several_has_no_label(rule, package, path):
    assert rule(package, path) is None


def test_tasks_are_those_of_the_evaluation_in_its_order():
    assert tuple(OPEN_TASKS) == tuple(open_suite_metadata().tasks)


@pytest.mark.parametrize("task", OPEN_TASKS.values(), ids=lambda task: task.name)
def test_every_chosen_clip_has_a_label_and_no_group_is_in_two_splits(task):
    names = chosen(task.name)
    if task.name == "kws35":
        found = {u.name: u.label for u in utterances()}
    elif task.name == "instr_family":
        found = {n.name: n.label for n in notes()}
    else:
        found = {name: label_of(task, *name.split("/", 1)) for name in names}
    labels = [found[name] for name in names]
    assert None not in labels
    assert len(names) + sum(counted(task.name).values()) in (0, task.clips)
    assert len({(label.group, label.split) for label in labels}) == len({label.group for label in labels})


def test_random_draws_are_fixed_and_leave_the_global_state_alone():
    state = random.getstate()
    spoken = list(utterances())
    assert len({u.name for u in spoken}) == 48 * 35 * 2
    assert spoken[0].word == WORDS[0]
    assert spoken[0].command == (
        "espeak-ng",
        "-v",
        "en-gb-x-rp+grandpa",
        "-s",
        "131",
        "-p",
        "35",
        "-w",
        "{}",
        "backward",
    )
    played = list(notes())
    assert len({n.name for n in played}) == len(FONTS) * 112 * 13
    assert [n.velocity for n in played[:6]] == [90, 90, 60, 90, 120, 90]
    assert random.getstate() == state


def test_the_midi_file_plays_each_note_for_its_time():
    data = midi_file(list(notes())[:2])
    assert data[:14] == b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x01\xe0"
    # Program 0, pitch 36 on; 1.5 s = 1440 ticks later off; 1 s later the next.
    velocity, second = (note.velocity for note in list(notes())[:2])
    start = [0, 0xC0, 0, 0, 0x90, 36, velocity, 0x8B, 0x20, 0x80, 36, 0]
    end = [0x87, 0x40, 0xC0, 0, 0, 0x90, 40, second, 0x8B, 0x20, 0x80, 40, 0, 0x87, 0x40, 0xFF, 0x2F, 0]
    assert data[22:] == bytes(start) + bytes(end)

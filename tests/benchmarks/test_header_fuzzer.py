"""The fuzzer of header fields, on a fixed sample: nothing is silently short, and lossless formats are read whole."""

import itertools
from collections import Counter

import numpy as np
import pytest
from benchmarks.header_fuzzer import (
    CHANGES,
    FORMATS,
    OUTCOMES,
    Case,
    Field,
    cases,
    changed,
    judge,
    make_sample,
    report,
    run,
)

LOSSLESS = ("WAV", "RF64", "W64", "AIFF", "FLAC")


@pytest.fixture(scope="module")
def outcome():
    return run(1600, seed=1)


def test_no_file_is_silently_short_and_nothing_but_audio_is_read(outcome):
    counts, notable = outcome
    assert notable == []
    assert {form for form, _ in counts} == set(FORMATS)


@pytest.mark.parametrize("form", LOSSLESS)
def test_lossless_files_are_read_whole_where_only_a_size_is_wrong(form, outcome):
    total = sum((own for (name, _), own in outcome[0].items() if name == form), Counter())
    assert (total["whole"] + total["warned"]) / total.total() >= 0.98


def test_the_table_has_a_row_for_each_field(outcome):
    text = report(outcome[0])
    assert all(name in text for name in (*FORMATS, *OUTCOMES, "data size", "STREAMINFO count", "COMM count"))


def test_a_change_sets_the_field_alone():
    for form in FORMATS:
        sample = make_sample(form, np.random.default_rng(2))
        assert judge(Case(sample, Field("none", 0, 8), "0", sample.content))[0] == "whole"
        for field in sample.fields:
            if field.page is None:
                for change in CHANGES:
                    content = changed(sample, field, change)
                    first, last = field.bit // 8, -(-(field.bit + field.width) // 8)
                    assert content[:first] == sample.content[:first]
                    assert content[last:] == sample.content[last:]


def test_the_same_seed_gives_the_same_files():
    one, other = ([case.content for case in itertools.islice(cases(3), 50)] for _ in range(2))
    assert one == other

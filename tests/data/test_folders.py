"""Which level of nested folders names the classes."""

import itertools
from pathlib import Path

import pytest

from ssamba.data.folders import Place, read_places
from ssamba.errors import ConfigError

SITES, DATES, BIRDS = ("north", "south"), ("2024-05-01", "2024-05-02", "2024-05-03"), ("robin", "wren", "dunnock")


def files(*levels, root="/data"):
    """One file in each combination of folders."""
    return [Path(root, *parts, "a.wav") for parts in itertools.product(*levels)]


def labels(paths, **options):
    return {place.label for place in read_places(paths, **options)}


def test_the_level_whose_names_repeat_is_the_class(caplog):
    dates = [
        Path("/data", site, f"2024-0{5 + k}-0{day}", bird, "a.wav")
        for (k, site), day, bird in itertools.product(enumerate(SITES), (1, 2, 3), BIRDS)
        if (day, bird) != (2, "wren")
    ]
    assert labels(dates) == set(BIRDS)
    assert "labels are the names of level 3 of its nested folders" in caplog.text
    assert (
        "level 1: north, south (2 names)\n  level 2: 2024-05-01, 2024-05-02, 2024-05-03, ... (6 names)" in caplog.text
    )
    assert labels(files(SITES, DATES, BIRDS)) == set(BIRDS)  # dates repeat, too, but are dates
    assert labels(files(SITES, BIRDS, ("train", "test"))) == set(BIRDS)
    assert labels(dates, labels=1) == set(SITES)


def test_one_level_of_classes_needs_no_choice(caplog):
    assert labels(files(BIRDS)) == set(BIRDS)
    assert labels([*files(BIRDS), Path("/data/robin/extra/b.wav"), Path("/data/c.wav")]) == {*BIRDS, None}
    splits = read_places(files(("train", "test"), BIRDS))
    assert set(splits) == {Place(bird, split) for bird in BIRDS for split in ("train", "test")}
    assert set(read_places(files(BIRDS, ("fold1", "fold2")))) == {
        Place(bird, split) for bird in BIRDS for split in ("fold1", "fold2")
    }
    assert labels(files(("only",))) == {"only"}
    assert not caplog.records


@pytest.mark.parametrize(
    "paths",
    [
        [Path("/data", bird, f"{bird} {k}", "a.wav") for bird in BIRDS for k in range(4)],  # individuals of a species
        files(SITES, ("a", "b"), BIRDS),  # two levels repeat
        [Path("/data", f"bird {k % 6 + j}", f"by {k}", "a.wav") for k in range(12) for j in (0, 1)],  # recordists
    ],
)
def test_levels_that_may_all_be_classes_are_listed(paths):
    with pytest.raises(ConfigError, match="not clear") as error:
        read_places(paths)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("/data: its folders are nested")
    assert lines[1].startswith("  level 1: ")
    assert all(line.count(", ") <= 3 for line in lines[1:-1])  # three examples
    assert lines[-1] == "Give it: --labels-from LEVEL (from Python labels_from=LEVEL)"
    assert labels(paths, labels=len(lines) - 2) == {path.parts[-2] for path in paths}


def test_a_level_without_classes_is_refused():
    for paths, number, message in (
        (
            files(("train", "test"), BIRDS),
            1,
            r"level 1 \(labels-from\) has no classes; .*level 1: test, train .*splits",
        ),
        (files(BIRDS), 2, r"level 2 \(labels-from\) has no classes"),
        (files(BIRDS), "2", r"level '2' \(labels-from\)"),
        (files(("only",)), 1, "all recordings are in this folder itself"),
    ):
        with pytest.raises(ConfigError, match=rf"(?s){message}"):
            read_places(paths, number)

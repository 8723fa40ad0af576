"""The data sets that can be prepared, by name."""

from __future__ import annotations

import difflib

from ssamba.datasets.audioset import AUDIOSET_2M, AUDIOSET_20K
from ssamba.datasets.esc50 import ESC50
from ssamba.datasets.fsd50k import FSD50K
from ssamba.datasets.iemocap import IEMOCAP
from ssamba.datasets.librispeech import LIBRISPEECH
from ssamba.datasets.recipe import Recipe
from ssamba.datasets.speech_commands import SPEECH_COMMANDS_V1, SPEECH_COMMANDS_V1_SUPERB, SPEECH_COMMANDS_V2
from ssamba.datasets.urbansound8k import URBANSOUND8K, URBANSOUND8K_SCENES
from ssamba.datasets.voxceleb1 import VOXCELEB1
from ssamba.errors import DataError

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        AUDIOSET_20K,
        AUDIOSET_2M,
        ESC50,
        FSD50K,
        IEMOCAP,
        LIBRISPEECH,
        SPEECH_COMMANDS_V1,
        SPEECH_COMMANDS_V1_SUPERB,
        SPEECH_COMMANDS_V2,
        URBANSOUND8K,
        URBANSOUND8K_SCENES,
        VOXCELEB1,
    )
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        DataError: there is none; the message has the nearest.
    """
    of_plain = {_plain(known): known for known in RECIPES}
    if _plain(name) in of_plain:  # audioset20k, speech_commands_v1
        return RECIPES[of_plain[_plain(name)]]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), RECIPES, n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}? " if near else ". "
    raise DataError(f"{name!r} is no data set that is known{hint}There are: {', '.join(RECIPES)}")


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")

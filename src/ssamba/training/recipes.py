"""Recipes: one TOML file with all settings of a run. Find them by name or path, read them, change single values.

The recipes that come with ssamba are in `ssamba/recipes/pretrain` and `ssamba/recipes/finetune`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from ssamba.config import RENAMED_KEYS, Config
from ssamba.errors import ConfigError
from ssamba.training.settings import OptimizerSettings, RunSettings, ScheduleSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Command = Literal["pretrain", "finetune"]
R = TypeVar("R", bound="Recipe")
_FOLDER = Path(__file__).parents[1] / "recipes"


class Recipe(Config):
    """Base of `PretrainRecipe` and `FinetuneRecipe`: every setting of a run."""

    command: ClassVar[Command]
    """Command that the recipe is for, which is also the folder of its shipped recipes."""
    alternatives: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Pairs of keys that exclude each other: `with_values` for one resets the other."""

    optimizer: OptimizerSettings = OptimizerSettings()
    """The optimizer."""
    schedule: ScheduleSettings = ScheduleSettings()
    """The learning rate over the run."""
    run: RunSettings
    """Length, precision, checkpoints, logs."""

    @classmethod
    def read(cls: type[R], name: str | Path | None = None, changes: Sequence[str] = ()) -> R:
        """Read a recipe.

        Args:
            name: path of a TOML file, or name of a shipped recipe; None gives the defaults.
            changes: assignments `KEY=VALUE` to apply afterwards, such as `model.size=base`. The value is TOML; a bare
                word is a string, and `none` is None.

        Raises:
            ConfigError: there is no such recipe, it is not valid TOML, a key is unknown or a value does not fit; every
                problem is listed.
        """
        if name is None:
            return cls.parse({}, "defaults").with_values(changes)
        path = find_recipe(cls.command, name)
        return cls.parse(read_toml(path), str(path)).with_values(changes)

    def with_values(self: R, changes: Sequence[str]) -> R:
        """Return a copy with assignments `KEY=VALUE` applied; arguments and errors as for `read`."""
        if not changes:
            return self
        values = self.model_dump()
        assignments = [_parse_assignment(change) for change in changes]
        for pair in self.alternatives:
            for key, other in (pair, pair[::-1]):
                if any(parts == key.split(".") for parts, _ in assignments):
                    _assign(values, other.split("."), None)
        for parts, value in assignments:
            _assign(values, parts, value)
        return type(self).parse(values, f"--set {' '.join(changes)}")

    def with_length(self: R, *, epochs: int | None = None, minutes: float | None = None) -> R:
        """Return a copy that ends after so many epochs or minutes, whichever is first; without either, `self`."""
        if epochs is None and minutes is None:
            return self
        length = {"steps": None, "epochs": epochs, "max_minutes": minutes}
        return self.with_changes(run={**self.run.model_dump(), **length})

    def task_settings(self) -> dict[str, Any]:
        """Return the settings of the task as plain values, without those that the training loop saves itself."""
        return self.model_dump(mode="json", exclude={"optimizer", "schedule", "run"})


def shipped_recipes(command: Command) -> dict[str, Path]:
    """Return the recipes that come with ssamba, by name."""
    return {path.stem: path for path in sorted((_FOLDER / command).glob("*.toml"), key=lambda path: path.stem)}


def find_recipe(command: Command, name: str | Path) -> Path:
    """Return the file of a recipe.

    Args:
        command: command that the recipe is for.
        name: path of a TOML file, or name of a shipped recipe; case, `-` and `_` in names do not matter.

    Raises:
        ConfigError: there is neither; the names of shipped recipes are listed.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_recipes(command)
    path = {_plain(stem): path for stem, path in shipped.items()}.get(_plain(str(name)))
    if path is None:
        raise ConfigError(
            f"recipe {name} does not exist: expected one of {', '.join(shipped)}, or the path of a TOML file"
        )
    return path


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. TOML has no null: the string "none" is read as None.

    Raises:
        ConfigError: the file is not valid TOML.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    return {key: _with_null(value) for key, value in values.items()}


def _parse_assignment(text: str) -> tuple[list[str], Any]:
    """Split `KEY=VALUE` into the parts of the key and the value."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {text}: expected KEY=VALUE, such as run.epochs=5")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    return [RENAMED_KEYS.get(part, part) for part in key.split(".")], _with_null(parsed)


def _assign(values: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    """Set `values[part][part]...`, in place."""
    *sections, last = parts
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {'.'.join(parts)}: {section} is a value, not a section with keys")
    values[last] = value


def _with_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_null(inner) for key, inner in value.items()}
    return None if value == "none" else value


def _plain(name: str) -> str:
    return re.sub("[-_]", "", name.lower())

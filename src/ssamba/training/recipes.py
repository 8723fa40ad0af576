"""Recipes: one TOML file with all settings of a run. Find them by name or path, read them, change single values.

The recipes that come with ssamba are in `ssamba/recipes/pretrain` and `ssamba/recipes/finetune`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

from ssamba.config import RENAMED_KEYS, Config
from ssamba.errors import ConfigError
from ssamba.training.settings import OptimizerSettings, RunSettings, ScheduleSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Command = Literal["pretrain", "finetune"]
Changes: TypeAlias = Mapping[str, Any] | Sequence[str]
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
    def read(cls: type[R], recipe: R | str | Path | None = None, changes: Changes | None = None) -> R:
        """Read a recipe.

        Args:
            recipe: path of a TOML file, or name of a shipped recipe; None gives the defaults, a recipe stays as it is.
            changes: settings to change afterwards, see `with_values`.

        Raises:
            ConfigError: there is no such recipe, it is not valid TOML, a key is unknown or a value does not fit; every
                problem is listed.
        """
        if isinstance(recipe, cls):
            return recipe.with_values(changes)
        if recipe is None:
            return cls.parse({}, "defaults").with_values(changes)
        if not isinstance(recipe, str | Path):
            raise ConfigError(
                f"expected a {cls.__name__}, the name of a recipe ({', '.join(shipped_recipes(cls.command))}) or the "
                f"path of a TOML file, got {type(recipe).__name__}"
            )
        path = find_recipe(cls.command, recipe)
        return cls.parse(read_toml(path), str(path)).with_values(changes)

    def with_values(self: R, changes: Changes | None) -> R:
        """Return a copy with some settings changed.

        Args:
            changes: a mapping from dotted keys to values, such as `{"model.size": "base"}`; or assignments `KEY=VALUE`,
                whose value is TOML, a bare word being a string and `none` None.

        Raises:
            ConfigError: a key is unknown or a value does not fit; every problem is listed.
        """
        assignments = parse_changes(changes)
        if not assignments:
            return self
        values = self.model_dump()
        for pair in self.alternatives:
            for key, other in (pair, pair[::-1]):
                if key in assignments and other not in assignments:
                    _assign(values, other.split("."), None)
        for key, value in assignments.items():
            _assign(values, key.split("."), value)
        given = [f"{key}={value}" for key, value in assignments.items() if value is not None]
        return type(self).parse(values, " ".join(given) or self.command)

    @classmethod
    def from_arguments(
        cls: type[R],
        recipe: R | str | Path | None,
        changes: Changes | None,
        *,
        seed: int | None = None,
        batch_size: int | None = None,
        minutes: float | None = None,
        epochs: int | None = None,
        **own: tuple[str, Any],
    ) -> R:
        """Return a recipe with the changes and arguments of its command.

        Args:
            recipe: as for `read`.
            changes: as for `with_values`.
            seed: seed of the run.
            batch_size: clips in a batch.
            minutes: time budget; with `epochs` the run ends at whichever comes first. Either replaces the recipe's
                length.
            epochs: passes over the data.
            own: other arguments of the command by name: key of the setting and value, None for one that is not given.

        Raises:
            ConfigError: as for `with_values`, or an argument contradicts a change.
        """
        given = parse_changes(changes)
        arguments = {name: pair for name, pair in own.items() if pair[1] is not None}
        if seed is not None:
            arguments["seed"] = ("run.seed", seed)
        if minutes is not None:
            arguments["minutes"] = ("run.max_minutes", minutes)
        if epochs is not None:
            arguments["epochs"] = ("run.epochs", epochs)
        settings = cls.read(recipe, changes)
        if batch_size is not None:
            if type(batch_size) is not int or batch_size < 1:
                raise ConfigError(f"batch_size is a number of clips, at least 1; got {batch_size!r}")
            arguments["batch_size"] = settings.batch_size_setting(batch_size)
        for name, (key, value) in arguments.items():
            if key in given and given[key] != value:
                raise ConfigError(f"{name}={value} and {key}={given[key]} contradict each other: give one of them")
        values = dict(arguments.values())
        if minutes is not None or epochs is not None:
            length = {"run.steps": None, "run.epochs": None, "run.max_minutes": None}
            values = {**{key: value for key, value in length.items() if key not in given}, **values}
        return settings.with_values(values)

    def batch_size_setting(self, clips: int) -> tuple[str, Any]:
        """Return key and value of the setting that makes a batch of this many clips."""
        raise NotImplementedError

    def task_settings(self) -> dict[str, Any]:
        """Return the settings of the task as plain values, without those that the training loop saves itself."""
        return self.model_dump(mode="json", exclude={"optimizer", "schedule", "run"})

    @classmethod
    def task_defaults(cls) -> dict[str, Any]:
        """Return the task's settings at their defaults, which a run of an older version had without naming them."""
        return cls.parse({}, "defaults").task_settings()


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


def parse_changes(changes: Changes | None) -> dict[str, Any]:
    """Return changes of settings as a dict from dotted keys to values; see `Recipe.with_values`.

    Raises:
        ConfigError: an assignment is not of the form KEY=VALUE, or a key is given twice with different values.
    """
    if changes is None:
        return {}
    if isinstance(changes, str):
        changes = [changes]
    if not isinstance(changes, Mapping | list | tuple):
        raise ConfigError(f"set takes {{KEY: VALUE}} or a list of KEY=VALUE, got {type(changes).__name__}")
    pairs = list(changes.items()) if isinstance(changes, Mapping) else [_parse_assignment(text) for text in changes]
    found: dict[str, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str) or not all(key.split(".")):
            raise ConfigError(f"{key!r}: expected the key of a setting, such as run.epochs")
        key = ".".join(RENAMED_KEYS.get(part, part) for part in key.split("."))
        if key in found and found[key] != value:
            raise ConfigError(f"{key} is set twice, to {found[key]!r} and to {value!r}: give one of them")
        found[key] = value
    return found


def _parse_assignment(text: str) -> tuple[str, Any]:
    """Split `KEY=VALUE` into the key and the value."""
    key, equals, value = (part.strip() for part in str(text).partition("="))
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{text}: expected KEY=VALUE, such as run.epochs=5")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    return key, _with_null(parsed)


def _assign(values: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    """Set `values[part][part]...`, in place."""
    *sections, last = parts
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{'.'.join(parts)}: {section} is a value, not a section with keys")
    values[last] = value


def _with_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_null(inner) for key, inner in value.items()}
    return None if value == "none" else value


def _plain(name: str) -> str:
    return re.sub("[-_]", "", name.lower())

"""Base of all configurations: frozen, validated once, saved beside every result.

An unknown key raises an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from ssamba.errors import ConfigError
from ssamba.hashing import digest_of_json

C = TypeVar("C", bound="Config")

RENAMED_KEYS = {
    "normalise_targets": "normalize_targets",
    "optimiser": "optimizer",
    "equaliser_db": "equalizer_db",
    "centres": "centers",
}
"""Old spelling of a key -> current spelling. Checkpoints, recipes and saved states with the old one can be loaded."""
_FIRST_SPELLINGS = {new: old for old, new in RENAMED_KEYS.items()}


def settings_differences(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = frozenset()
) -> list[str]:
    """Return a text for each setting that differs, such as `run.seed was 0, is 1`; a missing key equals None.

    Args:
        before: settings of what exists, as nested plain values.
        now: settings that are wanted.
        free: dotted names of settings that may differ.
    """
    old, new = flat_settings(before), flat_settings(now)
    return [
        f"{key} was {old.get(key, 'absent')!r}, is {new.get(key, 'absent')!r}"
        for key in sorted({*old, *new}.difference(free))
        if old.get(key) != new.get(key)
    ]


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flat_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


class Config(BaseModel):
    """Base of all configurations: immutable, without unknown keys, with a digest."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _read_old_spellings(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and not RENAMED_KEYS.keys().isdisjoint(values):
            return {RENAMED_KEYS.get(key, key): value for key, value in values.items()}
        return values

    @classmethod
    def parse(cls: type[C], values: Mapping[str, Any], source: str) -> C:
        """Validate a mapping that was read from `source` (a file name, for the error message).

        Raises:
            ConfigError: a key is unknown or a value is invalid; the message lists every problem.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            found = error.errors()
            # A wrong item also makes its list too short.
            outer = {e["loc"][:depth] for e in found for depth in range(1, len(e["loc"]))}
            problems = "; ".join(cls._explain(dict(e)) for e in found if e["loc"] not in outer)
            raise ConfigError(f"{source}: {problems}") from None

    @classmethod
    def _explain(cls, error: dict[str, Any]) -> str:
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):  # a nested configuration has its own message
            return str(cause)
        key = ".".join(str(part) for part in error["loc"])
        if error["type"] != "extra_forbidden":
            where = f"{key}: " if key else ""
            # Of a whole configuration, the message names what matters.
            got = "" if isinstance(error["input"], Mapping) else f" (got {error['input']!r})"
            problem = error["msg"].removeprefix("Value error, ").partition(", unable to parse string as")[0]
            return f"{where}{problem}{got}"
        known, last = cls._keys_beside(error["loc"]), str(error["loc"][-1])
        near = difflib.get_close_matches(last, known, n=1)
        if not near:  # perhaps its section is missing or another one
            by_last = {dotted.rpartition(".")[2]: dotted for dotted in _dotted_keys(cls)}
            near = [by_last[name] for name in difflib.get_close_matches(last, by_last, n=1, cutoff=0.75)]
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"

    @classmethod
    def _keys_beside(cls, location: tuple[str | int, ...]) -> list[str]:
        model: type[BaseModel] = cls
        for part in location[:-1]:
            field = model.model_fields.get(str(part))
            model = (_inner_model(field) if field is not None else None) or model
        return list(model.model_fields)

    def with_changes(self: C, **changes: Any) -> C:
        """Return a validated copy with some fields changed.

        Raises:
            ConfigError: a name is unknown or a value is invalid.
        """
        return type(self).parse({**self.model_dump(), **changes}, type(self).__name__)

    def digest(self) -> str:
        """Return 16 hexadecimal digits that change when any value does.

        A field that is newer than format 1 says so, `Field(default, json_schema_extra={"since": 2})`, and counts only
        where it differs from its default, so adding one leaves every digest as it was. Renamed keys count under their
        first spelling.
        """
        return digest_of_json(_digested(self, self.model_dump(mode="json")))


def _inner_model(field: FieldInfo) -> type[BaseModel] | None:
    """Return the configuration that a field holds, if it holds one."""
    options = [field.annotation, *getattr(field.annotation, "__args__", ())]
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a configuration and of those in it, such as `run.seed`."""
    for name, field in model.model_fields.items():
        inner = _inner_model(field)
        yield prefix + name
        if inner is not None:
            yield from _dotted_keys(inner, f"{prefix}{name}.")


def _digested(value: Any, dumped: Any) -> Any:
    """Return `dumped`, the JSON form of `value`, as digests see it: without new fields at their default."""
    if isinstance(value, Config):
        fields = type(value).model_fields
        return {
            _FIRST_SPELLINGS.get(name, name): _digested(getattr(value, name), dumped[name])
            for name in dumped
            if not (
                _is_new(fields[name]) and getattr(value, name) == fields[name].get_default(call_default_factory=True)
            )
        }
    if isinstance(value, Mapping):
        return {name: _digested(one, dumped[name]) for name, one in zip(dumped, value.values(), strict=True)}
    if isinstance(value, list | tuple):
        return [_digested(*pair) for pair in zip(value, dumped, strict=True)]
    return dumped


def _is_new(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and "since" in extra

"""Configuration of the models in transformers: the fields of `ModelConfig`, and those of `PreTrainedConfig`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from ssamba.config import (
    ENCODER_CONFIGS,
    BaseEncoderConfig,
    ClassifierConfig,
    Config,
    EncoderConfig,
    FrontEndConfig,
    ModelConfig,
    PretrainingConfig,
    SSASTConfig,
)
from ssamba.model import encoder_config

CODE_FILE = "modeling_ssamba.py"
"""File in a folder that `trust_remote_code=True` runs: it imports the classes of the installed ssamba."""
_PARTS: dict[str, type[Config]] = {
    "classifier": ClassifierConfig,
    "pretraining": PretrainingConfig,
    "front_end": FrontEndConfig,
}
_OWN_FIELDS = tuple(ModelConfig.model_fields)


class SsambaConfig(PreTrainedConfig):
    """Configuration of every model of ssamba: SSAMBA (official and ssamba2) and SSAST.

    `SsambaConfig(size="tiny", variant="ssamba2", num_frames=512)` takes the arguments of `ssamba.create_encoder`;
    without any, it is the official tiny structure. `encoder=`, `classifier=`, `pretraining=` and `front_end=` take the
    configurations of `ssamba.config`, or their fields as a mapping.

    Raises:
        ConfigError: a field is unknown or invalid; the message names it.
    """

    model_type = "ssamba"

    if TYPE_CHECKING:  # fields of `PreTrainedConfig`
        id2label: Any
        label2id: Any
        num_labels: Any
        problem_type: Any
        dtype: Any
        architectures: Any
        auto_map: Any

    format_version: int = 1
    family: str = "ssamba"
    """Family of the encoder: `ssamba` or `ssast`."""
    kind: str = "encoder"
    """The heads that the weights include: encoder, pretraining or classifier; each class sets its own."""
    encoder: Any = None
    """Fields of `EncoderConfig` or `SSASTConfig`."""
    classifier: Any = None
    """Fields of `ClassifierConfig`; its labels and `id2label` are kept equal."""
    pretraining: Any = None
    """Fields of `PretrainingConfig`."""
    origin: str | None = None
    """Provenance of the weights, for human readers."""
    base: Any = None
    """The model that training started from."""
    front_end: Any = None
    """Fields of `FrontEndConfig`; None: those of `preprocessor_config.json` in the folder, or the official ones."""

    def __post_init__(self, **kwargs: Any) -> None:
        fields = {**EncoderConfig.model_fields, **SSASTConfig.model_fields}
        named = {name: kwargs.pop(name) for name in list(kwargs) if name in fields}
        if self.encoder is None:
            named = {"size": kwargs.pop("size", "tiny"), **named}
            encoder: BaseEncoderConfig = encoder_config(**named)
        elif isinstance(self.encoder, BaseEncoderConfig):
            encoder = self.encoder.with_changes(**named)
        else:
            encoder = ENCODER_CONFIGS[self.family].parse({**self.encoder, **named}, "encoder")
        self.family, self.encoder = encoder.family, encoder.model_dump(mode="json")
        for name, kind in _PARTS.items():
            value = getattr(self, name)
            if value is not None:
                value = value if isinstance(value, kind) else kind.parse(value, name)
                setattr(self, name, value.model_dump(mode="json"))
        if self.classifier is not None:
            if self.id2label is None and "num_labels" not in kwargs:
                names = self.classifier["labels"] or map(str, range(self.classifier["num_classes"]))
                self.id2label = dict(enumerate(names))
                self.label2id = {name: number for number, name in self.id2label.items()}
            if self.problem_type is None and self.classifier["activation"] == "sigmoid":
                self.problem_type = "multi_label_classification"
        for name in _OWN_FIELDS:  # some are not declared above
            setattr(self, name, kwargs.pop(name, getattr(self, name, ModelConfig.model_fields[name].default)))
        if self.dtype is None:
            self.dtype = "float32"  # as float16 weights are loaded by ssamba, too
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width D of the tokens."""
        return int(self.encoder["embed_dim"])

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers with a hidden state (SSAMBA: pairs of blocks)."""
        return self.encoder_config.num_layers

    @property
    def encoder_config(self) -> EncoderConfig | SSASTConfig:
        """The encoder's configuration."""
        return ENCODER_CONFIGS[self.family].parse(self.encoder, "encoder")

    def to_model_config(self) -> ModelConfig:
        """Return the configuration as ssamba has it."""
        return ModelConfig.parse({name: getattr(self, name) for name in _OWN_FIELDS}, "config")

    def match_labels(self) -> None:
        """Set the classifier's labels and activation to `id2label` and `problem_type`."""
        names = tuple({int(number): name for number, name in self.id2label.items()}[i] for i in range(self.num_labels))
        numbers = range(len(names))
        generic = names in (tuple(f"LABEL_{i}" for i in numbers), tuple(map(str, numbers)))
        labels = None if generic else names
        before = self.classifier or {}
        if before.get("num_classes") != len(names) or before.get("labels") != (labels and list(labels)):
            # What was measured for other classes does not hold for these.
            kept = ("pooling", "padding", "activation")
            before = {name: before[name] for name in kept if name in before}
        changed = {**before, "num_classes": len(names), "labels": labels}
        if self.problem_type is not None:
            is_multi = self.problem_type == "multi_label_classification"
            changed["activation"] = "sigmoid" if is_multi else "softmax"
        self.classifier = ClassifierConfig.parse(changed, "classifier").model_dump(mode="json")

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what `config.json` holds: every field of ours, and those of transformers that are not the default."""
        own = {name: getattr(self, name) for name in (*_OWN_FIELDS, "front_end")}
        return {**super().to_diff_dict(), **own}

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: saved folders import these classes from the installed package (`CODE_FILE`)."""

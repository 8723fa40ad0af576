"""What folders for the Hugging Face hub hold besides configuration and weights: code and a model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssamba.checkpoint import LoadReport, available_models, convert_checkpoint, load_checkpoint
from ssamba.checkpoint.files import CONFIG_FILE, write_json
from ssamba.config import FrontEndConfig
from ssamba.files import folder_name, user_path, write_text
from ssamba.integrations.huggingface.configuration import CODE_FILE, SsambaConfig
from ssamba.integrations.huggingface.feature_extraction import SsambaFeatureExtractor

CARD_FILE = "README.md"
AUTO_CLASSES = {
    "AutoConfig": "SsambaConfig",
    "AutoFeatureExtractor": "SsambaFeatureExtractor",
    "AutoModel": "SsambaModel",
    "AutoModelForPreTraining": "SsambaForPreTraining",
    "AutoModelForAudioClassification": "SsambaForAudioClassification",
}
"""Auto classes of transformers, each with the class that it makes."""
_ARCHITECTURES = {
    "encoder": "SsambaModel",
    "pretraining": "SsambaForPreTraining",
    "classifier": "SsambaForAudioClassification",
}
_INSTALL = 'pip install "ssamba[hf]"'
_CODE = f'''"""The classes of this model, from the installed package ssamba."""

try:
    from ssamba.integrations.huggingface import *  # noqa: F403
except ImportError as error:
    raise ImportError(f'This model needs the package ssamba ({{error}}): {_INSTALL}') from None
'''


def write_code(folder: Path, config: SsambaConfig) -> None:
    """Write the feature extractor's configuration, and the code for `trust_remote_code=True`."""
    SsambaFeatureExtractor.from_config(config).save_pretrained(folder)
    write_text(folder / CODE_FILE, _CODE)


def complete(config: SsambaConfig, front_end: FrontEndConfig) -> None:
    """Set what a folder's `config.json` needs besides the fields that the user chose."""
    if config.kind == "classifier":
        config.match_labels()
    config.front_end = front_end.model_dump(mode="json")
    config.architectures = [_ARCHITECTURES[config.kind]]
    config.auto_map = {auto: f"{Path(CODE_FILE).stem}.{name}" for auto, name in AUTO_CLASSES.items()}


def model_card(
    config: SsambaConfig,
    title: str,
    *,
    repo: str = "OWNER/NAME",
    source: str | None = None,
    tags: Sequence[str] = (),
) -> str:
    """Return the text of a model card: what the model is, where its weights come from, how to use it.

    Args:
        config: the model's configuration.
        title: heading.
        repo: repository on the hub, for the examples.
        source: name of the model that it was made from, whose license and data are named if it is a known one.
        tags: more tags.
    """
    own, front_end = config.to_model_config(), FrontEndConfig.parse(config.front_end or {}, "front_end")
    known = {model.name: model for model in available_models() if model.where != "cached"}
    base = known.get(own.base.name) if own.base is not None else None
    known_model = known.get(source or "")
    task = "audio-classification" if own.kind == "classifier" else "feature-extraction"
    listed = dict.fromkeys(["audio", "ssamba", "mamba", "log-mel", task, *tags])
    license_line = f"license: {known_model.license.lower()}\n" if known_model and known_model.license == "MIT" else ""
    facts = [
        ("encoder", own.encoder.summary),
        ("input", f"{front_end.sample_rate_hz} Hz, {front_end.num_mel_bins} mel bins, any length"),
        ("window", f"{own.encoder.num_frames} frames of {front_end.shift_ms:g} ms"),
        ("weights", own.origin or "not stated"),
    ]
    facts += [("data", known_model.data)] if known_model else []
    facts += [("trained from", f"{own.base}{f', license {base.license}' if base else ''}")] if own.base else []
    if own.classifier is not None:
        labels = own.classifier.labels or tuple(map(str, range(own.classifier.num_classes)))
        shown = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
        facts.append(("classes", f"{len(labels)} ({shown}), {own.classifier.activation}"))
    use = (
        'pipe = pipeline("audio-classification", model=MODEL, trust_remote_code=True)\nprint(pipe(waveform))'
        if own.kind == "classifier"
        else 'pipe = pipeline("feature-extraction", model=MODEL, trust_remote_code=True)\n'
        'print(pipe("recording.wav", return_tensors=True).shape)'
    )
    call = "predict" if own.kind == "classifier" else "embed"
    table = "\n".join(f"| {key} | {value} |" for key, value in facts)
    return f"""---
library_name: transformers
pipeline_tag: {task}
{license_line}tags:
{chr(10).join(f"- {tag}" for tag in listed)}
---

# {title}

A model of [ssamba](https://pypi.org/project/ssamba/): self-supervised audio representations with a bidirectional Mamba
over spectrogram patches (Shams et al., SLT 2024, [arXiv:2405.11831](https://arxiv.org/abs/2405.11831)).

| | |
|---|---|
{table}

## Use

```bash
{_INSTALL}
```

```python
from transformers import pipeline

MODEL = "{repo}"
{use}
```

or, without transformers,

```python
import ssamba

model = ssamba.load_model("hf:{repo}")
print(model.{call}("recording.wav"))
```
"""


def convert_to_hf(
    checkpoint: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    half: bool = False,
    origin: str | None = None,
) -> LoadReport:
    """Write any checkpoint as a folder for the hub: `from_pretrained` and `ssamba.load_model` read it.

    Besides what `convert_checkpoint` writes it holds the keys of transformers, `modeling_ssamba.py` for
    `trust_remote_code=True`, and a model card, unless there is one. Arguments, result and errors as
    `convert_checkpoint`.
    """
    report = convert_checkpoint(checkpoint, output, overwrite=overwrite, half=half, origin=origin)
    folder = user_path(output)
    loaded = load_checkpoint(folder)
    config = SsambaConfig(**loaded.config.model_dump(mode="json"), front_end=loaded.front_end)
    complete(config, loaded.front_end)
    write_code(folder, config)
    if not (folder / CARD_FILE).exists():
        write_text(folder / CARD_FILE, model_card(config, folder_name(folder), source=report.name))
    write_json(folder / CONFIG_FILE, config.to_diff_dict())
    return report

"""Messages for names that people guess who know whisper, timm, sentence-transformers or transformers.

The package and its results have one name for each thing; a guessed one raises an AttributeError that gives it:

    model.encode("dog.wav")     AttributeError: 'Embedder' has no attribute 'encode': use model.embed(source)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

_LOAD = 'use ssamba.load_model("ssamba2-tiny"); ssamba.available_models() lists the names'
_MODULE = "the torch module is model.encoder"
_SAVE = "use ssamba.save_checkpoint(folder, model.encoder), or model.classifier"

PACKAGE = {
    **dict.fromkeys(("load", "from_pretrained", "AutoModel", "SSAMBA", "Model", "get_model", "pipeline"), _LOAD),
    "create_model": f"{_LOAD}; ssamba.create_encoder makes an encoder with random weights",
    **dict.fromkeys(("list_models", "models"), "use ssamba.available_models()"),
    **dict.fromkeys(("embed", "encode", "transcribe"), "model = ssamba.load_model(), then model.embed(source)"),
    **dict.fromkeys(("predict", "classify"), "model = ssamba.load_model(checkpoint), then model.predict(source)"),
    "load_audio": "use ssamba.audio.decode.decode(path); models take paths, too",
    **dict.fromkeys(("log_mel", "log_mel_spectrogram"), "use ssamba.audio.fbank.log_mel(waveform)"),
    "convert": "use ssamba.convert_checkpoint",
    "average": "use ssamba.average_checkpoints",
    "reconstruct": "use ssamba.reconstruct_recording",
    **dict.fromkeys(("save", "save_model"), "use ssamba.save_checkpoint(folder, model.encoder)"),
    "train": "use ssamba.pretrain or ssamba.finetune",
}
"""Guessed names of the package."""
EMBEDDER = {
    **dict.fromkeys(("encode", "forward", "embed_file", "embed_audio", "transcribe"), "use model.embed(source)"),
    **dict.fromkeys(("embed_files", "embed_folder"), 'use ssamba.embed_files(recordings, "embeddings.npz", model)'),
    "predict_files": 'use ssamba.predict_files(recordings, model, "labels.csv")',
    "forward_features": "use model.encoder(features), or model.embed(source, layer=number)",
    "eval": "it is in evaluation mode",
    "train": f"{_MODULE}: model.encoder.train()",
    **dict.fromkeys(("half", "bfloat16", "double", "float"), "convert its encoder, such as model.encoder.bfloat16()"),
    "cuda": 'use model.to("cuda")',
    "cpu": 'use model.to("cpu")',
    **dict.fromkeys(("parameters", "state_dict", "load_state_dict", "compile", "modules", "model", "dtype"), _MODULE),
    **dict.fromkeys(("sample_rate", "sampling_rate", "sr"), "use model.front_end.sample_rate_hz"),
    **dict.fromkeys(("embed_dim", "embedding_dim", "num_features", "hidden_size"), "use model.dim"),
    "get_sentence_embedding_dimension": "use model.dim",
    **dict.fromkeys(("save", "save_pretrained", "push_to_hub"), _SAVE),
    **dict.fromkeys(("labels", "classes", "id2label"), "use model.config.classifier.labels, of a fine-tuned model"),
    "similarity": "use torch.nn.functional.cosine_similarity(one.clip, other.clip, dim=0)",
}
"""Guessed names of an `Embedder`."""
EMBEDDING = {
    **dict.fromkeys(
        ("numpy", "cpu", "shape", "mean", "embedding", "vector", "tolist", "norm", "pooler_output"),
        "use embedding.clip (D,), one vector for the recording",
    ),
    "last_hidden_state": "use embedding.frames (K, D), one vector for each time step",
    **dict.fromkeys(("timestamps", "times"), "use embedding.times_s (K,)"),
    "duration": "use embedding.duration_s",
}
"""Guessed names of an `Embedding`."""
PREDICTION = {
    **dict.fromkeys(
        ("label", "top", "topk", "score", "scores"), "use prediction.best(count), labels with probabilities"
    ),
    **dict.fromkeys(("probs", "logits"), "use prediction.probabilities (C,), in the order of prediction.labels"),
}
"""Guessed names of a `Prediction`."""


def no_attribute(owner: str, name: str, hints: Mapping[str, str], known: Iterable[str]) -> AttributeError:
    """Return the error for a name that `owner` does not have.

    Args:
        owner: what lacks it, such as `'Embedder'`.
        name: the name.
        hints: what to use in place of guessed names.
        known: public names, of which near ones are suggested.
    """
    message = f"{owner} has no attribute {name!r}"
    near = difflib.get_close_matches(name, [one for one in known if not one.startswith("_")], n=1)
    if name in hints:
        message += f": {hints[name]}"
    elif near and not name.startswith("_"):
        message += f". Did you mean {near[0]!r}?"
    return AttributeError(message)

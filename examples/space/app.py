"""A page that finds the demo's sounds nearest to yours: `pip install gradio`, `python app.py FOLDER`.

As a Space on the Hugging Face hub: these three files, with the recordings in a folder `audio` beside them.
"""

import sys
from pathlib import Path

import gradio
import numpy as np

import ssamba

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "audio")
FILES = sorted(FOLDER.glob("*.flac"))
MODEL = ssamba.load_model("ssamba2-tiny")
VECTORS = np.stack([e.clip for e in MODEL.embed(FILES)])


def nearest(path: str) -> tuple[dict[str, float], str]:
    """Return the similarity of each sound to the recording, centered cosine, and the file of the nearest."""
    mean = VECTORS.mean(0)
    both = np.vstack((VECTORS, MODEL.embed(path).clip)) - mean
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    scores = both[:-1] @ both[-1]
    shown = {file.stem: max(0.0, float(score)) for file, score in zip(FILES, scores, strict=True)}
    return shown, str(FILES[int(scores.argmax())])


page = gradio.Interface(
    nearest,
    gradio.Audio(type="filepath", label="a sound: record it, or drop a file"),
    [gradio.Label(num_top_classes=5, label="alike"), gradio.Audio(label="the nearest")],
    title="Which sound is like mine?",
    description=f"Compared by SSAMBA embeddings with {len(FILES)} recordings.",
    flagging_mode="never",
)

if __name__ == "__main__":
    page.launch(allowed_paths=[str(FOLDER)])

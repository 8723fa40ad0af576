"""Train an encoder in a plain PyTorch loop: recordings -> features -> encoder -> linear head -> AdamW.

    python examples/own_loop.py                                     # recordings in demo/audio, 10 epochs
    python examples/own_loop.py sounds/ --workers 4 --bf16 --checkpointing --compile

The label of a recording is its name up to the first underscore. Nothing is held out: this shows the calls, and
`ssamba finetune` does the rest (splits, validation, resuming).

Shapes: B pieces, S samples, T frames, D channels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import ssamba
from ssamba.audio.decode import decode
from ssamba.audio.fbank import frame_lengths, log_mel
from ssamba.audio.files import find_audio
from ssamba.model import PatchEncoder
from ssamba.model.patches import column_counts

DEMO_AUDIO = Path(__file__).resolve().parent.parent / "demo" / "audio"
FRONT_END = ssamba.FrontEndConfig()
PIECE_S = 1.0
SHORTEST_S = 0.2


class Batch(NamedTuple):
    """Pieces of different lengths."""

    waves: Tensor  # (B, S), zeros after a piece's own samples
    samples: Tensor  # (B,)
    labels: Tensor  # (B,)


class Pieces(Dataset[tuple[Tensor, int]]):
    """Pieces of recordings of at most one second, decoded by the worker that is asked for them."""

    def __init__(self, paths: Sequence[Path]):
        self.classes = sorted({path.stem.split("_")[0] for path in paths})
        self.pieces = []
        for path in paths:
            seconds = len(decode(path, sample_rate_hz=FRONT_END.sample_rate_hz)) / FRONT_END.sample_rate_hz
            starts = [start * PIECE_S for start in range(int(seconds / PIECE_S) + 1)]
            self.pieces += [(path, start) for start in starts if seconds - start >= SHORTEST_S]

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, start_s = self.pieces[index]
        rate = FRONT_END.sample_rate_hz
        wave = torch.from_numpy(decode(path, sample_rate_hz=rate, start_s=start_s, duration_s=PIECE_S))
        return wave, self.classes.index(path.stem.split("_")[0])


def collate(pieces: Sequence[tuple[Tensor, int]]) -> Batch:
    """Pad pieces to the longest."""
    waves, labels = zip(*pieces, strict=True)
    samples = torch.tensor([len(wave) for wave in waves])
    return Batch(nn.utils.rnn.pad_sequence(list(waves), batch_first=True), samples, torch.tensor(labels))


class SoundClassifier(nn.Module):
    """Mean over the valid tokens of a clip, and a linear layer."""

    def __init__(self, encoder: PatchEncoder, classes: int):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.config.embed_dim, classes)

    def forward(self, features: Tensor, frames: Tensor) -> Tensor:
        """Classify features (B, T, 128) with `frames` (B,) valid ones: logits (B, classes)."""
        tokens = self.encoder(features, frames)[:, self.encoder.num_prefix_tokens :]  # zeros after a clip's own
        count = column_counts(frames, self.encoder.config) * self.encoder.config.rows
        logits: Tensor = self.head(tokens.sum(1) / count[:, None])
        return logits


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on the recordings that the command line names, and save the encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="*", type=Path, default=[DEMO_AUDIO], help="files and folders")
    parser.add_argument("-c", "--checkpoint", help="start from these weights, not from random ones")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/own-loop"), help="folder for the weights")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2, help="processes that decode")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument("--compile", action="store_true", help="torch.compile: about a minute before the first step")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = Pieces(find_audio(options.recordings))
    loader = DataLoader(
        data,
        options.batch_size,
        shuffle=True,
        num_workers=options.workers,
        collate_fn=collate,
        persistent_workers=options.workers > 0,
    )
    encoder = (
        ssamba.load_encoder(options.checkpoint) if options.checkpoint else ssamba.create_encoder("tiny", "ssamba2")
    )
    encoder.gradient_checkpointing = options.checkpointing
    model = SoundClassifier(encoder, len(data.classes)).to(device).train()
    if options.compile:
        encoder.compile(dynamic=True)  # in place, so that names in the state dict stay as they are
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)

    for epoch in range(options.epochs):
        started, losses, right = time.perf_counter(), [], 0
        for batch in loader:
            waves, samples, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
            with torch.no_grad():
                features = log_mel(waves, samples, FRONT_END)  # (B, T, 128)
            with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
                logits = model(features, frame_lengths(samples, FRONT_END))
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item() * len(labels))
            right += int((logits.argmax(1) == labels).sum())
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(data):.3f}, right {right}/{len(data)}, {seconds:.1f} s")
    ssamba.save_checkpoint(options.output, encoder)
    print(f"the trained encoder: {options.output} (for ssamba.load_encoder and -c of every command)")


if __name__ == "__main__":
    main()

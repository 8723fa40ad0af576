"""The models in transformers: encoder, pretraining model and classifier.

Tensors have the same names in every class (`encoder.*`, and the heads beside it), so that any class reads what another
one or `ssamba.save_checkpoint` wrote.

Shapes: B clips, T frames, M mel bins, P prefix tokens, L patch tokens, K columns (time steps), D channels, C classes.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from huggingface_hub import HfApi
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput, SequenceClassifierOutput
from transformers.utils import can_return_tuple
from transformers.utils.hub import cached_file

from ssamba.checkpoint import build_model
from ssamba.checkpoint.files import PREPROCESSOR_FILE, read_json
from ssamba.config import BaseEncoderConfig, FrontEndConfig, PretrainingConfig
from ssamba.files import write_text
from ssamba.inference import WindowCutter
from ssamba.integrations.huggingface.configuration import SsambaConfig
from ssamba.integrations.huggingface.feature_extraction import HUB_KEYS
from ssamba.integrations.huggingface.sharing import CARD_FILE, complete, model_card, write_code
from ssamba.model import build_encoder, info_nce, reconstruction_error
from ssamba.model.heads import pool_tokens
from ssamba.model.masking import DEFAULT_MASK_RATIO, draw_mask
from ssamba.model.patches import column_counts
from ssamba.model.pretraining import PretrainingHeads
from ssamba.model.readouts import parts, time_steps

_GENERATIVE_WEIGHT = 10.0
"""Weight of the reconstruction error in the loss (SSAMBA, section 3.3)."""
_CERTAIN = 1e4
"""Logit of a class that is certain."""


@dataclass
class SsambaModelOutput(BaseModelOutputWithPooling):
    """Result of `SsambaModel`.

    `last_hidden_state`: tokens (B, P + L, D) after the final norm, prefix tokens first, zeros after a clip's own;
    `pooler_output`: the readout `clip`, the mean over patch tokens (B, D); `hidden_states`: the input of the first
    layer and the output of each, before the final norm.
    """

    parts: Tensor | None = None
    """The readout `parts`: mean, and means of the thirds of the sounding region (B, 4 * D)."""
    frames: Tensor | None = None
    """Mean over frequency of each time step (B, K, D); zeros after a clip's own."""


@dataclass
class SsambaForPreTrainingOutput(ModelOutput):
    """Result of `SsambaForPreTraining`."""

    loss: Tensor | None = None
    """`discriminative_loss` + 10 * `generative_loss`, as the original weights them."""
    discriminative_loss: Tensor | None = None
    """InfoNCE between the masked patches of a clip, in nats."""
    generative_loss: Tensor | None = None
    """Mean squared error of the masked patches."""
    accuracy: Tensor | None = None
    """Share of masked patches that the discriminative head finds."""
    bool_masked_pos: Tensor | None = None
    """The masked patches (B, L)."""


class SsambaPreTrainedModel(PreTrainedModel):
    """Base of the models: one encoder, read from and written to folders that ssamba reads, too."""

    config_class = SsambaConfig
    base_model_prefix = ""  # every class holds the encoder under the same name
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["SSAMBAEncoder", "SSASTEncoder"]

    config: SsambaConfig
    encoder: Any
    if TYPE_CHECKING:
        post_init: Any

    def __init__(self, config: SsambaConfig, kind: Literal["encoder", "pretraining", "classifier"]):
        config = copy.deepcopy(config)
        config.kind = kind
        config.classifier = config.classifier if kind == "classifier" else None
        config.pretraining = config.pretraining if kind == "pretraining" else None
        super().__init__(config)
        self._set_front_end(config.front_end)

    def init_weights(self) -> None:
        """Keep the weights that the constructors drew, by the rules of `ssamba.model`."""
        self.tie_weights(recompute_mapping=False)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draw the parameters that a checkpoint did not have, by the rules of `ssamba.model`."""
        missing = {name: p for name, p in self.named_parameters() if not getattr(p, "_is_hf_initialized", False)}
        if missing:
            drawn = dict(build_model(self.config.to_model_config()).named_parameters())
            for name, parameter in missing.items():
                parameter.copy_(drawn[name])

    def _set_front_end(self, values: Mapping[str, Any] | None) -> None:
        """Remember how features are normalized, which readouts depend on."""
        known = {} if values is None else {k: v for k, v in values.items() if k in FrontEndConfig.model_fields}
        fields = {"num_mel_bins": self.config.encoder_config.num_mel_bins, **known}
        self.front_end = FrontEndConfig.parse(fields, "front_end")
        self.config.front_end = None if values is None else self.front_end.model_dump(mode="json")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a folder or hub repository of transformers' or ssamba's; arguments as `PreTrainedModel`."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.front_end is None and pretrained_model_name_or_path is not None:
            hub = {name: kwargs[name] for name in HUB_KEYS if name in kwargs}
            path = cached_file(
                pretrained_model_name_or_path, PREPROCESSOR_FILE, _raise_exceptions_for_missing_entries=False, **hub
            )
            model._set_front_end(None if path is None else read_json(Path(path)))
        return loaded

    def save_pretrained(
        self, save_directory: Any, *args: Any, is_main_process: bool = True, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write a folder that transformers and `ssamba.load_model` read; arguments as `PreTrainedModel`.

        Besides weights and `config.json` it holds `preprocessor_config.json`, and `modeling_ssamba.py` for
        `trust_remote_code=True`.
        """
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), token=kwargs.get("token"))
        complete(self.config, self.front_end)
        super().save_pretrained(save_directory, *args, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            write_code(Path(save_directory), self.config)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload model",
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = "50GB",
        tags: list[str] | None = None,
    ) -> Any:
        """Upload the folder that `save_pretrained` writes, with a model card unless the repository has one.

        Args:
            repo_id: `OWNER/NAME`; created if it does not exist.
            commit_message, commit_description, create_pr: of the commit.
            private: of a new repository.
            token: access token; None takes the stored one.
            revision: branch to upload to; created if it does not exist.
            max_shard_size: `ssamba.load_model` reads weights in one file alone.
            tags: more tags for the model card.

        Returns:
            The commit, as `huggingface_hub` describes it.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            if not api.file_exists(repo_id, CARD_FILE, revision=revision):
                write_text(Path(folder) / CARD_FILE, model_card(self.config, repo_id, repo=repo_id, tags=tags or ()))
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do nothing, as `SsambaConfig`."""

    def _inputs(self, input_values: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return features in the dtype of the weights, and the valid frames of each clip (B,), None if all are."""
        if input_values.ndim != 3:
            raise ValueError(
                "input_values must be features (batch, frames, mel bins), as AutoFeatureExtractor makes them of "
                f"waveforms and files; got the shape {tuple(input_values.shape)}"
            )
        features = input_values.to(self.encoder.cls_token.dtype)
        if attention_mask is None:
            return features, None
        mask = attention_mask.bool()
        if mask.shape != features.shape[:2]:
            wanted = tuple(features.shape[:2])
            raise ValueError(f"attention_mask must be {wanted}, as input_values are; got {tuple(mask.shape)}")
        if mask.device.type == "cpu" and not torch.compiler.is_compiling() and (mask[:, 1:] > mask[:, :-1]).any():
            raise ValueError("attention_mask must be ones, then zeros for padding: pad clips at their end")
        return features, mask.sum(1)


class SsambaModel(SsambaPreTrainedModel):
    """The encoder with its readouts."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^(?!encoder\.)"]

    def __init__(self, config: SsambaConfig):
        super().__init__(config, "encoder")
        self.encoder = build_encoder(self.config.encoder_config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        valid_frames: Tensor | None = None,
        output_hidden_states: bool | None = None,
        features: Tensor | None = None,
        piece_frames: Tensor | None = None,
        **kwargs: Any,
    ) -> SsambaModelOutput:
        """Encode clips of any length as a whole, with interpolated positions beyond the pretraining length.

        Args:
            input_values: normalized features (B, T, M), from `SsambaFeatureExtractor`; any floating dtype.
            attention_mask: 1 for a clip's own frames, 0 for padding after them (B, T); None: no padding.
            valid_frames: frames of the recordings themselves (B,), without the silence that fills the last patch; they
                alone have a level in `parts`. None: as `attention_mask`.
            output_hidden_states: also return the hidden states.
            features: another name of `input_values`.
            piece_frames: what a classifier's feature extractor returns; clips in several pieces are refused.
            kwargs: ignored.

        Raises:
            ValueError: a shape is wrong, or a clip is shorter than one patch, or was cut for a classifier.
        """
        if piece_frames is not None and piece_frames.shape[1] > 1:
            raise ValueError(
                "these features are pieces for a classifier: make them with "
                "SsambaFeatureExtractor.from_pretrained(..., clip_lengths_s=None)"
            )
        given = features if input_values is None else input_values
        if given is None:
            raise ValueError("expected input_values (batch, frames, mel bins), from SsambaFeatureExtractor; got None")
        inputs, lengths = self._inputs(given, attention_mask)
        states: tuple[Tensor, ...] | None = None
        if self.config.output_hidden_states if output_hidden_states is None else output_hidden_states:
            *before, tokens = self.encoder.hidden_states(self.encoder.embed_patches(inputs, lengths))
            states = tuple(before)
        else:
            tokens = self.encoder(inputs, lengths)
        config = self.encoder.config
        with torch.autocast(tokens.device.type, enabled=False):
            columns = None if lengths is None else column_counts(lengths, config)
            frames = time_steps(tokens, config, columns).to(tokens.dtype)
            readout = parts(inputs, tokens, config, self.front_end, lengths, valid_frames).to(tokens.dtype)
        return SsambaModelOutput(
            last_hidden_state=tokens,
            pooler_output=readout[:, : config.embed_dim],
            hidden_states=states,
            parts=readout,
            frames=frames,
        )


class SsambaForPreTraining(SsambaPreTrainedModel, PretrainingHeads):
    """Encoder and pretraining heads: the two patch objectives of SSAMBA.

    `ssamba.pretrain` has more objectives, which need views, units or a teacher beside the model.
    """

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^(?!encoder\.)"]

    def __init__(self, config: SsambaConfig):
        super().__init__(config, "pretraining")
        pretraining = PretrainingConfig.parse(self.config.pretraining or {}, "pretraining")
        self.config.pretraining = pretraining.model_dump(mode="json")
        self._build(self.config.encoder_config, pretraining)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        return_loss: bool = True,
        **kwargs: Any,
    ) -> SsambaForPreTrainingOutput:
        """Mask patches and compute the losses.

        Args:
            input_values: normalized features (B, T, M).
            attention_mask: 1 for a clip's own frames, 0 for padding after them (B, T); None: no padding.
            bool_masked_pos: True where a patch is masked (B, L), in token order, False in padding. None masks 400 of
                512 patches, drawn anew in each call by torch's generator.
            return_loss: ignored; it tells `Trainer` that evaluation has a loss.
            kwargs: ignored.

        Raises:
            ValueError: a shape is wrong, or a clip is shorter than one patch.
        """
        features, lengths = self._inputs(input_values, attention_mask)
        config = self.encoder.config
        if bool_masked_pos is None:
            frames = torch.full((len(features),), features.shape[1]) if lengths is None else lengths
            columns = column_counts(frames, config).to(features.device)
            seeds = torch.randint(2**62, (len(features),)).to(features.device)
            longest = config.columns(features.shape[1])
            bool_masked_pos = draw_mask(seeds, config, columns, longest, ratio=DEFAULT_MASK_RATIO)
        out = self.predict_masked(features, bool_masked_pos, lengths)
        values, valid = out.values.float(), out.masked.valid
        contrast = info_nce(out.heads["discriminative"].float(), values, valid)
        error = reconstruction_error(out.heads["generative"].float(), values, valid)
        return SsambaForPreTrainingOutput(
            loss=contrast.loss + _GENERATIVE_WEIGHT * error,
            discriminative_loss=contrast.loss,
            generative_loss=error,
            accuracy=contrast.accuracy,
            bool_masked_pos=bool_masked_pos,
        )


class SsambaForAudioClassification(SsambaPreTrainedModel):
    """Encoder, pooling, LayerNorm and Linear: the classifier that `ssamba.finetune` trains."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^(?!(encoder|norm|linear)\.)"]

    def __init__(self, config: SsambaConfig):
        super().__init__(config, "classifier")
        self.config.match_labels()
        encoder = self.config.encoder_config
        self.encoder = build_encoder(encoder)
        self.norm = nn.LayerNorm(encoder.embed_dim)
        self.linear = nn.Linear(encoder.embed_dim, self.config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        valid_frames: Tensor | None = None,
        piece_frames: Tensor | None = None,
        piece_weights: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify whole clips, as `Embedder.predict(per="clip")`.

        Clips longer than the pretraining length are classified in windows of it, overlapping by half, and the logits
        are averaged; of clips in several pieces the probabilities are averaged, and the logits are theirs. Logits are
        calibrated if a temperature was measured.

        Args:
            input_values: normalized features (B, T, M), from `SsambaFeatureExtractor`.
            attention_mask: 1 for a clip's own frames, 0 for padding after them (B, T); None: no padding.
            valid_frames: ignored; `SsambaFeatureExtractor` returns it for `SsambaModel`.
            piece_frames: frames of the pieces of each clip (B, pieces), zeros after its own; None: one piece.
            piece_weights: their weights (B, pieces); a clip without any is digital silence.
            labels: class of each clip (B,), int64; or floats (B, C) for classes that do not exclude each other. What
                comes first sets `config.problem_type`, if it is not set.
            output_hidden_states: also return the hidden states, of inputs up to one window.
            kwargs: ignored.

        Raises:
            ValueError: a shape is wrong, a clip is shorter than one patch, or hidden states of windows are asked for.
        """
        features, lengths = self._inputs(input_values, attention_mask)
        owners = None
        if piece_frames is not None and piece_frames.shape[1] > 1:
            features, lengths, owners = _pieces(features, piece_frames)
        wants_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        logits, states = self._logits(features, lengths, wants_states)
        if owners is not None:
            assert piece_frames is not None
            weights = (piece_frames > 0).float() if piece_weights is None else piece_weights.float()
            weights = torch.where((weights > 0).any(1, keepdim=True), weights, 1.0)[piece_frames > 0]
            logits = self._merged(logits, owners, weights.to(logits.device), len(input_values))
        if piece_weights is not None and not self.training:
            is_silent = (piece_weights.to(logits.device) <= 0).all(1, keepdim=True)
            logits = torch.where(is_silent, self._nothing(logits), logits)
        loss = None if labels is None else self._loss(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=states)

    def _logits(
        self, features: Tensor, lengths: Tensor | None, wants_states: bool
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Return the logits of clips (B, C), averaged over windows of the pretraining length, and hidden states."""
        config, clips = self.encoder.config, len(features)
        owners = weights = states = None
        if features.shape[1] > config.num_frames:
            if wants_states:
                raise ValueError(
                    f"{features.shape[1]} frames are more than one window of {config.num_frames}: clips are classified "
                    "in windows, which have no common hidden states"
                )
            features, lengths, owners, weights = _windows(features, lengths, config)
        if wants_states:
            *before, tokens = self.encoder.hidden_states(self.encoder.embed_patches(features, lengths))
            states = tuple(before)
        else:
            tokens = self.encoder(features, lengths)
        logits = self.linear(self.norm(pool_tokens(tokens, config, self.config.classifier["pooling"], lengths)))
        if owners is not None and weights is not None:
            logits = _mean_of(logits, owners, weights.to(logits.dtype), clips)
        return logits / (self.config.classifier["temperature"] or 1.0), states

    def _merged(self, logits: Tensor, owners: Tensor, weights: Tensor, clips: int) -> Tensor:
        """Return the logits (B, C) of the mean probabilities of pieces (pieces, C)."""
        if self.config.classifier["activation"] == "softmax":
            return _mean_of(logits.float().softmax(-1), owners, weights, clips).log().to(logits.dtype)
        return torch.logit(_mean_of(logits.float().sigmoid(), owners, weights, clips), eps=1e-7).to(logits.dtype)

    def _nothing(self, logits: Tensor) -> Tensor:
        """Return the logits (C,) where nothing is heard: the background, none of the labels, or all of them alike."""
        classifier = self.config.classifier
        if classifier["background"] is None:
            return logits.new_full(logits.shape[1:], 0.0 if classifier["activation"] == "softmax" else -_CERTAIN)
        is_background = torch.tensor([name == classifier["background"] for name in classifier["labels"]])
        return torch.where(is_background, _CERTAIN, -_CERTAIN).to(logits)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of logits (B, C); without a problem type it follows from the labels."""
        if self.config.problem_type is None:  # as transformers' models do
            is_single = labels.ndim == 1 and not labels.is_floating_point()
            classes = "single_label_classification" if is_single else "multi_label_classification"
            self.config.problem_type = classes if logits.shape[1] > 1 else "regression"
        problem = self.config.problem_type
        if problem == "regression":
            return F.mse_loss(logits.float().squeeze(-1), labels.float().squeeze(-1))
        if problem == "single_label_classification":
            return F.cross_entropy(logits.float(), labels)
        return F.binary_cross_entropy_with_logits(logits.float(), labels.float())


def _mean_of(values: Tensor, owners: Tensor, weights: Tensor, clips: int) -> Tensor:
    """Return the weighted mean of each clip's rows of `values` (rows, C), (clips, C)."""
    total = values.new_zeros(clips, values.shape[1]).index_add(0, owners, values * weights[:, None])
    return total / weights.new_zeros(clips).index_add(0, owners, weights)[:, None]


@torch.compiler.disable
def _pieces(features: Tensor, piece_frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take the pieces of clips (B, T, M) apart: their features (pieces, T, M), frames and clips (pieces,)."""
    frames = [[count for count in clip if count] for clip in piece_frames.tolist()]
    cut = [piece for clip, own in zip(features, frames, strict=True) for piece in clip[: sum(own)].split(own)]
    owners = torch.tensor([number for number, own in enumerate(frames) for _ in own], device=features.device)
    lengths = torch.tensor([len(piece) for piece in cut])
    return pad_sequence(cut, batch_first=True), lengths, owners


@torch.compiler.disable
def _windows(
    features: Tensor, lengths: Tensor | None, config: BaseEncoderConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut clips (B, T, M) into windows, as `Embedder` does.

    Returns:
        Features of the windows (windows, T, M), their frames, their clips, and their weights in a clip (windows,).
    """
    owners, windows = [], []
    frames = [features.shape[1]] * len(features) if lengths is None else lengths.tolist()
    for number, (clip, count) in enumerate(zip(features, frames, strict=True)):
        cutter = WindowCutter(config, silent=0.0)
        own = [*cutter.push(clip[: config.frames_spanned(config.columns(count))]), *cutter.finish()]
        windows += own
        owners += [number] * len(own)
    counts = torch.tensor([len(window.features) for window in windows])
    batch = pad_sequence([window.features for window in windows], batch_first=True)
    weights = torch.tensor([float(window.columns) for window in windows])
    on_device = [x.to(features.device) for x in (torch.tensor(owners), weights)]
    return batch, counts, on_device[0], on_device[1]

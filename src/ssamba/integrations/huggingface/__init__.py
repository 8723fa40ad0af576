"""The models as classes of Hugging Face transformers (`pip install "ssamba[hf]"`, docs/huggingface.md).

    import ssamba.integrations.huggingface                    # registers the Auto classes
    model = AutoModel.from_pretrained("checkpoint/")          # a folder of ssamba, or of save_pretrained
    pipeline("audio-classification", model="finetuned/")

One folder serves both libraries: `config.json` holds the fields of `ModelConfig` and those of transformers,
`preprocessor_config.json` those of `FrontEndConfig` and those of a feature extractor, and tensors have the same names.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
    AutoProcessor,
    AutoTokenizer,
)

from ssamba.integrations.huggingface.configuration import SsambaConfig
from ssamba.integrations.huggingface.feature_extraction import SsambaFeatureExtractor, SsambaPipelineInputs
from ssamba.integrations.huggingface.modeling import (
    SsambaForAudioClassification,
    SsambaForPreTraining,
    SsambaForPreTrainingOutput,
    SsambaModel,
    SsambaModelOutput,
)
from ssamba.integrations.huggingface.sharing import convert_to_hf, model_card

__all__ = [
    "SsambaConfig",
    "SsambaFeatureExtractor",
    "SsambaForAudioClassification",
    "SsambaForPreTraining",
    "SsambaForPreTrainingOutput",
    "SsambaModel",
    "SsambaModelOutput",
    "convert_to_hf",
    "model_card",
]

AutoConfig.register(SsambaConfig.model_type, SsambaConfig, exist_ok=True)
AutoFeatureExtractor.register(SsambaConfig, SsambaFeatureExtractor, exist_ok=True)
AutoProcessor.register(SsambaConfig, SsambaFeatureExtractor, exist_ok=True)
AutoTokenizer.register(SsambaConfig, SsambaPipelineInputs, exist_ok=True)
AutoModel.register(SsambaConfig, SsambaModel, exist_ok=True)
AutoModelForPreTraining.register(SsambaConfig, SsambaForPreTraining, exist_ok=True)
AutoModelForAudioClassification.register(SsambaConfig, SsambaForAudioClassification, exist_ok=True)

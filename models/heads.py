"""The output layers (heads) that a task can ask for, each with its Auto class in transformers and its properties.

The Auto class builds a model with this head. An architecture has the head if transformers registers it for the Auto
class. This file does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Head:
    """One kind of output layer."""

    factory: str
    """Name of the Auto class."""
    labelled: bool = False
    """Whether its size is the number of labels, which come from the data; it then begins at random on a pretrained
    model that lacks it."""
    also: str = ""
    """Name of the Auto class for architectures whose class has this head and others."""
    pipeline: str = ""
    """Name of this kind of task on the Hugging Face Hub, for model cards."""
    next_tokens: bool = False
    """Whether it predicts the token that follows each token, so that labels are shifted and texts can be continued."""


HEADS: dict[str, Head] = {
    "causal_lm": Head("AutoModelForCausalLM", next_tokens=True, pipeline="text-generation"),
    "masked_lm": Head("AutoModelForMaskedLM", also="AutoModelForPreTraining", pipeline="fill-mask"),
    "seq2seq_lm": Head("AutoModelForSeq2SeqLM", pipeline="text2text-generation"),
    "sequence_classification": Head(
        "AutoModelForSequenceClassification", labelled=True, pipeline="text-classification"
    ),
    "token_classification": Head("AutoModelForTokenClassification", labelled=True, pipeline="token-classification"),
    "question_answering": Head("AutoModelForQuestionAnswering", labelled=True),
    "multiple_choice": Head("AutoModelForMultipleChoice", labelled=True),
    "next_sentence": Head("AutoModelForNextSentencePrediction"),
    "image_classification": Head("AutoModelForImageClassification", labelled=True, pipeline="image-classification"),
    "masked_image": Head("AutoModelForMaskedImageModeling"),
    "semantic_segmentation": Head("AutoModelForSemanticSegmentation", labelled=True, pipeline="image-segmentation"),
    "object_detection": Head("AutoModelForObjectDetection", labelled=True, pipeline="object-detection"),
    "depth_estimation": Head("AutoModelForDepthEstimation"),
    "ctc": Head("AutoModelForCTC", labelled=True, pipeline="automatic-speech-recognition"),
    "audio_classification": Head("AutoModelForAudioClassification", labelled=True, pipeline="audio-classification"),
    "speech_seq2seq": Head("AutoModelForSpeechSeq2Seq", pipeline="automatic-speech-recognition"),
    "image_text_to_text": Head("AutoModelForImageTextToText", pipeline="image-to-text"),
    "multimodal_lm": Head("AutoModelForMultimodalLM", pipeline="any-to-any"),
    "features": Head("AutoModel"),
}
"""Value of ``Task.head`` -> the output layer."""
USUAL = "causal_lm"
"""Head that checks assume if a task does not name its head."""
WRITERS = ("causal_lm", "seq2seq_lm", "speech_seq2seq", "image_text_to_text", "multimodal_lm")
"""Heads of models that write texts token by token."""

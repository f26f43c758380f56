"""Small tokenizers, processors, chat templates and conversations, and the configuration of a text model, for tests of
chats with images and audio clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SPECIAL = ("<pad>", "<|im_start|>", "<|im_end|>")
TEXT = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
"""Configuration of a small language model."""


def byte_tokenizer(*further: str) -> Any:
    """A tokenizer of bytes, with ``SPECIAL`` and ``further`` special tokens before them; the first of these is 3."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate([*SPECIAL, *further, *signs])}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    plain.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=[*SPECIAL[1:], *further],
    )


def named_tokens(**names: str) -> Any:
    """``byte_tokenizer`` with special tokens that processors ask for by name, such as ``image_token``."""
    from transformers import PreTrainedTokenizerFast

    plain = byte_tokenizer(*names.values())
    return PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        extra_special_tokens=names,
    )


def qwen2_audio() -> Any:
    """A processor of Qwen2-Audio that pads clips to one second."""
    from transformers import Qwen2AudioProcessor, WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    return Qwen2AudioProcessor(extractor, byte_tokenizer("<audio>"), chatml("audio"), audio_token="<audio>")


def with_video_part(kind: str, settings: dict[str, Any], **parts: Any) -> Any:
    """A processor of transformers' class ``kind`` with a part for videos, which cannot be made without torchvision."""
    import transformers
    from trireme.trainer.data.media_processor import VIDEO_PART, UnreadVideos, constructed

    return constructed(getattr(transformers, kind), {VIDEO_PART: UnreadVideos(settings), **parts})


def qwen_vl(kind: str, tokenizer: Any) -> Any:
    """A processor of Qwen2-VL or a later version, for which an image of 16 x 16 pixels stands for 4 tokens."""
    from transformers import Qwen2VLImageProcessorPil

    images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024})
    settings = {"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 4}
    return with_video_part(
        kind, settings, image_processor=images, tokenizer=tokenizer, chat_template=chatml(image="<|image_pad|>")
    )


def smolvlm(tokenizer: Any) -> Any:
    """A processor of SmolVLM, for which an image stands for 4 tokens."""
    from transformers import SmolVLMImageProcessorPil

    size = {"longest_edge": 16}
    images = SmolVLMImageProcessorPil(size=size, max_image_size=size, do_image_splitting=False)
    settings = {"video_processor_type": "SmolVLMVideoProcessor", "num_frames": 8}
    parts = {"image_processor": images, "tokenizer": tokenizer, "chat_template": chatml("image")}
    return with_video_part("SmolVLMProcessor", settings, **parts, image_seq_len=4)


def gemma3n() -> Any:
    """A processor of Gemma 3n: an image stands for 3 tokens and a clip of any length for 5, between two others."""
    from transformers import Gemma3nAudioFeatureExtractor, Gemma3nProcessor, SiglipImageProcessorPil

    tokenizer = named_tokens(
        image_token="<image>",
        audio_token="<audio>",
        boi_token="<boi>",
        eoi_token="<eoi>",
        boa_token="<boa>",
        eoa_token="<eoa>",
    )
    images, audio = SiglipImageProcessorPil(size={"height": 16, "width": 16}), Gemma3nAudioFeatureExtractor()
    template = chatml("image", "audio")
    return Gemma3nProcessor(audio, images, tokenizer, template, audio_seq_length=5, image_seq_length=3)


def chatml(*kinds: str, **shown: str) -> str:
    """A template of ChatML for contents of texts and of ``kinds``, each shown as one token of its name, and of kinds
    that are shown as another token."""
    tokens = {**{kind: f"<{kind}>" for kind in kinds}, **shown}
    parts = "".join(f"{{% if part.type == '{kind}' %}}{token}\n{{% endif %}}" for kind, token in tokens.items())
    return (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
        f"{{% for part in message.content %}}{parts}"
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}"
        "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


def asked(question: str, answer: str, *media: dict[str, Any]) -> list[dict[str, Any]]:
    """A conversation of a question with ``media`` before it, and its answer."""
    parts: Sequence[dict[str, Any]] = [*media, {"type": "text", "text": question}]
    return [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]

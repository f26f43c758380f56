"""``trireme generate``: load an exported model, a checkpoint, a run or an adapter with transformers, and generate
text: the continuation of a prompt, or the answer in a conversation.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

from ..errors import Problem, UserError
from ..trainer.data.chat.media import named
from .chat_prompt import ChatPrompt, chat_inputs, media_inputs, stops
from .generation_limits import check_numbers, check_text, new_tokens


def generate(
    model: str,
    prompt: str | ChatPrompt,
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    ema: bool = False,
    device_map: str | dict[str, Any] | None = None,
    base: str | None = None,
) -> str:
    """The prompt and its continuation, or the message that answers a conversation.

    Args:
        model: exported folder, checkpoint, run folder, or folder of an adapter that peft reads. All but the first are
            exported to a temporary folder first.
        prompt: how the text begins, or a conversation.
        max_new_tokens: tokens that are written; None stands for 100, or fewer where the model has fewer positions.
        temperature: 0 always takes the likeliest token.
        top_k: number of likeliest tokens to sample from; 0 samples from all.
        seed: the same seed gives the same text.
        ema: use the averaged weights (checkpoints only).
        device_map: how accelerate spreads the model, as transformers' ``from_pretrained`` takes it: ``auto`` fills the
            GPUs, then CPU memory, then the disk. None loads it whole, on the GPU if there is one.
        base: folder or hub id of the base of adapters; None takes what the run or adapter_config.json says.

    Raises:
        UserError: ``model`` is no such folder, or a number is out of range.
    """
    check_numbers(max_new_tokens, temperature, top_k, seed)
    if isinstance(prompt, str):
        check_text("--prompt", prompt)
    _check_device_map(device_map)
    path = Path(os.path.expanduser(model))
    if not os.path.isdir(path):
        why = "is a file, not a folder" if path.is_file() else "there is no such folder"
        raise UserError(Problem("MODEL", why, "give an exported folder, a checkpoint or a run folder", model))
    apart = _is_adapter(path)
    if base is not None and not apart and not _has_base(path):
        why = "is about adapters, and MODEL is a whole model"
        raise UserError(Problem("--base", why, "leave it out", base))
    if ema and apart:
        why = "asks for averaged weights, which a folder of an adapter does not have"
        raise UserError(Problem("--ema", why, "export the adapter with --ema"))
    if (path / "config.json").is_file() and not apart:
        if ema:
            raise UserError(Problem("--ema", "an exported folder has only one set of weights", "export it with --ema"))
        return _write_from(path, prompt, max_new_tokens, temperature, top_k, seed, device_map)
    from ..trainer.checkpoint.export.export_folder import ExportOptions, export

    _import_own_classes(path)
    with tempfile.TemporaryDirectory(prefix="trireme_generate_") as folder:
        exported = Path(folder) / "model"
        export(str(path), str(exported), ExportOptions(ema=ema, merge=True, base=base))
        return _write(exported, prompt, max_new_tokens, temperature, top_k, seed, device_map)


def _is_adapter(path: Path) -> bool:
    from ..models.weight_sets import is_adapter

    try:
        return is_adapter(path)
    except ValueError:  # several sets of weights, from which transformers chooses
        return False


def _has_base(path: Path) -> bool:
    from ..trainer.base_identity import has_base

    return has_base(path)


def _import_own_classes(path: Path) -> None:
    """Import the user's own classes that the recipe in a run or checkpoint names; the current folder is searched."""
    from ..models.exported_class import import_own_classes
    from ..models.locate import import_from
    from ..trainer.checkpoint.layout import RECIPE
    from ..trainer.run_folder import saved_recipe

    if (path / RECIPE).is_file():
        import_from(Path.cwd())
        try:
            model = saved_recipe(path).get("model")
            import_own_classes(model if isinstance(model, dict) else {})
        except ImportError as error:
            fix = "start the command in the folder of the file, or install it"
            raise UserError(Problem("MODEL", f"needs code of your own: {error}", fix, str(path))) from None


def _check_device_map(device_map: str | dict[str, Any] | None) -> None:
    if device_map is not None and importlib.util.find_spec("accelerate") is None:
        fix = "pip install accelerate, or leave --device-map out"
        raise UserError(Problem("--device-map", "needs accelerate, which is not installed", fix, device_map))


def _write_from(folder: Path, *arguments: Any) -> str:
    """The text from an exported folder. Weights in GPTQ's or AWQ's layout are unpacked first, since transformers reads
    them by packages that need a GPU."""
    from ..trainer.checkpoint.export.unpacked_folder import needs_unpacking, unpack_folder

    if importlib.util.find_spec("gptqmodel") is not None or not needs_unpacking(folder):
        return _write(folder, *arguments)
    with tempfile.TemporaryDirectory(prefix="trireme_generate_") as whole:
        try:
            unpack_folder(folder, Path(whole))
        except ValueError as error:
            raise UserError(Problem("MODEL", str(error), "fetch or export the folder again", str(folder))) from None
        return _write(Path(whole), *arguments)


def _write(
    folder: Path,
    prompt: str | ChatPrompt,
    max_new_tokens: int | None,
    temperature: float,
    top_k: int,
    seed: int,
    device_map: str | dict[str, Any] | None,
) -> str:
    import torch
    from transformers import set_seed

    reader, model = _load(folder, device_map)
    tokenizer = getattr(reader, "tokenizer", reader)
    if not hasattr(model, "generate"):
        why, fix = f"holds a {type(model).__name__}, which has no generate", "name a model that writes texts"
        raise UserError(Problem("MODEL", why, f"{fix}; a class of your own derives from GenerationMixin too"))
    # An offloaded model is on the meta device; accelerate moves inputs to the right device itself.
    device = model.device if model.device.type != "meta" else _device()
    if isinstance(prompt, ChatPrompt):
        inputs = _chat_inputs(reader, model, prompt).to(device)
        sampling: dict[str, Any] = {"eos_token_id": stops(tokenizer, model)}
    else:
        inputs, sampling = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(device), {}
    begun = inputs["input_ids"].shape[1]
    if begun == 0:
        raise UserError(Problem("--prompt", "holds no tokens", "give at least one character", str(prompt)))
    length = new_tokens(model, begun, max_new_tokens)
    set_seed(seed)
    sampling["do_sample"] = temperature > 0
    if temperature > 0:
        sampling |= {"temperature": temperature, "top_k": top_k}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    try:
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=length, pad_token_id=pad, **sampling)
    except (TypeError, ValueError) as error:
        if reader is tokenizer or (isinstance(prompt, ChatPrompt) and prompt.media):
            raise
        from ..trainer.data.chat.media_encoder import kinds_of

        kinds = kinds_of(reader)
        why = f"cannot write without an {' or '.join(kind.one for kind in kinds)}: {' '.join(str(error).split())}"
        fix = " or ".join(f"--chat --{kind.name} FILE" for kind in kinds)
        raise UserError(Problem("MODEL", why, f"give {fix}")) from error
    if isinstance(prompt, ChatPrompt):
        written = tokens[0] if model.config.is_encoder_decoder else tokens[0][begun:]
        return prompt.begun + tokenizer.decode(written, skip_special_tokens=True)
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


def _chat_inputs(reader: Any, model: Any, prompt: ChatPrompt) -> Any:
    """Inputs of a conversation; images and audio clips are converted to the dtype of the weights."""
    if not prompt.media:
        return chat_inputs(getattr(reader, "tokenizer", reader), prompt)
    from ..trainer.data.chat.media_encoder import kinds_of

    able = kinds_of(reader)
    if unread := [kind for kind in prompt.media if kind not in able]:
        reads = named(able, before="texts") if able else "only text"
        why = f"is a {type(model).__name__}, which reads {reads}, but the conversation has an {unread[0].one}"
        fix = f"name a model that reads {unread[0].many}, or leave the {unread[0].one} out"
        raise UserError(Problem("MODEL", why, fix))
    return media_inputs(reader, model, prompt).to(model.dtype)


def _load(folder: Path, device_map: str | dict[str, Any] | None) -> tuple[Any, Any]:
    """The tokenizer (or the processor of a model that reads images or audio), and the model in evaluation mode on its
    devices."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils import logging

    from ..models.register_classes import register_classes

    register_classes()
    logging.disable_progress_bar()
    spread = {} if device_map is None else {"device_map": device_map}
    try:
        config = AutoConfig.from_pretrained(folder)
        reader, factory = _processor(folder, config)
        if reader is None:
            factory = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            reader = AutoTokenizer.from_pretrained(folder)
        model: Any = factory.from_pretrained(folder, use_safetensors=True, **spread)
    except (ImportError, OSError, ValueError) as error:
        why = f"transformers cannot load it: {' '.join(str(error).split())}"
        fix = "name a run, a checkpoint, or a folder with weights that trireme export or transformers has written"
        raise UserError(Problem("MODEL", why, fix, str(folder))) from error
    return reader, (model if spread else model.to(_device())).eval()


def _processor(folder: Path, config: Any) -> tuple[Any, Any]:
    """The processor of a model that reads images or audio clips among the tokens of a text, and the Auto class that
    loads the model; (None, None) for other models."""
    from transformers.models.auto import modeling_auto

    from ..trainer.data.chat.media_encoder import kinds_of
    from ..trainer.data.media_processor import MediaProcessor
    from ..trainer.data.processor_folder import FILES

    tables = {
        "AutoModelForMultimodalLM": modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
        "AutoModelForSeq2SeqLM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    own = [table for table, names in tables.items() if names.get(config.model_type) in (config.architectures or [])]
    if not own or (own == ["AutoModelForSeq2SeqLM"] and not any((folder / file).is_file() for file in FILES)):
        return None, None
    processor: Any = MediaProcessor.from_pretrained(folder)
    if not kinds_of(processor):
        return None, None
    processor.tokenizer.chat_template = processor.tokenizer.chat_template or processor.chat_template
    return processor, getattr(modeling_auto, own[0])


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

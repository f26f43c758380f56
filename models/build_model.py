"""Build a recipe's model as a module on the meta device, with a function that yields its weights one at a time. Also
freeze the parameters that a recipe names.

On the meta device the module has shapes and takes no memory. The weights come one tensor at a time, so a parallelism
plan that shards the model never holds the whole model on one rank.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import Problem, UserError
from .adapter_weights import merged_deltas, with_adapters, with_merged
from .adapters import add_adapters
from .batch_norm import fix_statistics
from .copy_base_files import end_of_text_ids, generation_values
from .document_convolution import keep_documents_apart
from .document_mask import mask_by_positions
from .facts import Facts
from .forward_inputs import factory_of
from .heads import HEADS
from .initial_weights import initial_weights
from .locate import locate
from .merge_adapters import Rows, merged_rows
from .model_config import ModelConfig, hf_config, own_class, weights_path
from .other_families import described
from .pretrained import Matched, match_weights, read_weights
from .quantization.fake_quantised import use_fake_quantised_layers
from .quantization.find_stored import stored_quantization_of
from .quantization.quantise_model import quantise
from .quantization.quantised_layer import with_whole_weights
from .quantization.quantised_weights import as_quantised, with_packed
from .quantization.quantization_config import STORED
from .vocabulary import Vocabulary, decoder_start, too_few_embeddings

log = logging.getLogger("trireme.models")
WeightSource = Callable[[Collection[str]], Iterable[tuple[str, Tensor]]]
"""Function from parameter names to (name, full CPU tensor) pairs, one at a time."""


def build_on_meta(model: ModelConfig, head: str, data: Vocabulary | Facts) -> PreTrainedModel:
    """The model with ``head``, in fp32, on the meta device, with the data's special tokens and labels in its
    configuration.

    Args:
        data: facts about the data set; a vocabulary is enough for a data set without labels.

    Raises:
        UserError: the vocabulary is larger than the model's, or no model can be built with such a configuration.
    """
    facts = data if isinstance(data, Facts) else Facts(data)
    config = hf_config(model)
    for part in _parts(config):
        for name, value in model.spec.fixed:
            # Some models read fields that their configurations do not declare.
            if hasattr(part, name) or (name == "apply_spec_augment" and hasattr(part, "mask_time_prob")):
                setattr(part, name, value)
    base = _set_vocabulary(config, model, facts.vocabulary)
    if facts.labels and HEADS[head].labelled:
        config.id2label = dict(enumerate(facts.labels))
        config.label2id = {label: number for number, label in enumerate(facts.labels)}
        config.problem_type = facts.problem
    config.use_cache = False
    built = _built(config, model, head)
    _move_to_meta(built)
    for name, value, parameter in model.spec.untied:
        if getattr(config, name, None) == value:
            _untie(built, parameter)
    built.config.architectures = [
        type(built).__name__
    ]  # as save_pretrained notes it: readers of config.json ask for it
    if facts.vocabulary and (model.weights is not None or facts.vocabulary.stop is not None):
        _keep_special_tokens(built, base, facts.vocabulary, generation_values(model, facts.vocabulary.ends))
    if model.adapter is not None:
        add_adapters(built, model.adapter, described(model.spec, built))
    freeze(built, model.frozen, model.spec.unused)
    fix_statistics(built, model.frozen_batchnorm)
    keep_documents_apart(built, model.spec)
    mask_by_positions(built, model.spec)
    if model.spec.mend:
        locate(model.spec.mend)(built)
    if model.qat is not None:
        use_fake_quantised_layers(built, model.qat, described(model.spec, built))
    if model.quantization is not None:
        stored = matched_weights(model, built) if model.quantization.method == STORED else None
        quantise(built, model.quantization, described(model.spec, built), stored.packed if stored else None)
    return built


def _parts(config: Any) -> Iterator[Any]:
    """``config`` and the configurations inside of it, such as those of a text and of a vision model."""
    yield config
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            yield from _parts(part)


def _set_vocabulary(config: Any, model: ModelConfig, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """Put the tokenizer's special tokens into ``config``, and enlarge the vocabulary if the recipe asks for it.

    Returns:
        The special tokens that were there before.
    """
    text = config.get_text_config()
    if vocabulary is None or not hasattr(text, "vocab_size"):
        return {}
    if vocabulary.size > text.vocab_size:
        if not model.resize_embeddings:
            raise UserError(too_few_embeddings(text.vocab_size, vocabulary.size, model.weights))
        text.vocab_size = vocabulary.size
    base = {name: getattr(text, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
    text.bos_token_id, text.eos_token_id, text.pad_token_id = vocabulary.bos, vocabulary.eos, vocabulary.pad
    if model.weights is None and getattr(config, "forced_eos_token_id", None) is not None:
        config.forced_eos_token_id = vocabulary.eos  # by default the one of the published tokenizer
    if getattr(config, "is_encoder_decoder", False):
        config.decoder_start_token_id = decoder_start(config, vocabulary)
    return base


def _built(config: Any, model: ModelConfig, head: str) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            if model.architecture is not None:
                if model.attention is not None:
                    config._attn_implementation = model.attention
                return own_class(model)(config).to(torch.float32)
            factory = factory_of(type(config), head)
            config.architectures = config.architectures or []  # the factory looks through them, and may find None
            if factory is None:
                raise UserError(_no_such_head(model, head))
            return factory.from_config(config, dtype=torch.float32, attn_implementation=model.kernel)
    except (ArithmeticError, AssertionError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())
        if model.attention is not None and "atten" in told.lower():
            why, fix = f"does not go with the model: {told.partition('. ')[0]}", "set model.attention=eager, or null"
            raise UserError(Problem("model.attention", why, fix, model.attention)) from error
        why = f"cannot build the model: {type(error).__name__}: {told}"
        fix = "change the fields of model.config that the error names"
        if isinstance(error, LookupError) and (lists := _lists(config)):
            fix = f"give lists that fit together: {', '.join(lists)} need one entry for each stage or layer"
        raise UserError(Problem("model.config", why, fix)) from error


def _lists(config: Any) -> list[str]:
    """Fields of a configuration that hold lists of numbers."""
    values = config.to_dict().items()
    return [name for name, each in values if isinstance(each, list) and each and all(type(n) is int for n in each)]


def _move_to_meta(model: PreTrainedModel) -> None:
    """Move parameters that are made by ``torch.Tensor(size)``, which ignores the device of its context."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                module._parameters[name] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)


def _untie(model: PreTrainedModel, name: str) -> None:
    """Give the model a parameter of its own in place of one that it shares."""
    path, _, own = name.rpartition(".")
    if model.all_tied_weights_keys.pop(name, None) is not None:
        shared = model.get_parameter(name)
        setattr(model.get_submodule(path), own, torch.nn.Parameter(torch.empty_like(shared)))


def _no_such_head(model: ModelConfig, head: str) -> Problem:
    """The refusal of a task whose head the architecture does not have in transformers."""
    kind = type(hf_config(model))
    able = [name for name in HEADS if factory_of(kind, name)]
    why = f"asks for the head {head}, which transformers does not have for {model.spec.title}"
    if model.own:
        fix = f"register its class: {HEADS[head].factory}.register({kind.__name__}, YourModel, exist_ok=True)"
        return Problem("model.family", why, fix, model.family)
    return Problem("task", why, f"choose a task with one of its heads: {', '.join(able)}")


def _keep_special_tokens(
    model: PreTrainedModel, base: dict[str, Any], vocabulary: Vocabulary, generation: dict[str, Any] | None
) -> None:
    """Combine the base's special tokens with the tokenizer's.

    This waits until the model is built, because while building the padding token of the configuration decides which
    embedding gets no gradient.
    """
    eos = end_of_text_ids(base.get("eos"), vocabulary.ends)
    model.config.eos_token_id = eos
    model.config.bos_token_id = vocabulary.bos if base.get("bos") is None else base["bos"]
    model.config.pad_token_id = base.get("pad") if vocabulary.pad is None else vocabulary.pad
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = generation["eos_token_id"] if generation else eos


def freeze(model: PreTrainedModel, patterns: list[str], unused: tuple[str, ...] = ()) -> None:
    """Switch off the gradients of parameters by name or pattern.

    Args:
        unused: patterns of the family's parameters that no loss reaches; they need not match.

    Raises:
        UserError: a pattern matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    unmatched = [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]
    if unmatched:
        examples = ", ".join(names[:3])
        raise UserError(
            Problem("model.frozen", f"no parameter matches {', '.join(unmatched)}", f"names are such as {examples}")
        )
    for pattern in (*patterns, *unused):
        for name in fnmatch.filter(names, pattern):
            model.get_parameter(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(Problem("model.frozen", "leaves nothing to train", "freeze fewer parameters", patterns))


def weight_source(config: ModelConfig, model: PreTrainedModel, seed: int, speaks: bool = True) -> WeightSource:
    """The function that yields the requested weights of ``model``: stored ones from files, all others computed.

    Args:
        model: on the meta device; it must not change later, because every call of the function looks at its modules.
        speaks: log notes on stored tensors that are not used; true on one rank only.

    Raises:
        UserError: the weights do not fit the model; this is known before any tensor is read.
    """
    whole = _whole_weights(config, with_whole_weights(model), seed, speaks)
    weights, seen = whole, whole
    if config.quantization is not None:
        weights = _packed_weights(config, model, whole)
        seen = whole if config.quantization.method == STORED else as_quantised(whole, model)
    return weights if config.adapter is None else with_adapters(weights, model, config.adapter, seed, seen)


def _packed_weights(config: ModelConfig, model: PreTrainedModel, whole: WeightSource) -> WeightSource:
    """The weights of a model. Quantised layers get the parts of their weights, as they are stored or packed here."""
    stored = config.quantization is not None and config.quantization.method == STORED
    matched = matched_weights(config, model) if stored else None
    return with_packed(whole, model, matched.packed if matched else {})


def matched_weights(config: ModelConfig, model: PreTrainedModel) -> Matched | None:
    """The tensors of ``model`` in the files of its weights; None for a model without.

    Raises:
        UserError: they do not fit the model.
    """
    if config.weights is None:
        return None
    plain = with_whole_weights(model)
    others = (config.new_head, config.resize_embeddings, stored_quantization_of(config))
    return match_weights(plain, weights_path(config), described(config.spec, plain), *others)


def _whole_weights(config: ModelConfig, model: PreTrainedModel, seed: int, speaks: bool) -> WeightSource:
    """The weights of a model that is not quantised, with other adapters merged into them."""
    weights = _base_weights(config, model, seed, speaks)
    return with_merged(weights, model, config.merged_adapters) if config.merged_adapters else weights


def base_rows(config: ModelConfig, model: PreTrainedModel, seed: int) -> Callable[[str], Rows]:
    """The function that gives a tensor of the base by name, with adapters merged into it, as rows that are read on
    demand. Tensors that are not in safetensors files are read or computed whole.

    Raises:
        UserError: the weights do not fit the model.
    """
    stored = matched_weights(config, model)
    deltas = merged_deltas(model, config.merged_adapters)
    weights = _base_weights(config, model, seed, speaks=False)

    def rows(name: str) -> Rows:
        entry = stored.tensors.get(name) if stored and name not in stored.shapes else None
        found = entry.rows if entry else _rows_of(dict(weights({name}))[name])
        for delta in deltas.get(name, ()):
            found = merged_rows(found, model.get_parameter(name).shape, delta)
        return found

    return rows


def base_parts(config: ModelConfig, model: PreTrainedModel, seed: int) -> WeightSource:
    """The weights of a quantised base, without those of the adapters beside it, with quantised layers in parts."""
    return _packed_weights(config, model, _whole_weights(config, with_whole_weights(model), seed, speaks=False))


def _rows_of(tensor: Tensor) -> Rows:
    return lambda start, stop: tensor[start:stop] if tensor.ndim else tensor


def _base_weights(config: ModelConfig, model: PreTrainedModel, seed: int, speaks: bool) -> WeightSource:
    path = weights_path(config) if config.weights is not None else None
    spec, stored = described(config.spec, model), matched_weights(config, model)
    for note in stored.notes if stored and speaks else ():
        log.warning("model.weights: %s", note)
    initial = dict(spec.initial)
    roots = {name: getattr(model.config, field) ** 0.5 for name, field in spec.smaller}

    def drawn(names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in initial_weights(model, seed, names, initial):
            yield name, tensor / roots[name] if name in roots else tensor

    def weights(names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        found: set[str] = set()
        if stored and path:
            for name, tensor in read_weights(stored, path, names):
                found.add(name)
                if tensor.shape != stored.shapes.get(name, tensor.shape):
                    whole = dict(drawn({name}))[name]
                    whole[: len(tensor)] = tensor  # tokens beyond those of the file begin at random
                    tensor = whole
                yield name, tensor
        # Buffers outside the state dict, such as rotary frequencies, are in no file and are computed.
        yield from drawn(set(names) - found)

    return weights

"""Export a checkpoint for other libraries: as a model folder for ``transformers``, with sharded safetensors files, or
its adapters as a folder for peft. Adapters can be merged and weights quantised on the way.

Weights are copied block by block, so neither the model nor a large tensor is held in memory as a whole, except for
GPTQ, which runs the model to calibrate it. This is possible because a safetensors file is just a length, a JSON header
and raw bytes. The export is written to a hidden folder, which gets its final name when it is complete. An interrupted
export leaves nothing behind.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ....errors import Problem, UserError
from ....models.adapter_config import merged_below
from ....models.config_differences import other_fields
from ....models.hub import on_this_machine
from ....models.model_config import config_values
from ....models.weight_sets import is_adapter
from ....parallel.precision import DTYPES
from ....parallel.strategy import Shapes
from ...base_identity import read_base
from ...folders import check_new_folder
from ...saved_model import other_configuration
from ..group_by_bytes import split_by_bytes
from ..load.open_source import open_source
from ..load.own_checkpoint import Checkpoint
from ..load.weight_reader import stored_weights, usable_checkpoint
from ..source import Source
from .adapted_model import AdaptedModel, MergedCheckpoint, adapted_by
from .adapter_folder import write_adapter
from .expected_tensors import known_weights
from .model_assets import copy_assets
from .model_card import write_card
from .peft_adapter import peft_source
from .quantised_folder import GPTQ, Inputs, QuantiseOptions, quantise_folder
from .weight_shards import write_shards

log = logging.getLogger("trireme.export")
LEAST_MEMORY = 64 * 2**20


@dataclass
class ExportOptions:
    """Types and sizes of an export."""

    dtype: str = "fp32"
    """Type of the weights: fp32, bf16 or fp16; tensors of integers keep theirs."""
    ema: bool = False
    """Export the averaged weights instead of the current ones."""
    max_shard_size: str = "5GB"
    """Largest weight file, as ``500MB`` or ``5GB``; a larger tensor has a file of its own."""
    memory: str = "1GiB"
    """Most memory for tensors, beyond the size of the largest one."""
    merge: bool = False
    """Merge adapters into their base, and export the whole model; else a folder for peft is written. Checkpoints of
    whole models are exported whole in any case."""
    base: str | None = None
    """Folder or hub id of the base of adapters, if it lies elsewhere than the recipe of the run says."""
    quantize: QuantiseOptions | None = None
    """Quantise the linear layers; adapters are merged into their base before."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is not known; use one of {', '.join(DTYPES)}")
        for name in ("max_shard_size", "memory"):
            try:
                size_in_bytes(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}={error}") from None
        if size_in_bytes(self.memory) < LEAST_MEMORY:
            raise ValueError(f"memory={self.memory!r} is too little to work with; use at least 64MiB")


def export(
    checkpoint: str,
    out: str,
    options: ExportOptions | None = None,
    config: str | None = None,
    replace: bool = False,
    inputs: Inputs | None = None,
) -> Path:
    """Write model, configuration and tokenizer of ``checkpoint`` (a checkpoint or run folder) to ``out``.

    A checkpoint of adapters becomes a folder that peft loads, unless ``options.merge`` asks for the whole model. A
    folder that peft loads becomes the whole model.

    Args:
        config: folder with config.json and tokenizer, for checkpoints without them.
        replace: replace the folder that is at ``out``.
        inputs: calibration inputs of GPTQ.

    Raises:
        UserError: there is no usable checkpoint, no averaged weights or no configuration, ``out`` is not empty, or it
            cannot be written. Nothing is left behind then.
    """
    path = Path(os.path.expanduser(checkpoint))
    target, options = Path(os.path.expanduser(out)), options or ExportOptions()
    if is_adapter(path):
        return _export_peft(path, target, options, config, replace, inputs)
    source = open_source(usable_checkpoint(path, "CHECKPOINT", contents=False))
    if options.quantize is not None:
        return export_quantised(source, target, options, config, replace, inputs=inputs)
    return export_source(source, target, options, config, replace)


def _export_peft(
    path: Path, target: Path, options: ExportOptions, config: str | None, replace: bool, inputs: Inputs | None
) -> Path:
    """Write the whole model of an adapter folder, merged into its base."""
    if options.quantize is None and not options.merge:
        why = "holds adapters as peft reads them already"
        raise UserError(Problem("CHECKPOINT", why, "add --merge to write the whole model", str(path)))
    with _readable_at(path), peft_source(path, options.base, "CHECKPOINT") as source:
        if options.quantize is not None:
            return export_quantised(source, target, options, config, replace, inputs=inputs)
        return export_source(source, target, options, config, replace)


def export_quantised(
    source: Source,
    target: Path,
    options: ExportOptions,
    config: str | None = None,
    replace: bool = False,
    verify: bool = True,
    check: Callable[[], None] = lambda: None,
    inputs: Inputs | None = None,
) -> Path:
    """Export whole weights to a hidden folder first, and quantise it from there; see ``export_source``."""
    assert options.quantize is not None
    if options.quantize.method == GPTQ and inputs is None:
        why = "needs data to calibrate on, which only the command trireme export has"
        raise UserError(Problem("quantize", why, "use trireme export --quantize gptq, or nf4", GPTQ))
    whole = target.with_name(f".{target.name}.whole")
    plain = dataclasses.replace(options, quantize=None, merge=True, dtype="fp32")
    refuse_existing(target, replace)
    try:
        export_source(source, whole, plain, config, True, verify, check)
        with _complete_or_nothing(target, replace, 0) as folder:
            limit = min(size_in_bytes(options.max_shard_size), size_in_bytes(options.memory) // 3)
            count = quantise_folder(whole, folder, options.quantize, limit, DTYPES[options.dtype], inputs)
            write_card(source.path, folder, options.quantize.method)
    finally:
        shutil.rmtree(whole, ignore_errors=True)
    log.info("quantised %d layers of %s (%s)", count, target, options.quantize.method)
    return target


def export_source(
    source: Source,
    target: Path,
    options: ExportOptions,
    config: str | None = None,
    replace: bool = False,
    verify: bool = True,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Export an open source, as ``export`` does.

    Args:
        verify: compare the files with their digests while they are copied.
        check: called between blocks; an exception that it raises ends the export.
    """
    with _readable(source):
        saved = read_base(source.assets)
        if saved is not None and not options.merge:
            merged = MergedCheckpoint(source, adapted_by(source, options.base), saved)
            return _export_adapter(merged, target, options, replace, verify, check)
        if saved is not None:
            source = MergedCheckpoint(source, adapted_by(source, options.base), saved, options.ema)
            options = dataclasses.replace(options, ema=False)
    assets = _assets(source, config)
    base = options.base if isinstance(source, MergedCheckpoint) and config is None else None
    shapes, stored = _wanted(source, options.ema, assets, base)
    dtype = DTYPES[options.dtype]
    types = {name: dtype if kept.is_floating_point else kept for name, (_, kept) in shapes.items()}
    sizes = {name: shape.numel() * types[name].itemsize for name, (shape, _) in shapes.items()}
    shards = split_by_bytes(sizes, size_in_bytes(options.max_shard_size))
    with _complete_or_nothing(target, replace, sum(sizes.values())) as folder:
        copy_assets(assets, folder, dtype)
        write_card(source.path, folder)
        # Checking digests reads every file again, so a thread does it while the files are copied.
        damage = _in_thread(partial(source.damage, list(stored.values()))) if verify else lambda: None
        with _readable(source):
            blocks = (
                source.blocks([stored[name] for name in names], size_in_bytes(options.memory) // 2) for names in shards
            )
            entries = [{name: (shapes[name][0], types[name]) for name in names} for names in shards]
            write_shards(folder, entries, blocks, check)
            source.check_read()
        _refuse_damage(source, damage())
    log.info(
        "exported %s to %s (%s, %d tensors, %d file(s))",
        source.path.name,
        target,
        options.dtype,
        len(shapes),
        len(shards),
    )
    return target


def _export_adapter(
    merged_source: MergedCheckpoint,
    target: Path,
    options: ExportOptions,
    replace: bool,
    verify: bool,
    check: Callable[[], None],
) -> Path:
    """Write the adapters of a checkpoint as a peft folder, which names the base; so the base is compared first."""
    source, adapted = merged_source.inner, merged_source.adapted
    if merged := adapted.config.merged_adapters:
        raise UserError(merged_below("CHECKPOINT", adapted.config.weights, merged, "--merge", str(source.path)))
    _check_configuration(adapted, source)
    refuse_existing(target, replace)
    if verify:
        _check_base(merged_source, check)
    size = sum(shape.numel() * 4 for shape, _ in stored_weights(source, options.ema)[0].values())
    with _complete_or_nothing(target, replace, size) as folder:
        count = write_adapter(source, folder, adapted, DTYPES[options.dtype], options.ema, check)
        write_card(source.path, folder)
        _refuse_damage(source, source.damage(list(source.shapes)) if verify else None)
    log.info("exported the adapters of %s to %s (%s, %d tensors)", source.path.name, target, options.dtype, count)
    return target


def _check_base(merged: MergedCheckpoint, check: Callable[[], None]) -> None:
    """Refuse another base than the one on which the adapters were trained. A hub id whose weights are not on this
    machine is not fetched for that."""
    config = merged.adapted.config
    if config.weights is not None and not on_this_machine(config.weights, config.revision):
        log.warning(
            "the weights of %s are not on this machine: whether they are the same is not checked", config.weights
        )
        return
    with _readable(merged.inner):
        merged.check_base(check)


def _check_configuration(adapted: AdaptedModel, source: Source) -> None:
    """Refuse a base whose config.json has changed since training, because the peft folder would name it. Warn about
    configuration fields of the recipe, because a peft folder cannot store them."""
    assert source.assets is not None
    with _readable(source):
        fields = other_fields(adapted.trained.config, source.assets)
    others, config = [name for name in fields if name not in adapted.config.config], adapted.config
    if others:
        raise UserError(other_configuration("--base", others, config.weights, source.path))
    said = config_values(config) if config.weights is not None else config.config
    if own := [name for name, value in config.config.items() if name != "model_type" and said.get(name) != value]:
        log.warning("before peft loads it, set fields of the base %s as in this run's recipe: %s", config.weights, own)


@contextmanager
def _readable(source: Source) -> Iterator[None]:
    """Context that turns errors of a checkpoint that cannot be read into a problem."""
    with _readable_at(source.path):
        yield


@contextmanager
def _readable_at(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UserError(Problem("CHECKPOINT", str(error), "name another checkpoint", str(path))) from None


def _refuse_damage(source: Source, reason: str | None) -> None:
    if reason:
        fix = "name another checkpoint, for example an older one of the same run"
        raise UserError(Problem("CHECKPOINT", reason, fix, str(source.path)))


def _in_thread(function: Callable[[], str | None]) -> Callable[[], str | None]:
    """Call ``function`` in a daemon thread, which does not delay the end of an export that fails.

    Returns:
        A function that waits for the result and returns it.
    """
    results: list[str | None] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()

    def wait() -> str | None:
        thread.join()
        return results[0]

    return wait


def size_in_bytes(size: str) -> int:
    """Number of bytes: ``500MB`` is 500 * 1000**2, ``1GiB`` is 1024**3.

    Raises:
        ValueError: the text is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?))?B?", str(size).strip().upper())
    if not match:
        raise ValueError(f"{size!r} is not a size; write it as 500MB, 5GB or 1GiB")
    unit = (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " ")
    return int(float(match[1]) * unit)


def _assets(source: Source, config: str | None) -> Path:
    """The folder with config.json: the one that the user names, else the source's."""
    folder = Path(os.path.expanduser(config)) if config else source.assets
    if folder is None or not (folder / "config.json").is_file():
        where, value = ("--config", config) if config else ("CHECKPOINT", str(source.path))
        fix = "name a folder with the model's config.json and tokenizer with --config FOLDER"
        raise UserError(Problem(where, "holds no config.json", fix, value))
    return folder


def _wanted(source: Source, ema: bool, assets: Path, base: str | None) -> tuple[Shapes, dict[str, str]]:
    """Shapes and types, and names in the source, both by the names to write."""
    try:
        # trireme's own checkpoints hold exactly the model's tensors, with tied ones once.
        names = None if isinstance(source, Checkpoint) else known_weights(source, assets, base)
        shapes, stored = stored_weights(source, ema)
    except ValueError as error:
        raise UserError(Problem("CHECKPOINT", str(error), "name another checkpoint", str(source.path))) from None
    if names is None:
        return shapes, stored
    return {new: shapes[old] for new, old in names.items()}, {new: stored[old] for new, old in names.items()}


def refuse_existing(target: Path, replace: bool) -> None:
    """Refuse to write over what is there."""
    if not replace:
        check_new_folder(target, "OUT")


@contextmanager
def _complete_or_nothing(target: Path, replace: bool, size: int) -> Iterator[Path]:
    """A hidden folder that is renamed to ``target`` at the end, or removed after an error."""
    refuse_existing(target, replace)
    begun, replaced = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.replaced")
    try:
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        free = shutil.disk_usage(begun).free
        if free < size:
            raise OSError(f"{size / 2**20:,.0f} MiB are needed, {free / 2**20:,.0f} MiB are free")
        yield begun
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            os.replace(target, replaced)
        os.replace(begun, target)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        why = f"cannot be written: {error.strerror or error}"
        raise UserError(Problem("OUT", why, "free space or choose another folder", str(target))) from None
    finally:
        shutil.rmtree(begun, ignore_errors=True)

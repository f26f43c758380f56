"""Write the model card (README.md) of an exported checkpoint: data, training, metrics, curve, recipe, versions.

The front matter is what the Hugging Face Hub reads (https://huggingface.co/docs/hub/model-cards). All facts come from
the checkpoint's recipe and from its run folder; facts that are missing there are left out. Paths in the user's home
folder are shortened, since a card is made to be published.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from ....models.heads import HEADS
from ....version import __version__
from ...callbacks.metrics_file import FILE_NAME, read_metrics
from ...tasks.task import head_of
from ..layout import RECIPE, step_of

CARD, CURVE = "README.md", "curve.png"
MARK = "<!-- written by trireme -->"
"""Line by which a card of ours is told from one that a person wrote."""
LIBRARIES = ("torch", "transformers", "datasets", "tokenizers", "deepspeed")
SHOWN = (
    ("steps", "trainer.max_steps"),
    ("passes over the data", "trainer.epochs"),
    ("samples of a step", "trainer.global_batch_size"),
    ("optimizer", "optimizer._target_"),
    ("learning rate", "optimizer.lr"),
    ("weight decay", "optimizer.weight_decay"),
    ("schedule", "scheduler.name"),
    ("clipping", "trainer.max_grad_norm"),
    ("precision", "plan.precision"),
    ("plan", "plan.name"),
    ("label smoothing", "task.label_smoothing"),
    ("seed", "seed"),
)
"""Rows of the table of training -> key of the recipe."""


def write_card(checkpoint: Path, folder: Path) -> None:
    """Write README.md, and curve.png if the run has one, into ``folder``.

    Args:
        checkpoint: one of trireme's; without its recipe there is no card.
        folder: the export, which has config.json already.

    Raises:
        OSError: the card cannot be written.
    """
    recipe = checkpoint / RECIPE
    if not recipe.is_file():
        return
    told = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text())
    run = next((path for path in (checkpoint.parent, checkpoint.parent.parent) if (path / FILE_NAME).is_file()), None)
    step = step_of(checkpoint)
    metrics = evaluated(run / FILE_NAME, step) if run else {}
    curve = run is not None and (run / CURVE).is_file()
    if run is not None and curve:
        shutil.copyfile(run / CURVE, folder / CURVE)
    text = "\n".join(_lines(told, config, step, metrics, curve))
    (folder / CARD).write_text(text.replace(str(Path.home()), "~") + "\n", encoding="utf-8")


def evaluated(file: Path, step: int) -> dict[str, float]:
    """Metrics of the last evaluation up to ``step``, by name without ``eval_``."""
    found: dict[str, Any] = {}
    for line in read_metrics(file, step):
        if any(name.startswith("eval_") for name in line):
            found = {name.removeprefix("eval_"): value for name, value in line.items() if name.startswith("eval_")}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def _lines(
    recipe: Mapping[str, Any], config: Mapping[str, Any], step: int, metrics: Mapping[str, float], curve: bool
) -> Iterator[str]:
    name = Path(recipe["run"]["dir"]).name
    head = head_of(recipe["task"])
    yield from ("---", yaml.safe_dump(_front_matter(recipe, config, head, metrics), sort_keys=False).strip(), "---")
    yield from (MARK, "", f"# {name}", "", _about(recipe, config, head, step))
    if metrics:
        yield from ("", "## Held-out metrics", "", "| metric | value |", "| --- | --- |")
        yield from (f"| {metric} | {value:.6g} |" for metric, value in metrics.items())
    if curve:
        yield from ("", f"![Loss of training and evaluation]({CURVE})")
    yield from ("", "## Data", "", *_data(recipe["data"]))
    yield from ("", "## Training", "", "| | |", "| --- | --- |")
    rows = ((title, _value(recipe, key)) for title, key in SHOWN)
    yield from (f"| {title} | {value} |" for title, value in rows if value is not None)
    yield from ("", f"Made with {', '.join(_versions(recipe))}.")
    dumped = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True).strip()
    yield from ("", "<details><summary>Recipe</summary>", "", "```yaml", *dumped.splitlines(), "```", "", "</details>")


def _front_matter(
    recipe: Mapping[str, Any], config: Mapping[str, Any], head: str, metrics: Mapping[str, float]
) -> dict[str, Any]:
    weights, source = recipe["model"].get("weights"), recipe["data"].get("source") or {}
    found: dict[str, Any] = {"library_name": "transformers", "tags": ["trireme", str(config.get("model_type"))]}
    found |= {"pipeline_tag": HEADS[head].pipeline} if head in HEADS and HEADS[head].pipeline else {}
    found |= {"base_model": weights} if weights and _is_hub_id(weights) else {}
    found |= {"datasets": [source["path"]]} if _is_hub_id(str(source.get("path") or "")) else {}
    return found | ({"metrics": list(metrics)} if metrics else {})


def _is_hub_id(text: str) -> bool:
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not Path(text).exists()


def _about(recipe: Mapping[str, Any], config: Mapping[str, Any], head: str, step: int) -> str:
    start = recipe["model"].get("weights")
    begun = f"from {start}" if start else "from random weights"
    task = str(recipe["task"]["_target_"]).rpartition(".")[2]
    kind = (config.get("architectures") or [config.get("model_type")])[0]
    return f"A `{kind}` ({head.replace('_', ' ')}), trained {begun} on the task {task}. This is step {step} of the run."


def _data(data: Mapping[str, Any]) -> Iterator[str]:
    sources = data.get("sources") or {"": {"source": data.get("source") or {}}}
    for name, part in sources.items():
        source = (part or {}).get("source") or {}
        kind = str(source.get("_target_", "")).rpartition(".")[2]
        told = {key: value for key, value in source.items() if key != "_target_" and value not in (None, [], {})}
        shown = ", ".join(f"{key}: {_one_line(value)}" for key, value in told.items())
        weight = f" (weight {part['weight']})" if name and part and "weight" in part else ""
        yield f"- {f'{name}: ' if name else ''}{kind}{weight}{f'; {shown}' if shown else ''}"
    if data.get("held_out"):
        yield f"- held out: {data['held_out']:.3g} of it"


def _one_line(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _value(recipe: Mapping[str, Any], key: str) -> Any:
    found: Any = recipe
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return str(found).removeprefix("trireme.trainer.optimizers.") if found is not None else None


def _versions(recipe: Mapping[str, Any]) -> Iterator[str]:
    yield f"trireme {__version__}"
    uses = recipe["plan"].get("data_parallel")
    for library in LIBRARIES:
        try:
            if library != "deepspeed" or uses == "deepspeed":
                yield f"{library} {version(library)}"
        except PackageNotFoundError:
            continue

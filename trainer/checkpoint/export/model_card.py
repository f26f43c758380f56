"""Write the model card (README.md) of an exported checkpoint: data, training, metrics, curve, recipe, versions.

Folders of adapters have one too, which names their base and its quantisation.

The front matter is what the Hugging Face Hub reads (https://huggingface.co/docs/hub/model-cards). All facts come from
the checkpoint's recipe and from its run folder; facts that are missing there are left out. Paths in the user's home
folder are shortened, since a card is made to be published.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from ....models.adapter_plan import AdapterPlan, read_plan
from ....models.heads import HEADS
from ....models.json_file import read_json
from ....models.peft_folder import CONFIG
from ....models.quantization.quantization_config import FOUR_BITS, STORED, QuantizationConfig
from ....version import __version__
from ...base_identity import Base, in_words, read_base
from ...callbacks.metrics_file import FILE_NAME, read_metrics
from ...tasks.task import head_of
from ..layout import MODEL, RECIPE, step_of

CARD, CURVE = "README.md", "curve.png"
MARK = "<!-- written by trireme -->"
"""Line that only cards written by trireme have, so that a card written by a person is recognised."""
LIBRARIES = ("torch", "transformers", "datasets", "tokenizers")
"""Packages that every run uses; the card states their versions if they are installed."""
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


@dataclass(frozen=True)
class CardFacts:
    """The facts that a card states."""

    recipe: Mapping[str, Any]
    config: Mapping[str, Any]
    """Content of the config.json of the model, or of the model that adapters belong to."""
    step: int
    base: Base | None = None
    """The base on which adapters were trained; None for a fully trained model."""
    plan: AdapterPlan | None = None
    apart: bool = False
    """Whether the folder holds adapters alone."""
    few: str | None = None
    """The method by which the export itself was quantised."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: bool = False

    @property
    def head(self) -> str:
        return head_of(self.recipe["task"])

    @property
    def start(self) -> str | None:
        """Folder or hub id of the weights that training began with."""
        return self.base.weights if self.base else self.recipe["model"].get("weights")


def write_card(checkpoint: Path, folder: Path, few: str | None = None) -> None:
    """Write README.md, and curve.png if the run has one, into ``folder``.

    Args:
        checkpoint: one of trireme's; without its recipe there is no card.
        folder: the export, which has config.json already, or adapter_config.json for adapters alone.
        few: the method by which the export was quantised.

    Raises:
        OSError: the card cannot be written.
        ValueError: a file of the checkpoint cannot be read.
    """
    recipe, assets = checkpoint / RECIPE, checkpoint / MODEL
    if not recipe.is_file():
        return
    told = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    apart = (folder / CONFIG).is_file()
    config = json.loads(((assets if apart else folder) / "config.json").read_text())
    run = next((path for path in (checkpoint.parent, checkpoint.parent.parent) if (path / FILE_NAME).is_file()), None)
    step = step_of(checkpoint)
    metrics = evaluated(run / FILE_NAME, step) if run else {}
    curve = run is not None and (run / CURVE).is_file()
    if run is not None and curve:
        shutil.copyfile(run / CURVE, folder / CURVE)
    card = CardFacts(told, config, step, read_base(assets), read_plan(assets), apart, few, metrics, curve)
    (folder / CARD).write_text("\n".join(_lines(card)).replace(str(Path.home()), "~") + "\n", encoding="utf-8")


def evaluated(file: Path, step: int) -> dict[str, float]:
    """Metrics of the last evaluation up to ``step``, by name without ``eval_``."""
    found: dict[str, Any] = {}
    for line in read_metrics(file, step):
        if any(name.startswith("eval_") for name in line):
            found = {name.removeprefix("eval_"): value for name, value in line.items() if name.startswith("eval_")}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def _lines(card: CardFacts) -> Iterator[str]:
    recipe = card.recipe
    yield from ("---", yaml.safe_dump(_front_matter(card), sort_keys=False).strip(), "---")
    yield from (MARK, "", f"# {Path(recipe['run']['dir']).name}", "", _about(card))
    if card.metrics:
        yield from ("", "## Held-out metrics", "", "| metric | value |", "| --- | --- |")
        yield from (f"| {metric} | {value:.6g} |" for metric, value in card.metrics.items())
    if card.curve:
        yield from ("", f"![Loss of training and evaluation]({CURVE})")
    yield from ("", "## Data", "", *_data(recipe["data"]))
    yield from ("", "## Training", "", "| | |", "| --- | --- |")
    rows = [*((title, _value(recipe, key)) for title, key in SHOWN), *_of_adapters(card)]
    yield from (f"| {title} | {value} |" for title, value in rows if value is not None)
    yield from ("", f"Made with {', '.join(_versions(card))}.")
    dumped = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True).strip()
    yield from ("", "<details><summary>Recipe</summary>", "", "```yaml", *dumped.splitlines(), "```", "", "</details>")


def _of_adapters(card: CardFacts) -> Iterator[tuple[str, str]]:
    """Rows on adapters and their base."""
    if card.base is not None:
        yield "base", card.base.weights or "random weights"
        if card.base.quantization is not None:
            yield "quantisation of the base", _quantisation(card.base)
    if card.plan is not None:
        ranks, alphas = sorted(set(card.plan.ranks.values())), sorted(set(card.plan.alphas.values()))
        yield "adapters", f"{_variant(card.plan)} of {len(card.plan.ranks)} layers"
        if ranks:
            yield "rank", ", ".join(map(str, ranks))
            yield "alpha", ", ".join(f"{alpha:g}" for alpha in alphas)
        if card.plan.saved:
            yield "fully trained modules", ", ".join(card.plan.saved)


def _variant(plan: AdapterPlan) -> str:
    name = "rsLoRA" if plan.rslora else "LoRA"
    return ("DoRA, rsLoRA" if plan.rslora else "DoRA") if plan.dora else name


def _quantisation(base: Base) -> str:
    """The quantisation of the base in words; for weights that were stored quantised, by the method in config.json."""
    assert base.quantization is not None
    text = in_words(base.quantization)
    file = Path(base.weights or "").expanduser() / "config.json"
    if base.quantization.get("method") != STORED or not file.is_file():
        return text
    try:
        said = read_json(file)["quantization_config"]["quant_method"]
    except (OSError, ValueError, KeyError, TypeError):
        return text
    return f"{said}, as its folder holds it"


def _front_matter(card: CardFacts) -> dict[str, Any]:
    recipe, head = card.recipe, card.head
    source = recipe["data"].get("source") or {}
    tags = ["trireme", str(card.config.get("model_type")), *(["lora"] if card.apart else [])]
    found: dict[str, Any] = {"library_name": "peft" if card.apart else "transformers", "tags": tags}
    found |= {"pipeline_tag": HEADS[head].pipeline} if head in HEADS and HEADS[head].pipeline else {}
    if card.start and _is_hub_id(card.start):  # the hub refuses cards whose base is no name of a repository
        found |= {"base_model": card.start} | ({"base_model_relation": "adapter"} if card.apart else {})
    found |= {"datasets": [source["path"]]} if _is_hub_id(str(source.get("path") or "")) else {}
    return found | ({"metrics": list(card.metrics)} if card.metrics else {})


def _is_hub_id(text: str) -> bool:
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not Path(text).exists()


def _about(card: CardFacts) -> str:
    task = str(card.recipe["task"]["_target_"]).rpartition(".")[2]
    kind = (card.config.get("architectures") or [card.config.get("model_type")])[0]
    model, start = f"`{kind}` ({card.head.replace('_', ' ')})", card.start or "random weights"
    about = f"A {model}, trained from {start}"
    if card.base is not None and card.apart:
        about = f"Adapters for a {model}, trained on top of {start}"
    elif card.base is not None:
        about = f"A {model}: {start}, with adapters merged into it, trained"
    few = f" Its linear layers are quantised ({card.few})." if card.few else ""
    return f"{about} on the task {task}. This is step {card.step} of the run.{few}"


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


def _versions(card: CardFacts) -> Iterator[str]:
    yield f"trireme {__version__}"
    for library in (*LIBRARIES, *_further(card)):
        try:
            yield f"{library} {version(library)}"
        except PackageNotFoundError:
            continue


def _further(card: CardFacts) -> Iterator[str]:
    """Further packages that this run or its export used, such as peft for a folder of adapters."""
    recipe, found = card.recipe, set()
    if recipe["plan"].get("data_parallel") == "deepspeed":
        found.add("deepspeed")
    if card.apart:
        found.add("peft")
    kept = recipe["model"].get("quantization")
    found.add(QuantizationConfig(kept["method"]).package if kept else "")
    if recipe["model"].get("qat"):
        found.add("torchao")
    optimizer = str((recipe.get("optimizer") or {}).get("_target_"))
    if card.few in (*FOUR_BITS, "int8") or optimizer.endswith("adamw_8bit"):
        found.add("bitsandbytes")
    return iter(sorted(found - {""}))

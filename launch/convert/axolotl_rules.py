"""Convert arguments of axolotl and TRL into keys of a recipe where renaming is not enough, because the value changes as
well: data sets, chat templates, preference losses, packing, adapters, quantised base models, attention, and how often
to evaluate and save.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Any

from ...errors import Problem, UserError
from ...trainer.data.chat.named_templates import template_names
from .recipe_draft import Draft
from .rule import Arguments, Rule, mapping, number, option, switch

KEYS = {"path", "name", "split", "data_files", "field", "type", "ds_type", "revision"}
"""Keys of a data set that say where its rows are."""
CHAT_COLUMNS = {"field_messages": "messages", "field_tools": "tools", "field_system": "system"}
"""Keys that name a column of conversations -> its name here."""
CHAT_KEYS = {"roles", "roles_to_train", "message_property_mappings", "message_field_role", "message_field_content"}
"""Further keys of a data set of conversations."""
PREFERENCES = {"prompt": "field_messages", "chosen": "field_chosen", "rejected": "field_rejected"}
"""Column of preference data -> axolotl's key for its name."""


def share(draft: Draft, value: Any, given: Arguments) -> None:
    """``val_set_size``: a share, or a number of samples."""
    size = number("val_set_size", value)
    if size >= 1:
        draft.leave(
            "val_set_size", value, "is a number of samples, but data.held_out is a fraction; write one such as 0.05"
        )
    else:
        draft.set("data.held_out", size)


def per_epoch(name: str, key: str) -> Rule:
    def rule(draft: Draft, value: Any, given: Arguments) -> None:
        if number(name, value) == 1:
            draft.set(key, "epoch")
        elif number(name, value) <= 0:
            draft.leave(name, value, f"is not above 0; to switch this off, write {key}=null")
        else:
            why = f"means several times per epoch; write a number of steps, {key}=N"
            draft.leave(name, value, why)

    return rule


def datasets(draft: Draft, value: Any, given: Arguments) -> None:
    """axolotl's list: files or data sets of the hub; several become a mixture."""
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
        draft.leave(
            "datasets",
            value,
            "is no list of data sets; write data=files data.source.paths=[...] or data=hub data.source.path=OWNER/NAME",
        )
        return
    first, *others = value
    path, name = first.get("path"), first.get("name")
    if not isinstance(path, str) or not path:
        draft.leave(
            "datasets", value, "has no path in its first entry; write data=files data.source.paths=[...], or data=hub"
        )
        return
    files = first.get("data_files") or (path if Path(path).suffix or Path(path).exists() else None)
    if files:
        draft.choose("data", "files")
        draft.set("data.source.paths", files if isinstance(files, list) else [files])
    else:
        draft.choose("data", "hub")
        draft.set("data.source.path", path)
        for key, each in (("name", name), ("split", first.get("split"))):
            if each:
                draft.set(f"data.source.{key}", each)
    if first.get("field"):
        draft.set("data.source.text_column", first["field"])
    kind = first.get("type")
    if kind == "chat_template":
        draft.choose("data", "chat" if files else "hub_chat")
        _chat_keys(draft, first)
    elif kind not in (None, "completion"):
        draft.leave("datasets.type", kind, "cannot be converted; see docs/data.md for the forms of rows")
    prefers = given.get("rl") in ("dpo", "ipo", "kto")
    if prefers:
        _preference_data(draft)
        draft.left.pop("datasets.type", None)
        named = {name: first[theirs] for name, theirs in PREFERENCES.items() if first.get(theirs, name) != name}
        if named:
            draft.set("data.columns", named)
    if first.get("revision"):
        draft.set("data.source.revision", first["revision"])
    read = KEYS | CHAT_KEYS | CHAT_COLUMNS.keys() if kind == "chat_template" else KEYS
    read |= set(PREFERENCES.values()) if prefers else set()
    _leave_unread(draft, first, read, local=bool(files))
    if others:
        draft.leave(
            "datasets",
            others,
            "are data sets after the first, the only one converted; mix several with data.sources (docs/data.md)",
        )


def _leave_unread(draft: Draft, entry: Arguments, read: Set[str], local: bool) -> None:
    """Name the keys of an entry of ``datasets`` that are not converted; ``local``: it reads local files."""
    for key in ("name", "split") if local else ():
        if entry.get(key) not in (None, "train"):
            draft.leave(
                f"datasets.{key}",
                entry[key],
                "has no effect on local files; for a set of the hub, write data=hub data.source.path=OWNER/NAME",
            )
    for key in sorted(entry.keys() - read):
        draft.leave(f"datasets.{key}", entry[key], "cannot be converted; see docs/data.md and docs/chat.md")


def preferences(name: str) -> Rule:
    """Convert ``rl`` of axolotl, or ``loss_type`` of TRL, into the task and the kind of data."""

    def rule(draft: Draft, value: Any, given: Arguments) -> None:
        kind = {"sigmoid": "dpo", "sigmoid_norm": "dpo"}.get(str(value), str(value))
        if kind not in ("dpo", "ipo", "kto"):
            option(draft, "task", name, kind)
            return
        draft.choose("task", kind)
        if str(value) == "sigmoid_norm":
            draft.set("task.length_normalised", True)
        _preference_data(draft)

    return rule


def _preference_data(draft: Draft) -> None:
    """Choose data of preferences in place of chats or documents that were chosen before."""
    chosen = draft.choices.get("data", [])
    if chosen and "preferences" not in chosen[0]:
        draft.choose("data", "hub_preferences" if chosen[0].startswith("hub") else "preferences")
        columns = draft.values.get("data.columns")
        if isinstance(columns, dict) and "messages" in columns:
            del draft.values["data.columns"]


def _chat_keys(draft: Draft, given: Arguments) -> None:
    """Keys of a data set of conversations: the columns of its rows, and the parts that are trained on."""
    columns = {ours: given[theirs] for theirs, ours in CHAT_COLUMNS.items() if given.get(theirs, ours) != ours}
    if columns:
        draft.set("data.columns", columns)
    if roles := mapping("datasets.roles", given.get("roles")):
        named = {str(theirs): str(ours) for ours, every in roles.items() for theirs in _names(ours, every)}
        draft.set("data.chat.role_names", {theirs: ours for theirs, ours in named.items() if theirs != ours})
    if given.get("roles_to_train"):
        draft.set("data.chat.loss", "roles")
        draft.set("data.chat.roles", given["roles_to_train"])
    fields = mapping("datasets.message_property_mappings", given.get("message_property_mappings"))
    pair = [fields.get(name, given.get(f"message_field_{name}", name)) for name in ("role", "content")]
    if pair not in (["role", "content"], ["from", "value"]):
        why = "must be {role, content} or {from, value}; rename the keys in the files"
        draft.leave("datasets.message_property_mappings", pair, why)


def _names(role: str, names: Any) -> list[Any]:
    """The names of a role in the rows."""
    if not isinstance(names, list):
        fix = f"write the role's names in the rows as a list: {role}: [human]"
        raise UserError(Problem(f"datasets.roles.{role}", "is not a list", fix, names))
    return names


def packing(draft: Draft, value: Any, given: Arguments) -> None:
    """Pack whole documents into each row, and treat documents that are longer than a row as TRL and axolotl do."""
    name = "sample_packing" if "sample_packing" in given and "packing" not in given else "packing"
    if isinstance(value, str) and value.lower() not in ("true", "false"):
        draft.leave(name, value, "is neither true nor false")
        return
    if not _packs(given):
        draft.set("data.packing", bool(value))
        return
    draft.set("data.packing", "bins")
    usual = "drop" if given.get("sample_packing") or given.get("packing_strategy", "bfd") == "bfd" else "split"
    draft.set("data.overflow", usual)


def packing_strategy(draft: Draft, value: Any, given: Arguments) -> None:
    """Leave values that ``packing`` cannot convert; ``packing`` reads the others."""
    if value not in ("bfd", "bfd_split", "wrapped"):
        draft.leave(
            "packing_strategy",
            value,
            "cannot be converted; write data.packing=bins with data.overflow, or data.packing=true",
        )
    elif not given.get("packing") and value != "bfd":
        draft.leave("packing_strategy", value, "has no effect, since packing is off; leave it out")


def _packs(given: Arguments) -> bool:
    return bool(given.get("sample_packing") or (given.get("packing") and given.get("packing_strategy") != "wrapped"))


def adapter(draft: Draft, value: Any, given: Arguments) -> None:
    kind = str(value)
    if kind == "qlora":
        draft.choose("quantization", "nf4")
    ratio, dora = given.get("loraplus_lr_ratio"), given.get("peft_use_dora")
    if kind in ("lora", "qlora", "dora"):
        draft.choose("adapter", "dora" if dora or kind == "dora" else "lora_plus" if ratio else "lora")
    else:
        option(draft, "adapter", "adapter", value)


def quantised(name: str, option: str) -> Rule:
    """Quantise the base model; this needs an adapter, since quantised weights are not trained."""

    def rule(draft: Draft, value: Any, given: Arguments) -> None:
        if not isinstance(value, bool | None):
            raise UserError(Problem(name, "is neither true nor false", "write true or false in the file", value))
        if value and given.get("adapter"):
            draft.choose("quantization", option)
        elif value:
            draft.leave(
                name,
                value,
                f"needs an adapter, since quantised weights are not trained: quantization={option} adapter=lora",
            )

    return rule


def adapter_targets(draft: Draft, value: Any, given: Arguments) -> None:
    if not isinstance(value, str | list | None):
        fix = "write a list of them in the file: [q_proj, v_proj]"
        raise UserError(Problem("lora_target_modules", "is neither a name of modules nor a list of names", fix, value))
    if value:
        draft.set("model.adapter.targets", value)


def every_layer(draft: Draft, value: Any, given: Arguments) -> None:
    if switch(draft, "lora_target_linear", value):
        draft.set("model.adapter.targets", "all-linear")


def dora(draft: Draft, value: Any, given: Arguments) -> None:
    """Leave the switch if there is no adapter; otherwise ``adapter`` reads it."""
    if switch(draft, "peft_use_dora", value) and given.get("adapter") not in ("lora", "qlora", "dora"):
        draft.leave("peft_use_dora", value, "has no effect without an adapter; write adapter=dora")


def attention(name: str, kind: str) -> Rule:
    def rule(draft: Draft, value: Any, given: Arguments) -> None:
        packed = kind == "flash_attention_2" and _packs(given)  # packed rows use torch's flash attention
        if switch(draft, name, value) and not packed:
            draft.set("model.attention", kind)

    return rule


TEMPLATES = {
    "cohere": "command_r",
    "mistral_v2v3": "mistral_v3",
    "mistral_v3_tekken": "mistral_tekken",
    "mistral_v7_tekken": "mistral_v7",
    "phi_3": "phi3",
    "phi_35": "phi3",
    "phi_4": "phi4",
    "qwen_25": "qwen2_5",
}
"""axolotl's name of a chat template -> its name here."""


def chat_template(draft: Draft, value: Any, given: Arguments) -> None:
    """The name of a template, or a template in Jinja; the tokenizer's own is taken where there is none.

    ``tokenizer_default_fallback_NAME`` is the template NAME for tokenizers that have none.
    """
    kind = str(value)
    name = TEMPLATES.get(kind, kind)
    if name in template_names() or "{" in kind:
        draft.set("data.chat.template", name)
    elif fallback := kind.removeprefix("tokenizer_default").removeprefix("_fallback_"):
        if kind.startswith("tokenizer_default"):
            why = f"the tokenizer's own is taken; for one that has none write data.chat.template={fallback}"
        elif kind == "jinja":
            why = "leave it out: chat_template_jinja is the template"
        else:
            why = f"write data.chat.template: a Jinja text, a file or one of {', '.join(template_names())}"
        draft.leave("chat_template", value, why)


AXOLOTL_RULES: dict[str, Rule] = {
    "rl": preferences("rl"),
    "loss_type": preferences("loss_type"),
    "packing": packing,
    "sample_packing": packing,
    "evals_per_epoch": per_epoch("evals_per_epoch", "trainer.eval_every"),
    "saves_per_epoch": per_epoch("saves_per_epoch", "checkpoint.every"),
    "datasets": datasets,
    "chat_template": chat_template,
    "val_set_size": share,
    "adapter": adapter,
    "load_in_4bit": quantised("load_in_4bit", "nf4"),
    "load_in_8bit": quantised("load_in_8bit", "int8"),
    "lora_target_modules": adapter_targets,
    "lora_target_linear": every_layer,
    "peft_use_dora": dora,
    "packing_strategy": packing_strategy,
    "flash_attention": attention("flash_attention", "flash_attention_2"),
    "sdp_attention": attention("sdp_attention", "sdpa"),
    "eager_attention": attention("eager_attention", "eager"),
    "flex_attention": attention("flex_attention", "flex_attention"),
}
"""Argument -> its rule."""

"""Convert other tools' arguments into keys of a recipe: those for batch sizes, and those for samples that are longer
than the sequence length.

Each of these keys depends on several arguments, so they are set after all other arguments were converted.
"""

from __future__ import annotations

from .recipe_draft import Draft
from .rule import Arguments, whole

MICRO = ("per_device_train_batch_size", "per_gpu_train_batch_size", "micro_batch_size")
"""Names of the micro-batch size; the first that is given counts."""
TOO_LONG = {"truncate": "cut", "drop": "drop", "raise": "refuse"}
"""axolotl's ``excess_length_strategy`` -> ``data.chat.too_long``."""


def batch(draft: Draft, given: Arguments, ranks: int) -> None:
    """Set the batch sizes of the draft from the micro-batch size, accumulation and number of data ranks."""
    sizes = [name for name in MICRO if given.get(name) is not None]
    for name in sizes[1:]:
        draft.leave(name, given[name], f"has no effect beside {sizes[0]}; leave it out")
    accumulation, both = given.get("gradient_accumulation_steps"), given.get("batch_size")
    if both is not None and accumulation is not None:
        draft.leave("gradient_accumulation_steps", accumulation, "has no effect beside batch_size; leave it out")
        accumulation = None
    if not sizes and accumulation is None and both is None:
        return
    micro = whole(draft, sizes[0], given[sizes[0]], 1) if sizes else 8
    names = [name for name in (*sizes[:1], "gradient_accumulation_steps", "batch_size") if given.get(name) is not None]
    if micro and (sizes or both is None):  # beside a batch alone, one that divides it is chosen later
        draft.now = tuple(sizes[:1])
        draft.set("trainer.micro_batch_size", micro)
    draft.now = tuple(names)
    if both is not None:
        size = whole(draft, "batch_size", both, 1)
    else:
        times = 1 if accumulation is None else whole(draft, "gradient_accumulation_steps", accumulation, 1)
        size = micro * times if micro and times else None
    if size:
        draft.set("trainer.global_batch_size", size * ranks)


def too_long(draft: Draft, given: Arguments, axolotl: bool) -> None:
    """Convert the treatment of samples that are longer than a row. Conversations and preferences have the key
    ``data.chat.too_long`` for it, packed documents have ``data.overflow``."""
    name, asked = "excess_length_strategy", given.get("excess_length_strategy")
    data = draft.choices.get("data", ["files"])[-1]
    way = TOO_LONG.get(str(asked)) if asked is not None else "drop" if axolotl else None
    draft.now = (name,)
    if asked is not None and way is None:
        draft.leave(name, asked, f"is not one of {', '.join(TOO_LONG)}")
    elif "chat" in data or "preferences" in data:
        draft.values.pop("data.overflow", None)
        if way:
            draft.set("data.chat.too_long", way)
    elif asked is None:
        return
    elif draft.values.get("data.packing") != "bins":
        why = "has no effect, since documents are cut into rows; to choose, write data.packing=bins and data.overflow"
        draft.leave(name, asked, why)
    elif way == "refuse":
        draft.leave(
            name, asked, "cannot be converted: long documents do not end a run; write data.overflow=cut, split or drop"
        )
    elif way:
        draft.set("data.overflow", way)

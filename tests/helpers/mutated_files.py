"""Ways to damage a user's files (data, weights, recipes). The fuzz test of ``trireme`` tries some of them, drawn at
random.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from helpers.mutations import Mutation
from helpers.recipes import TINY

ROWS = [{"text": f"document {number} of a corpus that is gr\u00fcn \u2013 as any"} for number in range(60)]
Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, Damage] = {
    "sound": lambda content: content,
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "without its last byte": lambda content: content[:-1],
    "without its first bytes": lambda content: content[3:],
    "zeros": lambda content: bytes(len(content)),
    "binary": lambda content: bytes(range(256)) * 8,
    "NUL within": lambda content: content[:40] + b"\0" + content[40:],
    "UTF-16": lambda content: content.decode("utf-8", "replace").encode("utf-16"),
    "Latin-1": lambda content: content.decode("utf-8", "replace").encode("latin-1", "replace"),
    "byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "huge line": lambda content: content + b"x" * 300_000,
    "line breaks only": lambda content: b"\n" * 100,
    "doubled": lambda content: content + content,
    "compressed": gzip.compress,
    "ragged": lambda content: content.replace(b"\n", b",surplus\n", 3),
    "quotes": lambda content: content.replace(b"document 3", b'docu"ment 3'),
    "brackets": lambda content: b"[" * 5000 + content,
    "turned bits": lambda content: bytes(byte ^ 16 if n % 97 == 5 else byte for n, byte in enumerate(content)),
    "web page": lambda content: b"<!DOCTYPE html><html><body>404</body></html>",
    "large-file pointer": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}
FINE = {"sound", "byte order mark", "doubled"}
INSTEAD: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "dangling link": lambda path: path.symlink_to(path.with_name("nothing")),
    "circular link": lambda path: path.symlink_to(path),
    "pipe": lambda path: __import__("os").mkfifo(path),
    "kernel's": lambda path: path.symlink_to("/proc/self/mem"),
    "device": lambda path: path.symlink_to("/dev/zero"),
}
"""What takes the place of a file. Permissions are not mutated, since root may read every file."""


def data_mutations() -> Iterator[Mutation]:
    """Every data format with every kind of damage, and under the suffix of every other format."""
    contents = _contents()
    for kind, content in contents.items():
        for name, damage in DAMAGES.items():
            arrange = _data_file(f"corpus.{kind}", damage(content))
            yield Mutation(f"corpus.{kind}: {name}", ("data=files",), ("corpus.", "data."), arrange=arrange)
        for name, make in INSTEAD.items():
            yield Mutation(
                f"corpus.{kind}: {name}", ("data=files",), ("corpus.",), True, arrange=_instead(f"corpus.{kind}", make)
            )
        for other in (*contents, "zip", "gz", "jsonl.gz", "csv.xz", "log", "", "PDF"):
            if other != kind:
                arrange = _data_file(f"corpus.{other}", content)
                yield Mutation(f"{kind} called .{other}", ("data=files",), ("corpus.", "data."), arrange=arrange)
    rows = {
        "a number": '{"text": 3}', "null": '{"text": null}', "a list": '{"text": ["a"]}', "no column": '{"words": "a"}',
        "half a surrogate": '{"text": "\\udc80 and more"}', "NaN": "NaN", "a number alone": "1e999", "nothing": "{}",
        "a long number": '{"text": ' + "9" * 5000 + "}", "a list of rows": '[{"text": "a"}]', "empty": '{"text": ""}',
    }  # fmt: skip
    for name, row in rows.items():
        text = contents["jsonl"] + row.encode() + b"\n"
        yield Mutation(
            f"a row with {name}", ("data=files",), ("corpus.", "data."), arrange=_data_file("corpus.jsonl", text)
        )


@cache
def _contents() -> dict[str, bytes]:
    from datasets import Dataset

    folder = Path(mkdtemp())
    rows = Dataset.from_list(ROWS)
    rows.to_parquet(str(folder / "a.parquet"))
    rows.to_csv(str(folder / "a.csv"), index=False)
    import pyarrow as pa

    with pa.OSFile(str(folder / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, rows.data.table.schema) as writer:
        writer.write_table(rows.data.table)
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    found = {
        "txt": "\n".join(row["text"] for row in ROWS).encode(),
        "jsonl": "".join(f"{line}\n" for line in lines).encode(),
        "json": f"[{', '.join(lines)}]".encode(),
        "tsv": ("text\n" + "".join(f"{row['text']}\n" for row in ROWS)).encode(),
        **{kind: (folder / f"a.{kind}").read_bytes() for kind in ("csv", "parquet", "arrow")},
    }
    shutil.rmtree(folder)
    return found


def _data_file(name: str, content: bytes) -> Callable[[Path], list[str]]:
    def arrange(folder: Path) -> list[str]:
        (folder / name).write_bytes(content)
        return [
            f"data.source.paths=[{folder / name}]",
            *(["data.source.split_text=line"] if name.endswith(".txt") else []),
        ]

    return arrange


def _instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], list[str]]:
    def arrange(folder: Path) -> list[str]:
        make(folder / name)
        return [f"data.source.paths=[{folder / name}]"]

    return arrange


# -- weights ------------------------------------------------------------------------------------------------------

WRONG = {
    "null": None,
    "words": "some words",
    "negative": -3,
    "list": [1, "a"],
    "mapping": {"a": 1},
    "huge": 10**30,
    "true": True,
    "fraction": 2.5,
}
WEIGHTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "generation_config.json")
ASSETS = ("tokenizer", "vocabulary", "json", "safetensors", "config", "model.", "data.")


def weights_mutations() -> Iterator[Mutation]:
    """A sound folder of weights with one file damaged, missing, or with one value replaced."""
    sound = _weights()
    for name in WEIGHTS:
        for kind, damage in DAMAGES.items():
            content = damage((sound / name).read_bytes())
            yield Mutation(f"{name}: {kind}", (), ASSETS, recipe=finetune, arrange=_weights_with(name, content))
        for kind, make in INSTEAD.items():
            if kind != "device":
                yield Mutation(f"{name}: {kind}", (), ASSETS, recipe=finetune, arrange=_weights_with(name, None, make))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        values = json.loads((sound / name).read_text(encoding="utf-8"))
        for key in values:
            rest = {other: value for other, value in values.items() if other != key}
            for kind, value in WRONG.items():
                text = json.dumps({**rest, key: value}).encode()
                yield Mutation(
                    f"{name}: {key} {kind}", (), (key, *ASSETS), recipe=finetune, arrange=_weights_with(name, text)
                )
            text = json.dumps(rest).encode()
            yield Mutation(
                f"{name}: without {key}", (), (key, *ASSETS), recipe=finetune, arrange=_weights_with(name, text)
            )
    head, size = _head(sound)
    for kind, changed in _heads(head).items():
        text = json.dumps(changed).encode()
        content = len(text).to_bytes(8, "little") + text + bytes(size)
        yield Mutation(
            f"model.safetensors: {kind}",
            (),
            ASSETS,
            kind != "sound",
            recipe=finetune,
            arrange=_weights_with("model.safetensors", content),
        )


def _head(sound: Path) -> tuple[dict[str, object], int]:
    content = (sound / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), len(content) - 8 - size


def _heads(head: dict) -> dict[str, object]:
    """Headers of a safetensors file, each wrong in one way."""
    name = "model.layers.0.self_attn.q_proj.weight"
    entry = head[name]

    def other(**changed: object) -> dict:
        return {**head, name: {**entry, **changed}}

    return {
        "sound": head,
        "no tensors": {},
        "a list": [1, 2],
        "a tensor less": {key: value for key, value in head.items() if key != name},
        "another shape": other(shape=[16, 64]),
        "a negative size": other(shape=[-32, -32]),
        "a size of words": other(shape=["a", 32]),
        "no shape": other(shape=None),
        "unknown type": other(dtype="F7"),
        "type a number": other(dtype=3),
        "offsets beyond the end": other(data_offsets=[0, 10**12]),
        "offsets of words": other(data_offsets="all"),
        "an entry of words": {**head, name: "weights"},
        "integers": other(dtype="I32"),
    }


@cache
def _weights() -> Path:
    """A small Llama with a tokenizer."""
    import atexit

    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trireme.models.model_config import ModelConfig, hf_config

    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = hf_config(ModelConfig("llama", {**sizes, "num_hidden_layers": 2, "max_position_embeddings": 64}))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = {f"w{number}": number for number in range(288)} | {"<eos>": 288, "[UNK]": 289}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    return folder


def _weights_with(
    name: str, content: bytes | None, make: Callable[[Path], object] | None = None
) -> Callable[[Path], list[str]]:
    def arrange(folder: Path) -> list[str]:
        base = folder / "base"
        shutil.copytree(_weights(), base)
        (base / name).unlink()
        if content is not None:
            (base / name).write_bytes(content)
        elif make is not None:
            make(base / name)
        (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        return [f"model.weights={base}", "data=files", f"data.source.paths=[{folder / 'corpus.jsonl'}]"]

    return arrange


FINETUNE = """defaults: [/base, /model: pretrained, /data: files, override /callbacks: minimal, _self_]
data: {block_size: 32, held_out: 0.1, tokenizer: {path: '${model.weights}'}}
trainer: {max_steps: 2, global_batch_size: 2, micro_batch_size: 2, eval_samples: 4}
"""


# -- recipes ------------------------------------------------------------------------------------------------------


def recipe_mutations() -> Iterator[Mutation]:
    """The tiny recipe with its file damaged, and with every line of it left out, doubled, or written wrongly."""
    text = TINY.read_text()
    for kind, damage in DAMAGES.items():
        yield Mutation(f"recipe: {kind}", recipe=_recipe(damage(text.encode())))
    for kind, make in INSTEAD.items():
        if kind != "device":  # reading a device would not end
            yield Mutation(f"recipe: {kind}", nonsense=True, recipe=_recipe(None, make))
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.strip() and not line.startswith("#"):
            for kind, changed in _lines(line).items():
                whole = "\n".join([*lines[:number], *changed, *lines[number + 1 :]]) + "\n"
                yield Mutation(f"recipe, line {number + 1}: {kind}", recipe=_recipe(whole.encode()))


def _lines(line: str) -> dict[str, list[str]]:
    """Variants of a line with one mistake each."""
    key, _, value = line.partition(":")
    instead = {
        "no value": "",
        "a list": "[1, a]",
        "a mapping": "{a: 1}",
        "a number": "3",
        "a tag": f"!!python/object:os.system {value}",
        "an anchor": "&a *a",
        "open quote": f"'{value}",
        "open bracket": f"[{value}",
        "date": "2024-01-01",
        "interpolation": "${no.such}",
        "half an interpolation": "${no",
    }
    return {
        **{kind: [f"{key}: {other}"] for kind, other in instead.items()},
        "left out": [],
        "doubled": [line, line],
        "indented": [f" {line}"],
        "to the left": [line.lstrip()],
        "tab": [f"\t{line}"],
        "no colon": [key + value],
        "no space": [line.replace(": ", ":")],
        "merge": [f"{key}:", "  <<: 3"],
        "a number as key": [f"3: {value}"],
        "null as key": [f"~: {value}"],
        "a list as key": ["? [a]", f": {value}"],
        "percent": [f"%{line}"],
        "another document": ["---", line],
    }


def _recipe(content: bytes | None, make: Callable[[Path], object] | None = None) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "recipe.yaml"
        if content is not None:
            path.write_bytes(content)
        elif make is not None:
            make(path)
        return path

    return write


def finetune(folder: Path) -> Path:
    (folder / "finetune.yaml").write_text(FINETUNE)
    return folder / "finetune.yaml"

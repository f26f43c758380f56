"""Measure the time and memory of exporting a checkpoint, compared with ``cp`` and DeepSpeed's ``zero_to_fp32.py``.

The script makes two checkpoints in a temporary folder: one in trireme's format, as two FSDP ranks write it, and one of
DeepSpeed ZeRO-2. Every export runs in its own process, after all imports; only what it uses beyond them is measured.

Exports of trireme's format run with limited address space (RLIMIT_AS): the space after imports, the cap, and the size
of the largest tensor. DeepSpeed's files are pickles around raw tensors, which are mapped into memory to be read. This
takes address space even if little memory is used. So exports of these files have no cap, and only their peak resident
memory is measured, mapped pages included.

    python benchmarks/export.py                                  # 3 GiB of weights under 256 MiB; some minutes
    python benchmarks/export.py --gib 0.25 --deepspeed-gib 0.1 --memory 64MiB
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import torch
import torch.distributed as dist
from helpers.ranks import run_ranks

MIB, GIB = 2**20, 2**30
HIDDEN, VOCABULARY = 1024, 32000
SLOWER, SMALLER = 2.0, 0.1
"""Targets: longest time relative to cp, and most memory relative to zero_to_fp32."""


def model_config(gib: float) -> Any:
    """A Llama whose fp32 weights are about ``gib``."""
    from transformers import LlamaConfig

    layer = HIDDEN * HIDDEN * 4 + 3 * HIDDEN * 4 * HIDDEN
    vocabulary = VOCABULARY if gib >= 0.5 else 2000
    layers = max(round((gib * GIB / 4 - 2 * vocabulary * HIDDEN) / layer), 1)
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=16,
        architectures=["LlamaForCausalLM"],
    )


# -- checkpoints to export, written by two ranks ---------------------------------------------------------------


def write_checkpoint(folder: Path, gib: float) -> None:
    """Write random weights, and moments of zeros (which take no memory until they are written), split by rows."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from transformers import AutoModelForCausalLM
    from trireme.trainer.checkpoint.layout import FORMAT, MANIFEST, MODEL, TENSORS, describe_file, files_of
    from trireme.trainer.checkpoint.save.write_tensors import write_tensors

    dist.init_process_group("gloo")
    config, mesh = model_config(gib), init_device_mesh("cpu", (2,))
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in AutoModelForCausalLM.from_config(config).named_parameters()}

    def spread(make: Callable[..., torch.Tensor], shape: torch.Size) -> torch.Tensor:
        return DTensor.from_local(make(shape[0] // 2, *shape[1:]), mesh, [Shard(0)], run_check=False)

    torch.manual_seed(dist.get_rank())
    tensors = {f"model.{name}": spread(torch.randn, shape) for name, shape in shapes.items()}
    for state in ("exp_avg", "exp_avg_sq"):
        tensors |= {f"optim.{name}.{state}": spread(torch.zeros, shape) for name, shape in shapes.items()}
    if dist.get_rank() == 0:
        (folder / TENSORS).mkdir(parents=True)
        config.save_pretrained(folder / MODEL)
    dist.barrier()
    write_tensors(tensors, folder / TENSORS, distributed=True)
    dist.barrier()
    if dist.get_rank() == 0:
        files = {name: describe_file(folder / name) for name in files_of(folder)}
        (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "step": 1, "plan": "benchmark", "files": files}))
    dist.destroy_process_group()


def write_deepspeed(folder: Path, gib: float) -> None:
    """Train one step of ZeRO-2 in fp32 and let the engine save it."""
    from trireme.parallel.zero.library import import_deepspeed, quiet

    deepspeed = import_deepspeed()
    from transformers import AutoModelForCausalLM

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    config = model_config(gib)
    model = AutoModelForCausalLM.from_config(config)
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}}
    settings["zero_allow_untested_optimizer"] = True
    with quiet():
        optimizer = torch.optim.AdamW(model.parameters())
        engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)[0]
        tokens = torch.arange(4).reshape(1, 4)
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()
        engine.save_checkpoint(str(folder))
    if dist.get_rank() == 0:
        config.save_pretrained(folder)
    dist.barrier()
    dist.destroy_process_group()


# -- measured in a process of its own ---------------------------------------------------------------------------


def status(key: str) -> int:
    """The value, in bytes, of a line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def child(kind: str, source: str, out: str, dtype: str, memory: str, largest: int) -> None:
    """Import everything, set the limit, run, and print the measurements as JSON."""
    import resource

    import transformers
    from trireme.trainer.checkpoint.export.export_folder import ExportOptions, export, size_in_bytes

    for name in ("AutoConfig", "GenerationConfig", "LlamaForCausalLM"):  # transformers imports when it is asked
        getattr(transformers, name)
    torch.ones(1000).to(torch.bfloat16)
    if kind == "zero_to_fp32":
        from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict as convert

        run = lambda: convert(source, out, safe_serialization=True)  # noqa: E731
    else:
        if kind == "deepspeed":
            import trireme.trainer.checkpoint.foreign.recognise  # noqa: F401
        run = lambda: export(source, out, ExportOptions(dtype, memory=memory))  # noqa: E731
    limit = None
    if kind == "trireme":
        limit = status("VmSize") + size_in_bytes(memory) + largest
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, then, busy = status("VmRSS"), time.perf_counter(), time.process_time()
    run()
    taken = {"seconds": time.perf_counter() - then, "cpu": time.process_time() - busy}
    print("MEASURED", json.dumps(taken | {"peak": status("VmHWM") - before, "limit": limit}))


def measure(kind: str, source: Path, out: Path, dtype: str, memory: str, largest: int) -> dict[str, Any]:
    """Run ``child``; returns its measurements, and the seconds until everything is on the disk."""
    subprocess.run(["sync"], check=True)
    command = [sys.executable, __file__, "--child", kind, str(source), str(out), dtype, memory, str(largest)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "DS_ACCELERATOR": "cpu"})
    line = next((line for line in done.stdout.splitlines() if line.startswith("MEASURED ")), None)
    if done.returncode or line is None:
        raise SystemExit(f"{kind} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return json.loads(line.removeprefix("MEASURED ")) | {"flush": flushed(out)}


def flushed(folder: Path) -> float:
    then = time.perf_counter()
    files = [str(file) for file in sorted(folder.rglob("*")) if file.is_file()]
    subprocess.run(["sync", *files], check=True)
    return time.perf_counter() - then


def copied(files: list[Path], out: Path) -> dict[str, Any]:
    """Time ``cp`` of files that are in the page cache, as they are for the export."""
    out.mkdir()
    subprocess.run(["sync"], check=True)
    then, before = time.perf_counter(), os.times()
    subprocess.run(["cp", *map(str, files), str(out)], check=True)
    seconds, after = time.perf_counter() - then, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": seconds, "cpu": cpu, "flush": flushed(out)}


def warm(files: list[Path]) -> None:
    for file in files:
        with file.open("rb") as stream:
            while stream.read(16 * MIB):
                pass


# -- the two comparisons ------------------------------------------------------------------------------------------


def compare_with_cp(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure trireme's layout: exports under the cap, and cp of the files with the weights, in turn."""
    from trireme.trainer.checkpoint.load.block_reader import StoredShards

    checkpoint = folder / "checkpoint"
    run_ranks(write_checkpoint, 2, checkpoint, options.gib, timeout=1800)
    pieces = StoredShards(checkpoint / "tensors")
    weights = [name for name in pieces.shapes if name.startswith("model.")]
    sizes = {name: pieces.shapes[name][0].numel() * pieces.shapes[name][1].itemsize for name in weights}
    files, largest = sorted(pieces.files(weights)), max(sizes.values())
    held = sum(file.stat().st_size for file in files)
    print(
        f"checkpoint: {sum(sizes.values()) / GIB:.2f} GiB of weights in {held / GIB:.2f} GiB of files, largest tensor "
        f"{largest / MIB:.0f} MiB; cap {options.memory} above it"
    )
    lines = []
    for _ in range(options.rounds):
        warm(files)
        cp = copied(files, folder / "copy")
        shutil.rmtree(folder / "copy")
        for dtype in options.dtypes.split(","):
            warm(files)
            line = measure("trireme", checkpoint, folder / "out", dtype, options.memory, largest)
            shutil.rmtree(folder / "out")
            line |= {"dtype": dtype, "cp": cp, "ratio": line["seconds"] / cp["seconds"]}
            line["on_disk"] = (line["seconds"] + line["flush"]) / (cp["seconds"] + cp["flush"])
            lines.append(line)
            show(line)
    shutil.rmtree(checkpoint)
    return lines


def show(line: dict[str, Any]) -> None:
    cp = line["cp"]
    print(
        f"  {line['dtype']}: {line['seconds']:.2f} s, cp {cp['seconds']:.2f} s, ratio {line['ratio']:.2f}; processor "
        f"{line['cpu']:.2f} s, cp {cp['cpu']:.2f} s; on the disk after {line['seconds'] + line['flush']:.2f} s, cp "
        f"{cp['seconds'] + cp['flush']:.2f} s, ratio {line['on_disk']:.2f}; peak {line['peak'] / MIB:.0f} MiB above "
        f"imports",
        flush=True,
    )


def compare_with_zero_to_fp32(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a DeepSpeed folder: both tools turn the same files into fp32 safetensors."""
    zero = folder / "zero"
    run_ranks(write_deepspeed, 2, zero, options.deepspeed_gib, timeout=1800)
    files = sorted(file for file in zero.rglob("*") if file.is_file())
    warm(files)
    theirs = measure("zero_to_fp32", zero, folder / "theirs", "fp32", options.memory, 0)
    warm(files)
    ours = measure("deepspeed", zero, folder / "ours", "fp32", options.memory, 0)
    written = sum(file.stat().st_size for file in (folder / "ours").glob("*.safetensors"))
    optimizer_files = [file for file in files if file.name.endswith("optim_states.pt")]
    cp = copied(optimizer_files, folder / "copy")
    result = {"memory": ours["peak"] / theirs["peak"], "time": ours["seconds"] / theirs["seconds"], "bytes": written}
    print(f"DeepSpeed ZeRO-2, {written / GIB:.2f} GiB of weights:")
    for name, line in (("trireme export", ours), ("zero_to_fp32", theirs)):
        print(f"  {name}: {line['seconds']:.2f} s, peak {line['peak'] / MIB:.0f} MiB above imports")
    print(
        f"  memory {result['memory']:.3f}, time {result['time']:.2f}; cp of the optimizer files {cp['seconds']:.2f} s"
    )
    return result | {"ours": ours, "theirs": theirs}


def missed_targets(lines: list[dict[str, Any]], memory: float | None) -> list[str]:
    """Print the medians, and return the targets that were missed."""
    missed = []
    for dtype in dict.fromkeys(line["dtype"] for line in lines):
        ratio = statistics.median(line["ratio"] for line in lines if line["dtype"] == dtype)
        print(f"{dtype}: {ratio:.2f} times cp, median of {sum(line['dtype'] == dtype for line in lines)} rounds")
        missed += [f"{dtype} took {ratio:.2f} times as long as cp, more than {SLOWER}"] if ratio > SLOWER else []
    if memory is not None and memory > SMALLER:
        missed.append(f"memory is {memory:.3f} of that of zero_to_fp32, more than {SMALLER}")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--gib", type=float, default=3.0, help="fp32 weights of the checkpoint; it is three times as large"
    )
    parser.add_argument("--deepspeed-gib", type=float, default=1.6, help="the same of the DeepSpeed folder; 0: none")
    parser.add_argument("--memory", default="256MiB", help="the cap")
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        lines = compare_with_cp(Path(folder), options)
        found = compare_with_zero_to_fp32(Path(folder), options) if options.deepspeed_gib else {"memory": None}
    missed = missed_targets(lines, found["memory"])
    print("\n".join(missed) or "all within their targets")
    return 1 if missed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:7], int(sys.argv[7]))  # type: ignore[call-arg]
    else:
        sys.exit(main())

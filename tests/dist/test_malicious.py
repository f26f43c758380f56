"""Tests that malicious pickles in checkpoints and weight files, of trireme or of other libraries, are never executed:
files that are needed are refused, others are not opened. Paths that lead out of the folder are refused too.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers.command import refused, tiny_command, trireme
from helpers.foreign import TIED, overrides
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from helpers.zero import load_deepspeed
from safetensors.torch import load_file
from trireme.errors import UserError
from trireme.trainer.build import train
from trireme.trainer.checkpoint.export.export_folder import export
from trireme.trainer.checkpoint.foreign.restricted_reader import read_dcp_metadata
from trireme.trainer.checkpoint.load.open_source import open_source
from trireme.trainer.evaluate_only import evaluate


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that a pickle creates when it runs; unrestricted loads prove here that the pickles work."""
    path = tmp_path / "it_ran"
    for load in (pickle.loads, lambda data: torch.load(io.BytesIO(data), weights_only=False)):
        load(_bare(path) if load is pickle.loads else _zipped(path))
        assert path.exists()
        path.unlink()
    return path


def _bare(marker: Path) -> bytes:
    return pickle.dumps(Command(marker), protocol=2)


def _zipped(marker: Path) -> bytes:
    """The command in a file of ``torch.save``, beside a tensor."""
    buffer = io.BytesIO()
    torch.save({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [], "more": Command(marker)}, buffer)
    return buffer.getvalue()


def _modern(marker: Path) -> bytes:
    """A pickle of protocol 4, which names functions by another instruction."""
    return pickle.dumps({"weight": Command(marker)}, protocol=4)


PICKLES = {"bare": _bare, "zipped": _zipped, "modern": _modern}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of trireme with DeepSpeed's own files beside it."""
    load_deepspeed()
    run = tmp_path_factory.mktemp("written")
    more = ["plan=zero1", "checkpoint.deepspeed=true", "trainer.stop_at=2"]
    run_ranks(_train, 1, run, *more)
    return run / "checkpoints" / "step_00000002"


def _train(run: Path, *more: str) -> None:
    train(tiny_recipe(run, *overrides(*TIED, *more)))


def _deepspeed(written: Path, folder: Path) -> Path:
    return Path(shutil.copytree(written / "deepspeed", folder))


def _trainer(written: Path, folder: Path) -> Path:
    """A folder laid out as transformers' Trainer does, with the weights of ``written``."""
    out = export(str(written), str(folder / "checkpoint-2"))
    (out / "trainer_state.json").write_text(json.dumps({"global_step": 2, "train_batch_size": 8}))
    return out


def _dcp(written: Path, folder: Path) -> Path:
    tensors = {name: t for file in (written / "tensors").iterdir() for name, t in load_file(file).items()}
    model = {name: t for name, t in tensors.items() if name.startswith("model.")}
    dcp.save(model, checkpoint_id=str(folder), no_dist=True)
    return folder


MAKERS: dict[str, Callable[[Path, Path], Path]] = {"deepspeed": _deepspeed, "trainer": _trainer, "dcp": _dcp}
PLACES = [
    ("deepspeed", "global_step2/mp_rank_00_model_states.pt"),
    ("deepspeed", "global_step2/zero_pp_rank_0_mp_rank_00_optim_states.pt"),
    ("trainer", "optimizer.pt"),
    ("trainer", "scaler.pt"),
    ("trainer", "pytorch_model.bin"),
    ("dcp", ".metadata"),
    ("dcp", "__0_0.distcp"),
]


def _resume(folder: Path, tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path / "run", *overrides(*TIED, "trainer.stop_at=3")), resume=str(folder))


def _evaluate(folder: Path, tmp_path: Path) -> None:
    evaluate(tiny_recipe(tmp_path / "run", *overrides(*TIED)), str(folder))


def _export(folder: Path, tmp_path: Path) -> None:
    export(str(folder), str(tmp_path / "out"))


def _planted(kind: str, name: str, content: bytes, written: Path, tmp_path: Path) -> Path:
    folder = MAKERS[kind](written, tmp_path / "planted")
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    if name.endswith(".distcp"):  # tensors are read at offsets, so fill the file with copies
        size = (folder / name).stat().st_size
        content = (content + b"\0" * (-len(content) % 64)) * (size // max(len(content), 64) + 1)
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("form", PICKLES)
@pytest.mark.parametrize(("kind", "name"), PLACES, ids=[name.rpartition("/")[2] for _, name in PLACES])
def test_a_resume_names_the_file_and_runs_nothing(
    kind: str, name: str, form: str, written: Path, tmp_path: Path, marker: Path
) -> None:
    folder = _planted(kind, name, PICKLES[form](marker), written, tmp_path)
    with pytest.raises(UserError) as error:
        _resume(folder, tmp_path)
    assert name.rpartition("/")[2] in str(error.value)
    assert not marker.exists() and not (tmp_path / "run" / "checkpoints").exists()


def test_the_command_refuses_on_all_ranks(written: Path, tmp_path: Path, marker: Path) -> None:
    folder = _planted(*PLACES[1], _zipped(marker), written, tmp_path)
    arguments = ["model=gpt2_tiny", "plan=ddp", "--nproc", "2", "--resume", str(folder)]
    result = trireme(*tiny_command(tmp_path / "run", *arguments)[3:])
    refused(result, "--resume", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "asks for", "system", "no code was run")
    assert not marker.exists()


@pytest.mark.parametrize("use", [_evaluate, _export], ids=["evaluate", "export"])
@pytest.mark.parametrize(
    ("kind", "name"), [PLACES[0], PLACES[1], PLACES[4], PLACES[5]], ids=["model", "optimizer", "bin", "metadata"]
)
def test_evaluation_and_export_run_nothing(
    use: Callable[[Path, Path], None], kind: str, name: str, written: Path, tmp_path: Path, marker: Path
) -> None:
    folder = _planted(kind, name, _zipped(marker), written, tmp_path)
    shutil.copytree(written / "model", folder, dirs_exist_ok=True)  # an export needs these files to begin
    with pytest.raises((UserError, ValueError)) as error:
        use(folder, tmp_path)
    assert name.rpartition("/")[2] in str(error.value)
    assert not marker.exists()


def test_what_is_not_needed_is_not_opened(written: Path, tmp_path: Path, marker: Path) -> None:
    """Trainer's schedules and random states are not opened; its arguments are refused, and the run goes on."""
    folder = _trainer(written, tmp_path / "planted")
    for name in ("scheduler.pt", "rng_state.pth", "training_args.bin", "tokenizer.pkl"):
        (folder / name).write_bytes(_zipped(marker))
    _resume(folder, tmp_path)
    assert not marker.exists()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "training_args.bin: asks for " in log and "system" in log and "moments begin at zero" in log


def test_pickles_in_a_checkpoint_of_trireme_are_never_touched(written: Path, tmp_path: Path, marker: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(written.parent.parent, run)
    checkpoint = run / "checkpoints" / written.name
    for name in ("model.pt", "pytorch_model.bin", ".metadata", "tensors/.metadata", "tensors/x.distcp", "latest"):
        (checkpoint / name).write_bytes(_zipped(marker))
    recipe = tiny_recipe(run, *overrides(*TIED, "trainer.stop_at=3"))
    evaluate(recipe, str(checkpoint))
    export(str(checkpoint), str(tmp_path / "out"))
    train(recipe)
    assert not marker.exists() and (run / "checkpoints" / "step_00000003").is_dir()


@pytest.mark.parametrize("form", PICKLES)
def test_weights_in_a_bin_run_nothing(form: str, written: Path, tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(written / "model", folder)
    (folder / "pytorch_model.bin").write_bytes(PICKLES[form](marker))
    for path in (folder, folder / "pytorch_model.bin"):
        recipe = tiny_recipe(tmp_path / "run", *overrides(*TIED, "model.config={}", f"model.weights={path}"))
        with pytest.raises(UserError, match=r"model\.weights[\s\S]*pytorch_model\.bin"):
            train(recipe)
    assert not marker.exists()


def test_an_index_or_metadata_may_not_point_elsewhere(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(written / "model", folder)
    outside = {"weight_map": {"transformer.wte.weight": "../../elsewhere.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(outside))
    (folder / "pytorch_model-1.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="names a file outside its folder"):
        _ = open_source(folder).shapes


def test_metadata_may_not_change_classes(tmp_path: Path) -> None:
    """This pickle runs no code, but would replace ``Path.is_dir`` for the whole process."""
    build = b"\x80\x02cpathlib\nPosixPath\nN}X\x06\x00\x00\x00is_dircpathlib\nPosixPath\ns\x86b."
    (tmp_path / ".metadata").write_bytes(build)
    with pytest.raises(ValueError, match="changes <class"):
        read_dcp_metadata(tmp_path / ".metadata")
    assert not Path("/nonexistent").is_dir()

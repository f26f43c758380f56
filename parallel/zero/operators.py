"""Find and compile DeepSpeed's C++ operators, at first use or ahead of time, and one rank at a time.

torch guards a build with a lock *file*. If a rank is killed while it compiles, the file stays, and every later run
would wait for it without end. Builds here also take a lock of the operating system, which is released when its process
ends. The holder of this lock removes a lock file that has not changed for a while.

``python -m trireme.parallel.zero.operators`` compiles the operators for the CPU ahead of time.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .json_fill import offload_device
from .library import current_accelerator, import_deepspeed, quiet

log = logging.getLogger("trireme.deepspeed")
NEEDS = {"AsyncIOBuilder": "PinMemoryBuilder"}
"""Builder -> builder of the operator whose symbols it takes, which must be loaded first."""
PATIENCE = 300.0
"""Age in seconds at which torch's lock file is removed; an operator compiles in one to three minutes."""


def load_operator(builder: str) -> None:
    """Compile (once per environment of this machine) and load an operator by the name of its builder."""
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(own_folder()))
    if builder in NEEDS:
        load_operator(NEEDS[builder])
    made = current_accelerator().create_op_builder(builder)
    if made is None or _load_compiled(made):
        return
    if not _library(made.name).exists():
        log.info("compiling DeepSpeed's operator %s: once per environment, a minute or more", made.name)
    with quiet(), one_at_a_time(made.name), own_ninja():
        if not _load_compiled(made):  # another rank may have compiled it meanwhile
            made.load(verbose=False)
            _note(made.name)


def own_folder() -> Path:
    """The folder, below torch's own root, in which this environment builds.

    torch has one folder for all environments of a user. Their versions and the paths that the compiler is given differ,
    so that two environments which take turns, or one that is reached by two paths, would each compile everything again.
    Operators are also compiled for the processor, and machines with different ones may share a home folder.
    """
    from torch.utils.cpp_extension import get_default_build_root

    return Path(get_default_build_root()) / f"trireme_{_hash(_environment())}"


def _environment() -> list[str]:
    """The environment that compiled operators depend on: versions, package paths, features of the processor."""
    import deepspeed
    import torch

    packages = [str(Path(str(module.__file__)).parent) for module in (torch, deepspeed)]
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text().splitlines() if processor.exists() else []
    flags = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    versions = [torch.__version__, deepspeed.__version__, sys.version, sysconfig.get_path("include")]
    return [*versions, *packages, *flags]


def _load_compiled(made: Any) -> bool:
    """Load a finished operator without asking the compiler and ninja about it, which takes seconds for each."""
    library = _library(made.name)
    note = library.with_suffix(".compiled")
    if not (library.exists() and note.exists() and note.read_text() == _state_of(library)):
        return False
    if made.name not in made._loaded_ops:
        spec = importlib.util.spec_from_file_location(made.name, library)
        assert spec is not None and spec.loader is not None
        if type(made).__name__ in NEEDS.values():
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)  # as DeepSpeed does, so that others find its symbols
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        made._loaded_ops[made.name] = module
    return True


def _note(name: str) -> None:
    """Note that an operator is finished, since a killed build leaves an unfinished library behind."""
    library = _library(name)
    if library.exists():  # DeepSpeed may have been installed with its operators
        library.with_suffix(".compiled").write_text(_state_of(library))


def _state_of(library: Path) -> str:
    """Hash of the library's file and of everything that its code depends on."""
    import torch

    found, devices = library.stat(), range(torch.cuda.device_count())
    asked = [str(os.environ.get(name)) for name in ("CXX", "CFLAGS", "CXXFLAGS", "TORCH_CUDA_ARCH_LIST")]
    capabilities = [str(torch.cuda.get_device_capability(device)) for device in devices]
    return _hash([str(found.st_size), str(found.st_mtime_ns), *_environment(), *asked, *capabilities])


def _hash(parts: list[str]) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def _library(name: str) -> Path:
    from torch.utils.cpp_extension import _get_build_directory

    return Path(_get_build_directory(name, verbose=False)) / f"{name}.so"


def load_operators(config: dict[str, Any]) -> None:
    """Load the operators that the JSON needs under any optimizer."""
    if current_accelerator().device_name() == "cpu":
        load_operator("ShareMemCommBuilder")
    if uses_nvme(config):
        load_operator("AsyncIOBuilder")


def compile_all() -> list[str]:
    """Compile the operators of CPU ranks.

    Returns:
        Lines that say which operators were left out, and why.
    """
    import_deepspeed()
    missing = missing_tools()
    if missing:
        return [f"nothing was compiled: {', '.join(missing)} is not installed"]
    names = ["ShareMemCommBuilder", "CPUAdamBuilder", "FusedAdamBuilder"]
    notes = []
    if aio_compatible():
        names += ["AsyncIOBuilder"]
    else:
        notes.append("no NVMe offload: libaio is not installed")
    for name in names:
        load_operator(name)
    return notes


def aio_compatible() -> bool:
    """Whether libaio is installed, which the operator for nvme offload needs."""
    from deepspeed.ops.op_builder import AsyncIOBuilder  # type: ignore[attr-defined]

    with quiet():
        return bool(AsyncIOBuilder().is_compatible(verbose=False))


def uses_nvme(config: dict[str, Any]) -> bool:
    return "nvme" in (offload_device(config, "offload_optimizer"), offload_device(config, "offload_param"))


def missing_tools() -> list[str]:
    """Names of the tools for compiling operators that are not installed."""
    compiler = os.environ.get("CXX", "g++")
    missing = [] if shutil.which(compiler) else [compiler]
    try:
        import ninja  # noqa: F401  (the package brings the program)
    except ImportError:
        missing += [] if shutil.which("ninja") else ["ninja"]
    return missing


@contextlib.contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Hold this machine's lock on the build of an operator."""
    from torch.utils.cpp_extension import _get_build_directory

    folder = Path(_get_build_directory(name, verbose=False))
    with open(folder.parent / f"{name}.building", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        left_behind = folder / "lock"
        while left_behind.exists() and time.time() - left_behind.stat().st_mtime < PATIENCE:
            time.sleep(0.2)
        left_behind.unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def own_ninja() -> Iterator[None]:
    """Put the ``ninja`` of this Python environment first in PATH, even if the environment is not activated.

    Another version of ninja, such as the system's, would not accept the log of earlier builds and compile all again.
    """
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


if __name__ == "__main__":
    print("\n".join(compile_all()))

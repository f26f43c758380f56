"""Unpickle files of other frameworks safely: only tensors, plain values and a few harmless classes are constructed.

Files of ``torch.save`` are read by ``models.torch_files``, which only admits tensors and plain values. Objects that
DeepSpeed and transformers' Trainer are known to save are replaced by placeholders. The ``.metadata`` of torch's
distributed checkpoint (DCP) is a plain pickle of a few small classes; only these are constructed.
"""

from __future__ import annotations

import enum
import importlib
import pickle
from pathlib import Path
from typing import Any, ClassVar

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner
from torch.futures import Future

from ....models.torch_files import attributes, load_torch_file, refusal

DEEPSPEED = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
TRAINER = (
    "accelerate.state.PartialState",
    "accelerate.utils.dataclasses.DeepSpeedPlugin",
    "accelerate.utils.dataclasses.DistributedType",
    "transformers.integrations.deepspeed.HfDeepSpeedConfig",
    "transformers.integrations.deepspeed.HfTrainerDeepSpeedConfig",
    "transformers.trainer_pt_utils.AcceleratorConfig",
    "transformers.trainer_utils.EvaluationStrategy",
    "transformers.trainer_utils.FSDPOption",
    "transformers.trainer_utils.HubStrategy",
    "transformers.trainer_utils.IntervalStrategy",
    "transformers.trainer_utils.SaveStrategy",
    "transformers.trainer_utils.SchedulerType",
    "transformers.training_args.OptimizerNames",
    "transformers.training_args.ParallelMode",
    "transformers.training_args.TrainingArguments",
    "transformers.training_args_seq2seq.Seq2SeqTrainingArguments",
)
"""Full names of classes in files of DeepSpeed and Trainer; placeholders stand for their objects."""

_DCP = "torch.distributed.checkpoint"
_METADATA = {
    f"{_DCP}.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    f"{_DCP}.filesystem": ("_StorageInfo",),
    # Before torch 2.3 properties of tensors were defined here.
    "torch.distributed._shard.sharded_tensor.metadata": ("MEM_FORMAT_ENCODING", "TensorProperties"),
    "torch": (
        *("Size", "strided", "bool", "uint8", "int8", "int16", "int32", "int64"),
        *("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"),
    ),
    "torch.serialization": ("_get_layout",),
    "collections": ("OrderedDict",),
    "pathlib": ("PosixPath", "PurePosixPath"),
    "pathlib._local": ("PosixPath", "PurePosixPath"),
}
"""Classes and functions that the metadata of a distributed checkpoint may name."""

__all__ = ["DEEPSPEED", "TRAINER", "SafeReader", "attributes", "load_torch_file", "read_dcp_metadata"]


_Unpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]  (the one in Python, whose steps can be looked at)


class _MetadataUnpickler(_Unpickler):
    dispatch: ClassVar[dict[int, Any]] = dict(_Unpickler.dispatch)

    def load_build(self) -> None:
        """Set attributes of an object, but never of a class, function or enumeration member: those are shared by the
        whole process."""
        target = self.stack[-2]
        if callable(target) or isinstance(target, enum.Enum):
            raise pickle.UnpicklingError(f"changes {target!r}")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        if name not in _METADATA.get(module, ()):
            raise pickle.UnpicklingError(f"asks for {module}.{name}, which such a file never needs")
        return getattr(importlib.import_module(module), name)


def read_dcp_metadata(path: Path) -> Metadata:
    """The ``.metadata`` at ``path``.

    Raises:
        ValueError: the file is damaged, or names anything outside ``_METADATA``; the message names the file.
    """
    try:
        with path.open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise ValueError("is not the metadata of a distributed checkpoint")
        for entry in metadata.storage_data.values():
            if Path(entry.relative_path).name != entry.relative_path:
                raise ValueError(f"names a file outside its folder, {entry.relative_path!r}")
    except Exception as error:  # a damaged pickle may end in any error; nothing has been run
        raise ValueError(f"{path}: cannot be used ({error})") from None
    return metadata


class SafeReader(FileSystemReader):
    """DCP's reader of its own files, with restricted metadata; reads tensors only."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = read_dcp_metadata(Path(self.path) / ".metadata")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list] = {}
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:  # would be unpickled
                raise ValueError(f"{item.dest_index.fqn} is not a tensor, so it is not read")
            by_file.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        for name, items in by_file.items():
            try:
                super().read_data(LoadPlan(items), planner)
            except Exception as error:  # of any kind, if the file is damaged; torch loads with weights_only here
                raise ValueError(f"{Path(self.path) / name}: {refusal(error)}") from None
        done: Future = Future()
        done.set_result(None)
        return done

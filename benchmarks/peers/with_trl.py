"""Run the training job of ``compare.py`` with TRL's ``SFTTrainer``, on blocks that are already tokenized."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from job import Job, Marks, read_job
from torch.utils.data import SequentialSampler
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
from with_transformers import arguments, run


class InOrder(SFTTrainer):
    def _get_train_sampler(self, *given: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


def rows(job: Job, which: str) -> Dataset:
    return Dataset.from_dict({"input_ids": [list(map(int, row)) for row in job.blocks(which).tokens]})


def main() -> None:
    job = read_job()
    marks, tokenizer = Marks(job), AutoTokenizer.from_pretrained(job.folder / "tokenizer")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    options = SFTConfig(**arguments(job), max_length=None, packing=False, dataset_num_proc=None)
    train, held_out = rows(job, "train"), rows(job, "held_out")
    model = job.model()
    run(InOrder(model, options, train_dataset=train, eval_dataset=held_out, processing_class=tokenizer), job, marks)


if __name__ == "__main__":
    main()

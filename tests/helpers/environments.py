"""Create virtual environments for libraries whose pinned dependencies conflict with those of trireme, and read the
result of a pytest run from its output.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path


def environment(folder: Path, installs: Sequence[Sequence[str]]) -> Path:
    """The interpreter of a virtual environment, which is made if it is missing or was made with other versions.

    The environment sees the packages of trireme's environment, behind its own. So only a library is installed, and
    the packages that its pins replace.

    Args:
        installs: arguments of ``pip install``, one call after the other.
    """
    wanted = "\n".join(" ".join(each) for each in installs)
    python, mark = folder / "bin" / "python", folder / "made_of"
    if mark.is_file() and mark.read_text() == wanted:
        return python
    venv.create(folder, with_pip=False, clear=True)
    inside = next((folder / "lib").glob("python*")) / "site-packages"
    # Added as a site folder, so that an editable trireme in it is found too; the environment's own packages come first.
    (inside / "zz_trireme.pth").write_text(f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n")
    tool = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--prefer-binary"]
    for each in installs:
        subprocess.run([*tool, *each], check=True)
    mark.write_text(wanted)
    return python


def counted(output: str) -> str:
    """The result in the last line of pytest's output, such as ``3 passed``."""
    said = [line for line in output.splitlines() if re.search(r"\d+ (passed|failed|error)", line)]
    return re.sub(r"\s+in .*|=", "", said[-1] if said else "no test has ended").strip()

"""mmrl.main in a world that misbehaves: the clock jumps, or files are slow to open.

    python -m benchmarks.chaos.child clock 86400 -- --config=configs/pretrain.py --workdir=...
    python -m benchmarks.chaos.child slow FOLDER 0.5 -- ...

`clock SECONDS`: every 1.5 seconds the time of day jumps SECONDS ahead, or back again.
`slow FOLDER SECONDS`: opening a file below FOLDER takes SECONDS longer, every tenth time.
"""

import builtins
import itertools
import os
import runpy
import sys
import time
from typing import Any


def main() -> None:
    """Spoils the process, then executes mmrl.main in it."""
    kind, *given = sys.argv[1 : (end := sys.argv.index("--"))]
    if kind == "clock":
        _jumping_clock(*given)
    else:
        _slow_files(*given)
    sys.argv = ["mmrl.main", *sys.argv[end + 1 :]]
    runpy.run_module("mmrl.main", run_name="__main__", alter_sys=True)


def _jumping_clock(seconds: str) -> None:
    honest, began, jump = time.time, time.monotonic(), float(seconds)

    def jumping() -> float:
        return honest() + (jump if (time.monotonic() - began) % 3.0 > 1.5 else 0.0)

    time.time = jumping


def _slow_files(folder: str, seconds: str) -> None:
    honest, calls, root = builtins.open, itertools.count(), os.path.realpath(folder)

    def slow(file: Any, *args: Any, **kwargs: Any) -> Any:
        is_path = isinstance(file, str | os.PathLike)
        if is_path and os.path.realpath(file).startswith(root) and next(calls) % 10 == 9:
            time.sleep(float(seconds))
        return honest(file, *args, **kwargs)

    builtins.open = slow


if __name__ == "__main__":
    main()

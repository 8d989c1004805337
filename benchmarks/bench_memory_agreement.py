"""How well the measured memory agrees with the operating system's own accounting, and with loads of known size.

The memory process of `verify` runs in a small launcher that asks the system for `ru_maxrss` of the finished child by
wait4, and once more under /usr/bin/time where it is installed; both are compared with the peak that the process read of
itself. A fresh process then touches a known number of pages. Ratios are printed; they do not depend on speed.

    make bench BENCH=memory_agreement                                      # the embedded model at 4 bits
    .venv/bin/python benchmarks/bench_memory_agreement.py BUNDLE --json    # a bundle that is there
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MIB = 2**20
LOADS_MIB = (64, 256)
AGREEMENT, LOAD_ERROR = 0.03, 0.02

# Small on purpose: a child begins with the high-water mark of the process that starts it.
LAUNCHER = """
import os, sys
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""
LOAD = """
import json, mmap, sys
from qslm_edge.runner.memory import read_memory
size = int(sys.argv[1])
bare = read_memory()
block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for position in range(0, size, 4096):
    block[position] = 1
full = read_memory()
print(json.dumps({"peak": full.peak_rss_bytes - bare.rss_bytes, "rss": full.rss_bytes - bare.rss_bytes,
                  "anonymous": full.rss_anon_bytes - bare.rss_anon_bytes}))
"""


def make_bundle(folder: Path) -> Path:
    """The embedded model at 4 bits, with few items: scoring is not what is measured here."""
    command = [sys.executable, "-m", "qslm_edge", "export", "-p", "jetson-orin", "--setting", "4g64"]
    command += ["--search-windows", "2", "--report-windows", "2", "-o", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return folder / "bundle"


def read_own(bundle: Path, starter: list[str], folder: Path) -> tuple[int, str]:
    """Peak that the memory process read of itself, and what the program around it printed."""
    answer = folder / "answer.json"
    command = [sys.executable, "-m", "qslm_edge.runner", "_memory", str(bundle), "--answer", str(answer)]
    done = subprocess.run([*starter, *command], check=True, capture_output=True, text=True)
    memory = json.loads(answer.read_text("utf-8"))["result"]["memory"]
    return int(memory["decode_peak_rss_bytes"]), done.stdout + done.stderr


def agreement(bundle: Path, folder: Path) -> list[dict[str, Any]]:
    """The peak against each accounting of the system."""
    own, said = read_own(bundle, [sys.executable, "-S", "-c", LAUNCHER], folder)
    rows = [{"against": "ru_maxrss by wait4", "own_bytes": own, "system_bytes": int(said.split()[0])}]
    tool = shutil.which("time")
    if tool is not None:
        own, said = read_own(bundle, [tool, "-v"], folder)
        kib = re.search(r"Maximum resident set size \(kbytes\): ([0-9]+)", said)
        if kib is not None:
            rows.append({"against": f"{tool} -v", "own_bytes": own, "system_bytes": int(kib[1]) * 1024})
    return rows


def load(size_mib: int) -> dict[str, Any]:
    """What is measured of a load of known size."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(size_mib * MIB)], check=True, capture_output=True, text=True
    )
    return {"size_mib": size_mib, **{k: v / (size_mib * MIB) for k, v in json.loads(done.stdout).items()}}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measured memory against the system's own accounting.")
    parser.add_argument("bundle", nargs="?", type=Path, help="bundle directory; default: exported now")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = agreement(options.bundle or make_bundle(folder / "run"), folder)
    loads = [load(size) for size in LOADS_MIB]
    within = all(abs(row["own_bytes"] / row["system_bytes"] - 1) <= AGREEMENT for row in rows)
    known = all(abs(row["peak"] - 1) <= LOAD_ERROR for row in loads)
    if options.json:
        found = {"within": within, "known": known, "agreement": rows, "loads": loads}
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return 0 if within and known else 1
    for row in rows:
        ratio = row["own_bytes"] / row["system_bytes"]
        megabytes = f"{row['own_bytes'] / 1e6:.1f} MB against {row['system_bytes'] / 1e6:.1f} MB"
        sys.stdout.write(f"peak RSS / {row['against']:24} {ratio:.4f}  ({megabytes})\n")
    for row in loads:
        sys.stdout.write(f"load of {row['size_mib']:3} MiB: peak {row['peak']:.4f}, RSS {row['rss']:.4f}, ")
        sys.stdout.write(f"anonymous {row['anonymous']:.4f} of it\n")
    sys.stdout.write(f"peaks agree within {100 * AGREEMENT:g} %: {'yes' if within else 'NO'}; ")
    sys.stdout.write(f"known loads within {100 * LOAD_ERROR:g} %: {'yes' if known else 'NO'}\n")
    return 0 if within and known else 1


if __name__ == "__main__":
    sys.exit(main())

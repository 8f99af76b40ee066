"""Every fuzz target for so many seconds each: ``make fuzz SECONDS=60``. Stops with a report, non-zero on a finding.

A finding's input is left beside as ``crash-...``; run the target on that file to see it again.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def targets(script: Path) -> list[list[str]]:
    """The command lines of a script: it lists its targets when it is given none, if it has several."""
    if "which of " not in script.read_text():
        return [[str(script)]]
    said = subprocess.run([sys.executable, "-P", script], capture_output=True, text=True, check=False).stderr
    found = re.search(r"which of (.*)\?", said)
    if found is None:
        raise SystemExit(f"{script.name} does not list its targets: {said[-2000:]}")
    return [[str(script), name] for name in found[1].split(", ")]


def main() -> int:
    """Run them one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--only", default="", help="targets whose name contains this")
    options = parser.parse_args()
    scripts = [path for path in sorted(HERE.glob("*.py")) if path.name != Path(__file__).name]
    findings = 0
    for command in (line for script in scripts for line in targets(script)):
        name = " ".join([Path(command[0]).stem, *command[1:]])
        if options.only not in name:
            continue
        arguments = [f"-max_total_time={options.seconds}", "-timeout=20", "-rss_limit_mb=2048", "-verbosity=1"]
        done = subprocess.run(
            [sys.executable, "-P", *command, *arguments], capture_output=True, text=True, errors="replace", check=False
        )
        runs = re.findall(r"^Done (\d+) (?:runs )?in", done.stderr, re.MULTILINE) or ["?"]
        coverage = re.findall(r"cov: (\d+)", done.stderr) or ["?"]
        print(f"{name:<40} {runs[-1]:>10} runs  cov {coverage[-1]:>6}  {'ok' if done.returncode == 0 else 'FINDING'}")
        sys.stdout.flush()
        if done.returncode:
            findings += 1
            print("\n".join(done.stderr.splitlines()[-40:]))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

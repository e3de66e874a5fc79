"""What `make demo` runs: train on the embedded set, evaluate, run molecular dynamics, write the report."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from equijax.allocator import tune_own_process
from equijax.cli.main import run
from equijax.compilation_cache import enable_compilation_cache

EXPERIMENT = Path("experiments/quickstart.yaml")
OUTPUT = Path("runs/quickstart")
START = Path("data/ethanol/test_300K.xyz")
TIMESTEP_FS = "0.5"
STEPS = "4000"


def demo() -> int:
    """Run the steps as the commands that a user would type; returns the exit code of the first that fails."""
    if not EXPERIMENT.exists():
        print(f"error: {EXPERIMENT} is not here; run `make demo` in a clone of the repository", file=sys.stderr)
        return 2
    model, nve, langevin = (str(OUTPUT / name) for name in ("model.safetensors", "md_nve.xyz", "md_langevin.xyz"))
    md = ["--timestep", TIMESTEP_FS, "--steps", STEPS, "--log-every", "5", "--overwrite"]
    steps: tuple[tuple[str, list[str]], ...] = (
        ("Train MACE on ethanol and test it at 300, 600 and 1200 K",
         ["train", str(EXPERIMENT), "--output", str(OUTPUT), "--overwrite"]),
        ("Check the physics of the trained model", ["check", model]),
        ("2 ps of Langevin dynamics at 300 K through ASE",
         ["md", model, str(START), "--ensemble", "langevin", "--temperature", "300", "--output", langevin, *md]),
        ("2 ps without thermostat, from its end: is the energy conserved?",
         ["md", model, langevin, "--ensemble", "nve", "--keep-velocities", "--output", nve, *md]),
        ("Write the report", ["report", str(OUTPUT)]),
    )  # fmt: skip
    started = time.monotonic()
    for number, (title, words) in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] {title}\n$ equijax {' '.join(words)}", flush=True)
        code = run(words)
        if code:
            return code
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"\nDone in {minutes} min {seconds} s. Open {(OUTPUT / 'report.html').resolve()} in a browser.")
    return 0


if __name__ == "__main__":
    enable_compilation_cache()
    tune_own_process()
    sys.exit(demo())

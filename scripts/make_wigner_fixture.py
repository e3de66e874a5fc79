"""Make tests/fixtures/wigner_3j.npz: the signs and values of e3nn's (torch) Wigner 3j tensors up to l = 6.

Run in an environment with the extra `interop`:  python scripts/make_wigner_fixture.py [OUTPUT]
The invariant tensor of three degrees is unique up to a factor, so one component per tensor (the largest) and the
norm say everything; the tensors with all l <= 2 are stored in full as well. Made with e3nn 0.4.4.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

LMAX = 6
FULL_LMAX = 2


def main(output: Path) -> None:
    """Write the fixture."""
    import mace  # noqa: F401  before e3nn, whose own constants newer torch refuses to read otherwise
    import torch
    from e3nn import o3

    torch.set_default_dtype(torch.float64)
    degrees = [
        (l1, l2, l3)
        for l1 in range(LMAX + 1)
        for l2 in range(LMAX + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, LMAX) + 1)
    ]
    components, values, norms, full = [], [], [], {}
    for triple in degrees:
        tensor = o3.wigner_3j(*triple).numpy()
        index = np.unravel_index(np.abs(tensor).argmax(), tensor.shape)
        components.append(index)
        values.append(tensor[index])
        norms.append(np.linalg.norm(tensor))
        if max(triple) <= FULL_LMAX:
            full["full_{}_{}_{}".format(*triple)] = tensor
    np.savez_compressed(
        output,
        degrees=np.array(degrees, np.int8),
        component=np.array(components, np.int8),
        value=np.array(values),
        norm=np.array(norms),
        **full,
    )
    print(f"{output}: {len(degrees)} tensors, {output.stat().st_size} bytes")


if __name__ == "__main__":
    default = Path(__file__).parents[1] / "tests" / "fixtures" / "wigner_3j.npz"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)

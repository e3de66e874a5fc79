"""TensorNet in equijax and torchmd-net: CPU time of an MD step and of a training step on the same structures.

Measured as peers_mace.py does. torchmd-net runs its compiled Warp kernels, and searches neighbours on every call, which
its model does inside; equijax gets a built graph, as peers of MACE do. See benchmarks/README.md.

    python benchmarks/peers_tensornet.py --torchmd-net PYTHON [--molecules data/3bpa/train_300K.xyz]
"""

from __future__ import annotations

import os
import sys

from peers_mace import arguments, run

MODELS = {"1 x 64": {"num_layers": 1, "channels": 64}, "2 x 128": {"num_layers": 2, "channels": 128}}


def main() -> None:
    parser = arguments(__doc__, MODELS)
    parser.add_argument("--torchmd-net", default=os.environ.get("TORCHMD_NET_PYTHON"), metavar="PYTHON")
    options = parser.parse_args()
    pythons = {"equijax": sys.executable}
    if options.torchmd_net:
        pythons["torchmd_net"] = options.torchmd_net
    run("peers_tensornet", pythons, MODELS, options)


if __name__ == "__main__":
    main()

"""The loop that every worker runs: one JSON request per line in, one JSON answer per line out. Standard library only.

Request: {"case": {...}, "seconds": s, "repetitions": n}. The first request of a case builds it (compilation and two
warm-up calls are timed apart); later ones only repeat it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(build: Callable[[dict[str, Any]], tuple[Callable[[], Any], dict[str, Any]]]) -> None:
    """`build(case)` gives a blocking function to time and facts about it (number of parameters, version)."""
    built: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {}
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries print
    for line in sys.stdin:
        request = json.loads(line)
        key = json.dumps(request["case"], sort_keys=True)
        answer: dict[str, Any] = {}
        if key not in built:
            start = time.process_time()
            built[key] = build(request["case"])
            built[key][0]()
            answer["first_cpu_s"] = time.process_time() - start
            built[key][0]()
        function, facts = built[key]
        cpu, wall, begin = [], [], time.perf_counter()
        while len(cpu) < request["repetitions"] or time.perf_counter() - begin < request["seconds"]:
            c, w = time.process_time(), time.perf_counter()
            function()
            cpu.append(time.process_time() - c)
            wall.append(time.perf_counter() - w)
        answers.write(json.dumps({**answer, **facts, "cpu_s": cpu, "wall_s": wall}) + "\n")
        answers.flush()

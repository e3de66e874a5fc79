"""How processes of one run find each other and learn that one is missing, wrong or gone; how they are numbered."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from equijax.errors import EquijaxError
from equijax.train import peers as peers_module
from equijax.train.launch import Launch, first_host, requested_launch
from equijax.train.peers import Peers, address, meet

SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def coordinator(monkeypatch):
    monkeypatch.setattr(peers_module, "LEAVE_AFTER", 0.0)
    monkeypatch.setattr(Peers, "_end", lambda peers, code: peers._stop.set())
    return f"localhost:{free_port()}"


def together(*calls):
    """Results or errors of functions that run at the same time."""
    results = [None] * len(calls)

    def run(index):
        try:
            results[index] = calls[index]()
        except EquijaxError as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def watched(peer):
    """Exit codes with which a process would have ended."""
    codes = []

    def end(code):
        codes.append(code)
        peer._stop.set()

    peer._end = end
    return codes


def until(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def close(*group):
    for peer in group:
        peer.close()


def test_processes_meet_and_finish_together(coordinator):
    group = together(*(lambda k=k: meet(coordinator, 3, k, 20.0) for k in range(3)))
    assert all(isinstance(peer, Peers) for peer in group)
    finished = []
    early = threading.Thread(target=lambda: (group[1].finish(), finished.append(1)))
    early.start()
    early.join(0.3)
    assert not finished  # waits for process 0
    together(group[0].finish, group[2].finish)
    early.join(10)
    assert finished
    close(*group)


def test_the_end_of_a_process_ends_all_others_with_a_line(coordinator, capsys):
    group = together(*(lambda k=k: meet(coordinator, 3, k, 20.0) for k in range(3)))
    codes = [watched(peer) for peer in group]
    for line in group[1].lines:
        line.socket.shutdown(socket.SHUT_RDWR)  # what the kernel does for a process that is killed
    until(lambda: codes[0] and codes[2])
    assert codes[0] == codes[2] == [1]
    written = capsys.readouterr().err
    assert written.count("error: process 1 on ") >= 2
    assert "has ended unexpectedly; start all processes again with --resume" in written
    close(*group)


def test_an_error_ends_the_others_with_its_message_and_code(coordinator, capsys):
    group = together(*(lambda k=k: meet(coordinator, 3, k, 20.0) for k in range(3)))
    codes = [watched(peer) for peer in group]
    group[2].fail("a.xyz: has no energies", 2)
    until(lambda: codes[0] and codes[1])
    assert codes[0] == codes[1] == [2]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: process 2 on ") and line.endswith("a.xyz: has no energies") for line in lines)
    close(*group)


def test_silence_counts_as_the_end(coordinator, capsys, monkeypatch):
    monkeypatch.setattr(peers_module, "SILENCE", 0.3)
    first, second = together(*(lambda k=k: meet(coordinator, 2, k, 20.0) for k in range(2)))
    codes = watched(first), watched(second)
    until(lambda: codes[0] or codes[1])
    assert "has not been heard for" in capsys.readouterr().err
    close(first, second)


def test_missing_processes_are_named_with_what_to_do(coordinator):
    first, second = together(lambda: meet(coordinator, 4, 0, 0.7), lambda: meet(coordinator, 4, 2, 20.0))
    for error in (first, second):
        assert f"--coordinator {coordinator}: 2 of 4 processes did not come within 0.7 s, number 1, 3" in str(error)
        assert f"each with --coordinator {coordinator} --processes 4 and a --process-id of its own" in str(error)
    with pytest.raises(EquijaxError, match=r"process 0 of 2 was not there within 0.5 s \(Connection refused\); start"):
        meet(coordinator, 2, 1, 0.5)


def test_numbers_that_do_not_fit_are_refused(coordinator):
    calls = [lambda: meet(coordinator, 2, 0, 20.0), lambda: meet(coordinator, 3, 1, 20.0)]
    leader = threading.Thread(target=lambda: together(calls[0]), daemon=True)
    leader.start()
    (error,) = together(calls[1])
    assert "--processes: is 3 here and 2 in process 0; expected the same" in str(error)
    with socket.create_connection(address(coordinator)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n")
    peer = meet(coordinator, 2, 1, 20.0)
    assert isinstance(peer, Peers)
    codes = watched(peer)
    leader.join(10)
    assert not codes
    close(peer)


def test_a_number_that_is_taken(coordinator):
    leader = threading.Thread(target=lambda: together(lambda: meet(coordinator, 3, 0, 3.0)), daemon=True)
    leader.start()
    waiting = threading.Thread(target=lambda: together(lambda: meet(coordinator, 3, 1, 10.0)), daemon=True)
    waiting.start()
    time.sleep(0.5)
    (error,) = together(lambda: meet(coordinator, 3, 1, 20.0))
    assert "--process-id: 1 is taken by process 1 on " in str(error)
    leader.join(10)
    waiting.join(10)


@pytest.mark.parametrize("coordinator", ["node001", "node001:", ":80", "node001:99999", "node001:http"])
def test_an_address_that_is_none(coordinator):
    with pytest.raises(EquijaxError, match=r"--coordinator: is .*; expected HOST:PORT, such as node001:12345"):
        address(coordinator)


def test_a_host_that_does_not_exist_and_a_port_in_use():
    with pytest.raises(EquijaxError, match=r"there is no host no\.such\.host\.invalid"):
        meet("no.such.host.invalid:1234", 2, 1, 5.0)
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EquijaxError, match="Address already in use; choose another port"):
            meet(f"localhost:{port}", 2, 0, 1.0)


def test_options_of_a_launch():
    assert requested_launch(None, None, None, {}) is None
    assert requested_launch("a:1", 1, 0, {}) is None
    assert requested_launch("a:1", 4, 3, SLURM) == Launch("a:1", 4, 3)
    with pytest.raises(EquijaxError, match="--process-id: missing; expected --coordinator, --processes and --process"):
        requested_launch("a:1", 4, None, {})
    with pytest.raises(EquijaxError, match="--process-id: is 4; expected a number from 0 to 3"):
        requested_launch("a:1", 4, 4, {})


def test_slurm_numbers_the_processes():
    port = 61440 + 4242 % 4096
    assert requested_launch(None, None, None, SLURM) == Launch(f"gpu03:{port}", 8, 5, 1)
    one_each = SLURM | {"CUDA_VISIBLE_DEVICES": "0"}
    assert requested_launch(None, None, None, one_each) == Launch(f"gpu03:{port}", 8, 5, None)
    per_node = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x8)", "SLURM_LOCALID": "0"}
    assert requested_launch(None, None, None, per_node) == Launch(f"gpu03:{port}", 8, 5, None)
    # a batch script, or srun of one task
    assert requested_launch(None, None, None, SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert requested_launch(None, None, None, {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None
    incomplete = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}
    with pytest.raises(EquijaxError, match="SLURM: 'SLURM_STEP_NODELIST' is missing"):
        requested_launch(None, None, None, incomplete)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node1", "node1"), ("a,b", "a"), ("n[001-004],x", "n001"), ("n[07,9]", "n07"), ("r[1-2]-gpu", "r1-gpu")],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first

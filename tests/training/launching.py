"""How tests start several processes of one run on this machine."""

import multiprocessing
import os
import runpy
import socket
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

PRELOADED = ["transformers", "unimm.cli.train", "unimm.eval.validation", "unimm.inference.engine", "torch.distributed.fsdp"]
PRELOADED += ["pytest", "hypothesis"]  # the tests' own
"""What takes seconds to import, and ranks of most tests use."""

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(PRELOADED)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def accelerate(num_processes: int) -> list[str]:
    # Not --cpu: with it, accelerate starts one process unless MPI is installed. Without GPUs this one is gloo on CPUs.
    words = ["--multi_gpu", "--num_processes", str(num_processes), "--num_machines", "1", "--mixed_precision", "no"]
    words += ["--main_process_port", str(free_port()), "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
    return [sys.executable, "-m", "accelerate.commands.launch", *words]


def torchrun(num_processes: int, max_restarts: int = 0) -> list[str]:
    words = ["--nproc_per_node", str(num_processes), "--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{free_port()}"]
    words += ["--max-restarts", str(max_restarts)]
    return [sys.executable, "-m", "torch.distributed.run", *words]


def run_ranks(script: Path, *words: object, num_processes: int = 2, seconds: float = 500) -> None:
    """Run a script in processes as a launcher starts them, without one that would end the others of one that fails.

    They are forks of a process that has imported what most need and has done nothing else, whatever tests have done in this
    one. That real launchers start our trainings is what `test_two_processes` is for.
    """
    common = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with TemporaryDirectory(prefix="ranks-") as folder:
        said = [Path(folder) / str(rank) for rank in range(num_processes)]
        ranks = []
        for rank, file in enumerate(said):
            own = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(FORKS.Process(target=_be_rank, args=(str(script), [str(word) for word in words], own, str(file))))
        try:
            for rank in ranks:
                rank.start()
            for rank, file in zip(ranks, said, strict=True):
                rank.join(seconds)
                assert rank.exitcode == 0, file.read_text(errors="replace")
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()


def _be_rank(script: str, words: list[str], environment: dict[str, str], said: str) -> None:
    """In the fork: what `python SCRIPT WORDS` does; what it says goes into a file."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")

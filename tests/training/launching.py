"""How tests start several processes of one run on this machine."""

import socket
import sys


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def accelerate(num_processes: int) -> list[str]:
    # Not --cpu: with it, accelerate starts one process unless MPI is installed. Without GPUs this one is gloo on CPUs.
    words = ["--multi_gpu", "--num_processes", str(num_processes), "--num_machines", "1", "--mixed_precision", "no"]
    words += ["--main_process_port", str(free_port()), "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
    return [sys.executable, "-m", "accelerate.commands.launch", *words]


def torchrun(num_processes: int) -> list[str]:
    words = ["--nproc_per_node", str(num_processes), "--master_port", str(free_port())]
    return [sys.executable, "-m", "torch.distributed.run", *words]

"""The job files of the recipes: what a shell can say of them without a cluster."""

import os
import signal
import subprocess
from pathlib import Path

SLURM = Path(__file__).parent.parent / "recipes" / "slurm.sbatch"
STAND_INS = {
    "scontrol": 'if [ "$1" = show ]; then echo node-a; echo node-b; else echo "$@" >> "$LOG"; fi',
    "srun": 'exec "$@"',
    "torchrun": """
        echo "$@" >> "$LOG"
        trap "echo saved >> $LOG; exit 138" USR1
        echo > "$LOG.started"
        while :; do sleep 0.05; done""",
}


def test_a_job_saves_at_its_time_limit_and_goes_back_into_the_queue(tmp_path: Path) -> None:
    """With stand-ins for Slurm and torchrun: the signal reaches the training, the job waits, and asks to be run again."""
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    slurm = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "77"}
    environment = {**os.environ, **slurm, "LOG": str(log), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(["bash", "-n", str(SLURM)]).returncode == 0
    job = subprocess.Popen(["bash", str(SLURM), "+experiment=demo/unified", "out=runs/mine"], env=environment)
    started = tmp_path / "log.started"
    while not started.exists():
        assert job.poll() is None
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == 0
    launched, *after = log.read_text().splitlines()
    assert after == ["saved", "requeue 77"]
    assert "--nnodes 2 --nproc_per_node 4" in launched and "--rdzv_endpoint node-a:29500" in launched
    assert launched.endswith("-m unimm.train +experiment=demo/unified out=runs/mine") and "--max-restarts 3" in launched

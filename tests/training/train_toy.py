"""A short run of the toy mixture, for tests to launch: train_toy.py FOLDER STEPS MICRO_BATCHES [interrupt at STEP]."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from toys import make_config, make_mixture, make_trainer

from unimm.cli.compose import leave_group

folder, steps, micro_batches = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
config = make_config(steps, num_micro_batches=micro_batches, sample_every=3)


def interrupt(model: object, step: int, logbook: object) -> None:
    """Ctrl-C on the first process alone, in the middle of the run."""
    if sys.argv[4:] == ["interrupt", str(step)]:
        os.kill(os.getpid(), signal.SIGINT)


trainer = make_trainer(folder, config, make_mixture(), sample=interrupt, device=None)
if trainer.is_main:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "processes").write_text(str(trainer.accelerator.num_processes))
trainer.fit()
leave_group()

"""A short run of the toy mixture, for tests to launch: train_toy.py FOLDER STEPS MICRO_BATCHES [interrupt STEP | kill STEP].

interrupt: Ctrl-C comes to the first process alone. kill: the launcher's first attempt loses the first process, as with a
machine that fails; every third step is saved.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from toys import make_config, make_mixture, make_trainer

from unimm.cli.compose import leave_group

folder, steps, micro_batches = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
trouble, at = (sys.argv[4], int(sys.argv[5])) if sys.argv[4:] else ("", 0)
config = make_config(steps, num_micro_batches=micro_batches, sample_every=3, save_every=3 if trouble == "kill" else 0)


def meet(model: object, step: int, logbook: object) -> None:
    """The trouble, in the middle of the run."""
    if step == at and trouble == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    if step == at and trouble == "kill" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)


trainer = make_trainer(folder, config, make_mixture(), sample=meet, device=None)
if trainer.is_main:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "processes").write_text(str(trainer.accelerator.num_processes))
trainer.fit()
leave_group()

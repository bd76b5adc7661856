"""What all trainings are configured with."""

from dataclasses import dataclass, field

from unimm.runtime.devices import check_precision
from unimm.runtime.number_checks import check_number, check_whole
from unimm.training.checkpoint_writer import CheckpointConfig
from unimm.training.optimizers import Budget, Schedule

MAX_WORKERS = 1024
"""More processes that load data are a mistake on any machine."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, how fast, and what is written when.

    precision: "no" (fp32), "bf16" (autocast; master weights stay fp32), or "auto": which of them is faster on the device.
    compile: compile the heavy parts with torch.compile, where that works (on a CPU it needs a C++ compiler).
    report_every, save_every: in steps; 0 is never (a checkpoint at the end is always written).
    save_minutes: a checkpoint also after so many minutes since the last one.
    checkpoint: how they are written, and how many stay.
    num_workers: processes that make batches ahead, at most as many as there are cores.
    max_skipped_steps: so many steps of a run may go without their update because their loss or gradient is not finite; the
        next one ends it.
    """

    budget: Budget
    schedule: Schedule = field(default_factory=Schedule)
    precision: str = "no"
    compile: bool = False
    report_every: int = 20
    save_every: int = 0
    save_minutes: float = 2.0
    num_workers: int = 1
    max_skipped_steps: int = 0
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check_precision(self.precision)
        check_whole(self, 0, "report_every", "save_every", "num_workers", "max_skipped_steps")
        check_number(self, "save_minutes", above=0)
        if self.num_workers > MAX_WORKERS:
            raise ValueError(f"num_workers={self.num_workers} are processes of their own: a few are enough, one for each core.")

"""What a training of a unified model is configured with."""

from dataclasses import dataclass, field

from unimm.data.packing import RowLayout
from unimm.models import attention
from unimm.runtime.number_checks import check_number, check_whole
from unimm.training import activation_checkpointing
from unimm.training.loop_config import LoopConfig
from unimm.training.optimizers import OptimizerConfig
from unimm.training.sharding import Sharding
from unimm.training.trainable_parts import Stage


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(LoopConfig):
    """How a run goes, beside what every loop has.

    stage, optimizer: which parts are trained, and how they are updated.
    num_positions: row length T that sequences are packed into.
    num_rows: rows a step, over all ranks and micro-batches.
    num_micro_batches: forward passes a rank takes for one update.
    weights: of each mean loss by name: "text", "codes", "words", ...; where it is not named, the objective's own, else 1.
    ema_decay: of the exponential moving average of trained parameters, in (0, 1); None: there is none. Where there is one, it
        is what is sampled, validated and kept in the end.
    sample_every, validate_every: in steps; 0 is never. validate_at_start: before the first step, too.
    sharding: how several processes hold the model.
    attention: how the trunk attends within rows, one of `attention.BACKENDS`; "auto" is "documents" on a CPU, and on a
        GPU "flex_attention" where layers are compiled, else "sdpa".
    activation_checkpointing: "none", "selective" or "full" (`unimm.training.activation_checkpointing`).
    plan: a folder that `unimm plan` wrote for the same data and rows; None: every rank plans by itself, the same.
    peak_tflops: what one device computes in a second at most, for MFU; None: by the name of the GPU, where it is known.

    Raises ValueError for settings that make no sense.
    """

    stage: Stage
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    num_positions: int = 1024
    num_rows: int = 8
    num_micro_batches: int = 1
    weights: dict[str, float] = field(default_factory=dict)
    ema_decay: float | None = None
    sample_every: int = 0
    validate_every: int = 0
    validate_at_start: bool = False
    sharding: Sharding = field(default_factory=Sharding)
    attention: str = "auto"
    activation_checkpointing: str = "none"
    peak_tflops: float | None = None
    plan: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        RowLayout(self.num_positions, self.num_rows)  # it knows what makes no sense
        check_whole(self, 1, "num_micro_batches")
        for name, ways in (
            ("attention", ("auto", *attention.BACKENDS)),
            ("activation_checkpointing", activation_checkpointing.MODES),
        ):
            if getattr(self, name) not in ways:
                raise ValueError(f"Unknown {name} '{getattr(self, name)}': use one of {', '.join(ways)}.")
        if self.ema_decay is not None:
            check_number(self, "ema_decay", above=0, below=1)
        if self.peak_tflops is not None:
            check_number(self, "peak_tflops", above=0)
        check_whole(self, 0, "sample_every", "validate_every")
        check_number({f"weights.{name}": weight for name, weight in self.weights.items()})

"""Training speed: samples/s, achieved TFLOP/s, and joules where the machine has an energy counter."""

from __future__ import annotations

from pathlib import Path

from rtm_kernels.energy import energy_counter
from rtm_kernels.flops import act_step_flops
from rtm_kernels.train.loop import Metrics, Trainer
from rtm_kernels.train.objective import CumulativeHalting
from rtm_kernels.train.telemetry import CsvLog


def step_flops(trainer: Trainer) -> float:
    """Useful FLOPs of one optimiser step on this rank, at the depth of its stage, without heads and optimiser.

    The cumulative objective runs `halt_max_steps` ACT steps; stochastic rounds count as if none were dropped.
    """
    stage, _ = trainer.recipe.stage_at(max(0, trainer.step_count - 1))
    config = stage.model(trainer.recipe.model)
    each = act_step_flops(config, train=True)
    if isinstance(trainer.recipe.objective, CumulativeHalting):
        each *= config.halt_max_steps
    return float(each * stage.batch_size // trainer.world_size)


class Speed:
    """A callback that adds samples_per_second, tflops and joules to the metrics, and writes them to a separate
    file: they differ from run to run, and the other metrics do not."""

    def __init__(self, path: Path) -> None:
        self.log_file = CsvLog(path, extra=())
        self.seconds = self.samples = self.flops = 0.0
        self.joules: float | None = None

    def start(self, trainer: Trainer) -> None:
        """Open the file and read the counter."""
        self.log_file.start(trainer)
        self._counter = energy_counter(trainer.device.type, trainer.device.index or 0)

    def log(self, trainer: Trainer, metrics: Metrics) -> None:
        """Add the figures of the last step."""
        stage, _ = trainer.recipe.stage_at(max(0, trainer.step_count - 1))
        seconds, flops = max(trainer.step_seconds, 1e-9), step_flops(trainer)
        own = {"seconds": seconds, "samples_per_second": stage.batch_size / seconds, "tflops": flops / seconds / 1e12}
        if self._counter is not None:
            before, self.joules = self.joules or 0.0, self._counter.joules()
            own["joules"] = self.joules - before
        self.seconds, self.samples = self.seconds + seconds, self.samples + stage.batch_size
        self.flops += flops
        self.log_file.log(trainer, own)
        metrics |= own

    def finish(self, trainer: Trainer) -> None:
        """Close the file."""
        self.log_file.finish(trainer)

    @property
    def totals(self) -> dict[str, float]:
        """Means over the steps taken, and all joules; empty before the first."""
        if not self.seconds:
            return {}
        found = {"samples_per_second": self.samples / self.seconds, "tflops": self.flops / self.seconds / 1e12}
        return found | ({} if self.joules is None else {"joules": self.joules})

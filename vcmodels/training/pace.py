"""How fast an epoch went, and what it waited for."""

import time
from dataclasses import dataclass, field

import torch


@dataclass
class Pace:
    """Times one epoch by the wall clock, from when it is made."""

    device: torch.device
    begun: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    """Seconds in which no batch was ready."""
    steps: int = 0
    seconds: float = 0.0
    """For the steps; validation and saving come after."""

    def end_steps(self) -> None:
        """The last step of the epoch was done."""
        self.seconds = time.perf_counter() - self.begun

    def words(self, patches_per_step: int) -> str:
        """What is shown beside the bar: patches a second and the share of time without a batch."""
        seconds = max(time.perf_counter() - self.begun, 1e-9)
        patches = self.steps * patches_per_step / seconds
        return f"{patches:.3g} patches/s, {100 * self.waited / seconds:.0f} % waiting"

    def scalars(self, patches_per_step: int) -> dict[str, float]:
        """The curves of an epoch that ends now."""
        seconds = max(self.seconds, 1e-9)
        scalars = {
            "speed/patches_per_s": self.steps * patches_per_step / seconds,
            "speed/data_wait": self.waited / seconds,
            "speed/epoch_minutes": (time.perf_counter() - self.begun) / 60,
        }
        if self.device.type == "cuda":
            scalars["speed/memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return scalars

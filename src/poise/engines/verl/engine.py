"""Where the policy is: verl's FSDP engine, which also reads the features of each rollout while it computes log-probs.

The pass is verl's own, and so is the way of what it gives: any further key of a micro-batch's output is put
back in order, and goes to the driver, with the rest. Only passes that ask for a reading are looked at: those over the
behaviour policy's log-probs, not those of a reference policy or of training.
"""

from contextlib import ExitStack
from typing import Any

from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp import FSDPEngineWithLMHead

from poise.engines.verl.reading import READING, MicroBatchReading, ReadingRequest, SequenceShard

VENDOR = "poise"
"""verl keeps engines by device and vendor; poise takes the place of a vendor."""


@EngineRegistry.register(
    model_type="language_model", backend=["fsdp", "fsdp2"], device=["cuda", "npu", "cpu"], vendor=VENDOR
)
class PoiseFSDPEngine(FSDPEngineWithLMHead):  # type: ignore[misc]
    """verl's engine for FSDP 1 and 2; passes that carry a `ReadingRequest` also give `poise_*`, one row a rollout."""

    _reading: MicroBatchReading | None = None

    def forward_step(self, micro_batch: TensorDict, loss_function: Any, forward_only: bool) -> Any:
        """verl's step over one micro-batch; hooks are open for as long as it takes."""
        with ExitStack() as self._hooks:
            try:
                return super().forward_step(micro_batch, loss_function, forward_only)
            finally:
                self._reading = None

    def prepare_model_inputs(self, micro_batch: TensorDict) -> Any:
        """verl's inputs; where a reading is asked for, the hooks for just this layout are set."""
        model_inputs, output_args = super().prepare_model_inputs(micro_batch)
        request = tu.get_non_tensor_data(micro_batch, READING, default=None)
        if request is not None:
            self._reading = MicroBatchReading(micro_batch, ReadingRequest(**request))
            self._hooks.enter_context(
                self._reading.hooks(self.module, model_inputs["input_ids"], self._sequence_shard(micro_batch))
            )
        return model_inputs, output_args

    def prepare_model_outputs(
        self, output: Any, output_args: Any, micro_batch: TensorDict, *rest: Any, **named: Any
    ) -> Any:
        """verl's outputs and what was read."""
        model_output: dict[str, Tensor] = super().prepare_model_outputs(
            output, output_args, micro_batch, *rest, **named
        )
        if self._reading is not None:
            model_output |= self._reading.outputs(model_output["log_probs"], model_output["entropy"])
        return model_output

    def _sequence_shard(self, micro_batch: TensorDict) -> SequenceShard | None:
        """Which part of the packed tokens this process sees; `None` where rows are padded."""
        if not tu.get_non_tensor_data(micro_batch, "use_remove_padding", default=True):
            return None
        if self.ulysses_device_mesh is None:
            return SequenceShard()
        return SequenceShard(self.ulysses_device_mesh["sp"].get_local_rank(), self.ulysses_parallel_group)

"""A run of the TRL engine in bfloat16, on the CPU and on a CUDA device: the features' numbers, the end and a resume."""

import pytest
import torch
from conformance import LAYERS
from recording import HOST_CHATTER
from test_trl import recomputed

pytestmark = [*HOST_CHATTER, pytest.mark.filterwarnings("ignore:.*torch.cpu.amp|.*unclosed:Warning")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_run_in_bfloat16_reads_its_policy_and_is_resumed(build, tmp_path, device):
    options = {"bf16": True, "use_cpu": device == "cpu", "layers": LAYERS, "save_strategy": "steps", "save_steps": 2}
    trainer = build(max_steps=4, **options)
    trainer.train()
    given = trainer.baseline.given[0]["features"]
    trainer.model.cpu().float()
    for scored in trainer.scored:
        for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"):
            scored[name] = scored[name].cpu()
    expected, _ = recomputed(trainer, 0, layers=LAYERS)
    spread = expected.completion.std(dim=0).mean()
    assert (given.completion.cpu() - expected.completion).abs().max() < 0.1 * spread
    assert (given.entropies.cpu() - expected.entropies).abs().max() < 0.05
    resumed = build(max_steps=4, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert len(trainer.baseline.gave) == 2
    assert len(resumed.baseline.gave) == 1
    torch.testing.assert_close(
        resumed.baseline.gave[0].advantages,
        trainer.baseline.gave[1].advantages,
        rtol=0,
        atol=0 if device == "cpu" else 0.05,
    )

"""Log-probabilities of the same sampled tokens, from a trainer's sampler and from its training pass."""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

SAMPLED_TOKENS = 64


def sampled_logprobs(
    trainer: GRPOTrainer, texts: list[str]
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Log-probabilities of sampled tokens: as they were sampled, and as training scores them.

    Both passes are made as TRL makes them: by the trainer's generation settings, and in training mode, dropout
    included. The random state is left as it was.

    Args:
        trainer: Samples with `generate`; its weights are not changed.
        texts: Prompts.
    """
    tokenizer, model = trainer.processing_class, trainer.accelerator.unwrap_model(trainer.model)
    inputs = tokenizer(
        texts,
        return_tensors="pt",
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_token_type_ids=False,
    ).to(model.device)
    settings = copy.deepcopy(trainer.generation_config)
    settings.max_new_tokens = min(SAMPLED_TOKENS, trainer.max_completion_length)
    settings.output_scores = settings.return_dict_in_generate = True
    was_training = model.training
    model.train()
    try:
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            with unwrap_model_for_generation(
                trainer.model_wrapped,
                trainer.accelerator,
                generation_kwargs=trainer.generation_kwargs,
                gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
            ) as unwrapped:
                sampled = unwrapped.generate(**inputs, generation_config=settings)
            tokens = sampled.sequences[:, inputs["input_ids"].shape[1] :]
            scores = torch.stack(sampled.scores, dim=1).float().log_softmax(dim=-1)
            sampler = scores.gather(2, tokens[:, :, None])[:, :, 0]
            ends = torch.isin(tokens, torch.tensor(trainer.eos_token_ids, device=tokens.device))
            mask = (ends.cumsum(dim=1) - ends.long()) == 0
            attention = torch.cat([inputs["attention_mask"], mask.long()], dim=1)
            scored: Any = trainer._get_per_token_logps_and_entropies(
                trainer.model, sampled.sequences, attention, tokens.shape[1], batch_size=len(texts)
            )[0]
    finally:
        model.train(was_training)
    return sampler[mask].cpu(), scored.float()[mask].cpu()

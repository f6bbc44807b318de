"""A rollout for tests, in the place of vLLM: `transformers` in a Ray actor, whose weights follow the trainer's.

What is sampled depends on the weights, the prompt, the step and how often the prompt was asked in that step, and on
nothing else: two runs with the same weights sample the same, while nobody interrupts them. Interrupted, a sampler gives
what it has, and is asked for the rest when it has newer weights.
"""

import asyncio
import hashlib

import ray
import torch
from verl.workers.rollout.base import _ROLLOUT_REGISTRY, BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput
from verl.workers.rollout.utils import ensure_async_iterator

NAME = "sampler"
TOKENS, TOKENS_AT_ONCE = 8, 4


def server_name(rank):
    return f"sampler_server_{rank}"


@ray.remote(num_cpus=0)
class SamplerServer:
    def __init__(self, path):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.global_steps, self.asked = 0, {}
        self.interrupted = False
        self.end = self.model.generation_config.eos_token_id

    async def generate(self, prompt_ids, sampling_params, request_id, **named):
        asked = self.asked[tuple(prompt_ids)] = self.asked.get(tuple(prompt_ids), 0) + 1
        ids, scores = [], []
        while len(ids) < TOKENS and ids[-1:] != [self.end] and not self.interrupted:
            more, their_scores = self.continued(prompt_ids + ids, asked, sampling_params["temperature"])
            ids, scores = ids + more, scores + their_scores
            await asyncio.sleep(0.01)  # others may interrupt
        reason = "aborted" if self.interrupted else "completed"
        return TokenOutput(
            token_ids=ids, log_probs=scores, stop_reason=reason, extra_fields={"global_steps": self.global_steps}
        )

    def continued(self, prompt_ids, asked, temperature):
        """Some more tokens and their log-probabilities."""
        digest = hashlib.sha256(repr((prompt_ids, self.global_steps, asked)).encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        output = self.model.generate(
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.int64),
            do_sample=temperature > 0,
            temperature=temperature or None,
            top_k=0,
            max_new_tokens=TOKENS_AT_ONCE,
            output_scores=True,
            return_dict_in_generate=True,
        )
        ids = output.sequences[0, len(prompt_ids) :].tolist()
        return ids, [score[0].log_softmax(0)[token].item() for score, token in zip(output.scores, ids, strict=True)]

    async def update(self, weights, global_steps):
        self.model.load_state_dict(weights)
        self.global_steps, self.asked = global_steps, {}

    async def nothing(self, *positional, **named):
        return None

    async def abort_all_requests(self, *positional, **named):
        self.interrupted = True

    async def resume_generation(self):
        self.interrupted = False

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = nothing


class SamplerReplica(RolloutReplica):
    async def launch_servers(self):
        server = SamplerServer.options(name=server_name(self.replica_rank)).remote(self.model_config.path)
        await server.nothing.remote()
        self.servers, self._server_handle = [server], server
        self._server_address = server_name(self.replica_rank)


class SamplerAdapter(BaseRollout):
    """In every trainer process, or beside a server of its own: hands the actor's weights to that server."""

    def __init__(self, config, model_config, device_mesh, replica_rank=None):
        super().__init__(config, model_config, device_mesh)
        self.replica_rank = torch.distributed.get_rank() if replica_rank is None else replica_rank

    async def resume(self, tags):
        return None

    async def release(self):
        return None

    async def update_weights(self, weights, wire_format="named_tensors", global_steps=None, **named):
        state = {name: tensor.detach().float().cpu().clone() async for name, tensor in ensure_async_iterator(weights)}
        server = ray.get_actor(server_name(self.replica_rank))
        await asyncio.wrap_future(server.update.remote(state, global_steps).future())


RolloutReplicaRegistry.register(NAME, lambda: SamplerReplica)
_ROLLOUT_REGISTRY[(NAME, "async")] = "sampler_rollout.SamplerAdapter"

"""From verl's rows to advantages: the recorded rollouts give what the library makes of them, in whatever order."""

import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from configuration import SMALL, composed
from conformance import (
    END_OF_THINKING,
    LAYERS,
    POOL_TOKENS,
    PRESET,
    TEMPERATURE,
    library_advantages,
    recorded_steps,
)
from datasets import Dataset
from tensordict import TensorDict
from torch.testing import assert_close
from transfer_queue import KVBatchMeta
from transfer_queue_stand_in import TransferQueueStandIn
from verl.trainer.ppo import padding_utils
from verl.trainer.ppo.v1 import trainer_base
from verl.utils import tensordict_utils as tu
from workers import rollout_batch, training_worker

import poise
from poise.engines.verl import bus_rows, update
from poise.engines.verl import trainer as engine
from poise.engines.verl.reading import FIELDS, READING
from poise.engines.verl.rollouts import rollout_rows


@pytest.fixture(scope="module")
def worker(policy_folder):
    return training_worker(policy_folder, model_options={"use_remove_padding": True})


@pytest.fixture
def bus(monkeypatch):
    stand_in = TransferQueueStandIn()
    for module in (trainer_base, padding_utils, engine, bus_rows, update):
        monkeypatch.setattr(module, "tq", stand_in)
    return stand_in


class WorkerGroup:
    """Two data parallel ranks to verl's balancing; one real worker that serves the rows of both."""

    def __init__(self, bus, worker):
        self.bus, self.worker, self._dispatch_info, self.asked = bus, worker, {"actor": [0, 1]}, []
        self.saved = []

    def save_model_to_cpu(self, number):  # in `separate_async`
        self.saved.append(number)

    def compute_log_prob(self, batch):
        rows = self.bus.kv_batch_get(batch.keys, batch.partition_id, batch.fields)
        self.asked.append((sorted(rows.keys()), dict(batch.extra_info)))
        plain = {"use_dynamic_bsz": True, "max_token_len_per_gpu": 300} | batch.extra_info
        tu.assign_non_tensor(rows, **plain)
        output = self.worker.infer_batch(rows)
        self.bus.kv_batch_put(batch.keys, batch.partition_id, output.exclude("metrics"))
        return batch


def trainer_on(bus, worker, policy_folder, *overrides, mode="sync"):
    config = composed(
        *SMALL,
        f"actor_rollout_ref.model.path={policy_folder}",
        f"actor_rollout_ref.rollout.temperature={TEMPERATURE}",
        "actor_rollout_ref.rollout.calculate_log_probs=false",
        "actor_rollout_ref.actor.ppo_mini_batch_size=6",  # 12 rows: 16 are filled up to 24
        "trainer.resume_mode=disable",
        f"trainer.default_local_dir={policy_folder}/run",
        f"poise.layers={LAYERS}",
        f"poise.pool_tokens={POOL_TOKENS}",
        f"poise.end_of_thinking='{END_OF_THINKING}'",
        *overrides,
    )
    made = engine.TRAINERS[mode](config)
    made._init_tokenizer()
    made.actor_rollout_wg, made.global_steps, made.local_trigger_step = WorkerGroup(bus, worker), 1, 0
    return made


def put(bus, step, number, n=2):
    """The rows of a step as verl's agent loop leaves them; siblings share a uid, equal prompts of two draws do not."""
    rollouts = rollout_batch(step.prompt_ids, step.completion_ids, None)
    names = ("input_ids", "position_ids", "prompts", "responses", "response_mask", "loss_mask")
    fields = {name: rollouts[name] for name in names}
    scores = []
    for row, reward in zip(step.completion_ids, step.reward_tensor.tolist(), strict=True):
        scores.append(torch.tensor([0.0] * (len(row) - 1) + [reward]))
    fields["rm_scores"] = torch.nested.as_nested_tensor(scores, layout=torch.jagged)
    batch = TensorDict(fields, batch_size=len(step.prompts))
    uids = [f"draw{number}-{row // n}" for row in range(len(step.prompts))]
    tu.assign_non_tensor(
        batch,
        uid=uids,
        raw_prompt=step.prompts,
        data_source=step.domains,
    )
    keys = [f"{uid}_{row % n}_0" for row, uid in enumerate(uids)]
    tags = [{"seq_len": len(p) + len(c)} for p, c in zip(step.prompt_ids, step.completion_ids, strict=True)]
    bus.kv_batch_put(keys, "train", batch, tags)
    return keys


def advantages_of(trainer, bus, keys, seed=0):
    """One advantage for each key, after verl's balancing, its pass over log-probs and its corrections."""
    order = random.Random(seed).sample(keys, len(keys))
    tags = [bus.tags[key] for key in order]
    batch, metrics = KVBatchMeta(keys=order, tags=tags, partition_id="train"), {}
    batch = trainer._balance_batch(batch, metrics)
    batch = trainer._compute_old_log_prob(batch, metrics)
    batch = trainer._compute_advantage(batch, metrics)
    rows = bus.kv_batch_get(batch.keys, "train", ["advantages", "returns", "response_mask"])
    found = {}
    for key, advantages, returns, mask in zip(
        batch.keys, *(rows[name].unbind() for name in ("advantages", "returns", "response_mask")), strict=True
    ):
        assert torch.equal(advantages, returns)
        of_policy = advantages[mask.bool()]
        assert (advantages[~mask.bool()] == 0).all()
        assert (of_policy == of_policy[:1]).all()
        found[key] = of_policy[0].item() if len(of_policy) else None
    return found, batch, metrics


def test_advantages_are_those_of_the_library(bus, worker, policy_folder):
    steps = recorded_steps()
    trainer = trainer_on(bus, worker, policy_folder, f"poise.preset={PRESET}")
    for number, (step, expected) in enumerate(zip(steps, library_advantages(steps), strict=True)):
        keys = put(bus, step, number)
        found, batch, metrics = advantages_of(trainer, bus, keys, seed=number)
        assert batch.keys[: len(keys)] != keys  # the order is another one
        assert len(batch.keys) == 24
        assert [found[key] for key in batch.keys if key not in keys] == [None] * 8  # rows that fill the batch
        of_rows = torch.tensor([found[key] for key in keys], dtype=torch.float64)
        assert_close(of_rows, expected, atol=1e-6, rtol=0)
        assert_close(of_rows, step.advantages, atol=1e-6, rtol=0)
        assert metrics["poise/alone_share"] == 0


def test_features_travel_once(bus, worker, policy_folder):
    trainer = trainer_on(bus, worker, policy_folder)
    _, batch, _ = advantages_of(trainer, bus, put(bus, recorded_steps()[0], 0))
    assert READING in trainer.actor_rollout_wg.asked[0][1]
    assert READING not in (batch.extra_info or {})
    assert set(batch.fields).isdisjoint(FIELDS)  # neither a reference policy nor the update is sent them
    assert set(FIELDS) <= set(bus.rows[batch.keys[0]])


def test_rewards_alone_need_no_reading(bus, worker, policy_folder):
    step = recorded_steps()[0]
    trainer = trainer_on(bus, worker, policy_folder, "poise.preset=rloo")
    keys = put(bus, step, 0)
    found, _, _ = advantages_of(trainer, bus, keys)
    assert READING not in trainer.actor_rollout_wg.asked[0][1]
    expected = poise.OnlineBaseline(poise.preset("rloo")).step(None, step.reward_tensor, prompts=step.prompts)
    assert_close(torch.tensor([found[key] for key in keys]), expected.advantages.float(), atol=1e-6, rtol=0)


def test_a_rollout_whose_sibling_failed_gets_no_advantage_where_only_siblings_tell(bus, worker, policy_folder):
    step = recorded_steps()[0]
    lone = next(prompt for prompt in step.prompts if step.prompts.count(prompt) == 2)
    trainer = trainer_on(bus, worker, policy_folder, "poise.preset=rloo")
    keys = put(bus, step, 0)
    missing = step.prompts.index(lone)
    kept = [key for row, key in enumerate(keys) if row != missing]
    found, _, metrics = advantages_of(trainer, bus, kept)
    assert found[keys[missing + 1]] == 0
    assert metrics["poise/alone_share"] == pytest.approx(1 / 15)


def sampled(step, n):
    """The step's prompts with `n` rollouts each."""
    rows = [(row, (3 * row + session) % 16) for row in range(0, 16, 2) for session in range(n)]
    fields = {name: [getattr(step, name)[row] for row, _ in rows] for name in ("prompts", "domains", "prompt_ids")}
    completion_ids = [step.completion_ids[other] for _, other in rows]
    return SimpleNamespace(
        **fields, completion_ids=completion_ids, reward_tensor=step.reward_tensor[[other for _, other in rows]]
    )


def read_features(bus, keys):
    """What was read of each rollout: held against all hidden states in test_verl_reading.py."""
    read = [torch.stack([bus.rows[key][name] for key in keys]) for name in FIELDS]
    return poise.Features(*read[:3], read[3].bool()), read[4][:, 0].double()


ELSEWHERE = [
    "trainer.v1.separate_async.parameter_sync_step=1",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
]


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("sync", []),
        ("sync", ["poise.update_share=0.5"]),
        ("colocate_async", []),
        ("separate_async", ELSEWHERE),
    ],
    ids=["sync", "a share", "colocate_async", "separate_async"],
)
def test_any_number_of_rollouts_in_any_mode_gets_the_librarys_advantages(mode, options, n, bus, worker, policy_folder):
    preset = "poise-single" if n == 1 else PRESET
    options = [
        *options,
        f"poise.preset={preset}",
        f"actor_rollout_ref.rollout.n={n}",
        f"trainer.v1.trainer_mode={mode}",
    ]
    trainer = trainer_on(bus, worker, policy_folder, *options, mode=mode)
    library = poise.OnlineBaseline(poise.preset(preset))
    for number, recorded in enumerate(recorded_steps()):
        step = sampled(recorded, n)
        keys = put(bus, step, number, n)
        found, _, metrics = advantages_of(trainer, bus, keys, seed=number)
        features, weights = read_features(bus, keys)
        expected = library.step(
            features, step.reward_tensor, prompts=step.prompts, domains=step.domains, weights=weights
        )
        assert_close(torch.tensor([found[key] for key in keys]).double(), expected.advantages, atol=1e-6, rtol=0)
        assert metrics["poise/lost_share"] == 0
        if options[0] == "poise.update_share=0.5":
            sizes = torch.tensor([trainer._gradient_sizes[key] for key in keys], dtype=torch.float64)
            assert_close(sizes, expected.advantages.abs() * weights.sqrt(), atol=1e-6, rtol=0)
    assert trainer.actor_rollout_wg.saved == ([0] * 2 if mode == "separate_async" else [])


def test_a_session_of_several_outputs_is_one_rollout(bus, worker, policy_folder):
    step = recorded_steps()[0]
    trainer = trainer_on(bus, worker, policy_folder, "poise.preset=rloo")
    keys = put(bus, step, 0)
    # The first session gets a second output, whose reward is the session's.
    bus.rows["draw0-0_0_1"] = dict(bus.rows[keys[0]], rm_scores=bus.rows[keys[0]]["rm_scores"] + 0.0)
    bus.rows[keys[0]]["rm_scores"] = torch.zeros_like(bus.rows[keys[0]]["rm_scores"])
    bus.tags["draw0-0_0_1"] = dict(bus.tags[keys[0]])
    found, _, _ = advantages_of(trainer, bus, [*keys, "draw0-0_0_1"])
    expected = poise.OnlineBaseline(poise.preset("rloo")).step(None, step.reward_tensor, prompts=step.prompts)
    assert found["draw0-0_0_1"] == found[keys[0]] == pytest.approx(expected.advantages[0].item(), abs=1e-6)


@pytest.mark.parametrize("number", [math.inf, "features"])
def test_a_rollout_with_numbers_that_are_not_finite_is_ungradable_and_counted(number, bus, worker, policy_folder):
    step = recorded_steps()[0]
    trainer = trainer_on(bus, worker, policy_folder)
    keys = put(bus, step, 0)
    if number == math.inf:
        bus.rows[keys[3]]["rm_scores"] = torch.full_like(bus.rows[keys[3]]["rm_scores"], math.inf)
    else:
        spoilt = trainer.actor_rollout_wg.compute_log_prob

        def with_a_bad_state(batch):
            batch = spoilt(batch)
            bus.rows[keys[3]]["poise_prompt"] = bus.rows[keys[3]]["poise_prompt"] * math.nan
            return batch

        trainer.actor_rollout_wg.compute_log_prob = with_a_bad_state
    found, _, metrics = advantages_of(trainer, bus, keys)
    rewards = [reward for row, reward in enumerate(step.reward_tensor.tolist()) if row != 3 and reward == reward]
    assert metrics["poise/nonfinite_share"] == pytest.approx(1 / 16)
    assert metrics["poise/ungradable_share"] == pytest.approx(1 - len(rewards) / 16)
    assert found[keys[3]] == 0
    assert all(math.isfinite(found[key]) for key in keys)
    assert metrics["poise/reward"] == pytest.approx(sum(rewards) / len(rewards))
    assert {f"poise/reward/{domain}" for domain in set(step.domains)} <= set(metrics)


def test_lost_prompts_and_raised_rewards_are_counted(bus, worker, policy_folder):
    step = recorded_steps()[0]
    trainer = trainer_on(bus, worker, policy_folder, "poise.preset=rloo")
    keys = put(bus, step, 0)
    for key in keys:
        bus.rows[key]["extra_fields"] = {"reward_extra_info": {"poise_raised": 1.0} if key == keys[0] else {}}
    _, _, metrics = advantages_of(trainer, bus, keys[:12])
    assert metrics["poise/lost_share"] == pytest.approx(1 - 12 / 16)
    assert metrics["poise/raised_share"] == pytest.approx(1 / 12)


def test_a_row_too_few_from_the_bus_is_a_sentence(bus, worker, policy_folder, monkeypatch):
    trainer = trainer_on(bus, worker, policy_folder, "poise.preset=rloo")
    keys = put(bus, recorded_steps()[0], 0)
    whole = bus.kv_batch_get
    monkeypatch.setattr(bus_rows, "tq", SimpleNamespace(kv_batch_get=lambda keys, **named: whole(keys[1:], **named)))
    with pytest.raises(RuntimeError, match="verl's data bus was asked for 24 rows and gave 23"):
        advantages_of(trainer, bus, keys)


class UpdatedActor:
    """An actor that says which rows it was to be updated on, with their advantages."""

    def __init__(self, bus):
        self.bus, self._dispatch_info = bus, {"actor": [0, 1]}

    def update_actor(self, batch):
        rows = self.bus.kv_batch_get(batch.keys, batch.partition_id, ["advantages"])["advantages"].unbind()
        self.keys = batch.keys
        self.sums = {key: float(row.sum()) for key, row in zip(batch.keys, rows, strict=True)}
        self.minibatch = batch.extra_info["global_batch_size"]
        return {"metrics": {"mfu": 0.0}}


def updated(trainer, bus, batch):
    trainer.actor_rollout_wg = actor = UpdatedActor(bus)
    before = [bus.rows[key]["advantages"].clone() for key in batch.keys]
    metrics = {}
    assert trainer._update_actor(batch, metrics) is batch
    after = [bus.rows[key]["advantages"] for key in batch.keys]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))  # what is logged is what was made
    return actor, {key: float(row.sum()) for key, row in zip(batch.keys, before, strict=True)}, metrics


def test_the_mean_of_a_batch_that_was_filled_up_is_over_its_real_rows(bus, worker, policy_folder):
    trainer = trainer_on(bus, worker, policy_folder, "poise.preset=rloo")
    _, batch, _ = advantages_of(trainer, bus, put(bus, recorded_steps()[0], 0))
    actor, made, _ = updated(trainer, bus, batch)
    assert actor.minibatch == 12
    assert sum(actor.sums.values()) / 24 == pytest.approx(sum(made.values()) / 16)


def test_a_drawn_share_stands_for_the_whole_update(bus, worker, policy_folder, monkeypatch):
    trainer = trainer_on(
        bus, worker, policy_folder, "poise.update_share=0.5", "actor_rollout_ref.actor.ppo_mini_batch_size=4"
    )
    _, batch, _ = advantages_of(trainer, bus, put(bus, recorded_steps()[0], 0))
    totals = []
    for step in range(100):
        trainer.global_steps = step
        actor, made, metrics = updated(trainer, bus, batch)
        assert len(actor.keys) == 8
        assert actor.minibatch == 4
        totals.append(sum(actor.sums.values()) / 8)
    error = torch.tensor(totals).std() / len(totals) ** 0.5
    assert abs(sum(totals) / len(totals) - sum(made.values()) / 16) < 4 * error
    assert metrics["poise/update_noise"] >= 1
    assert trainer.config.actor_rollout_ref.actor.ppo_mini_batch_size == 4


def test_messages_are_one_prompt_whatever_the_order_of_their_fields():
    messages = [{"role": "user", "content": "1+1="}]
    assert engine.prompt_id(messages) == engine.prompt_id([{"content": "1+1=", "role": "user"}])
    assert engine.prompt_id(messages) != engine.prompt_id([*messages, *messages])


def test_rows_of_a_rollout_are_found_in_any_order():
    keys = ["b_1_0", "a_0_1", "pad_0_0", "a_0_0", "b_0_0", "a_0_2", "with_underscores_3_0"]
    tags = [{}, {}, {"is_padding": True}, {"is_padding": False}, {}, {}, {}]
    rows = rollout_rows(keys, tags)
    assert rows.uids == ["b", "a", "b", "with_underscores"]
    assert rows.last_rows == [0, 5, 4, 6]
    assert rows.rollout_of_row == [0, 1, -1, 1, 2, 1, 3]
    assert rows.summed(torch.tensor([1.0, 2, 64, 4, 8, 16, 32])).tolist() == [1, 22, 8, 32]
    assert rows.repeated(torch.tensor([1.0, 2, 4, 8])).tolist() == [1, 2, 0, 2, 4, 2, 8]


def fitted_for_another(folder, **changes):
    """A checkpoint's files of a baseline that another run has saved."""
    fitted = {
        "model_type": "qwen3",
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "layers": LAYERS,
        "pool_tokens": POOL_TOKENS,
        "end_of_thinking": END_OF_THINKING,
        "weights_divided_by_length": False,
    }
    checkpoint = folder / "global_step_4"
    checkpoint.mkdir()
    baseline = poise.OnlineBaseline(poise.preset(changes.pop("preset", PRESET)))
    baseline.save(checkpoint, fitted_for=fitted | changes)
    (folder / "latest_checkpointed_iteration.txt").write_text("4")
    return [f"trainer.default_local_dir={folder}", "trainer.resume_mode=auto"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": 2560}, "this run has hidden_size 16, the baseline in .* was fitted for 2560"),
        ({"layers": [2]}, "this run has layers .0, 1., the baseline in .* was fitted for .2."),
        ({"preset": "poise-value"}, "this baseline has preset 'poise', the state was made with 'poise-value'"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_before_workers_start(
    changes, sentence, bus, policy_folder, tmp_path
):
    with pytest.raises(ValueError, match=sentence):
        trainer_on(bus, None, policy_folder, *fitted_for_another(tmp_path, **changes))


def test_a_checkpoint_of_this_run_is_continued(bus, policy_folder, tmp_path):
    trainer = trainer_on(bus, None, policy_folder, *fitted_for_another(tmp_path))
    assert trainer._restored_step == 4


def test_a_checkpoint_without_a_baseline_starts_afresh_and_says_so(bus, policy_folder, tmp_path, caplog):
    overrides = fitted_for_another(tmp_path, hidden_size=1)
    (tmp_path / "global_step_4" / "poise.json").unlink()
    trainer_on(bus, None, policy_folder, *overrides)
    assert "the baseline starts with an empty window" in caplog.text


def test_a_data_set_that_does_not_name_domains_is_refused(bus, policy_folder, tmp_path):
    Dataset.from_list([{"prompt": [{"role": "user", "content": "1+1="}], "data_source": "even"}] * 8).to_parquet(
        tmp_path / "train.parquet"
    )
    files = [f"data.{which}_files={tmp_path}/train.parquet" for which in ("train", "val")]
    named = ["data.max_prompt_length=16", "data.dataloader_num_workers=0", "poise.domain_column=subject"]
    with pytest.raises(ValueError, match=r"needs the column poise.domain_column='subject', got data_source, .*prompt"):
        trainer_on(bus, None, policy_folder, *files, *named)._init_dataloader()


def test_a_prompt_that_two_sources_share_counts_to_one_of_them(bus, worker, policy_folder):
    step = replace(recorded_steps()[0], domains=[f"source {row // 2}" for row in range(16)])
    assert step.prompts[0] == step.prompts[-1]  # drawn twice, and now from two sources
    trainer = trainer_on(bus, worker, policy_folder, "poise.preset=rloo")
    keys = put(bus, step, 0)
    found, _, _ = advantages_of(trainer, bus, keys)
    expected = poise.OnlineBaseline(poise.preset("rloo")).step(None, step.reward_tensor, prompts=step.prompts)
    assert_close(torch.tensor([found[key] for key in keys]), expected.advantages.float(), atol=1e-6, rtol=0)


def test_a_layer_that_the_model_does_not_have_is_refused(bus, policy_folder):
    with pytest.raises(ValueError, match="layer 3 is out of range: this model has layers 0 to 2"):
        trainer_on(bus, None, policy_folder, "poise.layers=[3]")


def test_the_baseline_is_saved_before_verl_marks_the_checkpoint(bus, policy_folder, tmp_path, monkeypatch):
    trainer = trainer_on(bus, None, policy_folder, f"trainer.default_local_dir={tmp_path}")

    def verls(self):
        assert (tmp_path / "global_step_1" / "poise.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer_base.PPOTrainer, "_save_checkpoint", verls)
    with pytest.raises(KeyboardInterrupt):
        trainer._save_checkpoint()
    again = poise.OnlineBaseline(poise.preset(PRESET))
    again.restore(tmp_path / "global_step_1", fitted_for=trainer._what_it_is_for())

"""Pooled states must equal those recomputed from `output_hidden_states=True`, in every layout, under every wrapper."""

import copy

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from poise.features.hidden_states import capture_hidden_states, decoder_blocks, last_true_columns
from poise.features.rollout_features import reasoning_mask, require_bool, token_entropies

PROMPT_LENGTHS = [5, 2, 7, 1, 4, 3]
COMPLETION_LENGTHS = [6, 9, 1, 4, 2, 8]
REASONING_LENGTHS = [4, 9, 1, 2, 1, 5]
ROWS = len(PROMPT_LENGTHS)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Batch:
    """Rows of tokens in one of the two padded layouts: "left" pads prompts left and completions right, as TRL does."""

    def __init__(self, padding):
        prompt_columns, completion_columns = max(PROMPT_LENGTHS), max(COMPLETION_LENGTHS)
        columns = prompt_columns + completion_columns
        self.ids = torch.zeros(ROWS, columns, dtype=torch.long)
        self.attention = torch.zeros(ROWS, columns, dtype=torch.bool)
        self.prompt, self.completion, self.reasoning = (torch.zeros_like(self.attention) for _ in range(3))
        self.completion_columns = completion_columns if padding == "left" else columns
        generator = torch.Generator().manual_seed(1)
        self.sequences = []
        for row, (p, c, r) in enumerate(zip(PROMPT_LENGTHS, COMPLETION_LENGTHS, REASONING_LENGTHS, strict=True)):
            start = prompt_columns - p if padding == "left" else 0
            tokens = torch.randint(2, 64, (p + c,), generator=generator)
            self.sequences.append(tokens)
            self.ids[row, start : start + p + c] = tokens
            self.attention[row, start : start + p + c] = True
            self.prompt[row, start : start + p] = True
            self.completion[row, start + p : start + p + c] = True
            self.reasoning[row, start + p : start + p + r] = True
        self.positions = (self.attention.cumsum(dim=1) - 1).clamp(min=0)
        self.entropies = torch.rand(ROWS, columns, generator=generator)[:, -self.completion_columns :]

    def inputs(self, rows=slice(None)):
        return {
            "input_ids": self.ids[rows],
            "attention_mask": self.attention[rows].long(),
            "position_ids": self.positions[rows],
            "use_cache": False,
        }

    def masks(self):
        return self.prompt, self.completion

    def to(self, device):
        """Move every tensor of the batch, in place."""
        for name, held in vars(self).items():
            if isinstance(held, torch.Tensor):
                setattr(self, name, held.to(device))
        self.sequences = [row.to(device) for row in self.sequences]
        return self


@pytest.fixture(params=["left", "right"])
def batch(request):
    return Batch(request.param)


def states_before_final_norm(model, batch):
    """All hidden states after each block by the model's own bookkeeping; the last, normed one is left out."""
    with torch.no_grad():
        return model(**batch.inputs(), output_hidden_states=True).hidden_states[1:-1]


def pooled_by_loop(states, mask, pool_tokens):
    """The oracle: row by row, the float32 mean of the last tokens of the mask."""
    means = []
    for row_states, row_mask in zip(states, mask, strict=True):
        chosen = row_states[row_mask][-pool_tokens:].float()
        means.append(chosen.mean(dim=0) if len(chosen) else torch.zeros(states.shape[-1]))
    return torch.stack(means)


def captured(model, batch, *, splits=(ROWS,), **options):
    options = {"layers": [0, 1], "pool_tokens": 3, "reasoning_mask": batch.reasoning} | options
    with torch.no_grad(), capture_hidden_states(model, *batch.masks(), **options) as capture:
        first = 0
        for size in splits:
            model(**batch.inputs(slice(first, first + size)))
            first += size
    return capture.features(batch.entropies)


def num_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("pool_tokens", [1, 3, 100])
def test_pooled_states_equal_those_of_output_hidden_states(tiny_model, batch, pool_tokens):
    states = states_before_final_norm(tiny_model, batch)
    features = captured(tiny_model, batch, pool_tokens=pool_tokens)
    for pooled, mask in ((features.prompt, batch.prompt), (features.completion, batch.reasoning)):
        oracle = torch.cat([pooled_by_loop(states[layer], mask, pool_tokens) for layer in (0, 1)], dim=1)
        assert pooled.dtype == torch.float32
        assert_close(pooled, oracle, rtol=1e-6, atol=1e-6)


def test_layers_stand_side_by_side_in_the_order_asked(tiny_model, batch):
    forwards, backwards = captured(tiny_model, batch, layers=[0, 1]), captured(tiny_model, batch, layers=[1, 0])
    assert_close(forwards.prompt, backwards.prompt.roll(32, dims=1), rtol=0, atol=0)
    assert not torch.allclose(forwards.prompt, backwards.prompt)


def test_two_captures_around_one_pass_read_what_each_would_alone(tiny_model, batch):
    options = {"layers": [0], "pool_tokens": 1}, {"layers": [1], "pool_tokens": 3}
    with (
        torch.no_grad(),
        capture_hidden_states(tiny_model, *batch.masks(), **options[0]) as first,
        capture_hidden_states(tiny_model, *batch.masks(), **options[1]) as second,
    ):
        tiny_model(**batch.inputs())
    for capture, how in zip((first, second), options, strict=True):
        alone = captured(tiny_model, batch, reasoning_mask=None, **how)
        assert torch.equal(capture.features(batch.entropies).prompt, alone.prompt)
        assert torch.equal(capture.features(batch.entropies).completion, alone.completion)


def test_last_layer_is_read_before_the_final_norm(tiny_model, batch):
    with torch.no_grad():
        normed = tiny_model(**batch.inputs(), output_hidden_states=True).hidden_states[-1]
        features = captured(tiny_model, batch, layers=[2], pool_tokens=1)
        assert_close(tiny_model.model.norm(features.prompt), pooled_by_loop(normed, batch.prompt, 1))
    assert not torch.allclose(features.prompt, pooled_by_loop(normed, batch.prompt, 1), atol=1e-2)


@pytest.mark.parametrize("wrong", ["layer", "mask", "pool_tokens"])
def test_another_layer_mask_or_pool_differs(tiny_model, batch, wrong):
    right = captured(tiny_model, batch, layers=[1])
    changed = {
        "layer": {"layers": [0]},
        "mask": {"reasoning_mask": batch.completion},
        "pool_tokens": {"pool_tokens": 2},
    }
    other = captured(tiny_model, batch, **({"layers": [1]} | changed[wrong]))
    assert (right.completion - other.completion).abs().max() > 1e-2


@pytest.mark.parametrize("splits", [(1,) * ROWS, (2, 3, 1), (4, 2), (5, 1)])
def test_number_of_micro_batches_does_not_matter(tiny_model, batch, splits):
    whole, parts = captured(tiny_model, batch), captured(tiny_model, batch, splits=splits)
    assert_close(parts.prompt, whole.prompt, rtol=1e-6, atol=1e-6)
    assert_close(parts.completion, whole.completion, rtol=1e-6, atol=1e-6)


def packed_features(model, batch, splits, row_lengths):
    options = {"layers": [0, 1], "pool_tokens": 3, "reasoning_mask": batch.reasoning, "row_lengths": row_lengths}
    with torch.no_grad(), capture_hidden_states(model, *batch.masks(), **options) as capture:
        first = 0
        for size in splits:
            rows = batch.sequences[first : first + size]
            positions = torch.cat([torch.arange(len(row)) for row in rows])
            model(input_ids=torch.cat(rows)[None], position_ids=positions[None], use_cache=False)
            first += size
    return capture.features(batch.entropies)


@pytest.mark.parametrize("splits", [(ROWS,), (2, 3, 1), (1,) * ROWS])
def test_packed_layout_equals_padded(tiny_model, splits):
    batch = Batch("right")
    lengths = torch.tensor([len(row) for row in batch.sequences])
    packed, padded = packed_features(tiny_model, batch, splits, lengths), captured(tiny_model, batch)
    assert_close(packed.prompt, padded.prompt, rtol=1e-5, atol=1e-5)
    assert_close(packed.completion, padded.completion, rtol=1e-5, atol=1e-5)


def test_packed_layout_refuses_a_pass_that_cuts_a_sequence(tiny_model):
    batch = Batch("right")
    lengths = [len(row) for row in batch.sequences]
    lengths[0] -= 1
    with pytest.raises(ValueError, match="right-padded"):
        packed_features(tiny_model, batch, (1,), lengths)
    lengths[0] += 2
    with pytest.raises(ValueError, match="whole sequences"):
        packed_features(tiny_model, batch, (1,), lengths)


def test_packed_rows_without_tokens_are_missing_segments():
    masks = torch.tensor([[False, False], [True, False], [False, False]])
    model = StubModel()
    with capture_hidden_states(model, masks, masks & False, layers=[0], row_lengths=[0, 2, 0]) as capture:
        model(torch.tensor([[[4.0], [5.0]]]))
    features = capture.features(torch.zeros(3, 2))
    assert features.prompt[:, 0].tolist() == [0.0, 4.0, 0.0]
    assert features.missing[:, 0].tolist() == [True, False, True]


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_states_are_averaged_in_float32(tiny_model, batch, device):
    model, batch = tiny_model.to(device, torch.bfloat16), batch.to(device)
    state = states_before_final_norm(model, batch)[1]
    assert state.dtype == torch.bfloat16
    features = captured(model, batch, layers=[1], pool_tokens=10)
    assert features.completion.device.type == device
    assert_close(features.completion, pooled_by_loop(state, batch.reasoning, 10), rtol=1e-6, atol=1e-6)
    in_bfloat16 = torch.stack([s[m][-10:].mean(dim=0) for s, m in zip(state, batch.reasoning, strict=True)]).float()
    assert not torch.allclose(features.completion, in_bfloat16, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_features_in_bfloat16_are_those_in_float64_but_for_rounding(tiny_model, batch, device):
    exact = captured(copy.deepcopy(tiny_model).double(), batch)
    features = captured(tiny_model.to(device, torch.bfloat16), batch.to(device)).mapped(torch.Tensor.cpu)
    spread = exact.completion.std(dim=0).mean()
    for name in ("prompt", "completion"):
        assert (getattr(features, name) - getattr(exact, name)).abs().max() < 0.1 * spread
    assert torch.equal(features.missing, exact.missing)
    assert_close(features.entropies, exact.entropies)


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # peft asks transformers by the old name
def test_lora_wrapped_model_is_read_with_its_adapter(tiny_model, batch):
    plain = captured(tiny_model, batch)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model, config).eval()
    features = captured(model, batch)
    states = states_before_final_norm(model, batch)
    oracle = torch.cat([pooled_by_loop(states[layer], batch.reasoning, 3) for layer in (0, 1)], dim=1)
    assert_close(features.completion, oracle, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(features.completion, plain.completion, atol=1e-2)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # the new name is not in 5.5
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_does_not_count_rows_twice(tiny_model, batch, use_reentrant):
    plain = captured(tiny_model, batch)
    model = tiny_model.train()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    calls = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    options = {"layers": [0, 1], "pool_tokens": 3, "reasoning_mask": batch.reasoning}
    with capture_hidden_states(model, *batch.masks(), **options) as capture:
        for rows in (slice(0, 4), slice(4, ROWS)):
            model(**batch.inputs(rows)).logits.sum().backward()
    features = capture.features(batch.entropies)
    assert len(calls) == 4  # the blocks did run again, inside the capture
    assert_close(features.completion, plain.completion, rtol=1e-6, atol=1e-6)
    assert not features.completion.requires_grad


def test_blocks_whose_hooks_run_again_in_the_backward_pass_are_pooled_once():
    class WholeBlockCheckpointing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(5, 5)])

        def forward(self, hidden):
            return checkpoint(self.layers[0], hidden, use_reentrant=True)

    model, mask, calls = WholeBlockCheckpointing(), torch.ones(2, 3, dtype=torch.bool), []
    model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    hidden = torch.randn(2, 3, 5, requires_grad=True)
    with capture_hidden_states(model, mask, mask, layers=[0]) as capture:
        for row in range(2):
            model(hidden[row : row + 1]).sum().backward()
    assert len(calls) == 4
    assert_close(capture.features(torch.zeros(2, 3)).prompt, model.layers[0](hidden).detach().mean(dim=1))


def test_gradients_are_those_of_a_model_without_capture(tiny_model, batch):
    twin = copy.deepcopy(tiny_model)
    twin(**batch.inputs()).logits.logsumexp(dim=-1).sum().backward()
    with capture_hidden_states(tiny_model, *batch.masks(), layers=[1]):
        tiny_model(**batch.inputs()).logits.logsumexp(dim=-1).sum().backward()
    for parameter, other in zip(tiny_model.parameters(), twin.parameters(), strict=True):
        assert_close(parameter.grad, other.grad, rtol=0, atol=0)


def test_hooks_are_gone_after_the_block(tiny_model, batch):
    before = num_hooks(tiny_model)
    with capture_hidden_states(tiny_model, *batch.masks(), layers=[0, 1]):
        assert num_hooks(tiny_model) == before + 4
    assert num_hooks(tiny_model) == before


def test_hooks_are_gone_after_an_exception(tiny_model, batch):
    before = num_hooks(tiny_model)
    with pytest.raises(RuntimeError, match="of ours"), capture_hidden_states(tiny_model, *batch.masks(), layers=[0]):
        raise RuntimeError("of ours")
    assert num_hooks(tiny_model) == before


def test_pass_that_failed_may_be_tried_again(tiny_model, batch):
    def out_of_memory(*_):
        raise MemoryError("of ours")

    with torch.no_grad(), capture_hidden_states(tiny_model, *batch.masks(), layers=[0], pool_tokens=3) as capture:
        failing = tiny_model.model.layers[1].register_forward_hook(out_of_memory)
        with pytest.raises(MemoryError):
            tiny_model(**batch.inputs())
        failing.remove()
        tiny_model(**batch.inputs())
    plain = captured(tiny_model, batch, layers=[0], reasoning_mask=None)
    assert_close(capture.features(batch.entropies).completion, plain.completion, rtol=0, atol=0)


def test_features_refuse_a_batch_not_seen_in_full(tiny_model, batch):
    with pytest.raises(ValueError, match=r"6 in all; got 4 in 1 pass"):
        captured(tiny_model, batch, splits=(4,))
    with pytest.raises(ValueError, match=r"6 in all; got 0 in 0 pass"):
        captured(tiny_model, batch, splits=())


def test_passes_with_more_rows_than_the_masks_are_refused(tiny_model, batch):
    with torch.no_grad(), capture_hidden_states(tiny_model, *batch.masks(), layers=[0]):
        tiny_model(**batch.inputs(slice(0, 4)))
        with pytest.raises(ValueError, match="at most 2 rows"):
            tiny_model(**batch.inputs(slice(0, 4)))


def test_pass_with_other_columns_than_the_masks_is_refused(tiny_model, batch):
    prompt, completion = (mask[:, 1:] for mask in batch.masks())
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"15 columns, got 6 rows and 16 columns"),
        capture_hidden_states(tiny_model, prompt, completion, layers=[0]),
    ):
        tiny_model(**batch.inputs())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [3]}, r"layers need to lie in 0\.\.2, the model has 3; got 3"),
        ({"layers": [-1]}, r"layers need to lie in 0\.\.2, the model has 3; got -1"),
        ({"layers": []}, "at least one layer"),
        ({"pool_tokens": 0}, "pool_tokens needs to be at least 1, got 0"),
        ({"row_lengths": [1, 2]}, "row_lengths need 6 numbers"),
    ],
)
def test_arguments_that_do_not_fit_are_named(tiny_model, batch, options, message):
    with pytest.raises(ValueError, match=message):
        captured(tiny_model, batch, **options)
    assert num_hooks(tiny_model) == 0


def test_reasoning_outside_the_completion_is_refused(tiny_model, batch):
    with pytest.raises(ValueError, match="inside completion_mask"):
        captured(tiny_model, batch, reasoning_mask=batch.prompt)


def test_entropies_need_to_cover_the_completions(tiny_model, batch):
    with torch.no_grad(), capture_hidden_states(tiny_model, *batch.masks(), layers=[0]) as capture:
        tiny_model(**batch.inputs())
    with pytest.raises(ValueError, match="cover every completion token"):
        capture.features(batch.entropies[:, -3:])
    with pytest.raises(ValueError, match="6 rows and at most 16 columns"):
        capture.features(batch.entropies[:4])


def test_features_carry_entropy_means_over_the_segments(tiny_model, batch):
    features = captured(tiny_model, batch)
    first = batch.ids.shape[1] - batch.completion_columns
    for row in range(ROWS):
        values = batch.entropies[row]
        completion, reasoning = batch.completion[row, first:], batch.reasoning[row, first:]
        answer = completion & ~reasoning
        means = [values[mask].mean().item() if mask.any() else 0.0 for mask in (completion, reasoning, answer)]
        assert_close(features.entropies[row], torch.tensor(means))
        assert features.missing[row].tolist() == [False, False, False, not answer.any()]


def test_features_carry_the_scalars_that_are_asked_for(tiny_model, batch):
    with (
        torch.no_grad(),
        capture_hidden_states(tiny_model, *batch.masks(), layers=[0], reasoning_mask=batch.reasoning) as capture,
    ):
        tiny_model(**batch.inputs())
    names = ["reasoning_length", "answer_max_entropy", "completion_unique_ratio"]
    features = capture.features(batch.entropies, scalars=names, ids=batch.ids)
    assert list(features.scalars) == names
    first = batch.ids.shape[1] - batch.completion_columns
    for row, (completion, reasoning) in enumerate(zip(batch.completion, batch.reasoning, strict=True)):
        ids, answer = batch.ids[row][completion].tolist(), completion & ~reasoning
        highest = batch.entropies[row][answer[first:]].max().item() if answer.any() else 0.0
        expected = [int(reasoning.sum()) / 1000, highest, len(set(ids)) / len(ids)]
        assert features.columns(names)[row].tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"ids need the masks' shape \(6, 16\), got \(6, 4\)"):
        capture.features(batch.entropies, scalars=names, ids=batch.ids[:, :4])


def test_padding_does_not_matter(tiny_model):
    left, right = (captured(tiny_model, Batch(padding)) for padding in ("left", "right"))
    assert_close(left.prompt, right.prompt, rtol=1e-5, atol=1e-5)
    assert_close(left.completion, right.completion, rtol=1e-5, atol=1e-5)


def test_empty_segments_are_zero_and_flagged(tiny_model, batch):
    batch.prompt[0] = False
    batch.completion[1] = batch.reasoning[1] = False
    batch.reasoning[2] = False
    features = captured(tiny_model, batch)
    assert features.missing.tolist() == [
        [True, False, False, False],
        [False, True, True, True],
        [False, False, True, False],
        [False, False, False, False],
        [False, False, False, False],
        [False, False, False, False],
    ]
    assert (features.prompt == 0).all(dim=1).tolist() == [True] + [False] * 5
    assert (features.completion == 0).all(dim=1).tolist() == [False, True, True, False, False, False]
    assert features.entropies[1].tolist() == [0.0, 0.0, 0.0]


def test_without_a_reasoning_mask_the_completion_is_pooled(tiny_model, batch):
    whole = captured(tiny_model, batch, reasoning_mask=None)
    assert_close(whole.completion, captured(tiny_model, batch, reasoning_mask=batch.completion).completion)
    assert whole.missing[:, 3].all()


def test_whole_path_from_tokens_to_features(tiny_model):
    batch = Batch("left")
    end = batch.ids[0, 9].item()
    reasoning, _ = reasoning_mask(batch.ids, batch.completion, end_of_thinking_ids=[end])
    with (
        torch.no_grad(),
        capture_hidden_states(tiny_model, *batch.masks(), layers=[1], reasoning_mask=reasoning) as capture,
    ):
        logits = tiny_model(**batch.inputs()).logits
    entropies = token_entropies(logits[:, :-1])[:, -batch.completion_columns :]
    features = capture.features(entropies)
    exact = torch.distributions.Categorical(logits=logits[0, 6:12]).entropy()
    assert_close(features.entropies[0, 0], exact.mean())
    assert_close(features.entropies[0, 1], exact[:3].mean())


def test_features_made_in_inference_mode_can_be_used_outside(tiny_model, batch):
    with torch.inference_mode(), capture_hidden_states(tiny_model, *batch.masks(), layers=[0]) as capture:
        tiny_model(**batch.inputs())
    features = capture.features(batch.entropies)
    weight = torch.ones(32, requires_grad=True)
    (features.prompt @ weight).sum().backward()
    assert_close(weight.grad, features.prompt.sum(dim=0))


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "mpt"])
def test_other_architectures_are_read_alike(batch, architecture):
    if architecture == "mpt":
        model = MptForCausalLM(MptConfig(vocab_size=64, d_model=32, n_layers=3, n_heads=4, max_seq_len=64)).eval()
    elif architecture == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64)).eval()
    else:
        config = GPTNeoXConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
        )
        model = GPTNeoXForCausalLM(config).eval()
    features = captured(model, batch, layers=[1])
    oracle = pooled_by_loop(states_before_final_norm(model, batch)[1], batch.reasoning, 3)
    assert_close(features.completion, oracle, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("kind", [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig])
def test_virtual_tokens_are_no_part_of_a_row(tiny_model, batch, kind):
    torch.manual_seed(0)
    adapter = kind(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(copy.deepcopy(tiny_model), adapter).eval()
    inputs = {name: each for name, each in batch.inputs().items() if name != "position_ids"}
    with capture_hidden_states(model, *batch.masks(), layers=[1], pool_tokens=3) as capture:
        model(**inputs)
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[2][:, -batch.ids.shape[1] :]
    assert_close(capture.features(batch.entropies).completion, pooled_by_loop(states, batch.completion, 3))


class StubModel(nn.Module):
    """A decoder that hands its input through; what its block returns is for the test to choose."""

    def __init__(self, wrap=lambda hidden: hidden):
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity()])
        self.layers[0].forward = wrap

    def forward(self, hidden):
        self.layers[0](hidden)
        return hidden


class Sharded(torch.Tensor):
    """Stands for a DTensor: values are wrong until `full_tensor` gathers them."""

    def full_tensor(self):
        return self.as_subclass(torch.Tensor) * 2


@pytest.mark.parametrize(
    ("wrap", "factor"),
    [
        (lambda hidden: hidden, 1),
        (lambda hidden: (hidden, None), 1),
        (lambda hidden: hidden.as_subclass(Sharded), 2),
    ],
    ids=["tensor", "tuple", "dtensor"],
)
def test_block_output_may_be_tensor_tuple_or_dtensor(wrap, factor):
    mask = torch.ones(2, 3, dtype=torch.bool)
    model, hidden = StubModel(wrap), torch.randn(2, 3, 5)
    with capture_hidden_states(model, mask, mask, layers=[0]) as capture:
        model(hidden)
    features = capture.features(torch.zeros(2, 3))
    assert type(features.prompt) is torch.Tensor
    assert_close(features.prompt, factor * hidden.mean(dim=1))


def test_padding_with_nan_states_does_not_leak():
    mask = torch.tensor([[False, True, True], [False, False, False]])
    model, hidden = StubModel(), torch.tensor([[[torch.nan], [1.0], [2.0]], [[torch.nan], [torch.nan], [torch.nan]]])
    with capture_hidden_states(model, mask, mask, layers=[0], pool_tokens=3) as capture:
        model(hidden)
    features = capture.features(torch.zeros(2, 3))
    assert features.prompt[:, 0].tolist() == [1.5, 0.0]


def test_layer_that_a_pass_skips_is_an_error():
    model, mask = StubModel(), torch.ones(1, 2, dtype=torch.bool)
    model.forward = lambda hidden: hidden
    with pytest.raises(ValueError, match="every captured layer"), capture_hidden_states(model, mask, mask, layers=[0]):
        model(torch.zeros(1, 2, 3))


def test_masks_that_are_not_bool_are_refused():
    with pytest.raises(ValueError, match=r"completion_mask needs dtype torch\.bool, got torch\.int64"):
        require_bool(torch.ones(1, 2, dtype=torch.long), name="completion_mask")


def test_decoder_is_found_behind_wrappers(tiny_model):
    class DistributedStub(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    decoder, blocks = decoder_blocks(DistributedStub(DistributedStub(tiny_model)))
    assert decoder is tiny_model.model
    assert blocks is tiny_model.model.layers


def test_model_without_decoder_blocks_is_named():
    with pytest.raises(TypeError, match=r"get_decoder\(\)\.layers.*got Linear"):
        decoder_blocks(nn.Linear(2, 2))


def test_last_true_columns_fall_and_end_in_minus_one():
    mask = torch.tensor([[True, False, True, True], [False, False, False, False], [True, False, False, False]])
    assert last_true_columns(mask, count=2).tolist() == [[3, 2], [-1, -1], [0, -1]]
    assert last_true_columns(mask, count=6).tolist()[0] == [3, 2, 0, -1, -1, -1]

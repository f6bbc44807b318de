"""Tools and environments of TRL: what is read is held against the oracle of one unpadded sequence a rollout.

The policy is random, so what it says is scripted turn by turn: tools are called, fail, are unknown, or say too much.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset
from own_tokens_oracle import POOL, Kept, assert_read_as_the_oracle_does
from recording import HOST_CHATTER
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

pytestmark = [*HOST_CHATTER, pytest.mark.filterwarnings("ignore:You are using 'environment_factory':UserWarning")]

MARKS = ["<pad>", "<|im_end|>", "<|im_start|>", "<think>", "</think>"]
MARKS += ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
TEMPLATE = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()


def chat_tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a character, and one for each of the marks of Qwen3's template."""
    vocabulary = {token: place for place, token in enumerate([*MARKS, "\n", *map(chr, range(32, 127))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(MARKS[:3])
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS[3:]])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>", unk_token=" ", padding_side="left"
    )
    made.chat_template = template
    return made


def chat_policy() -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=4096,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def call(tool: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': tool, 'arguments': arguments})}\n</tool_call><|im_end|>"


class Scripted(Kept):
    """Says what a script says: one list of texts a turn, row by row."""

    script: list[list[str]]

    def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **named: Any) -> Any:
        texts = self.script.pop(0)
        rows = [texts[row % len(texts)] for row in range(len(prompt_ids))]
        encoded = [self.processing_class.encode(text, add_special_tokens=False) for text in rows]
        return [ids[: self.max_completion_length] for ids in encoded], None


def multiply(a: int, b: int) -> int:
    """Multiply.

    Args:
        a: A number.
        b: Another.
    """
    return a * b


def fail(a: int) -> int:
    """Fail.

    Args:
        a: A number.
    """
    raise ValueError(f"no {a}")


def recite(a: int) -> str:
    """Say too much.

    Args:
        a: A number.
    """
    return "x" * 1000


async def wait(a: int) -> int:
    """Wait.

    Args:
        a: A number.
    """
    await asyncio.sleep(0)
    return a


@pytest.fixture
def scripted(build, monkeypatch):
    monkeypatch.setattr("conftest.RecordedTrainer", Scripted)

    def trainer(script: list[list[str]], **options: Any) -> Scripted:
        named = {"processing_class": chat_tokenizer()} | options.pop("named", {})
        rows = [{"prompt": [{"role": "user", "content": f"{i}*3"}], "domain": "m"} for i in range(16)]
        settings = {
            "data": Dataset.from_list(rows),
            "max_steps": 1,
            "pool_tokens": POOL,
            "layers": [2],
            "per_device_train_batch_size": 4,
            "max_completion_length": 220,
            "end_of_thinking": "</think>",
            "shuffle_dataset": False,
            "reward": lengths,
        }
        made = build(model=chat_policy(), named=named, **(settings | options))
        made.script = [list(turn) for turn in script]
        return made

    return trainer


def lengths(completions: Any, **columns: Any) -> list[float]:
    return [float(sum(len(each.get("content") or "") for each in messages) % 5) for messages in completions]


SAID = ["<think>hm</think>12<|im_end|>", "7<|im_end|>", "so it is 36<|im_end|>"]
CASES: dict[str, tuple[list[str], list[Any], str]] = {
    "a result": ([call("multiply", a=4, b=3), *SAID], [multiply], "12"),
    "an error": ([call("fail", a=4), *SAID], [fail], "no 4"),
    "an unknown tool": ([call("divide", a=4), *SAID], [multiply], "divide"),
    "a turn rolled back for its length": ([call("recite", a=4), *SAID], [recite], ""),
    "an asynchronous tool": ([call("wait", a=4), *SAID], [wait], "4"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("steps_per_generation", [2, 1], ids=["free", "extra pass"])
def test_results_of_tools_are_not_read(scripted, case, steps_per_generation):
    first, tools, told = CASES[case]
    trainer = scripted([first, SAID], named={"tools": tools}, steps_per_generation=steps_per_generation)
    trainer.train()
    assert_read_as_the_oracle_does(trainer)
    ids, own = trainer.kept[0][0]
    others = trainer.processing_class.decode([token for token, mine in zip(ids, own, strict=True) if not mine])
    assert told in others
    assert (0 in own) == (case != "a turn rolled back for its length")
    assert trainer.baseline.given[0]["prompts"][0] == '[{"content": "0*3", "role": "user"}]'


class Room:
    """An environment whose first observation differs between siblings."""

    opened = 0

    def reset(self, **row: Any) -> str:
        Room.opened += 1
        self.left = Room.opened % 3
        return f" door {Room.opened}"

    def push(self, a: int) -> str:
        """Push.

        Args:
            a: A number.
        """
        self.left += a
        return f"pushed {a}"

    def get_reward(self) -> float:
        return float(self.left)


class Hall(Room):
    """Another one."""


@pytest.mark.parametrize("kind", ["one", "several"])
def test_observations_are_not_read_and_rows_are_the_prompts(scripted, kind):
    if kind == "one":
        rows = [{"prompt": [{"role": "user", "content": "go"}], "level": place // 2} for place in range(16)]
        factory: Any = Room
    else:  # prompts are the environments' own
        rows = [{"environment": ("room", "hall")[place % 2], "level": place} for place in range(16)]
        factory = {"room": Room, "hall": Hall}
    trainer = scripted(
        [[call("push", a=2), *SAID], SAID],
        data=Dataset.from_list(rows),
        reward=None if kind == "one" else lengths,
        named={"environment_factory": factory},
    )
    trainer.train()
    assert_read_as_the_oracle_does(trainer)
    given = trainer.baseline.given[0]
    assert [json.loads(each) for each in given["prompts"][::2]] == rows[: len(given["prompts"]) // 2]
    assert given["prompts"][::2] == given["prompts"][1::2]
    shown = trainer.processing_class.batch_decode(trainer.scored[0]["prompt_ids"])
    assert shown[0] != shown[1]  # siblings see different doors


def test_an_environment_without_reset_is_refused(scripted):
    with pytest.raises(ValueError, match="must define a callable `reset`"):
        scripted([SAID], named={"environment_factory": dict})


def test_a_template_that_does_not_know_tools_is_refused(scripted):
    plain = chat_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(ValueError, match="does not support tool calling"):
        scripted([SAID], named={"tools": [multiply], "processing_class": plain})

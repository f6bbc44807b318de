"""The adapters of `docs/guides/other_trainers.md`: run as they stand there, and held against real signatures."""

import ast
import asyncio
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import poise

PAGE = (Path(__file__).parent.parent / "docs/guides/other_trainers.md").read_text()
REWARDS = [1.0, 0.0, 1.0, 0.0, 1.0, 1.0]
PROMPTS = ["a", "a", "b", "b", "c", "c"]
LOGPROBS = [[-0.1, -0.3], [-1.2], [-0.2, -0.2, -0.7], [-0.4], [-0.9, -0.5], [-2.0]]
MASK = torch.tensor([[k < len(each) for k in range(3)] for each in LOGPROBS]).long()
PADDED = torch.tensor([each + [-9.0] * (3 - len(each)) for each in LOGPROBS])


def adapter(title, monkeypatch, **modules):
    """What a section's code defines, with stand-ins for the framework's modules."""
    for name, content in modules.items():
        parts = name.split("__")
        for depth in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), ModuleType(parts[depth - 1]))
        vars(sys.modules[".".join(parts)]).update(content)
    code = re.search(rf"^## {title}\n.*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)[1]
    defined = {}
    exec(compile(code, title, "exec"), defined)  # noqa: S102
    return defined


def wanted(prompts=PROMPTS, *, logprobs=LOGPROBS, **changes):
    baseline = poise.OnlineBaseline(poise.preset("poise-light", **changes))
    return poise.advantages(REWARDS, prompts, logprobs=logprobs, baseline=baseline)


def same(found, expected):
    assert torch.allclose(torch.as_tensor(found).double(), expected, atol=1e-5)


def test_openrlhf(monkeypatch):
    made = type("RemoteExperienceMaker", (), {})
    adapter("OpenRLHF", monkeypatch, openrlhf__trainer__ppo_utils__experience_maker={"RemoteExperienceMaker": made})
    parts = [slice(0, 2), slice(2, 6)]
    experiences = [
        SimpleNamespace(
            action_log_probs=PADDED[part], action_mask=MASK[part], rewards=torch.tensor(REWARDS[part]), info={},
            prompts=PROMPTS[part], kl=0,
        )
        for part in parts
    ]  # fmt: skip
    done = made().compute_advantages_and_returns(experiences)
    same(torch.cat([each.advantages for each in done]), wanted()[:, None] * MASK)
    assert all(each.kl is None for each in done)


def test_skyrl(monkeypatch):
    registry = {}
    register = {"register_advantage_estimator": lambda name: lambda function: registry.setdefault(name, function)}
    adapter("SkyRL", monkeypatch, skyrl__backends__skyrl_train__utils__ppo_utils=register)
    rewards = torch.zeros(6, 3)
    rewards[:, 0] = torch.tensor(REWARDS)
    found, returns = registry["poise"](
        token_level_rewards=rewards, response_mask=MASK, index=PROMPTS, values=None, config=None, gamma=1, lambd=1,
        grpo_norm_by_std=True,
    )  # fmt: skip
    same(found, wanted(logprobs=None)[:, None] * MASK)
    assert torch.equal(found, returns)


class Trace:
    """A trace or rollout: a node of the environment's, then one of the policy's."""

    def __init__(self, row):
        own = SimpleNamespace(logprobs=LOGPROBS[row], mask=[True] * len(LOGPROBS[row]), advantages=None)
        self.nodes = [SimpleNamespace(logprobs=[], mask=[False, False], advantages=None), own]
        self.reward, self.task = REWARDS[row], SimpleNamespace(key=PROMPTS[row])

    def assign_advantages(self, value):
        self.given = value


def test_prime_rl(monkeypatch):
    made = adapter(
        "prime-rl",
        monkeypatch,
        prime_rl__orchestrator__algo__base={"Algorithm": object},
        prime_rl__orchestrator__types={"group_rollouts": lambda group: [each for part in group for each in part]},
    )["Poise"]()
    traces = [Trace(row) for row in range(6)]
    asyncio.run(made.score_group([traces[:1], traces[1:]]))
    same([each.given for each in traces], wanted(risk_decay=0.999))


def test_verifiers(monkeypatch):
    traces = [Trace(row) for row in range(6)]
    adapter("verifiers", monkeypatch)["assign_advantages"](traces)
    same([each.nodes[1].advantages[0] for each in traces], wanted())
    assert [len(each.nodes[1].advantages) for each in traces] == [len(each) for each in LOGPROBS]
    assert all(each.nodes[0].advantages is None for each in traces)


@pytest.mark.parametrize("width", [None, 2], ids=["numbers of prompts", "tokens of prompts"])
def test_nemo_rl(monkeypatch, width):
    estimator = adapter("NeMo-RL", monkeypatch)["PoiseAdvantageEstimator"](None, None)
    prompts = torch.tensor([0, 0, 1, 1, 2, 2])
    prompts = prompts if width is None else prompts[:, None].repeat(1, width)
    names = [str(each) for each in prompts.tolist()]
    valid = torch.tensor([1.0, 1, 1, 1, 1, 0])
    found = estimator.compute_advantage(
        prompts, torch.tensor(REWARDS), MASK, valid_mask=valid, logprobs_policy=PADDED, logprobs_reference=None
    )
    baseline = poise.OnlineBaseline(poise.preset("poise-light"))
    expected = poise.advantages([*REWARDS[:5], float("nan")], names, logprobs=LOGPROBS, baseline=baseline)
    same(found, expected[:, None].expand(6, 3))
    assert (found[5] == 0).all()


def test_slime(monkeypatch):
    function = adapter("slime", monkeypatch)["post_process"]
    samples = [
        SimpleNamespace(
            get_reward_value=lambda args, row=row: REWARDS[row], rollout_log_probs=[*LOGPROBS[row], -7.0],
            loss_mask=[1] * len(LOGPROBS[row]) + [0], response_length=len(LOGPROBS[row]) + 1, prompt=PROMPTS[row],
        )
        for row in range(6)
    ]  # fmt: skip
    raw, found = function(None, samples)
    assert raw == REWARDS
    same(found, wanted())


def test_tinker_cookbook(monkeypatch):
    function = adapter("tinker-cookbook", monkeypatch)["compute_poise_advantages"]
    groups = []
    for first in (0, 2, 4):
        trajectories = [
            SimpleNamespace(
                transitions=[
                    SimpleNamespace(
                        ob=SimpleNamespace(to_ints=lambda row=row: [row // 2]),
                        ac=SimpleNamespace(logprobs=LOGPROBS[row]),
                    )
                ]
            )
            for row in (first, first + 1)
        ]
        rewards = REWARDS[first : first + 2]
        groups.append(SimpleNamespace(trajectories_G=trajectories, get_total_rewards=lambda rewards=rewards: rewards))
    found = function(groups)
    assert [len(each) for each in found] == [2, 2, 2]
    same(torch.cat(found), wanted(["[0]", "[0]", "[1]", "[1]", "[2]", "[2]"]))


REAL = [
    (
        "openrlhf",
        "trainer/ppo_utils/experience_maker.py",
        {"compute_advantages_and_returns": ["self", "experiences"]},
        (),
    ),
    (
        "openrlhf",
        "trainer/ppo_utils/experience.py",
        {},
        ("action_log_probs", "action_mask", "rewards", "prompts", "info", "kl", "advantages", "returns"),
    ),
    (
        "skyrl",
        "backends/skyrl_train/utils/ppo_utils.py",
        {
            "register_advantage_estimator": ["name"],
            "compute_rloo_outcome_advantage": ["token_level_rewards", "response_mask", "index"],
        },
        (),
    ),
    ("verifiers", "v1/trace.py", {"reward": ["self"]}, ("nodes", "task", "key")),
    ("verifiers", "v1/graph.py", {}, ("mask", "logprobs", "advantages")),
]
"""Package, file, functions with their leading parameters, fields with annotations."""


@pytest.mark.parametrize(("package", "file", "functions", "fields"), REAL, ids=[f"{p} {f}" for p, f, *_ in REAL])
def test_the_real_signatures_are_those_that_the_page_names(package, file, functions, fields):
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed: its wheel, unpacked on PYTHONPATH, is enough for this test")
    tree = ast.parse((Path(next(iter(found.submodule_search_locations))) / file).read_text())
    defined = {
        node.name: [each.arg for each in node.args.args]
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for name, parameters in functions.items():
        assert defined[name][: len(parameters)] == parameters
    annotated = {
        node.target.id for node in ast.walk(tree) if isinstance(node, ast.AnnAssign) and hasattr(node.target, "id")
    }
    assert set(fields) <= annotated


def test_the_first_block_of_the_page_runs():
    made = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], made)  # noqa: S102
    assert len(made["advantages"]) == 4

"""What the pages say is what the code does: snippets run, every metric has its line."""

import re
import runpy
from pathlib import Path

import pytest
import torch

import poise
from oracles import drawn_rollouts
from poise.features.scalars import SCALARS
from poise.models.embedded import embedded_model_path

ROOT = Path(__file__).parent.parent
GENERATED = {
    "commands.md",
    "settings.md",
    "api.md",
}  # made by scripts/generated_pages.py; the site's build checks the links


def readme_snippets():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def run(code, tmp_path, **given):
    file = tmp_path / "snippet.py"
    file.write_text(code)
    return runpy.run_path(str(file), init_globals=given)


def test_readme_snippets_are_short():
    lengths = [len([line for line in snippet.splitlines() if line.strip()]) for snippet in readme_snippets()]
    assert len(lengths) == 2
    assert max(lengths) < 15


def test_library_snippet_of_the_readme_runs(tiny_model, tmp_path):
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(3, tiny_model.config.vocab_size, (8, 7), generator=generator)
    completion_mask = torch.zeros(8, 7, dtype=torch.bool)
    completion_mask[:, 3:] = True

    def logprobs_and_entropies(model, ids):
        logits = torch.cat([torch.zeros(8, 1, model.config.vocab_size), model(ids).logits[:, :-1]], dim=1)
        logprobs = logits.log_softmax(-1).gather(2, ids[:, :, None])[:, :, 0]
        return logprobs, poise.token_entropies(logits.detach())

    made = run(
        readme_snippets()[1].replace("layers=[19]", "layers=[1]"),
        tmp_path,
        model=tiny_model,
        input_ids=input_ids,
        prompt_mask=~completion_mask,
        completion_mask=completion_mask,
        rewards=torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 0]),
        prompt_ids=[0, 0, 1, 1, 2, 2, 3, 3],
        logprobs_and_entropies=logprobs_and_entropies,
    )
    assert made["loss"].requires_grad
    assert made["loss"].isfinite()


def test_the_page_of_the_method_lists_every_scalar():
    section = (ROOT / "docs" / "method.md").read_text().partition("### Scalars by name")[2]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("| `")]
    patterns = re.findall(r"`([a-z_{}]+)`", " ".join(rows))
    listed = {
        pattern.format(segment=segment, statistic=statistic)
        for pattern in patterns
        for segment in ("completion", "reasoning", "answer")
        for statistic in ("mean", "max", "min", "last")
    }
    assert listed == set(SCALARS)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_trl_snippet_of_the_readme_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = readme_snippets()[0].replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(embedded_model_path()))
    quick = "max_steps=2, per_device_train_batch_size=4, report_to=[], save_strategy='no'"
    made = run(code.replace("max_completion_length=8", f"max_completion_length=8, {quick}"), tmp_path)
    assert made["trainer"].state.global_step == 2
    assert made["trainer"].baseline.state_dict()["widths"] == [128, 128, 3]


def test_own_loop_learns_sooner_with_poise_than_without_a_baseline():
    train = runpy.run_path(str(ROOT / "examples" / "own_loop.py"))["train"]
    curves = {preset: train(60, preset=preset)[-15:] for preset in ("poise", "none")}
    assert sum(curves["poise"]) / 15 > sum(curves["none"]) / 15 + 0.2


@pytest.mark.parametrize("page", [ROOT / "docs/guides/library.md"], ids=lambda page: page.stem)
def test_snippets_of_a_guide_run(page, tmp_path):
    for snippet in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        made = run(snippet, tmp_path)
    assert made["step"].advantages[-1] == 0  # the rollout that could not be graded


def test_every_metric_has_its_line_and_every_line_its_metric():
    baseline = poise.OnlineBaseline(poise.preset("poise"))
    logged = set(drawn_rollouts([2] * 4, seed=0).given_to(baseline).metrics)
    engine = {"poise/extra_forward", "poise/masked_share", "poise/skipped_share", "poise/alone_share"}
    engine |= {"poise/update_noise", "poise/no_own_tokens_share", "poise/reward_scale", "poise/lost_share"}
    engine |= {"poise/nonfinite_share", "poise/raised_share", "poise/reward", "poise/validation_ungradable_share"}
    phases = {f"poise/seconds_{phase}" for phase in ("sampling", "rewards", "features", "baseline")}
    engines = "".join(path.read_text() for path in (ROOT / "src/poise/engines").rglob("*.py"))
    assert [key for key in engine if key not in engines] == []
    documented = set(re.findall(r"^\| `(poise/\w+)`", (ROOT / "docs/metrics.md").read_text(), flags=re.MULTILINE))
    assert documented == logged | engine | phases


def test_every_preset_is_described():
    page = (ROOT / "docs/method.md").read_text()
    assert [name for name in poise.PRESETS if f"`{name}`" not in page] == []


def test_pages_link_to_files_that_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            known = target.startswith("https://") or target in GENERATED or (page.parent / target).exists()
            assert known, f"{page.name}: {target}"

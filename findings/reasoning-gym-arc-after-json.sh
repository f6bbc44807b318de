#!/usr/bin/env bash
# reasoning-gym 0.1.25: the right answer of `arc_agi` and `rearc` earns 0.05 instead of 1 once the entry has been through
# JSON.
#
# `score_answer(answer, entry)` takes the entry that the data set made, and an entry is plain data: writing prompts to a
# .jsonl file (or a Dataset of Hugging Face) and scoring later from what was read back is what one does. In 100 other
# data sets the score of the gold answer is the same before and after. In these two the metadata hold the wanted grid as
# a tuple of tuples, the answer is parsed to tuples as well, and a list is never equal to a tuple: every right answer
# counts as "well formed, wrong". No error, and a training run that looks like a hard task.
#
# Seen: arc_agi: gold scores 1.0 as made, 0.05 after JSON
#       rearc: gold scores 1.0 as made, 0.05 after JSON
#       spiral_matrix (control): gold scores 1.0 as made, 1.0 after JSON
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check reasoning-gym==0.1.25
"$folder/venv/bin/python" - <<'PYTHON'
import json

import reasoning_gym

expected = {"arc_agi": (1.0, 0.05), "rearc": (1.0, 0.05), "spiral_matrix": (1.0, 1.0)}
for name, scores in expected.items():
    data = reasoning_gym.create_dataset(name, size=4, seed=7)
    for entry in data:
        again = json.loads(json.dumps(entry))
        found = (data.score_answer(entry["answer"], entry), data.score_answer(entry["answer"], again))
        assert found == scores, (name, found)
    print(f"{name}: gold scores {found[0]} as made, {found[1]} after JSON")
PYTHON

"""Will a run learn what it should, and does it?

The rule: every alarm is one sentence that says what is wrong and what to do. `checks` are pure functions of what is
known before a run, `examination` gathers that from its settings, and `watch` reads the metrics of one that goes on.
"""

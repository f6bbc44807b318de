"""Checks of a run before it begins.

Every finding is one sentence that says what is wrong and what to do. `checks` are pure functions of what is known
before a run, `examination` gathers that from its settings.
"""

"""Scripts whose work would begin anew in every process that they start."""

import ast
import sys
from pathlib import Path
from types import FrameType


def unguarded_line() -> int | None:
    """The line of the running script that is at work outside of `if __name__ == "__main__":`; None where there is none.

    A process that is started for workers imports the script, and would do that work again.
    """
    frame: FrameType | None = sys._getframe()
    while frame and (frame.f_code.co_name, frame.f_globals.get("__name__")) != ("<module>", "__main__"):
        frame = frame.f_back
    if frame is None or not Path(frame.f_globals.get("__file__") or "").is_file():
        return None  # another thread, or nothing that could be imported
    try:
        statements = ast.parse(Path(frame.f_globals["__file__"]).read_bytes()).body
    except (SyntaxError, ValueError):
        return None  # no text of Python's
    for each in statements:
        if each.lineno <= frame.f_lineno <= (each.end_lineno or each.lineno):
            guarded = isinstance(each, ast.If) and "__name__" in ast.unparse(each.test)
            return None if guarded else frame.f_lineno
    return None

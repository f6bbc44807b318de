"""What verl loads by itself in each of its processes: the entry point `poise` of the group `verl.plugins`.

Only what has to be true before verl's models are imported. Poise's engines make themselves known where a
worker asks for one (`worker.py`): importing an engine here would settle verl's platform before other plug-ins have
named theirs.
"""

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version
from verl.utils import import_utils


def trl_without_value_head() -> bool:
    """Whether the installed trl lacks the model with a value head that verl takes from any trl, or else fails."""
    try:
        return Version(version("trl")) >= Version("1")
    except PackageNotFoundError:
        return False


if trl_without_value_head():
    import_utils.is_trl_available = lambda: False

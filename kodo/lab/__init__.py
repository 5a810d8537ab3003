"""The lab: a mesh of real services that a notebook starts, watches, breaks and heals.

```python
from kodo.lab import MeshLab

with MeshLab() as lab:
    registry = lab.add_registry()
    lab.add_node(connect=registry, flows=["my test"])
    lab.settle()
    lab.flows()
```

- `mesh.py` holds the lab, `member.py` the handle of one service. Beneath is an `Engine` (`engine.py`): `processes.py`,
  or `simulated.py` for `MeshLab(engine="simulated")`.
- `live.py` and `dashboard.py` hold what moves: `copies.py` follows what registries tell, `widgets.py` and `static` show
  it. They are imported when they are first asked for.
- `flows.py`, `topology.py` and `settling.py` hold what is seen: pure functions over what members answered, and a view.
- The lab starts `python -m kodo.guardian` as a process and speaks HTTP to its members; it imports neither the service
  nor the guardian.
- Every view has a constant one-line or tabular `text/plain`, without port, pid, time or measure.
"""

from __future__ import annotations

from importlib.util import find_spec

_missing = [
    name for name in ("anywidget", "cloudpickle", "ipywidgets", "matplotlib", "networkx") if find_spec(name) is None
]
if _missing:
    _are = "is" if len(_missing) == 1 else "are"
    raise ImportError(f"kodo.lab needs {', '.join(_missing)}, which {_are} not installed: pip install 'kodo[lab]'")

from kodo.lab.member import Member  # noqa: E402, after the check, which says what to do
from kodo.lab.mesh import MeshLab  # noqa: E402

__all__ = ["Member", "MeshLab"]


def __dir__() -> list[str]:
    """What there is for a notebook; its completion shows no more."""
    return __all__

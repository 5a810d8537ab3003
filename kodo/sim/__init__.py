"""A simulator of meshes: the real core, on a wire, disks and clocks that are a program's to break.

```python
from kodo.sim import World

world = World(seed=7)
world.add("r1")
world.add("r2", ["r1"])
world.settle()
world.register("r1", "n1", ["mytest"])
world.settle()               # how many seconds of virtual time it took
world.listing("r2")          # what it lists
world.sent, world.effects    # what it cost, and what the faults did
```
"""

from kodo.core.registry import Profile, Timing
from kodo.sim.faults import Faults, Way
from kodo.sim.store import Disk, Store
from kodo.sim.world import EPOCH, Message, World

__all__ = ["EPOCH", "Disk", "Faults", "Message", "Profile", "Store", "Timing", "Way", "World"]

"""Whether this process can be forked: what a child of it would be."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def can_fork() -> bool:
    """Whether a fork of this process is whole: the system has forks, and there is no thread that it would lose."""
    tasks = Path("/proc/self/task")
    threads = len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()
    return hasattr(os, "fork") and threads == 1

"""Units of work for evaluations in several processes: here, because those have to import them by name."""

import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Counted:
    """Appends a line to a file for each method that it is scored with."""

    name: str
    log: Path
    seconds: float = 0.0

    def rows(self, methods):
        for method in methods:
            time.sleep(self.seconds)
            with self.log.open("a") as file:
                file.write(f"{self.name} {method} {os.getpid()}\n")
            yield {"subject": self.name, "method": method, "dice": 0.5}


def items(log, count=4, seconds=0.0):
    """`count` of them, which all write to `log`."""
    return [Counted(f"s{k}", log, seconds) for k in range(count)]

"""One JSON object a line, for programs that watch a run."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from m2s_runtime.errors import OutputError
from m2s_runtime.outcome import Outcome


class EventLog:
    """Appends events to a file, each on disk before the next; without a file it does nothing."""

    def __init__(self, path: Path | None) -> None:
        """Open the file.

        Raises:
            OutputError: it cannot be written.
        """
        self._path = path
        self._file: TextIO | None = None
        if path is not None:
            try:
                self._file = path.open("a", encoding="utf-8")
            except OSError as error:
                raise self._refusal(error) from error

    def event(self, name: str, **particulars: object) -> None:
        """Write one line: `time` (UTC, ISO 8601), `event`, and whatever else there is to say.

        Raises:
            OutputError: the disk is full.
        """
        if self._file is None:
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": name, **particulars}
        try:
            self._file.write(json.dumps(line, default=str) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._refusal(error) from error

    def outcome(self, outcome: Outcome) -> None:
        """The event `case`: its row but for what is None, its state, files and stage times."""
        row = {name: value for name, value in vars(outcome.row).items() if value is not None}
        stages = {stage: round(seconds, 4) for stage, seconds in outcome.seconds.items()}
        self.event("case", state=outcome.state, **row, files=outcome.paths, stages=stages)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _refusal(self, error: OSError) -> OutputError:
        return OutputError(f"--log-json {self._path}: cannot be written ({error.strerror}); choose another file")

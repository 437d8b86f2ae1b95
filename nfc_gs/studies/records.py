"""The command line of a tool that measures finished runs: what it found is kept as JSON, and the tables are made of that alone."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nfc_gs
from nfc_gs.config import UserError

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A tool called `tools/name.py`.

    `format` is the JSON's version and `holder` the key of its records, each of which has all `keys`; `beside` says what is
    written beside the Markdown. `measure` finds a run folder's records and the line that tells of them; `write` makes the
    Markdown, and what else there is, of records, given the Markdown's path and the command that makes it anew.
    """

    name: str
    description: str
    beside: str
    format: int
    holder: str
    keys: frozenset[str]
    measure: Callable[[Path], tuple[Sequence[Record], str]]
    write: Callable[[Sequence[Record], Path, str], str]

    def main(self) -> None:
        """Parses, measures, writes; a user's mistake is one line and status 2."""
        parser = argparse.ArgumentParser(
            description=f"{self.description} (nfc-gs {nfc_gs.__version__})",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, and JSON of earlier calls")
        parser.add_argument("--output", type=Path, required=True, help=f"the Markdown file; {self.beside} beside it")
        chosen = parser.parse_args()
        numbers: Path = chosen.output.with_suffix(".json")
        try:
            self._make(chosen.runs, chosen.output, numbers)
        except UserError as mistake:
            sys.exit(self._refused(str(mistake)))
        except OSError as mistake:
            # Of a full disk it does not say where.
            sys.exit(self._refused(f"{mistake.filename or numbers.parent}: {mistake.strerror}"))

    def read(self, path: Path) -> list[Record]:
        """The records of an earlier call.

        Raises:
            UserError: the file is not one of this tool's, or an older one.
        """
        try:
            content = json.loads(path.read_text())
        except ValueError as mistake:
            raise UserError(f"{path}: is not JSON ({mistake})") from None
        if not isinstance(content, dict) or content.get("format") != self.format:
            raise UserError(f"{path}: is not of format {self.format} of this program; measure the runs anew")
        records = content.get(self.holder)
        if (
            not isinstance(records, list)
            or not records
            or not all(isinstance(each, dict) and each.keys() >= self.keys for each in records)
        ):
            raise UserError(f"{path}: holds no records of this program; measure the runs anew")
        return records

    def _make(self, runs: Iterable[Path], output: Path, numbers: Path) -> None:
        if output.suffix != ".md":
            raise UserError(f"--output {output}: must be a Markdown file, FILE.md; {self.beside} beside it")
        if not output.parent.is_dir():
            raise UserError(f"--output {output}: its folder is not there")
        records: list[Record] = []
        for path in runs:
            if path.suffix == ".json":
                records += self.read(path)
                continue
            found, told = self.measure(path)
            records += found
            print(f"{path}: {told}", flush=True)
        lines = ",\n".join(json.dumps(record) for record in records)
        _replace(numbers, f'{{"format": {self.format}, "{self.holder}": [\n{lines}\n]}}\n')
        _replace(output, self.write(records, output, f"python tools/{self.name}.py {numbers} --output {output}"))

    def _refused(self, line: str) -> int:
        print(f"{self.name}: {line}", file=sys.stderr)
        return 2


def _replace(path: Path, text: str) -> None:
    """Writes a file under a temporary name first, so that an earlier one stays whole if the disk is full."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

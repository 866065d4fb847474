"""Journals of workers that are no more: with fewer workers than before, nobody else would read theirs."""

from collections.abc import Iterator
from pathlib import Path

from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.ledger.journal import Journal


def journal_path(state_dir: Path, worker: int) -> Path:
    """The folder of a worker's journal; the first one's is also that of a gateway alone."""
    return state_dir / ("journal" if worker == 0 else f"journal-{worker}")


def orphaned_journals(state_dir: Path, workers: int) -> Iterator[Journal]:
    """Open journals, to be closed by who takes them; one that another process uses is left alone."""
    numbers = {folder.name.removeprefix("journal-"): folder for folder in sorted(state_dir.glob("journal-*"))}
    for number, folder in numbers.items():
        if number.isdigit() and int(number) >= workers:
            try:
                yield Journal(folder)
            except ConfigurationError:
                continue

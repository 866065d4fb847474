"""Lines of JSON of `deepseek-bench offline --output` and of a vLLM run on the same workloads, read alike.

Both have W1 to W4 with fields of the same names, `spec`, and `active_bytes`; only ours has `engine`, `ceilings` and
floors.
"""

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Line:
    """One process of one engine.

    Args:
        fields: of the JSON.
        copy_gb_s: what the device copied in the same run, where the line itself does not say.
    """

    fields: dict[str, Any]
    copy_gb_s: float | None = None

    @property
    def is_ours(self) -> bool:
        """Whether this engine wrote it."""
        return self.fields.get("engine") == "deepseek-engine"

    @property
    def model(self) -> str:
        """Its name in the spec."""
        return self.fields["spec"].partition(":")[0]

    @property
    def label(self) -> str:
        """Engine and variant: a type, and what is quantised."""
        variant = self.fields["spec"].partition(":")[2]
        cache = self.fields.get("settings", {}).get("kv_cache_dtype")
        return f"{'ours' if self.is_ours else 'vLLM'} {variant}{f', KV {cache}' if cache else ''}"

    def figure(self, workload: str, name: str) -> float | None:
        """A figure of a workload; None where it was not measured."""
        value = self.fields.get(workload, {}).get(name)
        return statistics.median(value) if isinstance(value, list) else value

    @property
    def weight_floor_ms(self) -> float | None:
        """The weights that a token reads at batch 1, over the rate of a copy."""
        rate = self.fields.get("ceilings", {}).get("copy_gb_s", self.copy_gb_s)
        parts: dict[str, int] = self.fields.get("active_bytes", {})
        num_bytes = sum(size for part, size in parts.items() if not part.startswith("kv"))
        return num_bytes / rate / 1e6 if rate and num_bytes else None


def read_lines(path: Path, copy_gb_s: float | None = None) -> list[Line]:
    """Every line of a file, in its order."""
    texts: Iterable[str] = path.read_text(encoding="utf-8").splitlines()
    return [Line(json.loads(text), copy_gb_s) for text in texts if text.startswith("{")]

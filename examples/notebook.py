# ruff: noqa: D100, E402  cells of a notebook, for Jupyter, VS Code or `python notebook.py`
# %% [markdown]
# # DeepSeek in a notebook
# Each cell stands on the one before. Needs DEEPSEEK_API_KEY and DEEPSEEK_BASE_URL, as `nox -s up` prints them.

# %% A client for the whole notebook
from deepseek_client import DeepSeek

client = DeepSeek()
[model.id for model in client.models.list().data]

# %% One question
answer = client.generate("Name three uses of graphite.", max_tokens=60)
print(answer)

# %% An answer as it comes; the stop button of the notebook stops the model too
with client.generate_stream("Why is the sky blue?", max_tokens=60) as stream:
    for piece in stream:
        print(piece, end="", flush=True)
print()

# %% Answers as rows of a table
from typing import Annotated, Literal

from pydantic import BaseModel, Field


class Material(BaseModel):
    """A row."""

    name: Annotated[str, Field(min_length=1, max_length=40)]
    kind: Literal["metal", "polymer", "ceramic", "composite"]


class Table(BaseModel):
    """All rows."""

    rows: Annotated[list[Material], Field(min_length=2, max_length=2)]


table = client.chat.completions.parse(
    messages=[{"role": "user", "content": "List two materials of a battery cell."}],
    response_model=Table,
    max_tokens=1000,
).parsed
for row in table.rows:
    print(f"{row.kind:10} {row.name}")

# %% What it took
print(f"[{answer.usage.completion_tokens if answer.usage else 0} tokens for the first answer]")
client.close()

"""Molecules to try next, as SMILES: the type holds the alphabet, the program checks what a type cannot say.

Needs DEEPSEEK_API_KEY and DEEPSEEK_BASE_URL, as `nox -s up` prints them.
"""

from typing import Annotated

from pydantic import BaseModel, Field

from deepseek_client import DeepSeek

START = "CC(=O)Oc1ccccc1C(=O)O"
"""Aspirin."""


class Suggestion(BaseModel):
    """One candidate."""

    smiles: Annotated[str, Field(pattern=r"^[BCNOPSFIclnos0-9()=#\[\]@+\-]{1,60}$")]
    change: Annotated[str, Field(max_length=100, description="what differs from the start")]
    reason: Annotated[str, Field(max_length=120)]


class Suggestions(BaseModel):
    """What is asked for."""

    suggestions: Annotated[list[Suggestion], Field(min_length=3, max_length=3)]


def main() -> None:
    """Ask, check, print."""
    question = f"Suggest three analogues of {START} that should be more soluble. Change one group each."
    with DeepSeek() as client:
        answer = client.chat.completions.parse(
            messages=[{"role": "user", "content": question}], response_model=Suggestions, max_tokens=4000
        )
    for suggestion in answer.parsed.suggestions:
        verdict = "ok      " if is_balanced(suggestion.smiles) else "rejected"
        print(f"{verdict} {suggestion.smiles}  {suggestion.change}: {suggestion.reason}")


def is_balanced(smiles: str) -> bool:
    """Whether brackets close in order and ring numbers come in pairs; a chemistry toolkit checks the rest."""
    pairs, opened = {")": "(", "]": "["}, list[str]()
    for char in smiles:
        if char in pairs.values():
            opened.append(char)
        elif char in pairs and (not opened or opened.pop() != pairs[char]):
            return False
    return not opened and all(smiles.count(digit) % 2 == 0 for digit in "123456789")


if __name__ == "__main__":
    main()

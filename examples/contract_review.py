"""A contract reviewed against rules: every clause with its risk, what is wrong, and a better wording.

Each clause is asked about on its own, so that none is skipped in a long contract. Needs DEEPSEEK_API_KEY and
DEEPSEEK_BASE_URL, as `nox -s up` prints them.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from deepseek_client import DeepSeek

RULES = """\
R1: liability is limited to the fees of twelve months. R2: either side may end the contract with 90 days' notice.
R3: personal data is processed in the customer's country only. R4: prices change only by agreement."""

CLAUSES = {
    "4.2": "The supplier may adjust prices at any time by publishing a new list on its web site.",
    "7.1": "Each party may terminate this agreement with ninety days' written notice.",
    "9.3": "The customer's liability under this agreement is unlimited.",
}

Text = Annotated[str, Field(max_length=160)]


class Finding(BaseModel):
    """What a reviewer notes on one clause."""

    risk: Literal["none", "low", "medium", "high"]
    rule: Literal["R1", "R2", "R3", "R4"] | None = Field(description="the rule that the clause breaks")
    issue: Text
    better_wording: Text


def main() -> None:
    """Review every clause, and print the risky ones first."""
    order = ("high", "medium", "low", "none")
    with DeepSeek() as client:
        findings = [(number, review(client, text)) for number, text in CLAUSES.items()]
    for number, finding in sorted(findings, key=lambda found: order.index(found[1].risk)):
        print(f"[{finding.risk}] clause {number} against {finding.rule or 'no rule'}: {finding.issue}")
        print(f"    better: {finding.better_wording}")
    risky = [number for number, finding in findings if finding.risk in ("medium", "high")]
    print(f"Risk clauses: {', '.join(risky) or 'none'} of {len(findings)} reviewed")


def review(client: DeepSeek, clause: str) -> Finding:
    """One clause against the rules."""
    question = f"Rules:\n{RULES}\n\nDoes this clause keep them?\n{clause}"
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.parse(messages=messages, response_model=Finding, max_tokens=3000).parsed


if __name__ == "__main__":
    main()

"""A financial report to a numbered chain of logic and a conclusion, as typed output.

The type is the contract: the server's structured output holds the model to it, so the chain is never missing a step's
fact or its inference, whatever the model. Needs DEEPSEEK_API_KEY and DEEPSEEK_BASE_URL, as `nox -s up` prints them.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from deepseek_client import DeepSeek

# An input to try, written for this example: check the figures against the report itself before you rely on them.
REPORT = """\
CATL (300750), annual report 2023, in billions of yuan. Revenue 400.9, up 22 %. Net profit 44.1, up 44 %.
Battery systems for vehicles: 285.3 of the revenue, up 21 %. Storage systems: 59.9, up 33 %. R&D 18.4, up 18 %.
Operating cash flow 92.8. Sold 390 GWh. The company names price pressure and new trade barriers as risks."""

Sentence = Annotated[str, Field(min_length=1, max_length=120)]


class Step(BaseModel):
    """One link of the chain."""

    fact: Sentence = Field(description="a figure or statement of the report")
    inference: Sentence = Field(description="what follows from it")


class Analysis(BaseModel):
    """What an analyst would hand in."""

    steps: Annotated[list[Step], Field(min_length=3, max_length=5)]
    conclusion: Sentence
    outlook: Literal["positive", "neutral", "negative"]


def main() -> None:
    """Ask, and print the chain."""
    with DeepSeek() as client:
        answer = client.chat.completions.parse(
            messages=[
                {"role": "system", "content": "You are a careful equity analyst. Use only the report's figures."},
                {"role": "user", "content": f"Reason step by step to a conclusion on this report:\n\n{REPORT}"},
            ],
            response_model=Analysis,
            max_tokens=6000,
        )
    analysis = answer.parsed
    for number, step in enumerate(analysis.steps, start=1):
        print(f"{number}. {step.fact}\n   => {step.inference}")
    print(f"Conclusion ({analysis.outlook}): {analysis.conclusion}")


if __name__ == "__main__":
    main()

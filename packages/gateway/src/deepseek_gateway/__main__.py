"""`python -m deepseek_gateway`."""

import sys

from deepseek_gateway.cli import main

if __name__ == "__main__":
    sys.exit(main())

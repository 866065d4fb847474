"""`python -m deepseek_engine.server`."""

from deepseek_engine.server.cli import main

if __name__ == "__main__":
    main()

"""The state directory: made, migrated and given its pepper by one explicit step."""

from deepseek_gateway.settings import Settings


def prepare_state(settings: Settings) -> list[str]:
    """Make the state directory (mode 0700), bring the store up to date, make the pepper if there is none.

    What `deepseek-gateway migrate` does, and `up` on its first start. Harmless to repeat.

    Returns:
        The names of the migrations applied now.
    Raises:
        StoreError: the store cannot be made or belongs to a newer program.
        PepperError: the pepper's file cannot be written.
    """
    raise NotImplementedError

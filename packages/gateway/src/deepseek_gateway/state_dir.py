"""The state directory: store, journal, pepper, made by one explicit step."""

from deepseek_gateway.auth.pepper import create_pepper
from deepseek_gateway.errors import ConfigurationError
from deepseek_gateway.settings import Settings
from deepseek_gateway.storage.migrate import Migration
from deepseek_gateway.storage.sqlite import migrate_sqlite


def prepare_state(settings: Settings) -> list[Migration]:
    """Make the directory (mode 0700), bring the store up to date, make a pepper if there is none. Harmless to repeat.

    Returns:
        the migrations that were applied now.

    Raises:
        ConfigurationError: the directory cannot be written, or its store is of a newer version.
    """
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        applied = migrate_sqlite(settings.store_path)
        if settings.key_pepper is None:
            create_pepper(settings.pepper_path)
    except OSError as error:
        raise ConfigurationError(f"{settings.state_dir} cannot be written: {error.strerror}") from error
    return applied

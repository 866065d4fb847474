"""The state directory: store, journal, pepper, made by one explicit step."""

from deepseek_gateway.audit.vault import Vault, load_master_key
from deepseek_gateway.auth.pepper import create_pepper, fingerprint, load_pepper
from deepseek_gateway.errors import ConfigurationError, StoreError
from deepseek_gateway.settings import Settings
from deepseek_gateway.storage.migrate import Migration
from deepseek_gateway.storage.store import Store, migrate_store
from deepseek_gateway.storage.store import open_store as open_tables

FINGERPRINT = "pepper_fingerprint"


def prepare_state(settings: Settings) -> list[Migration]:
    """Make the directory (mode 0700), bring the store up to date, make a pepper if there is none. Harmless to repeat.

    Returns:
        the migrations that were applied now.

    Raises:
        ConfigurationError: the directory cannot be written, or its store is of a newer version.
    """
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        applied = migrate_store(*settings.store_address)
        if settings.key_pepper is None:
            if not settings.pepper_path.exists():
                _check_is_new(settings)
            create_pepper(settings.pepper_path)
    except OSError as error:
        raise ConfigurationError(f"{settings.state_dir} cannot be written: {error.strerror}") from error
    return applied


def open_store(settings: Settings) -> tuple[Store, bytes]:
    """The store and the pepper that its keys were hashed with.

    Raises:
        ConfigurationError: one is missing, or they do not belong together.
    """
    store = open_tables(*settings.store_address)
    try:
        given = settings.key_pepper.get_secret_value() if settings.key_pepper is not None else None
        pepper = load_pepper(settings.pepper_path, given)
        _check_fingerprint(store, pepper)
        store.audit.seal_with(pepper)
    except BaseException:
        store.close()
        raise
    return store, pepper


def open_vault(settings: Settings) -> Vault | None:
    """The master key of kept texts; None where there is none.

    Raises:
        ConfigurationError: it is no key, or its extra is not installed.
    """
    given = settings.payload_key.get_secret_value() if settings.payload_key is not None else None
    key = load_master_key(settings.payload_key_path, given)
    return None if key is None else Vault(key)


def _check_is_new(settings: Settings) -> None:
    """A store that has hashed keys needs its own pepper; a new one would only look like it.

    Raises:
        StoreError: it has.
    """
    store = open_tables(*settings.store_address)
    try:
        if store.meta.get(FINGERPRINT) is not None:
            raise StoreError(
                f"{settings.pepper_path} is missing, and the store has keys that were made with it: restore it, or "
                "GATEWAY_KEY_PEPPER"
            )
    finally:
        store.close()


def _check_fingerprint(store: Store, pepper: bytes) -> None:
    kept = store.meta.get(FINGERPRINT)
    if kept is None:
        store.meta.set_once(FINGERPRINT, fingerprint(pepper))
    elif kept != fingerprint(pepper):
        raise StoreError(
            "the pepper is not the one that the store's keys were made with: restore it, or GATEWAY_KEY_PEPPER"
        )
